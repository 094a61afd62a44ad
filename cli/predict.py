"""`rfcalc predict`: what a trained design takes image files for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rfcalc.errors import DataError

from .shared import Debug, Input, complain, emit, import_torch, own_stdout
from .trained import (
    DesignTarget,
    Device,
    DeviceOption,
    KindOption,
    MeanOption,
    SeedOption,
    StdOption,
    WeightsPlace,
    asked,
    designed,
    fitted,
    numbers,
)

if TYPE_CHECKING:
    from torch import Tensor

    from rfcalc.train.inference import Answer, Normal


def command(
    target: DesignTarget,
    weights: WeightsPlace,
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", show_default=False, help="Image files; scaled to the design's input."),
    ],
    invert: Annotated[
        bool,
        typer.Option("--invert", help="Exchange dark and bright: for ink on paper, where MNIST is white on black."),
    ] = False,
    kind: KindOption = None,
    seed: SeedOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    device: DeviceOption = Device.AUTO,
    as_json: Annotated[bool, typer.Option("--json", help="JSON in place of text.")] = False,
    input_shape: Input = None,
    debug: Debug = False,
) -> int:
    """Classes of image files: the likeliest with its probability, and the next two.

    The whole file is scaled to the design's input, so cut the image to what is to be told. A file that cannot be read
    is told of, and the others are answered; the exit code is then 2.

    \b
    Example:
      rfcalc predict models/step8.py runs/models-step8-Net/2026-11-21T07-05-14 four.png seven.jpg --invert
    """
    import_torch()
    import torch

    from rfcalc.render.inference import about_text, answer_text, answers_json, normal_text
    from rfcalc.train.inference import answers, image_shape, normalisation
    from rfcalc.train.loop import pick_device

    where = pick_device(device.value)
    given = (numbers("--mean", mean), numbers("--std", std))
    trained = asked(weights, kind, seed)
    design = designed(target, input_shape, trained)
    shape = image_shape(design)
    normal = normalisation(trained, channels=shape[0], given=given)
    network = fitted(design, trained)
    with own_stdout():
        model = network.to(where).to(memory_format=torch.channels_last)
        replies, pixels = _read(images, shape, invert, normal)
        if pixels:
            guesses = iter(answers(model, torch.stack(pixels).to(where), normal, classes=trained.about.classes))
            replies = [one if one.error else dataclasses.replace(one, guesses=next(guesses)) for one in replies]
    if as_json:
        emit(answers_json(design.name, trained.place, trained.about, normal, replies))
    elif pixels:
        emit(f"{design.name}, {about_text(trained.about, trained.place)}, {normal_text(normal)}")
    for one in replies:
        if one.error:
            complain(one.error)
            continue
        if not as_json:
            emit(answer_text(one))
        if one.caution:
            complain(f"caution: {one.file}: {one.caution}")
    return 2 if any(one.error for one in replies) else 0


def _read(
    images: list[Path], shape: tuple[int, int, int], invert: bool, normal: Normal
) -> tuple[list[Answer], list[Tensor]]:
    """An answer without guesses for each file, and the pixels of those that could be read."""
    from rfcalc.train.data import read_image
    from rfcalc.train.inference import Answer, oddity

    replies, pixels = [], []
    for file in images:
        try:
            image = read_image(file, shape)
        except DataError as error:
            replies.append(Answer(str(file), error=str(error)))
            continue
        pixels.append(255 - image if invert else image)
        replies.append(Answer(str(file), caution=oddity(pixels[-1], normal)))
    return replies, pixels
