"""The columns of the table: a new one is one entry of `_TABLE`; csv, `--columns` and headings follow from it.

>>> [column.heading for column in COLUMNS if column.heading][:4]
['layer', 'op', 'k', 's']
>>> named("path").heading                              # every field of LayerRow is a column, if only on demand
''
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from rfcalc.analysis.report import LayerRow
from rfcalc.errors import RfcalcError
from rfcalc.render.cells import atom, collapsed, nearest, per_axis

if TYPE_CHECKING:
    from rfcalc.analysis.report import Axis, Report


def _text(value: Any, axes: Sequence[Axis]) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else atom(value)


def _per_map_axis(value: Sequence[Any], axes: Sequence[Axis]) -> str:
    return collapsed(value)


@dataclass(frozen=True, slots=True)
class Column:
    """How a column is called, read off a row and written."""

    name: str  # in --columns, and the heading of csv
    heading: str  # of the table people read; empty: only where it is asked for
    read: Callable[[LayerRow, Report], Any]  # None: an empty cell
    text: Callable[[Any, Sequence[Axis]], str] = _text
    thousands: bool = True  # whole numbers have separators, where people read them
    merged: Callable[[LayerRow, Report], str] | None = None  # the cell where no columns are asked for
    given: Callable[[Report, int], str] | None = None  # in the row before the first, of each input
    dull: Callable[[LayerRow], bool] | None = None  # left out where no columns are asked for and all rows are so
    note: str = ""  # explains it below the table

    def plain(self, row: LayerRow, report: Report) -> str:
        """The cell as programs read it."""
        value = self.read(row, report)
        return "" if value is None else self.text(value, report.axes)

    def cell(self, row: LayerRow, report: Report, merged: bool) -> str:
        """The cell as a person reads it; `merged` where no columns are asked for."""
        if merged and self.merged:
            return self.merged(row, report)
        value = self.read(row, report)
        return f"{value:,}" if self.thousands and type(value) is int else self.plain(row, report)


def column(name: str, heading: str = "", **more: Any) -> Column:
    """The column of a field of LayerRow."""
    read = attrgetter(name)
    return Column(name, heading, lambda row, report: read(row), **more)


def _smallest_to_largest(row: LayerRow, report: Report) -> str:
    least, most = per_axis(row.r_min, report.axes), per_axis(row.r_out, report.axes)
    return most if row.r_min == row.r_out else f"{least}..{most}"


def _input_name(report: Report, index: int) -> str:
    return f"input {index}" if len(report.input_shapes) > 1 else "input"


def _input_size(report: Report, index: int) -> str:
    sizes = [axis.size for axis in report.axes if axis.input == index]
    return collapsed(sizes) if sizes else ""


def _input_channels(report: Report, index: int) -> str:
    measured = {axis.dim for axis in report.axes if axis.input == index}
    channels = [n for dim, n in enumerate(report.input_shapes[index], start=1) if dim not in measured]
    return str(channels[0]) if len(channels) == 1 else ""


def _one(report: Report, index: int) -> str:
    return "1"


_TABLE = (
    column("name", "layer", given=_input_name),
    column("op", "op"),
    column("kernel", "k", text=_per_map_axis),
    column("stride", "s", text=_per_map_axis),
    column("padding", "p", text=_per_map_axis),
    column("dilation", "d", text=_per_map_axis, dull=lambda row: set(row.dilation or ()) <= {1}, note="d dilation"),
    column("n_in", "N_in", text=_per_map_axis),
    column("n_out", "N_out", text=_per_map_axis, given=_input_size),
    column("ch_in", "CH_in", thousands=False),
    column("ch_out", "CH_out", thousands=False, given=_input_channels),
    column("j_in", "J_in", text=per_axis),
    column("j_out", "J_out", text=per_axis, given=_one),
    column("r_in", "R_in", text=per_axis),
    column("r_out", "R_out", text=per_axis, given=_one, merged=_smallest_to_largest),
    column(
        "r_local",
        "R_local",
        text=per_axis,
        dull=lambda row: row.r_local == row.r_out,
        note="R_local: R without global context",
    ),
    column("params", "params"),
    *(column(name, text=per_axis) for name in ("r_min", "start", "effective_padding", "is_global")),
    *(column(name, thousands=False) for name in ("call", "groups")),
)
_LISTED = {one.name for one in _TABLE}
COLUMNS = (*_TABLE, *(column(name) for name in LayerRow._fields if name not in _LISTED))
_BY_NAME = {one.name: one for one in COLUMNS}


def named(name: str) -> Column:
    """The column of that name. Raises RfcalcError that gives the nearest names, or all of them."""
    if name not in _BY_NAME:
        known = [*LayerRow._fields, *(one for one in _BY_NAME if one not in LayerRow._fields)]
        raise RfcalcError(f"column {name!r}: unknown; {nearest(name, known)}")
    return _BY_NAME[name]


def chosen(rows: Sequence[LayerRow]) -> list[Column]:
    """The columns of the READMEs; dilation and R_local only when they tell something."""
    return [one for one in COLUMNS if one.heading and not (one.dull and all(map(one.dull, rows)))]
