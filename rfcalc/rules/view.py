"""Ops that move elements: views, permutations, slices, indexing, and writes into them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import torch

from ..field import (
    HOLE,
    AxisField,
    Field,
    Index,
    Part,
    Shape,
    Taps,
    broadcast,
    drop_dims,
    everything,
    join,
    mix,
    moved_mask,
    permute_part,
    reduce,
    renumber_part,
    reshape_part,
    spread,
    take_part,
    write_box,
)
from .registry import Call, Result, Value, dim_of, dims_of, everywhere, rule, unknown, values
from .window import rescaled, tapped


def reshaped(field: Field, old: Shape, new: Shape) -> Field:
    if old == new:
        return field
    if math.prod(old) == 0:
        return everything(field)
    return field.map(lambda p: reshape_part(p, old, new))


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
    call.write_back = lambda parent, child: child and reshaped(child, new, old)


@rule("view", "reshape", "_reshape_alias", "_unsafe_view", "flatten", "unflatten", "ravel")
def reshape(call: Call, x: Value, *args: Any, **kwargs: Any) -> Result:
    """The same elements in the same order."""
    old, new = x.shape, call.out[0]
    _back_by_reshape(call, old, new)
    if math.prod(old) != math.prod(new):  # view(dtype) of another width
        return everywhere(call, x)
    return x.field and reshaped(x.field, old, new)


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


def _range(n: int, start: int | None, end: int | None, step: int) -> Index:
    return np.arange(n)[slice(start, end, step)]


def _slice(call: Call, x: Value, dim: int, index: Index, step: int) -> Result:
    shape = x.shape
    call.write_back = lambda parent, child: write_box(parent, child, shape, [(dim, index)])
    return x.field and taken(x.field, dim, shape[dim], index, step)


@rule("slice", "narrow")
def slice_(call: Call, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Result:
    at = dim_of(dim, len(x.shape))
    if call.op == "narrow":
        first = start % x.shape[at] if start else 0
        start, end = first, first + end
    return _slice(call, x, at, _range(x.shape[at], start, end, step), step)


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


@rule("index_select")
def index_select(call: Call, x: Value, dim: int, index: Value) -> Result:
    return _index_along(call, x, dim_of(dim, len(x.shape)), index)


def _index_along(call: Call, x: Value, dim: int, index: Value) -> Result:
    """Known indices move the bounds; indices from the data (or unknown ones) may pick any position."""
    if index.field is None and index.const is not None and x.field is not None:
        n = x.shape[dim]
        where = np.asarray(index.const.cpu().numpy(), dtype=np.int64).reshape(-1) % n
        return taken(x.field, dim, n, where)
    fields = [] if x.field is None else [mix(reduce(x.field, (dim,)).unmasked())]
    if index.field is not None:
        where_to = {0: dim}
        fields.append(mix(index.field.map(lambda p: renumber_part(p, where_to))))
    return join(fields) if fields else None


@rule("index", "_unsafe_index")
def index(call: Call, x: Value, indices: Sequence[Value | None]) -> Result:
    """Advanced indexing. One known 1-D index moves the bounds; the general case is worked out cell by cell."""
    used = [(d, i) for d, i in enumerate(indices) if i is not None]
    if any(i.field is not None or i.const is None for _, i in used) or x.field is None:
        return _indexed_by_data(call, x, used)
    if any(i.const.dtype in _BOOLS for _, i in used):
        if len(used) > 1:
            return everywhere(call, x)
        nonzero = [(d + k, v) for d, i in used for k, v in enumerate(i.const.nonzero(as_tuple=True))]
        used = [(d, Value(tuple(v.shape), None, v)) for d, v in nonzero]
    if len(used) == 1 and len(used[0][1].shape) == 1:
        return _index_along(call, x, used[0][0], used[0][1])
    dims = [d for d, _ in used]
    together = dims == list(range(dims[0], dims[0] + len(dims)))
    arrays = np.broadcast_arrays(*[np.asarray(i.const.cpu().numpy()) for _, i in used])
    flat = np.zeros(arrays[0].shape, np.int64)
    for (d, _), a in zip(used, arrays, strict=True):
        flat = flat * x.shape[d] + a % x.shape[d]
    # Bring the indexed dims together, merge them into one, pick, and split the result again.
    rest = [d for d in range(len(x.shape)) if d not in dims]
    place = dims[0] if together else 0
    order = [*rest[:place], *dims, *rest[place:]]
    shape = tuple(x.shape[d] for d in order)
    size = math.prod(x.shape[d] for d in dims)
    merged = (*shape[:place], size, *shape[place + len(dims) :])
    field = reshaped(permuted(x.field, order), shape, merged)
    picked = taken(field, place, size, flat.reshape(-1))
    return reshaped(picked, (*merged[:place], flat.size, *merged[place + 1 :]), call.out[0])


_BOOLS = (torch.bool, torch.uint8)


def _indexed_by_data(call: Call, x: Value, used: Sequence[tuple[int, Value]]) -> Result:
    """Indices that depend on the input, or are unknown: any position along the indexed dims."""
    return everywhere(call, x, *(i for _, i in used))


@rule("gather", "take_along_dim")
def gather(call: Call, x: Value, dim: Any, index: Any = None, **kwargs: Any) -> Result:
    """Any position along dim; the other dims stay in place."""
    if call.op == "take_along_dim":
        dim, index = index, dim
    if index.field is None and index.const is not None and dim is not None:
        where = index.const.cpu()
        pick = torch.gather if call.op == "gather" else lambda t, d, i: torch.take_along_dim(t, i, d)
        return _by_example(call, [x], lambda t: pick(t, dim, where))
    if dim is None or any(
        a < b for i, (a, b) in enumerate(zip(x.shape, call.out[0], strict=True)) if i != dim % len(x.shape)
    ):
        return everywhere(call, x, index)
    at = dim_of(dim, len(x.shape))
    fields = [f for f in (index.field,) if f is not None]
    if x.field is not None:
        field = reduce(x.field, (at,))
        for d, (a, b) in enumerate(zip(x.shape, call.out[0], strict=True)):
            if d != at and a != b:
                field = taken(field, d, a, np.arange(b))
        fields.append(field)
    return mix(join(fields)) if fields else None


@rule("flip", "fliplr", "flipud")
def flip(call: Call, x: Value, dims: Any = None) -> Result:
    field = x.field
    assert field is not None
    for d in {"fliplr": (1,), "flipud": (0,)}.get(call.op) or dims_of(dims, len(x.shape)):
        field = taken(field, d, x.shape[d], np.arange(x.shape[d])[::-1].copy())
    return field


@rule("roll")
def roll(call: Call, x: Value, shifts: Any, dims: Any = ()) -> Result:
    field, old = x.field, x.shape
    assert field is not None
    amounts = [shifts] if isinstance(shifts, int) else list(shifts)
    axes = [dims] if isinstance(dims, int) else list(dims)
    if not axes:  # rolls the flattened tensor
        n = math.prod(old)
        rolled = taken(reshaped(field, old, (n,)), 0, n, np.roll(np.arange(n), amounts[0]))
        return reshaped(rolled, (n,), old)
    for s, d in zip(amounts, axes, strict=True):
        at = dim_of(d, len(old))
        field = taken(field, at, old[at], np.roll(np.arange(old[at]), s))
    return field


# ------------------------------------------------------------------------------------------- element by element

BY_ELEMENT = 1 << 20  # above this many elements, movements without structure are not followed one by one


def elements(items: Sequence[Value], source: Index, out: Shape) -> Field | None:
    """What each output element copies, or joins where `source` has several columns: elements of the items, flattened
    one after another and counted from 1; 0: none."""
    fields, start = [], 1
    for v in items:
        n = math.prod(v.shape)
        if v.field is not None:
            at = source.reshape(math.prod(out), -1) - start
            mine = (at >= 0) & (at < n)
            taps = Taps(np.where(mine, at, -1), np.where(mine, at, HOLE))
            flat = reshaped(v.field.unmasked(), v.shape, (n,))
            whole = flat.map(partial(spread, dim=0, size=n))
            fields.append(reshaped(tapped(whole, 0, n, taps), (taps.exact.shape[0],), out))
        start += n
    return join(fields) if fields else None


def _by_example(call: Call, items: Sequence[Value], run: Callable[..., torch.Tensor]) -> Result:
    """Find where each element comes from by running torch's own op on the elements' numbers."""
    sizes = [math.prod(v.shape) for v in items]
    if sum(sizes) > BY_ELEMENT or math.prod(call.out[0]) > BY_ELEMENT:
        return unknown(call, *items)
    starts = np.cumsum([1, *sizes[:-1]])
    with torch.inference_mode(False):
        numbered = [
            torch.arange(int(s), int(s) + n).view(v.shape) for s, n, v in zip(starts, sizes, items, strict=True)
        ]
        source = run(*numbered).numpy().reshape(-1)
    return elements(items, source, call.out[0])


def _back_by_example(call: Call, shape: Shape, run: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Writing through a view that picks elements: the same elements of the parent are replaced."""
    n = math.prod(shape)
    if n > BY_ELEMENT:
        return
    picked = run(torch.arange(n).view(shape)).numpy().reshape(-1)

    def back(parent: Field | None, child: Field | None) -> Field | None:
        source = np.arange(1, n + 1)
        source[picked] = n + 1 + np.arange(len(picked))
        return elements([Value(shape, parent), Value(call.out[0], child)], source, shape)

    call.write_back = back


@rule("diagonal", "as_strided", "diag", "diag_embed", "rot90")
def picked_elements(call: Call, x: Value, *args: Any, **kwargs: Any) -> Result:
    op = getattr(torch.ops.aten, call.op)

    def run(t: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = op(t, *args, **kwargs)
        return result

    if call.op in ("diagonal", "as_strided"):
        _back_by_example(call, x.shape, run)
    return _by_example(call, [x], run) if x.field is not None else None


@rule("block_diag")
def block_diag(call: Call, items: Sequence[Value]) -> Result:
    return _by_example(call, items, torch.block_diag)


@rule("trace")
def trace(call: Call, x: Value) -> Result:
    n = min(x.shape)
    line = elements([x], np.arange(n) * (x.shape[1] + 1) + 1, (n,))
    return line and drop_dims(reduce(line, (0,)), (0,), 1)


@rule("kron")
def kron(call: Call, a: Value, b: Value) -> Result:
    """Every element of a times every element of b."""
    wide = [(Value(v.shape, v.field), v) for v in (a, b)]
    fields = []
    for i, (_, v) in enumerate(wide):
        if v.field is None:
            continue
        ones = [torch.ones(a.shape, dtype=torch.long), torch.ones(b.shape, dtype=torch.long)]
        ones[i] = torch.arange(1, math.prod(v.shape) + 1).view(v.shape)
        fields.append(elements([v], torch.kron(*ones).numpy().reshape(-1), call.out[0]))
    return join([f for f in fields if f is not None])


# ---------------------------------------------------------------------------------------------- repeats and shuffles


@rule("repeat", "tile")
def repeat(call: Call, x: Value, times: Sequence[int]) -> Result:
    field = x.field
    assert field is not None
    out = call.out[0]
    shape = (1,) * (len(out) - len(x.shape)) + x.shape
    shift = len(out) - len(x.shape)
    field = field.map(lambda p: renumber_part(p, {d: d + shift for d in range(len(x.shape))})) if shift else field
    for d, (a, b) in enumerate(zip(shape, out, strict=True)):
        if a != b:
            field = taken(field, d, a, np.arange(b) % a)
    return field


@rule("repeat_interleave")
def repeat_interleave(call: Call, x: Value, repeats: Any = None, dim: int | None = None, **kwargs: Any) -> Result:
    if x.field is None or isinstance(repeats, Value) or repeats is None:
        return everywhere(call, x, repeats)
    if dim is None:
        n = math.prod(x.shape)
        return taken(reshaped(x.field, x.shape, (n,)), 0, n, np.arange(n * repeats) // repeats)
    at = dim_of(dim, len(x.shape))
    return taken(x.field, at, x.shape[at], np.arange(x.shape[at] * repeats) // repeats)


@rule("pixel_shuffle")
def pixel_shuffle(call: Call, x: Value, r: int) -> Result:
    """(C r^2, H, W) -> (C, H r, W r): channel (c, i, j) goes to phase (i, j)."""
    field = x.field
    assert field is not None
    *b, c, h, w = x.shape
    n = len(b)
    split = (*b, c // (r * r), r, r, h, w)
    field = reshaped(field, x.shape, split)
    field = permuted(field, [*range(n), n, n + 3, n + 1, n + 4, n + 2])
    return rescaled(reshaped(field, (*b, c // (r * r), h, r, w, r), call.out[0]), Fraction(1, r))


@rule("pixel_unshuffle")
def pixel_unshuffle(call: Call, x: Value, r: int) -> Result:
    field = x.field
    assert field is not None
    *b, c, h, w = x.shape
    n = len(b)
    split = (*b, c, h // r, r, w // r, r)
    field = reshaped(field, x.shape, split)
    field = permuted(field, [*range(n), n, n + 2, n + 4, n + 1, n + 3])
    return rescaled(reshaped(field, (*b, c, r, r, h // r, w // r), call.out[0]), Fraction(r))


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(call: Call, x: Value, groups: int) -> Result:
    field = x.field
    assert field is not None
    b, c, *rest = x.shape
    split = (b, groups, c // groups, *rest)
    field = permuted(reshaped(field, x.shape, split), [0, 2, 1, *range(3, len(split))])
    return reshaped(field, (b, c // groups, groups, *rest), x.shape)


@rule("view_as_real", "view_as_complex")
def complex_view(call: Call, x: Value) -> Result:
    """The pair (real, imaginary) is a new last dim of 2."""
    if x.field is None or call.op != "view_as_complex":
        return x.field
    n = len(x.shape)
    return drop_dims(reduce(x.field, (n - 1,)), (n - 1,), n)


# -------------------------------------------------------------------------------------------------- writing into


@rule("slice_scatter")
def slice_scatter(
    call: Call, x: Value, source: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Result:
    at = dim_of(dim, len(x.shape))
    field = source.field and broadcast(source.field, source.shape, source.shape)
    return write_box(x.field, field, x.shape, [(at, _range(x.shape[at], start, end, step))])


_OVERWRITE = ("index_put", "_unsafe_index_put", "index_fill", "index_copy", "scatter",
              "masked_scatter", "select_scatter", "put", "diagonal_scatter")  # fmt: skip
_ACCUMULATE = ("index_add", "scatter_add", "scatter_reduce", "index_reduce")
_PUTS = ("index_put", "_unsafe_index_put")


@rule(*_OVERWRITE, *_ACCUMULATE)
def scattered_write(call: Call, x: Value, *args: Any, **kwargs: Any) -> Result:
    """Known targets: exact, element by element. Targets from the data: x may keep its own, joined with all written."""
    sources, indices = _roles(call.op, args, kwargs)
    flat = list(values(indices))
    known = all(i.const is not None and i.field is None for i in flat)
    if known and sum(math.prod(v.shape) for v in (x, *sources)) <= BY_ELEMENT:
        if not _accumulates(call.op, args, kwargs):
            return _overwritten(call, x, sources, args, kwargs)
        return _accumulated(call, x, sources, args, kwargs, flat)
    by_data = any(i.field is not None for i in flat)
    fields = [] if x.field is None else [x.field.unmasked()]
    fields += [mix(everything(v.field, None if by_data else call.op)) for v in (*sources, *flat) if v.field is not None]
    return join(fields) if fields else None


def _accumulates(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Is what stood there kept and joined with what is written?"""
    if op in _PUTS or op == "put":
        return bool(kwargs.get("accumulate", args[2] if len(args) > 2 else False))
    return op in _ACCUMULATE or kwargs.get("reduce") is not None


def _roles(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Value], list[Any]]:
    """Which tensors are written, and which say where. The order differs from op to op."""
    every = [*args, *kwargs.values()]
    if op in _PUTS:
        return [a for a in every[1:] if isinstance(a, Value)], list(every[0])
    tensors = [a for a in every if isinstance(a, Value)]
    if op in ("select_scatter", "diagonal_scatter"):
        return tensors, []
    return tensors[1:], tensors[:1]


def _overwritten(call: Call, x: Value, sources: Sequence[Value], args: Any, kwargs: Any) -> Result:
    op = torch.ops.aten.index_put if call.op in _PUTS else getattr(torch.ops.aten, call.op)
    items = [x, *sources]

    def run(*numbered: torch.Tensor) -> torch.Tensor:
        stand = {id(v): t for v, t in zip(items, numbered, strict=True)}

        def fill(a: Any) -> Any:
            if isinstance(a, Value):
                return stand[id(a)] if id(a) in stand else a.const.cpu()
            if isinstance(a, list | tuple):
                return [fill(i) for i in a]
            # a number that is written is a constant: element 0 is none of the items
            return a

        given = [fill(a) for a in args]
        if call.op in ("index_fill", "scatter") and not sources:
            given = [0 if isinstance(a, float) or i == len(given) - 1 else a for i, a in enumerate(given)]
        result: torch.Tensor = op(numbered[0].clone(), *given, **{k: fill(v) for k, v in kwargs.items()})
        return result

    return _by_example(call, items, run)


def _accumulated(
    call: Call, x: Value, sources: Sequence[Value], args: Any, kwargs: Any, indices: Sequence[Value]
) -> Result:  # fmt: skip
    """x, and every source element that is joined to it; without `include_self`, x only where nothing is written."""
    source = sources[0] if sources else Value(())  # a number
    target, used = _targets(call.op, x, source, args, [i.const.cpu() for i in indices])
    n_out = math.prod(x.shape)
    times = np.bincount(target, minlength=n_out)
    kept = np.arange(1, n_out + 1)
    if not kwargs.get("include_self", True):
        kept[times > 0] = 0
    table = np.zeros((n_out, int(times.max(initial=0))), np.int64)
    order = np.argsort(target, kind="stable")
    rank = np.arange(len(target)) - np.searchsorted(target[order], target[order])
    table[target[order], rank] = used[order] + 1
    fields = [elements([x], kept, x.shape) if (kept == 0).any() else x.field and x.field.unmasked()]
    fields.append(elements([source], table, x.shape) if table.size else None)
    found = [f for f in fields if f is not None]
    return join(found) if found else None


def _targets(op: str, x: Value, source: Value, args: Any, where: list[torch.Tensor]) -> tuple[Index, Index]:
    """For each element that is written, the flat position where it goes and the flat position where it comes from."""
    numbers = torch.arange(math.prod(x.shape)).view(x.shape)
    origin = torch.arange(math.prod(source.shape)).view(source.shape)
    if op in _PUTS:
        consts = iter(where)
        target = numbers[tuple(slice(None) if i is None else next(consts) for i in args[0])]
        origin = origin.expand(target.shape)
    elif op == "put":
        target = where[0] % numbers.numel()
    else:
        at, index = dim_of(args[0], len(x.shape)), where[0]
        if op.startswith("index"):
            index = index.reshape([-1 if d == at else 1 for d in range(len(source.shape))]).expand(source.shape)
        crop = tuple(slice(None) if d == at else slice(0, n) for d, n in enumerate(index.shape))
        target = torch.gather(numbers[crop], at, index)
        origin = origin[tuple(slice(0, n) for n in index.shape)] if source.shape else origin.expand(index.shape)
    return target.reshape(-1).numpy(), origin.reshape(-1).numpy()


@rule("take")
def take(call: Call, x: Value, index: Value) -> Result:
    """Elements of the flattened tensor."""
    if index.field is not None or index.const is None:
        return everywhere(call, x, index)
    return elements([x], index.const.cpu().numpy().reshape(-1) % math.prod(x.shape) + 1, call.out[0])


@rule(
    "nonzero",
    "argwhere",
    "masked_select",
    "_unique2",
    "unique_consecutive",
    "unique_dim",
    "bincount",
    "histc",
    "multinomial",
    "isin",
    "searchsorted",
)
def picked(call: Call, *args: Any, **kwargs: Any) -> Result:
    """Which elements come out depends on the data: truly any of them."""
    return everywhere(call, *args, **kwargs)
