"""What torch's ops do to constants too large to be built (`pattern.py`): fills, triangles, comparisons, views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rfcalc.analysis.pattern import (
    LOST,
    Diagonals,
    Lost,
    Pattern,
    Runs,
    UnfollowedError,
    as_diagonals,
    as_runs,
    computed,
    lengths,
    merged,
    offsets,
    shortened,
    written_out_diagonals,
)

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
    except UnfollowedError:
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
        return Diagonals(size[0], size[1], (offsets(size[0], size[1]) == 0).to(out.dtype))
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


def _pointwise(op: str, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Pattern:
    rows, columns = out.shape[-2:]
    operands = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor | Diagonals | Runs)]
    along = [as_diagonals(a, rows, columns) for a in operands]
    if any(isinstance(a, Diagonals) for a in operands) and all(a is not None for a in along):
        return Diagonals(rows, columns, computed(func, args, kwargs, along))
    plain = [a for a in operands if isinstance(a, Tensor)]
    if len(plain) == 2 == len(operands) and (op in _COMPARED or op == "sub"):
        found = _outer(op, func, args, kwargs, plain, rows, columns)
        if found is not None:
            return found
    runs = [as_runs(a, rows, columns) for a in operands]
    if any(r is None for r in runs):
        return LOST
    return merged(func, args, kwargs, runs, rows, columns)  # type: ignore[arg-type]


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
        offset = offsets(rows, columns)
        i = (-offset).clamp(min=0)
        pair = column[i], row[i + offset]
        return Diagonals(rows, columns, computed(func, args, kwargs, pair if first == 0 else pair[::-1]))
    if op not in _COMPARED or bool((row.diff() < 0).any()):
        return None
    row, column = row.contiguous(), column.contiguous()
    cuts = torch.stack([torch.searchsorted(row, column), torch.searchsorted(row, column, right=True)])
    zero, signs = torch.zeros(3), torch.tensor([-1.0, 0.0, 1.0])
    values = func(zero, signs) if first == 0 else func(signs, zero)
    return Runs(rows, columns, cuts, values[:, None].expand(3, rows))


# --------------------------------------------------------------------------------------------------------- movements


def _triangle(op: str, a: Pattern, diagonal: int = 0) -> Pattern:
    """The other triangle is 0."""
    assert not isinstance(a, Lost)
    offset = offsets(a.rows, a.columns)
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
    return _constant(out, a.item()) if a.numel() == 1 else as_runs(a, rows, columns) or LOST


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
    line = written_out_diagonals(piece)
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
        r = as_runs(a, *size)
        if r is None:
            return LOST
        runs.append(r)
    if across:
        cuts, start = [], 0
        for r in runs:
            cuts += [torch.full((1, rows), start), r.cuts + start] if start else [r.cuts]
            start += r.columns
        return shortened(Runs(rows, columns, torch.cat(cuts), torch.cat([r.values for r in runs])))
    most = max(len(r.cuts) for r in runs)
    cuts = [torch.cat([r.cuts, torch.full((most - len(r.cuts), r.rows), columns)]) for r in runs]
    values = [torch.cat([r.values, r.values[-1:].expand(most - len(r.cuts), -1)]) for r in runs]
    return Runs(rows, columns, torch.cat(cuts, 1), torch.cat(values, 1))


def _reduced(op: str, a: Pattern) -> Tensor:
    assert not isinstance(a, Lost)
    values = a.along if isinstance(a, Diagonals) else a.values[lengths(a) > 0]
    return values.all() if op == "all" else values.any()
