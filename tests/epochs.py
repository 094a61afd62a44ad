"""Epochs and runs made by hand, for tests of what is told and judged of them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rfcalc.train.description import Config, Run
from rfcalc.train.loop import Epoch
from rfcalc.train.recipe import OURS
from rfcalc.train.verdict import Claim


def epoch(
    number: int = 1, *, seed: int = 1, raw: int = 9940, ema: int | None = 9950, total: int = 10_000, **others: Any
) -> Epoch:
    """An epoch with so many test images right by the raw and by the averaged weights."""
    values: dict[str, Any] = {
        "seed": seed, "epoch": number, "steps": 469, "seconds": 8.5, "images_per_second": 7058.8,
        "train_loss": 0.071234, "train_correct": 58_621, "train_total": 60_000,
        "test_loss": 0.0234, "test_correct": raw, "test_total": total,
        "ema_loss": None if ema is None else 0.0168, "ema_correct": ema,
        "lr_first": 0.0021, "lr_max": 0.01, "lr_last": 0.0098,
        "momentum_first": 0.95, "momentum_min": 0.85, "momentum_last": 0.95,
    }  # fmt: skip
    return Epoch(**{**values, **others})


def trained(ema: Sequence[int], raw: Sequence[int] | None = None, *, seed: int = 1, total: int = 10_000) -> list[Epoch]:
    """A run's epochs from what each had right; without `raw` the raw weights had 10 less."""
    raw = [count - 10 for count in ema] if raw is None else raw
    return [epoch(i, seed=seed, raw=r, ema=e, total=total) for i, (e, r) in enumerate(zip(ema, raw, strict=True), 1)]


def run_of(epochs: Mapping[int, Iterable[Epoch]], **others: Any) -> Run:
    """A run of these epochs by seed, as if read from a folder."""
    values: dict[str, Any] = {
        "design": "models/step8.py:Net", "target": "/home/me/models/step8.py:Net", "source": "5" * 64,
        "input_shape": (1, 28, 28), "params": 6720, "data": "mnist", "data_dir": None, "data_sha256": "d" * 64,
        "mean": (0.1307,), "std": (0.3081,), "classes": tuple("0123456789"), "recipe": OURS, "seeds": tuple(epochs),
        "device": "cpu", "amp": False, "claim": Claim(), "created": "2026-11-21T07:05:14+00:00", "version": "0.1.0",
        "environment": {
            "python": "3.11.7", "torch": "2.15.0", "platform": "Linux", "processor": "x86_64", "cores": 2, "threads": 1,
        },
    }  # fmt: skip
    return Run(
        Path("runs/models-step8-Net/now"), Config(**{**values, **others}), {s: tuple(e) for s, e in epochs.items()}
    )
