"""Ops that pick elements by index, and that write into a tensor by index."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from rfcalc.analysis.field import Field, broadcast, drop_dims, everything, join, mix, reduce, touched
from rfcalc.analysis.moves import renumber_part
from rfcalc.analysis.parts import Index, Shape, spread
from rfcalc.analysis.rules.parameters import with_parameters
from rfcalc.analysis.rules.pointwise import rows_of
from rfcalc.analysis.rules.registry import Call, Result, Value, dim_of, everywhere, rule, unknown, values
from rfcalc.analysis.rules.view import permuted, reshaped, slice_indices, taken
from rfcalc.analysis.rules.window import tapped
from rfcalc.analysis.windows import HOLE, Taps
from rfcalc.analysis.writes import write_box


@rule("index_select")
def index_select(call: Call, x: Value, dim: int, index: Value) -> Result:
    return _index_along(call, x, dim_of(dim, len(x.shape)), index)


def _index_along(call: Call, x: Value, dim: int, index: Value) -> Result:
    """Known indices move the bounds; indices from the data (or unknown ones) may pick any position."""
    if index.field is None and index.const is not None and x.field is not None:
        n = x.shape[dim]
        where = np.asarray(index.const.cpu().numpy(), dtype=np.int64).reshape(-1) % n
        return taken(x.field, dim, n, where)
    anywhere = x.field and mix(reduce(x.field, (dim,)).unmasked(), touched(x.field, (dim,)))
    return with_parameters(anywhere, (index,), call.out[0], len(call.out[0]) - 1 - dim)


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
    """Indices that depend on the input, or are unknown: any position along the indexed dims, and of the indices each
    position its own."""
    dims = [d for d, _ in used]
    rest = [d for d in range(len(x.shape)) if d not in dims]
    place = dims[0] if dims == list(range(dims[0], dims[0] + len(dims))) else 0
    shape = np.broadcast_shapes(*(i.shape for _, i in used))
    kept = [x.shape[d] for d in rest]
    if (*kept[:place], *shape, *kept[place:]) != call.out[0]:
        return everywhere(call, x, *(i for _, i in used))
    anywhere = x.field and mix(reduce(x.field, dims).unmasked(), touched(x.field, dims))
    where = {d: i if i < place else i + len(shape) for i, d in enumerate(rest)}
    moved = anywhere and anywhere.map(lambda p: renumber_part(p, where))
    return with_parameters(moved, (i for _, i in used), call.out[0], len(kept) - place)


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
    fields = [f.unmasked() for f in (index.field,) if f is not None]
    if x.field is not None:
        field = mix(reduce(x.field, (at,)).unmasked(), touched(x.field, (at,)))
        for d, (a, b) in enumerate(zip(x.shape, call.out[0], strict=True)):
            if d != at and a != b:
                field = taken(field, d, a, np.arange(b))
        fields.append(field)
    return join(fields) if fields else None


@rule("bucketize", "searchsorted")
def between(call: Call, a: Any, b: Any, *args: Any, sorter: Any = None, **kwargs: Any) -> Result:
    """Each number is held against all the boundaries of its row."""
    numbers, edges = (a, b) if call.op == "bucketize" else (b, a)
    fields = [numbers.field.unmasked()] if isinstance(numbers, Value) and numbers.field is not None else []
    for v in (edges, sorter):
        if isinstance(v, Value) and v.field is not None:
            fields.append(mix(reduce(v.field, (len(v.shape) - 1,)).unmasked()))
    return join(fields) if fields else None


@rule("embedding_bag", "_embedding_bag")
def embedding_bag(
    call: Call, table: Value, indices: Value, offsets: Value, by_frequency: bool = False, mode: int = 0,
    sparse: bool = False, weights: Any = None, ends: bool = False, *rest: Any,
) -> Result:  # fmt: skip
    """A bag is a stretch of the indices: all that these, their rows and their weights depend on."""
    whole = everywhere(call, table, indices, offsets, weights)
    if offsets.const is None or offsets.field is not None:
        return whole
    assert isinstance(whole, tuple)
    n, bags, features = indices.shape[0], *call.out[0]
    edges = np.append(np.asarray(offsets.const.cpu().numpy(), np.int64), n)
    starts, stops = edges[:bags, None], edges[1 : bags + 1, None]
    at = starts + np.arange(max(1, int((stops - starts).max(initial=1))))
    taps = Taps(np.where(at < stops, at, -1), np.where(at < stops, at, HOLE))
    rows = with_parameters(None, (indices, weights), (n, features), 1)
    rows = with_parameters(rows, (rows_of(table, indices),), (n, features))
    return rows and tapped(rows.unmasked(), 0, n, taps), *whole[1:]


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
    held = kwargs.pop("held", None)
    if held is not None:
        return _restrided(call, x, *held)

    def run(t: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = op(t, *args, **kwargs)
        return result

    if call.op in ("diagonal", "as_strided"):
        _back_by_example(call, x.shape, run)
    return _by_example(call, [x], run) if x.field is not None else None


def _restrided(call: Call, x: Value, whole: Value, source: Index) -> Result:
    """Elements of a storage of which x holds some, or in another order; the rest is somewhere in the whole."""
    if not source.all():
        return unknown(call, x, whole)
    _back_by_example(call, x.shape, lambda t: t.reshape(-1)[torch.from_numpy(source - 1)])
    return elements([x], source, call.out[0]) if x.field is not None else None


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


# -------------------------------------------------------------------------------------------------- writing into


@rule("slice_scatter")
def slice_scatter(
    call: Call, x: Value, source: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Result:
    at = dim_of(dim, len(x.shape))
    field = source.field and broadcast(source.field, source.shape, source.shape)
    return write_box(x.field, field, x.shape, [(at, slice_indices(x.shape[at], start, end, step))])


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
    if not math.prod(call.out[0]):
        return None
    if index.field is not None or index.const is None:
        return with_parameters(x.field and everything(x.field), (index,), call.out[0])
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
)
def picked(call: Call, *args: Any, **kwargs: Any) -> Result:
    """Which elements come out depends on the data: truly any of them."""
    return everywhere(call, *args, **kwargs)
