"""Trained weights on disk: where they are and what is known of them.

>>> (trained,) = find(Path("weights-1-ema.safetensors"))               # doctest: +SKIP

Nothing pickled is loaded: files are safetensors, or torch's read with weights_only=True."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rfcalc.errors import RunError
from rfcalc.text import one_line
from rfcalc.train.description import SCHEMA, Config, Run
from rfcalc.train.loop import State
from rfcalc.train.run_folder import read, read_state, read_weights, weights_file
from rfcalc.train.verdict import Weights

_NESTED = ("state_dict", "model_state_dict", "model")
"""Where a checkpoint of another program keeps its network's tensors."""
_KINDS: tuple[Weights, ...] = ("raw", "ema")
_LISTS = ("input_shape", "mean", "std", "classes")
"""What is written as JSON beside weights; the rest as it is."""


@dataclass(frozen=True)
class About:
    """What is known of weights; None or empty where nothing is."""

    design: str | None = None
    source: str | None = None
    """`fingerprint` of the design that was trained."""
    weights: Weights | None = None
    seed: int | None = None
    epoch: int | None = None
    data: str | None = None
    input_shape: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Trained:
    """A network's tensors by name, where they are from, and what is known of them."""

    place: str
    tensors: Mapping[str, Tensor]
    about: About


def find(place: Path) -> list[Trained]:
    """All weights that a run's folder or a file holds: by seed, raw before averaged.

    Raises RunError when there are none, or they are damaged or not finite.
    """
    if place.is_dir():
        found = of_run(read(place))
    elif not place.exists():
        raise RunError(f"{place}: no such file; expected weights or a run's folder")
    elif place.suffix == ".safetensors":
        found = [_of_safetensors(place)]
    elif place.suffix in (".pt", ".pth"):
        found = _of_torch(place)
    else:
        raise RunError(f"{place}: not weights; expected a run's folder, a .safetensors file or a .pt or .pth file")
    for one in found:
        _require_finite(one)
    return found


def of_run(run: Run) -> list[Trained]:
    """The newest weights of every seed that has any. Raises RunError when none has."""
    found = []
    for seed in run.epochs:
        if (state := read_state(run.folder, seed)) is not None:
            found += _of_state(state, str(run.folder), _about_run(run.config))
        else:
            files = (weights_file(run.folder, seed, kind) for kind in _KINDS)
            found += [_of_safetensors(file) for file in files if file.exists()]
    if not found:
        raise RunError(f"{run.folder}: no seed has finished an epoch; there are no weights yet")
    return found


def pick(found: Sequence[Trained], *, weights: Weights | None = None, seed: int | None = None) -> list[Trained]:
    """Those of one kind and one seed; None: of all. Raises RunError when there are none."""
    place = found[0].place
    seeds = sorted({one.about.seed for one in found if one.about.seed is not None})
    if seed is not None and seed not in seeds:
        known = f"weights of seed {', '.join(map(str, seeds))}" if seeds else "weights of a seed it does not tell"
        raise RunError(f"{place}: no weights of seed {seed}; it has {known}")
    kept = [one for one in found if seed in (None, one.about.seed)]
    picked = [one for one in kept if weights in (None, one.about.weights)]
    if not picked:
        kinds = sorted({one.about.weights or "weights of a kind it does not tell" for one in kept})
        raise RunError(f"{place}: no {weights} weights; it has {', '.join(kinds)}")
    return picked


def best_known(found: Sequence[Trained]) -> Trained:
    """The first seed's averaged weights, or its raw ones where none are kept. Not the best by test: that would flatter.

    `found` is not empty.
    """
    first = [one for one in found if one.about.seed == found[0].about.seed]
    return next((one for one in first if one.about.weights == "ema"), first[0])


def _of_state(state: State, place: str, about: About) -> list[Trained]:
    known = dataclasses.replace(about, seed=state.seed, epoch=state.epoch)
    kinds: dict[Weights, dict[str, Tensor] | None] = {"raw": state.model, "ema": state.ema}
    return [
        Trained(place, tensors, dataclasses.replace(known, weights=kind))
        for kind, tensors in kinds.items()
        if tensors is not None
    ]


def _of_safetensors(file: Path) -> Trained:
    tensors, metadata = read_weights(file)
    known = _about_file(file, metadata) if metadata.get("schema") == SCHEMA else _beside(file)
    return Trained(str(file), tensors, known)


def _of_torch(file: Path) -> list[Trained]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch wonders about on the way to an error
            values = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever it meets in a damaged file
        raise RunError(
            f"{file}: not a dict of tensors saved by torch (damaged, or with pickled objects in it, which are never "
            "loaded); save model.state_dict() instead"
        ) from error
    about = _beside(file)
    if isinstance(values, dict) and {one.name for one in dataclasses.fields(State)} == set(values):
        return _of_state(State.from_dict(values), str(file), about)
    tensors = next((values[name] for name in _NESTED if name in values), values) if isinstance(values, dict) else values
    if not isinstance(tensors, dict) or not tensors or not all(isinstance(one, Tensor) for one in tensors.values()):
        keys = f"a dict of {', '.join(map(str, list(values)[:5])) or 'nothing'}" if isinstance(values, dict) else ""
        raise RunError(
            f"{file}: {keys or type(values).__name__}; expected tensors by name, as model.state_dict() has them, or "
            f"these under {', '.join(_NESTED)}"
        )
    return [Trained(str(file), tensors, about)]


def _about_run(config: Config) -> About:
    return About(
        design=config.design,
        source=config.source,
        data=config.data,
        input_shape=config.input_shape,
        mean=config.mean,
        std=config.std,
        classes=config.classes,
    )


def _beside(file: Path) -> About:
    """What the run that a file lies in tells; nothing where it lies in none."""
    try:
        return _about_run(read(file.parent).config)
    except RunError:
        return About()


def _about_file(file: Path, metadata: Mapping[str, str]) -> About:
    """What weights were written with. Raises RunError when it is not what this version writes."""
    try:
        shape, mean, std, classes = (tuple(json.loads(metadata[key])) for key in _LISTS)
        return About(
            design=metadata["design"],
            source=metadata["source"],
            weights={"raw": "raw", "ema": "ema"}[metadata["weights"]],  # type: ignore[arg-type]
            seed=int(metadata["seed"]),
            epoch=int(metadata["epoch"]),
            data=metadata["data"],
            input_shape=tuple(map(int, shape)),
            mean=tuple(map(float, mean)),
            std=tuple(map(float, std)),
            classes=tuple(map(str, classes)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{file}: what it says of its weights is damaged ({one_line(error)})") from error


def _require_finite(trained: Trained) -> None:
    for name, tensor in trained.tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise RunError(f"{trained.place}: {name} has values that are not finite; expected weights of a training")
