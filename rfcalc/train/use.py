"""Trained weights put to use: what is known of them, whether a design takes them, and what it makes of images.

>>> (trained,) = find(Path("weights-1-ema.safetensors"))               # doctest: +SKIP
>>> model = fit(load_design("models/step8.py"), trained)               # doctest: +SKIP
>>> answers(model, images, normalisation(trained, channels=1))         # doctest: +SKIP

Nothing pickled is loaded: files are safetensors, or torch's read with weights_only=True.
"""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softmax
from torch.nn.parameter import is_lazy

from rfcalc.design import Design, one_line
from rfcalc.errors import ForwardError, InputError, NotFiniteError, RunError
from rfcalc.train.data import DataSet, Split, normalise, ring
from rfcalc.train.loop import Epoch, State, evaluate
from rfcalc.train.record import SCHEMA, Config, Run, read, read_state, read_weights, weights_file
from rfcalc.train.verdict import Interval, Weights, correct_of, interval

_AT_ONCE = 500
_NESTED = ("state_dict", "model_state_dict", "model")
"""Where a checkpoint of another program keeps its network's tensors."""
_KINDS: tuple[Weights, ...] = ("raw", "ema")
_LISTS = ("input_shape", "mean", "std", "classes")
"""What is written as JSON beside weights; the rest as it is."""
_BETWEEN = (0.35, 0.65)
"""A mean grey that tells neither of dark nor of bright background."""


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


@dataclass(frozen=True)
class Normal:
    """Images in 0..1 become (image - mean) / std, channel by channel. `origin` says whose numbers these are."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: str


@dataclass(frozen=True)
class Score:
    """What weights reach on a test split."""

    place: str
    about: About
    loss: float
    correct: int
    total: int
    likely: Interval
    """Of all such images, by Wilson."""
    recorded: int | None = None
    """Images right as counted while it trained, where that is known."""


@dataclass(frozen=True)
class Guess:
    """A class and the probability it is given."""

    index: int
    name: str
    probability: float


@dataclass(frozen=True)
class Answer:
    """What is made of an image file: the likeliest classes, the likeliest first, or why there are none."""

    file: str
    guesses: tuple[Guess, ...] = ()
    caution: str | None = None
    """Why the guesses are not to be relied on, where something was seen."""
    error: str | None = None


# --- finding weights -----------------------------------------------------------------------------------------


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


# --- the network ---------------------------------------------------------------------------------------------


def fit(design: Design, trained: Trained) -> nn.Module:
    """The design with these weights, in evaluation mode, on the CPU.

    Raises RunError that names the first parameter or buffer which does not fit, DesignError as building does.
    """
    model = design.build_real()
    own = model.state_dict()
    place = f"{trained.place}: does not fit {design.name}"
    extra = [name for name in trained.tensors if name not in own]
    for name, tensor in own.items():
        size = "" if is_lazy(tensor) else f" {_shape(tensor)}"
        if name not in trained.tensors:
            instead = f", but {extra[0]} {_shape(trained.tensors[extra[0]])}" if extra else ""
            raise RunError(f"{place}: it has no {name}{size}{instead}")
        if size and tensor.shape != trained.tensors[name].shape:
            raise RunError(f"{place}: {name} is {_shape(trained.tensors[name])}, in the design{size}")
    if extra:
        raise RunError(f"{place}: it has {extra[0]} {_shape(trained.tensors[extra[0]])}, which the design has not")
    try:
        model.load_state_dict(dict(trained.tensors))
    except RuntimeError as error:
        raise RunError(f"{place}: {one_line(error)}") from error
    return model.eval()


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def normalisation(
    trained: Trained,
    *,
    channels: int,
    given: tuple[tuple[float, ...] | None, tuple[float, ...] | None] = (None, None),
    data: DataSet | None = None,
) -> Normal:
    """How images become the network's input: as given (mean, std), else as in training, else by the data's own.

    Raises InputError when none of it is known, or it cannot be.
    """
    about = trained.about
    mean, std = given
    if (mean is None) != (std is None):
        raise InputError("one of --mean and --std; expected both")
    if mean is not None and std is not None:
        normal = Normal(mean, std, "as given")
    elif about.mean:
        normal = Normal(about.mean, about.std, "as in training")
    elif data is not None:
        normal = Normal(data.mean, data.std, f"by the training images of {data.name}")
    else:
        raise InputError(
            f"{trained.place}: does not tell how its training images were normalised; give --mean and --std of "
            "pixels in 0..1 (0.1307 and 0.3081 for MNIST), or the run's folder"
        )
    _require_normal(normal, channels)
    return normal


def _require_normal(normal: Normal, channels: int) -> None:
    for name, values in (("mean", normal.mean), ("std", normal.std)):
        if len(values) != channels:
            found = "1 number" if len(values) == 1 else f"{len(values)} numbers"
            raise InputError(f"{name} {normal.origin}: {found}; expected {channels}, one per channel of the design")
        if not all(map(math.isfinite, values)) or (name == "std" and min(values) <= 0):
            wanted = "numbers above 0" if name == "std" else "finite numbers"
            raise InputError(f"{name} {normal.origin}: {', '.join(f'{v:g}' for v in values)}; expected {wanted}")


# --- what it makes of images ---------------------------------------------------------------------------------


def score(trained: Trained, model: nn.Module, data: DataSet, recorded: int | None = None) -> Score:
    """Loss and accuracy on the test split; `data` on the model's device, with the normalisation to use.

    Raises NotFiniteError when the loss is not finite.
    """
    loss, correct = evaluate(model, data.test, data)
    if not math.isfinite(loss):
        raise NotFiniteError(f"{trained.place}: the test loss is {loss}; expected a finite one: are these the weights?")
    total = len(data.test)
    return Score(trained.place, trained.about, loss, correct, total, interval(correct, total), recorded)


def recorded(run: Run, about: About) -> int | None:
    """Test images right after that epoch, as counted while it trained."""
    if about.seed is None or about.epoch is None or about.weights is None:
        return None
    epochs: Sequence[Epoch] = run.epochs.get(about.seed, ())
    if not 0 < about.epoch <= len(epochs):
        return None
    epoch = epochs[about.epoch - 1]
    return None if about.weights == "ema" and epoch.ema_correct is None else correct_of(epoch, about.weights)


def unlabelled(images: Tensor, normal: Normal) -> DataSet:
    """uint8 images [N, C, H, W] as a data set that is normalised so and whose labels mean nothing."""
    split = Split(images, torch.zeros(len(images), dtype=torch.int64, device=images.device))
    return DataSet("images", split, split, (), normal.mean, normal.std)


@torch.no_grad()
def answers(
    model: nn.Module, images: Tensor, normal: Normal, *, classes: Sequence[str] = (), most: int = 3
) -> list[tuple[Guess, ...]]:
    """The likeliest classes of uint8 images [N, C, H, W], the likeliest first; without `classes` named by number.

    Raises ForwardError when the forward raises, InputError when its output is not [N, classes], NotFiniteError.
    """
    shares = _probabilities(_outputs(model, images, normal))
    if shares.isnan().any():
        raise NotFiniteError("the design's output is not finite; expected scores: are these the weights?")
    count = shares.shape[1]
    names = classes or [str(index) for index in range(count)]
    if len(names) != count:
        raise InputError(
            f"the design tells {count} classes apart; expected {len(names)}, as its weights were trained for"
        )
    values, indices = shares.topk(min(most, count), dim=1)
    return [
        tuple(Guess(index, names[index], value) for index, value in zip(row, probabilities, strict=True))
        for row, probabilities in zip(indices.tolist(), values.tolist(), strict=True)
    ]


def _outputs(model: nn.Module, images: Tensor, normal: Normal) -> Tensor:
    data = unlabelled(images, normal)
    found = []
    for rows in torch.split(torch.arange(len(images), device=images.device), _AT_ONCE):
        batch = normalise(data.test.batch(rows)[0], data).contiguous(memory_format=torch.channels_last)
        try:
            output: Any = model(batch)
        except Exception as error:  # the design's own forward
            raise ForwardError(
                f"the design's forward raised {one_line(error)} on images {tuple(batch.shape)}"
            ) from error
        if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(batch) or output.shape[1] < 2:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise InputError(f"the design's output is {shape} for {len(batch)} images; expected one row of scores each")
        found.append(output.float().cpu())
    return torch.cat(found)


def _probabilities(outputs: Tensor) -> Tensor:
    """Of logits or log-probabilities; what a softmax at the design's end has made is left as it is."""
    if (outputs >= 0).all() and torch.allclose(outputs.sum(1), torch.ones(len(outputs)), atol=1e-4):
        return outputs
    return softmax(outputs, 1)


def oddity(image: Tensor, normal: Normal) -> str | None:
    """Why an answer on a uint8 image [C, H, W] is not to be relied on: it is empty, or lies on another background.

    Training images whose mean is dark lie on a dark background, those whose mean is bright on a bright one; what is
    between says nothing. The background of an image is the median of its border. Only grey images are looked at for it.
    """
    if image.max() == image.min():
        return "it is of one colour (what is transparent counts as its colour); expected something on it"
    background, mean = border(image), normal.mean[0]
    dark = mean < _BETWEEN[0]
    if (
        len(normal.mean) != 1
        or not (dark or mean > _BETWEEN[1])
        or (background <= mean if dark else background >= mean)
    ):
        return None
    unlike = "brighter" if dark else "darker"
    hint = ""
    if dark:
        wanted = (
            "if it is ink on paper, try --invert"
            if background > 0.5
            else "raise its contrast until the background is plain"
        )
        hint = f"; {wanted}"
    return f"its border ({background:.2f} of 1) is {unlike} than the training images on average ({mean:.2f}){hint}"


def border(image: Tensor) -> float:
    """The median of the outermost pixels of a uint8 image [C, H, W], in 0..1."""
    return float(ring(image).median()) / 255


def image_shape(design: Design) -> tuple[int, int, int]:
    """The input of a design that takes one image. Raises InputError for another design."""
    shape = design.input_shape
    if not isinstance(shape, tuple) or len(shape) != 3 or not all(isinstance(length, int) for length in shape):
        raise InputError(f"{design.name}: the input shape is {shape}; expected that of one image, as in (1, 28, 28)")
    channels, height, width = shape
    return channels, height, width  # type: ignore[return-value]
