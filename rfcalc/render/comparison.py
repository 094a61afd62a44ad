"""Designs side by side -> text, csv or json; of exactly two also layer by layer. Nothing is computed or judged here.

>>> print(comparison([(verdict, report), ...]))       # doctest: +SKIP
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any, NamedTuple

from rfcalc.errors import RfcalcError
from rfcalc.render.cells import atom, changes, collapsed, figure_texts, nearest
from rfcalc.render.columns import COLUMNS, Column
from rfcalc.render.page import BOLD, DIM, GREEN, RED, YELLOW, Page, ascii_format, colored, fitted, styled, wrapped
from rfcalc.render.table import DEFAULT_FORMAT, checked_format, selected
from rfcalc.render.training import held, verdict_values

if TYPE_CHECKING:
    from rfcalc.analysis.report import LayerRow, Report
    from rfcalc.gate.verdict import Verdict
    from rfcalc.train.description import Run
    from rfcalc.train.verdict import Verdict as TrainVerdict

    Trained = Mapping[str, tuple[Run, TrainVerdict]]

SCHEMA = "rfcalc.comparison/1"
Compared = tuple["Verdict", "Report"]

# What tells whether a layer changed, and is shown of it; the last four only where some layer differs in them.
_FIELDS = ("op", "kernel", "n_out", "ch_out", "r_out", "params")
_RARE_FIELDS = ("stride", "padding", "dilation", "j_out")
_ALIKE = 2  # longer runs of layers that did not change are folded
_STYLES = {"added": GREEN, "removed": RED, "changed": YELLOW}
_CONVENTIONS = (
    "RF receptive field at the output, spatial RF at the last spatial map, in input pixels; "
    "activations: peak, batch 1; depth: layers that multiply"
)
_TRAINED = "; trained: on what, the lowest of the last epochs of the latest run, and how many seeds held its target"


def sort_keys() -> list[str]:
    """What `comparison` can sort by: the design's name and the figures."""
    from rfcalc.gate.verdict import Figures

    return ["design", *(field.name for field in dataclasses.fields(Figures))]


def checked_sort(key: str) -> str:
    """The key. Raises RfcalcError that gives the nearest ones, or all of them."""
    if key not in sort_keys():
        raise RfcalcError(f"sort key {key!r}: unknown; {nearest(key, sort_keys())}")
    return key


def comparison(
    designs: Sequence[Compared],
    *,
    trained: Trained | None = None,
    fmt: str = DEFAULT_FORMAT,
    sort: str | None = None,
    width: int | None = 100,
    color: bool = False,
    ascii_only: bool = False,
) -> str:
    """A line per design; of exactly two designs also what differs from the first to the second, layer by layer.

    Args:
        designs: verdict and report of each; the verdicts have figures.
        trained: the run of a design and its verdict, by the design's name, for those that were trained.
        fmt: csv (without the layers), json, or any format of tabulate.
        sort: one of `sort_keys()`, smallest first; by default the designs stay in their order.
        width, color, ascii_only: as for `table`.

    Raises:
        RfcalcError: an unknown format or sort key.
    """
    checked_format(fmt)
    trained = trained or {}
    ordered = list(designs) if sort is None else sorted(designs, key=_by(checked_sort(sort)))
    if fmt == "json":
        return json.dumps(_json(ordered, designs, trained), indent=1)
    if fmt == "csv":
        return _csv(ordered, trained)
    page = Page(ascii_format(fmt) if ascii_only else fmt, width, color, ascii_only)
    blocks = [_designs(ordered, trained, page)]
    if len(designs) == 2:
        blocks.append(_difference(designs[0], designs[1], page))
    blocks.append(styled(wrapped(_CONVENTIONS + _TRAINED * bool(trained), width), DIM, color))
    text = "\n\n".join(blocks)
    return text.encode("ascii", "replace").decode() if ascii_only else text


def _by(key: str) -> Callable[[Compared], Any]:
    return lambda compared: getattr(compared[0] if key == "design" else compared[0].figures, key)


# --- designs -------------------------------------------------------------------------------------------------


def _designs(designs: Sequence[Compared], trained: Trained, page: Page) -> str:
    lines = [_line(*compared, trained) for compared in designs]
    headings = list(lines[0])
    if len({line["input"] for line in lines}) == 1:
        headings.remove("input")
    body = fitted(headings, [[line[heading] for heading in headings] for line in lines], page)
    return colored(body, [""] * len(lines)) if page.color and page.fmt == "simple" else body


def _line(verdict: Verdict, report: Report, trained: Trained) -> dict[str, str]:
    assert verdict.figures is not None
    shapes = ", ".join(map(_shape, report.input_shapes))
    judged = "PASS" if verdict.outcome == "pass" else f"FAIL {', '.join(_missed(verdict))}"
    line = {"design": atom(verdict.design), "input": shapes, **figure_texts(verdict.figures)}
    return {**line, **_accuracy(verdict, trained), "verdict": judged}


def _accuracy(verdict: Verdict, trained: Trained) -> dict[str, str]:
    """`mnist 99.53 % 3/3`, empty for a design that was not trained; no cell where none was."""
    if not trained:
        return {}
    if verdict.design not in trained:
        return {"trained": ""}
    run, found = trained[verdict.design]
    return {"trained": f"{atom(run.config.data)} {held(found)}"}


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _missed(verdict: Verdict) -> list[str]:
    return [violation.limit.replace("_", "-") for violation in verdict.violations]


def _csv(designs: Sequence[Compared], trained: Trained) -> str:
    """Field names as the heading, as in JSON."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*sort_keys(), "outcome", "missed", *["trained"] * bool(trained)])
    for verdict, _ in designs:
        values = [getattr(verdict.figures, key) for key in sort_keys()[1:]]
        figures = [collapsed(value) if isinstance(value, tuple) else value for value in values]
        accuracy = _accuracy(verdict, trained).values()
        writer.writerow([verdict.design, *figures, verdict.outcome, " ".join(_missed(verdict)), *accuracy])
    return stream.getvalue().removesuffix("\n")


# --- layer by layer ------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """One layer before and after; None where it was added or removed."""

    before: LayerRow | None
    after: LayerRow | None

    @property
    def change(self) -> str:
        """`added`, `removed`, `changed`, or "" for a layer that is what it was (but for its name)."""
        if self.before is None or self.after is None:
            return "added" if self.before is None else "removed"
        return "changed" if any(_differs(self, field) for field in (*_FIELDS, *_RARE_FIELDS)) else ""


def paired(before: Sequence[LayerRow], after: Sequence[LayerRow]) -> list[Pair]:
    """Every layer of both once, in an order that keeps both orders: the pairing with the least to tell.

    Layers that are wholly alike are found first; what lies between them is paired at the least cost.
    """
    old_keys, new_keys = ([_key(row) for row in rows] for rows in (before, after))
    pairs: list[Pair] = []
    for kind, a, a_end, b, b_end in SequenceMatcher(None, old_keys, new_keys, autojunk=False).get_opcodes():
        old, new = before[a:a_end], after[b:b_end]
        pairs += map(Pair, old, new) if kind == "equal" else _cheapest(old, new)
    return pairs


_ALONE = 3  # what an added or removed layer costs: two of them more than any pair
_MOST_PAIRS = 1_000_000  # two seconds; networks this large and this unlike are not read layer by layer


def _key(row: LayerRow) -> tuple[object, ...]:
    return row.name, row.op, row.kernel, row.stride, row.padding, row.dilation, row.ch_out


def _cost(before: LayerRow, after: LayerRow) -> float:
    """How much there is to tell of one layer becoming the other; another op makes it another layer."""
    if before.op != after.op:
        return math.inf
    moved = any(
        getattr(before, field) != getattr(after, field) for field in ("kernel", "stride", "padding", "dilation")
    )
    return (before.name != after.name) + 2 * (before.ch_out != after.ch_out) + 2 * moved


def _cheapest(before: Sequence[LayerRow], after: Sequence[LayerRow]) -> list[Pair]:
    """The pairing of least cost, by dynamic programming over what is left of both from the end on."""
    if len(before) * len(after) > _MOST_PAIRS:
        return [*(Pair(row, None) for row in before), *(Pair(None, row) for row in after)]
    least = {(len(before), len(after)): (0.0, (0, 0))}
    for i, j in itertools.product(range(len(before), -1, -1), range(len(after), -1, -1)):
        steps = []
        if i < len(before) and j < len(after):
            steps.append((_cost(before[i], after[j]) + least[i + 1, j + 1][0], (1, 1)))
        if i < len(before):
            steps.append((_ALONE + least[i + 1, j][0], (1, 0)))
        if j < len(after):
            steps.append((_ALONE + least[i, j + 1][0], (0, 1)))
        if steps:
            least[i, j] = min(steps, key=lambda step: step[0])
    pairs, i, j = [], 0, 0
    while (i, j) != (len(before), len(after)):
        _, (old, new) = least[i, j]
        pairs.append(Pair(before[i] if old else None, after[j] if new else None))
        i, j = i + old, j + new
    return pairs


def _differs(pair: Pair, field: str) -> bool:
    return pair.before is None or pair.after is None or getattr(pair.before, field) != getattr(pair.after, field)


def _difference(old: Compared, new: Compared, page: Page) -> str:
    (first, before), (second, after) = old, new
    assert first.figures is not None
    assert second.figures is not None
    pairs = paired(selected(before, "default"), selected(after, "default"))
    title = styled(f"{atom(first.design)} -> {atom(second.design)}", BOLD, page.color)
    title += "\n" + wrapped(changes(first.figures, second.figures), page.width)
    if not any(pair.change for pair in pairs):
        return f"{title}\nno layer differs"
    both = [pair for pair in pairs if pair.change == "changed"]
    rare = [field for field in _RARE_FIELDS if any(_differs(pair, field) for pair in both)]
    columns = [column for column in COLUMNS if column.name in ("name", *_FIELDS, *rare)]
    cells: list[list[str]] = []
    styles: list[str] = []
    for change, run in itertools.groupby(pairs, key=lambda pair: pair.change):
        group = list(run)
        if not change and len(group) > _ALIKE:
            cells.append(["", f"({len(group)} alike)", *[""] * (len(columns) - 1)])
        else:
            cells += [[change, *(_changed(pair, column, before, after) for column in columns)] for pair in group]
        styles += [_STYLES.get(change, "")] * (len(cells) - len(styles))
    body = fitted(["change", *(column.heading for column in columns)], cells, page)
    return "\n\n".join([title, colored(body, styles) if page.color and page.fmt == "simple" else body])


def _changed(pair: Pair, column: Column, before: Report, after: Report) -> str:
    """`8`, or `8 -> 10`."""
    sides = [(pair.before, before), (pair.after, after)]
    texts = [column.cell(row, report, merged=True) for row, report in sides if row is not None]
    return texts[0] if len(set(texts)) == 1 else " -> ".join(text or "none" for text in texts)


# --- json ----------------------------------------------------------------------------------------------------


def _json(ordered: Sequence[Compared], given: Sequence[Compared], trained: Trained) -> dict[str, Any]:
    difference = None
    if len(given) == 2:
        before, after = (report for _, report in given)
        difference = {
            "before": before.name,
            "after": after.name,
            "layers": [
                {"change": pair.change or "none", "before": _row(before, pair.before), "after": _row(after, pair.after)}
                for pair in paired(selected(before, "default"), selected(after, "default"))
            ],
        }
    return {
        "schema": SCHEMA,
        "designs": [
            {
                "design": verdict.design,
                "input_shapes": report.input_shapes,
                "figures": dataclasses.asdict(verdict.figures) if verdict.figures else None,
                "outcome": verdict.outcome,
                "missed": [violation.limit for violation in verdict.violations],
                "trained": _training(*trained[verdict.design]) if verdict.design in trained else None,
            }
            for verdict, report in ordered
        ],
        "difference": difference,
    }


def _training(run: Run, verdict: TrainVerdict) -> dict[str, Any]:
    config = run.config
    return {"run": str(run.folder), "data": config.data, "recipe": config.recipe.name, **verdict_values(verdict)}


def _row(report: Report, row: LayerRow | None) -> Any:
    return None if row is None else report.to_dict([row])["rows"][0]
