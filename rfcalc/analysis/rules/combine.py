"""Ops that put several tensors beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from rfcalc.analysis.beside import beside_axes
from rfcalc.analysis.field import NOTHING, Field
from rfcalc.analysis.moves import renumber_part
from rfcalc.analysis.rules.registry import Call, Result, Value, dim_of, rule


def beside(items: Sequence[Value], dim: int) -> Field | None:
    """Concatenate along dim. An operand that does not vary where another does is context there."""
    some = next((v.field for v in items if v.field is not None), None)
    if some is None:
        return None
    nothing = Field((NOTHING,) * len(some.axes))
    fields = [nothing if v.field is None else v.field for v in items]
    sizes = tuple([v.shape[dim] for v in items])
    columns = zip(*[f.axes for f in fields], strict=True)
    axes = tuple([beside_axes(column, sizes, dim) for column in columns])
    return Field(axes, frozenset().union(*[f.approx for f in fields]))


@rule("cat", "concat", "concatenate")
def cat(call: Call, items: Sequence[Value], dim: int = 0) -> Result:
    out = call.out[0]
    at = dim_of(dim, len(out))
    # torch skips legacy empty 1-D operands
    items = [v for v in items if len(v.shape) == len(out)]
    return beside(items, at)


@rule("stack")
def stack(call: Call, items: Sequence[Value], dim: int = 0) -> Result:
    out = call.out[0]
    at = dim_of(dim, len(out))
    grown = []
    for v in items:
        where = {d: d + (d >= at) for d in range(len(v.shape))}
        field = v.field and v.field.map(partial(renumber_part, where=where))
        grown.append(Value((*v.shape[:at], 1, *v.shape[at:]), field))
    return beside(grown, at)


@rule("meshgrid")
def meshgrid(call: Call, items: Sequence[Value], indexing: Any = None, **kwargs: Any) -> Result:
    """Each operand runs along one dim of the result and repeats along the others."""
    order = list(range(len(items)))
    if indexing == "xy" and len(items) > 1:
        order[0], order[1] = 1, 0
    return tuple(
        v.field and v.field.map(partial(renumber_part, where={0: at})) for v, at in zip(items, order, strict=True)
    )
