"""Trained weights put to use: whether a design takes them, and what it makes of images.

>>> model = fit(load_design("models/step8.py"), trained)               # doctest: +SKIP
>>> answers(model, images, normalisation(trained, channels=1))         # doctest: +SKIP"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softmax
from torch.nn.parameter import is_lazy

from rfcalc.designs.design import Design
from rfcalc.errors import ForwardError, InputError, NotFiniteError, RunError
from rfcalc.text import one_line
from rfcalc.train.data import DataSet, Split, normalise, ring
from rfcalc.train.description import Run
from rfcalc.train.evaluation import evaluate
from rfcalc.train.loop import Epoch
from rfcalc.train.verdict import Interval, correct_of, interval
from rfcalc.train.weights import About, Trained

_AT_ONCE = 500
_BETWEEN = (0.35, 0.65)
"""A mean grey that tells neither of dark nor of bright background."""


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
