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
from rfcalc.render.cells import HEADINGS, cell, collapsed, in_bytes, mark_of, nearest, per_axis, text_of
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
    "d": "d dilation",
    "R_local": "R_local: R without global context",
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
    """`n_out,r_out` -> field names of LayerRow. Raises RfcalcError that gives the nearest names, or all of them."""
    from rfcalc.analysis.report import LayerRow

    known = LayerRow._fields
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise RfcalcError(f"column {name!r}: unknown; {nearest(name, known)}")
    return names


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
        columns: fields of LayerRow; by default those of the README's tables.
        fmt: one of `formats()`.
        width: long layer names are cut at the left to keep within it; None leaves them whole.
        color: mark headings and approximate rows with terminal colours.
        ascii_only: use no other character than ASCII.

    Raises:
        RfcalcError: an unknown format.
    """
    checked_format(fmt)
    if fmt == "json":
        return json.dumps([report.to_dict(selected(report, rows)) for report in reports], indent=1)
    if fmt == "csv":
        return _csv(reports, rows, columns)
    page = Page(fmt=ascii_format(fmt) if ascii_only else fmt, width=width, color=color, ascii_only=ascii_only)
    used: set[str] = set()
    blocks = []
    for report in reports:
        heading = [styled(report.name, BOLD, color)] if len(reports) > 1 else []
        body = _body(report, selected(report, rows), columns, page, used)
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


def _body(report: Report, rows: Sequence[LayerRow], columns: Sequence[str] | None, page: Page, used: set[str]) -> str:
    """The table of one report; adds to `used` what the footnote has to explain."""
    merged = columns is None
    fields = list(columns) if columns else _default_fields(rows)
    headings = list(columns) if columns else [HEADINGS[f] for f in fields]
    cells = [*_input_cells(report, fields), *([cell(row, f, report, merged) for f in fields] for row in rows)]
    marks = [*("" for _ in report.input_shapes), *(mark_of(row, report.axes) for row in rows)]
    if merged and any(marks):
        headings.append("")
        cells = [[*line, mark] for line, mark in zip(cells, marks, strict=True)]
        used.update(letter for letter in "~!*" if any(letter in mark for mark in marks))
    if merged:
        used.update(headings)
        used.update(".." for line in cells for cell in line if ".." in cell)
    body = fitted(headings, cells, page)
    styles = [YELLOW if "~" in mark else "" for mark in marks]
    return colored(body, styles) if page.color and page.fmt == "simple" else body


def _footnote(used: set[str], page: Page) -> str:
    notes = [_CONVENTIONS, *(text for mark, text in _MARKS.items() if mark in used)]
    return styled(wrapped("; ".join(notes), page.width), DIM, page.color)


def _default_fields(rows: Sequence[LayerRow]) -> list[str]:
    """The columns of the READMEs; dilation and R_local only when they tell something."""
    dull = set()
    if all(d == 1 for row in rows for d in row.dilation or ()):
        dull.add("dilation")
    if all(row.r_local == row.r_out for row in rows):
        dull.add("r_local")
    return [field for field in HEADINGS if field not in dull]


def _input_cells(report: Report, fields: Sequence[str]) -> Iterator[list[str]]:
    """The row before the first: what the network is given."""
    several = len(report.input_shapes) > 1
    for i, shape in enumerate(report.input_shapes):
        axes = [axis for axis in report.axes if axis.input == i]
        channels = [n for dim, n in enumerate(shape, start=1) if dim not in {axis.dim for axis in axes}]
        known = {
            "name": f"input {i}" if several else "input",
            "n_out": collapsed([axis.size for axis in axes]) if axes else "",
            "ch_out": str(channels[0]) if len(channels) == 1 else "",
            "j_out": "1",
            "r_out": "1",
        }
        yield [known.get(field, "") for field in fields]


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


def _csv(reports: Sequence[Report], rows: Rows, columns: Sequence[str] | None) -> str:
    """Field names as the heading; the columns do not depend on what is in them."""
    fields = list(columns or HEADINGS)
    several = len(reports) > 1
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["design", *fields] if several else fields)
    for report in reports:
        lines = [*_input_cells(report, fields)]
        lines += [[text_of(getattr(row, f), f, report.axes) for f in fields] for row in selected(report, rows)]
        writer.writerows([report.name, *line] if several else line for line in lines)
    return stream.getvalue().removesuffix("\n")
