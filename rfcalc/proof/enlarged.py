"""The proof of the unclipped field: on an input so large that nothing is clipped, the gradient shows all of it.

The input grows at both ends by a whole multiple of the total stride, so that every position of every map keeps its
phase and moves by a known number of positions. There the box of the gradient has to be `ulo..uhi` of the small input,
moved by as many pixels. Nothing of the analysis of the larger input is asked, only the gradient.

`enlarge` makes all axes longer at once, `each_way` one after the other, which costs a sum where the first costs a
product; positions are then taken where the other axes are far from their border.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rfcalc.analysis.inputs import READS_INDICES, Inputs, Leaf
from rfcalc.errors import RfcalcError
from rfcalc.proof.boxes import Box, Check, Oracle, positions_of
from rfcalc.proof.oracle import wanted
from rfcalc.proof.replay import replay

if TYPE_CHECKING:
    from torch import nn

    from rfcalc.analysis.report import LayerRow, Report

_MAX_CELLS = 1 << 24  # numbers of one enlarged input
_MAX_KEPT = 1 << 28  # numbers of all maps of one run, which wait for their gradients
_MAX_WORK = 1 << 36  # multiply-accumulates of all gradients along one axis
_WORK_PER_NUMBER = 16  # what layers without multiplications cost, in those
# What these read depends on where the map ends: on a larger map the same position reads something else.
_FROM_THE_FAR_END = frozenset(("roll", "roll_"))


@dataclass(frozen=True)
class Enlarged:
    """One run of the model on an input that is `margin` longer at both ends of some axes (`grown`).

    `skipped` names the rows whose unclipped field cannot be measured so, and why; a row that is named may still be
    measured along its other axes. `check` adds those that turn out not to move with the input.
    """

    oracle: Oracle
    report: Report
    margin: int
    grown: frozenset[int]
    rows: tuple[LayerRow, ...]
    skipped: dict[str, str]

    def check(self, positions: int = 5) -> Iterator[Check]:
        """Every measurable row at some positions, along every axis that grew and is without global context."""
        for row in self.rows:
            along = _grid_of(self.report, row, self.grown)
            for position in _places(self.report, row, self.grown, positions, self.oracle.seed):
                there = self._place_of(row, along, position)
                measured = self.oracle.measure(row.call, row.grid, there, self.report.axes)
                regions = self.report.region(row.name, position)
                for region, dim, box in zip(regions, along, measured, strict=True):
                    if dim is None:
                        continue
                    found = _moved(box, -self.margin)
                    check = Check(row.name, position, region.axis, region.unclipped, found, True, "unclipped")
                    if check.agrees:
                        yield check
                    elif not row.aligned and (loose := dataclasses.replace(check, exact=False)).agrees:
                        yield loose  # of a map shorter than one turn of its phases the rest is rounded outwards
                    elif box is None and len(self.grown) < len(self.report.axes):
                        self.skipped[row.name] = "nothing is seen in the middle of its other axes"
                    elif self._moves_along(row, along, there, measured):
                        yield check
                    else:
                        self.skipped[row.name] = "its paths step differently, so its field is another at each position"

    def _place_of(self, row: LayerRow, along: Sequence[int | None], position: Sequence[int]) -> list[int]:
        """Where a position of the small map lies on the large one."""
        moves = {d: int(self.margin / row.j_out[i]) for i, d in enumerate(along) if d is not None}
        return [p + moves.get(d, 0) for d, p in zip(row.grid, position, strict=True)]

    def _moves_along(
        self, row: LayerRow, along: Sequence[int | None], there: Sequence[int], measured: Sequence[Box | None]
    ) -> bool:
        """Does the box move with the position by one total stride? Asked of the gradient alone."""
        turn = _total_stride(self.report)
        steps = {d: int(turn / row.j_out[i]) for i, d in enumerate(along) if d is not None}
        before = [p - steps.get(d, 0) for d, p in zip(row.grid, there, strict=True)]
        boxes = self.oracle.measure(row.call, row.grid, before, self.report.axes)
        sides = zip(along, boxes, measured, strict=True)
        # the other way round where the map is flipped
        return all(other in (_moved(one, turn), _moved(one, -turn)) for d, one, other in sides if d is not None)


def _moved(box: Box | None, by: int) -> Box | None:
    return box and (box[0] + by, box[1] + by)


def _total_stride(report: Report) -> int:
    """After how many pixels every map repeats its phases."""
    return math.lcm(*[j.numerator for row in report.rows for j in row.j_out])


def enlarge(
    model: nn.Module,
    input_shape: Any,
    report: Report,
    *,
    layers: Sequence[str] | None = None,
    seed: int = 0,
    layout: str | None = None,
    along: Collection[int] | None = None,
    positions: int = 5,
) -> Enlarged:
    """Run the model on a larger input and find out which rows of the report can be measured there.

    `along`: the axes that grow, by number; all, if none are given. Raises RfcalcError where the larger input would be
    too large to run.

    >>> import torch
    >>> from rfcalc import analyze
    >>> conv = torch.nn.Conv2d(1, 1, 3, padding=1)
    >>> [check.measured for check in enlarge(conv, (1, 4, 4), analyze(conv, (1, 4, 4))).check(positions=1)]
    [(-1, 1), (-1, 1)]
    """
    grown = frozenset(range(len(report.axes)) if along is None else along)
    rows = [row for row in report.rows if layers is None or row.name in layers]
    margin = _margin(report, rows, grown, positions, seed)
    larger = _longer(Inputs.of(input_shape, layout), report, margin, grown)
    more = _growth(report, margin, grown)
    kept = more * sum(math.prod(row.shape_out) for row in report.rows)
    if max(math.prod(leaf.shape) for leaf in larger.leaves) > _MAX_CELLS or kept > _MAX_KEPT:
        raise RfcalcError(f"{report.name}: nothing is clipped only on an input {margin} longer at both ends: too large")
    oracle = replay(
        model,
        larger,
        wanted(rows, type(model).__name__),
        seed=seed,
        indices=READS_INDICES in report.notes,
        partial=True,
    )
    bound = [row for row in report.rows if row.op in _FROM_THE_FAR_END or row.call in oracle.stretched]
    skipped = {row.name: why for row in rows if (why := _obstacle(report, row, oracle, margin, bound, grown))}
    measurable = tuple(row for row in rows if skipped.get(row.name) in (None, _SOME_AXES))
    return Enlarged(oracle, report, margin, grown, measurable, skipped)


def each_way(
    model: nn.Module,
    input_shape: Any,
    report: Report,
    *,
    layers: Sequence[str] | None = None,
    positions: int = 5,
    seed: int = 0,
    layout: str | None = None,
) -> Iterator[Enlarged]:
    """One run per direction (H, W, ...) on an input longer along that alone, with as many rows as are affordable.

    Of rows that carry one field, as an activation does that of its layer, the first is measured. Raises RfcalcError
    where a larger input would be too large to run.
    """
    ways: dict[str, list[int]] = {}
    for i, axis in enumerate(report.axes):
        ways.setdefault(axis.name.rpartition(".")[2], []).append(i)
    for way in ways.values():
        run = enlarge(
            model, input_shape, report, layers=layers, seed=seed, layout=layout, along=way, positions=positions
        )
        yield dataclasses.replace(run, rows=tuple(_affordable(run, positions)))


def _affordable(run: Enlarged, positions: int) -> Iterator[LayerRow]:
    """The rows that are measured; the others are named as skipped."""
    report = run.report
    more = _growth(report, run.margin, run.grown)
    before: dict[int, int] = {}  # what all layers up to a row cost
    total = 0
    for row in report.rows:
        total += row.macs + _WORK_PER_NUMBER * math.prod(row.shape_out)
        before[row.call] = total
    spent = 0.0
    first: dict[int, LayerRow] = {}
    for row in run.rows:
        other = first.setdefault(id(report.fields[row.name]), row)
        if other is not row and other.shape_out == row.shape_out:
            run.skipped[row.name] = SAME_FIELD
            continue
        spent += more * before[row.call] * len(_places(report, row, run.grown, positions, run.oracle.seed))
        if spent > _MAX_WORK:
            run.skipped[row.name] = "gradients on the larger input cost too much"
        else:
            yield row


def _growth(report: Report, margin: int, grown: Collection[int]) -> float:
    """How much larger the input becomes."""
    first = [report.axes[i] for i in grown if report.axes[i].input == report.axes[min(grown)].input]
    return math.prod(1 + 2 * margin / a.size for a in first)


def _places(
    report: Report, row: LayerRow, grown: Collection[int], positions: int, seed: int
) -> list[tuple[int, ...]]:  # fmt: skip
    """Positions that differ along the dims that grow, in the middle of the others."""
    if len(grown) == len(report.axes):
        return positions_of(row.n_out, positions, seed)
    along = _grid_of(report, row, grown)
    moving = [i for i, d in enumerate(row.grid) if d in along]
    found = []
    for at in positions_of([row.n_out[i] for i in moving], positions, seed):
        place = [n // 2 for n in row.n_out]
        for i, index in zip(moving, at, strict=True):
            place[i] = index
        found.append(tuple(place))
    return found


_SOME_AXES = "along an axis with global context, or none of its own, nothing can move"
SAME_FIELD = "carries the field of a row that was measured"


def _margin(report: Report, rows: Sequence[LayerRow], grown: Collection[int], positions: int, seed: int) -> int:
    """A whole number of total strides, further than any field hangs over the border."""
    stride = _total_stride(report)
    over = 1
    for row in rows:
        if len(row.grid) == len(row.n_out) and row.exact:
            for position in _places(report, row, grown, positions, seed):
                regions = report.region(row.name, position)
                for region, dim in zip(regions, _grid_of(report, row, grown), strict=True):
                    if dim is not None and region.unclipped is not None:
                        over = max(over, -region.unclipped[0], region.unclipped[1] - region.axis.size + 1)
    return stride * (1 + -(-over // stride))


def _longer(inputs: Inputs, report: Report, margin: int, grown: Collection[int]) -> Inputs:
    """The same inputs, longer along some of the report's axes."""
    longer = {(report.axes[i].input, report.axes[i].dim) for i in grown}

    def one(leaf: Leaf) -> Leaf:
        shape = tuple(n + 2 * margin if (leaf.index, d) in longer else n for d, n in enumerate(leaf.shape))
        if shape == leaf.shape:
            return leaf
        value = leaf.value
        return dataclasses.replace(
            leaf, shape=shape, value=value if value is None else value.new_empty(shape).to("meta")
        )

    return dataclasses.replace(inputs, leaves=tuple(map(one, inputs.leaves)))


def _grid_of(report: Report, row: LayerRow, grown: Collection[int]) -> list[int | None]:
    """Per axis that grows, the one dim of the row's map that it runs along; None where there is none, or context."""
    found: list[int | None] = []
    for a in report.fields[row.name].axes:
        dims = [d for d in row.grid if a.runs_along(d)]
        alone = len(dims) == 1 and not a.mixed and not any(set(p.dims) - set(row.grid) for p in a.parts)
        found.append(dims[0] if alone else None)
    sides = [(axis.input, d) for axis, d in zip(report.axes, found, strict=True)]
    # tokens carry several axes of one input
    return [
        d if sides.count(side) == 1 and i in grown else None
        for i, (side, d) in enumerate(zip(sides, found, strict=True))
    ]


def _obstacle(
    report: Report, row: LayerRow, oracle: Oracle, margin: int, bound: Sequence[LayerRow], along_grown: Collection[int]
) -> str:  # fmt: skip
    """Why the unclipped field of a row cannot be measured; nothing where it can."""
    if not row.exact:
        return "approximate"
    if row.call not in oracle.outputs:
        return f"the model does not run on a larger input: {oracle.stopped}" if oracle.stopped else "not a call"
    out = oracle.outputs[row.call]
    if out is None:
        return "no gradient"
    along = _grid_of(report, row, along_grown)
    if len(row.grid) != len(row.n_out) or not any(d is not None for d in along):
        return "no map with a dim for each axis, or global context in all"
    grown = {d: 2 * margin / row.j_out[i] for i, d in enumerate(along) if d is not None}
    if any(m.denominator != 1 for m in grown.values()):
        return "its positions do not move by whole numbers"
    if tuple(out.shape) != tuple(n + int(grown.get(d, 0)) for d, n in enumerate(row.shape_out)):
        return "its map does not grow with the input"
    if any(oracle.outputs.get(r.call) is not None and oracle.depends(row.call, r.call) for r in bound):
        return "made of a map that was rolled or stretched from end to end, so of how long it is"
    return "" if all(along[i] is not None for i in along_grown) else _SOME_AXES
