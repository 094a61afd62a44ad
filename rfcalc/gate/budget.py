"""What a design may cost and must see, and what a report says against that. Pure; no torch.

>>> from rfcalc import Budget, analyze, check         # doctest: +SKIP
>>> check(analyze(model, (1, 28, 28)), Budget())      # doctest: +SKIP
[]"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from rfcalc.errors import InputError

if TYPE_CHECKING:
    from rfcalc.analysis.report import LayerRow, Report


@dataclass(frozen=True, slots=True)
class Limit:
    """How one field of Budget is read off a report, and its words."""

    measure: Callable[[Report], int | None]  # None: met, whatever the limit
    share: Callable[[LayerRow], int]  # rows with the largest are named; 0: not responsible
    words: str  # behind the number, "{n} parameters"
    help: str  # of the command line's flag
    least: bool  # a minimum, not a maximum


def limit(
    default: int | bool | None,
    *,
    measure: Callable[[Report], int | None],
    share: Callable[[LayerRow], int] = lambda row: 0,
    words: str,
    help: str,
    least: bool = False,
) -> Any:
    """One field of Budget with all that is known of it; flags, keys of pyproject.toml and formats follow from it.

    Its name begins with `max_` or `min_` (`least`), or with `require_` where the default is True or False.
    """
    return field(default=default, metadata={"limit": Limit(measure, share, words, help, least)})


def depth(report: Report) -> int:
    """How many layers multiply (MACs > 0): convolutions, linear layers, products of matrices."""
    return sum(row.macs > 0 for row in report.rows)


def _least_seen(report: Report) -> int | None:
    """Along the axis that sees least, of those along which the output is not global."""
    is_global = report.output_global or (False,) * len(report.rf_output)
    return min((r for r, whole in zip(report.rf_output, is_global, strict=True) if not whole), default=None)


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

    max_params: int | None = limit(
        8_000, measure=lambda r: r.params, share=lambda row: row.params, words="parameters", help="Most parameters."
    )
    min_rf: int | None = limit(
        28,
        measure=_least_seen,
        words="pixels seen by the output",
        help="Least receptive field at the output, in pixels.",
        least=True,
    )
    min_rf_spatial: int | None = limit(
        None,
        measure=lambda r: min(r.rf_spatial),
        words="pixels seen by the last spatial map",
        help="The same of the last spatial map, before global pooling or flattening.",
        least=True,
    )
    max_macs: int | None = limit(
        None, measure=lambda r: r.macs, share=lambda row: row.macs, words="MACs", help="Most multiply-accumulates."
    )
    max_activation_bytes: int | None = limit(
        None,
        measure=lambda r: r.peak_activation_bytes,
        share=lambda row: row.activation_bytes,
        words="bytes of live activations at the peak",
        help="Largest peak of live activations, batch 1.",
    )
    max_layers: int | None = limit(None, measure=depth, words="layers that multiply", help="Most layers that multiply.")
    require_exact: bool = limit(
        False,
        measure=lambda r: max(len(r.approximate_ops), sum(not row.exact for row in r.rows)),
        share=lambda row: int(not row.exact),
        words="layers that depend on an operation without a rule",
        help="Refuse operations without a rule.",
    )
    require_aligned: bool = limit(
        False,
        measure=lambda r: sum(not row.aligned for row in r.rows),
        share=lambda row: int(not row.aligned),
        words="layers whose paths disagree on centre or jump",
        help="Refuse layers whose paths disagree on centre or jump.",
    )

    def __post_init__(self) -> None:
        for name in LIMITS:
            value = getattr(self, name)
            problem = limit_problem(name, value)
            if problem is not None:
                raise InputError(f"Budget: {name} is {value!r}; {problem}")


LIMITS: dict[str, Limit] = {entry.name: entry.metadata["limit"] for entry in fields(Budget)}
# Those that are asked for or not, and have no number.
SWITCHES = frozenset(entry.name for entry in fields(Budget) if isinstance(entry.default, bool))


def limit_problem(name: str, value: object) -> str | None:
    """What is wrong with a value of the Budget's field `name`, as "expected ..."; None when nothing is.

    False and None set no limit; 0 is refused, because it would either set none as well or refuse every design.
    """
    if name in SWITCHES:
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
    if name in SWITCHES:
        return f"{measured:,} {limit.words}; {name} allows none"
    missed = f"{abs(measured - allowed):,} {'short of' if limit.least else 'over'}"
    most = f"; {rows[0].name} alone has {limit.share(rows[0]):,}" if rows else ""
    return f"{measured:,} {limit.words}, {missed} {name} {allowed:,}{most}"


def _largest(report: Report, share: Callable[[LayerRow], int]) -> list[LayerRow]:
    return sorted((row for row in report.rows if share(row)), key=share, reverse=True)[:MOST_NAMED]
