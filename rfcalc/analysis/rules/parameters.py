"""Weights, biases, running statistics and tables that are made of the input: what they add to a result.

A hypernetwork gives a convolution its weight, a conditional norm its scale: such a parameter is an operand like any
other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rfcalc.analysis.field import Field, broadcast, drop_dims, join, mix, reduce
from rfcalc.analysis.parts import Shape
from rfcalc.analysis.rules.registry import Value


def with_parameters(field: Field | None, given: Iterable[Any], out: Shape, after: int = 0) -> Field | None:
    """A result and the parameters given: each lies along the dims of the result that stand before the last `after`."""
    fields = [] if field is None else [field]
    for v in given:  # as a rule none
        if isinstance(v, Value) and v.field is not None:
            fields.append(broadcast(v.field, (*v.shape, *(1,) * after), out))
    return join(fields) if len(fields) > (field is not None) else field


def per_output(weight: Value) -> Value:
    """A weight as the output's channels see it: all that it holds for each of them, along its first dim.

    A vector is the weight of a single output.
    """
    if weight.field is None:
        return weight
    shape = weight.shape[:1] if len(weight.shape) > 1 else ()
    others = range(len(shape), len(weight.shape))
    field = drop_dims(mix(reduce(weight.field, others).unmasked()), others, len(weight.shape))
    return Value(shape, field)
