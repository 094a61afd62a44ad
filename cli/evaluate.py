"""`rfcalc evaluate`: what trained weights reach on a test set."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rfcalc.errors import InputError

from .report import data_of, design_of
from .shared import Debug, Input, complain, emit, import_torch, own_stdout
from .trained import DataDirOption, Device, DeviceOption, MeanOption, StdOption, designed, fitted, numbers

if TYPE_CHECKING:
    from rfcalc.designs.design import Design
    from rfcalc.train.data import DataSet
    from rfcalc.train.description import Run
    from rfcalc.train.verdict import Weights
    from rfcalc.train.weights import Trained


class _Kinds(StrEnum):
    EMA = "ema"
    RAW = "raw"
    BOTH = "both"


_WANTED: dict[_Kinds, Weights | None] = {_Kinds.EMA: "ema", _Kinds.RAW: "raw", _Kinds.BOTH: None}


def command(
    weights: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|WEIGHTS",
            show_default=False,
            help="A run's folder, or a .safetensors, .pt or .pth file (read without unpickling).",
        ),
    ],
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="DESIGN", show_default=False, help="What the weights are of. Of a run: only if the design moved."
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            metavar="NAME",
            show_default=False,
            help="As for train; folder:PATH for one's own images. Default: that of the training, else mnist.",
        ),
    ] = None,
    data_dir: DataDirOption = None,
    kinds: Annotated[
        _Kinds, typer.Option("--weights", show_default=False, help="raw, ema or both (default), as far as kept.")
    ] = _Kinds.BOTH,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, show_default=False, help="Of a run. Default: all.")
    ] = None,
    mean: MeanOption = None,
    std: StdOption = None,
    device: DeviceOption = Device.AUTO,
    as_json: Annotated[bool, typer.Option("--json", help="JSON in place of text.")] = False,
    input_shape: Input = None,
    debug: Debug = False,
) -> int:
    """Test loss and accuracy of a run's weights, every seed, raw and averaged; or of one file's.

    \b
    Examples:
      rfcalc evaluate runs/models-step8-Net/2026-11-21T07-05-14
      rfcalc evaluate net.safetensors models/step8.py --dataset mnist
    """
    import_torch()
    import torch

    from rfcalc.render.inference import scores_json, scores_text
    from rfcalc.train.evaluation import require_fit
    from rfcalc.train.inference import normalisation, recorded, score
    from rfcalc.train.loop import pick_device
    from rfcalc.train.run_folder import read
    from rfcalc.train.weights import find, pick

    where = pick_device(device.value)
    given = (numbers("--mean", mean), numbers("--std", std))
    found = pick(find(weights), weights=_WANTED[kinds], seed=seed)
    run = read(weights) if weights.is_dir() else None
    design = _design(run, target, input_shape, found[0])
    models = [fitted(design, one) for one in found]
    data = _data(run, design, dataset, data_dir, found[0])
    normal = normalisation(found[0], channels=data.train.images.shape[1], given=given, data=data)
    as_trained = run if dataset is None and given == (None, None) else None
    scores = []
    with own_stdout():
        here = dataclasses.replace(data, mean=normal.mean, std=normal.std).to(where)
        for one, network in zip(found, models, strict=True):
            model = network.to(where).to(memory_format=torch.channels_last)
            require_fit(model, here)
            scores.append(score(one, model, here, recorded(as_trained, one.about) if as_trained else None))
    show = scores_json if as_json else scores_text
    emit(show(run.config.design if run and target is None else design.name, data.name, normal, scores))
    return 0


def _design(run: Run | None, target: str | None, input_shape: str | None, trained: Trained) -> Design:
    if run is not None and input_shape is None:
        return design_of(run, target)
    if target is None:
        raise InputError(f"{trained.place}: weights alone; expected their design after them, as in models/step8.py")
    return designed(target, input_shape, trained)


def _data(run: Run | None, design: Design, dataset: str | None, data_dir: Path | None, trained: Trained) -> DataSet:
    from rfcalc.train.data import load as load_data
    from rfcalc.train.inference import image_shape

    if run is not None and dataset is None:
        return data_of(run, data_dir)
    about = trained.about
    with own_stdout():
        data = load_data(dataset or about.data or "mnist", data_dir=data_dir, input_shape=image_shape(design))
    if about.classes and about.classes != data.classes:
        complain(
            f"caution: {trained.place}: trained to tell {_few(about.classes)} apart; the classes of {data.name} are "
            f"{_few(data.classes)}"
        )
    return data


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" ... ({len(names)})" if len(names) > 4 else "")
