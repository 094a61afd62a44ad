"""Cells -> a table that fits the page it is read on, and text wrapped and coloured for it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

_SHORTEST_NAME, _SHORTEST_OP = 12, 11
# Formats that a person reads as they stand: names are shortened to keep a row on one line. Markup is left whole.
_FITTED = frozenset(("simple", "plain", "pretty", "psql", "presto", "rst", "orgtbl"))
_LEFT = frozenset(("layer", "name", "path", "op", "", "verdict", "design", "change"))
BOLD, DIM, RED, GREEN, YELLOW, _RESET = "\033[1m", "\033[2m", "\033[31m", "\033[32m", "\033[33m", "\033[0m"


@dataclass(frozen=True)
class Page:
    """How the text will be shown."""

    fmt: str
    width: int | None
    color: bool
    ascii_only: bool


def fitted(headings: list[str], cells: list[list[str]], page: Page) -> str:
    """The table; what does not fit the width is cut, first the ends of the longest ops, then the heads of the paths."""
    text = _tabulated(headings, cells, page.fmt)
    if page.width is None or not reads_as_is(page.fmt):
        return text
    ellipsis = "..." if page.ascii_only else "…"
    for heading, shortest in (("op", _SHORTEST_OP), *((name, _SHORTEST_NAME) for name in ("layer", "name", "design"))):
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

    align = ["left" if heading in _LEFT else "right" for heading in headings]
    padding = tabulate.MIN_PADDING
    # By default a heading makes its column two wider than it is; fifteen columns cannot afford it.
    tabulate.MIN_PADDING = 0
    try:
        return tabulate.tabulate(cells, headings, fmt, disable_numparse=True, colalign=align)
    finally:
        tabulate.MIN_PADDING = padding


def reads_as_is(fmt: str) -> bool:
    """Does a person read this format as it stands, unlike markup?"""
    return fmt in _FITTED or fmt.endswith(("grid", "outline"))


def ascii_format(fmt: str) -> str:
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


def styled(text: str, style: str, on: bool) -> str:
    """The text in a terminal's style, or as it is."""
    return f"{style}{text}{_RESET}" if on else text


def colored(body: str, styles: Sequence[str]) -> str:
    """A table of the simple format, two lines of heading and then the rows, each row in its style ("" for none)."""
    heading, rule, *lines = body.splitlines()
    rows = [styled(line, style, bool(style)) for line, style in zip(lines, styles, strict=True)]
    return "\n".join([styled(heading, BOLD, True), styled(rule, DIM, True), *rows])


def wrapped(text: str, width: int | None, indent: str = "") -> str:
    """The text in lines of `width`, all but the first indented."""
    if width is None:
        return text
    return textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
