"""A network on images it did not train on, and whether it fits them at all."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rfcalc.errors import ForwardError, InputError
from rfcalc.text import one_line
from rfcalc.train.data import DataSet, Split, normalise
from rfcalc.train.graph import cudnn

_EVALUATED = 500
"""Images evaluated at once: enough to fill a CPU, few enough that activations stay in its cache."""


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, data: DataSet) -> tuple[float, int]:
    """Mean loss and number of images right, in evaluation mode and float32; `data` says how images are normalised."""
    loss, correct = 0.0, 0
    for output, labels in outputs(model, split, data):
        loss += float(cross_entropy(output, labels, reduction="sum"))
        correct += int((output.argmax(1) == labels).sum())
    return loss / len(split), correct


@torch.no_grad()
def outputs(model: nn.Module, split: Split, data: DataSet) -> list[tuple[Tensor, Tensor]]:
    """What a model makes of every image, in evaluation mode and float32, a few hundred images at once.

    Pairs of outputs [n, classes] and true classes [n], on the split's device; `data` says how images are normalised.
    """
    was = model.training
    model.eval()
    found = []
    with cudnn(allow_tf32=False):
        for rows in torch.split(torch.arange(len(split), device=split.labels.device), _EVALUATED):
            images, labels = split.batch(rows)
            found.append((model(normalise(images, data).contiguous(memory_format=torch.channels_last)), labels))
    model.train(was)
    return found


@torch.no_grad()
def require_fit(model: nn.Module, data: DataSet) -> None:
    """Raises ForwardError or InputError unless the network makes [N, classes] of the images."""
    images, _ = data.test.batch(torch.arange(2, device=data.test.labels.device))
    model.eval()
    shape = tuple(images.shape)
    try:
        output = model(normalise(images, data))
    except Exception as error:  # the design's own forward
        raise ForwardError(f"{data.name}: the design's forward raised {one_line(error)} on images {shape}") from error
    wanted = (len(images), len(data.classes))
    if not isinstance(output, Tensor) or output.shape != wanted:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(f"{data.name}: the design's output is {found} for images {shape}; expected {wanted}")


def require_trainable(model: nn.Module, data: DataSet) -> None:
    """Raises InputError for a network without parameters to train, else as `require_fit`."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"{data.name}: the design has no parameter to train; expected one or more")
    require_fit(model, data)


def batch_sizes(count: int, size: int) -> list[int]:
    """How many images each step takes: the last has what is left, unless that is one image, which no norm can take."""
    sizes = [size] * (count // size)
    return sizes + [count % size] * (count % size > (size > 1))
