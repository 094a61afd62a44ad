"""Report -> text: the table people read (any of tabulate's formats), csv and json. Nothing is computed here.

>>> from rfcalc import analyze                        # doctest: +SKIP
>>> print(table(analyze(model, (1, 28, 28))))         # doctest: +SKIP
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

from rfcalc.errors import RfcalcError

if TYPE_CHECKING:
    from rfcalc.report import Axis, LayerRow, Report

Rows = Literal["default", "geometry", "all"]

DEFAULT_FORMAT = "simple"
HEADINGS = {
    "name": "layer",
    "op": "op",
    "kernel": "k",
    "stride": "s",
    "padding": "p",
    "dilation": "d",
    "n_in": "N_in",
    "n_out": "N_out",
    "ch_in": "CH_in",
    "ch_out": "CH_out",
    "j_in": "J_in",
    "j_out": "J_out",
    "r_in": "R_in",
    "r_out": "R_out",
    "r_local": "R_local",
    "params": "params",
}
# Tuples hold one value per axis of the inputs, one per axis of the layer's map, or are plain shapes.
_PER_INPUT_AXIS = frozenset(
    ("j_in", "j_out", "r_in", "r_out", "r_min", "r_local", "start", "effective_padding", "is_global")
)
_PER_MAP_AXIS = frozenset(("kernel", "stride", "padding", "dilation", "n_in", "n_out"))
_SHORTEST_NAME, _SHORTEST_OP = 12, 11
# Formats that a person reads as they stand: names are shortened to keep a row on one line. Markup is left whole.
_FITTED = frozenset(("simple", "plain", "pretty", "psql", "presto", "rst", "orgtbl"))
_BOLD, _DIM, _YELLOW, _RESET = "\033[1m", "\033[2m", "\033[33m", "\033[0m"

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
    raise RfcalcError(f"format {fmt!r}: unknown; {_nearest(fmt, formats())}")


def checked_columns(text: str) -> list[str]:
    """`n_out,r_out` -> field names of LayerRow. Raises RfcalcError that gives the nearest names, or all of them."""
    from rfcalc.report import LayerRow

    known = LayerRow._fields
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise RfcalcError(f"column {name!r}: unknown; {_nearest(name, known)}")
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
        return json.dumps([report.to_dict(_selected(report, rows)) for report in reports], indent=1)
    if fmt == "csv":
        return _csv(reports, rows, columns)
    page = _Page(fmt=_ascii_format(fmt) if ascii_only else fmt, width=width, color=color, ascii_only=ascii_only)
    used: set[str] = set()
    blocks = []
    for report in reports:
        heading = [_styled(report.name, _BOLD, color)] if len(reports) > 1 else []
        body = _body(report, _selected(report, rows), columns, page, used)
        blocks += ["\n".join([*heading, body]), _totals(report, width)]
    text = "\n\n".join([*blocks, _footnote(used, page)])
    return text.encode("ascii", "replace").decode() if ascii_only else text


@dataclass(frozen=True)
class _Page:
    """How the text will be shown."""

    fmt: str
    width: int | None
    color: bool
    ascii_only: bool


def _selected(report: Report, rows: Rows) -> list[LayerRow]:
    if rows == "all":
        return list(report.rows)
    if rows == "geometry":
        return [row for row in report.rows if row.moves_grid]
    return [row for row in report.rows if row.moves_grid or row.params]


# --- one table -----------------------------------------------------------------------------------------------


def _body(report: Report, rows: Sequence[LayerRow], columns: Sequence[str] | None, page: _Page, used: set[str]) -> str:
    """The table of one report; adds to `used` what the footnote has to explain."""
    merged = columns is None
    fields = list(columns) if columns else _default_fields(rows)
    headings = list(columns) if columns else [HEADINGS[f] for f in fields]
    cells = [*_input_cells(report, fields), *([_cell(row, f, report, merged) for f in fields] for row in rows)]
    marks = [*("" for _ in report.input_shapes), *(_mark(row, report.axes) for row in rows)]
    if merged and any(marks):
        headings.append("")
        cells = [[*line, mark] for line, mark in zip(cells, marks, strict=True)]
        used.update(letter for letter in "~!*" if any(letter in mark for mark in marks))
    if merged:
        used.update(headings)
        used.update(".." for line in cells for cell in line if ".." in cell)
    body = _fitted(headings, cells, page)
    return _colored(body, marks) if page.color and page.fmt == "simple" else body


def _footnote(used: set[str], page: _Page) -> str:
    notes = [_CONVENTIONS, *(text for mark, text in _MARKS.items() if mark in used)]
    return _styled(_wrapped("; ".join(notes), page.width), _DIM, page.color)


def _default_fields(rows: Sequence[LayerRow]) -> list[str]:
    """The columns of the READMEs; dilation and R_local only when they tell something."""
    dull = set()
    if all(d == 1 for row in rows for d in row.dilation or ()):
        dull.add("dilation")
    if all(row.r_local == row.r_out for row in rows):
        dull.add("r_local")
    return [field for field in HEADINGS if field not in dull]


def _fitted(headings: list[str], cells: list[list[str]], page: _Page) -> str:
    """The table; what does not fit the width is cut, first the ends of the longest ops, then the heads of the paths."""
    text = _tabulated(headings, cells, page.fmt)
    if page.width is None or not _reads_as_is(page.fmt):
        return text
    ellipsis = "..." if page.ascii_only else "…"
    for heading, shortest in (("op", _SHORTEST_OP), ("layer", _SHORTEST_NAME), ("name", _SHORTEST_NAME)):
        excess = max(map(len, text.splitlines())) - page.width
        if excess > 0 and heading in headings:
            column = headings.index(heading)
            room = max(max(len(line[column]) for line in cells) - excess, shortest)
            cells = [
                [_cut(c, room, ellipsis, heading) if i == column else c for i, c in enumerate(line)] for line in cells
            ]
            text = _tabulated(headings, cells, page.fmt)
    return text


def _tabulated(headings: list[str], cells: list[list[str]], fmt: str) -> str:
    import tabulate

    left = {"layer", "name", "path", "op", ""}
    align = ["left" if heading in left else "right" for heading in headings]
    padding = tabulate.MIN_PADDING
    # By default a heading makes its column two wider than it is; fifteen columns cannot afford it.
    tabulate.MIN_PADDING = 0
    try:
        return tabulate.tabulate(cells, headings, fmt, disable_numparse=True, colalign=align)
    finally:
        tabulate.MIN_PADDING = padding


def _reads_as_is(fmt: str) -> bool:
    return fmt in _FITTED or fmt.endswith(("grid", "outline"))


def _ascii_format(fmt: str) -> str:
    """The nearest format that draws its lines in ASCII."""
    if fmt.endswith("_grid"):
        return "grid"
    return "outline" if fmt.endswith("_outline") else fmt


def _cut(text: str, room: int, ellipsis: str, heading: str) -> str:
    """The beginning of an op says most, and the end of a path."""
    if len(text) <= room:
        return text
    kept = room - len(ellipsis)
    return text[:kept] + ellipsis if heading == "op" else ellipsis + text[-kept:]


def _colored(body: str, marks: Sequence[str]) -> str:
    """Colour per line of the simple format: two lines of heading, then the rows."""
    heading, rule, *lines = body.splitlines()
    rows = [_styled(line, _YELLOW, "~" in mark) for line, mark in zip(lines, marks, strict=True)]
    return "\n".join([_styled(heading, _BOLD, True), _styled(rule, _DIM, True), *rows])


def _styled(text: str, style: str, on: bool) -> str:
    return f"{style}{text}{_RESET}" if on else text


# --- cells ---------------------------------------------------------------------------------------------------


def _cell(row: LayerRow, field: str, report: Report, merged: bool) -> str:
    """One cell as a person reads it; `merged` shows R as smallest..largest where they differ."""
    if merged and field == "r_out" and row.r_min != row.r_out:
        return f"{_per_axis(row.r_min, report.axes)}..{_per_axis(row.r_out, report.axes)}"
    value = getattr(row, field)
    if isinstance(value, int) and not isinstance(value, bool) and field not in ("call", "groups", "ch_in", "ch_out"):
        return f"{value:,}"
    return _text(value, field, report.axes)


def _text(value: Any, field: str, axes: Sequence[Axis]) -> str:
    """A field's value, without thousands separators."""
    if value is None:
        return ""
    if field in _PER_INPUT_AXIS:
        return _per_axis(value, axes)
    if field in _PER_MAP_AXIS:
        return _collapsed(value)
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return _atom(value)


def _per_axis(values: Sequence[Any], axes: Sequence[Axis]) -> str:
    """One number when all axes agree, `28x14` when they do not, `28x14,3` when inputs differ."""
    inputs = sorted({axis.input for axis in axes})
    groups = [[v for v, axis in zip(values, axes, strict=True) if axis.input == i] for i in inputs]
    texts = [_collapsed(group) for group in groups]
    return texts[0] if len(set(texts)) == 1 else ",".join(texts)


def _collapsed(values: Sequence[Any]) -> str:
    texts = [_atom(value) for value in values]
    return texts[0] if len(set(texts)) == 1 else "x".join(texts)


def _atom(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):  # padding before and after
        return str(value[0]) if value[0] == value[1] else f"{value[0]}:{value[1]}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int | Fraction):
        return str(value)
    return "".join(letter if letter.isprintable() else "?" for letter in str(value))


def _mark(row: LayerRow, axes: Sequence[Axis]) -> str:
    """`~` approximate, `!` unaligned, `*` global, with the axes' names unless it is all of them."""
    mark = ("" if row.exact else "~") + ("" if row.aligned else "!")
    if all(row.is_global) and row.is_global:
        return f"{mark}*"
    named = [axis.name for axis, is_global in zip(axes, row.is_global, strict=True) if is_global]
    return mark + (f"*{','.join(named)}" if named else "")


def _input_cells(report: Report, fields: Sequence[str]) -> Iterator[list[str]]:
    """The row before the first: what the network is given."""
    several = len(report.input_shapes) > 1
    for i, shape in enumerate(report.input_shapes):
        axes = [axis for axis in report.axes if axis.input == i]
        channels = [n for dim, n in enumerate(shape, start=1) if dim not in {axis.dim for axis in axes}]
        known = {
            "name": f"input {i}" if several else "input",
            "n_out": _collapsed([axis.size for axis in axes]) if axes else "",
            "ch_out": str(channels[0]) if len(channels) == 1 else "",
            "j_out": "1",
            "r_out": "1",
        }
        yield [known.get(field, "") for field in fields]


# --- totals --------------------------------------------------------------------------------------------------


def _totals(report: Report, width: int | None) -> str:
    lines = list(_total_lines(report))
    indent = max(len(key) for key, _ in lines) + 2
    return "\n".join(_wrapped(f"{key:<{indent}}{text}", width, " " * indent) for key, text in lines)


def _total_lines(report: Report) -> Iterator[tuple[str, str]]:
    yield "design", report.name or "(unnamed)"
    yield "input", ", ".join("x".join(map(str, shape)) for shape in report.input_shapes)
    frozen = report.trainable_params != report.params
    yield "params", f"{report.params:,}" + (f" ({report.trainable_params:,} trainable)" if frozen else "")
    yield "MACs", f"{report.macs:,}"
    yield "peak activations", _bytes(report.peak_activation_bytes)
    output, spatial = _per_axis(report.rf_output, report.axes), _per_axis(report.rf_spatial, report.axes)
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


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def _wrapped(text: str, width: int | None, indent: str = "") -> str:
    if width is None:
        return text
    return textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


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
        lines += [[_text(getattr(row, f), f, report.axes) for f in fields] for row in _selected(report, rows)]
        writer.writerows([report.name, *line] if several else line for line in lines)
    return stream.getvalue().removesuffix("\n")


def _nearest(wanted: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(wanted, known, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(known)}"
