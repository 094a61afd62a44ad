"""What the figures of a run and its last weights tell: over- or under-fitting, still improving or flat, confusions.

Everything here is counted or comes with its 95 % error. One seed's weights are looked at: those whose last epoch is the
lowest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from rfcalc.designs.design import Design
from rfcalc.errors import RunError, extra
from rfcalc.train.data import DataSet, Split
from rfcalc.train.description import Run
from rfcalc.train.evaluation import outputs
from rfcalc.train.loop import Epoch
from rfcalc.train.run_folder import weights_of
from rfcalc.train.verdict import CONFIDENCE, Interval, Weights, correct_of, interval


@dataclass(frozen=True)
class Trend:
    """A line through the test accuracies of the last epochs, the mean of all seeds, by least squares."""

    epochs: int
    slope: float
    """Percentage points per epoch."""
    error: float
    """Half the width of its 95 % interval."""

    @property
    def direction(self) -> str:
        """`improving`, `falling`, or `flat` where the interval has both signs or none."""
        if self.slope - self.error > 0:
            return "improving"
        return "falling" if self.slope + self.error < 0 else "flat"


@dataclass(frozen=True)
class Confused:
    """Test images of one class that were taken for another."""

    true: int
    predicted: int
    count: int


@dataclass(frozen=True, eq=False)
class Analysis:
    """One seed's last weights on images as they are, and the trend of all seeds."""

    seed: int
    weights: Weights
    epoch: Epoch
    """The seed's last, after which its weights are: one before that where the newest weights were not kept."""
    train: Interval
    """Share of the training images right, without augmentation and dropout."""
    test: Interval
    gap: Interval
    """Train minus test."""
    trend: Trend | None
    """None where the last epochs are fewer than three."""
    predicted: Tensor
    """[N] class of every test image."""
    confidence: Tensor
    """[N] probability given to it."""
    confusion: Tensor
    """[true, predicted] counts of test images."""

    @property
    def correct(self) -> int:
        """Test images right, as counted here."""
        return int(self.confusion.diagonal().sum())

    def pairs(self, most: int) -> list[Confused]:
        """The pairs confused most often, those of equal counts by class."""
        found = [
            Confused(true, predicted, count)
            for true, row in enumerate(self.confusion.tolist())
            for predicted, count in enumerate(row)
            if count and true != predicted
        ]
        return sorted(found, key=lambda one: -one.count)[:most]

    def wrong(self, labels: Tensor) -> Tensor:
        """Rows of the test images that were taken for another class, the most confident mistakes first."""
        rows = (self.predicted != labels).nonzero()[:, 0]
        return rows[self.confidence[rows].argsort(descending=True, stable=True)]


def analyse(run: Run, design: Design, data: DataSet, device: str = "cpu") -> Analysis:
    """Look at a run's weights. `data` as the recipe normalises them.

    Raises RunError when no seed has finished an epoch, or its weights are not the design's.
    """
    weights = run.config.claim.weights
    begun = {seed: epochs for seed, epochs in run.epochs.items() if epochs}
    if not begun:
        raise RunError(f"{run.folder}: no seed has finished an epoch; there is nothing to report yet")
    seed = lowest_seed(begun, weights)
    model = design.build_real()
    try:
        after, tensors = weights_of(run, seed, weights)
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise RunError(f"{run.folder}: its weights do not fit {design.name}; expected the design it trained") from error
    model.to(device).to(memory_format=torch.channels_last).eval()
    here = data.to(device)
    train_right = (probabilities(model, here.train, here).argmax(1) == data.train.labels).sum()
    found = probabilities(model, here.test, here)
    confidence, predicted = found.max(1)
    train = interval(int(train_right), len(data.train))
    test = interval(int((predicted == data.test.labels).sum()), len(data.test))
    return Analysis(
        seed=seed,
        weights=weights,
        epoch=begun[seed][min(after, len(begun[seed])) - 1],
        train=train,
        test=test,
        gap=difference(train, test),
        trend=trend(begun, weights, run.config.claim.last),
        predicted=predicted,
        confidence=confidence,
        confusion=confusion(data.test.labels, predicted, len(data.classes)),
    )


def probabilities(model: nn.Module, split: Split, data: DataSet) -> Tensor:
    """What a model makes of every image, as `outputs` does: [N, classes] on the CPU, each row a sum of 1.

    The model may give logits or log-probabilities; `data` says how images are normalised, and lies on its device.
    """
    return torch.cat([log_softmax(output.float(), 1).exp().cpu() for output, _ in outputs(model, split, data)])


def confusion(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """How many images of each true class (row) were taken for each class (column): [classes, classes]."""
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes)


def lowest_seed(runs: Mapping[int, Sequence[Epoch]], weights: Weights) -> int:
    """The seed whose last epoch has the lowest test accuracy, of those that are furthest; the first of equals."""
    furthest = max(len(epochs) for epochs in runs.values())
    last = {seed: runs[seed][-1] for seed in sorted(runs) if len(runs[seed]) == furthest}
    return min(last, key=lambda seed: Fraction(correct_of(last[seed], weights), last[seed].test_total))


def difference(one: Interval, other: Interval) -> Interval:
    """One share minus another, with Newcombe's interval: made of both shares' Wilson intervals."""
    found = one.share - other.share
    low = found - math.hypot(one.share - one.low, other.high - other.share)
    return Interval(low, found, found + math.hypot(one.high - one.share, other.share - other.low))


def trend(runs: Mapping[int, Sequence[Epoch]], weights: Weights, last: int) -> Trend | None:
    """The line through the last epochs that every seed has; None of fewer than three, for it would have no error."""
    with extra("train"):
        from scipy.stats import linregress, t

    reached = min(len(epochs) for epochs in runs.values())
    window = range(max(0, reached - last), reached)
    if len(window) < 3:
        return None
    means = []
    for index in window:
        epochs = [run[index] for run in runs.values()]
        means.append(sum(100 * correct_of(epoch, weights) / epoch.test_total for epoch in epochs) / len(epochs))
    line = linregress(list(window), means)
    reach = t.ppf((1 + CONFIDENCE) / 2, len(window) - 2)
    return Trend(len(window), float(line.slope), float(reach * line.stderr))
