"""`rfcalc compare`: designs side by side, and of two what differs layer by layer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rfcalc.errors import DesignError, NoDesignError

from .shared import (
    FILE,
    Debug,
    Input,
    Layout,
    Level,
    analyzed,
    complain,
    emit,
    import_torch,
    load_with,
    own_stdout,
    screen,
    write_file,
)
from .table import complete_format

if TYPE_CHECKING:
    from rfcalc.analysis.report import Report
    from rfcalc.designs.design import Design
    from rfcalc.gate.verdict import Verdict
    from rfcalc.train.description import Run


def _complete_sort(incomplete: str) -> list[str]:
    from rfcalc.render.comparison import sort_keys

    return [key for key in sort_keys() if key.startswith(incomplete)]


def command(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET...",
            show_default=False,
            help="Files, folders (searched for designs), globs, file.py:Name or package.module:callable.",
        ),
    ],
    sort: Annotated[
        str | None,
        typer.Option(
            "--sort",
            metavar="FIGURE",
            autocompletion=_complete_sort,
            show_default=False,
            help="Smallest first by params, macs, rf_output, rf_spatial, peak_activation_bytes, layers or design.",
        ),
    ] = None,
    fmt: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            autocompletion=complete_format,
            help="csv (a line per design), json, or any format of tabulate.",
        ),
    ] = "simple",
    input_shape: Input = None,
    layout: Layout = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", show_default=False, help="Settings, in place of the nearest pyproject.toml."
        ),
    ] = None,
    runs: Annotated[
        Path,
        typer.Option("--runs", metavar="DIR", help="Run folders of rfcalc train: of each design the latest counts."),
    ] = Path("runs"),
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", show_default=False, help="Write there instead of stdout.")
    ] = None,
    level: Level = 2,
    debug: Debug = False,
) -> int:
    """Designs side by side: parameters, receptive fields, MACs, activations, depth, and what the gate says of each.

    Of exactly two designs also what differs from the first to the second, layer by layer. Rejects nothing.

    \b
    Examples:
      rfcalc compare models --sort params
      rfcalc compare models/step7.py models/step8.py
    """
    from rfcalc.render.comparison import checked_sort, comparison
    from rfcalc.render.table import checked_format

    checked_format(fmt)
    if sort is not None:
        checked_sort(sort)
    found = list(_compared(targets, {"input": input_shape, "layout": layout}, config, level, runs))
    if not found:
        raise DesignError(f"{', '.join(targets)}: no file here defines a design; name one that does")
    page = screen(sys.stdout) if output is None else FILE
    text = comparison(
        [(verdict, report) for verdict, report, _ in found],
        trained={verdict.design: (run, run.verdict()) for verdict, _, run in found if run is not None},
        fmt=fmt,
        sort=sort,
        width=page.width,
        color=page.color,
        ascii_only=page.ascii_only,
    )
    if output is None:
        emit(text)
    else:
        write_file(output, text)
    return 0


def _compared(
    targets: list[str], flags: dict[str, object], config: Path | None, level: int, runs: Path
) -> Iterator[tuple[Verdict, Report, Run | None]]:
    """Verdict, report and latest run of every design, in order; files of a search that define none are passed over."""
    from rfcalc.designs.targets import find_targets
    from rfcalc.gate.settings import settings_for

    found = find_targets(targets)
    settings = [settings_for(target.file, config=config, flags=flags) for target in found.targets]
    import_torch()
    from rfcalc.gate.budget import check
    from rfcalc.gate.verdict import Verdict, figures

    trained = _trained(runs)
    for target, applies in zip(found.targets, settings, strict=True):
        try:
            design = load_with(target.target, applies)
        except NoDesignError:
            if target.searched:
                continue
            raise
        report = analyzed(design, applies.layout, level)
        violations = tuple(check(report, applies.budget))
        verdict = Verdict(
            target=target.target,
            design=design.name,
            file=None if design.path is None else str(design.path),
            line=design.line,
            outcome="fail" if violations else "pass",
            budget=applies.budget,
            figures=figures(report),
            violations=violations,
        )
        yield verdict, report, _run(design, trained)


def _trained(runs: Path) -> dict[str, Run]:
    """The newest finished runs by the fingerprint of their design; what is damaged is told of and left out."""
    if not runs.is_dir():
        return {}
    from rfcalc.train.run_folder import newest

    found, damaged = newest(runs)
    for error in damaged:
        complain(f"caution: {error}; left out")
    return found


def _run(design: Design, trained: dict[str, Run]) -> Run | None:
    if not trained:
        return None
    from rfcalc.train.description import fingerprint

    with own_stdout():
        return trained.get(fingerprint(design))
