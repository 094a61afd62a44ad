"""The report: what a trace means, as frozen values. `analyze(model, input_shape)` is the one way to make one.

Conventions (N, J, R, global pooling, unclipped and exact fields) are those of the README; sources: Dang Ha The Hien
2017 for the forward recurrences; Araujo, Norris, Sim, Distill 2019 for regions, effective stride, padding.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import itertools
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, reduce
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from .errors import ForwardError, InputError, RfcalcError
from .field import (
    EMPTY,
    AxisField,
    Field,
    Mask,
    Part,
    Rows,
    Shape,
    Span,
    dense,
    forget,
    line_of,
    moves,
    sampled,
    take_part,
    written_out,
)
from .inputs import READS_INDICES, Axis, Inputs, checked_model
from .rules import Window
from .shortcut import LEVEL_2
from .trace import Event, Frame, NeedsValuesError, Trace, Tree, UnseenOpError, is_our_fault, run_forward, survey

SCHEMA = "rfcalc.report/1"
_WRITE_OUT = 1 << 16  # maps of more positions are read part by part
_TORCH_CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True, slots=True)
class Region:
    """The input interval one position sees along one axis, first and last index; None: it sees nothing."""

    axis: Axis
    exact: tuple[int, int] | None
    unclipped: tuple[int, int] | None


class LayerRow(NamedTuple):
    """One layer: a call of a `torch.nn` module, or one functional op. Per-axis tuples follow `Report.axes`.

    `n_in`, `n_out`, `kernel` ... have one entry per spatial dim of the map. `r_*` are in input pixels, `start` is
    the centre of the first position's field with pixel centres at +0.5, `padding` is (before, after).
    """

    name: str
    path: str
    op: str
    call: int
    shape_in: Shape
    shape_out: Shape
    grid: tuple[int, ...]
    kernel: tuple[int, ...] | None
    stride: tuple[int, ...] | None
    padding: tuple[tuple[int, int], ...] | None
    dilation: tuple[int, ...] | None
    groups: int | None
    n_in: tuple[int, ...]
    n_out: tuple[int, ...]
    ch_in: int | None
    ch_out: int | None
    j_in: tuple[Fraction, ...]
    j_out: tuple[Fraction, ...]
    r_in: tuple[int, ...]
    r_out: tuple[int, ...]
    r_min: tuple[int, ...]
    r_local: tuple[int, ...]
    start: tuple[float, ...]
    effective_padding: tuple[int, ...]
    is_global: tuple[bool, ...]
    params: int
    trainable_params: int
    macs: int
    activation_bytes: int
    exact: bool
    aligned: bool
    moves_grid: bool


@dataclass(frozen=True)
class Report:
    """What rfcalc knows of one model on one input.

    `rf_output` counts global pooling and flattening as the READMEs do; `rf_spatial` is the local field of the last
    spatial map before them. `coverage` is the fraction of the input that the output depends on, per axis;
    `output_global` tells where attention or a statistic lets every position of the output depend on all of it.
    """

    name: str
    input_shapes: tuple[Shape, ...]
    axes: tuple[Axis, ...]
    rows: tuple[LayerRow, ...]
    params: int
    trainable_params: int
    macs: int
    peak_activation_bytes: int
    output_shapes: tuple[Shape, ...]
    rf_output: tuple[int, ...]
    rf_spatial: tuple[int, ...]
    coverage: tuple[float, ...]
    approximate_ops: tuple[str, ...]
    unreached: tuple[tuple[str, int], ...]
    notes: tuple[str, ...]
    output_global: tuple[bool, ...] = ()
    fields: Mapping[str, Field] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    fed: Mapping[str, tuple[Shape, Field]] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def region(self, layer: str | LayerRow, position: Sequence[int]) -> tuple[Region, ...]:
        """Which input one position of a layer's output sees, per axis, merged over channels.

        Args:
            layer: a row or its name; `position`: one index per entry of the row's `n_out`.

        Raises:
            InputError: an unknown layer or a position outside its map; or a report read back from JSON.

        >>> import torch
        >>> report = analyze(torch.nn.Conv2d(1, 1, 3, padding=1), (1, 8, 8))
        >>> report.region("Conv2d", (0, 4))[0].exact, report.region("Conv2d", (0, 4))[0].unclipped
        ((0, 1), (-1, 1))
        """
        row = layer if isinstance(layer, LayerRow) else self.row(layer)
        if row.name not in self.fields:
            raise InputError(f"report of {self.name}: read back from JSON it holds no regions; analyze the model again")
        at = tuple(int(i) for i in position)
        if len(at) != len(row.n_out) or any(not -n <= i < n for i, n in zip(at, row.n_out, strict=True)):
            size = "x".join(map(str, row.n_out))
            raise InputError(f"{row.name}: position {','.join(map(str, at))} is outside its map of {size}")
        where = dict(zip(row.grid, (i % n for i, n in zip(at, row.n_out, strict=True)), strict=False))
        field = self.fields[row.name]
        seen = _seen_indices(field.mask, where)
        return tuple(_region(axis, a, seen, where) for axis, a in zip(self.axes, field.axes, strict=True))

    def fed_by_all(self, row: LayerRow) -> tuple[bool, ...] | None:
        """Per axis: does the local field of some position that a row reads really cover the input, first to last?

        A width alone does not tell: it may hang over the border. None for a report read back from JSON.
        """
        if row.name not in self.fed:
            return None
        shape, field = self.fed[row.name]
        return tuple(_covered_by_one(a, shape, axis.size) for a, axis in zip(field.axes, self.axes, strict=True))

    def without_channels(self) -> tuple[LayerRow, str] | None:
        """The first convolution, where it reads an input as one without a batch, and what was likely meant.

        `28x28` for a net of 2-D convolutions: its rows are taken for channels, and only its columns are measured.
        """
        row = next((r for r in self.rows if r.kernel and (r.params or "conv" in r.op.lower())), None)
        n = len(row.kernel) if row is not None and row.kernel else 0
        if row is None or len(row.shape_in) != n + 1:
            return None
        for i, shape in enumerate(self.input_shapes):
            if len(shape) == n and (n == 1 or sum(axis.input == i for axis in self.axes) < n):
                given, likely = "x".join(map(str, shape)), "x".join(map(str, (row.shape_in[0], *shape)))
                why = f"one dim too few for {row.name}, a {n}-D convolution"
                return row, f"the input {given} has {why}: {likely} is likely meant"
        return None

    def row(self, name: str) -> LayerRow:
        """The row of that name, or the last one of that module path. Raises InputError with the nearest names."""
        found = next((r for r in self.rows if r.name == name), None)
        found = found or next((r for r in reversed(self.rows) if r.path == name), None)
        if found is None:
            import difflib

            names = [r.name for r in self.rows]
            near = difflib.get_close_matches(name, names, 3) or names[:3]
            raise InputError(f"layer {name!r}: not in {self.name}; nearest: {', '.join(near)}")
        return found

    def to_dict(self, rows: Sequence[LayerRow] | None = None) -> dict[str, Any]:
        """The JSON form (schema `rfcalc.report/1`), of all rows or of a selection."""
        return {
            "schema": SCHEMA,
            "design": self.name,
            "input_shape": _plain(self.input_shapes[0] if len(self.input_shapes) == 1 else self.input_shapes),
            "axes": [dataclasses.asdict(a) for a in self.axes],
            "rows": [_row_dict(r) for r in (self.rows if rows is None else rows)],
            "totals": {
                "params": self.params,
                "trainable_params": self.trainable_params,
                "macs": self.macs,
                "peak_activation_bytes": self.peak_activation_bytes,
            },
            "output_shapes": _plain(self.output_shapes),
            "receptive_field": {
                "output": list(self.rf_output),
                "spatial": list(self.rf_spatial),
                "global": list(self.output_global),
            },
            "coverage": list(self.coverage),
            "approximate_ops": list(self.approximate_ops),
            "unreached": [{"path": p, "params": n} for p, n in self.unreached],
            "notes": list(self.notes),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Report:
        """Read `to_dict()` back. Raises InputError when the schema is another one."""
        if data.get("schema") != SCHEMA:
            raise InputError(f"report: schema is {data.get('schema')!r}, expected {SCHEMA!r}; write it again")
        shapes = data["input_shape"]
        single = all(isinstance(n, int) for n in shapes)
        totals = data["totals"]
        return Report(
            name=data["design"],
            input_shapes=(tuple(shapes),) if single else tuple(tuple(s) for s in shapes),
            axes=tuple(Axis(**a) for a in data["axes"]),
            rows=tuple(_row_from(r) for r in data["rows"]),
            params=totals["params"],
            trainable_params=totals["trainable_params"],
            macs=totals["macs"],
            peak_activation_bytes=totals["peak_activation_bytes"],
            output_shapes=tuple(tuple(s) for s in data["output_shapes"]),
            rf_output=tuple(data["receptive_field"]["output"]),
            rf_spatial=tuple(data["receptive_field"]["spatial"]),
            coverage=tuple(data["coverage"]),
            approximate_ops=tuple(data["approximate_ops"]),
            unreached=tuple((u["path"], u["params"]) for u in data["unreached"]),
            notes=tuple(data["notes"]),
            output_global=tuple(data["receptive_field"].get("global", ())),  # a later addition to the schema
        )


def _plain(v: Any) -> Any:
    return [_plain(i) for i in v] if isinstance(v, list | tuple) else v


def _number(j: Fraction) -> int | str:
    return int(j) if j.denominator == 1 else str(j)


def _row_dict(r: LayerRow) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, v in zip(r._fields, r, strict=True):
        plain: Any = v
        if name in ("j_in", "j_out"):
            plain = [_number(j) for j in plain]
        elif name == "padding" and v is not None:
            plain = [a if a == b else [a, b] for a, b in plain]
        out["global" if name == "is_global" else name] = _plain(plain)
    return out


def _row_from(d: Mapping[str, Any]) -> LayerRow:
    v = dict(d)
    v["is_global"] = v.pop("global")
    if v["padding"] is not None:
        v["padding"] = tuple((p, p) if isinstance(p, int) else tuple(p) for p in v["padding"])
    for key in ("j_in", "j_out"):
        v[key] = tuple(Fraction(j) for j in v[key])
    fixed: dict[str, Any] = {k: tuple(x) if isinstance(x, list) else x for k, x in v.items()}
    return LayerRow(**fixed)


# ---------------------------------------------------------------------------------------------- numbers of a field


class _Extent(NamedTuple):
    """What a table says of one axis of one tensor."""

    r: int
    r_min: int
    r_local: int
    start: float
    padding: int
    regular: bool
    is_global: bool


_NO_DIMS: frozenset[int] = frozenset()
_NO_WINDOW = (None, None, None, None, None)
_NO_EXTENT = _Extent(0, 0, 0, 0.0, 0, True, False)


def _hulls(parts: Sequence[Part], shape: Shape) -> Any:
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
    if math.prod(shape[d] for d in every) <= _WRITE_OUT:
        return dense(parts, shape)[0].reshape(4, -1)
    if spans:
        return _by_segments(parts, shape, spans[0].dim)
    groups = _sharing_dims(parts)
    if len(groups) == 1:
        return dense(parts, shape)[0].reshape(4, -1)
    out = np.full((4, 1), EMPTY, np.int64)
    for group in groups:
        columns = _distinct(dense(group, shape)[0].reshape(4, -1))
        if out.shape[1] * columns.shape[1] <= _WRITE_OUT:
            out = np.minimum(out[:, :, None], columns[:, None, :]).reshape(4, -1)
        else:
            out = _telling_hulls(out, columns)
    return out


def _telling_hulls(a: Any, b: Any) -> Any:
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
            found.append(_hulls(here, piece))
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


def _beside(parts: Sequence[Part]) -> bool:
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


def _sizes(b: Any) -> tuple[int, int]:
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


class _Facts(NamedTuple):
    """Of one part alone: largest and smallest size, the first position's bounds, and whether centres step evenly."""

    largest: int
    smallest: int
    low: int
    high: int
    regular: bool


def _either(a: _Facts, b: _Facts) -> _Facts:
    """Of two parts that lie side by side."""
    return _Facts(
        max(a.largest, b.largest), min(a.smallest, b.smallest), min(a.low, b.low), max(a.high, b.high),
        a.regular and b.regular,
    )  # fmt: skip


def _facts(b: Any) -> _Facts:
    line = line_of(b)
    if line is not None:
        r = line.high - line.low + 1
        return _Facts(r, r, line.low, line.high, True)
    if b.ndim == 1 and b[2] < EMPTY // 2:  # the same everywhere
        _, _, low, high = b.tolist()
        return _Facts(1 - low - high, 1 - low - high, low, -high, True)
    if not b.size:  # a tensor without elements
        return _Facts(0, 0, 0, -1, True)
    largest, smallest = _sizes(b)
    low, high = b[2].reshape(-1), b[3].reshape(-1)
    at = 0 if low[0] < EMPTY // 2 else int(np.argmax(low < EMPTY // 2))
    regular = all(n < 3 or _even(b, ax) for ax, n in enumerate(b.shape[1:]))
    return _Facts(largest, smallest, int(low[at]), -int(high[at]), regular)


def _even(b: Any, ax: int) -> bool:
    """Do neighbouring centres along a dim lie equally far apart? Where nothing is seen there is no centre."""
    centre = np.moveaxis(b[2] - b[3], ax, 0)
    step = centre[1:] - centre[:-1]
    if (seen := np.moveaxis(b[2], ax, 0) < EMPTY // 2).all():
        return bool(step.min() == step.max())
    step = step[seen[1:] & seen[:-1]]
    return not step.size or bool(step.min() == step.max())


def _covers(parts: Sequence[Part], shape: Shape, size: int) -> bool:
    """Does every position that sees anything depend on the first and the last input?"""
    b = _hulls(parts, shape)
    seen = b[0] < EMPTY // 2
    return bool(seen.any() and (b[0] <= 0)[seen].all() and (-b[1] >= size - 1)[seen].all())


def _covered_by_one(a: AxisField, shape: Shape, size: int) -> bool:
    """Does some position see the first and the last input, and what lies between, without global context?"""
    parts = [p for p in a.parts if p.local]
    if not parts:
        return False
    b = _hulls(parts, shape)
    return bool(((b[0] <= 0) & (-b[1] >= size - 1)).any())


def _seen_indices(mask: Mask | None, where: Mapping[int, int]) -> dict[int, Any]:
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


def _region(axis: Axis, a: AxisField, seen: Mapping[int, Any], where: Mapping[int, int]) -> Region:
    low = np.full(4, EMPTY, np.int64)
    for p in a.parts if all(len(i) for i in seen.values()) else ():
        if p.span is not None and p.span.dim in where and not p.span.start <= where[p.span.dim] < p.span.stop:
            continue
        offset = p.span.start if p.span is not None and p.span.dim in p.dims else 0
        pick: tuple[Any, ...] = tuple(
            where[d] - (offset if p.span is not None and d == p.span.dim else 0) if d in where else slice(None)
            for d in p.dims
        )
        if seen:
            index = [seen.get(d, np.arange(n)[i]) for d, n, i in zip(p.dims, p.bounds.shape[1:], pick, strict=True)]
            pick = np.ix_(*(np.atleast_1d(i) for i in index))
        low = np.minimum(low, p.bounds[(slice(None), *pick)].reshape(4, -1).min(1, initial=EMPTY))
    exact = (int(low[0]), -int(low[1])) if low[0] <= -low[1] and low[0] < EMPTY // 2 else None
    free = (int(low[2]), -int(low[3])) if low[2] < EMPTY // 2 else None
    return Region(axis, exact, free)


# ------------------------------------------------------------------------------------------------------- rows


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
class _Draft:
    """The events of one row."""

    events: list[Event]
    name: str
    path: str
    op: str


def _drafts(events: Sequence[Event]) -> list[_Draft]:
    """One draft per call of a torch layer, one per op elsewhere; names made unique."""
    inner: set[Frame] = set()  # frames that called others
    for e in events:
        frame = e.frame.parent
        while frame is not None and frame not in inner:
            inner.add(frame)
            frame = frame.parent
    drafts: list[_Draft] = []
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
        drafts.append(_Draft([e], name if n == 1 else f"{name}#{n}", path, op))
    return drafts


@lru_cache(maxsize=4096)
def _layer_name(kind: type) -> str:
    return kind.__name__.removeprefix("Parametrized")


def _owned(
    drafts: Sequence[_Draft], params: Mapping[int, tuple[str, Tensor]], used: set[int]
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
    return frozenset(p.dims) if p.local else _NO_DIMS


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


def _read_out(f: Field, shape: Shape) -> tuple[Field, Shape]:
    """A masked map with its mask applied; of a large one, what decides its numbers."""
    rows = f.mask and f.mask.part
    assert isinstance(rows, Rows)
    small = rows.starts.shape[1] * rows.columns <= _WRITE_OUT
    return (written_out(f), shape) if small else sampled(f, shape)


class _Reader:
    """Turns drafts into rows; the numbers of a field are worked out once and shared by the rows that carry it."""

    def __init__(self, axes: Sequence[Axis], layout: str, batched: bool = True) -> None:
        self.axes, self.layout, self.batched = axes, layout, batched
        self.known_facts: dict[int, tuple[_Facts, Any]] = {}
        self.known_beside: dict[int, tuple[_Facts, Any]] = {}
        self.known_along: dict[int, tuple[frozenset[int], Any]] = {}
        self.known_extents: dict[Any, tuple[_Extent, Any]] = {}
        self.known_sides: dict[Any, tuple[_Side, Any]] = {}

    def facts(self, p: Part) -> _Facts:
        hit = self.known_facts.get(id(p.bounds))
        if hit is None:
            hit = self.known_facts[id(p.bounds)] = (_facts(p.bounds), p.bounds)
        return hit[0]

    def facts_beside(self, a: AxisField) -> _Facts:
        """Of operands that lie side by side: a dense block asks again and again, with one more each time."""

        def whole(link: AxisField) -> _Facts:
            return reduce(_either, [self.facts(p) for p in link.parts])

        return a.fold(self.known_beside, whole, lambda before, link: _either(before, self.facts(link.parts[-1])))

    def sizes(self, parts: Sequence[Part], shape: Shape) -> tuple[int, int]:
        """Largest and smallest unclipped size over all positions that see anything."""
        if len(parts) == 1 or _beside(parts):
            facts = [self.facts(p) for p in parts]
            return max(f.largest for f in facts), min(f.smallest for f in facts)
        return _sizes(_hulls(parts, shape))

    def extent(self, a: AxisField, shape: Shape, size: int) -> _Extent:
        if not a.parts:
            return _NO_EXTENT
        if len(a.parts) == 1 and not a.mixed:
            f = self.facts(a.parts[0])
            centre = (f.low + f.high) / 2 + 0.5
            return _Extent(f.largest, f.smallest, f.largest, centre, 0 - f.low, a.aligned and f.regular, False)
        if not a.mixed and (a.before is not None or _beside(a.parts)):
            r, r_min, low, high, even = self.facts_beside(a)
            return _Extent(r, r_min, r, (low + high) / 2 + 0.5, 0 - low, a.aligned and even, False)
        largest, smallest = self.sizes(a.parts, shape)
        local = [p for p in a.parts if p.local]
        r_local = largest if len(local) in (0, len(a.parts)) else self.sizes(local, shape)[0]
        # What each position sees of its own may cover a small input too: that is no context.
        context = [p for p in a.parts if not moves(p)] if a.mixed else []
        is_global = bool(context) and _covers(context, shape, size)
        facts = [self.facts(p) for p in local or a.parts]
        low, high = min(f.low for f in facts), max(f.high for f in facts)
        if is_global:
            largest = smallest = size
        return _Extent(largest, smallest, r_local, (low + high) / 2 + 0.5, 0 - low, self.is_regular(a), is_global)

    def is_regular(self, a: AxisField) -> bool:
        """Do the centres of the local field lie equally far apart? What a mask hides has none."""
        local = [p for p in a.parts if p.local]
        return a.aligned and all(self.facts(p).regular for p in local or a.parts)

    def extents(self, f: Field, shape: Shape) -> list[_Extent]:
        if f.mask is not None and f.mask.pending:
            read = self.extents(*_read_out(f, shape))
            return [e._replace(regular=self.is_regular(a)) for e, a in zip(read, f.axes, strict=True)]
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
        along = _NO_DIMS.union(*[self.along(a) for a in f.axes])
        return _grid(len(shape), along, self.layout) if self.batched else tuple(sorted(along))

    def along(self, a: AxisField) -> frozenset[int]:
        """The dims that the local field of an axis runs along."""
        if len(a.parts) == 1:
            return _local_dims(a.parts[0])

        def whole(link: AxisField) -> frozenset[int]:
            return _NO_DIMS.union(*map(_local_dims, link.parts))

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

    def row(self, d: _Draft, tensors: Sequence[Tensor]) -> LayerRow:
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


# ---------------------------------------------------------------------------------------------------- analyze


def analyze(
    model: nn.Module,
    input_shape: Any,
    *,
    level: int = 2,
    layout: str | None = None,
    name: str = "",
    rebuild: Callable[[], nn.Module] | None = None,
) -> Report:
    """Run the forward once without storage and report every layer's geometry, parameters and work.

    Args:
        model: any module, on any device (also meta); it is left exactly as it was.
        input_shape: `(C, H, W)` without the batch; a tuple or list of shapes for several inputs; a dict of shapes for
            keyword inputs. A leaf may also be a tensor (its shape, with batch, and dtype are used), and shapes may sit
            in nested lists, tuples, dicts and dataclasses. Tensors of 0 or 1 dims (a step, lengths, labels) go in as
            they are, and so do plain numbers, flags, text and None beside other inputs.
        level: 2 (fast) or 1 (every op through torch's dispatcher); the reports are identical.
        layout: one letter per dim of an input without the batch, C for channels: `TC` for tokens of features. N marks
            the batch where it is not the first dim: `TNC` for a module that takes the sequence first.
        name: what the report calls the model.
        rebuild: makes the same model with real weights; used when the forward needs values.

    Raises:
        InputError: a malformed shape or layout, or no module. ForwardError: the model's forward raised; the message
        says where.

    >>> import torch
    >>> report = analyze(torch.nn.Conv2d(1, 8, 3), (1, 28, 28))
    >>> report.rows[0].n_out, report.rows[0].r_out, report.params
    ((26, 26), (3, 3), 80)
    """
    model = checked_model(model)
    with _ONE_AT_A_TIME:
        # A walk makes many small objects and no cycles; the collector would look through all of torch time and again.
        collecting = gc.isenabled()
        gc.disable()
        try:
            return _analyze(model, Inputs.of(input_shape, layout), level, name or type(model).__name__, rebuild)
        finally:
            forget()
            if collecting:
                gc.enable()


_ONE_AT_A_TIME = RLock()  # a run wraps the calls of the model's modules, and threads may share them


def _analyze(
    model: nn.Module, spec: Inputs, level: int, name: str, rebuild: Callable[[], nn.Module] | None
) -> Report:  # fmt: skip
    notes: list[str] = []
    tree = survey(model)
    if any(isinstance(t, UninitializedTensorMixin) for _, t in tree.params.values()):
        tree = survey(_materialised(model, spec))
        notes.append("lazy modules were initialised in a copy")
    shortcuts = LEVEL_2 if level == 2 else None
    dtype = next((t.dtype for _, t in tree.params.values() if t.is_floating_point()), torch.float32)
    try:
        trace = _run(tree, spec, shortcuts, dtype, "meta")
    except Exception as error:
        again = _second_try(error, tree)
        if again is None:
            raise _forward_error(error, name, _lacks_channels(error, tree, spec)) from error
        if again == "integers":
            notes.append(READS_INDICES)
            dtype = torch.int64
        else:
            notes.append(_VALUES_NOTE.format(again))
        trace, tree, more = _with_values(tree, spec, shortcuts, dtype, rebuild, name)
        notes += more
    return _report(spec, trace, tree.params, name, notes)


_VALUES_NOTE = "run on CPU tensors, because the forward needs values ({})"


def _with_values(
    tree: Tree, spec: Inputs, shortcuts: Any, dtype: Any, rebuild: Any, name: str
) -> tuple[Trace, Tree, list[str]]:  # fmt: skip
    """A second run: with integers if that is what was missing, else (or then) on CPU tensors."""
    notes: list[str] = []
    try:
        if dtype == torch.int64:
            try:
                return _run(tree, spec, shortcuts, dtype, "meta"), tree, notes
            except Exception as error:
                again = _second_try(error, tree)
                if again in (None, "integers"):
                    raise
                notes.append(_VALUES_NOTE.format(again))
        real = survey(_with_weights(tree.model, rebuild))
        return _run(real, spec, None, dtype, "cpu"), real, notes
    except Exception as error:
        raise _forward_error(error, name) from error


def _second_try(error: BaseException, tree: Tree) -> str | None:
    """What a failed run without storage lacks: 'integers', a reason to run with values, or None (the user's error)."""
    text = str(error)
    if isinstance(error, NeedsValuesError):
        return text
    if NeedsValuesError.__name__ in text:  # quoted by the script interpreter
        return "scripted code asks for numbers"
    if "argument #1 'indices'" in text or ("Long, Int" in text and "embedding" in text) or "used as indices" in text:
        return "integers"
    lowered = text.lower()
    if isinstance(error, NotImplementedError) or "meta tensor" in lowered or "device meta" in lowered:
        return text.splitlines()[0][:100] if text else type(error).__name__
    if "'meta' backend" in text or "data is not allocated" in lowered or "Cannot copy out of meta" in text:
        return text.splitlines()[0][:100]
    if any("quantized" in type(m).__module__ for m in tree.modules):
        return "quantized modules"
    return None


def _run(tree: Tree, spec: Inputs, shortcuts: Any, dtype: Any, device: str) -> Trace:
    try:
        return run_forward(tree, *spec.tensors(dtype, device), shortcuts)
    except Exception as error:
        # The script interpreter turns any error into a RuntimeError that quotes it.
        if shortcuts is None or UnseenOpError.__name__ not in f"{type(error).__name__}: {error}":
            raise
        return run_forward(tree, *spec.tensors(dtype, device), None)


def _materialised(model: nn.Module, spec: Inputs) -> nn.Module:
    """A copy of a model whose lazy modules have seen one input."""
    twin = _storageless_copy(model)
    args, kwargs, _ = spec.tensors(torch.float32, "meta")
    with torch.no_grad():
        try:
            twin.eval()(*args, **kwargs)
        except Exception as error:
            raise _forward_error(error, type(model).__name__) from error
    return twin


def _storageless_copy(model: nn.Module) -> nn.Module:
    """A deep copy whose parameters and buffers are on the meta device; those not yet shaped stay so."""
    twins: dict[int, Any] = {}
    for t in [*model.parameters(), *model.buffers()]:
        if isinstance(t, UninitializedTensorMixin):
            twins[id(t)] = type(t)(device="meta", dtype=t.dtype)
        else:
            empty = torch.empty_like(t, device="meta")
            twins[id(t)] = nn.Parameter(empty, t.requires_grad) if isinstance(t, nn.Parameter) else empty
    return copy.deepcopy(model, twins)


def _with_weights(model: nn.Module, rebuild: Callable[[], nn.Module] | None) -> nn.Module:
    """The model with storage: itself, made again, or a copy with its modules' own initialisation."""
    tensors = [*model.parameters(), *model.buffers()]
    if not any(t.is_meta for t in tensors):
        return model
    if rebuild is not None:
        return rebuild()
    twin = copy.deepcopy(model).to_empty(device="cpu")
    with torch.no_grad():
        for t in [*twin.parameters(), *twin.buffers()]:
            t.zero_()
    for m in twin.modules():
        reset = getattr(m, "reset_parameters", None)
        if callable(reset):
            reset()
    return twin


def _lacks_channels(error: BaseException, tree: Tree, spec: Inputs) -> str:
    """What to say of a convolution that failed because the input has one dim too few."""
    at = getattr(error, "failed_at", "")
    failed: Any = next((m for m in tree.modules if tree.paths[id(m)] == at), None)
    if not isinstance(failed, nn.modules.conv._ConvNd) or len(spec.shapes) > 1:
        return ""
    shape = spec.shapes[0]
    if len(shape) != len(failed.kernel_size):
        return ""
    given, likely = "x".join(map(str, shape)), "x".join(map(str, (failed.in_channels, *shape)))
    return f"; the input {given} has one dim too few, {likely} is likely meant"


def _forward_error(error: BaseException, name: str, hint: str = "") -> RfcalcError:
    """One line: the layer, the place in the user's source, the reason in torch's words, and what may mend it.

    Raises the error itself where it is a fault of ours: the design is not to blame.
    """
    if isinstance(error, RfcalcError):
        return error
    if is_our_fault(error):
        raise error
    path, cls = getattr(error, "failed_at", ""), getattr(error, "failed_module", "")
    here = Path(__file__).parent
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        file = Path(frame.filename)
        if here not in file.parents and "torch" not in file.parts and "_lib" not in frame.filename:
            place = f" at {_short(file)}:{frame.lineno}"
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, TypeError | AttributeError | KeyError | IndexError | ZeroDivisionError | NameError):
        reason = f"{type(error).__name__}: {reason}"
    path = path if len(path) <= 100 else f"...{path[-97:]}"
    layer = f"{path} ({cls})" if path else cls or name
    return ForwardError(f"{name}: {layer}{place}: forward failed: {reason[:400]}{hint}")


def _short(file: Path) -> str:
    try:
        return str(file.relative_to(Path.cwd()))
    except ValueError:
        return str(file)


def _report(spec: Inputs, trace: Trace, params: Any, name: str, notes: list[str]) -> Report:
    drafts = _drafts(trace.events)
    owned, unreached = _owned(drafts, params, trace.used)
    reader = _Reader(spec.axes, spec.layout, spec.batched)
    rows = tuple(reader.row(d, owned.get(i, ())) for i, d in enumerate(drafts))
    fields = {d.name: d.events[-1].field for d in drafts}
    fed = {d.name: d.events[0].ins[0] for d in drafts}
    out_shape, out_field = next(((s, f) for s, f in trace.outputs if f is not None), ((), None))
    if out_field is None:
        notes.append("the output does not depend on the input")
    out = reader.extents(out_field, out_shape) if out_field else [_NO_EXTENT] * len(spec.axes)
    approx = sorted({op for s, f in trace.outputs if f is not None for op in f.approx} | _approximate(trace))
    for op, why in trace.failed.items():
        notes.append(f"the rule of {op} did not apply ({why}); its output is taken to depend on everything")
    late = _sequence_first(drafts, reader, spec)
    if late is not None:
        notes.append(late)
    tensors = [t for _, t in params.values()]
    report = Report(
        name=name,
        input_shapes=spec.shapes,
        axes=spec.axes,
        rows=rows,
        params=sum(t.numel() for t in tensors),
        trainable_params=sum(t.numel() for t in tensors if t.requires_grad),
        macs=trace.macs,
        peak_activation_bytes=trace.peak,
        output_shapes=tuple(s for s, _ in trace.outputs),
        rf_output=tuple(e.r for e in out),
        rf_spatial=_spatial(trace, reader, spec.axes),
        coverage=_coverage(out_field, out_shape, spec.axes),
        approximate_ops=tuple(approx),
        unreached=tuple(unreached),
        notes=tuple(notes),
        output_global=tuple(e.is_global for e in out),
        fields=fields,
        fed=fed,
    )
    lacking = report.without_channels()
    return report if lacking is None else dataclasses.replace(report, notes=(*notes, lacking[1]))


@lru_cache(maxsize=4096)
def _reads_a_sequence(kind: type) -> bool:
    return issubclass(kind, nn.MultiheadAttention | nn.RNNBase)


def _sequence_first(drafts: Sequence[_Draft], reader: _Reader, spec: Inputs) -> str | None:
    """What to say where a module that takes the sequence first is given the batch first, and reads one as the other."""
    modules: set[type] = {type(d.events[0].frame.module) for d in drafts}
    kinds = set(filter(_reads_a_sequence, modules))
    shapes_only = all(leaf.value is None for leaf in spec.leaves)
    found = []
    for d in drafts if kinds else ():
        module: Any = d.events[0].frame.module
        shape, field = d.events[0].ins[0]
        if type(module) not in kinds or module.batch_first or len(shape) != 3:
            continue
        dims = _NO_DIMS.union(*map(reader.along, field.axes))
        batch_of_one = shapes_only and shape[0] == 1 < shape[1]
        if 0 not in dims and (1 in dims or batch_of_one):
            found.append((d.name, shape[1]))
    if not found:
        return None
    (name, n), more = found[0], f" and {len(found) - 1} more" if len(found) > 1 else ""
    return (
        f"{name}{more}: reads dim 0 as the sequence and dim 1 as the batch (batch_first=False), but the batch comes "
        f"first, so that its {n} positions do not see each other; set batch_first=True or pass layout TNC"
    )


def _approximate(trace: Trace) -> set[str]:
    return {op for e in trace.events for op in e.field.approx}


def _spatial(trace: Trace, reader: _Reader, axes: Sequence[Axis]) -> tuple[int, ...]:
    """Per axis: the local field of the last map on the way to the first output that still has a grid."""
    found = []
    events = [e for e in trace.events if e.number <= trace.output_number] if trace.output_number >= 0 else trace.events
    for i in range(len(axes)):
        last = next((e for e in reversed(events) if any(p.local and p.dims for p in e.field.axes[i].parts)), None)
        found.append(reader.extents(last.field, last.shape)[i].r_local if last else 1)
    return tuple(found)


def _coverage(f: Field | None, shape: Shape, axes: Sequence[Axis]) -> tuple[float, ...]:
    if f is None:
        return (0.0,) * len(axes)
    f = _read_out(f, shape)[0] if f.mask is not None and f.mask.pending else f
    out = []
    for axis, a in zip(axes, f.axes, strict=True):
        low = min((int(p.bounds[0].min()) for p in a.parts), default=EMPTY)
        high = max((-int(p.bounds[1].min()) for p in a.parts), default=-EMPTY)
        out.append(max(0, high - low + 1) / axis.size)
    return tuple(out)
