"""The verdict: does a design hold its claimed accuracy, in how many seeds, and for how many images it has not seen?

Three lines, each of which can decide. None looks at a best epoch: what happened once proves nothing.

HOLD        every seed is at or above the target in each of its last epochs
SEEDS       so many of n seeds hold that, at 95 % confidence, more than half of all seeds would
POPULATION  the 95 % interval of the lowest seed's last epoch lies at or above the target

None passes when the design has more parameters or the training more epochs than claimed, or a seed is not through.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from rfcalc.errors import RfcalcError, extra
from rfcalc.train.loop import Epoch

Weights = Literal["ema", "raw"]
Require = Literal["hold", "seeds", "population"]

CONFIDENCE = 0.95
MOST = 0.5
"""Of all seeds, the share that more must hold than for SEEDS to pass."""


@dataclass(frozen=True)
class Claim:
    """What is claimed of a design. Raises RfcalcError for what cannot be claimed."""

    target: float = 99.4
    """Percent. Taken as the decimal number it prints as: 99.4 is 994/1000."""
    last: int = 5
    """How many epochs at the end of the training count."""
    max_params: int = 8_000
    max_epochs: int = 15
    weights: Weights = "ema"
    """Which decide; the others are shown."""
    require: Require = "hold"
    """The line that decides."""

    def __post_init__(self) -> None:
        if not 0 < self.target <= 100:
            raise RfcalcError(f"target {self.target}: expected percent, above 0 and up to 100")
        for name in ("last", "max_params", "max_epochs"):
            if getattr(self, name) < 1:
                raise RfcalcError(f"{name} {getattr(self, name)}: expected 1 or more")
        for name, known in (("weights", ("ema", "raw")), ("require", ("hold", "seeds", "population"))):
            if getattr(self, name) not in known:
                raise RfcalcError(f"{name} {getattr(self, name)!r}: expected one of {', '.join(known)}")


@dataclass(frozen=True)
class Seed:
    """What one seed reached with one kind of weights."""

    seed: int
    epochs: int
    """Trained so far."""
    correct: tuple[int, ...]
    """Images right after each of the last epochs, in order; empty until the seed is through."""
    total: int
    holds: bool


@dataclass(frozen=True)
class Spread:
    """Last epochs of the seeds that are through, in percent."""

    mean: float
    sd: float | None
    """Of a sample; None for one seed."""
    lowest: float


@dataclass(frozen=True)
class Interval:
    """A share, and what it is likely to be of all: within `low`..`high` at 95 % confidence."""

    low: float
    share: float
    high: float


@dataclass(frozen=True)
class Judged:
    """The three lines by one kind of weights."""

    weights: Weights
    seeds: tuple[Seed, ...]
    hold: bool
    holding: int
    """How many seeds hold, of all."""
    bound: float
    """At 95 % confidence at least this share of all seeds would hold: the one-sided Clopper-Pearson bound."""
    spread: Spread | None
    """None while no seed is through."""
    enough_seeds: bool
    lowest: Seed | None
    """The seed whose last epoch is the lowest."""
    interval: Interval | None
    """Of its last epoch on the test images, by Wilson."""
    population: bool

    def passes(self, line: Require) -> bool:
        """Whether that line passes."""
        return {"hold": self.hold, "seeds": self.enough_seeds, "population": self.population}[line]


@dataclass(frozen=True)
class Verdict:
    """A claim, and what became of it."""

    claim: Claim
    params: int
    epochs: int
    """How many each seed was to be trained."""
    judged: tuple[Judged, ...]
    """By the weights that decide, then by the others if there are any."""

    @property
    def within_budget(self) -> bool:
        """No more parameters and epochs than claimed."""
        return self.params <= self.claim.max_params and self.epochs <= self.claim.max_epochs

    @property
    def verified(self) -> bool:
        """Whether the line that decides passes by the weights that decide."""
        return self.judged[0].passes(self.claim.require)


def judge(
    runs: Mapping[int, Sequence[Epoch]], *, params: int, claim: Claim | None = None, epochs: int | None = None
) -> Verdict:
    """What the epochs of every seed, from the first on, say about a claim.

    Args:
        runs: seed -> its epochs; a seed that has not begun has none, and counts.
        params: of the design.
        claim: by default 99.4 % in the last 5 of at most 15 epochs, with at most 8,000 parameters.
        epochs: how many each seed was to be trained; by default as many as the longest has.

    Raises:
        RfcalcError: no seed, fewer epochs than the claim looks at, or no averaged weights though they are to decide.
    """
    claim = claim or Claim()
    planned = max((len(run) for run in runs.values()), default=0) if epochs is None else epochs
    if not runs:
        raise RfcalcError("verdict: no seed; expected one or more")
    if claim.last > planned:
        raise RfcalcError(f"the last {claim.last} epochs are to count, of {planned}; expected no more than there are")
    averaged = all(epoch.ema_correct is not None for run in runs.values() for epoch in run)
    if claim.weights == "ema" and not averaged:
        raise RfcalcError("averaged weights are to decide, but the recipe keeps none; expected --weights raw")
    within = params <= claim.max_params and planned <= claim.max_epochs
    kinds: list[Weights] = [claim.weights]
    if claim.weights == "ema" or averaged:
        kinds.append("raw" if claim.weights == "ema" else "ema")
    return Verdict(claim, params, planned, tuple(_judged(runs, kind, claim, planned, within) for kind in kinds))


def reaches(correct: int, total: int, target: float) -> bool:
    """Whether so many of `total` are `target` percent or more, without rounding anywhere."""
    return 100 * correct >= Fraction(str(target)) * total


def correct_of(epoch: Epoch, weights: Weights) -> int:
    """Test images right after an epoch. The averaged weights must have been kept."""
    if weights == "raw":
        return epoch.test_correct
    assert epoch.ema_correct is not None
    return epoch.ema_correct


def interval(correct: int, total: int) -> Interval:
    """Wilson's 95 % interval."""
    found = _test(correct, total, "two-sided").proportion_ci(CONFIDENCE, method="wilson")
    return Interval(float(found.low), correct / total, float(found.high))


def bound(holding: int, seeds: int) -> float:
    """The one-sided 95 % Clopper-Pearson bound: a lower share would make so many of `seeds` hold in 1 of 20 trials."""
    return float(_test(holding, seeds, "greater").proportion_ci(CONFIDENCE, method="exact").low)


def _test(k: int, n: int, alternative: str) -> Any:
    with extra("train"):
        from scipy.stats import binomtest
    return binomtest(k, n, alternative=alternative)


def _judged(runs: Mapping[int, Sequence[Epoch]], weights: Weights, claim: Claim, planned: int, within: bool) -> Judged:
    seeds = tuple(_seed(number, runs[number], weights, claim, planned) for number in sorted(runs))
    through = [one for one in seeds if one.correct]
    holding = sum(one.holds for one in seeds)
    share = bound(holding, len(seeds))
    lowest = min(through, key=lambda one: Fraction(one.correct[-1], one.total), default=None)
    likely = interval(lowest.correct[-1], lowest.total) if lowest else None
    countable = within and len(through) == len(seeds)
    return Judged(
        weights=weights,
        seeds=seeds,
        hold=countable and holding == len(seeds),
        holding=holding,
        bound=share,
        spread=_spread(through),
        enough_seeds=countable and share > MOST,
        lowest=lowest,
        interval=likely,
        population=countable and likely is not None and likely.low >= claim.target / 100,
    )


def _seed(number: int, run: Sequence[Epoch], weights: Weights, claim: Claim, planned: int) -> Seed:
    total = run[-1].test_total if run else 0
    if len(run) < planned:
        return Seed(number, len(run), (), total, holds=False)
    correct = tuple(correct_of(epoch, weights) for epoch in run[-claim.last :])
    return Seed(number, len(run), correct, total, all(reaches(count, total, claim.target) for count in correct))


def _spread(through: Sequence[Seed]) -> Spread | None:
    if not through:
        return None
    percents = [Fraction(100 * one.correct[-1], one.total) for one in through]
    sd = float(statistics.stdev(percents)) if len(percents) > 1 else None
    return Spread(float(statistics.mean(percents)), sd, float(min(percents)))
