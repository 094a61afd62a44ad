"""What trained weights reach and answer -> text or JSON. Nothing is computed here.

Percentages of accuracy are rounded down, as in training.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rfcalc.render.cells import atom
from rfcalc.render.training import likely, tested

if TYPE_CHECKING:
    from rfcalc.train.export import Export
    from rfcalc.train.inference import Answer, Normal, Score
    from rfcalc.train.weights import About

_NAMES = {"ema": "EMA", "raw": "raw"}


def normal_text(normal: Normal) -> str:
    """`normalised as in training: mean 0.1307, std 0.3081`."""
    return f"normalised {normal.origin}: mean {_numbers(normal.mean)}, std {_numbers(normal.std)}"


def about_text(about: About, place: str) -> str:
    """`seed 1, epoch 15, EMA weights`, as far as it is known, else the place."""
    known = [
        "" if about.seed is None else f"seed {about.seed}",
        "" if about.epoch is None else f"epoch {about.epoch}",
        "" if about.weights is None else f"{_NAMES[about.weights]} weights",
    ]
    return ", ".join(filter(None, known)) or atom(place)


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


# --- evaluate ------------------------------------------------------------------------------------------------


def scores_text(design: str, data: str, normal: Normal, scores: Sequence[Score]) -> str:
    """What was tested on, then three lines per score."""
    lines = [f"{atom(design)} on the {scores[0].total:,} test images of {atom(data)}, {normal_text(normal)}"]
    for score in scores:
        lines += [
            f"{about_text(score.about, score.place)}:",
            tested(score.loss, score.correct, score.total, score.about.weights or "raw"),
            f"Of all such images {likely(score.likely)} at 95 % confidence" + _recorded(score),
        ]
    return "\n".join(lines)


def _recorded(score: Score) -> str:
    if score.recorded in (None, score.correct):
        return ""
    return (
        f"; in training {score.recorded:,} were right, here {score.correct:,}: another device or number of threads "
        "rounds otherwise"
    )


def scores_json(design: str, data: str, normal: Normal, scores: Sequence[Score]) -> str:
    """One JSON object."""
    return _json(
        {
            "design": design,
            "dataset": data,
            "normalised": dataclasses.asdict(normal),
            "scores": [
                {
                    "place": score.place,
                    **_about(score.about),
                    "loss": score.loss,
                    "correct": score.correct,
                    "total": score.total,
                    "recorded": score.recorded,
                    "interval": dataclasses.asdict(score.likely),
                }
                for score in scores
            ],
        }
    )


def _about(about: About) -> dict[str, Any]:
    return {"seed": about.seed, "epoch": about.epoch, "weights": about.weights}


# --- predict -------------------------------------------------------------------------------------------------


def answer_text(answer: Answer) -> str:
    """`seven.png: 7 99.98 %, then 1 0.01 %, 9 0.00 %`, of an image that has guesses."""
    first, *others = (f"{atom(guess.name)} {_percent(guess.probability)}" for guess in answer.guesses)
    return f"{atom(answer.file)}: {first}" + (f", then {', '.join(others)}" if others else "")


def _percent(share: float) -> str:
    # Rounded down: what is not sure must not read as 100 %.
    return f"{math.floor(10_000 * share) / 100:.2f} %"


def answers_json(design: str, place: str, about: About, normal: Normal, answers: Sequence[Answer]) -> str:
    """One JSON object."""
    return _json(
        {
            "design": design,
            "place": place,
            **_about(about),
            "normalised": dataclasses.asdict(normal),
            "images": [dataclasses.asdict(answer) for answer in answers],
        }
    )


# --- export --------------------------------------------------------------------------------------------------


def export_text(export: Export) -> str:
    """What was compared, and what was written or why not."""
    about = about_text(export.about, export.place)
    lines = [f"{atom(export.design)}, {about}; images: float32 [batch, {', '.join(map(str, export.shape))}]"]
    if export.normal is not None:
        lines[0] += f", {normal_text(export.normal)}"
    lines += [
        f"{check.images} {atom(check.what)}: greatest absolute difference between onnxruntime and torch "
        f"{check.difference:.2g}"
        for check in export.checks
    ]
    if export.fine:
        lines.append(f"{atom(export.file)}: written, {export.size:,} bytes; tolerance {export.tolerance:g}")
    else:
        lines.append(f"{atom(export.file)}: not written: more than the tolerance of {export.tolerance:g}")
    return "\n".join(lines)


def export_json(export: Export) -> str:
    """One JSON object."""
    return _json(
        {
            "file": export.file,
            "written": export.fine,
            "bytes": export.size,
            "design": export.design,
            "place": export.place,
            **_about(export.about),
            "input": ["batch", *export.shape],
            "normalised": None if export.normal is None else dataclasses.asdict(export.normal),
            "tolerance": export.tolerance,
            # JSON has no infinity: null where one of both is not a number.
            "checks": [
                {**dataclasses.asdict(check), "difference": check.difference if check.finite else None}
                for check in export.checks
            ],
        }
    )


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=1)
