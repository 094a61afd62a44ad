"""What a sliding window, a transposed one or any table of taps does to one part along one dim. No torch."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rfcalc.analysis.grids import extend, narrowed, settled
from rfcalc.analysis.memo import LINES, MEMO
from rfcalc.analysis.parts import (
    EMPTY,
    Bounds,
    Index,
    Line,
    Part,
    axis_in,
    blank_exact,
    expand_span,
    line_of,
    ramp,
    spread,
)


def window_length(n: int, k: int, s: int, before: int, after: int, d: int, ceil: bool = False) -> int:
    """Output length of a window op. A ceil-mode window must start inside the input or its left padding.

    >>> window_length(28, 3, 1, 0, 0, 1), window_length(5, 2, 2, 0, 0, 1, ceil=True)
    (26, 3)
    """
    free = n + before + after - d * (k - 1) - 1
    if not ceil:
        return free // s + 1
    out = -(-free // s) + 1
    return out - 1 if (out - 1) * s >= n + before else out


@lru_cache(maxsize=1024)
def window_hits(n: int, k: int, s: int, before: int, d: int, n_out: int) -> NDArray[np.bool_] | None:
    """Which outputs see at least one real input position; None when all do (the usual case)."""
    if before < (k - 1) * d + 1 and d == 1 and (n_out - 1) * s - before < n:
        return None
    at = np.arange(n_out)[:, None] * s - before + np.arange(k)[None, :] * d
    hits: NDArray[np.bool_] = np.any((at >= 0) & (at < n), axis=1)
    return None if hits.all() else hits


def window_part(
    part: Part, dim: int, n: int, n_out: int, k: int, s: int, before: int, d: int, jump: Fraction, turn: int = 1
) -> Part:  # fmt: skip
    """Output o sees input positions `o*s - before + t*d` for t in 0..k-1."""
    if part.span is not None and part.span.dim == dim:
        part = expand_span(part, n)
    if dim not in part.dims:
        hits = window_hits(n, k, s, before, d, n_out)
        return part if hits is None else blank_exact(part, dim, hits)
    if k == 1 and s == 1 and before == 0 and n_out == n:
        return part
    b = part.bounds
    ax = axis_in(part, dim)
    key = ("window", id(b), ax, n_out, k, s, before, d, id(jump), turn)
    hit = MEMO.get(key)
    if hit is None:
        line = _window_line(line_of(b), n, n_out, k, s, before, d, jump)
        if line is not None:
            found, flat = _drawn(line, n_out), False
            LINES[id(found)] = (line, found)
        else:
            found = _window(b, ax, n_out, k, s, before, d, jump, turn)
            # A field that grows along the map is not the same everywhere: the ends tell.
            flat = n_out > 1 and (b.ndim > 2 or found[2, 0] == found[2, -1]) and _same_ends(found, ax)
        hit = MEMO[key] = (found, flat, b, jump)
    out = Part(hit[0], part.dims, part.local, part.span)
    if n_out == 1:
        return narrowed(out, part, dim)
    return settled(out, part, dim) if hit[1] else out


def _window_line(
    line: Line | None, n: int, n_out: int, k: int, s: int, before: int, d: int, jump: Fraction
) -> Line | None:  # fmt: skip
    """The window of a line, where it is one: padding goes on with the line's own step, every output sees a pixel, and
    a tap that falls on padding takes nothing away that its neighbours inside would not reach past the border."""
    if line is None or n_out < 1:
        return None
    step, low, high, size = line
    end = (n_out - 1) * s - before + (k - 1) * d
    if before < 0 or window_hits(n, k, s, before, d, n_out) is not None:
        return None
    if (before > 0 or end >= n) and jump != step:
        return None
    if (before > 0 and low + step * (d - 1) > 0) or (end >= n and high + step * (n - d) < size - 1):
        return None
    return Line(step * s, low - step * before, high + step * ((k - 1) * d - before), size)


def _drawn(line: Line, n: int) -> Bounds:
    """A line as an array of n positions."""
    step, low, high, size = line
    b: Bounds = _stepped(n, step) + np.array((low, -high, low, -high)).reshape(4, 1)
    np.maximum(b[:2], _edges(size), out=b[:2])
    return b


@lru_cache(maxsize=256)
def _stepped(n: int, step: int) -> Bounds:
    return ramp(n) * step


@lru_cache(maxsize=256)
def _edges(size: int) -> Bounds:
    """The least that `lo` and `-hi` can be."""
    return np.array([[0], [1 - size]])


def _same_ends(b: Bounds, ax: int) -> bool:
    return bool((b.take(0, ax) == b.take(-1, ax)).all())


def _window(
    b: Bounds, ax: int, n_out: int, k: int, s: int, before: int, d: int, jump: Fraction, turn: int = 1
) -> Bounds:  # fmt: skip
    n = b.shape[ax]
    reach = (n_out - 1) * s + (k - 1) * d - before + 1
    ext = extend(b, ax, max(before, 0), max(reach - n, 0), jump, turn) if before > 0 or reach > n else b
    lead = (slice(None),) * ax
    stop = (n_out - 1) * s + 1
    base = -min(before, 0)
    out = ext[(*lead, slice(base, base + stop, s))]
    if k > 12:
        taps = [ext[(*lead, slice(base + t * d, base + t * d + stop, s))] for t in range(k)]
        result: Bounds = np.min(taps, 0)
        return result
    for t in range(1, k):
        start = base + t * d
        out = np.minimum(out, ext[(*lead, slice(start, start + stop, s))])
    return out


class Taps(NamedTuple):
    """Which input positions each output sees: `(n_out, k)` index tables; a negative exact index is no tap.

    `free` is the same before clamping or clipping to the input and may lie outside `0..n-1`; its holes are `HOLE`.
    """

    exact: Index
    free: Index


HOLE = -(1 << 30)


def taps_part(part: Part, dim: int, n: int, taps: Taps, jump: Fraction, turn: int = 1) -> Part:
    """General selection along one dim, from index tables (resampling, transposed windows, adaptive pooling)."""
    if part.span is not None and part.span.dim == dim:
        part = expand_span(part, n)
    if dim not in part.dims:
        hits: NDArray[np.bool_] = np.any(taps.exact >= 0, axis=1)
        return part if hits.all() else blank_exact(part, dim, hits, np.any(taps.free != HOLE, axis=1))
    b = part.bounds
    ax = axis_in(part, dim)
    key = ("taps", id(b), ax, id(taps.exact), id(taps.free), jump, turn)
    hit = MEMO.get(key)
    if hit is None:
        hit = MEMO[key] = (_select(b, ax, taps, jump, turn), b, taps)
    out = part._replace(bounds=hit[0])
    if hit[0].shape[ax] == 1:
        return narrowed(out, part, dim)
    return settled(out, part, dim)


def _select(b: Bounds, ax: int, taps: Taps, jump: Fraction, turn: int) -> Bounds:
    n = b.shape[ax]
    free = taps.free
    real = free[free != HOLE]
    left, right = (max(0, -int(real.min())), max(0, int(real.max()) - n + 1)) if real.size else (0, 0)
    ext = np.moveaxis(extend(b, ax, left, right, jump, turn) if left or right else b, ax, -1)
    rows = np.moveaxis(b, ax, -1)
    exact = np.where(taps.exact >= 0, rows[:2][..., np.clip(taps.exact, 0, n - 1)], EMPTY).min(-1)
    loose = np.where(free != HOLE, ext[2:][..., np.where(free != HOLE, free + left, 0)], EMPTY).min(-1)
    return np.ascontiguousarray(np.moveaxis(np.concatenate([exact, loose]), -1, ax))


def folded_part(
    part: Part, dim: int, n_out: int, k: int, n: int, s: int, before: int, d: int, jump: Fraction, turn: int = 1
) -> Part:  # fmt: skip
    """Dims `dim` and the next, the k taps of n windows, become one of positions: each tap is added where it came from.

    Beyond the border the windows go on, each tap along its own row of them.
    """
    taps, span = transposed_taps(n, n_out, k, s, before, d), part.span
    if span is not None and span.dim in (dim, dim + 1):
        part = expand_span(part, k if span.dim == dim else n)
    every = {*part.dims} if part.span is None else {*part.dims, part.span.dim}
    where = {i: i - (i > dim) for i in every if i != dim}
    if dim not in part.dims:
        kept = part.span and part.span._replace(dim=where[part.span.dim])
        alone = part._replace(dims=tuple(where[i] for i in part.dims), span=kept)
        return taps_part(alone, dim, n, taps, jump, turn)
    part = spread(part, dim + 1, n)
    where[dim + 1] = dim
    ax = axis_in(part, dim)
    rows = [
        _select(part.bounds.take(t, ax), ax, Taps(taps.exact[:, t : t + 1], taps.free[:, t : t + 1]), jump, turn)
        for t in range(k)
    ]
    dims = tuple(where[i] for i in part.dims if i != dim)
    return settled(part._replace(bounds=np.min(rows, 0), dims=dims), part, dim)


@lru_cache(maxsize=1024)
def transposed_taps(n: int, n_out: int, k: int, s: int, before: int, d: int) -> Taps:
    """Transposed window: input i reaches outputs `i*s - before + t*d` (Dumoulin and Visin 2016, section 4)."""
    at = np.arange(n_out)[:, None] + before - np.arange(k)[None, :] * d
    source, rest = np.divmod(at, s)
    free = np.where(rest == 0, source, HOLE)
    return Taps(np.where((free >= 0) & (free < n), free, -1), free)
