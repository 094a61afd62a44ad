"""What a design may cost and must see, and what a report says against that. Pure; no torch.

>>> from rfcalc import Budget, analyze, check         # doctest: +SKIP
>>> check(analyze(model, (1, 28, 28)), Budget())      # doctest: +SKIP
[]"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from rfcalc.errors import InputError

if TYPE_CHECKING:
    from rfcalc.analysis.report import LayerRow, Report


@dataclass(frozen=True, slots=True)
class Budget:
    """The limits of a design; None (or False) sets none. The defaults are those of the MNIST ladders.

    `max_params` and `max_layers` count parameters and layers that multiply; `max_macs` multiply-accumulates of one
    forward; `max_activation_bytes` the peak of live tensors, batch 1. `min_rf` holds at the output, global pooling
    and flattening counted, and is met by an output that is global (attention, a statistic over the map): it sees the
    whole input. `min_rf_spatial` holds for the local field of the last spatial map before them; both in input pixels,
    along the axis that sees least. `require_exact` refuses operations without a rule, `require_aligned`
    layers whose paths disagree on centre or jump. Raises InputError for a value that can be no limit.
    """

    max_params: int | None = 8_000
    min_rf: int | None = 28
    min_rf_spatial: int | None = None
    max_macs: int | None = None
    max_activation_bytes: int | None = None
    max_layers: int | None = None
    require_exact: bool = False
    require_aligned: bool = False

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            problem = limit_problem(limit.name, value)
            if problem is not None:
                raise InputError(f"Budget: {limit.name} is {value!r}; {problem}")


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


def depth(report: Report) -> int:
    """How many layers multiply (MACs > 0): convolutions, linear layers, products of matrices."""
    return sum(row.macs > 0 for row in report.rows)


@dataclass(frozen=True, slots=True)
class Limit:
    """How one field of Budget is read off a report: the measured value, the rows responsible, and its words."""

    measure: Callable[[Report], int | None]  # None: met, whatever the limit
    share: Callable[[LayerRow], int]  # rows with the largest are named; 0: not responsible
    words: str  # behind the number, "{n} parameters"
    least: bool = False  # a minimum, not a maximum


def _least_seen(report: Report) -> int | None:
    """Along the axis that sees least, of those along which the output is not global."""
    is_global = report.output_global or (False,) * len(report.rf_output)
    return min((r for r, whole in zip(report.rf_output, is_global, strict=True) if not whole), default=None)


LIMITS: dict[str, Limit] = {
    "max_params": Limit(lambda r: r.params, lambda row: row.params, "parameters"),
    "min_rf": Limit(_least_seen, lambda row: 0, "pixels seen by the output", least=True),
    "min_rf_spatial": Limit(
        lambda r: min(r.rf_spatial), lambda row: 0, "pixels seen by the last spatial map", least=True
    ),
    "max_macs": Limit(lambda r: r.macs, lambda row: row.macs, "MACs"),
    "max_activation_bytes": Limit(
        lambda r: r.peak_activation_bytes, lambda row: row.activation_bytes, "bytes of live activations at the peak"
    ),
    "max_layers": Limit(depth, lambda row: 0, "layers that multiply"),
    "require_exact": Limit(
        lambda r: max(len(r.approximate_ops), sum(not row.exact for row in r.rows)),
        lambda row: int(not row.exact),
        "layers that depend on an operation without a rule",
    ),
    "require_aligned": Limit(
        lambda r: sum(not row.aligned for row in r.rows),
        lambda row: int(not row.aligned),
        "layers whose paths disagree on centre or jump",
    ),
}
MOST_NAMED = 5


def check(report: Report, budget: Budget) -> list[Violation]:
    """Every limit of the budget that the report misses, in the order of Budget's fields."""
    found = []
    for name, limit in LIMITS.items():
        allowed = getattr(budget, name)
        if allowed is None or allowed is False:
            continue
        allowed = 0 if allowed is True else allowed
        measured = limit.measure(report)
        if measured is None:
            continue
        missed = allowed - measured if limit.least else measured - allowed
        if missed > 0:
            rows = _largest(report, limit.share)
            text = _sentence(name, limit, measured, allowed, rows)
            found.append(Violation(name, allowed, measured, missed, tuple(row.name for row in rows), text))
    return found


def _sentence(name: str, limit: Limit, measured: int, allowed: int, rows: Sequence[LayerRow]) -> str:
    if name.startswith("require_"):
        return f"{measured:,} {limit.words}; {name} allows none"
    missed = f"{abs(measured - allowed):,} {'short of' if limit.least else 'over'}"
    most = f"; {rows[0].name} alone has {limit.share(rows[0]):,}" if rows else ""
    return f"{measured:,} {limit.words}, {missed} {name} {allowed:,}{most}"


def _largest(report: Report, share: Callable[[LayerRow], int]) -> list[LayerRow]:
    return sorted((row for row in report.rows if share(row)), key=share, reverse=True)[:MOST_NAMED]
