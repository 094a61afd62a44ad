"""Masks whose rows are a few stretches: what a causal or banded mask costs at a hundred thousand tokens. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rfcalc.analysis.memo import MEMO
from rfcalc.analysis.parts import EMPTY, Index, Part, Shape, axis_in, check_size, expand_span, settle, spread


class Rows(NamedTuple):
    """What a mask leaves: in row i of dim `q` the columns `start, start + step, ..` of dim `k` before a stop.

    A few such stretches per row, one array row each: the cost of a sequence, not of its square.
    """

    starts: Index  # (stretches, rows)
    stops: Index
    q: int
    k: int
    columns: int
    step: int = 1


class Mask(NamedTuple):
    """Positions known to be -inf (before a softmax) or 0 (after it): what the next contraction skips.

    `pending`: they depend on nothing, but the parts do not say so yet; where they are read they must (`written_out`).
    """

    part: Part | Rows  # one boolean row, true where masked; or what is not masked
    zero: bool
    pending: bool = False


LARGE_MASK = "mask too large to write out"


# ------------------------------------------------------------------------------------------ masks of a few stretches


def flags_of(rows: Rows) -> Part:
    """The mask written out, true where masked."""
    check_size(rows.columns * rows.starts.shape[1])
    at = np.arange(rows.columns)
    hidden = np.ones((rows.starts.shape[1], rows.columns), np.bool_)
    for start, stop in zip(rows.starts, rows.stops, strict=True):
        left = at - start[:, None]
        hidden &= ~((left >= 0) & (at < stop[:, None]) & (left % rows.step == 0))
    return Part((hidden if rows.q < rows.k else hidden.T)[None], (min(rows.q, rows.k), max(rows.q, rows.k)))


def rows_of(hidden: NDArray[np.bool_], q: int, k: int) -> Rows | None:
    """A matrix of flags (rows along dim q, columns along k) as stretches; None where a row has too many."""
    n, columns = hidden.shape
    found, rows_at_once = [], max(1, (1 << 20) // (columns + 2))
    for first in range(0, n, rows_at_once):
        block = hidden[first : first + rows_at_once]
        padded = np.ones((len(block), columns + 2), np.bool_)
        padded[:, 1:-1] = block
        edges = np.flatnonzero(padded[:, 1:] != padded[:, :-1])  # in turn, where a stretch begins and where it ends
        if len(edges) > 2 * STRETCHES * len(block):
            return None
        found.append(edges + first * (columns + 1))
    row, at = np.divmod(np.concatenate(found) if found else np.zeros(0, np.int64), columns + 1)
    row, start, stop = row[::2], at[::2], at[1::2]
    count = np.bincount(row, minlength=n)
    most = max(int(count.max(initial=0)), 1)
    if most > STRETCHES:
        return None
    rank = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    starts, stops = np.zeros((2, most, n), np.int64)
    starts[rank, row], stops[rank, row] = start, stop
    return Rows(starts, stops, q, k, columns)


STRETCHES = 16  # more in one row are not structure


def moved_mask(mask: Mask, move: Callable[[Part], Part]) -> Mask | None:
    """The mask after a movement, which for stretches is read off where it takes their rows and columns."""
    rows = mask.part
    if isinstance(rows, Part):
        return mask._replace(part=move(rows))
    at, columns = (
        move(Part(np.arange(n, dtype=np.int64)[None], (d,)))
        for n, d in ((rows.starts.shape[1], rows.q), (rows.columns, rows.k))
    )
    if any(len(p.dims) != 1 or p.span is not None for p in (at, columns)) or at.dims == columns.dims:
        return None
    index, where = at.bounds[0], columns.bounds[0]
    if not len(where) or where[-1] - where[0] + 1 != len(where) or (np.diff(where) != 1).any():
        return None
    if rows.step > 1 and len(where) != rows.columns:
        return None
    n, first = len(where), int(where[0])
    starts, stops = (np.clip(b[:, index] - first, 0, n) for b in (rows.starts, rows.stops))
    return mask._replace(part=Rows(starts, stops, at.dims[0], columns.dims[0], n, rows.step))


def hide(part: Part, flags: Part) -> Part:
    """The part with nothing where the flags are true."""
    for d, n in zip(flags.dims, flags.bounds.shape[1:], strict=True):
        if part.span is not None and part.span.dim == d:
            part = expand_span(part, n)
        part = spread(part, d, n)
    sizes = [n if d in flags.dims else 1 for d, n in zip(part.dims, part.bounds.shape[1:], strict=True)]
    return part._replace(bounds=np.where(flags.bounds.reshape(1, *sizes), EMPTY, part.bounds))


def stretch_hulls(part: Part, rows: Rows) -> Part:
    """Minima over many stretches of one array: those of each power of two in length, two of which cover a stretch."""
    key = ("stretches", id(part.bounds), part.dims, rows.q, rows.k, id(rows.starts), id(rows.stops), rows.step)
    hit = MEMO.get(key)
    if hit is None:
        b = np.moveaxis(part.bounds, axis_in(part, rows.k), -1)
        check_size(b[..., 0].size * rows.starts.shape[1])
        out = np.full((*b.shape[:-1], rows.starts.shape[1]), EMPTY, np.int64)
        count = -(-(rows.stops - rows.starts) // rows.step)
        level, reach = b, 1
        while True:
            for start, number in zip(rows.starts, count, strict=True):
                here = np.flatnonzero((number >= reach) & (number < 2 * reach))
                if len(here):
                    first = start[here]
                    last = first + (number[here] - reach) * rows.step
                    found = np.minimum(level[..., first], level[..., last])
                    out[..., here] = np.minimum(out[..., here], found)
            shift = reach * rows.step
            if shift >= b.shape[-1] or 2 * reach > count.max(initial=0):
                break
            level = np.concatenate([np.minimum(level[..., :-shift], level[..., shift:]), level[..., -shift:]], -1)
            reach *= 2
        dims = tuple(sorted({*part.dims, rows.q} - {rows.k}))
        found = np.ascontiguousarray(np.moveaxis(out, -1, dims.index(rows.q) + 1))
        hit = MEMO[key] = (settle(part._replace(bounds=found, dims=dims), (rows.q,)), part.bounds, rows)
    return part._replace(bounds=hit[0].bounds, dims=hit[0].dims)


def both_masks(a: Part | Rows, b: Part | Rows, shape: Shape) -> Part | Rows:
    """Masked where either mask is."""
    if isinstance(a, Rows) and isinstance(b, Rows) and (a.q, a.k) == (b.q, b.k) and a.step == b.step == 1:
        starts = np.maximum(a.starts[:, None], b.starts[None]).reshape(-1, a.starts.shape[1])
        stops = np.minimum(a.stops[:, None], b.stops[None]).reshape(-1, a.starts.shape[1])
        kept: NDArray[np.bool_] = np.any(starts < stops, axis=1)
        kept[0] = True
        if kept.sum() <= STRETCHES:
            return Rows(starts[kept], stops[kept], a.q, a.k, a.columns)
    x, y = (flags_of(m) if isinstance(m, Rows) else m for m in (a, b))
    dims = tuple(sorted({*x.dims, *y.dims}))
    check_size(math.prod(shape[d] for d in dims))
    laid = [m.bounds.reshape(1, *(shape[d] if d in m.dims else 1 for d in dims)) for m in (x, y)]
    return Part(laid[0] | laid[1], dims)
