"""Along which dim of a tensor an input axis runs, and how unclipped bounds go on beyond the ends of a map. No torch."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np

from rfcalc.analysis.parts import EMPTY, Bounds, Index, Part, axis_in, line_of, settle


def main_dim(part: Part) -> int:
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


def is_grid(part: Part, dim: int) -> bool:
    """Is `dim` the grid, or one along which the part only exists or not (padding beyond a kernel leaves such)?"""
    if len(part.dims) > 1:
        return main_dim(part) == dim
    return moves_along(part.bounds, 1) is not False or _one_turn(part.bounds)


def moves_along(b: Bounds, ax: int) -> bool | None:
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


def course(b: Bounds, ax: int, jump: Fraction, turn: int) -> tuple[int, int]:
    """How the unclipped bounds go on beyond the ends of an array axis: after so many positions they repeat, so many
    pixels further on. Along their own grid that is one turn of the phases, backwards where the map is flipped; along
    another dim, where they vary only in seeing something or nothing, they stay as they are."""
    if line_of(b) is not None:
        return jump.denominator, jump.numerator
    moves = moves_along(b, ax)
    if moves is None:
        moves = not any(moves_along(b, i) for i in range(1, b.ndim) if i != ax)
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


def narrowed(part: Part, before: Part, dim: int) -> Part:
    """Drop a dim of which one position is left, if it was not the grid: nothing shall take it for one later."""
    if len(part.dims) < 2 or part.bounds.dtype == np.bool_ or main_dim(before) == dim:
        return part
    dims = tuple(d for d in part.dims if d != dim)
    return part._replace(bounds=part.bounds.squeeze(axis_in(part, dim)), dims=dims)


def settled(part: Part, before: Part, dim: int) -> Part:
    """Settle one dim, unless it is the grid: a small up-sampled map may be one turn of phases that all see the same."""
    settled = settle(part, (dim,))
    return part if settled is not part and is_grid(before, dim) else settled


def extend(b: Bounds, ax: int, left: int, right: int, jump: Fraction, turn: int) -> Bounds:
    """Continue the grid beyond both ends: nothing in the exact rows, the same phases on in the unclipped ones."""
    n = b.shape[ax]
    outer, low, high = _continuation(n, left, right, *course(b, ax, jump, turn))
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


def grid_only(part: Part) -> Part:
    """The unclipped bounds without the dims along which they do not vary, where they see anything."""
    b, dims = part.bounds, part.dims
    for dim in part.dims:
        ax = dims.index(dim) + 1
        if len(dims) > 1 and moves_along(b, ax) is False:
            b, dims = b.min(ax), tuple(d for d in dims if d != dim)
    return Part(b, dims, part.local)


def moves(part: Part) -> bool:
    """Do the unclipped bounds differ between positions?"""
    return any(moves_along(part.bounds, ax) for ax in range(1, part.bounds.ndim))
