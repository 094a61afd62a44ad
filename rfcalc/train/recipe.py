"""A recipe: everything that decides how a network is trained, apart from the network, the data and the seed.

`OURS` is the default, `FAST` the same in 8 epochs. A design's own `RECIPE` dict, with torch's and torchvision's names
and arguments, is its reference recipe:

>>> from_reference(load_design("models/step8.py").recipe, "models/step8.py")       # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from rfcalc.errors import RecipeError
from rfcalc.train.augment import Augmentation
from rfcalc.train.data import DataSet
from rfcalc.train.optim import Choice, build, nearest, require_steps
from rfcalc.train.transforms import stages


@dataclass(frozen=True)
class Recipe:
    """How to train. Raises RecipeError for a value that nothing can be trained with."""

    name: str
    epochs: int
    batch_size: int
    optimizer: Choice
    rest: Choice | None = None
    """The optimizer of what Muon does not take; given with Muon and only with it."""
    schedule: Choice | None = None
    augmentation: tuple[Augmentation, ...] = ()
    ema: float = 0.0
    """Greatest decay of the moving average of the weights; 0: none is kept."""
    label_smoothing: float = 0.0
    mean: tuple[float, ...] = ()
    """Taken from every channel, in 0..1; empty: the training split's own. So is `std`."""
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise RecipeError(f"{name} is {value!r}; expected a whole number, 1 or more")
        for name in ("ema", "label_smoothing"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value < 1:
                raise RecipeError(f"{name} is {value!r}; expected a number, 0 or more and less than 1")
        for name in ("mean", "std"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        if len(self.mean) != len(self.std) or not all(value > 0 for value in self.std):
            raise RecipeError(f"mean {self.mean} and std {self.std}; expected as many of both and every std above 0")
        if (self.optimizer.name == "Muon") != (self.rest is not None):
            raise RecipeError("rest: expected an optimizer of what Muon does not take with Muon, and only with it")
        for choice in (self.optimizer, self.rest):
            if choice is not None:
                # Both are tried on a weight of nothing: torch itself knows best what it takes.
                optimizer = build(choice, [torch.zeros(2, 2)])
                if self.schedule is not None:
                    require_steps(self.schedule, optimizer, 100)

    def fitted(self, data: DataSet) -> DataSet:
        """The data as this recipe normalises them. Raises RecipeError when a recipe and data do not fit together."""
        count, channels = data.train.images.shape[:2]
        if self.batch_size > count:
            raise RecipeError(
                f"batch_size is {self.batch_size:,}; {data.name} has {count:,} images to train on: expected no more"
            )
        if not self.mean:
            return data
        if len(self.mean) != channels:
            raise RecipeError(f"mean has {len(self.mean)} numbers; expected {channels}, one per channel of {data.name}")
        return replace(data, mean=self.mean, std=self.std)

    def on(self, data: DataSet) -> Recipe:
        """The recipe with what moves in at the borders of the images like the background that they lie on."""
        background = data.background
        return replace(self, augmentation=tuple(replace(stage, fill=background) for stage in self.augmentation))


# --- to and from plain values --------------------------------------------------------------------------------


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values that JSON holds; `from_dict` reads them back."""
    return dataclasses.asdict(recipe)


def from_dict(values: Mapping[str, Any]) -> Recipe:
    """The recipe of `to_dict`, also after JSON made lists of its tuples. Raises RecipeError."""
    given = dict(_known_keys(Recipe, values, "recipe"))
    for name in ("optimizer", "rest", "schedule"):
        if given.get(name) is not None:
            given[name] = _choice(name, given[name])
    given["augmentation"] = tuple(
        Augmentation(**_known_keys(Augmentation, stage, "augmentation")) for stage in given.get("augmentation", ())
    )
    return Recipe(**given)


def _choice(name: str, value: Any) -> Choice:
    given = _known_keys(Choice, value, name)
    if not isinstance(given.get("options", {}), Mapping):
        raise RecipeError(f"{name}: options are {given['options']!r}; expected a dict")
    # Lists of JSON were tuples.
    options = {key: tuple(one) if isinstance(one, list) else one for key, one in given.get("options", {}).items()}
    return Choice(str(given["name"]), options)


def _known_keys(kind: type[Any], value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RecipeError(f"{place}: {value!r}; expected a dict")
    fields = dataclasses.fields(kind)
    needed = [one.name for one in fields if one.default is one.default_factory is dataclasses.MISSING]
    return _require_keys(value, [one.name for one in fields], needed, place)


def _require_keys(value: Mapping[str, Any], known: list[str], needed: list[str], place: str) -> Mapping[str, Any]:
    for key in value:
        if key not in known:
            raise RecipeError(f"{place}: unknown key {key!r}; {nearest(str(key), known)}")
    if absent := [key for key in needed if key not in value]:
        raise RecipeError(f"{place}: {absent[0]!r} is missing")
    return value


# --- a design's RECIPE ---------------------------------------------------------------------------------------

_LOSS = "nll_loss on log_softmax output, mean over the batch"  # cross_entropy of log-probabilities is the same
_REFERENCE = ["optimizer", "scheduler", "epochs", "batch_size", "train_augmentation", "normalize", "seed", "loss"]
_STEPS = {"OneCycleLR": "every batch", "StepLR": "every epoch", "ReduceLROnPlateau": "every epoch"}


def from_reference(recipe: Mapping[str, Any], place: str) -> Recipe:
    """A design's RECIPE as a Recipe; its `seed` is the caller's to use. `place` opens the messages.

    Raises RecipeError for an unknown key and for what we cannot do as it says.
    """
    try:
        return _from_reference(recipe)
    except RecipeError as error:
        raise RecipeError(f"{place}: RECIPE: {error}") from error


def _from_reference(recipe: Mapping[str, Any]) -> Recipe:
    _require_keys(recipe, _REFERENCE, ["optimizer", "epochs", "batch_size"], "it")
    if recipe.get("loss", _LOSS) != _LOSS:
        raise RecipeError(f"loss is {recipe['loss']!r}; expected {_LOSS!r}")
    normalize = _require_keys(recipe.get("normalize") or {"mean": (), "std": ()}, ["mean", "std"], [], "normalize")
    augmentation = recipe.get("train_augmentation") or ()
    if not isinstance(augmentation, list | tuple):
        raise RecipeError(f"train_augmentation is {augmentation!r}; expected a list")
    return Recipe(
        name="reference",
        epochs=recipe["epochs"],
        batch_size=recipe["batch_size"],
        optimizer=_named("optimizer", recipe["optimizer"]),
        schedule=_reference_schedule(recipe.get("scheduler"), recipe["epochs"]),
        augmentation=stages(augmentation),
        mean=normalize.get("mean", ()),
        std=normalize.get("std", ()),
    )


def _named(what: str, value: Any) -> Choice:
    """{"name": ..., **arguments of torch's class} as a Choice."""
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise RecipeError(f"{what} is {value!r}; expected a dict of torch's 'name' and arguments")
    return Choice(value["name"], {key: one for key, one in value.items() if key != "name"})


def _reference_schedule(value: Any, epochs: Any) -> Choice | None:
    """Without what says when it steps and over how many steps: that is checked, and then follows from the rest."""
    if value is None:
        return None
    given = _named("scheduler", value)
    options = dict(given.options)
    step, expected = options.pop("step", None), _STEPS.get(given.name)
    if step is not None and expected and not str(step).startswith(expected):
        raise RecipeError(f"scheduler {given.name}: step is {step!r}; expected {expected!r}")
    if given.name == "OneCycleLR":
        over, by_epoch, total = (options.pop(key, None) for key in ("epochs", "steps_per_epoch", "total_steps"))
        if over not in (None, epochs) or (None not in (over, by_epoch, total) and over * by_epoch != total):
            raise RecipeError(
                f"scheduler OneCycleLR: {over} epochs of {by_epoch} steps, {total} in all; expected the recipe's "
                f"{epochs} epochs, and their product"
            )
    return Choice(given.name, options)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    if not isinstance(value, list | tuple) or not all(_is_number(one) for one in value):
        raise RecipeError(f"{name} is {value!r}; expected a list of finite numbers")
    return tuple(float(one) for one in value)


# --- the recipes of this package -----------------------------------------------------------------------------

OURS = Recipe(
    name="ours",
    epochs=15,
    batch_size=128,
    optimizer=Choice("Muon", {"lr": 0.2, "momentum": 0.9}),
    rest=Choice("AdamW", {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.0}),
    schedule=Choice("WarmUpLinear", {"warm_up": 0.2}),
    augmentation=(Augmentation(rotate=(-10, 10), shear=(-5, 5), scale=(0.9, 1.1), shift=2, warp=0.6),),
    ema=0.998,
)
FAST = replace(OURS, name="fast", epochs=8)
