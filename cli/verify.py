"""`rfcalc verify`: prove the table by the gradients of the network itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from .shared import Debug, Input, Layout, Level, Target, analyzed, emit, load, own_stdout

if TYPE_CHECKING:
    from rfcalc.proof.boxes import Check

_MOST_NAMED = 3


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

    Exits 1 at the first disagreement and names layer, position and both boxes; also where no box was shown equal, as
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
        oracle = prepare(design.build_real(), design.input_shape, report, layers=names, seed=seed, layout=layout)
    checks: list[Check] = []
    for check in _with_progress(oracle.check(report, names, positions)):
        if not check.agrees:
            emit(disagreement(check))
            return 1
        checks.append(check)
    text, proved = proof(checks, oracle.unmeasured(report, names))
    emit(text)
    return 0 if proved else 1


def disagreement(check: Check) -> str:
    """The one line that says where table and gradient part."""
    position = ",".join(map(str, check.position))
    expected, measured = (
        "nothing" if box is None else f"{box[0]}..{box[1]}" for box in (check.expected, check.measured)
    )
    return f"disagrees: {check.layer} at {position}, axis {check.axis.name}: table {expected}, gradient {measured}"


def proof(checks: Sequence[Check], unmeasured: Mapping[str, str]) -> tuple[str, bool]:
    """The one line that says what was shown equal, what was not and why; and whether anything was.

    A box that is empty on both sides shows nothing by itself.
    """
    equal = [check for check in checks if check.exact]
    loose = {check.layer for check in checks if not check.exact}
    proved = any(check.measured is not None for check in equal)
    said = ["no box was shown equal"]
    if proved:
        layers, places = {check.layer for check in equal}, {(check.layer, check.position) for check in equal}
        boxes = _counted(len(equal), "box is equal", "boxes are equal")
        said = [f"{boxes}, of {_counted(len(layers), 'layer')} at {_counted(len(places), 'position')}"]
    if loose:
        said.append(f"{_counted(len(loose), 'row is', 'rows are')} approximate (box contained, not shown equal)")
    for why in dict.fromkeys(unmeasured.values()):
        names = [name for name, reason in unmeasured.items() if reason == why]
        said.append(f"{_counted(len(names), 'row')} could not be tried: {why} ({_listed(names)})")
    if not checks and not unmeasured:
        said.append("the table has no rows")
    return f"{'proved' if proved else 'not proved'}: {'; '.join(said)}", proved


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
