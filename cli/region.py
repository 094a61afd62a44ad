"""`rfcalc region`: which part of the input one unit sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rfcalc.errors import InputError

from .shared import Debug, Input, Layout, Level, Target, analyzed, emit, load

if TYPE_CHECKING:
    from rfcalc.analysis.report import LayerRow, Region


def command(
    target: Target,
    layer: Annotated[
        str, typer.Option("--layer", metavar="NAME", help="A row's name, as `rfcalc table --all` prints it.")
    ],
    at: Annotated[str, typer.Option("--at", metavar="POSITION", help="One index per axis of the layer's map: 3,4.")],
    input_shape: Input = None,
    layout: Layout = None,
    level: Level = 2,
    debug: Debug = False,
) -> int:
    """Which input indices one position of a layer sees: inside the input, and as if it had no border.

    \b
    Example:
      rfcalc region models/step8.py --layer body.8 --at 3,4
    """
    position = parse_position(at)
    report = analyzed(load(target, input_shape), layout, level)
    row = report.row(layer)
    emit("\n".join(lines(row, position, report.region(row, position))))
    return 0


def parse_position(text: str) -> tuple[int, ...]:
    """`3,4` -> (3, 4). Raises InputError."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--at {text!r}: expected one whole number per axis, as in 3,4") from None


def lines(row: LayerRow, position: tuple[int, ...], regions: tuple[Region, ...]) -> list[str]:
    """One line per axis of the input."""
    place = ",".join(map(str, position))
    size = "x".join(map(str, row.n_out))
    cells = [(r.axis.name, span(r.exact), span(r.unclipped)) for r in regions]
    name, exact, unclipped = (max((len(cell[i]) for cell in cells), default=0) for i in range(3))
    return [
        f"{row.name} ({row.op}) at {place} of {size} sees",
        *(
            f"  {cell[0]:<{name}}  {cell[1]:<{exact}}  unclipped {cell[2]:<{unclipped}}  input 0..{r.axis.size - 1}"
            for cell, r in zip(cells, regions, strict=True)
        ),
    ]


def span(box: tuple[int, int] | None) -> str:
    """First and last index and how many there are."""
    return "nothing" if box is None else f"{box[0]}..{box[1]} ({box[1] - box[0] + 1})"
