"""Constants too large to be built: a causal mask over 100,000 tokens is its structure, and never a matrix.

Torch itself does the arithmetic, on what stands for the matrix: one number per diagonal (`Diagonals`: what is made of
differences of positions, of triangles and of fills), or a few runs of equal numbers per row (`Runs`). The matrix is
the last two dims of the tensor; dims before them repeat it, except that diagonals may differ between them. Whatever
else happens to a large constant, its numbers are `LOST`, and what then rests on them is approximate and named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from rfcalc.analysis.parts import Part, Shape
from rfcalc.analysis.stretches import STRETCHES, Rows, rows_of


@dataclass(frozen=True, slots=True)
class Diagonals:
    """Element (i, j) is `along[..., j - i + rows - 1]`."""

    rows: int
    columns: int
    along: Tensor


@dataclass(frozen=True, slots=True)
class Runs:
    """Row i is `values[p, i]` from column `cuts[p - 1, i]` on, up to `cuts[p, i]`."""

    rows: int
    columns: int
    cuts: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class Lost:
    """A constant whose numbers nobody knows any more."""


class UnfollowedError(Exception):
    """Torch refuses an op on what stands for the matrix."""


LOST = Lost()
Pattern = Diagonals | Runs | Lost


def offsets(rows: int, columns: int) -> Tensor:
    return torch.arange(1 - rows, columns)


def computed(func: Any, args: Any, kwargs: dict[str, Any], stand_ins: Sequence[Any]) -> Tensor:
    """The op itself, on what stands for its operands; a copy, for it may write into them."""
    it = iter(stand_ins)

    def put(a: Any) -> Any:
        return next(it).clone() if isinstance(a, Tensor | Diagonals | Runs) else a

    try:
        result: Tensor = func(*[put(a) for a in args], **{k: put(v) for k, v in kwargs.items()})
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        raise UnfollowedError from error
    return result


def as_diagonals(a: Any, rows: int, columns: int) -> Tensor | None:
    if isinstance(a, Diagonals):
        return a.along if (a.rows, a.columns) == (rows, columns) else None
    if isinstance(a, Tensor) and (a.dim() == 0 or (a.shape[-1] == 1 and (a.dim() == 1 or a.shape[-2] == 1))):
        return a if a.dim() < 2 else a[..., 0]
    return None


def as_runs(a: Any, rows: int, columns: int) -> Runs | None:
    """Anything of one matrix, as runs of equal numbers; None where a row has too many."""
    none = torch.zeros((0, rows), dtype=torch.long)
    if isinstance(a, Runs):
        return a if (a.rows, a.columns) == (rows, columns) else None
    if isinstance(a, Diagonals):
        line = _one_line(a.along)
        if line is None or (a.rows, a.columns) != (rows, columns):
            return None
        starts = _changes(line)
        if len(starts) > 2 * STRETCHES:
            return None
        cuts = starts[:, None] + torch.arange(1 - rows, 1)
        values = torch.cat([line[:1], line[starts]])[:, None].expand(-1, rows)
        return Runs(rows, columns, cuts.clamp(0, columns), values)
    while a.dim() > 2 and a.shape[0] == 1:
        a = a[0]
    if a.dim() > 2:
        a = _one_matrix(a)
        if a is None:
            return None
    down, across = (1, 1, *a.shape)[-2:]
    if across == 1 and down in (1, rows):
        return Runs(rows, columns, none, a.reshape(1, -1).expand(1, rows))
    if across != columns:
        return None
    if down == 1:
        line = a.reshape(-1)
        starts = _changes(line)
        if len(starts) > 2 * STRETCHES:
            return None
        values = torch.cat([line[:1], line[starts]])
        return Runs(rows, columns, starts[:, None].expand(-1, rows), values[:, None].expand(-1, rows))
    differ = a[:, 1:] != a[:, :-1]
    most = int(differ.sum(1).max())
    if down != rows or most > 2 * STRETCHES:
        return None
    row, at = differ.nonzero(as_tuple=True)
    count = torch.bincount(row, minlength=rows)
    rank = torch.arange(len(row)) - torch.repeat_interleave(count.cumsum(0) - count, count)
    cuts = torch.full((most, rows), columns)
    cuts[rank, row] = at + 1
    first = torch.cat([torch.zeros((1, rows), dtype=torch.long), cuts]).clamp(max=columns - 1)
    return Runs(rows, columns, cuts, a.gather(1, first.T).T)


def _changes(line: Tensor) -> Tensor:
    """Where a number differs from the one before."""
    return (line[1:] != line[:-1]).nonzero(as_tuple=True)[0] + 1


def _one_line(along: Tensor) -> Tensor | None:
    flat = along.reshape(-1, along.shape[-1])
    return flat[0] if bool((flat == flat[:1]).all()) else None


def _one_matrix(a: Tensor) -> Tensor | None:
    flat = a.reshape(-1, *a.shape[-2:])
    return flat[0] if all(bool((m == flat[0]).all()) for m in flat[1:]) else None


def merged(func: Any, args: Any, kwargs: dict[str, Any], runs: Sequence[Runs], rows: int, columns: int) -> Pattern:
    """Between any two cuts of any operand all of them are constant."""
    cuts = torch.cat([r.cuts for r in runs]).sort(0).values
    edges = torch.cat([torch.zeros((1, rows), dtype=torch.long), cuts])
    values = []
    for r in runs:
        piece = torch.zeros_like(edges)
        for cut in r.cuts:
            piece += cut <= edges
        values.append(r.values.gather(0, piece))
    return shortened(Runs(rows, columns, cuts, computed(func, args, kwargs, values).expand(len(edges), rows)))


def shortened(r: Runs) -> Pattern:
    """Without runs that are empty, or that go on with the number before."""
    ends = torch.cat([r.cuts, torch.full((1, r.rows), r.columns)])
    begins = torch.cat([torch.zeros((1, r.rows), dtype=torch.long), r.cuts])
    kept = torch.zeros(begins.shape, dtype=torch.bool)
    current, begun = r.values[0], torch.zeros(r.rows, dtype=torch.bool)
    for p in range(len(begins)):
        kept[p] = (ends[p] > begins[p]) & (~begun | (r.values[p] != current))
        current = torch.where(kept[p], r.values[p], current)
        begun |= kept[p]
    most = max(int(kept.sum(0).max()), 1)
    if most > 2 * STRETCHES:
        return LOST
    order = (~kept).to(torch.uint8).sort(dim=0, stable=True).indices[:most]
    begins = torch.where(kept, begins, r.columns).gather(0, order)
    return Runs(r.rows, r.columns, begins[1:], r.values.gather(0, order))


def lengths(a: Runs) -> Tensor:
    ends = torch.cat([a.cuts, torch.full((1, a.rows), a.columns)])
    return ends - torch.cat([torch.zeros((1, a.rows), dtype=torch.long), a.cuts])


def written_out_diagonals(a: Pattern) -> Tensor:
    """The matrix itself: of a piece that is small."""
    assert not isinstance(a, Lost)
    at = torch.arange(a.columns)
    if isinstance(a, Diagonals):
        return a.along[..., at[None] - torch.arange(a.rows)[:, None] + a.rows - 1]
    piece = (a.cuts[:, :, None] <= at).sum(0)
    return a.values.T.gather(1, piece)


class Corner(NamedTuple):
    """Which rectangle of a matrix a view of it is."""

    top: int
    left: int
    rows: int
    columns: int


def overwritten(a: Pattern, new: Pattern | Tensor, at: Corner) -> Pattern:
    """The matrix with a rectangle of it replaced."""
    if isinstance(a, Lost) or isinstance(new, Lost):
        return LOST
    top, left = at.top, at.left
    piece = new.reshape(at.rows, at.columns) if isinstance(new, Tensor) else new
    x, y = as_runs(a, a.rows, a.columns), as_runs(piece, at.rows, at.columns)
    if x is None or y is None:
        return LOST
    below = a.rows - top - y.rows

    def framed(r: Runs, cuts: list[Tensor], values: list[Tensor]) -> Runs:
        """Rows above and below hold nothing of it."""
        edges, numbers = torch.cat(cuts), torch.cat(values)
        return Runs(a.rows, a.columns, pad(edges, (top, below)), pad(numbers, (top, below)))

    edge = torch.zeros((1, y.rows), dtype=torch.long)
    stop = edge + left + y.columns
    wide = framed(y, [edge + left, y.cuts + left, stop], [y.values[:1], y.values, y.values[:1]])
    no, yes = torch.zeros((1, y.rows), dtype=torch.bool), torch.ones((1, y.rows), dtype=torch.bool)
    inside = framed(y, [edge + left, stop], [no, yes, no])
    return merged(torch.where, (inside, wide, x), {}, [inside, wide, x], a.rows, a.columns)


# ------------------------------------------------------------------------------------------------------ as a mask


def masked(a: Pattern | Tensor, test: Callable[[Tensor], Tensor], shape: Shape) -> Part | Rows | Lost | None:
    """Where the test holds, on a tensor of that shape; None where it holds nowhere."""
    n = len(shape)
    q, k = n - 2, n - 1
    if isinstance(a, Lost):
        return LOST
    if isinstance(a, Tensor):
        return _masked_tensor(test(a.cpu()), shape)
    if isinstance(a, Runs):
        hidden = Runs(a.rows, a.columns, a.cuts, test(a.values))
        return _masked_runs(hidden, q, k)
    line = _one_line(test(a.along))
    if line is None:
        return LOST
    runs = as_runs(Diagonals(a.rows, a.columns, line), a.rows, a.columns)
    if runs is not None:
        return _masked_runs(runs, q, k)
    return _every_few(line, a.rows, a.columns, q, k)


def _masked_tensor(flags: Tensor, shape: Shape) -> Part | Rows | Lost | None:
    array = np.asarray(flags.numpy(), dtype=np.bool_)
    if not array.any():
        return None
    n = len(shape)
    array = array.reshape((1,) * (n - array.ndim) + array.shape)
    for d in range(n - 2):
        first = array.take([0], d)
        if array.shape[d] > 1 and all(np.array_equal(first, array.take([i], d)) for i in range(1, array.shape[d])):
            array = first
    dims = tuple(i for i, size in enumerate(array.shape) if size > 1)
    if n > 1 and dims and min(dims) >= n - 2 and (len(dims) == 2 or shape[-1] * shape[-2] > LARGE):
        rows = _masked_rows(array.reshape(array.shape[-2:]), shape[-2], shape[-1], n - 2, n - 1)
        if rows is not None:
            return rows
    return Part(array.squeeze(tuple(i for i, size in enumerate(array.shape) if size == 1))[None], dims)


def _masked_rows(hidden: NDArray[np.bool_], rows: int, columns: int, q: int, k: int) -> Rows | None:
    """A matrix of flags, or one row or column that stands for all."""
    found = rows_of(hidden, q, k)
    if found is None or hidden.shape == (rows, columns):
        return found
    starts, stops = found.starts, found.stops
    if hidden.shape[1] != columns:
        stops = stops * columns
    shape = (len(starts), rows)
    return Rows(np.broadcast_to(starts, shape), np.broadcast_to(stops, shape), q, k, columns)


def _masked_runs(hidden: Runs, q: int, k: int) -> Rows | Lost | None:
    r = shortened(hidden)
    if not isinstance(r, Runs):
        return LOST
    begins = torch.cat([torch.zeros((1, r.rows), dtype=torch.long), r.cuts])
    seen = ~r.values & (lengths(r) > 0)
    if not bool((r.values & (lengths(r) > 0)).any()):
        return None
    kept = seen.any(1)
    kept[0] = True
    starts, ends = torch.where(seen, begins, 0), torch.where(seen, begins + lengths(r), 0)
    return Rows(starts[kept].numpy(), ends[kept].numpy(), q, k, r.columns)


def _every_few(hidden: Tensor, rows: int, columns: int, q: int, k: int) -> Part | Rows | Lost:
    """Diagonals at equal distances are left: dilated attention."""
    seen = (~hidden).nonzero(as_tuple=True)[0].numpy()
    steps = np.diff(seen)
    if (steps == steps[0]).all():
        step = int(steps[0])
        first, last = (int(at) + np.arange(1 - rows, 1) for at in (seen[0], seen[-1]))
        starts = np.where(first < 0, first % step, first)
        return Rows(starts[None], np.minimum(last + 1, columns)[None], q, k, columns, step)
    if rows * columns > LARGE:
        return LOST
    return Part(written_out_diagonals(Diagonals(rows, columns, hidden)).numpy()[None], (q, k))


LARGE = 1 << 22  # elements of a constant that is not built
