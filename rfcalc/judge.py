"""One design, judged: its figures, what it violates, what would mend it. Values that travel between processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .advice import Advice
from .gate import Budget, Caution, Violation

Outcome = Literal["pass", "fail", "error"]


@dataclass(frozen=True, slots=True)
class Figures:
    """What is compared of a design. `layers` counts rows that multiply (MACs > 0): the depth people speak of."""

    params: int
    trainable_params: int
    macs: int
    peak_activation_bytes: int
    rf_output: tuple[int, ...]
    rf_spatial: tuple[int, ...]
    layers: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of one target.

    `design` is `file.py:Name`, `file` and `line` where its class stands (None for an importable module). An "error"
    could not be judged: `error` is the one line why, and there are no figures. `before` holds the figures at the
    revision of `--base`, None where the design did not exist (or could not be judged) there.
    `suits` gives per axis the input sizes, smallest and largest, that the design's depth fits (Richter et al. 2021).
    """

    target: str
    design: str
    file: str | None
    line: int | None
    outcome: Outcome
    budget: Budget
    figures: Figures | None = None
    violations: tuple[Violation, ...] = ()
    advice: tuple[Advice, ...] = ()
    cautions: tuple[Caution, ...] = ()
    suits: tuple[tuple[int, int] | None, ...] = ()
    error: str = ""
    before: Figures | None = None
