"""The report: what a model's layers see and cost, as frozen values with a JSON form. No torch.

Conventions (N, J, R, global pooling, unclipped and exact fields) are those of the README; sources: Dang Ha The Hien
2017 for the forward recurrences; Araujo, Norris, Sim, Distill 2019 for regions, effective stride, padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from rfcalc.analysis.field import AxisField, Field
from rfcalc.analysis.parts import EMPTY, Shape
from rfcalc.analysis.reading import covered_by_one, seen_indices
from rfcalc.errors import InputError


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of one input that fields are measured along; `dim` counts the batch (H of an image is 2)."""

    input: int
    dim: int
    name: str
    size: int


SCHEMA = "rfcalc.report/1"


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
    `peak_activation_bytes` is the largest sum of live tensors between two calls of torch functions: as one returns,
    its arguments, its result and all that the forward, its callers or torch's graph still hold. Storage counts once,
    however many views it has; weights, and what a function makes for itself alone, do not count.
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
        >>> from rfcalc import analyze
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
        seen = seen_indices(field.mask, where)
        return tuple(_region(axis, a, seen, where) for axis, a in zip(self.axes, field.axes, strict=True))

    def fed_by_all(self, row: LayerRow) -> tuple[bool, ...] | None:
        """Per axis: does the local field of some position that a row reads really cover the input, first to last?

        A width alone does not tell: it may hang over the border. None for a report read back from JSON.
        """
        if row.name not in self.fed:
            return None
        shape, field = self.fed[row.name]
        return tuple(covered_by_one(a, shape, axis.size) for a, axis in zip(field.axes, self.axes, strict=True))

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
