"""`rfcalc report`: report.md and the pictures of a run, made again from its figures and weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .shared import Debug, emit, import_torch, own_stdout

if TYPE_CHECKING:
    from rfcalc.designs.design import Design
    from rfcalc.train.data import DataSet
    from rfcalc.train.description import Run


def command(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", show_default=False, help="A run's folder: runs/models-step8-Net/2026-11-21T..."),
    ],
    design: Annotated[
        str | None,
        typer.Option("--design", metavar="TARGET", show_default=False, help="Where the design is now, if it moved."),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", metavar="DIR", show_default=False, help="Where the data are now, if they moved."),
    ] = None,
    debug: Debug = False,
) -> int:
    """Make report.md and the pictures of a run again, and show its verdict.

    \b
    Example:
      rfcalc report runs/models-step8-Net/2026-11-21T07-05-14
    """
    import_torch()
    from rfcalc.render.training import verdict_text
    from rfcalc.train.run_folder import read

    found = read(run)
    file = write_report(found, *parts_of(found, design, data_dir))
    emit(f"{verdict_text(found.verdict())}\n\n{file}")
    return 0


def parts_of(run: Run, target: str | None, data_dir: Path | None) -> tuple[Design, DataSet]:
    """The design and the data of a run, as they were. Raises RunError when they are no longer what they were."""
    return design_of(run, target), data_of(run, data_dir)


def design_of(run: Run, target: str | None) -> Design:
    """The design of a run, as it was. Raises RunError when it is no longer what it was."""
    from rfcalc.designs.design import load_design
    from rfcalc.errors import RunError
    from rfcalc.train.description import fingerprint

    config = run.config
    with own_stdout():
        design = load_design(target or config.target, config.input_shape)
        if fingerprint(design) != config.source:
            raise RunError(
                f"{run.folder}: trained {config.design}, whose source or layers are not those of {design.name} now; "
                "expected the same design: undo the change or start a new run"
            )
    return design


def data_of(run: Run, data_dir: Path | None, *, download: bool = True) -> DataSet:
    """The data of a run, as they were. Raises RunError when they are no longer what they were, DataError."""
    from rfcalc.errors import RunError
    from rfcalc.train.data import load
    from rfcalc.train.description import data_fingerprint

    config = run.config
    with own_stdout():
        folder = data_dir or (Path(config.data_dir) if config.data_dir else None)
        data = load(config.data, data_dir=folder, input_shape=config.input_shape, download=download)
    if data_fingerprint(data) != config.data_sha256 or data.classes != config.classes:
        raise RunError(f"{run.folder}: trained on other images or labels than {data.name} has now; start a new run")
    return data


def write_report(run: Run, design: Design, data: DataSet) -> Path:
    """Write report.md and its pictures into a run's folder. Raises RunError when there is nothing to report yet."""
    from rfcalc.render import plot
    from rfcalc.render.training import report
    from rfcalc.train.analysis import analyse
    from rfcalc.train.loop import pick_device
    from rfcalc.train.record import write

    data = run.config.recipe.fitted(data)
    with own_stdout():
        analysis = analyse(run, design, data, pick_device("auto") if run.config.device != "cpu" else "cpu")
    pictures = {
        "curves.png": ("Loss and accuracy by epoch", plot.curves(run)),
        "rates.png": ("Learning rate and momentum as used", plot.rates(run)),
        "augmented.png": ("Training images as augmented", plot.augmented(run, data)),
        "misclassified.png": (
            f"Misclassified test images of seed {analysis.seed}, the most confident first",
            plot.misclassified(analysis, data),
        ),
        "confusion.png": (f"Confusions of seed {analysis.seed}", plot.confusions(analysis, data.classes)),
    }
    for name, (_, figure) in pictures.items():
        write(run.folder / name, plot.png(figure))
    captions = {name: caption for name, (caption, _) in pictures.items()}
    file = run.folder / "report.md"
    write(file, f"{report(run, run.verdict(), analysis, captions)}\n".encode())
    return file
