"""Holes in what one unit sees: pixels inside its field that it does not depend on, as dilations leave them.

The field itself is an interval and cannot tell. The gradient of the real design can (`oracle.py`), so this is asked
only where the report gives reason to (`gate.suspects`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .gate import suspects

if TYPE_CHECKING:
    from torch import nn

    from .report import Report


def holes(model: nn.Module, input_shape: Any, report: Report) -> dict[str, tuple[int, ...]]:
    """For the last sliding layer behind a suspect: how many lines of pixels its central unit skips, per axis.

    Args:
        model: with storage; its weights do not matter, it is copied. `report`: of the same design and input.

    Returns:
        The layer's name and, for each of `report.axes`, how many input indices lie between the first and the last that
        the unit depends on without being one of them; nothing where there is no suspect.

    Raises:
        RfcalcError: the design has no gradient to measure by.
    """
    found = suspects(report)
    if not found:
        return {}
    from .oracle import prepare

    # Later layers may fill the holes of a dilated one; those behind a global pool see everything.
    names = [row.name for row in report.rows]
    row = next(
        row
        for row in reversed(report.rows[names.index(found[0]) :])
        if row.kernel and row.n_out and min(row.n_out) > 1 and not any(row.is_global)
    )
    oracle = prepare(model, input_shape, report, layers=[row.name])
    centre = [n // 2 for n in row.n_out]
    touched = oracle.touched(row.call, row.grid, centre[: len(row.grid)], report.axes)
    return {row.name: tuple(_gaps(line) for line in touched)}


def _gaps(touched: Any) -> int:
    """How many are false between the first and the last that are true."""
    if touched is None or not touched.any():
        return 0
    at = touched.nonzero().flatten()
    return int(at[-1] - at[0] + 1 - len(at))
