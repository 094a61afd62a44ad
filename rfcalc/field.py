"""The domain: which input interval each position of a tensor depends on. Pure integer arithmetic, no torch.

For one input axis (the H of an image, say) a tensor carries an `AxisField`: the hull of a few `Part`s. A part holds
four rows of integers, `lo, -hi, ulo, -uhi`, along only those tensor dims where they vary. With the upper bounds
negated the hull of two fields is one `np.minimum`, and an empty dependence is the neutral element `EMPTY`. Every
operation here is linear in that min-algebra, so it may be applied part by part.

- `lo, hi` are exact: padding contributes nothing. `ulo, uhi` are unclipped: padding continues the grid.
- A part is *local* unless it is global context (see `join` and `normalise`); the local field is the hull of those.
- A part with a `span` exists only at `start <= index < stop` of one tensor dim (an operand of a concatenation).

Sources: Araujo, Norris, Sim, "Computing receptive fields of convolutional neural networks", Distill 2019;
Dumoulin and Visin, "A guide to convolution arithmetic", 2016.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Bounds = NDArray[Any]
Index = NDArray[np.int64]
Shape = tuple[int, ...]
T = TypeVar("T")

EMPTY = 1 << 40  # larger than any input; min-neutral
_ONE = Fraction(1)
_MAX_CELLS = 1 << 25  # larger arrays are not built


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


class AxisField:
    """The dependence of one tensor on one input axis.

    `jump` is the nominal effective stride. `aligned`: all paths so far agreed on jump and centre. `mixed`: some
    operation brought in global context (attention, statistics, a pooled gate, an unknown op). `before`: of a
    concatenation, the one it continues by its last part; what is known of that need not be worked out again. `turn`:
    after how many pixels the phases repeat, the least common multiple of all strides so far; it survives up-sampling.
    """

    __slots__ = ("aligned", "before", "jump", "mixed", "parts", "turn")

    def __init__(
        self,
        parts: tuple[Part, ...],
        jump: Fraction = _ONE,
        aligned: bool = True,
        mixed: bool = False,
        before: AxisField | None = None,
        turn: int = 1,
    ) -> None:
        self.parts, self.jump, self.aligned, self.mixed, self.before = parts, jump, aligned, mixed, before
        self.turn = turn

    def fold(
        self, known: dict[int, tuple[T, AxisField]], whole: Callable[[AxisField], T], more: Callable[[T, AxisField], T]
    ) -> T:  # fmt: skip
        """`whole` of itself, by `more` from that of the concatenation it continues; `known` holds what was found.

        A dense block may be longer than Python recurses.
        """
        links, hit = [self], known.get(id(self))
        while hit is None and (before := links[-1].before) is not None:
            links.append(before)
            hit = known.get(id(before))
        if hit is None:
            first = links[-1]
            hit = known[id(first)] = (whole(first), first)
        for link in links[-2::-1]:
            hit = known[id(link)] = (more(hit[0], link), link)
        return hit[0]

    def with_parts(self, parts: Sequence[Part], jump: Fraction | None = None) -> AxisField:
        if jump is None or jump is self.jump:
            return _axis_field(parts, self.jump, self.aligned, self.mixed, self.turn)
        return _axis_field(parts, jump, self.aligned, self.mixed, math.lcm(self.turn, jump.numerator))

    def as_mixed(self) -> AxisField:
        return self if self.mixed else AxisField(self.parts, self.jump, self.aligned, True, turn=self.turn)

    def runs_along(self, dim: int) -> bool:
        """Is `dim` the grid of this axis (so that a stride there changes the jump)?"""
        return any(p.local and dim in p.dims and _is_grid(p, dim) for p in self.parts)

    def varies(self) -> bool:
        """Whether the local field differs between positions along some dim."""
        if len(self.parts) == 1:
            p = self.parts[0]
            return p.local and p.bounds.size > p.bounds.shape[0]
        return any(p.local and p.bounds.size > p.bounds.shape[0] for p in self.parts)


def _axis_field(parts: Sequence[Part], jump: Fraction, aligned: bool, mixed: bool, turn: int) -> AxisField:
    if len(parts) == 1:
        return AxisField((parts[0],), jump, aligned, mixed or not parts[0].local, None, turn)
    merged = merge(parts)
    return AxisField(merged, jump, aligned, mixed or not all(p.local for p in merged), None, turn)


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


class Field:
    """The dependence of one tensor on every input axis, and the names of approximations it inherits."""

    __slots__ = ("approx", "axes", "mask")

    def __init__(
        self, axes: tuple[AxisField, ...], approx: frozenset[str] = frozenset(), mask: Mask | None = None
    ) -> None:
        self.axes, self.approx, self.mask = axes, approx, mask

    def map(self, move: Callable[[Part], Part], jump: Callable[[Fraction], Fraction] | None = None) -> Field:
        """Apply one movement to every part and to the mask."""
        mask = self.mask
        if mask is not None:
            moved = moved_mask(mask, move)
            if moved is None:
                return written_out(self).map(move, jump)
            mask = moved
        axes = tuple(
            a.with_parts([move(p) for p in a.parts], jump(a.jump) if jump else None) if a.parts else a
            for a in self.axes
        )
        return Field(axes, self.approx, mask)

    def each(self, change: Callable[[AxisField], AxisField]) -> Field:
        """Apply a change to every axis; the mask is lost."""
        field = self if self.mask is None else self.unmasked()
        return Field(tuple(change(a) for a in field.axes), field.approx)

    def unmasked(self) -> Field:
        if self.mask is None:
            return self
        field = written_out(self) if self.mask.pending else self
        return Field(field.axes, field.approx)


# Results by identity of their operands: H and W of a square map share their arrays, so work is done once for both.
# The operands are kept alive beside the result, so an id cannot be reused. Cleared after each trace.
_memo: dict[tuple[Any, ...], tuple[Any, ...]] = {}


class Line(NamedTuple):
    """What most arrays turn out to be: position i has `ulo = low + step * i` and `uhi = high + step * i`.

    Of that interval, never empty, `lo, hi` are what lies inside the input, `0..size-1`. `step` is positive.
    """

    step: int
    low: int
    high: int
    size: int


# What is known of an array beside its numbers, by identity: saves reading them. Lives as long as `_memo`.
_lines: dict[int, tuple[Line, Bounds]] = {}


def line_of(b: Bounds) -> Line | None:
    """The line that an array is known to be; None says nothing about it."""
    hit = _lines.get(id(b))
    return hit and hit[0]


def forget() -> None:
    """Drop the shared intermediate results (called when a trace ends)."""
    _memo.clear()
    _lines.clear()


# ---------------------------------------------------------------------------------------------- building blocks


@lru_cache(maxsize=256)
def _ramp(n: int) -> Bounds:
    i = np.arange(n, dtype=np.int64)
    return np.stack([i, -i, i, -i])


def _main_dim(part: Part) -> int:
    """Of several dims, the one along which the centres move most; -1 where they move along none."""
    alive = part.bounds[2] < EMPTY // 2
    centre = np.where(alive, part.bounds[2] - part.bounds[3], 0)
    moves = []
    for i in range(centre.ndim):
        others = tuple(j for j in range(centre.ndim) if j != i)
        count = alive.sum(others)
        mean = centre.sum(others)[count > 0] / count[count > 0]
        moves.append(float(np.ptp(mean)) if mean.size else 0.0)
    if not any(moves):  # a grid of one position does not move either
        return next((d for d, n in zip(part.dims, centre.shape, strict=True) if n == 1), -1)
    return part.dims[int(np.argmax(moves))]


def _is_grid(part: Part, dim: int) -> bool:
    """Is `dim` the grid, or one along which the part only exists or not (padding beyond a kernel leaves such)?"""
    if len(part.dims) > 1:
        return _main_dim(part) == dim
    return _moves(part.bounds, 1) is not False or _one_turn(part.bounds)


def _moves(b: Bounds, ax: int) -> bool | None:
    """Do the unclipped bounds differ along an array axis, where they see anything? None: no two to compare."""
    n = b.shape[ax]
    if n < 2:
        return None
    if b.ndim == 2 and (line_of(b) is not None or (b[2, 0] != b[2, -1] and max(b[2, 0], b[2, -1]) < EMPTY // 2)):
        return True
    free = b[2:]
    seen = free < EMPTY // 2
    low, high = np.where(seen, free, EMPTY).min(ax), np.where(seen, free, -EMPTY).max(ax)
    if (low < high).any():
        return True
    return False if (seen.sum(ax) > 1).any() else None


def _course(b: Bounds, ax: int, jump: Fraction, turn: int) -> tuple[int, int]:
    """How the unclipped bounds go on beyond the ends of an array axis: after so many positions they repeat, so many
    pixels further on. Along their own grid that is one turn of the phases, backwards where the map is flipped; along
    another dim, where they vary only in seeing something or nothing, they stay as they are."""
    if line_of(b) is not None:
        return jump.denominator, jump.numerator
    moves = _moves(b, ax)
    if moves is None:
        moves = not any(_moves(b, i) for i in range(1, b.ndim) if i != ax)
    if not moves and not _one_turn(b):
        return _rhythm(b, ax), 0
    turn = math.lcm(turn, jump.numerator)
    return turn * jump.denominator // jump.numerator, turn if _ascends(b, ax) else -turn


def _one_turn(b: Bounds) -> bool:
    """Is this a grid that is too short to move? Any other dim without movement is there for what is empty along it."""
    return b.ndim == 2 and bool((b[0] < EMPTY // 2).all())


def _rhythm(b: Bounds, ax: int) -> int:
    """After how many positions along an axis it repeats what they see, something or nothing; 1 where it does not."""
    seen = np.moveaxis(b[2] < EMPTY // 2, ax - 1, 0)
    if not seen.all():
        for period in range(1, len(seen) // 2 + 1):
            if (seen[period:] == seen[:-period]).all():
                return period
    return 1


def _ascends(b: Bounds, ax: int) -> bool:
    first, last = (b.take([at], ax)[2:] for at in (0, -1))
    both = (first[0] < EMPTY // 2) & (last[0] < EMPTY // 2)
    return bool((last[0] - last[1] - first[0] + first[1])[both].sum() >= 0)


def _narrowed(part: Part, before: Part, dim: int) -> Part:
    """Drop a dim of which one position is left, if it was not the grid: nothing shall take it for one later."""
    if len(part.dims) < 2 or part.bounds.dtype == np.bool_ or _main_dim(before) == dim:
        return part
    dims = tuple(d for d in part.dims if d != dim)
    return part._replace(bounds=part.bounds.squeeze(_axis(part, dim)), dims=dims)


def identity(n: int, dim: int) -> AxisField:
    """The input itself: position i depends on pixel i.

    >>> identity(3, 0).parts[0].bounds[0].tolist()
    [0, 1, 2]
    """
    b = _ramp(n)
    _lines[id(b)] = (Line(1, 0, 0, n), b)
    return AxisField((Part(b, (dim,)),))


NOTHING = AxisField(())


def merge(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Hull of parts of the same layout; parts of different layouts stay apart."""
    if len(parts) == 1:
        return (parts[0],)
    found: dict[tuple[Any, ...], Part] = {}
    for p in parts:
        key = (p.dims, p.local, p.span, p.bounds.shape)
        other = found.get(key)
        found[key] = p if other is None else p._replace(bounds=_minimum(other.bounds, p.bounds))
    if len(found) == 1 or not any(p.local and p.bounds.size > p.bounds.shape[0] for p in found.values()):
        return tuple(found.values())
    # What is the same everywhere, beside something that is not, is global context.
    still = [p for p in found.values() if p.local and not p.dims and p.span is None]
    if not still:
        return tuple(found.values())
    rest = [p for p in found.values() if not (p.local and not p.dims and p.span is None)]
    return merge([*rest, *(p._replace(local=False) for p in still)])


def _minimum(a: Bounds, b: Bounds) -> Bounds:
    if a is b:
        return a
    key = ("min", id(a), id(b))
    hit = _memo.get(key)
    if hit is None:
        hit = _memo[key] = (np.minimum(a, b), a, b)
        _note_hull(hit[0], a, b)
    result: Bounds = hit[0]
    return result


def _note_hull(found: Bounds, a: Bounds, b: Bounds) -> None:
    """The hull of two lines of one step is a line."""
    x, y = line_of(a), line_of(b)
    if x is not None and y is not None and x.step == y.step and x.size == y.size:
        _lines[id(found)] = (Line(x.step, min(x.low, y.low), max(x.high, y.high), x.size), found)


def _limit(cells: int) -> None:
    if cells > _MAX_CELLS:
        raise TooLargeError(f"{cells:,} cells")


def _axis(part: Part, dim: int) -> int:
    return part.dims.index(dim) + 1


def expand_span(part: Part, size: int) -> Part:
    """Write the span out: an array along its dim, empty outside."""
    span = part.span
    if span is None:
        return part
    inner = part if span.dim in part.dims else spread(part._replace(span=None), span.dim, span.stop - span.start)
    ax = _axis(inner, span.dim)
    shape = list(inner.bounds.shape)
    shape[ax] = size
    _limit(math.prod(shape))
    out = np.full(shape, _neutral(inner.bounds), inner.bounds.dtype)
    out[(slice(None),) * ax + (slice(span.start, span.stop),)] = inner.bounds
    return Part(out, inner.dims, inner.local)


def _neutral(bounds: Bounds) -> Any:
    return EMPTY if bounds.dtype != np.bool_ else False


def spread(part: Part, dim: int, size: int) -> Part:
    """Repeat a part along a dim where it does not vary yet."""
    if part.span is not None and part.span.dim == dim:
        return expand_span(part, size)
    if dim in part.dims:
        return part
    dims = tuple(sorted((*part.dims, dim)))
    ax = dims.index(dim) + 1
    _limit(part.bounds.size * size)
    return part._replace(bounds=np.repeat(np.expand_dims(part.bounds, ax), size, ax), dims=dims)


def settle(part: Part, dims: Sequence[int]) -> Part:
    """Drop those dims along which the bounds turn out not to vary, so that they cost nothing further on."""
    for dim in dims:
        if dim in part.dims:
            ax = _axis(part, dim)
            b = part.bounds
            first = b.take([0], ax)
            if b.shape[ax] > 1 and (b == first).all():
                part = part._replace(bounds=first.squeeze(ax), dims=tuple(d for d in part.dims if d != dim))
    return part


def _settled(part: Part, before: Part, dim: int) -> Part:
    """Settle one dim, unless it is the grid: a small up-sampled map may be one turn of phases that all see the same."""
    settled = settle(part, (dim,))
    return part if settled is not part and _is_grid(before, dim) else settled


def _extend(b: Bounds, ax: int, left: int, right: int, jump: Fraction, turn: int) -> Bounds:
    """Continue the grid beyond both ends: nothing in the exact rows, the same phases on in the unclipped ones."""
    n = b.shape[ax]
    outer, low, high = _continuation(n, left, right, *_course(b, ax, jump, turn))
    out: Bounds = b.take(outer, ax)
    if b.ndim == 2:
        out[2] += low
        out[3] -= high
        out[:2, :left] = EMPTY
        if right:
            out[:2, n + left :] = EMPTY
        return out
    shift = [1] * (b.ndim - 1)
    shift[ax - 1] = -1
    out[2] += low.reshape(shift)
    out[3] -= high.reshape(shift)
    front = (slice(0, 2),) + (slice(None),) * (ax - 1)
    out[(*front, slice(0, left))] = EMPTY
    if right:
        out[(*front, slice(n + left, None))] = EMPTY
    return out


@lru_cache(maxsize=1024)
def _continuation(n: int, left: int, right: int, period: int, step: int) -> tuple[Index, Index, Index]:
    """For each position of the extended grid: where it is read from, and by how much each bound is moved."""
    if period > n:  # shorter than one period: round outwards
        before, after = range(left, 0, -1), range(1, right + 1)
        outer = np.concatenate([np.zeros(left, np.int64), np.arange(n), np.full(right, n - 1)])
        up = [-(-i * step // period) for i in (*before, *after)]
        down = [i * step // period for i in (*before, *after)]
        low = np.array([-v for v in up[:left]] + [0] * n + down[left:], np.int64)
        high = np.array([-v for v in down[:left]] + [0] * n + up[left:], np.int64)
        return outer, low, high
    at = np.arange(-left, n + right)
    turns = np.where(at < 0, at // period, np.where(at >= n, -((n - 1 - at) // period), 0))
    return at - turns * period, turns * step, turns * step


# ------------------------------------------------------------------------------------------------ windows, taps


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
        return part if hits is None else _blank(part, dim, hits)
    if k == 1 and s == 1 and before == 0 and n_out == n:
        return part
    b = part.bounds
    ax = _axis(part, dim)
    key = ("window", id(b), ax, n_out, k, s, before, d, id(jump), turn)
    hit = _memo.get(key)
    if hit is None:
        line = _window_line(line_of(b), n, n_out, k, s, before, d, jump)
        if line is not None:
            found, flat = _drawn(line, n_out), False
            _lines[id(found)] = (line, found)
        else:
            found = _window(b, ax, n_out, k, s, before, d, jump, turn)
            # A field that grows along the map is not the same everywhere: the ends tell.
            flat = n_out > 1 and (b.ndim > 2 or found[2, 0] == found[2, -1]) and _same_ends(found, ax)
        hit = _memo[key] = (found, flat, b, jump)
    out = Part(hit[0], part.dims, part.local, part.span)
    if n_out == 1:
        return _narrowed(out, part, dim)
    return _settled(out, part, dim) if hit[1] else out


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
    return _ramp(n) * step


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
    ext = _extend(b, ax, max(before, 0), max(reach - n, 0), jump, turn) if before > 0 or reach > n else b
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


def _blank(part: Part, dim: int, hits: NDArray[np.bool_], free: NDArray[np.bool_] | None = None) -> Part:
    """Spread a part along a dim of which only some positions see it; `free`: unclipped (None: all do)."""
    many = len(hits) > 1  # one position needs no dim to see nothing
    grown = spread(part, dim, len(hits)) if many else part
    free = np.ones_like(hits) if free is None else free
    sizes = [len(hits) if many and d == dim else 1 for d in grown.dims]
    seen = np.stack([hits, hits, free, free]).reshape(4, *sizes)
    return grown._replace(bounds=np.where(seen, grown.bounds, EMPTY))


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
        return part if hits.all() else _blank(part, dim, hits, np.any(taps.free != HOLE, axis=1))
    b = part.bounds
    ax = _axis(part, dim)
    key = ("taps", id(b), ax, id(taps.exact), id(taps.free), jump, turn)
    hit = _memo.get(key)
    if hit is None:
        hit = _memo[key] = (_select(b, ax, taps, jump, turn), b, taps)
    out = part._replace(bounds=hit[0])
    if hit[0].shape[ax] == 1:
        return _narrowed(out, part, dim)
    return _settled(out, part, dim)


def _select(b: Bounds, ax: int, taps: Taps, jump: Fraction, turn: int) -> Bounds:
    n = b.shape[ax]
    free = taps.free
    real = free[free != HOLE]
    left, right = (max(0, -int(real.min())), max(0, int(real.max()) - n + 1)) if real.size else (0, 0)
    ext = np.moveaxis(_extend(b, ax, left, right, jump, turn) if left or right else b, ax, -1)
    rows = np.moveaxis(b, ax, -1)
    exact = np.where(taps.exact >= 0, rows[:2][..., np.clip(taps.exact, 0, n - 1)], EMPTY).min(-1)
    loose = np.where(free != HOLE, ext[2:][..., np.where(free != HOLE, free + left, 0)], EMPTY).min(-1)
    return np.ascontiguousarray(np.moveaxis(np.concatenate([exact, loose]), -1, ax))


@lru_cache(maxsize=1024)
def transposed_taps(n: int, n_out: int, k: int, s: int, before: int, d: int) -> Taps:
    """Transposed window: input i reaches outputs `i*s - before + t*d` (Dumoulin and Visin 2016, section 4)."""
    at = np.arange(n_out)[:, None] + before - np.arange(k)[None, :] * d
    source, rest = np.divmod(at, s)
    free = np.where(rest == 0, source, HOLE)
    return Taps(np.where((free >= 0) & (free < n), free, -1), free)


# ------------------------------------------------------------------------------------------------ moving around


def take_part(part: Part, dim: int, n: int, index: Index) -> Part:
    """Pick positions along a dim (slice, flip, roll, index_select)."""
    if not len(index):  # a tensor without elements depends on nothing
        return Part(np.full(part.bounds.shape[0], _neutral(part.bounds), part.bounds.dtype), (), part.local)
    span = part.span
    if span is not None and span.dim == dim:
        inside = np.flatnonzero((index >= span.start) & (index < span.stop))
        if dim not in part.dims and inside.size and inside[-1] - inside[0] + 1 == inside.size:
            whole = inside.size == len(index)
            return part._replace(span=None if whole else Span(dim, int(inside[0]), int(inside[-1]) + 1))
        if not inside.size:
            return take_part(part._replace(span=None), dim, n, inside)
        part = expand_span(part, n)
    if dim not in part.dims:
        return part
    out = part._replace(bounds=part.bounds.take(index, _axis(part, dim)))
    return _narrowed(out, part, dim) if len(index) == 1 else out


def pad_part(
    part: Part, dim: int, n: int, before: int, after: int, mode: str, jump: Fraction, turn: int = 1
) -> Part:  # fmt: skip
    """Pad (or crop, where negative) one dim; `mode` is torch's: constant, reflect, replicate, circular."""
    at = np.arange(-before, n + after)
    if part.bounds.dtype == np.bool_:  # a mask: padding is an ordinary constant
        grown = spread(expand_span(part, n), dim, n)
        return grown._replace(
            bounds=np.where(
                _along((at >= 0) & (at < n), grown.bounds.ndim, _axis(grown, dim)),
                grown.bounds.take(np.clip(at, 0, n - 1), _axis(grown, dim)),
                False,
            )
        )
    if part.span is not None and part.span.dim == dim:
        part = expand_span(part, n)
    outside = (at < 0) | (at >= n)
    if dim not in part.dims:
        if mode != "constant" or not outside.any():
            return part
        return _blank(part, dim, ~outside)
    ax = _axis(part, dim)
    grows = before > 0 or after > 0
    ext = _extend(part.bounds, ax, max(before, 0), max(after, 0), jump, turn) if grows else part.bounds
    start = max(-before, 0)
    out = ext[(slice(None),) * ax + (slice(start, start + len(at)),)]
    if mode != "constant" and outside.any():
        exact = part.bounds[:2].take(_wrapped(before, after, n, mode), ax)
        out = np.concatenate([exact, out[2:]])
    return part._replace(bounds=out)


def _along(v: NDArray[Any], ndim: int, ax: int) -> NDArray[Any]:
    return v.reshape([-1 if i == ax else 1 for i in range(ndim)])


def _wrapped(before: int, after: int, n: int, mode: str) -> Index:
    """The input position a padded position copies."""
    at = np.arange(-before, n + after)
    if mode == "circular":  # what a negative amount crops is gone before the rest is wrapped
        first, kept = max(-before, 0), n + min(before, 0) + min(after, 0)
        return np.clip(first + (at - first) % max(kept, 1), 0, n - 1)
    if mode == "replicate":
        return np.clip(at, 0, n - 1)
    if n == 1:
        return np.zeros_like(at)
    folded = np.abs(at) % (2 * n - 2)
    return np.where(folded >= n, 2 * n - 2 - folded, folded)


def permute_part(part: Part, order: Sequence[int]) -> Part:
    """New dim i is old dim `order[i]`."""
    where = {old: new for new, old in enumerate(order)}
    moved = [where[d] for d in part.dims]
    rank = sorted(range(len(moved)), key=moved.__getitem__)
    b = part.bounds if rank == list(range(len(moved))) else part.bounds.transpose(0, *(r + 1 for r in rank))
    span = part.span and part.span._replace(dim=where[part.span.dim])
    return Part(b, tuple(sorted(moved)), part.local, span)


def renumber_part(part: Part, where: dict[int, int]) -> Part:
    """Rename dims in ascending order; a dim that is missing has size 1 and is dropped."""
    gone = [i + 1 for i, d in enumerate(part.dims) if d not in where]
    b = part.bounds.squeeze(tuple(gone)) if gone else part.bounds
    span = part.span
    if span is not None:
        span = span._replace(dim=where[span.dim]) if span.dim in where else None
    return Part(b, tuple(where[d] for d in part.dims if d in where), part.local, span)


@lru_cache(maxsize=4096)
def _reshape_plan(old: Shape, new: Shape) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Groups of old dims and of new dims with equal products; dims of size 1 belong to no group."""
    a = [i for i, n in enumerate(old) if n != 1]
    b = [i for i, n in enumerate(new) if n != 1]
    plan = []
    i = j = 0
    while i < len(a) and j < len(b):
        ei, ej = i + 1, j + 1
        left, right = old[a[i]], new[b[j]]
        while left != right:
            if left < right:
                left, ei = left * old[a[ei]], ei + 1
            else:
                right, ej = right * new[b[ej]], ej + 1
        plan.append((tuple(a[i:ei]), tuple(b[j:ej])))
        i, j = ei, ej
    return plan


def reshape_part(part: Part, old: Shape, new: Shape) -> Part:
    """Move bounds through a reshape. Dims that stay whole only change their number; the rest is written out."""
    plan = _reshape_plan(old, new)
    if part.span is not None and not any(src == (part.span.dim,) and len(dst) == 1 for src, dst in plan):
        part = expand_span(part, old[part.span.dim])
    span = part.span
    size, full, target, dims, fresh = [part.bounds.shape[0]], [part.bounds.shape[0]], [part.bounds.shape[0]], [], []
    for src, dst in plan:
        if span is not None and part.span is not None and src == (part.span.dim,):
            span = span._replace(dim=dst[0])
        if not any(d in part.dims for d in src):
            continue
        size += [old[d] if d in part.dims else 1 for d in src]
        full += [old[d] for d in src]
        target += [new[d] for d in dst]
        dims += list(dst)
        if len(src) > 1 or len(dst) > 1:
            fresh += list(dst)
    if not fresh:  # the array itself, if it loses no dim of size 1: what is known of it is known by identity
        b = part.bounds if len(target) == part.bounds.ndim else part.bounds.reshape(target)
        return Part(b, tuple(dims), part.local, span)
    _limit(math.prod(full))
    b = np.broadcast_to(part.bounds.reshape(size), full).reshape(target)
    return settle(Part(b, tuple(dims), part.local, span), fresh)


def broadcast_part(part: Part, old: Shape, new: Shape) -> Part:
    """Right-align `old` with `new`; a dim of size 1 that grows no longer carries the field."""
    shift = len(new) - len(old)
    if not shift and old == new:
        return part
    where = {d: d + shift for d in range(len(old)) if old[d] == new[d + shift]}
    span = part.span
    if span is not None and span.dim not in where:  # a dim of size 1: the span is all or nothing of it
        part = part._replace(span=None)
    return renumber_part(part, where)


def reduce_part(part: Part, dims: frozenset[int]) -> Part:
    """Hull over whole dims, which stay in the numbering (as with keepdim)."""
    span = part.span
    if span is not None and span.dim in dims:
        part = part._replace(span=None)
    if dims.isdisjoint(part.dims):
        return part
    hit = tuple(i + 1 for i, d in enumerate(part.dims) if d in dims)
    if part.bounds.dtype == np.bool_:
        return part._replace(bounds=np.all(part.bounds, axis=hit), dims=tuple(d for d in part.dims if d not in dims))
    b = part.bounds
    key = ("reduce", id(b), hit)
    found = _memo.get(key)
    if found is None:
        found = _memo[key] = (b.min(hit, initial=EMPTY), b)
    return part._replace(bounds=found[0], dims=tuple(d for d in part.dims if d not in dims))


def prefix_part(part: Part, dim: int, n: int) -> Part:
    """Running hull along a dim (cumulative ops, causal attention)."""
    if part.span is not None and part.span.dim == dim:
        part = expand_span(part, n)
    if dim not in part.dims:
        return part
    ax = _axis(part, dim)
    return part._replace(bounds=np.minimum.accumulate(part.bounds, ax))


def place_part(part: Part, dim: int, start: int, n: int, total: int) -> Part:
    """An operand of a concatenation: it exists at `start <= index < start + n` of `total`."""
    if n == total:
        return part
    if part.span is None and dim not in part.dims:
        return Part(part.bounds, part.dims, part.local, Span(dim, start, start + n))
    if part.span is not None:
        if part.span.dim == dim and dim not in part.dims:
            return part._replace(span=Span(dim, part.span.start + start, part.span.stop + start))
        part = spread(part, dim, n) if part.span.dim != dim else expand_span(part, n)
    return _place_array(part, dim, start, total)


def _place_array(part: Part, dim: int, start: int, total: int) -> Part:
    ax = _axis(part, dim)
    shape = list(part.bounds.shape)
    n = shape[ax]
    shape[ax] = total
    _limit(math.prod(shape))
    out = np.full(shape, _neutral(part.bounds), part.bounds.dtype)
    out[(slice(None),) * ax + (slice(start, start + n),)] = part.bounds
    return part._replace(bounds=out)


# ------------------------------------------------------------------------------------------- fields as a whole


def _grid_only(part: Part) -> Part:
    """The unclipped bounds without the dims along which they do not vary, where they see anything."""
    b, dims = part.bounds, part.dims
    for dim in part.dims:
        ax = dims.index(dim) + 1
        if len(dims) > 1 and _moves(b, ax) is False:
            b, dims = b.min(ax), tuple(d for d in dims if d != dim)
    return Part(b, dims, part.local)


def _axes_agree(a: AxisField, b: AxisField) -> bool:
    """Do two paths agree on jump and on the centre of every position? Compared where their grids do."""
    if a.jump is not b.jump and a.jump != b.jump and a.varies() and b.varies():
        return False
    for p in a.parts:
        for q in b.parts:
            if p.local and q.local and not _centres_agree(p, q):
                return False
    return True


def _centres_agree(p: Part, q: Part) -> bool:
    if p.dims != q.dims and not set(p.dims).isdisjoint(q.dims):
        p, q = _grid_only(p), _grid_only(q)
    if not p.dims or p.dims != q.dims or p.bounds.shape != q.bounds.shape or p.bounds is q.bounds:
        return True
    line, other = line_of(p.bounds), line_of(q.bounds)
    if line is not None and other is not None:
        steps_differ = line.step != other.step and p.bounds.shape[1] > 1  # one position takes no step
        return not steps_differ and line.low + line.high == other.low + other.high
    key = ("centres", id(p.bounds), id(q.bounds))
    hit = _memo.get(key)
    if hit is None:
        x, y = p.bounds, q.bounds
        differ = x[2] - x[3] != y[2] - y[3]
        # where one of them sees nothing there is nothing to disagree about
        same = not differ.any() or not (differ & (x[2] < EMPTY // 2) & (y[2] < EMPTY // 2)).any()
        hit = _memo[key] = (same, x, y)
    return bool(hit[0])


def _join_two(a: AxisField, b: AxisField) -> AxisField | None:
    """The usual join, of two maps of one layout: a residual with its shortcut. None where it is not that."""
    p, q = a.parts[0], b.parts[0]
    if p.dims != q.dims or p.bounds.shape != q.bounds.shape or p.span or q.span or not (p.local and q.local and p.dims):
        return None
    aligned = a.aligned and b.aligned and _axes_agree(a, b)
    turn = a.turn if a.turn == b.turn else math.lcm(a.turn, b.turn)
    return AxisField((Part(_minimum(p.bounds, q.bounds), p.dims),), a.jump, aligned, a.mixed or b.mixed, None, turn)


def join_axes(axes: Sequence[AxisField]) -> AxisField:
    """Hull of operands of one shape. An operand that does not vary where another does is global context."""
    present = [a for a in axes if a.parts]
    if not present:
        return axes[0] if axes else NOTHING
    first = present[0]
    if len(present) == 1:
        return first
    if len(present) == 2 and len(first.parts) == 1 == len(present[1].parts):
        quick = _join_two(first, present[1])
        if quick is not None:
            return quick
    vary = [a.varies() for a in present]
    mixed = any(a.mixed for a in present)
    parts: list[Part] = []
    lead = present[vary.index(True)] if any(vary) else first
    aligned = all(a.aligned for a in present)
    for a, v in zip(present, vary, strict=True):
        if any(vary) and not v:
            parts += [p._replace(local=False) for p in a.parts]
            mixed = True
        else:
            parts += a.parts
            aligned = aligned and (a is lead or _axes_agree(lead, a))
    return _axis_field(parts, lead.jump, aligned, mixed, math.lcm(*[a.turn for a in present]))


def beside_axes(axes: Sequence[AxisField], sizes: Shape, dim: int) -> AxisField:
    """Operands of a concatenation: each exists on its own stretch of `dim`, and is context where others vary."""
    key = ("beside", dim, *map(id, axes))
    grown = _one_more(axes, sizes, dim, key)
    if grown is not None:
        return grown
    total = sum(sizes)
    vary = [a.varies() for a in axes]
    some = any(vary)
    lead = axes[vary.index(True)] if some else next((a for a in axes if a.parts), axes[0])
    mixed, start = False, 0
    parts: list[Part] = []
    beside: list[AxisField] = []
    plain = True  # every part gets a stretch of its own, so none can merge with another
    for a, v, n in zip(axes, vary, sizes, strict=True):
        if a.parts and n:
            context = some and not v
            mixed = mixed or a.mixed or context
            for p in a.parts:
                local = p.local and not context
                if p.span is None and dim not in p.dims and n != total:
                    parts.append(Part(p.bounds, p.dims, local, Span(dim, start, start + n)))
                else:
                    plain = False
                    parts.append(place_part(p, dim, start, n, total)._replace(local=local))
            plain = plain and len(a.parts) == 1
            if not context:
                beside.append(a)
        start += n
    aligned, turn = _all_agree(lead, beside), math.lcm(*[a.turn for a in axes])
    if plain and len(parts) > 1:
        out = AxisField(tuple(parts), lead.jump, aligned, mixed or not all(p.local for p in parts), None, turn)
        if len(beside) == len(axes):
            _memo[key] = (out, lead, sizes, axes)
        return out
    return _axis_field(parts, lead.jump, aligned, mixed, turn)


def _one_more(
    axes: Sequence[AxisField], sizes: Shape, dim: int, key: tuple[Any, ...]
) -> AxisField | None:  # fmt: skip
    """A dense block concatenates what it concatenated before, and one operand more: only that one is new."""
    last = axes[-1]
    known = _memo.get(key[:-1]) if len(axes) > 2 else None
    # One field may belong to tensors of several widths.
    if known is None or len(last.parts) != 1 or known[2] != sizes[:-1]:
        return None
    before, lead, earlier, _ = known
    p, n, start = last.parts[0], sizes[-1], sum(earlier)
    if p.span is not None or dim in p.dims or not n or last.varies() != lead.varies():
        return None
    parts = (*before.parts, Part(p.bounds, p.dims, p.local, Span(dim, start, start + n)))
    aligned = before.aligned and last.aligned and _axes_agree(lead, last)
    turn = before.turn if before.turn == last.turn else math.lcm(before.turn, last.turn)
    out = AxisField(parts, lead.jump, aligned, before.mixed or last.mixed or not p.local, before, turn)
    _memo[key] = (out, lead, sizes, axes)
    return out


def _all_agree(lead: AxisField, axes: Sequence[AxisField]) -> bool:
    """Alignment of many paths; H and W of a square map ask the same question."""
    paths = [(a.aligned, a.jump.numerator, a.jump.denominator, *[id(p.bounds) for p in a.parts]) for a in axes]
    key = ("agree", *paths)
    hit = _memo.get(key)
    if hit is None:
        found = all(a.aligned and (a is lead or _axes_agree(lead, a)) for a in axes)
        hit = _memo[key] = (found, axes)
    return bool(hit[0])


def join(fields: Sequence[Field]) -> Field:
    """Hull of fields of one shape, axis by axis. Masks are lost."""
    if len(fields) == 1:
        return fields[0].unmasked()
    first = fields[0]
    if all(f is first for f in fields):
        return first.unmasked()
    if any(f.mask is not None for f in fields):
        fields = [f.unmasked() for f in fields]
        first = fields[0]
    axes = tuple(join_axes([f.axes[i] for f in fields]) for i in range(len(first.axes)))
    return Field(axes, frozenset().union(*(f.approx for f in fields)))


def broadcast(field: Field, old: Shape, new: Shape) -> Field:
    return field if old == new else field.map(lambda p: broadcast_part(p, old, new))


def reduce(field: Field, dims: Sequence[int]) -> Field:
    """Hull over whole dims; the numbering of dims stays (keepdim)."""
    gone = frozenset(dims)
    if field.mask is not None:
        rows = field.mask.part
        if isinstance(rows, Rows) and not gone.isdisjoint((rows.q, rows.k)):
            if rows.k in gone and field.mask.pending:
                return reduce(seen_hull(field, rows, (), rows.k), [d for d in dims if d != rows.k])
            return reduce(field.unmasked(), dims)
        return field.map(lambda p: reduce_part(p, gone))
    axes = tuple([_reduce_axis(a, gone) for a in field.axes])
    return field if axes == field.axes else Field(axes, field.approx)


def _reduce_axis(a: AxisField, gone: frozenset[int]) -> AxisField:
    if len(a.parts) > 1:
        return _reduce_beside(a, gone)
    for p in a.parts:  # usually nothing varies along them
        if p.span is not None or not gone.isdisjoint(p.dims):
            return a.with_parts([reduce_part(p, gone)])
    return a


def _reduce_beside(a: AxisField, gone: frozenset[int]) -> AxisField:
    """Hull over the dim along which many operands of a concatenation lie."""

    def whole(link: AxisField) -> AxisField:
        return link.with_parts([reduce_part(p, gone) for p in link.parts])

    def more(before: AxisField, link: AxisField) -> AxisField:
        rest, last = before.parts, link.parts[-1]
        if len(rest) > 1 or not gone.isdisjoint(last.dims) or not _alike(rest[0], last):
            return whole(link)
        hull = _minimum(rest[0].bounds, last.bounds)
        return AxisField((Part(hull, last.dims, last.local),), link.jump, link.aligned, link.mixed, None, link.turn)

    if not gone.isdisjoint(a.parts[-1].dims):  # only what lies along them is reduced part by part
        return whole(a)
    known: dict[int, tuple[AxisField, AxisField]] = _memo.setdefault(("reduced", gone), ({},))[0]
    return a.fold(known, whole, more)


def _alike(p: Part, q: Part) -> bool:
    return p.dims == q.dims and p.local == q.local and p.bounds.shape == q.bounds.shape


def drop_dims(field: Field, dims: Sequence[int], ndim: int) -> Field:
    """Renumber after dims of size 1 (or reduced dims) were removed."""
    gone = set(dims)
    kept = [d for d in range(ndim) if d not in gone]
    where = {d: i for i, d in enumerate(kept)}
    return field.map(lambda p: renumber_part(p, where))


def taken_reversed(field: Field, dim: int, n: int, step: Callable[[Part, int, int], Part]) -> Field:
    """Apply a running operation from the far end of a dim."""
    back = np.arange(n)[::-1].copy()

    def turn(p: Part) -> Part:
        return take_part(step(take_part(p, dim, n, back), dim, n), dim, n, back)

    return field.each(lambda a: a.with_parts([turn(p) for p in a.parts]))


def touched(field: Field, dims: Sequence[int]) -> tuple[bool, ...]:
    """Per axis, whether its field differs along any of some dims: what an op along them does to the others is nothing.

    >>> touched(Field((identity(3, 2), identity(4, 3))), (2,))
    (True, False)
    """
    gone = set(dims)
    return tuple(
        any(not gone.isdisjoint(p.dims) or (p.span is not None and p.span.dim in gone) for p in a.parts)
        for a in field.axes
    )


def mix(field: Field, where: Sequence[bool] | None = None) -> Field:
    """Mark axes (all, or `where` true) as having taken in global context."""
    if where is None:
        return Field(tuple(a.as_mixed() for a in field.axes), field.approx, field.mask)
    axes = tuple(a.as_mixed() if w else a for a, w in zip(field.axes, where, strict=True))
    return Field(axes, field.approx, field.mask)


def moves(part: Part) -> bool:
    """Do the unclipped bounds differ between positions?"""
    return any(_moves(part.bounds, ax) for ax in range(1, part.bounds.ndim))


def normalise(field: Field, dims: Sequence[int]) -> Field:
    """x joined with statistics over `dims`; the statistics are context, left out of the local field."""
    gone = frozenset(dims)

    def change(a: AxisField) -> AxisField:
        means = [(p, reduce_part(p, gone)) for p in a.parts]
        extra = [q._replace(local=False) for p, q in means if q is not p]
        if not extra:
            return a
        mixed = a.mixed or any(q.dims != p.dims for p, q in means)
        return AxisField(merge([*a.parts, *extra]), a.jump, a.aligned, mixed, turn=a.turn)

    return field.each(change)


def everything(field: Field, op: str | None = None) -> Field:
    """Depends on all its operand depends on, at every position; `op` names an operation without a rule."""
    field = field.unmasked()

    def change(a: AxisField) -> AxisField:
        if not a.parts:
            return a
        parts = [Part(p.bounds.reshape(p.bounds.shape[0], -1).min(1, initial=EMPTY), (), p.local) for p in a.parts]
        return AxisField(merge(parts), a.jump, a.aligned, True, turn=a.turn)

    return Field(tuple(change(a) for a in field.axes), field.approx | ({op} if op else frozenset()))


# ---------------------------------------------------------------------------------------------------- reading


def _wide(part: Part, dims: Sequence[int], shape: Shape) -> tuple[Part, tuple[int, ...]] | None:
    """The part laid out over its own dims and `dims` together, by broadcasting; None when too large."""
    if part.span is not None:
        part = expand_span(part, shape[part.span.dim])
    every = tuple(sorted({*part.dims, *dims}))
    if math.prod(shape[d] for d in every) > _MAX_CELLS >> 3:
        return None
    sizes = [part.bounds.shape[1 + part.dims.index(d)] if d in part.dims else 1 for d in every]
    return part._replace(bounds=part.bounds.reshape(part.bounds.shape[0], *sizes)), every


def where_part(part: Part, flags: Part, shape: Shape, keep: bool) -> Part:
    """Keep the part only where `flags` is `keep`; it depends on nothing elsewhere."""
    laid = _wide(part, flags.dims, shape)
    if laid is None:
        raise TooLargeError("a mask over too many positions to write out")
    wide, every = laid
    sizes = [flags.bounds.shape[1 + flags.dims.index(d)] if d in flags.dims else 1 for d in every]
    where = flags.bounds.reshape(1, *sizes) == keep
    return Part(np.where(where, wide.bounds, EMPTY), every, part.local)


def blank(field: Field, flags: Part, shape: Shape, inside: bool) -> Field:
    """Remove the dependence where `flags` is true (`inside`) or where it is false."""
    bare = field.unmasked()
    try:
        return bare.each(lambda a: a.with_parts([where_part(p, flags, shape, not inside) for p in a.parts]))
    except TooLargeError:  # what is masked stays in the hull, and the report says so
        return Field(bare.axes, bare.approx | {_LARGE_MASK})


_LARGE_MASK = "mask too large to write out"


# ------------------------------------------------------------------------------------------ masks of a few stretches


def flags_of(rows: Rows) -> Part:
    """The mask written out, true where masked."""
    _limit(rows.columns * rows.starts.shape[1])
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


def written_out(field: Field) -> Field:
    """The same field with its mask as flags, and nothing where they are true."""
    mask = field.mask
    if mask is None or isinstance(mask.part, Part):
        return field
    try:
        flags = flags_of(mask.part)
        if not mask.pending:
            return Field(field.axes, field.approx, Mask(flags, mask.zero))
        axes = tuple(a.with_parts([_hidden(p, flags) for p in a.parts]) if a.parts else a for a in field.axes)
        return Field(axes, field.approx, Mask(flags, mask.zero))
    except TooLargeError:
        return Field(field.axes, field.approx | {_LARGE_MASK})


def _hidden(part: Part, flags: Part) -> Part:
    """The part with nothing where the flags are true."""
    for d, n in zip(flags.dims, flags.bounds.shape[1:], strict=True):
        if part.span is not None and part.span.dim == d:
            part = expand_span(part, n)
        part = spread(part, d, n)
    sizes = [n if d in flags.dims else 1 for d, n in zip(part.dims, part.bounds.shape[1:], strict=True)]
    return part._replace(bounds=np.where(flags.bounds.reshape(1, *sizes), EMPTY, part.bounds))


def seen_hull(field: Field, mask: Part | Rows, shape: Shape, k: int) -> Field:
    """Hull over dim `k` of what the mask leaves; the numbering of dims stays."""
    if isinstance(mask, Part) or mask.k != k:
        flags = mask if isinstance(mask, Part) else flags_of(mask)
        return reduce(blank(field, flags, shape, inside=True), (k,))
    bare = Field(field.axes, field.approx)
    return bare.each(lambda a: a.with_parts([_seen_part(p, mask) for p in a.parts]) if a.parts else a)


def _seen_part(part: Part, rows: Rows) -> Part:
    """Hull over the columns that each row sees."""
    n = rows.starts.shape[1]
    for d, size in ((rows.q, n), (rows.k, rows.columns)):
        if part.span is not None and part.span.dim == d:
            part = expand_span(part, size)
    if rows.k in part.dims and rows.q in part.dims:
        return reduce_part(_hidden(part, flags_of(rows)), frozenset((rows.k,)))
    if rows.k in part.dims:
        return _stretch_hulls(part, rows)
    blind: NDArray[np.bool_] = np.all(rows.starts >= rows.stops, axis=0)
    if not blind.any():
        return part
    wide = spread(part, rows.q, n)
    return wide._replace(bounds=np.where(_along(blind, wide.bounds.ndim, _axis(wide, rows.q)), EMPTY, wide.bounds))


def _stretch_hulls(part: Part, rows: Rows) -> Part:
    """Minima over many stretches of one array: those of each power of two in length, two of which cover a stretch."""
    key = ("stretches", id(part.bounds), part.dims, rows.q, rows.k, id(rows.starts), id(rows.stops), rows.step)
    hit = _memo.get(key)
    if hit is None:
        b = np.moveaxis(part.bounds, _axis(part, rows.k), -1)
        _limit(b[..., 0].size * rows.starts.shape[1])
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
        hit = _memo[key] = (settle(part._replace(bounds=found, dims=dims), (rows.q,)), part.bounds, rows)
    return part._replace(bounds=hit[0].bounds, dims=hit[0].dims)


def sampled(field: Field, shape: Shape) -> tuple[Field, Shape]:
    """A large masked map, of each row only the ends of what it sees and the column nearest to the diagonal.

    Of fields that move along the map these are the widest and the narrowest.
    """
    assert field.mask is not None
    rows = field.mask.part
    assert isinstance(rows, Rows)
    n = rows.starts.shape[1]
    if not any(rows.k in p.dims for a in field.axes for p in a.parts):
        first = rows.starts[:1].T
        seen: NDArray[np.bool_] = np.any(rows.starts < rows.stops, axis=0, keepdims=True).T
    else:
        last = rows.starts + ((rows.stops - rows.starts - 1) // rows.step) * rows.step
        ends = np.maximum(last, rows.starts)
        near = np.clip((np.arange(n) - rows.starts) // rows.step * rows.step + rows.starts, rows.starts, ends)
        first = np.concatenate([rows.starts, near, ends]).T
        seen = np.tile((rows.starts < rows.stops).T, 3)
    # One masked column, for where one begins the steps are not even.
    first = np.pad(np.clip(first, 0, rows.columns - 1), ((0, 0), (0, 1)))
    seen = np.pad(seen, ((0, 0), (0, 1)))
    hidden = Part((~seen if rows.q < rows.k else ~seen.T)[None], (min(rows.q, rows.k), max(rows.q, rows.k)))

    def pick(p: Part) -> Part:
        for d, size in ((rows.q, n), (rows.k, rows.columns)):
            if p.span is not None and p.span.dim == d:
                p = expand_span(p, size)
        if rows.k in p.dims:
            wide = np.moveaxis(spread(p, rows.q, n).bounds if rows.q in p.dims else p.bounds, _axis(p, rows.k), -1)
            if rows.q in p.dims:
                at = p.dims.index(rows.q) + 1 - (rows.k < rows.q)
                laid = np.take_along_axis(np.moveaxis(wide, at, -2), first[(None,) * (wide.ndim - 2)], -1)
            else:
                laid = wide[..., first]
            dims = tuple(sorted({*p.dims, rows.q}))
            ends = (dims.index(rows.q) + 1, dims.index(rows.k) + 1)
            p = p._replace(bounds=np.moveaxis(laid, (-2, -1), ends), dims=dims)
        return _hidden(p, hidden)

    axes = tuple(a.with_parts([pick(p) for p in a.parts]) if a.parts else a for a in field.axes)
    return Field(axes, field.approx), tuple(seen.shape[1] if d == rows.k else s for d, s in enumerate(shape))


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
    _limit(math.prod(shape[d] for d in dims))
    laid = [m.bounds.reshape(1, *(shape[d] if d in m.dims else 1 for d in dims)) for m in (x, y)]
    return Part(laid[0] | laid[1], dims)


def _dominated(p: Part, by: Sequence[Part]) -> bool:
    """Do parts of the same layout (or the same everywhere) together depend on all that p depends on?"""
    hull = None
    for q in by:
        if q.span == p.span and q.dims in (p.dims, ()):
            b = q.bounds if q.dims else q.bounds.reshape(-1, *[1] * (p.bounds.ndim - 1))
            hull = b if hull is None else np.minimum(hull, b)
    return hull is not None and bool((hull <= p.bounds).all())


def write_box(old: Field | None, new: Field | None, shape: Shape, box: Sequence[tuple[int, Index]]) -> Field | None:
    """Overwrite the positions `index` of each `(dim, index)` in `box`; `new` is numbered like `shape`."""
    box = [(d, i) for d, i in box if len(i) != shape[d] or (np.diff(i) != 1).any()]
    if not box or (old is None and new is None):
        return new
    if any(not len(i) for _, i in box):
        return old
    some = old or new
    assert some is not None
    dims = tuple(d for d, _ in box)
    hole = np.zeros([shape[d] for d in dims], np.bool_)
    hole[np.ix_(*(i for _, i in box))] = True

    def punch(p: Part, written: Sequence[Part]) -> Part:
        inside = p
        for d, index in box:
            inside = take_part(inside, d, shape[d], index)
        if _dominated(inside, written):  # `x[box] += y`: what was there is there still
            return p
        for d in dims:
            p = spread(expand_span(p, shape[d]) if p.span is not None and p.span.dim == d else p, d, shape[d])
        sizes = [shape[d] if d in dims else 1 for d in p.dims]
        return p._replace(bounds=np.where(hole.reshape(sizes), EMPTY, p.bounds))

    def place(p: Part) -> Part:
        for d, index in box:
            solid = index[-1] - index[0] + 1 == len(index)
            if d not in p.dims and p.span is None and solid:
                p = p._replace(span=Span(d, int(index[0]), int(index[-1]) + 1))
                continue
            p = spread(expand_span(p, len(index)) if p.span is not None and p.span.dim == d else p, d, len(index))
            ax = _axis(p, d)
            size = list(p.bounds.shape)
            size[ax] = shape[d]
            grown = np.full(size, EMPTY, np.int64)
            grown[(slice(None),) * ax + (index,)] = p.bounds
            p = p._replace(bounds=grown)
        return p

    axes = []
    for i in range(len(some.axes)):
        fresh = new.axes[i].parts if new else ()
        kept = old.axes[i].with_parts([punch(p, fresh) for p in old.axes[i].parts]) if old else NOTHING
        laid = new.axes[i].with_parts([place(p) for p in new.axes[i].parts]) if new else NOTHING
        axes.append(join_axes([kept, laid]) if kept.parts and laid.parts else kept if kept.parts else laid)
    return Field(tuple(axes), (old.approx if old else frozenset()) | (new.approx if new else frozenset()))


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
