"""`rfcalc verify`: prove the table by the gradients of the network itself.

The exact boxes by one run on the input as it is, the unclipped ones (R as the table prints it) on longer inputs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rfcalc.errors import RfcalcError

from .shared import Debug, Input, Layout, Level, Target, analyzed, emit, load, own_stdout

if TYPE_CHECKING:
    from torch import nn

    from rfcalc.analysis.report import Report
    from rfcalc.proof.boxes import Box, Check

_MOST_NAMED = 3
_MOST_SHOWN = 10


def command(
    target: Target,
    input_shape: Input = None,
    layout: Layout = None,
    layers: Annotated[
        list[str] | None,
        typer.Option("--layer", metavar="NAME", show_default=False, help="Only this row; may be given several times."),
    ] = None,
    positions: Annotated[
        int, typer.Option("--positions", min=1, help="Positions of each layer: corners, edge, centre.")
    ] = 5,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the weights, the input and further positions.")] = 0,
    level: Level = 2,
    debug: Debug = False,
) -> int:
    """Compare every receptive field with the gradient of the network: corners, edge and centre of every layer.

    The exact box of each position on the input itself; its unclipped one, whose size is R, on an input so much longer
    that nothing is clipped, where the network runs on such.

    Exits 1 where a box disagrees, and names layer, position and both boxes; also where no box was shown equal, as
    in a table of nothing but approximate rows, whose box has only to contain what the gradient shows.

    \b
    Example:
      rfcalc verify models/step8.py
    """
    design = load(target, input_shape)
    report = analyzed(design, layout, level)
    names = [report.row(name).name for name in layers] if layers else None
    from rfcalc.proof.oracle import prepare

    with own_stdout():
        model = design.build_real()
        oracle = prepare(model, design.input_shape, report, layers=names, seed=seed, layout=layout)
        exact = list(_with_progress(oracle.check(report, names, positions)))
        untried = {EXACT: oracle.unmeasured(report, names)}
        unclipped, untried[UNCLIPPED] = _unclipped(
            model, design.input_shape, report, layers=names, positions=positions, seed=seed, layout=layout
        )
    text, proved = proof([*exact, *unclipped], untried)
    emit(text)
    return 0 if proved else 1


def _unclipped(
    model: nn.Module, input_shape: Any, report: Report, **options: Any
) -> tuple[list[Check], dict[str, str]]:  # fmt: skip
    """What longer inputs show, and the rows that they do not, by name, and why."""
    from rfcalc.proof.enlarged import each_way

    checks: list[Check] = []
    skipped: dict[str, str] = {}
    named = [row for row in report.rows if not options["layers"] or row.name in options["layers"]]
    try:
        for run in each_way(model, input_shape, report, **options):
            checks += _with_progress(run.check(options["positions"]))
            skipped |= run.skipped
    except RfcalcError as error:
        skipped |= {row.name: str(error) for row in named}
    measured = {check.layer for check in checks}
    return checks, {name: why for name, why in skipped.items() if name not in measured}


EXACT, UNCLIPPED = "exact", "unclipped"


def proof(checks: Sequence[Check], untried: Mapping[str, Mapping[str, str]]) -> tuple[str, bool]:
    """The lines that say what was shown equal, what was not and why; and whether something was and nothing differs.

    `untried`: of each kind of box, the rows that could not be tried, and why. A box that is empty on both sides shows
    nothing by itself.
    """
    wrong = [check for check in checks if not check.agrees]
    equal = [check for check in checks if check.exact and check.agrees]
    shown = any(check.measured is not None for check in equal)
    said = []
    for kind in (EXACT, UNCLIPPED) if shown else ():
        found = [check for check in equal if check.kind == kind]
        if found:
            layers, places = {check.layer for check in found}, {(check.layer, check.position) for check in found}
            boxes = _counted(len(found), f"{kind} box is equal", f"{kind} boxes are equal")
            said.append(f"{boxes}, of {_counted(len(layers), 'layer')} at {_counted(len(places), 'position')}")
    said = said or ["no box was shown equal"]
    loose = list(dict.fromkeys(check.layer for check in checks if not check.exact and check.agrees))
    if loose:
        rows = _counted(len(loose), "row is", "rows are")
        said.append(f"{rows} approximate (box contained, not shown equal): {_listed(loose)}")
    for kind, reasons in untried.items():
        for why in dict.fromkeys(reasons.values()):
            names = [name for name, reason in reasons.items() if reason == why]
            said.append(f"{_counted(len(names), 'row')} not tried, {kind}: {why} ({_listed(names)})")
    if not checks and not any(untried.values()):
        said.append("the table has no rows")
    if wrong:
        head = f"wrong: {_counted(len(wrong), 'box disagrees', 'boxes disagree')} with the gradient"
        more = [f"and {len(wrong) - _MOST_SHOWN} more"] if len(wrong) > _MOST_SHOWN else []
        return "\n  ".join([head, *_columns(wrong[:_MOST_SHOWN]), *more, *said]), False
    return f"{'proved' if shown else 'not proved'}: " + "\n  ".join(said), shown


def _columns(wrong: Sequence[Check]) -> list[str]:
    """Where table and gradient part, one line each."""
    lines = [("layer", "position", "axis", "box", "table", "gradient")]
    for check in wrong:
        place = ",".join(map(str, check.position))
        lines.append((check.layer, place, check.axis.name, check.kind, _said(check.expected), _said(check.measured)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]


def _said(box: Box | None) -> str:
    return "nothing" if box is None else f"{box[0]}..{box[1]}"


def _counted(n: int, one: str, many: str = "") -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _with_progress(checks: Iterator[Check]) -> Iterator[Check]:
    """Name the layer at work, on a terminal only."""
    shown = sys.stderr.isatty()
    layer = ""
    for check in checks:
        if shown and check.layer != layer:
            layer = check.layer
            sys.stderr.write(f"\r\033[K{layer}")
            sys.stderr.flush()
        yield check
    if shown:
        sys.stderr.write("\r\033[K")
