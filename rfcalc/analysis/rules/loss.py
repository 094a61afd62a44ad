"""Losses inside a forward: element by element, or of the scores of classes; one number where they are reduced."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from rfcalc.analysis.field import Field, blank, broadcast, drop_dims, everything, join, mix, reduce
from rfcalc.analysis.parts import Part, Shape
from rfcalc.analysis.pattern import Lost, masked
from rfcalc.analysis.rules.indexing import BY_ELEMENT, gather
from rfcalc.analysis.rules.pointwise import guessed
from rfcalc.analysis.rules.registry import Call, Result, Value, everywhere, rule, values
from rfcalc.analysis.stretches import flags_of


def _reduced(field: Field | None, shape: Shape, out: Shape) -> Field | None:
    """`reduction` tells itself by the shape of the result: mean and sum leave one number."""
    if field is None or shape == out:
        return field
    dims = tuple(range(len(shape)))
    return drop_dims(reduce(field, dims).unmasked(), dims, len(shape))


@rule("mse_loss", "smooth_l1_loss", "huber_loss", "soft_margin_loss", "binary_cross_entropy",
      "binary_cross_entropy_with_logits")  # fmt: skip
def elementwise_loss(call: Call, *args: Any, **kwargs: Any) -> Result:
    """Input, target and weights broadcast against each other."""
    operands = list(values((*args, *kwargs.values())))
    shape = np.broadcast_shapes(*(v.shape for v in operands))
    fields = [broadcast(v.field, v.shape, shape) for v in operands if v.field is not None]
    return _reduced(join(fields).unmasked(), shape, call.out[0])


@rule("nll_loss_forward", "nll_loss2d_forward")
def nll_loss(
    call: Call, x: Value, target: Value, weight: Any = None, reduction: int = 1, ignore_index: int = -100
) -> Result:  # fmt: skip
    """Of each sample the score of its class; of a class that depends on the input, any score."""
    classes = 1 if len(x.shape) > 1 else 0
    fields = []
    if x.field is not None:
        known = target.const is not None and target.field is None and math.prod(x.shape) <= BY_ELEMENT
        fields.append(_of_class(x, target, classes, ignore_index) if known else _any_class(x, classes))
    if target.field is not None:
        fields.append(target.field.unmasked())
    if isinstance(weight, Value) and weight.field is not None:
        return everywhere(call, x, target, weight)
    total = _reduced(target.field, target.shape, ())
    each = join([f for f in fields if f is not None]) if any(fields) else None
    return _reduced(each, target.shape, call.out[0]), (None if reduction == 0 else total)


def _any_class(x: Value, classes: int) -> Field:
    assert x.field is not None
    return mix(drop_dims(reduce(x.field, (classes,)).unmasked(), (classes,), len(x.shape)))


def _of_class(x: Value, target: Value, classes: int, ignore_index: int) -> Field | None:
    number = target.const.cpu()
    ignored = number == ignore_index
    index = torch.where(ignored, 0, number).unsqueeze(classes)
    shape = tuple(index.shape)
    picked = gather(Call("gather", (shape,)), x, classes, Value(shape, None, index))
    assert isinstance(picked, Field)
    field = drop_dims(picked, (classes,), len(shape))
    flags = masked(ignored, torch.Tensor.bool, target.shape)
    if isinstance(flags, Lost):
        return guessed(field, "targets")
    return (
        field
        if flags is None
        else blank(field, flags if isinstance(flags, Part) else flags_of(flags), target.shape, inside=True)
    )


@rule("multi_margin_loss", "multilabel_margin_loss_forward")
def margin_loss(call: Call, x: Value, target: Value, *args: Any, **kwargs: Any) -> Result:
    """Every score of a sample against those of its classes."""
    fields = []
    for v in (x, target):
        if v.field is not None:
            last = len(v.shape) - 1
            whole = len(v.shape) == len(x.shape)  # a class per sample has no dim of classes
            fields.append(drop_dims(reduce(v.field, (last,)).unmasked(), (last,), len(v.shape)) if whole else v.field)
    fields += [everything(v.field) for v in values((*args, *kwargs.values())) if v.field is not None]  # of each class
    loss = _reduced(mix(join(fields)), x.shape[:-1], call.out[0])
    return loss if len(call.out) == 1 else (loss, target.field)


@rule("_ctc_loss")
def ctc_loss(call: Call, scores: Value, targets: Value, *args: Any, **kwargs: Any) -> Result:
    """All paths through the time steps of a sample; the table of their sums is kept for the gradient alone."""
    whole = everywhere(call, scores, targets, *args)
    if targets.field is not None or scores.field is None or any(v.field is not None for v in values(args)):
        return whole
    dims = (0, 2) if len(scores.shape) == 3 else (0, 1)
    loss = mix(drop_dims(reduce(scores.field, dims).unmasked(), dims, len(scores.shape)))
    assert isinstance(whole, tuple)
    return (loss, *whole[1:])
