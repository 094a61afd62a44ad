"""A run folder on the digits that scikit-learn brings, trained in a second, for tests of what is done with it."""

import dataclasses
from pathlib import Path
from textwrap import dedent

from rfcalc.designs.design import load_design
from rfcalc.train import description, record
from rfcalc.train.data import DataSet, load
from rfcalc.train.loop import train
from rfcalc.train.recipe import OURS
from rfcalc.train.verdict import Claim

NET = dedent("""
    from torch import nn

    INPUT_SHAPE = (1, 8, 8)

    class Net(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.Dropout(0.1), nn.Flatten(),
                             nn.Linear(288, 10))
""")


def digits() -> DataSet:
    """1,437 training and 360 test images of 8x8."""
    return load("digits", input_shape=(1, 8, 8))


def trained_run(home: Path, *, seeds: tuple[int, ...] = (1,), ema: float = 0.99, epochs: int = 3) -> Path:
    """The folder of a run of `home`/net.py, which it writes."""
    (home / "net.py").write_text(NET)
    design, data = load_design(str(home / "net.py")), digits()
    recipe = dataclasses.replace(OURS, epochs=epochs, batch_size=32, augmentation=(), ema=ema)
    claim = Claim(last=1, weights="ema" if ema else "raw")
    config = description.describe(design, data, recipe, seeds=seeds, device="cpu", amp=False, claim=claim)
    with record.create(config, home / "runs") as recorder:
        for seed in seeds:
            for epoch, state in train(design.build_real, data, recipe, seed=seed):
                recorder.add(epoch, state)
    return recorder.folder
