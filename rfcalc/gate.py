"""The gate: what a design may cost and must see, and what a report says against that. Pure; no torch at import.

>>> from rfcalc import Budget, analyze, check         # doctest: +SKIP
>>> check(analyze(model, (1, 28, 28)), Budget())      # doctest: +SKIP
[]
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .report import Report


@dataclass(frozen=True, slots=True)
class Budget:
    """The limits of a design; None (or False) sets none. The defaults are those of the MNIST ladders.

    `max_params` and `max_layers` count parameters and layers that multiply; `max_macs` multiply-accumulates of one
    forward; `max_activation_bytes` the peak of live tensors, batch 1. `min_rf` holds at the output, global pooling
    and flattening counted; `min_rf_spatial` for the local field of the last spatial map before them; both in input
    pixels, along the axis that sees least. `require_exact` refuses operations without a rule, `require_aligned`
    layers whose paths disagree on centre or jump.
    """

    max_params: int | None = 8_000
    min_rf: int | None = 28
    min_rf_spatial: int | None = None
    max_macs: int | None = None
    max_activation_bytes: int | None = None
    max_layers: int | None = None
    require_exact: bool = False
    require_aligned: bool = False


def limit_problem(name: str, value: object) -> str | None:
    """What is wrong with a value of the Budget's field `name`, as "expected ..."; None when nothing is.

    False and None set no limit; 0 is refused, because it would either set none as well or refuse every design.
    """
    if isinstance(next(limit.default for limit in fields(Budget) if limit.name == name), bool):
        return None if isinstance(value, bool) else "expected true or false"
    if value is None or value is False:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return None
    return "expected a whole number above 0, or false for no limit"


@dataclass(frozen=True, slots=True)
class Violation:
    """One limit a design misses: `limit` is the field of Budget, `layers` the rows responsible, largest share first."""

    limit: str
    allowed: int
    measured: int
    missed_by: int
    layers: tuple[str, ...]
    message: str


@dataclass(frozen=True, slots=True)
class Caution:
    """What is worth knowing but rejects nothing: `layers` are the rows (or module paths) it is about."""

    kind: Literal["unproductive", "unreached", "gridding"]
    layers: tuple[str, ...]
    message: str


def check(report: Report, budget: Budget) -> list[Violation]:
    """Every limit of the budget that the report misses, in the order of Budget's fields."""
    raise NotImplementedError
