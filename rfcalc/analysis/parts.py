"""The domain's atoms: which input interval each position of a tensor depends on, as arrays. No torch.

A part holds four rows of integers, `lo, -hi, ulo, -uhi`, along only those tensor dims where they vary. With the upper
bounds negated the hull of two parts is one `np.minimum`, and an empty dependence is the neutral element `EMPTY`.

- `lo, hi` are exact: padding contributes nothing. `ulo, uhi` are unclipped: padding continues the grid.
- A part is *local* unless it is global context (`field.join_axes`, `field.normalise`).
- A part with a `span` exists only at `start <= index < stop` of one tensor dim (an operand of a concatenation).

Sources: Araujo, Norris, Sim, "Computing receptive fields of convolutional neural networks", Distill 2019;
Dumoulin and Visin, "A guide to convolution arithmetic", 2016."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rfcalc.analysis.memo import LINES, MEMO

Bounds = NDArray[Any]
Index = NDArray[np.int64]
Shape = tuple[int, ...]

EMPTY = 1 << 40  # larger than any input; min-neutral
MAX_CELLS = 1 << 25  # larger arrays are not built


class TooLargeError(ArithmeticError):
    """An exact answer would need an array beyond the limit; the caller takes the hull and says so."""


class Span(NamedTuple):
    """The stretch of one tensor dim on which a part exists."""

    dim: int
    start: int
    stop: int


class Part(NamedTuple):
    """Bounds of shape `(rows, *sizes)`; the k-th size runs along tensor dim `dims[k]` (ascending)."""

    bounds: Bounds
    dims: tuple[int, ...]
    local: bool = True
    span: Span | None = None


class Line(NamedTuple):
    """What most arrays turn out to be: position i has `ulo = low + step * i` and `uhi = high + step * i`.

    Of that interval, never empty, `lo, hi` are what lies inside the input, `0..size-1`. `step` is positive.
    """

    step: int
    low: int
    high: int
    size: int


def line_of(b: Bounds) -> Line | None:
    """The line that an array is known to be; None says nothing about it."""
    hit = LINES.get(id(b))
    return hit and hit[0]


# ---------------------------------------------------------------------------------------------- building blocks


@lru_cache(maxsize=256)
def ramp(n: int) -> Bounds:
    i = np.arange(n, dtype=np.int64)
    return np.stack([i, -i, i, -i])


def merge(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Hull of parts of the same layout; parts of different layouts stay apart."""
    if len(parts) == 1:
        return (parts[0],)
    found: dict[tuple[Any, ...], Part] = {}
    for p in parts:
        key = (p.dims, p.local, p.span, p.bounds.shape)
        other = found.get(key)
        found[key] = p if other is None else p._replace(bounds=minimum(other.bounds, p.bounds))
    if len(found) == 1 or not any(p.local and p.bounds.size > p.bounds.shape[0] for p in found.values()):
        return tuple(found.values())
    # What is the same everywhere, beside something that is not, is global context.
    still = [p for p in found.values() if p.local and not p.dims and p.span is None]
    if not still:
        return tuple(found.values())
    rest = [p for p in found.values() if not (p.local and not p.dims and p.span is None)]
    return merge([*rest, *(p._replace(local=False) for p in still)])


def minimum(a: Bounds, b: Bounds) -> Bounds:
    if a is b:
        return a
    key = ("min", id(a), id(b))
    hit = MEMO.get(key)
    if hit is None:
        hit = MEMO[key] = (np.minimum(a, b), a, b)
        _note_hull(hit[0], a, b)
    result: Bounds = hit[0]
    return result


def _note_hull(found: Bounds, a: Bounds, b: Bounds) -> None:
    """The hull of two lines of one step is a line."""
    x, y = line_of(a), line_of(b)
    if x is not None and y is not None and x.step == y.step and x.size == y.size:
        LINES[id(found)] = (Line(x.step, min(x.low, y.low), max(x.high, y.high), x.size), found)


def check_size(cells: int) -> None:
    if cells > MAX_CELLS:
        raise TooLargeError(f"{cells:,} cells")


def axis_in(part: Part, dim: int) -> int:
    return part.dims.index(dim) + 1


def expand_span(part: Part, size: int) -> Part:
    """Write the span out: an array along its dim, empty outside."""
    span = part.span
    if span is None:
        return part
    inner = part if span.dim in part.dims else spread(part._replace(span=None), span.dim, span.stop - span.start)
    ax = axis_in(inner, span.dim)
    shape = list(inner.bounds.shape)
    shape[ax] = size
    check_size(math.prod(shape))
    out = np.full(shape, neutral(inner.bounds), inner.bounds.dtype)
    out[(slice(None),) * ax + (slice(span.start, span.stop),)] = inner.bounds
    return Part(out, inner.dims, inner.local)


def neutral(bounds: Bounds) -> Any:
    return EMPTY if bounds.dtype != np.bool_ else False


def spread(part: Part, dim: int, size: int) -> Part:
    """Repeat a part along a dim where it does not vary yet."""
    if part.span is not None and part.span.dim == dim:
        return expand_span(part, size)
    if dim in part.dims:
        return part
    dims = tuple(sorted((*part.dims, dim)))
    ax = dims.index(dim) + 1
    check_size(part.bounds.size * size)
    return part._replace(bounds=np.repeat(np.expand_dims(part.bounds, ax), size, ax), dims=dims)


def settle(part: Part, dims: Sequence[int]) -> Part:
    """Drop those dims along which the bounds turn out not to vary, so that they cost nothing further on."""
    for dim in dims:
        if dim in part.dims:
            ax = axis_in(part, dim)
            b = part.bounds
            first = b.take([0], ax)
            if b.shape[ax] > 1 and (b == first).all():
                part = part._replace(bounds=first.squeeze(ax), dims=tuple(d for d in part.dims if d != dim))
    return part


def blank_exact(part: Part, dim: int, hits: NDArray[np.bool_], free: NDArray[np.bool_] | None = None) -> Part:
    """Spread a part along a dim of which only some positions see it; `free`: unclipped (None: all do)."""
    many = len(hits) > 1  # one position needs no dim to see nothing
    grown = spread(part, dim, len(hits)) if many else part
    free = np.ones_like(hits) if free is None else free
    sizes = [len(hits) if many and d == dim else 1 for d in grown.dims]
    seen = np.stack([hits, hits, free, free]).reshape(4, *sizes)
    return grown._replace(bounds=np.where(seen, grown.bounds, EMPTY))


def laid_along(v: NDArray[Any], ndim: int, ax: int) -> NDArray[Any]:
    return v.reshape([-1 if i == ax else 1 for i in range(ndim)])


def laid_out(part: Part, dims: Sequence[int], shape: Shape) -> tuple[Part, tuple[int, ...]] | None:
    """The part laid out over its own dims and `dims` together, by broadcasting; None when too large."""
    if part.span is not None:
        part = expand_span(part, shape[part.span.dim])
    every = tuple(sorted({*part.dims, *dims}))
    if math.prod(shape[d] for d in every) > MAX_CELLS >> 3:
        return None
    sizes = [part.bounds.shape[1 + part.dims.index(d)] if d in part.dims else 1 for d in every]
    return part._replace(bounds=part.bounds.reshape(part.bounds.shape[0], *sizes)), every


def where_part(part: Part, flags: Part, shape: Shape, keep: bool) -> Part:
    """Keep the part only where `flags` is `keep`; it depends on nothing elsewhere."""
    laid = laid_out(part, flags.dims, shape)
    if laid is None:
        raise TooLargeError("a mask over too many positions to write out")
    wide, every = laid
    sizes = [flags.bounds.shape[1 + flags.dims.index(d)] if d in flags.dims else 1 for d in every]
    where = flags.bounds.reshape(1, *sizes) == keep
    return Part(np.where(where, wide.bounds, EMPTY), every, part.local)


def dominated(p: Part, by: Sequence[Part]) -> bool:
    """Do parts of the same layout (or the same everywhere) together depend on all that p depends on?"""
    hull = None
    for q in by:
        if q.span == p.span and q.dims in (p.dims, ()):
            b = q.bounds if q.dims else q.bounds.reshape(-1, *[1] * (p.bounds.ndim - 1))
            hull = b if hull is None else np.minimum(hull, b)
    return hull is not None and bool((hull <= p.bounds).all())


def dense(parts: Sequence[Part], shape: Shape, rows: int = 4) -> tuple[Bounds, tuple[int, ...]]:
    """The hull of parts as one array over the dims where any of them varies, and those dims."""
    dims = tuple(sorted({d for p in parts for d in p.dims} | {p.span.dim for p in parts if p.span}))
    out: Bounds | None = None
    for p in parts:
        q = expand_span(p, shape[p.span.dim]) if p.span else p
        sizes = [shape[d] if d in q.dims else 1 for d in dims]
        b = q.bounds.reshape(rows, *sizes)
        out = b if out is None else np.minimum(out, b)
    if out is None:
        return np.full((rows,), EMPTY, np.int64), ()
    return out, dims
