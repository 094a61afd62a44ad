"""Report -> text: the table people read (any of tabulate's formats), csv and json. Nothing is computed here.

>>> from rfcalc import analyze                        # doctest: +SKIP
>>> print(table(analyze(model, (1, 28, 28))))         # doctest: +SKIP
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from rfcalc.errors import RfcalcError
from rfcalc.render.cells import in_bytes, mark_of, nearest, per_axis
from rfcalc.render.columns import COLUMNS, Column, chosen, named
from rfcalc.render.page import BOLD, DIM, YELLOW, Page, ascii_format, colored, fitted, styled, wrapped

if TYPE_CHECKING:
    from rfcalc.analysis.report import LayerRow, Report

Rows = Literal["default", "geometry", "all"]

DEFAULT_FORMAT = "simple"
_CONVENTIONS = (
    "N positions, CH channels, J jump (effective stride) and R receptive field in input pixels, padding counted; "
    "k kernel, s stride, p padding (before:after where they differ)"
)
_MARKS = {
    "..": "a..b: smallest to largest over the positions",
    "*": "*: global, depends on the whole input (or on the named axes of it)",
    "~": "~: an operation without a rule, taken to see everything",
    "!": "!: unaligned, neighbouring positions do not lie equally far apart",
}


def formats() -> list[str]:
    """Every name that `table` takes as `fmt`."""
    import tabulate

    return ["csv", "json", *sorted(tabulate.tabulate_formats)]


def checked_format(fmt: str) -> str:
    """The format's name. Raises RfcalcError that gives the nearest names, or all of them."""
    if fmt in ("simple", "csv", "json") or fmt in formats():
        return fmt
    raise RfcalcError(f"format {fmt!r}: unknown; {nearest(fmt, formats())}")


def checked_columns(text: str) -> list[str]:
    """`n_out,r_out` -> names of columns. Raises RfcalcError that gives the nearest names, or all of them."""
    return [named(name.strip()).name for name in text.split(",")]


def table(
    *reports: Report,
    rows: Rows = "default",
    columns: Sequence[str] | None = None,
    fmt: str = DEFAULT_FORMAT,
    width: int | None = 100,
    color: bool = False,
    ascii_only: bool = False,
) -> str:
    """The reports as text, one table after another.

    Args:
        rows: "default": what moves the grid or owns parameters; "geometry": what moves it; "all": every op.
        columns: fields of LayerRow, or other names of columns; by default those of the README's tables.
        fmt: one of `formats()`.
        width: long layer names are cut at the left to keep within it; None leaves them whole.
        color: mark headings and approximate rows with terminal colours.
        ascii_only: use no other character than ASCII.

    Raises:
        RfcalcError: an unknown format or column.
    """
    checked_format(fmt)
    asked = [named(name) for name in columns or ()]
    if fmt == "json":
        return json.dumps([report.to_dict(selected(report, rows)) for report in reports], indent=1)
    if fmt == "csv":
        return _csv(reports, rows, asked)
    page = Page(fmt=ascii_format(fmt) if ascii_only else fmt, width=width, color=color, ascii_only=ascii_only)
    used: set[str] = set()
    blocks = []
    for report in reports:
        heading = [styled(report.name, BOLD, color)] if len(reports) > 1 else []
        body = _body(report, selected(report, rows), asked, page, used)
        blocks += ["\n".join([*heading, body]), _totals(report, width)]
    text = "\n\n".join([*blocks, _footnote(used, page)])
    return text.encode("ascii", "replace").decode() if ascii_only else text


def selected(report: Report, rows: Rows) -> list[LayerRow]:
    """The rows of a report that are shown."""
    if rows == "all":
        return list(report.rows)
    if rows == "geometry":
        return [row for row in report.rows if row.moves_grid]
    return [row for row in report.rows if row.moves_grid or row.params]


# --- one table -----------------------------------------------------------------------------------------------


def _body(report: Report, rows: Sequence[LayerRow], asked: Sequence[Column], page: Page, used: set[str]) -> str:
    """The table of one report; adds to `used` what the footnote has to explain."""
    merged = not asked
    columns = asked or chosen(rows)
    headings = [column.heading if merged else column.name for column in columns]
    cells = [*_input_cells(report, columns), *([c.cell(row, report, merged) for c in columns] for row in rows)]
    marks = [*("" for _ in report.input_shapes), *(mark_of(row, report.axes) for row in rows)]
    if merged and any(marks):
        headings.append("")
        cells = [[*line, mark] for line, mark in zip(cells, marks, strict=True)]
        used.update(letter for letter in _MARKS if any(letter in mark for mark in marks))
    if merged:
        used.update(column.name for column in columns)
        used.update(".." for line in cells for cell in line if ".." in cell)
    body = fitted(headings, cells, page)
    styles = [YELLOW if "~" in mark else "" for mark in marks]
    return colored(body, styles) if page.color and page.fmt == "simple" else body


def _footnote(used: set[str], page: Page) -> str:
    notes = [_CONVENTIONS, *(column.note for column in COLUMNS if column.note and column.name in used)]
    notes += [text for mark, text in _MARKS.items() if mark in used]
    return styled(wrapped("; ".join(notes), page.width), DIM, page.color)


def _input_cells(report: Report, columns: Sequence[Column]) -> Iterator[list[str]]:
    """The row before the first: what the network is given."""
    for i in range(len(report.input_shapes)):
        yield [column.given(report, i) if column.given else "" for column in columns]


# --- totals --------------------------------------------------------------------------------------------------


def _totals(report: Report, width: int | None) -> str:
    lines = list(_total_lines(report))
    indent = max(len(key) for key, _ in lines) + 2
    return "\n".join(wrapped(f"{key:<{indent}}{text}", width, " " * indent) for key, text in lines)


def _total_lines(report: Report) -> Iterator[tuple[str, str]]:
    yield "design", report.name or "(unnamed)"
    yield "input", ", ".join("x".join(map(str, shape)) for shape in report.input_shapes)
    frozen = report.trainable_params != report.params
    yield "params", f"{report.params:,}" + (f" ({report.trainable_params:,} trainable)" if frozen else "")
    yield "MACs", f"{report.macs:,}"
    yield "peak activations", in_bytes(report.peak_activation_bytes)
    output, spatial = per_axis(report.rf_output, report.axes), per_axis(report.rf_spatial, report.axes)
    yield (
        "receptive field",
        output if output == spatial else f"{output} at the output, {spatial} at the last spatial map",
    )
    if any(part < 1 for part in report.coverage):
        parts = zip(report.axes, report.coverage, strict=True)
        yield "coverage", ", ".join(f"{100 * part:.3g} % of {axis.name}" for axis, part in parts)
    unused = [f"{path} ({params:,})" for path, params in report.unreached if params]
    if unused:
        more = f" and {len(unused) - 8} more" if len(unused) > 8 else ""
        yield "never called", ", ".join(unused[:8]) + more
    if report.approximate_ops:
        yield "approximate", ", ".join(report.approximate_ops)
    for note in report.notes:
        yield "note", note


# --- csv -----------------------------------------------------------------------------------------------------


def _csv(reports: Sequence[Report], rows: Rows, asked: Sequence[Column]) -> str:
    """The columns' names as the heading; which they are does not depend on what is in them."""
    columns = asked or [column for column in COLUMNS if column.heading]
    several = len(reports) > 1
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*["design"] * several, *(column.name for column in columns)])
    for report in reports:
        lines = [*_input_cells(report, columns)]
        lines += [[column.plain(row, report) for column in columns] for row in selected(report, rows)]
        writer.writerows([report.name, *line] if several else line for line in lines)
    return stream.getvalue().removesuffix("\n")
