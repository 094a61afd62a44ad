"""The gradient proof: which input positions does one output position of the real network depend on?

It shares nothing with the analysis but the report's rows: no rule and no field is used here. See `replay.py` for
the run and `surrogates/` for what stands in for functions whose gradient vanishes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from rfcalc.analysis.inputs import READS_INDICES, Inputs
from rfcalc.errors import InputError
from rfcalc.proof.boxes import Check, Oracle, misaligned, rows_named
from rfcalc.proof.replay import replay

if TYPE_CHECKING:
    from rfcalc.analysis.report import LayerRow, Report


def verify(
    model: nn.Module,
    input_shape: Any,
    report: Report,
    *,
    layers: Sequence[str] | None = None,
    positions: int = 5,
    seed: int = 0,
    layout: str | None = None,
) -> Iterator[Check]:
    """Compare a report with gradients of the model itself; see `prepare` for the rows that cannot be compared."""
    oracle = prepare(model, input_shape, report, layers=layers, seed=seed, layout=layout)
    return oracle.check(report, layers, positions)


def prepare(
    model: nn.Module,
    input_shape: Any,
    report: Report,
    *,
    layers: Sequence[str] | None = None,
    seed: int = 0,
    layout: str | None = None,
) -> Oracle:
    """Run the model once and keep the tensors of the report's rows.

    `input_shape` and `layout` are what the report was made with, or its `Inputs`.
    """
    inputs = Inputs.of(input_shape, layout)
    if [(a.input, a.dim) for a in inputs.axes] != [(a.input, a.dim) for a in report.axes]:
        raise InputError(f"the report was made of another input or layout than {inputs.shapes}")
    rows = rows_named(report, layers)
    oracle = replay(model, inputs, wanted(rows, type(model).__name__), seed=seed, indices=READS_INDICES in report.notes)
    for row in rows:
        out = oracle.outputs.get(row.call)
        if out is not None and tuple(out.shape) != tuple(row.shape_out):
            raise misaligned(f"{row.name}: the report says shape {tuple(row.shape_out)}, found {tuple(out.shape)}")
    return oracle


def wanted(rows: Iterable[LayerRow], root: str) -> dict[int, str | None]:
    """Call numbers, with the function's name where the row is a functional call (a module's row is named after it)."""
    names: dict[int, str | None] = {}
    for row in rows:
        of_module = row.name.split("#")[0] == row.path or (not row.path and row.op == root.removeprefix("Parametrized"))
        names[row.call] = names.get(row.call) if of_module else row.op
    return {n: name for n, name in names.items() if n >= 0}
