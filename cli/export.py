"""`rfcalc export`: a trained design as an ONNX model that was checked against torch."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rfcalc.errors import InputError, RfcalcError

from .report import data_of
from .shared import Debug, Input, complain, emit, import_torch, own_stdout, write_bytes
from .trained import DataDirOption, DesignTarget, KindOption, SeedOption, WeightsPlace, asked, designed, fitted

if TYPE_CHECKING:
    from torch import nn

    from rfcalc.designs.design import Design
    from rfcalc.train.export import Checked
    from rfcalc.train.weights import Trained

_REAL = 256
"""Test images that are compared."""


def command(
    target: DesignTarget,
    weights: WeightsPlace,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", show_default=False, help="The .onnx file to write.")
    ],
    kind: KindOption = None,
    seed: SeedOption = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", metavar="X", help="The greatest difference of any score to torch's.")
    ] = 1e-4,
    data_dir: DataDirOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON in place of text.")] = False,
    input_shape: Input = None,
    debug: Debug = False,
) -> int:
    """Write a trained design as ONNX, for any number of images at once.

    Before, onnxruntime's answers are compared with torch's: on random inputs and, where the weights are a run's, on its
    test images. Exit code 1, and no file: they differ by more than the tolerance. The input is normalised images; mean,
    std and classes are in the file's metadata.

    \b
    Example:
      rfcalc export models/step8.py runs/models-step8-Net/2026-11-21T07-05-14 --output step8.onnx
    """
    if not tolerance >= 0 or not math.isfinite(tolerance):
        raise InputError(f"--tolerance {tolerance}: expected a number, 0 or more")
    import_torch()
    from rfcalc.render.inference import export_json, export_text
    from rfcalc.train.export import Export, compared, exported, properties
    from rfcalc.train.inference import normalisation

    trained = asked(weights, kind, seed)
    design = designed(target, input_shape, trained)
    shape = _one_shape(design)
    normal = normalisation(trained, channels=shape[0]) if trained.about.mean else None
    model = fitted(design, trained)
    with own_stdout():
        about = dataclasses.replace(trained.about, design=trained.about.design or design.name)
        content = exported(model, shape, properties(about, normal))
        checks = [compared(model, content, shape), *_on_data(model, content, trained, weights, data_dir)]
    done = Export(
        str(output), len(content), design.name, trained.place, trained.about, shape, normal, tuple(checks), tolerance
    )
    if done.fine:
        write_bytes(output, content)
    emit(export_json(done) if as_json else export_text(done))
    return 0 if done.fine else 1


def _one_shape(design: Design) -> tuple[int, ...]:
    shape = design.input_shape
    if not isinstance(shape, tuple) or not all(isinstance(length, int) for length in shape):
        raise InputError(f"{design.name}: the input shape is {shape}; expected that of one input, as in (1, 28, 28)")
    return shape  # type: ignore[return-value]


def _on_data(model: nn.Module, content: bytes, trained: Trained, weights: Path, data_dir: Path | None) -> list[Checked]:
    """The comparison on test images of the run that the weights lie in; none where they lie in none.

    Data that are gone are told of on stderr: the model itself can be exported without them.
    """
    import torch

    from rfcalc.train.data import normalise
    from rfcalc.train.export import Checked, difference
    from rfcalc.train.run_folder import read

    folder = weights if weights.is_dir() else weights.parent
    if not (folder / "config.json").is_file() or not trained.about.mean:
        return []
    try:
        data = data_of(read(folder), data_dir, download=False)
    except RfcalcError as error:
        complain(f"caution: not compared on test images: {error}")
        return []
    data = dataclasses.replace(data, mean=trained.about.mean, std=trained.about.std)
    count = min(_REAL, len(data.test))
    images = normalise(data.test.batch(torch.arange(count))[0], data)
    return [Checked(f"test images of {data.name}", count, difference(model, content, images))]
