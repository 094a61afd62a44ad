"""Constants too large to be built: a causal mask over 100,000 tokens is its structure, and never a matrix.

Torch itself does the arithmetic, on what stands for the matrix: one number per diagonal (`Diagonals`: what is made of
differences of positions, of triangles and of fills), or a few runs of equal numbers per row (`Runs`). The matrix is
the last two dims of the tensor; dims before them repeat it, except that diagonals may differ between them. Whatever
else happens to a large constant, its numbers are `LOST`, and what then rests on them is approximate and named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from .field import STRETCHES, Part, Rows, Shape, rows_of


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


class _RefusedError(Exception):
    """Torch refuses an op on what stands for the matrix."""


LOST = Lost()
Pattern = Diagonals | Runs | Lost
_FILLS = {"ones": 1, "zeros": 0, "new_ones": 1, "new_zeros": 0, "ones_like": 1, "zeros_like": 0, "zero": 0}
_FILLED = {"full": 1, "new_full": 2, "full_like": 1, "fill": 1}  # where the number stands among the arguments
FACTORIES = frozenset((*_FILLS, *_FILLED, "empty", "new_empty", "empty_like", "eye"))
_COMPARED = frozenset("eq ne lt le gt ge".split())
_KEPT = frozenset("view reshape _unsafe_view unsqueeze squeeze expand expand_as broadcast_to repeat alias detach "
                  "contiguous lift_fresh view_as reshape_as flatten".split())  # fmt: skip
_BY_ELEMENT = frozenset("_to_copy clone to copy where masked_fill".split())  # torch does not tag them so
_SETTINGS = frozenset("device layout pin_memory memory_format non_blocking".split())


def followed(
    op: str, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor, pointwise: bool
) -> Pattern | Tensor:  # fmt: skip
    """What an op makes of constants, where one of them or the result is large. `args` hold tensors and patterns."""
    rest = {k: v for k, v in kwargs.items() if k not in _SETTINGS}
    try:
        return _followed(op, func, args, rest, out, pointwise)
    except _RefusedError:
        return LOST


def _followed(
    op: str, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor, pointwise: bool
) -> Pattern | Tensor:  # fmt: skip
    if not out.numel():
        return torch.zeros(out.shape, dtype=out.dtype)
    if out.dim() < 2 and op not in ("all", "any", "select"):
        return LOST
    if op in _FILLS or op in _FILLED:
        value = _FILLS[op] if op in _FILLS else _number(args[_FILLED[op]])
        return LOST if value is None else _constant(out, value)
    if op == "eye":
        size = out.shape
        return Diagonals(size[0], size[1], (_offsets(size[0], size[1]) == 0).to(out.dtype))
    patterns = [a for a in _flat(args) if isinstance(a, Diagonals | Runs | Lost)]
    if op == "copy" and args[0] is LOST:
        args = [_constant(out, 0), *args[1:]]
        patterns = patterns[1:]
    if LOST in patterns:
        return LOST
    if not patterns and op not in _KEPT and not (op in _BY_ELEMENT or pointwise):
        return LOST
    if op in ("tril", "triu"):
        return _triangle(op, patterns[0], *args[1:])
    if op in _KEPT:
        return _kept(patterns[0], out) if patterns else _repeated(args[0], out)
    if op in ("transpose", "t", "mT", "swapaxes", "swapdims", "permute", "numpy_T"):
        return _turned(op, patterns[0], args, out)
    if op in ("slice", "narrow", "select"):
        return _cropped(op, patterns[0], args, out)
    if op == "cat":
        return _beside(args[0], args[1] if len(args) > 1 else 0, out)
    if op in ("all", "any") and len(args) == 1:
        return _reduced(op, patterns[0])
    if op in _BY_ELEMENT or pointwise:
        return _pointwise(op, func, args, kwargs, out)
    return LOST


def _flat(args: Any) -> list[Any]:
    return [b for a in args for b in (_flat(a) if isinstance(a, list | tuple) else [a])]


def _number(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else None
    return value if isinstance(value, bool | int | float) else None


def _constant(out: Tensor, value: Any) -> Diagonals:
    rows, columns = out.shape[-2:]
    return Diagonals(rows, columns, torch.full((max(rows + columns - 1, 0),), value, dtype=out.dtype))


def _offsets(rows: int, columns: int) -> Tensor:
    return torch.arange(1 - rows, columns)


# ------------------------------------------------------------------------------------------------- element by element


def _pointwise(op: str, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Pattern:
    rows, columns = out.shape[-2:]
    operands = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor | Diagonals | Runs)]
    along = [_as_diagonals(a, rows, columns) for a in operands]
    if any(isinstance(a, Diagonals) for a in operands) and all(a is not None for a in along):
        return Diagonals(rows, columns, _computed(func, args, kwargs, along))
    plain = [a for a in operands if isinstance(a, Tensor)]
    if len(plain) == 2 == len(operands) and (op in _COMPARED or op == "sub"):
        found = _outer(op, func, args, kwargs, plain, rows, columns)
        if found is not None:
            return found
    runs = [_as_runs(a, rows, columns) for a in operands]
    if any(r is None for r in runs):
        return LOST
    return _merged(func, args, kwargs, runs, rows, columns)  # type: ignore[arg-type]


def _computed(func: Any, args: Any, kwargs: dict[str, Any], stand_ins: Sequence[Any]) -> Tensor:
    """The op itself, on what stands for its operands; a copy, for it may write into them."""
    it = iter(stand_ins)

    def put(a: Any) -> Any:
        return next(it).clone() if isinstance(a, Tensor | Diagonals | Runs) else a

    try:
        result: Tensor = func(*[put(a) for a in args], **{k: put(v) for k, v in kwargs.items()})
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        raise _RefusedError from error
    return result


def _as_diagonals(a: Any, rows: int, columns: int) -> Tensor | None:
    if isinstance(a, Diagonals):
        return a.along if (a.rows, a.columns) == (rows, columns) else None
    if isinstance(a, Tensor) and (a.dim() == 0 or (a.shape[-1] == 1 and (a.dim() == 1 or a.shape[-2] == 1))):
        return a if a.dim() < 2 else a[..., 0]
    return None


def _outer(
    op: str, func: Any, args: Any, kwargs: dict[str, Any], operands: Sequence[Tensor], rows: int, columns: int
) -> Pattern | None:  # fmt: skip
    """A column of positions with a row of positions."""
    down, across = (tuple(a.shape[-2:]) for a in operands)
    lines = [a.reshape(-1) for a in operands]
    if down == (rows, 1) and across in ((1, columns), (columns,)) and lines[0].numel() == rows:
        column, row, first = lines[0], lines[1], 0
    elif across == (rows, 1) and down in ((1, columns), (columns,)) and lines[1].numel() == rows:
        column, row, first = lines[1], lines[0], 1
    else:
        return None
    if row.numel() != columns:
        return None
    steps = torch.cat([column.diff(), row.diff()])
    if not steps.is_floating_point() and len(steps) and bool((steps == steps[0]).all()):
        # The difference is the same along a diagonal.
        offset = _offsets(rows, columns)
        i = (-offset).clamp(min=0)
        pair = column[i], row[i + offset]
        return Diagonals(rows, columns, _computed(func, args, kwargs, pair if first == 0 else pair[::-1]))
    if op not in _COMPARED or bool((row.diff() < 0).any()):
        return None
    row, column = row.contiguous(), column.contiguous()
    cuts = torch.stack([torch.searchsorted(row, column), torch.searchsorted(row, column, right=True)])
    zero, signs = torch.zeros(3), torch.tensor([-1.0, 0.0, 1.0])
    values = func(zero, signs) if first == 0 else func(signs, zero)
    return Runs(rows, columns, cuts, values[:, None].expand(3, rows))


def _as_runs(a: Any, rows: int, columns: int) -> Runs | None:
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


def _merged(func: Any, args: Any, kwargs: dict[str, Any], runs: Sequence[Runs], rows: int, columns: int) -> Pattern:
    """Between any two cuts of any operand all of them are constant."""
    cuts = torch.cat([r.cuts for r in runs]).sort(0).values
    edges = torch.cat([torch.zeros((1, rows), dtype=torch.long), cuts])
    values = []
    for r in runs:
        piece = torch.zeros_like(edges)
        for cut in r.cuts:
            piece += cut <= edges
        values.append(r.values.gather(0, piece))
    return _shortened(Runs(rows, columns, cuts, _computed(func, args, kwargs, values).expand(len(edges), rows)))


def _shortened(r: Runs) -> Pattern:
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


# --------------------------------------------------------------------------------------------------------- movements


def _triangle(op: str, a: Pattern, diagonal: int = 0) -> Pattern:
    """The other triangle is 0."""
    assert not isinstance(a, Lost)
    offset = _offsets(a.rows, a.columns)
    kept = Diagonals(a.rows, a.columns, offset <= diagonal if op == "tril" else offset >= diagonal)
    some = a.along if isinstance(a, Diagonals) else a.values
    zero = torch.zeros((), dtype=some.dtype)
    shape = torch.empty((a.rows, a.columns), device="meta")
    return _pointwise("where", torch.where, (kept, a, zero), {}, shape)


def _kept(a: Pattern, out: Tensor) -> Pattern:
    """Dims before the matrix come and go."""
    if isinstance(a, Lost) or tuple(out.shape[-2:]) != (a.rows, a.columns):
        return LOST
    if isinstance(a, Diagonals) and a.along.dim() > 1:
        lead = tuple(n for n in a.along.shape[:-1] if n > 1)
        if tuple(n for n in out.shape[:-2] if n > 1) != lead:
            return LOST
        return Diagonals(a.rows, a.columns, a.along.reshape(*out.shape[:-2], -1))
    return a


def _repeated(a: Tensor, out: Tensor) -> Pattern:
    """A row, a column or a number, written out as a matrix."""
    rows, columns = out.shape[-2:]
    return _constant(out, a.item()) if a.numel() == 1 else _as_runs(a, rows, columns) or LOST


def _turned(op: str, a: Pattern, args: Sequence[Any], out: Tensor) -> Pattern:
    n = out.dim()
    order = list(range(n))
    if op == "permute":
        order = [d % n for d in args[1]]
    elif op == "numpy_T":
        order.reverse()
    else:
        x, y = (args[1] % n, args[2] % n) if len(args) > 2 else (n - 2, n - 1)
        order[x], order[y] = order[y], order[x]
    matrix, lead = order[-2:], order[:-2]
    plain = not isinstance(a, Diagonals) or a.along.dim() == 1
    if lead != sorted(lead) and not plain:
        return LOST
    if matrix == [n - 2, n - 1]:
        return a
    if matrix == [n - 1, n - 2] and isinstance(a, Diagonals):
        return Diagonals(a.columns, a.rows, a.along.flip(-1))
    return LOST


def _cropped(op: str, a: Pattern, args: Sequence[Any], out: Tensor) -> Pattern | Tensor:
    """A rectangle of the matrix, or one of its repetitions, or one row or column."""
    assert not isinstance(a, Lost)
    ndim = out.dim() + (op == "select")
    dim = args[1] % ndim if len(args) > 1 else 0
    lead = ndim - 2
    if dim < lead:
        return a if not isinstance(a, Diagonals) or a.along.dim() == 1 else LOST
    size = a.rows if dim == lead else a.columns
    start = (args[2] if len(args) > 2 else 0) or 0
    start = min(start + size if start < 0 else start, size)
    count = 1 if op == "select" else out.shape[dim]
    if op == "slice" and len(args) > 4 and args[4] != 1:
        return LOST
    rows, columns = (count, a.columns) if dim == lead else (a.rows, count)
    if isinstance(a, Diagonals):
        first = a.rows - start - rows if dim == lead else start
        piece: Pattern = Diagonals(rows, columns, a.along[..., first : first + max(rows + columns - 1, 0)])
    elif dim == lead:
        piece = Runs(rows, columns, a.cuts[:, start : start + count], a.values[:, start : start + count])
    else:
        piece = Runs(rows, columns, (a.cuts - start).clamp(0, columns), a.values)
    if op != "select":
        return piece
    line = _written(piece)
    return line.reshape(-1).expand(out.shape)


def _beside(items: Sequence[Any], dim: int, out: Tensor) -> Pattern:
    """Matrices beside or below each other."""
    n, (rows, columns) = out.dim(), out.shape[-2:]
    across = dim % n == n - 1
    runs = []
    for a in items:
        if isinstance(a, Lost) or dim % n < n - 2:
            return LOST
        size = (a.rows, a.columns) if isinstance(a, Diagonals | Runs) else a.shape[-2:]
        if 0 in size:
            continue
        r = _as_runs(a, *size)
        if r is None:
            return LOST
        runs.append(r)
    if across:
        cuts, start = [], 0
        for r in runs:
            cuts += [torch.full((1, rows), start), r.cuts + start] if start else [r.cuts]
            start += r.columns
        return _shortened(Runs(rows, columns, torch.cat(cuts), torch.cat([r.values for r in runs])))
    most = max(len(r.cuts) for r in runs)
    cuts = [torch.cat([r.cuts, torch.full((most - len(r.cuts), r.rows), columns)]) for r in runs]
    values = [torch.cat([r.values, r.values[-1:].expand(most - len(r.cuts), -1)]) for r in runs]
    return Runs(rows, columns, torch.cat(cuts, 1), torch.cat(values, 1))


def _reduced(op: str, a: Pattern) -> Tensor:
    assert not isinstance(a, Lost)
    values = a.along if isinstance(a, Diagonals) else a.values[_lengths(a) > 0]
    return values.all() if op == "all" else values.any()


def _lengths(a: Runs) -> Tensor:
    ends = torch.cat([a.cuts, torch.full((1, a.rows), a.columns)])
    return ends - torch.cat([torch.zeros((1, a.rows), dtype=torch.long), a.cuts])


def _written(a: Pattern) -> Tensor:
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
    x, y = _as_runs(a, a.rows, a.columns), _as_runs(piece, at.rows, at.columns)
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
    return _merged(torch.where, (inside, wide, x), {}, [inside, wide, x], a.rows, a.columns)


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
    runs = _as_runs(Diagonals(a.rows, a.columns, line), a.rows, a.columns)
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
    r = _shortened(hidden)
    if not isinstance(r, Runs):
        return LOST
    begins = torch.cat([torch.zeros((1, r.rows), dtype=torch.long), r.cuts])
    seen = ~r.values & (_lengths(r) > 0)
    if not bool((r.values & (_lengths(r) > 0)).any()):
        return None
    kept = seen.any(1)
    kept[0] = True
    starts, ends = torch.where(seen, begins, 0), torch.where(seen, begins + _lengths(r), 0)
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
    return Part(_written(Diagonals(rows, columns, hidden)).numpy()[None], (q, k))


LARGE = 1 << 22  # elements of a constant that is not built
