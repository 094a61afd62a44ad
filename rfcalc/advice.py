"""What would bring a rejected design under its budget. Every advice is tried on the design before it is given.

A change is made to the design's modules, the changed design is analysed, and its figures go with the advice; a design
that does not run after a change gets no such advice. Arithmetic only chooses what is worth trying.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from .errors import RfcalcError
from .gate import Budget, Violation, check, runs

if TYPE_CHECKING:
    from torch import nn

    from .report import LayerRow, Report

_MOST_SHOWN = 3  # per limit
_MOST_TRIED = 6
_MOST_CONVS = 20  # more in a row are no advice


@dataclass(frozen=True, slots=True)
class Advice:
    """One change to a design, and the figures the changed design has: measured by analysing it, not estimated.

    `kind` is what is done, `layer` the row (or module path) it is done to, `message` the change in one sentence;
    `fits` tells whether the changed design passes its whole budget. Fields per axis follow `Report.axes`.
    """

    limit: str
    kind: str
    layer: str
    message: str
    params: int
    macs: int
    rf_output: tuple[int, ...]
    rf_spatial: tuple[int, ...]
    fits: bool


@dataclass(frozen=True, slots=True)
class _Change:
    """Something to try: which modules it touches, and how."""

    kind: str
    layer: str
    message: str
    touched: tuple[nn.Module, ...]
    apply: Callable[[], None]


def advise(
    build: Callable[[], nn.Module],
    input_shape: Any,
    report: Report,
    budget: Budget,
    violations: Sequence[Violation],
    *,
    layout: str | None = None,
) -> list[Advice]:
    """Changes that would end a violation, those that pass the whole budget first; at most three for each limit.

    Args:
        build: makes the design, without storage is enough (`Design.build`). `report`: of that design on `input_shape`.
        violations: what `check(report, budget)` found.
    """
    from torch.nn.parameter import is_lazy

    if not any(v.limit in _CHANGES for v in violations):
        return []
    model = build()
    if any(is_lazy(parameter) for parameter in model.parameters()):
        return []  # its layers take whatever size comes: there is nothing to take apart
    design = _Design(model, report)
    found = []
    for violation in violations:
        changes = _CHANGES.get(violation.limit)
        tried: dict[tuple[str, str], Advice] = {}  # a second way to do the same is tried only where the first failed
        for change in _first(changes(design, violation), _MOST_TRIED) if changes else ():
            what = change.kind, change.layer
            advice = None if what in tried else _tried(change, design, violation, budget, input_shape, layout)
            if advice is not None:
                tried[what] = advice
        found += sorted(tried.values(), key=lambda advice: not advice.fits)[:_MOST_SHOWN]
    return found


def _first(changes: Iterable[_Change], count: int) -> Iterator[_Change]:
    for _, change in zip(range(count), changes, strict=False):
        yield change


def _tried(
    change: _Change, design: _Design, violation: Violation, budget: Budget, input_shape: Any, layout: str | None
) -> Advice | None:
    """The advice with the figures of the changed design; None where it does not run, the limit is still missed or what
    it gives has another shape: a map of half the size or fewer classes would be the answer to another question."""
    from .report import analyze

    with _undone(change.touched):
        try:
            change.apply()
            report = analyze(design.model, input_shape, layout=layout, name=design.report.name)
        except (RfcalcError, _UnfitError):
            return None
    if _same(report, design.report):
        return None  # nothing was changed, so nothing can be mended
    left = check(report, budget)
    if any(v.limit == violation.limit for v in left) or report.output_shapes != design.report.output_shapes:
        return None
    return Advice(
        limit=violation.limit,
        kind=change.kind,
        layer=change.layer,
        message=change.message,
        params=report.params,
        macs=report.macs,
        rf_output=report.rf_output,
        rf_spatial=report.rf_spatial,
        fits=not left,
    )


def _same(changed: Report, original: Report) -> bool:
    return (changed.rows, changed.params, changed.unreached) == (original.rows, original.params, original.unreached)


@contextmanager
def _undone(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Afterwards the modules' attributes, parameters, buffers and children are what they were."""
    tables = ("_parameters", "_buffers", "_modules")
    before = [(m.__dict__, dict(m.__dict__), [dict(m.__dict__[t]) for t in tables]) for m in modules]
    try:
        yield
    finally:
        for d, attributes, contents in before:
            d.clear()
            d.update(attributes)
            for table, content in zip(tables, contents, strict=True):
                d[table].clear()
                d[table].update(content)


# ------------------------------------------------------------------------------------------------- taking apart


class _UnfitError(Exception):
    """A change that this module cannot take."""


class _Design:
    """A model beside its report: which row is the call of which module, in the order of the forward.

    `layers` holds the modules called once, `all_layers` also those called more often, at their first call."""

    def __init__(self, model: nn.Module, report: Report) -> None:
        self.model, self.report = model, report
        modules = dict(model.named_modules())
        calls: dict[str, int] = {}
        for row in report.rows:
            calls[row.path] = calls.get(row.path, 0) + 1
        owners: dict[int, int] = {}
        for module in modules.values():
            for parameter in module._parameters.values():
                owners[id(parameter)] = owners.get(id(parameter), 0) + (parameter is not None)
        first = {row.path: row for row in reversed(report.rows)}
        self.all_layers = [
            (row, module)
            for row in report.rows
            if row is first[row.path]
            and (module := modules.get(row.path)) is not None
            and type(module).__name__ == row.op
            # a weight that two layers share cannot change in one of them
            and all(owners[id(p)] < 2 for p in module._parameters.values())
        ]
        self.layers = [(row, module) for row, module in self.all_layers if calls[row.path] == 1]

    def parent(self, path: str) -> tuple[nn.Module, str]:
        """The module that holds the one at `path`, and the name it has there."""
        outer, _, name = path.rpartition(".")
        return self.model.get_submodule(outer), name


def _followers(layers: Sequence[tuple[LayerRow, nn.Module]], at: int) -> tuple[list[nn.Module], nn.Module | None]:
    """What a layer's channels pass through, and the layer that takes them in: by order, a trial shows if truly."""
    through: list[nn.Module] = []
    width = _width(layers[at][1])
    for _, module in layers[at + 1 :]:
        if _multiplies(module) and not _depthwise(module):
            return through, module
        if _channels(module) == width:
            through.append(module)
    return through, None


def _multiplies(module: nn.Module) -> bool:
    from torch import nn

    return isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) or _transposed(module)


def _transposed(module: nn.Module) -> bool:
    from torch import nn

    return isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)


def _depthwise(module: Any) -> bool:
    return getattr(module, "groups", 1) > 1 and module.groups == module.in_channels == module.out_channels


def _channels(module: Any) -> int | None:
    """How many channels a layer owns numbers for, each by itself; None for one that mixes them or owns none."""
    from torch import nn

    batch = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
    instance = nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d
    found: int | None = None
    if isinstance(module, batch | instance):
        found = module.num_features
    elif isinstance(module, nn.GroupNorm):
        found = module.num_channels
    elif isinstance(module, nn.LayerNorm):
        found = module.normalized_shape[0]  # of the channels alone, or of (C, H, W)
    elif isinstance(module, nn.PReLU):
        found = module.num_parameters if module.num_parameters > 1 else None
    elif _depthwise(module):
        found = module.out_channels
    return found


def _groups(module: Any) -> int:
    """Its channels come in that many equal groups. One group for each channel is no constraint: they go along."""
    if _multiplies(module):
        return 1 if _depthwise(module) else getattr(module, "groups", 1)
    groups = getattr(module, "num_groups", 1)
    return 1 if groups == _channels(module) else groups


def _step(modules: Iterable[nn.Module]) -> int:
    """The widths that fit all of these layers are the multiples of it."""
    return math.lcm(*map(_groups, modules))


def _width(module: Any) -> int:
    return int(module.out_features if hasattr(module, "out_features") else module.out_channels)


def _reshape(module: nn.Module, name: str, shape: Sequence[int]) -> None:
    """Give a parameter or buffer another shape; its values do not matter."""
    import torch
    from torch import nn

    tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
    for table in tables:
        old = table.get(name)
        if old is not None:
            new = torch.zeros(tuple(shape), dtype=old.dtype, device=old.device)
            table[name] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new


def _resize(module: Any, *, out: int | None = None, into: int | None = None) -> None:
    """Another number of output or input channels. Raises _UnfitError where the layer's groups do not allow it."""
    from torch import nn

    width = out or into or 0
    if _depthwise(module):
        module.in_channels = module.out_channels = module.groups = width
        _reshape(module, "weight", (width, 1, *module.weight.shape[2:]))
        _reshape(module, "bias", (width,))
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = out or module.out_features, into or module.in_features
        _reshape(module, "weight", (module.out_features, module.in_features))
        _reshape(module, "bias", (module.out_features,))
    elif _multiplies(module):
        module.out_channels, module.in_channels = out or module.out_channels, into or module.in_channels
        if module.in_channels % module.groups or module.out_channels % module.groups:
            raise _UnfitError
        ends = (module.in_channels, module.out_channels)
        outer, inner = ends if _transposed(module) else ends[::-1]
        _reshape(module, "weight", (outer, inner // module.groups, *module.weight.shape[2:]))
        _reshape(module, "bias", (module.out_channels,))
    else:
        _resize_per_channel(module, width)


def _resize_per_channel(module: Any, width: int) -> None:
    from torch import nn

    shape: tuple[int, ...] = (width,)
    if isinstance(module, nn.GroupNorm):
        if width % _groups(module):
            raise _UnfitError
        single = module.num_groups == module.num_channels
        module.num_channels, module.num_groups = width, width if single else module.num_groups
    elif isinstance(module, nn.LayerNorm):
        shape = module.normalized_shape = (width, *module.normalized_shape[1:])
    elif isinstance(module, nn.PReLU):
        module.num_parameters = width
    else:
        module.num_features = width
    for name in ("weight", "bias", "running_mean", "running_var"):
        _reshape(module, name, shape)


def _numel(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters(recurse=False))


# ------------------------------------------------------------------------------------------------ narrower layers


def _fewer_params(design: _Design, violation: Violation) -> Iterator[_Change]:
    """Without the modules that forward never reaches, where that is enough; else narrower layers.

    One that runs stays, whatever parameter of its own it leaves unused."""
    lost = [(path, params) for path, params in design.report.unreached if path and params]
    unused = {path: params for path, params in lost if not runs(design.report, path)}
    if sum(unused.values()) >= violation.missed_by:
        places = [design.parent(path) for path in unused]
        yield _Change(
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


def _narrower(design: _Design, violation: Violation) -> Iterator[_Change]:
    """One layer with fewer channels, the largest holder first; then all of them by one factor."""
    macs = violation.limit == "max_macs"
    single = sorted(_single(design, violation.missed_by, macs), key=lambda found: -found[0])
    yield from (change for _, change in single[: _MOST_TRIED - 2])
    for parts in () if macs else (100, _divisor(design)):
        fitting = _largest(lambda n, of=parts: _counted_all(design, Fraction(n, of)) <= violation.allowed, parts - 1)  # type: ignore[misc]
        if fitting is not None:
            yield _thinner(design, Fraction(fitting, parts))


def _single(design: _Design, excess: int, macs: bool) -> Iterator[tuple[float, _Change]]:
    """Per layer the share of its channels that could stay, and the change. Parameters and work are linear in them."""
    work = {id(module): row.macs for row, module in design.layers}
    for at, (row, module) in enumerate(design.layers):
        if not _multiplies(module) or _depthwise(module):
            continue
        through, taker = _followers(design.layers, at)
        if taker is None:
            continue
        width = _width(module)
        inner, given = _inner(taker), _given(taker, width)
        if given is None:
            continue
        taken = (work.get(id(taker), 0) if macs else _weight(taker)) * given / inner
        held = taken + sum(work.get(id(m), 0) if macs else _numel(m) for m in (module, *through))
        kept = width - math.ceil(excess * width / held) if held else 0
        change = _narrowed(row, module, through, taker, kept)
        if change is not None:
            yield kept / width, change


def _narrowed(
    row: LayerRow, module: nn.Module, through: Sequence[nn.Module], taker: nn.Module, most: int
) -> _Change | None:
    """A layer with at most that many channels, in whole groups; None where too few are left, or not all are needed."""
    width, step = _width(module), _step((module, *through, taker))
    kept = most - most % step
    given = _given(taker, width)
    if not 0 < kept < width or given is None:
        return None
    return _Change(
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
        _resize(m, out=kept)
    _resize(taker, into=into)


def _hidden(design: _Design) -> dict[nn.Module, tuple[int, int]]:
    """The layers whose width is the designer's choice, all that mix channels but the last: width, and its step."""
    layers = design.all_layers
    mixing = [at for at, (_, m) in enumerate(layers) if _multiplies(m) and not _depthwise(m)]
    found = {}
    for at in mixing[:-1]:
        through, taker = _followers(layers, at)
        module = layers[at][1]
        found[module] = _width(module), _step((module, *through, *([taker] if taker else [])))
    return found


def _divisor(design: _Design) -> int:
    """Parts of it leave no width a rest, so that widths that are added up or joined still fit each other."""
    return math.gcd(*(width // step for width, step in _hidden(design).values())) or 1


def _counted_all(design: _Design, part: Fraction) -> int:
    """Parameters of the design with every hidden layer at that part of its channels."""
    sizes = list(_thinned(design, part))
    rest = sum(_numel(m) for m in design.model.modules()) - sum(_numel(m) for m, _, _ in sizes)
    return rest + sum(_counted(m, out, into) for m, out, into in sizes)


def _thinner(design: _Design, part: Fraction) -> _Change:
    """Every hidden layer at the same part of its channels; inputs and classes stay."""
    hidden = _hidden(design).values()
    widths = [_scaled(width, part, step) for width, step in hidden]
    percent = part * 100
    much = f"{percent} %" if percent.denominator == 1 else str(part)
    groups = ", in whole groups" if any(step > 1 for _, step in hidden) else ""
    return _Change(
        "thinner",
        design.report.name,
        f"every hidden layer at {much} of its channels{groups} (widths {_span(widths)})",
        tuple(module for _, module in design.all_layers),
        lambda: _resize_all(list(_thinned(design, part))),
    )


def _resize_all(sizes: Sequence[tuple[nn.Module, int | None, int | None]]) -> None:
    for module, out, into in sizes:
        _resize(module, out=out, into=into)


def _span(widths: Sequence[int]) -> str:
    low, high = min(widths, default=0), max(widths, default=0)
    return str(low) if low == high else f"{low} to {high}"


def _scaled(width: int, part: Fraction, step: int = 1) -> int:
    return max(step, int(width * part) // step * step)


def _thinned(design: _Design, part: Fraction) -> Iterator[tuple[Any, int | None, int | None]]:
    """Each layer's channels at that part: (module, out, into), None where they stay.

    Layers are taken for a chain; a part that leaves no rest is right for any design."""
    hidden = _hidden(design)
    before = after = 0  # the width that reaches a layer, as it is and as it will be; 0: that of the input

    def fed(width: int) -> int:
        return width // before * after if width % before == 0 else _scaled(width, part)

    for _, m in design.all_layers:
        channels = _channels(m)
        if channels is not None:
            if before:
                yield m, fed(channels), None
        elif _multiplies(m):
            out = _scaled(hidden[m][0], part, hidden[m][1]) if m in hidden else None
            yield m, out, fed(_inner(m)) if before else None
            before, after = _width(m), out or _width(m)


def _counted(module: Any, out: int | None, into: int | None) -> int:
    """The parameters a layer has after `_resize`."""
    twin = copy.copy(module)
    twin.__dict__ = dict(module.__dict__, _parameters=dict(module._parameters), _buffers=dict(module._buffers))
    try:
        _resize(twin, out=out, into=into)
    except _UnfitError:
        return _numel(module)
    return _numel(twin)


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


def _wider_view(design: _Design, violation: Violation) -> Iterator[_Change]:
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


def _less_work(design: _Design, violation: Violation) -> Iterator[_Change]:
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


def _narrow_peak(design: _Design, violation: Violation) -> Iterator[_Change]:
    """The layers with the largest output, narrower in proportion to what is over."""
    by_size = sorted(enumerate(design.layers), key=lambda found: -found[1][0].activation_bytes)
    for at, (row, module) in by_size[:2]:
        if not _multiplies(module) or _depthwise(module):
            continue
        through, taker = _followers(design.layers, at)
        most = _width(module) * violation.allowed // violation.measured
        change = None if taker is None else _narrowed(row, module, through, taker, most)
        if change is not None:
            yield change


def _fewer(design: _Design, violation: Violation) -> Iterator[_Change]:
    """Layers whose input could go on as it is, left out: the last ones, or the first ones."""

    spare = [row for row, module in design.layers if _multiplies(module) and row.shape_in == row.shape_out]
    count = violation.missed_by
    for rows in ([], []) if len(spare) < count else (spare[-count:], spare[:count]):
        places = [design.parent(row.path) for row in rows]
        if places:
            yield _Change(
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


def _spots(design: _Design) -> Iterator[tuple[LayerRow, nn.Module]]:
    """Layers behind which something may be put: those with a map, of one to three dims, that is not pooled away yet."""
    for row, module in design.layers:
        dims = len(row.grid)
        plain = 1 <= dims <= 3 and row.grid == (2, 3, 4)[:dims] and len(row.shape_out) == 2 + dims
        plain = plain and len(row.j_out) == dims
        if plain and min(row.n_out) > 1 and (_multiplies(module) or _channels(module) or row.moves_grid):
            yield row, module


def _behind(design: _Design, row: LayerRow, module: nn.Module, more: Sequence[nn.Module]) -> Callable[[], None]:
    from torch import nn

    parent, name = design.parent(row.path)
    return lambda: parent._modules.update({name: nn.Sequential(module, *more)})


def _more_convs(design: _Design, row: LayerRow, module: nn.Module, count: int) -> _Change:
    from torch import nn

    c, dims = row.ch_out or 1, len(row.grid)
    make: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    convs = [make(c, c, 3, padding=1, bias=False, device="meta") for _ in range(count)]
    what = f"{count if count > 1 else 'one'} more {_taps(3, dims)} convolution{'s' if count > 1 else ''}"
    return _Change(
        "convolution",
        row.name,
        f"{what} of {c} channels (padding 1, no bias) behind {row.name}",
        (design.parent(row.path)[0],),
        _behind(design, row, module, convs),
    )


def _pooled(design: _Design, row: LayerRow, module: nn.Module) -> _Change:
    from torch import nn

    dims = len(row.grid)
    return _Change(
        "pool",
        row.name,
        f"a {_taps(2, dims)} max pool behind {row.name}",
        (design.parent(row.path)[0],),
        _behind(design, row, module, [(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims - 1](2)]),
    )


def _taps(k: int, dims: int) -> str:
    """`3x3`; along one dim `3-tap`."""
    return f"{k}-tap" if dims == 1 else "x".join([str(k)] * dims)


_CHANGES: dict[str, Callable[[_Design, Violation], Iterator[_Change]]] = {
    "max_params": _fewer_params,
    "min_rf": _wider_view,
    "min_rf_spatial": _wider_view,
    "max_macs": _less_work,
    "max_activation_bytes": _less_work,
    "max_layers": _fewer,
}
