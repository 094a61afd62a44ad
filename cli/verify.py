"""`rfcalc verify`: prove the table by the gradients of the network itself."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from rfcalc.errors import RfcalcError

from .shared import Debug, Input, Layout, Level, Target, analyzed, emit, load, own_stdout

if TYPE_CHECKING:
    from rfcalc.oracle import Check


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

    Exits 1 at the first disagreement and names layer, position and both boxes.

    \b
    Example:
      rfcalc verify models/step8.py
    """
    design = load(target, input_shape)
    report = analyzed(design, layout, level)
    names = [report.row(name).name for name in layers] if layers else None
    from rfcalc.oracle import prepare

    with own_stdout():
        oracle = prepare(design.build_real(), design.input_shape, report, layers=names, seed=seed, layout=layout)
    checks: list[Check] = []
    for check in _with_progress(oracle.check(report, names, positions)):
        if not check.agrees:
            emit(disagreement(check))
            return 1
        checks.append(check)
    if not checks:
        raise RfcalcError(f"{design.name}: no layer carries a gradient, so there is nothing to prove it by")
    emit(proof(checks, oracle.unmeasured(report, names)))
    return 0


def disagreement(check: Check) -> str:
    """The one line that says where table and gradient part."""
    position = ",".join(map(str, check.position))
    expected, measured = (
        "nothing" if box is None else f"{box[0]}..{box[1]}" for box in (check.expected, check.measured)
    )
    return f"disagrees: {check.layer} at {position}, axis {check.axis.name}: table {expected}, gradient {measured}"


def proof(checks: Iterable[Check], unmeasured: list[str]) -> str:
    """The one line that says what was proved, and what could not be."""
    checks = list(checks)
    layers = {check.layer for check in checks}
    loose = {check.layer for check in checks if not check.exact}
    text = f"proved: {len(layers)} layers, {len({(c.layer, c.position) for c in checks})} positions, every box equal"
    if loose:
        text += f" ({len(loose)} approximate: box contained)"
    return text + (f"; {len(unmeasured)} rows carry no gradient" if unmeasured else "")


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
