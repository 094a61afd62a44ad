"""What is worth knowing of a design and rejects nothing. Pure; no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rfcalc.gate.budget import MOST_NAMED

if TYPE_CHECKING:
    from rfcalc.analysis.report import LayerRow, Report


@dataclass(frozen=True, slots=True)
class Caution:
    """What is worth knowing but rejects nothing: `layers` are the rows (or module paths) it is about."""

    kind: Literal["unproductive", "unreached", "gridding", "input"]
    layers: tuple[str, ...]
    message: str


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
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


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
