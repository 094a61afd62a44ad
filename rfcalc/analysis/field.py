"""A tensor's dependence on every input axis, and how operands join. Pure integer arithmetic, no torch.

For one input axis (the H of an image, say) a tensor carries an `AxisField`: the hull of a few `Part`s; a `Field` holds
one per axis. Every operation here is linear in the min-algebra of `parts.py`, so it may be applied part by part."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rfcalc.analysis.grids import grid_only, is_grid
from rfcalc.analysis.memo import LINES, MEMO
from rfcalc.analysis.moves import broadcast_part, reduce_part, renumber_part, take_part
from rfcalc.analysis.parts import (
    EMPTY,
    Line,
    Part,
    Shape,
    TooLargeError,
    axis_in,
    expand_span,
    laid_along,
    line_of,
    merge,
    minimum,
    ramp,
    spread,
    where_part,
)
from rfcalc.analysis.stretches import LARGE_MASK, Mask, Rows, flags_of, hide, moved_mask, stretch_hulls

T = TypeVar("T")
_ONE = Fraction(1)


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
            return axis_field(parts, self.jump, self.aligned, self.mixed, self.turn)
        return axis_field(parts, jump, self.aligned, self.mixed, math.lcm(self.turn, jump.numerator))

    def as_mixed(self) -> AxisField:
        return self if self.mixed else AxisField(self.parts, self.jump, self.aligned, True, turn=self.turn)

    def runs_along(self, dim: int) -> bool:
        """Is `dim` the grid of this axis (so that a stride there changes the jump)?"""
        return any(p.local and dim in p.dims and is_grid(p, dim) for p in self.parts)

    def varies(self) -> bool:
        """Whether the local field differs between positions along some dim."""
        if len(self.parts) == 1:
            p = self.parts[0]
            return p.local and p.bounds.size > p.bounds.shape[0]
        return any(p.local and p.bounds.size > p.bounds.shape[0] for p in self.parts)


def axis_field(parts: Sequence[Part], jump: Fraction, aligned: bool, mixed: bool, turn: int) -> AxisField:
    if len(parts) == 1:
        return AxisField((parts[0],), jump, aligned, mixed or not parts[0].local, None, turn)
    merged = merge(parts)
    return AxisField(merged, jump, aligned, mixed or not all(p.local for p in merged), None, turn)


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


def identity(n: int, dim: int) -> AxisField:
    """The input itself: position i depends on pixel i.

    >>> identity(3, 0).parts[0].bounds[0].tolist()
    [0, 1, 2]
    """
    b = ramp(n)
    LINES[id(b)] = (Line(1, 0, 0, n), b)
    return AxisField((Part(b, (dim,)),))


NOTHING = AxisField(())


def axes_agree(a: AxisField, b: AxisField) -> bool:
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
        p, q = grid_only(p), grid_only(q)
    if not p.dims or p.dims != q.dims or p.bounds.shape != q.bounds.shape or p.bounds is q.bounds:
        return True
    line, other = line_of(p.bounds), line_of(q.bounds)
    if line is not None and other is not None:
        steps_differ = line.step != other.step and p.bounds.shape[1] > 1  # one position takes no step
        return not steps_differ and line.low + line.high == other.low + other.high
    key = ("centres", id(p.bounds), id(q.bounds))
    hit = MEMO.get(key)
    if hit is None:
        x, y = p.bounds, q.bounds
        differ = x[2] - x[3] != y[2] - y[3]
        # where one of them sees nothing there is nothing to disagree about
        same = not differ.any() or not (differ & (x[2] < EMPTY // 2) & (y[2] < EMPTY // 2)).any()
        hit = MEMO[key] = (same, x, y)
    return bool(hit[0])


def _join_two(a: AxisField, b: AxisField) -> AxisField | None:
    """The usual join, of two maps of one layout: a residual with its shortcut. None where it is not that."""
    p, q = a.parts[0], b.parts[0]
    if p.dims != q.dims or p.bounds.shape != q.bounds.shape or p.span or q.span or not (p.local and q.local and p.dims):
        return None
    aligned = a.aligned and b.aligned and axes_agree(a, b)
    turn = a.turn if a.turn == b.turn else math.lcm(a.turn, b.turn)
    return AxisField((Part(minimum(p.bounds, q.bounds), p.dims),), a.jump, aligned, a.mixed or b.mixed, None, turn)


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
            aligned = aligned and (a is lead or axes_agree(lead, a))
    return axis_field(parts, lead.jump, aligned, mixed, math.lcm(*[a.turn for a in present]))


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
        hull = minimum(rest[0].bounds, last.bounds)
        return AxisField((Part(hull, last.dims, last.local),), link.jump, link.aligned, link.mixed, None, link.turn)

    if not gone.isdisjoint(a.parts[-1].dims):  # only what lies along them is reduced part by part
        return whole(a)
    known: dict[int, tuple[AxisField, AxisField]] = MEMO.setdefault(("reduced", gone), ({},))[0]
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


def blank(field: Field, flags: Part, shape: Shape, inside: bool) -> Field:
    """Remove the dependence where `flags` is true (`inside`) or where it is false."""
    bare = field.unmasked()
    try:
        return bare.each(lambda a: a.with_parts([where_part(p, flags, shape, not inside) for p in a.parts]))
    except TooLargeError:  # what is masked stays in the hull, and the report says so
        return Field(bare.axes, bare.approx | {LARGE_MASK})


def written_out(field: Field) -> Field:
    """The same field with its mask as flags, and nothing where they are true."""
    mask = field.mask
    if mask is None or isinstance(mask.part, Part):
        return field
    try:
        flags = flags_of(mask.part)
        if not mask.pending:
            return Field(field.axes, field.approx, Mask(flags, mask.zero))
        axes = tuple(a.with_parts([hide(p, flags) for p in a.parts]) if a.parts else a for a in field.axes)
        return Field(axes, field.approx, Mask(flags, mask.zero))
    except TooLargeError:
        return Field(field.axes, field.approx | {LARGE_MASK})


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
        return reduce_part(hide(part, flags_of(rows)), frozenset((rows.k,)))
    if rows.k in part.dims:
        return stretch_hulls(part, rows)
    blind: NDArray[np.bool_] = np.all(rows.starts >= rows.stops, axis=0)
    if not blind.any():
        return part
    wide = spread(part, rows.q, n)
    return wide._replace(
        bounds=np.where(laid_along(blind, wide.bounds.ndim, axis_in(wide, rows.q)), EMPTY, wide.bounds)
    )
