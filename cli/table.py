"""`rfcalc table`: the receptive-field table of one or more designs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .shared import FILE, Debug, Input, Layout, Level, analyzed, emit, import_torch, load, screen, write_file

Targets = Annotated[
    list[str],
    typer.Argument(
        metavar="TARGET...",
        show_default=False,
        help="file.py, file.py:Name or package.module:callable, each optionally followed by #sub.module.path.",
    ),
]


def complete_format(incomplete: str) -> list[str]:
    """The formats that begin so: for the shell."""
    from rfcalc.render.table import formats

    return [name for name in formats() if name.startswith(incomplete)]


def command(
    targets: Targets,
    input_shape: Input = None,
    layout: Layout = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every op, not only rows that move the grid or own params.")
    ] = False,
    geometry: Annotated[bool, typer.Option("--geometry", help="Only rows that move the grid.")] = False,
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns", metavar="NAMES", show_default=False, help="Fields of a row, as in name,n_out,r_out,start,macs."
        ),
    ] = None,
    fmt: Annotated[
        str,
        typer.Option(
            "--format", metavar="FORMAT", autocompletion=complete_format, help="csv, json, or any format of tabulate."
        ),
    ] = "simple",
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", show_default=False, help="Write there instead of stdout.")
    ] = None,
    level: Level = 2,
    debug: Debug = False,
) -> int:
    """Per-layer table of map size, jump, receptive field and parameters.

    \b
    Examples:
      rfcalc table models/step8.py
      rfcalc table models/step7.py models/step8.py --geometry --format github
      rfcalc table torchvision.models:resnet18 --input 3x224x224 --columns name,n_out,r_out,macs
    """
    from rfcalc.render.table import checked_columns, checked_format, table

    if every and geometry:
        raise typer.BadParameter("--all and --geometry exclude each other")
    checked_format(fmt)
    import_torch()
    fields = None if columns is None else checked_columns(columns)
    reports = [analyzed(load(target, input_shape), layout, level) for target in targets]
    page = screen(sys.stdout) if output is None else FILE
    text = table(
        *reports,
        rows="all" if every else "geometry" if geometry else "default",
        columns=fields,
        fmt=fmt,
        width=page.width,
        color=page.color,
        ascii_only=page.ascii_only,
    )
    if output is None:
        emit(text)
    else:
        write_file(output, text)
    return 0
