"""Holes in what one unit sees: pixels inside its field that it does not depend on, as dilations leave them.

The field itself is an interval and cannot tell. The gradient of the real design can (`oracle.py`), so this is asked
only where the report gives reason to (`gate.suspects`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rfcalc.errors import RfcalcError
from rfcalc.gate.cautions import suspects

if TYPE_CHECKING:
    from torch import nn

    from rfcalc.analysis.report import LayerRow, Report
    from rfcalc.proof.boxes import Oracle


def holes(model: nn.Module, input_shape: Any, report: Report) -> dict[str, tuple[int, ...]]:
    """For each suspect: how many lines of pixels the central unit of the last map made of its output skips, per axis.

    Args:
        model: with storage; its weights do not matter, it is copied. `report`: of the same design and input.
        input_shape: what the report was made of, or its `Inputs`.

    Returns:
        The suspect's name and, for each of `report.axes`, how many input indices lie between the first and the last
        that the unit depends on without being one of them; 0 where later layers filled the holes.

    Raises:
        RfcalcError: the design has no gradient to measure by, or global context (a gate, a statistic) hides the holes.
    """
    found = suspects(report)
    if not found:
        return {}
    from rfcalc.proof.oracle import prepare

    # A pool of the whole map or a head fills nothing: what counts is what the units of a map see.
    maps = [row for row in report.rows if row.grid and (min(row.n_out) > 1 or row.name in found)]
    oracle = prepare(model, input_shape, report, layers=[row.name for row in maps])
    return {name: _missing(oracle, report, _last_made_of(report.row(name), maps, oracle)) for name in found}


def _last_made_of(suspect: LayerRow, maps: list[LayerRow], oracle: Oracle) -> LayerRow:
    """The order of the rows does not tell: branches lie side by side."""
    return next(row for row in reversed(maps) if oracle.depends(row.call, suspect.call) or row is suspect)


def _missing(oracle: Oracle, report: Report, row: LayerRow) -> tuple[int, ...]:
    if any(row.is_global):
        raise RfcalcError(f"{row.name}: global context reaches it, which hides the holes of its own windows")
    centre = [n // 2 for n in row.n_out[: len(row.grid)]]
    return tuple(_gaps(line) for line in oracle.touched(row.call, row.grid, centre, report.axes))


def _gaps(touched: Any) -> int:
    """How many are false between the first and the last that are true."""
    if touched is None or not touched.any():
        return 0
    at = touched.nonzero().flatten()
    return int(at[-1] - at[0] + 1 - len(at))
