"""The proof of the unclipped field: on an input so large that nothing is clipped, the gradient shows all of it.

The input grows at both ends by a whole multiple of the total stride, so that every position of every map keeps its
phase and moves by a known number of positions. There the box of the gradient has to be `ulo..uhi` of the small input,
moved by as many pixels. Nothing of the analysis of the larger input is asked, only the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rfcalc.errors import RfcalcError
from rfcalc.proof.boxes import Box, Check, Oracle, positions_of
from rfcalc.proof.replay import replay

if TYPE_CHECKING:
    from torch import nn

    from rfcalc.analysis.report import LayerRow, Report

_MAX_CELLS = 1 << 24  # numbers of one enlarged input
# What these read depends on where the map ends: on a larger map the same position reads something else.
_FROM_THE_FAR_END = frozenset(("roll", "roll_"))


@dataclass(frozen=True)
class Enlarged:
    """One run of the model on an input that is `margin` longer at both ends of every axis.

    `skipped` names the rows whose unclipped field cannot be measured so, and why; a row that is named may still be
    measured along its other axes. `check` adds those that turn out not to move with the input.
    """

    oracle: Oracle
    report: Report
    margin: int
    rows: tuple[LayerRow, ...]
    skipped: dict[str, str]

    def check(self, positions: int = 5) -> Iterator[Check]:
        """Every measurable row at some positions, along every axis without global context."""
        report, margin = self.report, self.margin
        for row in self.rows:
            along = _grid_of(report, row)
            moves = {d: int(margin / row.j_out[i]) for i, d in enumerate(along) if d is not None}
            for position in positions_of(row.n_out, positions, self.oracle.seed):
                there = [p + moves.get(d, 0) for d, p in zip(row.grid, position, strict=True)]
                measured = self.oracle.measure(row.call, row.grid, there, report.axes)
                for region, dim, box in zip(report.region(row.name, position), along, measured, strict=True):
                    if dim is None:
                        continue
                    found = _moved(box, -margin)
                    check = Check(row.name, position, region.axis, region.unclipped, found, True, "unclipped")
                    if check.agrees or self._moves_along(row, along, there, measured):
                        yield check
                    else:
                        self.skipped[row.name] = "its paths step differently, so its field is another at each position"

    def _moves_along(
        self, row: LayerRow, along: Sequence[int | None], there: Sequence[int], measured: Sequence[Box | None]
    ) -> bool:
        """Does the box move with the position by one total stride? Asked of the gradient alone."""
        turn = _total_stride(self.report)
        steps = {d: int(turn / row.j_out[i]) for i, d in enumerate(along) if d is not None}
        before = [p - steps.get(d, 0) for d, p in zip(row.grid, there, strict=True)]
        boxes = self.oracle.measure(row.call, row.grid, before, self.report.axes)
        sides = zip(along, boxes, measured, strict=True)
        return all(_moved(one, turn) == other for d, one, other in sides if d is not None)


def _moved(box: Box | None, by: int) -> Box | None:
    return box and (box[0] + by, box[1] + by)


def _total_stride(report: Report) -> int:
    """After how many pixels every map repeats its phases."""
    return math.lcm(*[j.numerator for row in report.rows for j in row.j_out])


def enlarge(
    model: nn.Module, input_shape: Any, report: Report, *, layers: Sequence[str] | None = None, seed: int = 0
) -> Enlarged:
    """Run the model on a larger input and find out which rows of the report can be measured there.

    Raises RfcalcError where the larger input would be too large to run.
    """
    rows = [row for row in report.rows if layers is None or row.name in layers]
    margin = _margin(report, rows)
    larger = _larger(input_shape, report, margin)
    shapes = larger.values() if isinstance(larger, Mapping) else [larger] if _is_shape(larger) else larger
    if max(math.prod(s) for s in shapes) > _MAX_CELLS:
        raise RfcalcError(f"{report.name}: nothing is clipped only on an input {margin} longer at both ends: too large")
    oracle = replay(model, larger, {row.call: None for row in rows if row.call >= 0}, seed=seed, partial=True)
    bound = [row for row in report.rows if row.op in _FROM_THE_FAR_END or row.call in oracle.stretched]
    skipped = {row.name: why for row in rows if (why := _obstacle(report, row, oracle, margin, bound))}
    kept = tuple(row for row in rows if skipped.get(row.name) in (None, _SOME_AXES))
    return Enlarged(oracle, report, margin, kept, skipped)


def unclipped_checks(
    model: nn.Module,
    input_shape: Any,
    report: Report,
    *,
    layers: Sequence[str] | None = None,
    positions: int = 5,
    seed: int = 0,
) -> Iterator[Check]:
    """Compare the unclipped fields of a report with gradients on an enlarged input; see `enlarge` for what is left out.

    >>> import torch
    >>> from rfcalc import analyze
    >>> conv = torch.nn.Conv2d(1, 1, 3, padding=1)
    >>> [check.measured for check in unclipped_checks(conv, (1, 4, 4), analyze(conv, (1, 4, 4)), positions=1)]
    [(-1, 1), (-1, 1)]
    """
    return enlarge(model, input_shape, report, layers=layers, seed=seed).check(positions)


_SOME_AXES = "along an axis with global context, or none of its own, nothing can move"


def _margin(report: Report, rows: Sequence[LayerRow]) -> int:
    """A whole number of total strides, further than any field hangs over the border."""
    stride = _total_stride(report)
    over = 0
    for row in rows:
        for position in (tuple(0 for _ in row.n_out), tuple(n - 1 for n in row.n_out)):
            if all(row.n_out):
                for region in report.region(row.name, position):
                    if region.unclipped is not None:
                        over = max(over, -region.unclipped[0], region.unclipped[1] - region.axis.size + 1)
    widest = max([r for row in rows for r, whole in zip(row.r_out, row.is_global, strict=True) if not whole], default=1)
    return stride * (1 + -(-max(over, widest) // stride))


def _is_shape(shape: Any) -> bool:
    return not isinstance(shape, Mapping) and all(isinstance(n, int) for n in shape)


def _larger(input_shape: Any, report: Report, margin: int) -> Any:
    """The same inputs, longer along the report's axes."""
    grown = {(a.input, a.dim - 1) for a in report.axes}

    def one(i: int, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(n + 2 * margin if (i, d) in grown else n for d, n in enumerate(shape))

    if _is_shape(input_shape):
        return one(0, input_shape)
    if isinstance(input_shape, Mapping):
        return {name: one(i, shape) for i, (name, shape) in enumerate(input_shape.items())}
    return [one(i, shape) for i, shape in enumerate(input_shape)]


def _grid_of(report: Report, row: LayerRow) -> list[int | None]:
    """Per axis the one dim of the row's map that it runs along; None where there is none, or global context."""
    found: list[int | None] = []
    for a in report.fields[row.name].axes:
        dims = [d for d in row.grid if a.runs_along(d)]
        alone = len(dims) == 1 and not a.mixed and not any(set(p.dims) - set(row.grid) for p in a.parts)
        found.append(dims[0] if alone else None)
    sides = [(axis.input, d) for axis, d in zip(report.axes, found, strict=True)]
    return [d if sides.count((i, d)) == 1 else None for i, d in sides]  # tokens carry several axes of one input


def _obstacle(report: Report, row: LayerRow, oracle: Oracle, margin: int, bound: Sequence[LayerRow]) -> str:
    """Why the unclipped field of a row cannot be measured; nothing where it can."""
    if not row.exact:
        return "approximate"
    if row.call not in oracle.outputs:
        return f"the model does not run on a larger input: {oracle.stopped}" if oracle.stopped else "not a call"
    out = oracle.outputs[row.call]
    if out is None:
        return "no gradient"
    along = _grid_of(report, row)
    if len(row.grid) != len(row.n_out) or not any(d is not None for d in along):
        return "no map with a dim for each axis, or global context in all"
    grown = {d: 2 * margin / row.j_out[i] for i, d in enumerate(along) if d is not None}
    if any(m.denominator != 1 for m in grown.values()):
        return "its positions do not move by whole numbers"
    if tuple(out.shape) != tuple(n + int(grown.get(d, 0)) for d, n in enumerate(row.shape_out)):
        return "its map does not grow with the input"
    if any(oracle.outputs.get(r.call) is not None and oracle.depends(row.call, r.call) for r in bound):
        return "made of a map that was rolled or stretched from end to end, so of how long it is"
    return "" if all(d is not None for d in along) else _SOME_AXES
