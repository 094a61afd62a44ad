"""Ops that change a tensor's shape or cut it: views, permutations, slices, pieces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from rfcalc.analysis.field import AxisField, Field, broadcast, drop_dims, everything, join, mix, reduce, touched
from rfcalc.analysis.grids import main_dim
from rfcalc.analysis.moves import permute_part, renumber_part, reshape_part, reshape_plan, take_part
from rfcalc.analysis.parts import Index, Part, Shape
from rfcalc.analysis.rules.registry import Call, Result, Value, dim_of, dims_of, everywhere, rule
from rfcalc.analysis.stretches import moved_mask
from rfcalc.analysis.writes import write_box


def reshaped(field: Field, old: Shape, new: Shape) -> Field:
    if old == new:
        return field
    if math.prod(old) == 0:
        return everything(field)
    return field.map(lambda p: reshape_part(p, old, new))


def viewed(field: Field, old: Shape, new: Shape) -> Field:
    """A reshape as a network writes it: it may cut a grid into pieces (space to depth, windows, patches), so that
    neighbours lie a piece apart, or put pieces together again (a pixel shuffle)."""
    out = reshaped(field, old, new)
    if len(new) < 3:  # flattened: features, and no map
        return out
    groups = [g for g in reshape_plan(old, new) if len(g[0]) > 1 or len(g[1]) > 1]
    if not any(any(touched(field, src)) for src, _ in groups):
        return out
    before, after = [_grid_of(a) for a in field.axes], [_grid_of(a) for a in out.axes]
    axes = list(out.axes)
    for i, a in enumerate(out.axes):
        for src, dst in groups:
            if before[i] in src and after[i] in dst:
                by = Fraction(_faster(new, dst, after, i), _faster(old, src, before, i))
                axes[i] = a if by == 1 else a.with_parts(a.parts, a.jump * by)
    return Field(tuple(axes), out.approx, out.mask)


def _grid_of(a: AxisField) -> int:
    """The dim along which the local field of an axis moves most; -1 where it does not."""
    p = next((p for p in a.parts if p.local and p.dims), None)
    return -1 if p is None else p.dims[0] if len(p.dims) == 1 else main_dim(p)


def _faster(shape: Shape, group: Sequence[int], grids: Sequence[int], i: int) -> int:
    """How many positions of a group of dims lie on one of the grid; 1 where another axis runs along them (tokens)."""
    dims = [d for d in group if d > grids[i]]
    return 1 if any(d in grids for d in dims) else math.prod(shape[d] for d in dims)


def permuted(field: Field, order: Sequence[int]) -> Field:
    return field.map(lambda p: permute_part(p, order))


def taken(field: Field, dim: int, n: int, index: Index, step: int = 1) -> Field:
    """Positions `index` of a dim; a step multiplies the jump of the axes that run along it."""

    def change(a: AxisField) -> AxisField:
        runs = step != 1 and a.runs_along(dim)
        return a.with_parts([take_part(p, dim, n, index) for p in a.parts], a.jump * step if runs else None)

    mask = field.mask and moved_mask(field.mask, lambda p: take_part(p, dim, n, index))
    moved = (field if mask is None else Field(field.axes, field.approx)).each(change)
    return moved if mask is None else Field(moved.axes, moved.approx, mask)


def _back_by_reshape(call: Call, old: Shape, new: Shape) -> None:
    call.write_back = lambda parent, child: child and viewed(child, new, old)


@rule("view", "reshape", "_reshape_alias", "_unsafe_view", "flatten", "unflatten", "ravel")
def reshape(call: Call, x: Value, *args: Any, **kwargs: Any) -> Result:
    """The same elements in the same order."""
    old, new = x.shape, call.out[0]
    _back_by_reshape(call, old, new)
    if math.prod(old) != math.prod(new):  # view(dtype) of another width
        return everywhere(call, x)
    return x.field and viewed(x.field, old, new)


@rule("squeeze", "unsqueeze")
def squeeze(call: Call, x: Value, *dims: Any) -> Result:
    """Dims of size 1 come or go; the grid of a 1x1 map stays known."""
    old, new = x.shape, call.out[0]
    _back_by_reshape(call, old, new)
    if x.field is None or old == new:
        return x.field
    if call.op == "unsqueeze":
        at = dims[0] % len(new)
        return x.field.map(lambda p: renumber_part(p, {d: d + (d >= at) for d in range(len(old))}))
    gone = dims_of(dims[0], len(old)) if dims else tuple(range(len(old)))
    return drop_dims(x.field, [d for d in gone if old[d] == 1], len(old))


@rule(
    "permute",
    "transpose",
    "t",
    "swapaxes",
    "swapdims",
    "numpy_T",
    "mT",
    "matrix_H",
    "mH",
    "adjoint",
    "moveaxis",
    "movedim",
)
def permute(call: Call, x: Value, *args: Any) -> Result:
    n = len(x.shape)
    order = _order(call.op, n, args)
    inverse = sorted(range(n), key=order.__getitem__)
    call.write_back = lambda parent, child: child and permuted(child, inverse)
    return x.field and permuted(x.field, order)


def _order(op: str, n: int, args: tuple[Any, ...]) -> list[int]:
    if op == "permute":
        return [d % n for d in (args[0] if isinstance(args[0], list | tuple) else args)]
    order = list(range(n))
    if op in ("moveaxis", "movedim"):
        source, target = ([v % n for v in ((a,) if isinstance(a, int) else a)] for a in args)
        rest = iter([d for d in order if d not in source])
        place = dict(zip(target, source, strict=True))
        return [place[d] if d in place else next(rest) for d in order]
    if op == "numpy_T":
        return order[::-1]
    if n < 2:
        return order
    a, b = (-2, -1) if op in ("t", "mT", "matrix_H", "mH", "adjoint") else (args[0] % n, args[1] % n)
    order[a], order[b] = order[b], order[a]
    return order


@rule("expand", "broadcast_to")
def expand(call: Call, x: Value, *args: Any, **kwargs: Any) -> Result:
    return x.field and broadcast(x.field, x.shape, call.out[0])


# ---------------------------------------------------------------------------------------------- slices and indices


def slice_indices(n: int, start: int | None, end: int | None, step: int) -> Index:
    return np.arange(n)[slice(start, end, step)]


def _slice(call: Call, x: Value, dim: int, index: Index, step: int) -> Result:
    shape = x.shape
    call.write_back = lambda parent, child: write_box(parent, child, shape, [(dim, index)])
    return x.field and taken(x.field, dim, shape[dim], index, step)


@rule("slice", "narrow")
def slice_(call: Call, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Result:
    at = dim_of(dim, len(x.shape))
    if isinstance(start, Value):
        if start.const is None or start.field is not None:
            return _narrowed_by_data(call, x, at, start)
        start = int(start.const)
    if call.op == "narrow":
        first = start % x.shape[at] if start else 0
        start, end = first, first + end
    return _slice(call, x, at, slice_indices(x.shape[at], start, end, step), step)


def _narrowed_by_data(call: Call, x: Value, at: int, start: Value) -> Result:
    """A start made of the input: any stretch of the dim. What is written there may lie in any of them."""
    own = start.field and everything(start.field)
    anywhere = x.field and mix(reduce(x.field, (at,)).unmasked(), touched(x.field, (at,)))

    def back(parent: Field | None, child: Field | None) -> Field | None:
        written = child and mix(reduce(child, (at,)).unmasked())
        fields = [f for f in (parent and parent.unmasked(), written, own) if f is not None]
        return join(fields) if fields else None

    call.write_back = back
    fields = [f for f in (anywhere, own) if f is not None]
    return join(fields) if fields else None


@rule("select")
def select(call: Call, x: Value, dim: int, index: Any) -> Result:
    at = dim_of(dim, len(x.shape))
    if isinstance(index, Value):
        if index.const is None:  # any of them
            return x.field and drop_dims(mix(reduce(x.field, (at,))), (at,), len(x.shape))
        index = int(index.const)
    n, shape = x.shape[at], x.shape
    where = np.array([index % n])
    kept = (*shape[:at], 1, *shape[at + 1 :])

    def back(parent: Field | None, child: Field | None) -> Field | None:
        grown = child and child.map(lambda p: renumber_part(p, {d: d + (d >= at) for d in range(len(shape))}))
        return write_box(parent, grown, shape, [(at, where)])

    call.write_back = back
    if x.field is None:
        return None
    field = taken(x.field, at, n, where)
    return drop_dims(field.map(lambda p: _without(p, at)), (at,), len(kept))


def _without(part: Part, dim: int) -> Part:
    """Drop a dim of size 1 that was picked out of a longer one."""
    if part.span is not None and part.span.dim == dim:
        part = part._replace(span=None)
    if dim not in part.dims:
        return part
    ax = part.dims.index(dim) + 1
    return part._replace(bounds=part.bounds.squeeze(ax), dims=tuple(d for d in part.dims if d != dim))


def _pieces(call: Call, x: Value, dim: int) -> Result:
    at = dim_of(dim, len(x.shape))
    fields, start = [], 0
    for out in call.out:
        one = Call("slice", (out,))
        fields.append(_slice(one, x, at, np.arange(start, start + out[at]), 1))
        call.write_backs.append(one.write_back)
        start += out[at]
    return tuple(fields)  # type: ignore[arg-type]


@rule(
    "split",
    "split_with_sizes",
    "chunk",
    "unsafe_split",
    "unsafe_chunk",
    "tensor_split",
    "unsafe_split_with_sizes",
    "hsplit",
    "vsplit",
    "dsplit",
)
def split(call: Call, x: Value, sizes: Any = None, dim: int = 0, **kwargs: Any) -> Result:
    dim = {"hsplit": 1 if len(x.shape) > 1 else 0, "vsplit": 0, "dsplit": 2}.get(call.op, dim)
    return _pieces(call, x, dim)


@rule("unbind")
def unbind(call: Call, x: Value, dim: int = 0) -> Result:
    fields = []
    for i, out in enumerate(call.out):
        one = Call("select", (out,))
        fields.append(select(one, x, dim, i))
        call.write_backs.append(one.write_back)
    return tuple(fields)  # type: ignore[arg-type]
