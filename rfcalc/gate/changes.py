"""Changes worth trying on a rejected design: arithmetic on its modules chooses, only a trial tells."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from rfcalc.gate.budget import Violation
from rfcalc.gate.cautions import runs
from rfcalc.gate.widths import (
    Changeable,
    UnfitError,
    channels_of,
    followers_of,
    is_depthwise,
    multiplies,
    numel,
    resize,
    step_of,
    width_of,
)

if TYPE_CHECKING:
    from torch import nn

    from rfcalc.analysis.report import LayerRow

MOST_TRIED = 6
_MOST_CONVS = 20  # more in a row are no advice


@dataclass(frozen=True, slots=True)
class Change:
    """Something to try: which modules it touches, and how."""

    kind: str
    layer: str
    message: str
    touched: tuple[nn.Module, ...]
    apply: Callable[[], None]


# ------------------------------------------------------------------------------------------------ narrower layers


def _fewer_params(design: Changeable, violation: Violation) -> Iterator[Change]:
    """Without the modules that forward never reaches, where that is enough; else narrower layers.

    One that runs stays, whatever parameter of its own it leaves unused."""
    lost = [(path, params) for path, params in design.report.unreached if path and params]
    unused = {path: params for path, params in lost if not runs(design.report, path)}
    if sum(unused.values()) >= violation.missed_by:
        places = [design.parent(path) for path in unused]
        yield Change(
            "removed",
            next(iter(unused)),
            f"without {', '.join(unused)}, which forward never reaches",
            tuple(parent for parent, _ in places),
            lambda: _without(places),
        )
    yield from _narrower(design, violation)


def _without(places: Sequence[tuple[nn.Module, str]]) -> None:
    for parent, name in places:
        parent._modules.pop(name, None)


def _narrower(design: Changeable, violation: Violation) -> Iterator[Change]:
    """One layer with fewer channels, the largest holder first; then all of them by one factor."""
    macs = violation.limit == "max_macs"
    single = sorted(_single(design, violation.missed_by, macs), key=lambda found: -found[0])
    yield from (change for _, change in single[: MOST_TRIED - 2])
    for parts in () if macs else (100, _divisor(design)):
        fitting = _largest(lambda n, of=parts: _counted_all(design, Fraction(n, of)) <= violation.allowed, parts - 1)  # type: ignore[misc]
        if fitting is not None:
            yield _thinner(design, Fraction(fitting, parts))


def _single(design: Changeable, excess: int, macs: bool) -> Iterator[tuple[float, Change]]:
    """Per layer the share of its channels that could stay, and the change. Parameters and work are linear in them."""
    work = {id(module): row.macs for row, module in design.layers}
    for at, (row, module) in enumerate(design.layers):
        if not multiplies(module) or is_depthwise(module):
            continue
        through, taker = followers_of(design.layers, at)
        if taker is None:
            continue
        width = width_of(module)
        inner, given = _inner(taker), _given(taker, width)
        if given is None:
            continue
        taken = (work.get(id(taker), 0) if macs else _weight(taker)) * given / inner
        held = taken + sum(work.get(id(m), 0) if macs else numel(m) for m in (module, *through))
        kept = width - math.ceil(excess * width / held) if held else 0
        change = _narrowed(row, module, through, taker, kept)
        if change is not None:
            yield kept / width, change


def _narrowed(
    row: LayerRow, module: nn.Module, through: Sequence[nn.Module], taker: nn.Module, most: int
) -> Change | None:
    """A layer with at most that many channels, in whole groups; None where too few are left, or not all are needed."""
    width, step = width_of(module), step_of((module, *through, taker))
    kept = most - most % step
    given = _given(taker, width)
    if not 0 < kept < width or given is None:
        return None
    return Change(
        "narrower",
        row.name,
        f"{row.name}: {width} -> {kept} channels",
        (module, *through, taker),
        lambda: _narrow(module, through, taker, kept, _inner(taker) - given + given // width * kept),
    )


def _given(taker: nn.Module, width: int) -> int | None:
    """How many of a layer's inputs come from the `width` channels before it; None where they do not fit.

    A linear layer takes every position of a flattened map, a convolution what others gave besides."""
    inner = _inner(taker)
    if not width or not inner:
        return None
    if hasattr(taker, "in_features"):
        return inner if inner % width == 0 else None
    return width if width <= inner else None


def _inner(module: Any) -> int:
    return int(module.in_features if hasattr(module, "in_features") else module.in_channels)


def _weight(module: Any) -> int:
    """Parameters that belong to single input channels."""
    return int(module.weight.numel())


def _narrow(module: nn.Module, through: Sequence[nn.Module], taker: nn.Module, kept: int, into: int) -> None:
    for m in (module, *through):
        resize(m, out=kept)
    resize(taker, into=into)


def _hidden(design: Changeable) -> dict[nn.Module, tuple[int, int]]:
    """The layers whose width is the designer's choice, all that mix channels but the last: width, and its step."""
    layers = design.all_layers
    mixing = [at for at, (_, m) in enumerate(layers) if multiplies(m) and not is_depthwise(m)]
    found = {}
    for at in mixing[:-1]:
        through, taker = followers_of(layers, at)
        module = layers[at][1]
        found[module] = width_of(module), step_of((module, *through, *([taker] if taker else [])))
    return found


def _divisor(design: Changeable) -> int:
    """Parts of it leave no width a rest, so that widths that are added up or joined still fit each other."""
    return math.gcd(*(width // step for width, step in _hidden(design).values())) or 1


def _counted_all(design: Changeable, part: Fraction) -> int:
    """Parameters of the design with every hidden layer at that part of its channels."""
    sizes = list(_thinned(design, part))
    rest = sum(numel(m) for m in design.model.modules()) - sum(numel(m) for m, _, _ in sizes)
    return rest + sum(_counted(m, out, into) for m, out, into in sizes)


def _thinner(design: Changeable, part: Fraction) -> Change:
    """Every hidden layer at the same part of its channels; inputs and classes stay."""
    hidden = _hidden(design).values()
    widths = [_scaled(width, part, step) for width, step in hidden]
    percent = part * 100
    much = f"{percent} %" if percent.denominator == 1 else str(part)
    groups = ", in whole groups" if any(step > 1 for _, step in hidden) else ""
    return Change(
        "thinner",
        design.report.name,
        f"every hidden layer at {much} of its channels{groups} (widths {_span(widths)})",
        tuple(module for _, module in design.all_layers),
        lambda: _resize_all(list(_thinned(design, part))),
    )


def _resize_all(sizes: Sequence[tuple[nn.Module, int | None, int | None]]) -> None:
    for module, out, into in sizes:
        resize(module, out=out, into=into)


def _span(widths: Sequence[int]) -> str:
    low, high = min(widths, default=0), max(widths, default=0)
    return str(low) if low == high else f"{low} to {high}"


def _scaled(width: int, part: Fraction, step: int = 1) -> int:
    return max(step, int(width * part) // step * step)


def _thinned(design: Changeable, part: Fraction) -> Iterator[tuple[Any, int | None, int | None]]:
    """Each layer's channels at that part: (module, out, into), None where they stay.

    Layers are taken for a chain; a part that leaves no rest is right for any design."""
    hidden = _hidden(design)
    before = after = 0  # the width that reaches a layer, as it is and as it will be; 0: that of the input

    def fed(width: int) -> int:
        return width // before * after if width % before == 0 else _scaled(width, part)

    for _, m in design.all_layers:
        channels = channels_of(m)
        if channels is not None:
            if before:
                yield m, fed(channels), None
        elif multiplies(m):
            out = _scaled(hidden[m][0], part, hidden[m][1]) if m in hidden else None
            yield m, out, fed(_inner(m)) if before else None
            before, after = width_of(m), out or width_of(m)


def _counted(module: Any, out: int | None, into: int | None) -> int:
    """The parameters a layer has after `resize`."""
    twin = copy.copy(module)
    twin.__dict__ = dict(module.__dict__, _parameters=dict(module._parameters), _buffers=dict(module._buffers))
    try:
        resize(twin, out=out, into=into)
    except UnfitError:
        return numel(module)
    return numel(twin)


def _largest(fits: Callable[[int], bool], most: int) -> int | None:
    """The largest number from 1 to `most` that fits, where smaller ones fit as well."""
    if not fits(1):
        return None
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


# -------------------------------------------------------------------------------------------- seeing more, doing less


def _wider_view(design: Changeable, violation: Violation) -> Iterator[Change]:
    """One more 3x3 convolution or a 2x2 pool, at each depth where the arithmetic says that it reaches far enough."""
    spots = list(_spots(design))
    last = spots[-1][0] if spots else None
    convs = []
    for step in sorted({row.j_out for row, _ in spots}):
        row, module = min((s for s in spots if s[0].j_out == step), key=lambda s: s[0].ch_out or 0)
        gain = int(2 * min(step))
        count = max(1, -(-violation.missed_by // gain)) if gain else 1
        if count <= _MOST_CONVS:
            convs.append((count * 3 ** len(row.grid) * (row.ch_out or 0) ** 2, count, row, module))
    for _, count, row, module in sorted(convs, key=lambda found: found[:2])[:3]:
        yield _more_convs(design, row, module, count)
    for row, module in reversed(spots):
        beyond = min(violation.measured, *last.r_local) if last else 0
        gain = int(min(row.j_out)) + beyond - min(row.r_local)
        if gain >= violation.missed_by and min(row.n_out) >= 4:
            yield _pooled(design, row, module)


def _less_work(design: Changeable, violation: Violation) -> Iterator[Change]:
    """A narrower layer, all of them narrower, or a pool as late as may help."""
    part = violation.allowed / violation.measured
    if violation.limit == "max_macs":
        for _, change in zip(range(2), _narrower(design, violation), strict=False):
            yield change
        part = math.sqrt(part)  # work grows with the product of two widths
    else:
        yield from _narrow_peak(design, violation)
    for parts in (100, _divisor(design)):
        if part * parts >= 1:
            yield _thinner(design, Fraction(int(part * parts), parts))
    spots = [spot for spot in _spots(design) if min(spot[0].n_out) >= 4]
    for row, module in (*spots[len(spots) // 2 : len(spots) // 2 + 1], *spots[:1]):
        yield _pooled(design, row, module)


def _narrow_peak(design: Changeable, violation: Violation) -> Iterator[Change]:
    """The layers with the largest output, narrower in proportion to what is over."""
    by_size = sorted(enumerate(design.layers), key=lambda found: -found[1][0].activation_bytes)
    for at, (row, module) in by_size[:2]:
        if not multiplies(module) or is_depthwise(module):
            continue
        through, taker = followers_of(design.layers, at)
        most = width_of(module) * violation.allowed // violation.measured
        change = None if taker is None else _narrowed(row, module, through, taker, most)
        if change is not None:
            yield change


def _fewer(design: Changeable, violation: Violation) -> Iterator[Change]:
    """Layers whose input could go on as it is, left out: the last ones, or the first ones."""

    spare = [row for row, module in design.layers if multiplies(module) and row.shape_in == row.shape_out]
    count = violation.missed_by
    for rows in ([], []) if len(spare) < count else (spare[-count:], spare[:count]):
        places = [design.parent(row.path) for row in rows]
        if places:
            yield Change(
                "removed",
                rows[0].name,
                f"without {', '.join(row.name for row in rows)}",
                tuple(parent for parent, _ in places),
                lambda p=places: _leave_out(p),  # type: ignore[misc]
            )


def _leave_out(places: Sequence[tuple[nn.Module, str]]) -> None:
    from torch import nn

    for parent, name in places:
        parent._modules[name] = nn.Identity()


def _spots(design: Changeable) -> Iterator[tuple[LayerRow, nn.Module]]:
    """Layers behind which something may be put: those with a map, of one to three dims, that is not pooled away yet."""
    for row, module in design.layers:
        dims = len(row.grid)
        plain = 1 <= dims <= 3 and row.grid == (2, 3, 4)[:dims] and len(row.shape_out) == 2 + dims
        plain = plain and len(row.j_out) == dims
        if plain and min(row.n_out) > 1 and (multiplies(module) or channels_of(module) or row.moves_grid):
            yield row, module


def _behind(design: Changeable, row: LayerRow, module: nn.Module, more: Sequence[nn.Module]) -> Callable[[], None]:
    from torch import nn

    parent, name = design.parent(row.path)
    return lambda: parent._modules.update({name: nn.Sequential(module, *more)})


def _more_convs(design: Changeable, row: LayerRow, module: nn.Module, count: int) -> Change:
    from torch import nn

    c, dims = row.ch_out or 1, len(row.grid)
    make: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    convs = [make(c, c, 3, padding=1, bias=False, device="meta") for _ in range(count)]
    what = f"{count if count > 1 else 'one'} more {_taps(3, dims)} convolution{'s' if count > 1 else ''}"
    return Change(
        "convolution",
        row.name,
        f"{what} of {c} channels (padding 1, no bias) behind {row.name}",
        (design.parent(row.path)[0],),
        _behind(design, row, module, convs),
    )


def _pooled(design: Changeable, row: LayerRow, module: nn.Module) -> Change:
    from torch import nn

    dims = len(row.grid)
    return Change(
        "pool",
        row.name,
        f"a {_taps(2, dims)} max pool behind {row.name}",
        (design.parent(row.path)[0],),
        _behind(design, row, module, [(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims - 1](2)]),
    )


def _taps(k: int, dims: int) -> str:
    """`3x3`; along one dim `3-tap`."""
    return f"{k}-tap" if dims == 1 else "x".join([str(k)] * dims)


CHANGES: dict[str, Callable[[Changeable, Violation], Iterator[Change]]] = {
    "max_params": _fewer_params,
    "min_rf": _wider_view,
    "min_rf_spatial": _wider_view,
    "max_macs": _less_work,
    "max_activation_bytes": _less_work,
    "max_layers": _fewer,
}
