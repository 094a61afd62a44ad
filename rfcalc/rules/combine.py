"""Ops that put several tensors beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ..field import Field, join_axes, place_part, renumber_part
from .registry import Call, Result, Value, dim_of, rule


def beside(items: Sequence[Value], dim: int, total: int) -> Field | None:
    """Concatenate along dim. An operand that does not vary where another does is context there."""
    fields, start = [], 0
    for v in items:
        n = v.shape[dim] if len(v.shape) > dim else 0
        if v.field is not None and n:
            fields.append(v.field.unmasked().map(partial(place_part, dim=dim, start=start, n=n, total=total)))
        start += n
    if not fields:
        return None
    varying = [f for f in (v.field for v in items if v.shape[dim : dim + 1] != (0,)) if f is not None]
    axes = []
    for i in range(len(fields[0].axes)):
        vary = [f.axes[i].varies() for f in varying]
        placed = []
        for f, source, w in zip(fields, varying, vary, strict=True):
            a = f.axes[i]
            if any(vary) and not w and source.axes[i].parts:
                a = type(a)(tuple(p._replace(local=False) for p in a.parts), a.jump, a.aligned, True)
            placed.append(a)
        axes.append(join_axes(placed))
    return Field(tuple(axes), frozenset().union(*(f.approx for f in fields)))


@rule("cat", "concat", "concatenate")
def cat(call: Call, items: Sequence[Value], dim: int = 0) -> Result:
    out = call.out[0]
    at = dim_of(dim, len(out))
    # torch skips legacy empty 1-D operands
    items = [v for v in items if len(v.shape) == len(out)]
    return beside(items, at, out[at])


@rule("stack")
def stack(call: Call, items: Sequence[Value], dim: int = 0) -> Result:
    out = call.out[0]
    at = dim_of(dim, len(out))
    grown = []
    for v in items:
        where = {d: d + (d >= at) for d in range(len(v.shape))}
        field = v.field and v.field.map(partial(renumber_part, where=where))
        grown.append(Value((*v.shape[:at], 1, *v.shape[at:]), field))
    return beside(grown, at, len(items))


@rule("meshgrid")
def meshgrid(call: Call, items: Sequence[Value], indexing: Any = None, **kwargs: Any) -> Result:
    """Each operand runs along one dim of the result and repeats along the others."""
    order = list(range(len(items)))
    if indexing == "xy" and len(items) > 1:
        order[0], order[1] = 1, 0
    return tuple(
        v.field and v.field.map(partial(renumber_part, where={0: at})) for v, at in zip(items, order, strict=True)
    )
