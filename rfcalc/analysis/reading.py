"""Reading numbers off a field: largest and smallest size, first position, whether centres step evenly. No torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rfcalc.analysis.field import AxisField, Field, written_out
from rfcalc.analysis.moves import take_part
from rfcalc.analysis.parts import EMPTY, Part, Shape, Span, axis_in, dense, expand_span, line_of, spread
from rfcalc.analysis.stretches import Mask, Rows, hide


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
            wide = np.moveaxis(spread(p, rows.q, n).bounds if rows.q in p.dims else p.bounds, axis_in(p, rows.k), -1)
            if rows.q in p.dims:
                at = p.dims.index(rows.q) + 1 - (rows.k < rows.q)
                laid = np.take_along_axis(np.moveaxis(wide, at, -2), first[(None,) * (wide.ndim - 2)], -1)
            else:
                laid = wide[..., first]
            dims = tuple(sorted({*p.dims, rows.q}))
            ends = (dims.index(rows.q) + 1, dims.index(rows.k) + 1)
            p = p._replace(bounds=np.moveaxis(laid, (-2, -1), ends), dims=dims)
        return hide(p, hidden)

    axes = tuple(a.with_parts([pick(p) for p in a.parts]) if a.parts else a for a in field.axes)
    return Field(axes, field.approx), tuple(seen.shape[1] if d == rows.k else s for d, s in enumerate(shape))


WRITE_OUT = 1 << 16  # maps of more positions are read part by part


class Extent(NamedTuple):
    """What a table says of one axis of one tensor."""

    r: int
    r_min: int
    r_local: int
    start: float
    padding: int
    regular: bool
    is_global: bool


NO_EXTENT = Extent(0, 0, 0, 0.0, 0, True, False)


def hulls(parts: Sequence[Part], shape: Shape) -> Any:
    """Every interval that occurs at some position, as columns `(4, m)`; large maps are reduced to distinct ones."""
    for p in parts:  # one that holds all others everywhere speaks for all
        if (
            not p.dims
            and p.span is None
            and all((p.bounds <= q.bounds.reshape(4, -1).min(1, initial=EMPTY)).all() for q in parts if q is not p)
        ):
            return p.bounds.reshape(4, 1)
    spans = [p.span for p in parts if p.span is not None]
    every = {d for p in parts for d in p.dims} | {s.dim for s in spans}
    if math.prod(shape[d] for d in every) <= WRITE_OUT:
        return dense(parts, shape)[0].reshape(4, -1)
    if spans:
        return _by_segments(parts, shape, spans[0].dim)
    groups = _sharing_dims(parts)
    if len(groups) == 1:
        return dense(parts, shape)[0].reshape(4, -1)
    out = np.full((4, 1), EMPTY, np.int64)
    for group in groups:
        columns = _distinct(dense(group, shape)[0].reshape(4, -1))
        if out.shape[1] * columns.shape[1] <= WRITE_OUT:
            out = np.minimum(out[:, :, None], columns[:, None, :]).reshape(4, -1)
        else:
            out = telling_hulls(out, columns)
    return out


def telling_hulls(a: Any, b: Any) -> Any:
    """Of the hulls of every column of a with every column of b, those that decide the extremes.

    The outermost and the innermost bounds and sizes of each, all with all; and each with the nearest of the other.
    """
    a, b = (x[:, x[2] < EMPTY // 2] if (x[2] < EMPTY // 2).any() else x for x in (a, b))

    def extreme(x: Any) -> Any:
        keys = [*x, x[2] + x[3], x[0] + x[1]]
        return x[:, sorted({int(f(k)) for k in keys for f in (np.argmin, np.argmax)})]

    ends = np.minimum(extreme(a)[:, :, None], extreme(b)[:, None, :]).reshape(4, -1)
    centre = b[2] - b[3]
    order = np.argsort(centre, kind="stable")
    at = np.searchsorted(centre[order], a[2] - a[3])
    near = [np.minimum(a, b[:, order[np.clip(at + i, 0, len(order) - 1)]]) for i in (-1, 0)]
    return np.concatenate([ends, *near], 1)


def _by_segments(parts: Sequence[Part], shape: Shape, dim: int) -> Any:
    """Cut one dim where spans begin and end; inside a segment each part exists or does not."""
    cuts = {0, shape[dim]}
    for p in parts:
        if p.span is not None and p.span.dim == dim:
            cuts |= {p.span.start, p.span.stop}
    edges = sorted(cuts)
    found = []
    for a, b in itertools.pairwise(edges):
        here = []
        for p in parts:
            if p.span is None or p.span.dim != dim:
                here.append(take_part(p, dim, shape[dim], np.arange(a, b)) if dim in p.dims else p)
            elif p.span.start <= a and b <= p.span.stop:
                inner = p._replace(span=None)
                start = p.span.start
                here.append(take_part(inner, dim, 0, np.arange(a - start, b - start)) if dim in p.dims else inner)
        piece = (*shape[:dim], b - a, *shape[dim + 1 :])
        if here:
            found.append(hulls(here, piece))
    return np.concatenate(found, 1) if found else np.full((4, 1), EMPTY, np.int64)


def _sharing_dims(parts: Sequence[Part]) -> list[list[Part]]:
    """Groups of parts such that parts of different groups run along different dims."""
    groups: list[tuple[set[int], list[Part]]] = []
    for p in parts:
        dims, members = set(p.dims), [p]
        apart = []
        for d, m in groups:
            if d & dims:
                dims, members = d | dims, m + members
            else:
                apart.append((d, m))
        groups = [*apart, (dims, members)]
    return [m for _, m in groups]


def _distinct(b: Any) -> Any:
    """The distinct columns, found by one integer key per column."""
    if b.shape[1] < 2:
        return b
    key = np.zeros(b.shape[1], np.int64)
    for row in b:
        _, code = np.unique(row, return_inverse=True)
        key = np.unique(key * (int(code.max()) + 1) + code, return_inverse=True)[1]
    return b[:, np.unique(key, return_index=True)[1]]


def beside(parts: Sequence[Part]) -> bool:
    """Are these operands of one concatenation, none overlapping another?"""
    spans = [p.span for p in parts if p.span is not None]
    if len(spans) != len(parts):
        return False
    return _in_order(spans) or _in_order(sorted(spans))


def _in_order(spans: Sequence[Span]) -> bool:
    dim, end = spans[0].dim, 0
    for d, start, stop in spans:
        if d != dim or start < end:
            return False
        end = stop
    return True


def sizes_of(b: Any) -> tuple[int, int]:
    """Largest and smallest extent of the positions that see anything."""
    if not b.size:
        return 0, 0
    size = b[2] + b[3]  # lower bound minus upper bound
    low, high = int(size.min()), int(size.max())
    if high > EMPTY // 2:
        size = size[b[2] < EMPTY // 2]
        if not size.size:
            return 0, 0
        low, high = int(size.min()), int(size.max())
    return 1 - low, 1 - high


class Facts(NamedTuple):
    """Of one part alone: largest and smallest size, the first position's bounds, and whether centres step evenly."""

    largest: int
    smallest: int
    low: int
    high: int
    regular: bool


def either(a: Facts, b: Facts) -> Facts:
    """Of two parts that lie side by side."""
    return Facts(
        max(a.largest, b.largest), min(a.smallest, b.smallest), min(a.low, b.low), max(a.high, b.high),
        a.regular and b.regular,
    )  # fmt: skip


def facts_of(b: Any) -> Facts:
    line = line_of(b)
    if line is not None:
        r = line.high - line.low + 1
        return Facts(r, r, line.low, line.high, True)
    if b.ndim == 1 and b[2] < EMPTY // 2:  # the same everywhere
        _, _, low, high = b.tolist()
        return Facts(1 - low - high, 1 - low - high, low, -high, True)
    if not b.size:  # a tensor without elements
        return Facts(0, 0, 0, -1, True)
    largest, smallest = sizes_of(b)
    low, high = b[2].reshape(-1), b[3].reshape(-1)
    at = 0 if low[0] < EMPTY // 2 else int(np.argmax(low < EMPTY // 2))
    regular = all(n < 3 or _even(b, ax) for ax, n in enumerate(b.shape[1:]))
    return Facts(largest, smallest, int(low[at]), -int(high[at]), regular)


def _even(b: Any, ax: int) -> bool:
    """Do neighbouring centres along a dim lie equally far apart? Where nothing is seen there is no centre."""
    centre = np.moveaxis(b[2] - b[3], ax, 0)
    step = centre[1:] - centre[:-1]
    if (seen := np.moveaxis(b[2], ax, 0) < EMPTY // 2).all():
        return bool(step.min() == step.max())
    step = step[seen[1:] & seen[:-1]]
    return not step.size or bool(step.min() == step.max())


def covers(parts: Sequence[Part], shape: Shape, size: int) -> bool:
    """Does every position that sees anything depend on the first and the last input?"""
    b = hulls(parts, shape)
    seen = b[0] < EMPTY // 2
    return bool(seen.any() and (b[0] <= 0)[seen].all() and (-b[1] >= size - 1)[seen].all())


def covered_by_one(a: AxisField, shape: Shape, size: int) -> bool:
    """Does some position see the first and the last input, and what lies between, without global context?"""
    parts = [p for p in a.parts if p.local]
    if not parts:
        return False
    b = hulls(parts, shape)
    return bool(((b[0] <= 0) & (-b[1] >= size - 1)).any())


def seen_indices(mask: Mask | None, where: Mapping[int, int]) -> dict[int, Any]:
    """Of a map whose mask is still to be applied: which rows and columns of it play a part at a position."""
    if mask is None or not mask.pending or not isinstance(mask.part, Rows):
        return {}
    rows = mask.part
    starts, stops, at = rows.starts, rows.stops, np.arange(rows.columns)
    if rows.q in where:
        starts, stops = (b[:, where[rows.q], None] for b in (starts, stops))
        left = at - starts
        columns = np.flatnonzero(((left >= 0) & (at < stops) & (left % rows.step == 0)).any(0))
        if rows.k in where:
            columns = columns[columns == where[rows.k]]
        return {rows.q: columns[:1] * 0 + where[rows.q], rows.k: columns}
    if rows.k in where:
        left = where[rows.k] - starts
        seen = (left >= 0) & (where[rows.k] < stops) & (left % rows.step == 0)
        return {rows.q: np.flatnonzero(seen.any(0)), rows.k: np.flatnonzero(at == where[rows.k])}
    edges = np.zeros(rows.columns + 1, np.int64)
    full = starts < stops
    np.add.at(edges, starts[full], 1)
    np.add.at(edges, stops[full], -1)
    return {rows.q: np.flatnonzero(full.any(0)), rows.k: np.flatnonzero(edges[:-1].cumsum())}


def read_out(f: Field, shape: Shape) -> tuple[Field, Shape]:
    """A masked map with its mask applied; of a large one, what decides its numbers if its fields step evenly."""
    rows = f.mask and f.mask.part
    assert isinstance(rows, Rows)
    small = rows.starts.shape[1] * rows.columns <= (WRITE_OUT if steady(f) else _WRITE_OUT_UNEVEN)
    return (written_out(f), shape) if small else sampled(f, shape)


_WRITE_OUT_UNEVEN = 1 << 21


def steady(f: Field) -> bool:
    """Along every axis, are all fields of one size and evenly apart, and stand rows and columns of one number for the
    same place? Then the column nearest to the diagonal is the nearest of all."""
    return all(_steady(a) for a in f.axes)


def _steady(a: AxisField) -> bool:
    courses = set()
    for p in a.parts:
        facts = facts_of(p.bounds)
        if not facts.regular or facts.largest != facts.smallest:
            return False
        if p.local and p.dims:
            centre = (p.bounds[2] - p.bounds[3]).reshape(-1)
            courses.add((int(centre[0]), int(centre[min(1, len(centre) - 1)])))
    return len(courses) <= 1
