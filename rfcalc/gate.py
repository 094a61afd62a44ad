"""The gate: what a design may cost and must see, and what a report says against that. Pure; no torch at import.

>>> from rfcalc import Budget, analyze, check         # doctest: +SKIP
>>> check(analyze(model, (1, 28, 28)), Budget())      # doctest: +SKIP
[]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from .errors import InputError

if TYPE_CHECKING:
    from .report import LayerRow, Report


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


@dataclass(frozen=True, slots=True)
class Caution:
    """What is worth knowing but rejects nothing: `layers` are the rows (or module paths) it is about."""

    kind: Literal["unproductive", "unreached", "gridding", "input"]
    layers: tuple[str, ...]
    message: str


def depth(report: Report) -> int:
    """How many layers multiply (MACs > 0): convolutions, linear layers, products of matrices."""
    return sum(row.macs > 0 for row in report.rows)


@dataclass(frozen=True, slots=True)
class _Limit:
    """How one field of Budget is read off a report: the measured value, the rows responsible, and its words."""

    measure: Callable[[Report], int | None]  # None: met, whatever the limit
    share: Callable[[LayerRow], int]  # rows with the largest are named; 0: not responsible
    words: str  # behind the number, "{n} parameters"
    least: bool = False  # a minimum, not a maximum


def _least_seen(report: Report) -> int | None:
    """Along the axis that sees least, of those along which the output is not global."""
    is_global = report.output_global or (False,) * len(report.rf_output)
    return min((r for r, whole in zip(report.rf_output, is_global, strict=True) if not whole), default=None)


_LIMITS: dict[str, _Limit] = {
    "max_params": _Limit(lambda r: r.params, lambda row: row.params, "parameters"),
    "min_rf": _Limit(_least_seen, lambda row: 0, "pixels seen by the output", least=True),
    "min_rf_spatial": _Limit(
        lambda r: min(r.rf_spatial), lambda row: 0, "pixels seen by the last spatial map", least=True
    ),
    "max_macs": _Limit(lambda r: r.macs, lambda row: row.macs, "MACs"),
    "max_activation_bytes": _Limit(
        lambda r: r.peak_activation_bytes, lambda row: row.activation_bytes, "bytes of live activations at the peak"
    ),
    "max_layers": _Limit(depth, lambda row: 0, "layers that multiply"),
    "require_exact": _Limit(
        lambda r: max(len(r.approximate_ops), sum(not row.exact for row in r.rows)),
        lambda row: int(not row.exact),
        "layers that depend on an operation without a rule",
    ),
    "require_aligned": _Limit(
        lambda r: sum(not row.aligned for row in r.rows),
        lambda row: int(not row.aligned),
        "layers whose paths disagree on centre or jump",
    ),
}
_MOST_NAMED = 5


def check(report: Report, budget: Budget) -> list[Violation]:
    """Every limit of the budget that the report misses, in the order of Budget's fields."""
    found = []
    for name, limit in _LIMITS.items():
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


def _sentence(name: str, limit: _Limit, measured: int, allowed: int, rows: Sequence[LayerRow]) -> str:
    if name.startswith("require_"):
        return f"{measured:,} {limit.words}; {name} allows none"
    missed = f"{abs(measured - allowed):,} {'short of' if limit.least else 'over'}"
    most = f"; {rows[0].name} alone has {limit.share(rows[0]):,}" if rows else ""
    return f"{measured:,} {limit.words}, {missed} {name} {allowed:,}{most}"


def _largest(report: Report, share: Callable[[LayerRow], int]) -> list[LayerRow]:
    return sorted((row for row in report.rows if share(row)), key=share, reverse=True)[:_MOST_NAMED]


# ------------------------------------------------------------------------------------------------ worth knowing


def cautions(report: Report, holes: Mapping[str, Sequence[int]] | None = None) -> list[Caution]:
    """What a designer should know and the gate does not reject.

    Args:
        holes: per dilated layer, how many lines of pixels a unit made of its output skips, for each of
            `report.axes`: what `gridding.holes` measures. None: not measured.
    """
    return [*_input(report), *_unproductive(report), *_unreached(report), *_gridding(report, holes)]


def _input(report: Report) -> Iterator[Caution]:
    lacking = report.without_channels()
    if lacking is not None:
        yield Caution("input", (lacking[0].name,), lacking[1])


def _unproductive(report: Report) -> Iterator[Caution]:
    """Layers that cannot integrate anything new: what they are fed sees the whole input already.

    Richter et al., "Should You Go Deeper? Optimizing Convolutional Neural Network Architectures without Training by
    Receptive Field Analysis", 2021. The field is the local one: global context (a gate, a statistic) is left out.
    """
    rows = [row for row in report.rows if _looks_around(row) and _sees_all(row, report)]
    if rows:
        names = tuple(row.name for row in rows)
        size = "x".join(str(axis.size) for axis in report.axes)
        what = "1 layer is" if len(rows) == 1 else f"{len(rows)} layers are"
        params = sum(row.params for row in rows)
        yield Caution(
            "unproductive",
            names,
            f"{what} fed by units that see the whole input ({size}) already and can add no context: {_listed(names)}"
            f" ({params:,} parameters)",
        )


def _unreached(report: Report) -> Iterator[Caution]:
    lost = [(path, params) for path, params in report.unreached if params]
    if lost:
        total = sum(params for _, params in lost)
        names = tuple(path or report.name for path, _ in lost)
        said = [
            f"parameters of {name} itself" if runs(report, path) else name
            for name, (path, _) in zip(names, lost, strict=True)
        ]
        yield Caution("unreached", names, f"{total:,} parameters that forward never reaches: {_listed(said)}")


def runs(report: Report, path: str) -> bool:
    """Does forward reach the module at that path, or one inside it? It may still own a parameter that none uses."""
    inside = f"{path}." if path else ""
    return any(row.path == path or row.path.startswith(inside) for row in report.rows)


def _gridding(report: Report, holes: Mapping[str, Sequence[int]] | None) -> Iterator[Caution]:
    found = suspects(report)
    if found and holes is None:
        yield Caution("gridding", found, f"dilation may leave holes behind {_listed(found)}; not measured")
    left = {layer: tuple(missing) for layer, missing in (holes or {}).items() if any(missing)}
    for missing in dict.fromkeys(left.values()):
        layers = tuple(layer for layer in left if left[layer] == missing)
        count = "x".join(map(str, dict.fromkeys(missing)))
        what = f"inside its field a unit of the last map behind skips {count} lines of pixels"
        yield Caution("gridding", layers, f"dilation of {_listed(layers)} leaves holes: {what}")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _looks_around(row: LayerRow) -> bool:
    """Does a window of several taps slide over the map? One that covers the whole map (a pool, a head) does not."""
    if row.kernel is None or not len(row.kernel) == len(row.n_in) == len(row.n_out):
        return False
    sizes = zip(row.kernel, row.n_in, row.n_out, strict=True)
    return any(k > 1 and not (n_out == 1 and 1 < n_in <= k) for k, n_in, n_out in sizes)


def _fed(row: LayerRow) -> tuple[int, ...]:
    """The local field of a sliding layer's input: that of its output, less what its own taps add."""
    spans = [(k - 1) * d for k, d in zip(row.kernel or (), row.dilation or (), strict=True)]
    if len(spans) != len(row.r_local):  # several inputs
        return row.r_in
    return tuple(int(r - span * j) for r, span, j in zip(row.r_local, spans, row.j_in, strict=True))


def _sees_all(row: LayerRow, report: Report) -> bool:
    """Is a sliding layer fed by units that see all? Wide enough, and not only because they hang over the border."""
    if not all(r >= axis.size for r, axis in zip(_fed(row), report.axes, strict=True)):
        return False
    really = report.fed_by_all(row)
    return really is None or all(really)


def suited(report: Report) -> tuple[tuple[int, int] | None, ...]:
    """Per axis the input sizes that the design's depth fits, smallest and largest; None where it cannot be said.

    Smaller inputs make layers unproductive: some layer is fed by units that see all of it already (Richter et al.
    2021). Of a larger one no unit of the last spatial map sees all; what a global pool or a flattening head then brings
    together does not count, for it sees any input. With branches the longest path counts, so that a design with
    short cuts may still do well below the smallest size. None: no layer looks around, or something sees the whole
    input whatever its size.
    """
    rows = [row for row in report.rows if _looks_around(row)]
    last = report.rows[-1] if report.rows else None
    out: list[tuple[int, int] | None] = []
    for i in range(len(report.axes)):
        low = max((_fed(row)[i] for row in rows), default=0) + 1
        high = report.rf_spatial[i]
        known = bool(rows) and last is not None and not any(row.is_global[i] for row in report.rows) and high >= low
        out.append((low, high) if known else None)
    return tuple(out)


def suspects(report: Report) -> tuple[str, ...]:
    """Layers whose dilation may leave holes in what a unit sees: neighbouring taps lie further apart than what the
    layer is fed by sees. Whether a later layer fills them only a measurement tells (`gridding.holes`)."""
    found = []
    for row in report.rows:
        if row.dilation and any(d > 1 for d in row.dilation) and row.kernel and max(row.kernel) > 1:
            reach = [max(row.dilation) * j for j in row.j_in]
            if any(step > r for step, r in zip(reach, _fed(row), strict=True)):
                found.append(row.name)
    return tuple(found)
