"""What would bring a rejected design under its budget. Every advice is tried on the design before it is given.

A change (`changes.py`) is made to the design's modules, the changed design is analysed, and its figures go with the
advice; a design that does not run after a change gets no such advice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rfcalc.errors import RfcalcError
from rfcalc.gate.budget import Budget, Violation, check
from rfcalc.gate.changes import CHANGES, MOST_TRIED, Change
from rfcalc.gate.widths import Changeable, UnfitError

if TYPE_CHECKING:
    from torch import nn

    from rfcalc.analysis.report import Report


_MOST_SHOWN = 3  # per limit


@dataclass(frozen=True, slots=True)
class Advice:
    """One change to a design, and the figures the changed design has: measured by analysing it, not estimated.

    `kind` is what is done, `layer` the row (or module path) it is done to, `message` the change in one sentence;
    `fits` tells whether the changed design passes its whole budget. Fields per axis follow `Report.axes`.
    """

    limit: str
    kind: str
    layer: str
    message: str
    params: int
    macs: int
    rf_output: tuple[int, ...]
    rf_spatial: tuple[int, ...]
    fits: bool


def advise(
    build: Callable[[], nn.Module],
    input_shape: Any,
    report: Report,
    budget: Budget,
    violations: Sequence[Violation],
    *,
    layout: str | None = None,
) -> list[Advice]:
    """Changes that would end a violation, those that pass the whole budget first; at most three for each limit.

    Args:
        build: makes the design, without storage is enough (`Design.build`). `report`: of that design on `input_shape`.
        violations: what `check(report, budget)` found.
    """
    from torch.nn.parameter import is_lazy

    if not any(v.limit in CHANGES for v in violations):
        return []
    model = build()
    if any(is_lazy(parameter) for parameter in model.parameters()):
        return []  # its layers take whatever size comes: there is nothing to take apart
    design = Changeable(model, report)
    found = []
    for violation in violations:
        changes = CHANGES.get(violation.limit)
        tried: dict[tuple[str, str], Advice] = {}  # a second way to do the same is tried only where the first failed
        for change in _first(changes(design, violation), MOST_TRIED) if changes else ():
            what = change.kind, change.layer
            advice = None if what in tried else _tried(change, design, violation, budget, input_shape, layout)
            if advice is not None:
                tried[what] = advice
        found += sorted(tried.values(), key=lambda advice: not advice.fits)[:_MOST_SHOWN]
    return found


def _first(changes: Iterable[Change], count: int) -> Iterator[Change]:
    for _, change in zip(range(count), changes, strict=False):
        yield change


def _tried(
    change: Change, design: Changeable, violation: Violation, budget: Budget, input_shape: Any, layout: str | None
) -> Advice | None:
    """The advice with the figures of the changed design; None where it does not run, the limit is still missed or what
    it gives has another shape: a map of half the size or fewer classes would be the answer to another question."""
    from rfcalc.analysis.analyze import analyze

    with _undone(change.touched):
        try:
            change.apply()
            report = analyze(design.model, input_shape, layout=layout, name=design.report.name)
        except (RfcalcError, UnfitError):
            return None
    if _same(report, design.report):
        return None  # nothing was changed, so nothing can be mended
    left = check(report, budget)
    if any(v.limit == violation.limit for v in left) or report.output_shapes != design.report.output_shapes:
        return None
    return Advice(
        limit=violation.limit,
        kind=change.kind,
        layer=change.layer,
        message=change.message,
        params=report.params,
        macs=report.macs,
        rf_output=report.rf_output,
        rf_spatial=report.rf_spatial,
        fits=not left,
    )


def _same(changed: Report, original: Report) -> bool:
    return (changed.rows, changed.params, changed.unreached) == (original.rows, original.params, original.unreached)


@contextmanager
def _undone(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Afterwards the modules' attributes, parameters, buffers and children are what they were."""
    tables = ("_parameters", "_buffers", "_modules")
    before = [(m.__dict__, dict(m.__dict__), [dict(m.__dict__[t]) for t in tables]) for m in modules]
    try:
        yield
    finally:
        for d, attributes, contents in before:
            d.clear()
            d.update(attributes)
            for table, content in zip(tables, contents, strict=True):
                d[table].clear()
                d[table].update(content)
