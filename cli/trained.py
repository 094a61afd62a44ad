"""What `evaluate`, `predict` and `export` share: their options, the weights that were asked for, and their design."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rfcalc.errors import InputError

from .shared import complain, load, own_stdout

if TYPE_CHECKING:
    from torch import nn

    from rfcalc.designs.design import Design
    from rfcalc.train.verdict import Weights
    from rfcalc.train.weights import Trained


class Device(StrEnum):
    """Where a network runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"


class Kind(StrEnum):
    """Weights as the last step left them, or their average over the last steps."""

    EMA = "ema"
    RAW = "raw"


_WANTED: dict[Kind | None, Weights | None] = {Kind.EMA: "ema", Kind.RAW: "raw", None: None}
WEIGHTS = "A .safetensors file, a .pt or .pth file (read without unpickling), or a run's folder."
DesignTarget = Annotated[
    str,
    typer.Argument(
        metavar="DESIGN",
        show_default=False,
        help="file.py, file.py:Name or package.module:callable, as it was trained.",
    ),
]
WeightsPlace = Annotated[Path, typer.Argument(metavar="WEIGHTS", show_default=False, help=WEIGHTS)]
DeviceOption = Annotated[Device, typer.Option("--device", show_default=False, help="auto (default), cpu, cuda or mps.")]
KindOption = Annotated[
    Kind | None,
    typer.Option("--weights", show_default=False, help="Which. Default: ema, or raw where no average was kept."),
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", min=0, show_default=False, help="Of a run. Default: its first.")
]
MeanOption = Annotated[
    str | None,
    typer.Option(
        "--mean",
        metavar="NUMBERS",
        show_default=False,
        help="What is taken from pixels in 0..1, per channel: 0.1307. Default: as in training, where that is known.",
    ),
]
StdOption = Annotated[
    str | None,
    typer.Option("--std", metavar="NUMBERS", show_default=False, help="What they are then divided by: 0.3081."),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", metavar="DIR", show_default=False, help="Folder of the data. Default: RFCALC_DATA, else a cache."
    ),
]


def asked(place: Path, kind: Kind | None, seed: int | None) -> Trained:
    """The weights that a command line names. Raises RunError when there are none such."""
    from rfcalc.train.weights import best_known, find, pick

    return best_known(pick(find(place), weights=_WANTED[kind], seed=seed))


def designed(target: str, input_shape: str | None, trained: Trained) -> Design:
    """The design that the weights are of, with the input shape of --input, else the training's, else its own.

    Raises as `load` does.
    """
    return load(target, input_shape or "x".join(map(str, trained.about.input_shape)) or None)


def fitted(design: Design, trained: Trained) -> nn.Module:
    """The design with these weights, in evaluation mode; that it is not what was trained is told of on stderr.

    Raises as `fit` does.
    """
    from rfcalc.train.description import fingerprint
    from rfcalc.train.inference import fit

    about = trained.about
    with own_stdout():
        model = fit(design, trained)
        changed = about.source is not None and fingerprint(design) != about.source
    if changed:
        complain(
            f"caution: {trained.place}: of {about.design}, whose source or layers are not those of {design.name} now"
        )
    return model


def numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """The value of --mean or --std. Raises InputError."""
    if text is None:
        return None
    try:
        found = tuple(float(one) for one in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(map(math.isfinite, found)):
        raise InputError(f"{option} {text!r}: expected numbers joined by commas, one per channel, as in 0.49,0.48,0.45")
    return found
