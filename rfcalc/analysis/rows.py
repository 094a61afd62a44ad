"""From a trace to rows: which events make one layer, what each parameter belongs to, what a table says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, reduce
from typing import Any, NamedTuple

from torch import Tensor, nn

from rfcalc.analysis.events import Event, Frame
from rfcalc.analysis.field import AxisField, Field
from rfcalc.analysis.grids import moves
from rfcalc.analysis.parts import Part, Shape
from rfcalc.analysis.reading import (
    NO_EXTENT,
    Extent,
    Facts,
    beside,
    covers,
    either,
    facts_of,
    hulls,
    read_out,
    sizes_of,
    steady,
)
from rfcalc.analysis.report import Axis, LayerRow
from rfcalc.analysis.rules import Window

_TORCH_CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)


NO_DIMS: frozenset[int] = frozenset()
_NO_WINDOW = (None, None, None, None, None)


@lru_cache(maxsize=4096)
def _is_layer_type(kind: type) -> bool:
    """Is this a layer torch knows (or a subclass of one), so that its call is one row?"""
    homes = ("torch.nn.", "torch.ao.nn.")
    return any(c.__module__.startswith(homes) and c not in _TORCH_CONTAINERS for c in kind.__mro__)


def _combine(windows: Sequence[Window]) -> Window | None:
    """Padding done by an op of its own belongs to the window that follows it in the same layer."""
    if len(windows) < 2:
        return windows[0] if windows else None
    last = windows[-1]
    pads = [list(p) for p in last.padding]
    for w in windows[:-1]:
        if set(w.kernel) == {1} and len(w.padding) == len(pads):
            pads = [[a + c, b + d] for (a, b), (c, d) in zip(pads, w.padding, strict=True)]
    return Window(last.kernel, last.stride, tuple((a, b) for a, b in pads), last.dilation, last.groups)


@dataclass(slots=True)
class Draft:
    """The events of one row."""

    events: list[Event]
    name: str
    path: str
    op: str


def drafts_of(events: Sequence[Event]) -> list[Draft]:
    """One draft per call of a torch layer, one per op elsewhere; names made unique."""
    inner: set[Frame] = set()  # frames that called others
    for e in events:
        frame = e.frame.parent
        while frame is not None and frame not in inner:
            inner.add(frame)
            frame = frame.parent
    drafts: list[Draft] = []
    seen: dict[str, int] = {}
    begun: Frame | None = None  # the layer whose call the last draft is
    for e in events:
        frame = e.frame
        if frame is begun:
            drafts[-1].events.append(e)
            continue
        path = frame.path
        kind: type = type(frame.module)
        if _is_layer_type(kind) and frame not in inner:
            begun = frame
            op = _layer_name(kind)
            name = path or op
        else:
            begun = None
            op = e.op
            name = f"{path}.{op}" if path else op
        n = seen[name] = seen.get(name, 0) + 1
        drafts.append(Draft([e], name if n == 1 else f"{name}#{n}", path, op))
    return drafts


@lru_cache(maxsize=4096)
def _layer_name(kind: type) -> str:
    return kind.__name__.removeprefix("Parametrized")


def owners_of(
    drafts: Sequence[Draft], params: Mapping[int, tuple[str, Tensor]], used: set[int]
) -> tuple[dict[int, list[Tensor]], list[tuple[str, int]]]:  # fmt: skip
    """Which row each parameter belongs to, once; and the modules whose parameters nothing reaches."""
    first_use: dict[int, list[int]] = {}
    by_path: dict[str, int] = {}
    for i, d in enumerate(drafts):
        by_path.setdefault(d.path, i)
        for e in d.events:
            for p in e.params:
                first_use.setdefault(p, []).append(i)
    rows: dict[int, list[Tensor]] = {}
    lost: dict[str, int] = {}
    for ident, (owner, tensor) in params.items():
        uses = first_use.get(ident, [])
        at = None
        for i in uses:
            if drafts[i].path == owner:
                at = i
                break
        if at is None and ident in used:
            path: str | None = owner
            while at is None and path is not None:
                at = next((i for i in uses if drafts[i].path == path), by_path.get(path))
                path = path.rpartition(".")[0] if path else None
            at = uses[0] if at is None and uses else at
        if at is None:
            lost[owner] = lost.get(owner, 0) + tensor.numel()
        else:
            rows.setdefault(at, []).append(tensor)
    return rows, list(lost.items())


def _local_dims(p: Part) -> frozenset[int]:
    return frozenset(p.dims) if p.local else NO_DIMS


@lru_cache(maxsize=1024)
def _grid(n: int, along: frozenset[int], layout: str) -> tuple[int, ...]:
    """The map of a tensor of n dims, whose local fields run along some of them."""
    if n <= 2:
        return tuple(sorted(along)) if layout == "T" else ()
    default = tuple(range(2, n)) if n > 3 or (n == 3 and layout[:1] == "C" and len(layout) == 2) else (1,)
    if not along or along <= set(default) or (1 in along and set(default) < along):
        return default
    return tuple(sorted(along))


class _Side(NamedTuple):
    """One tensor as a table shows it."""

    grid: tuple[int, ...]
    n: tuple[int, ...]
    channels: int | None
    jumps: tuple[Fraction, ...]
    r: tuple[int, ...]
    r_min: tuple[int, ...]
    r_local: tuple[int, ...]
    start: tuple[float, ...]
    padding: tuple[int, ...]
    is_global: tuple[bool, ...]
    regular: bool


class Reader:
    """Turns drafts into rows; the numbers of a field are worked out once and shared by the rows that carry it."""

    def __init__(self, axes: Sequence[Axis], layout: str, batched: bool = True) -> None:
        self.axes, self.layout, self.batched = axes, layout, batched
        self.known_facts: dict[int, tuple[Facts, Any]] = {}
        self.known_beside: dict[int, tuple[Facts, Any]] = {}
        self.known_along: dict[int, tuple[frozenset[int], Any]] = {}
        self.known_extents: dict[Any, tuple[Extent, Any]] = {}
        self.known_sides: dict[Any, tuple[_Side, Any]] = {}

    def facts(self, p: Part) -> Facts:
        hit = self.known_facts.get(id(p.bounds))
        if hit is None:
            hit = self.known_facts[id(p.bounds)] = (facts_of(p.bounds), p.bounds)
        return hit[0]

    def facts_beside(self, a: AxisField) -> Facts:
        """Of operands that lie side by side: a dense block asks again and again, with one more each time."""

        def whole(link: AxisField) -> Facts:
            return reduce(either, [self.facts(p) for p in link.parts])

        return a.fold(self.known_beside, whole, lambda before, link: either(before, self.facts(link.parts[-1])))

    def sizes(self, parts: Sequence[Part], shape: Shape) -> tuple[int, int]:
        """Largest and smallest unclipped size over all positions that see anything."""
        if len(parts) == 1 or beside(parts):
            facts = [self.facts(p) for p in parts]
            return max(f.largest for f in facts), min(f.smallest for f in facts)
        return sizes_of(hulls(parts, shape))

    def extent(self, a: AxisField, shape: Shape, size: int) -> Extent:
        if not a.parts:
            return NO_EXTENT
        if len(a.parts) == 1 and not a.mixed:
            f = self.facts(a.parts[0])
            centre = (f.low + f.high) / 2 + 0.5
            return Extent(f.largest, f.smallest, f.largest, centre, 0 - f.low, a.aligned and f.regular, False)
        if not a.mixed and (a.before is not None or beside(a.parts)):
            r, r_min, low, high, even = self.facts_beside(a)
            return Extent(r, r_min, r, (low + high) / 2 + 0.5, 0 - low, a.aligned and even, False)
        largest, smallest = self.sizes(a.parts, shape)
        local = [p for p in a.parts if p.local]
        r_local = largest if len(local) in (0, len(a.parts)) else self.sizes(local, shape)[0]
        # What each position sees of its own may cover a small input too: that is no context.
        context = [p for p in a.parts if not moves(p)] if a.mixed else []
        is_global = bool(context) and covers(context, shape, size)
        facts = [self.facts(p) for p in local or a.parts]
        low, high = min(f.low for f in facts), max(f.high for f in facts)
        if is_global:
            largest = smallest = size
        return Extent(largest, smallest, r_local, (low + high) / 2 + 0.5, 0 - low, self.is_regular(a), is_global)

    def is_regular(self, a: AxisField) -> bool:
        """Do the centres of the local field lie equally far apart? What a mask hides has none."""
        local = [p for p in a.parts if p.local]
        return a.aligned and all(self.facts(p).regular for p in local or a.parts)

    def extents(self, f: Field, shape: Shape) -> list[Extent]:
        if f.mask is not None and f.mask.pending:
            laid, size = read_out(f, shape)
            told = size == shape or steady(f)  # of uneven fields a few positions do not tell: such a row is marked
            read = self.extents(laid, size)
            return [e._replace(regular=told and self.is_regular(a)) for e, a in zip(read, f.axes, strict=True)]
        out = []
        for axis, a in zip(self.axes, f.axes, strict=True):
            parts = a.parts
            if len(parts) > 1 and not a.mixed and parts[0].span is not None:
                out.append(self.extent(a, shape, axis.size))  # cheaper than to ask whether it is known
                continue
            # H and W of a square map share their arrays.
            key: Any
            if len(parts) == 1 and parts[0].span is None:
                key = (a.aligned, a.mixed, axis.size, id(parts[0].bounds), parts[0].local)
            else:
                key = (a.aligned, a.mixed, axis.size, shape, *[(id(p.bounds), p.local, p.span, p.dims) for p in parts])
            hit = self.known_extents.get(key)
            if hit is None:
                hit = self.known_extents[key] = (self.extent(a, shape, axis.size), a)
            out.append(hit[0])
        return out

    def side(self, shape: Shape, f: Field) -> _Side:
        key = (id(f), shape)
        hit = self.known_sides.get(key)
        if hit is None:
            grid, ext = self.grid(shape, f), self.extents(f, shape)
            n = tuple([shape[d] for d in grid]) or (1,) * len(self.axes)
            jumps = tuple([a.jump for a in f.axes])
            r, r_min, r_local, start, padding, regular, is_global = zip(*ext, strict=True)
            channels = self.channels(shape, grid)
            side = _Side(grid, n, channels, jumps, r, r_min, r_local, start, padding, is_global, all(regular))
            hit = self.known_sides[key] = (side, f)
        return hit[0]

    def grid(self, shape: Shape, f: Field) -> tuple[int, ...]:
        """Which dims of a tensor are its map: those the local fields run along, else the usual ones."""
        along = NO_DIMS.union(*[self.along(a) for a in f.axes])
        return _grid(len(shape), along, self.layout) if self.batched else tuple(sorted(along))

    def along(self, a: AxisField) -> frozenset[int]:
        """The dims that the local field of an axis runs along."""
        if len(a.parts) == 1:
            return _local_dims(a.parts[0])

        def whole(link: AxisField) -> frozenset[int]:
            return NO_DIMS.union(*map(_local_dims, link.parts))

        return a.fold(self.known_along, whole, lambda before, link: before | _local_dims(link.parts[-1]))

    def channels(self, shape: Shape, grid: tuple[int, ...]) -> int | None:
        if len(shape) < 2:
            return None
        if not self.batched:
            return next((n for d, n in enumerate(shape) if d not in grid), None)
        if 1 not in grid:
            if grid[:1] == (0,) and len(shape) > 2:  # a sequence first, then the batch
                return shape[-1] if len(shape) - 1 not in grid else None
            return shape[1]
        return shape[-1] if len(shape) - 1 not in grid else None

    def row(self, d: Draft, tensors: Sequence[Tensor]) -> LayerRow:
        events = d.events
        first, last = events[0], events[-1]
        windows, macs = first.windows, first.macs
        if first is not last:
            windows, macs = [w for e in events for w in e.windows], sum([e.macs for e in events])
        window = _combine(windows) if windows else None
        shape_in, field_in = first.ins[0]
        after = self.side(last.shape, last.field)
        before = after if field_in is last.field and shape_in == last.shape else self.side(shape_in, field_in)
        r_in = before.r
        if len(first.ins) > 1:
            known = self.known_sides
            sides = [hit[0] if (hit := known.get((id(f), s))) else self.side(s, f) for s, f in first.ins]
            r_in = tuple(map(max, *[side.r for side in sides]))
        moves = window is not None or (
            before is not after and (before.n != after.n or r_in != after.r or before.jumps != after.jumps)
        )
        params = trainable = 0
        for t in tensors:
            n = t.numel()
            params += n
            if t.requires_grad:
                trainable += n
        # Positional and past __new__: a model has thousands of rows, and each name costs as much as the number.
        return LayerRow._make((
            d.name, d.path, d.op, last.number, shape_in, last.shape, after.grid, *(window or _NO_WINDOW),
            before.n, after.n, before.channels, after.channels, before.jumps, after.jumps,
            r_in, after.r, after.r_min, after.r_local, after.start, after.padding, after.is_global,
            params, trainable, macs, last.nbytes, not last.field.approx, after.regular, moves,
        ))  # fmt: skip
