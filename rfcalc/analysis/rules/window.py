"""Sliding windows: convolution, pooling, unfolding, padding, and their transposes."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache, partial
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from rfcalc.analysis.field import AxisField, Field, drop_dims, join, mix, reduce, touched
from rfcalc.analysis.moves import pad_part, permute_part, reshape_part
from rfcalc.analysis.parts import Part, Shape, expand_span
from rfcalc.analysis.rules.parameters import per_output, with_parameters
from rfcalc.analysis.rules.registry import Call, Result, Value, Window, rule, spatial, values
from rfcalc.analysis.windows import Taps, folded_part, taps_part, transposed_taps, window_hits, window_part

_ONE = Fraction(1)


Steps = tuple[tuple[int, int, int, int, int, bool], ...]


@lru_cache(maxsize=1024)
def _scaled(jump: Fraction, by: int) -> Fraction:
    """One object for H and W: what was worked out for the one is then found, by identity, for the other."""
    return jump * by


def _slide(field: Field, first: int, shape: Shape, out: Shape, steps: Steps) -> Field:
    """Apply one window per spatial dim, starting at tensor dim `first`."""

    def change(a: AxisField) -> AxisField:
        parts, jump = a.parts, a.jump
        for i, k, s, before, d, blanks in steps:
            dim = first + i
            hit = False
            for p in parts:
                if blanks or dim in p.dims or (p.span is not None and p.span.dim == dim):
                    hit = True
            if not hit:
                continue
            if s != 1 and a.runs_along(dim):
                jump = _scaled(jump, s)
            parts = tuple([window_part(p, dim, shape[dim], out[dim], k, s, before, d, a.jump, a.turn) for p in parts])
        return a if parts is a.parts else a.with_parts(parts, jump)

    return Field(tuple([change(a) for a in field.axes]), field.approx)


@lru_cache(maxsize=4096)
def _steps(shape: Shape, out: Shape, w: Window) -> Steps:
    """The dims a window does anything along; `blanks`: some output sees padding only."""
    found = []
    for i, (k, s, (before, _), d) in enumerate(zip(w.kernel, w.stride, w.padding, w.dilation, strict=True)):
        if k == 1 and s == 1 and before == 0 and shape[i] == out[i]:
            continue
        found.append((i, k, s, before, d, window_hits(shape[i], k, s, before, d, out[i]) is not None))
    return tuple(found)


def group_channels(field: Field, dim: int, channels: int, out_channels: int, groups: int) -> Field:
    """Mix the channels of each group; a depthwise convolution (one channel a group) mixes none."""
    if groups == 1:
        return reduce(field, (dim,))
    size, copies = channels // groups, out_channels // groups

    def regroup(p: Part) -> Part:
        if p.span is not None and p.span.dim == dim:
            p = expand_span(p, channels)
        if dim not in p.dims:
            return p
        ax = p.dims.index(dim) + 1
        b = p.bounds
        if size > 1:
            b = b.reshape(*b.shape[:ax], groups, size, *b.shape[ax + 1 :]).min(ax + 1)
        return p._replace(bounds=b.repeat(copies, ax) if copies > 1 else b)

    return field.map(regroup)


def _channel_dim(shape: Shape, n: int) -> int:
    return len(shape) - n - 1


def _same(k: int, d: int) -> tuple[int, int]:
    """torch's padding='same': the odd one goes behind."""
    total = d * (k - 1)
    return total // 2, total - total // 2


def conv_window(weight: Shape, stride: Any, padding: Any, dilation: Any, groups: int) -> Window:
    """The geometry of a convolution from its arguments as torch takes them."""
    if type(stride) is list or type(padding) is list or type(dilation) is list:
        stride, padding, dilation = (tuple(v) if isinstance(v, list) else v for v in (stride, padding, dilation))
    return _conv_window(weight, stride, padding, dilation, groups)


@lru_cache(maxsize=4096)
def _conv_window(weight: Shape, stride: Any, padding: Any, dilation: Any, groups: int) -> Window:
    n = len(weight) - 2
    kernel = tuple(weight[2:])
    dilations = spatial(dilation, n)
    if isinstance(padding, str):
        none = tuple((0, 0) for _ in range(n))
        pads = tuple(map(_same, kernel, dilations)) if padding == "same" else none
    else:
        pads = tuple((p, p) for p in spatial(padding, n))
    return Window(kernel, spatial(stride, n), pads, dilations, groups)


@rule("conv1d", "conv2d", "conv3d")
def conv(
    call: Call,
    x: Value,
    weight: Value,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Result:
    """Cross-correlation: all channels of a group, k taps of stride s, padding p, dilation d."""
    w = call.window = conv_window(weight.shape, stride, padding, dilation, groups)
    field = None if x.field is None else convolved(x.field, x.shape, call.out[0], w)
    return with_parameters(field, (per_output(weight), bias), call.out[0], len(w.kernel))


def convolved(field: Field, shape: Shape, out: Shape, w: Window) -> Field:
    """Mix the channels of each group, then slide the window along space."""
    dim = _channel_dim(shape, len(w.kernel))
    field = group_channels(field, dim, shape[dim], out[dim], w.groups)
    steps = _steps(shape[dim + 1 :], out[dim + 1 :], w)
    return _slide(field, dim + 1, shape, out, steps) if steps else field


def _is_zero(numbers: Tensor) -> bool:
    with _disable_current_modes():  # the forward may be tracing
        return not numbers.any()


@rule("convolution", "_convolution")
def convolution(
    call: Call, x: Value, weight: Value, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    transposed: bool = False, output_padding: Any = 0, groups: int = 1, *rest: Any,
) -> Result:  # fmt: skip
    if weight.const is not None and _is_zero(weight.const):
        return None  # the tangent of a weight, as torch writes out forward mode
    if transposed:
        return conv_transpose(call, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return conv(call, x, weight, bias, stride, padding, dilation, groups)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(
    call: Call, x: Value, weight: Value, bias: Any = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Result:  # fmt: skip
    """Input i reaches outputs `i*s - p + t*d`; the jump divides by s."""
    w = call.window = conv_window(weight.shape, stride, padding, dilation, groups)
    dim = _channel_dim(x.shape, len(w.kernel))
    field = x.field and group_channels(x.field, dim, x.shape[dim], weight.shape[1] * groups, groups)
    for i, (k, s, (before, _), d) in enumerate(zip(w.kernel, w.stride, w.padding, w.dilation, strict=True)):
        at = dim + 1 + i
        taps = transposed_taps(x.shape[at], call.out[0][at], k, s, before, d)
        field = field and tapped(field, at, x.shape[at], taps, Fraction(1, s))
    return with_parameters(field, (_of_groups(weight, groups), bias), call.out[0], len(w.kernel))


def _of_groups(weight: Value, groups: int) -> Value:
    """The weight (inputs, outputs of a group, *taps) of a transposed convolution, for each output of each group."""
    if weight.field is None:
        return weight
    shape = (groups, weight.shape[0] // groups, *weight.shape[1:])
    others = [1, *range(3, len(shape))]
    field = weight.field.unmasked().map(lambda p: reshape_part(p, weight.shape, shape))
    merged = drop_dims(mix(reduce(field, others)), others, len(shape))
    out = (groups * shape[2],)
    return Value(out, merged.map(lambda p: reshape_part(p, (groups, shape[2]), out)))


def tapped(field: Field, dim: int, n: int, taps: Taps, scale: Fraction = _ONE) -> Field:
    """Select along one dim by taps; the jump of axes that run along the dim is multiplied by `scale`."""

    def change(a: AxisField) -> AxisField:
        runs = a.runs_along(dim)
        parts = [taps_part(p, dim, n, taps, a.jump, a.turn) for p in a.parts]
        return a.with_parts(parts, a.jump * scale if runs else None)

    return field.each(change)


# ------------------------------------------------------------------------------------------------------- pooling


def _pool(call: Call, x: Value, kernel: Any, stride: Any, padding: Any, dilation: Any, n: int) -> Result:
    """A window per channel. One that covers the whole map never steps: stride 1, and the jump passes through."""
    assert x.field is not None
    first = len(x.shape) - n
    out = call.out[0]
    ks = spatial(kernel, n)
    w = Window(
        ks, spatial(stride, n, ks), tuple((p, p) for p in spatial(padding, n)), spatial(dilation, n), 1
    )  # fmt: skip
    whole = [
        out[first + i] == 1 and w.dilation[i] == 1 and w.kernel[i] - w.padding[i][0] >= x.shape[first + i]
        for i in range(n)
    ]
    call.window = Window(
        tuple(
            x.shape[first + i] if g and not w.padding[i][0] else k
            for i, (g, k) in enumerate(zip(whole, ks, strict=True))
        ),
        tuple(1 if g else s for g, s in zip(whole, w.stride, strict=True)),
        w.padding,
        w.dilation,
    )
    field = x.field
    gone = [first + i for i in range(n) if whole[i] and x.shape[first + i] > 1]
    if gone:
        field = reduce(field, gone)
    steps = Window(
        tuple(1 if g else k for g, k in zip(whole, ks, strict=True)),
        call.window.stride,
        tuple((0, 0) if g else p for g, p in zip(whole, w.padding, strict=True)),
        w.dilation,
    )
    shape = tuple(1 if first <= d and whole[d - first] else s for d, s in enumerate(x.shape))
    field = _slide(field, first, shape, out, _steps(shape[first:], out[first:], steps)).unmasked()
    return field if len(call.out) == 1 else (field,) * len(call.out)


def _rank(op: str) -> int:
    """How many spatial dims an op of a family has: the digit before the last d of `max_pool2d_with_indices`."""
    return int(op.removesuffix("_with_indices")[-2])


@rule(*(f"max_pool{n}d{end}" for n in (1, 2, 3) for end in ("", "_with_indices")))
def max_pool(call: Call, x: Value, k: Any, s: Any = (), p: Any = 0, d: Any = 1, ceil: bool = False) -> Result:
    return _pool(call, x, k, s, p, d, _rank(call.op))


@rule("avg_pool1d", "avg_pool2d", "avg_pool3d")
def avg_pool(call: Call, x: Value, k: Any, s: Any = (), p: Any = 0, *rest: Any, **kw: Any) -> Result:
    return _pool(call, x, k, s, p, 1, _rank(call.op))


@lru_cache(maxsize=256)
def adaptive_taps(n: int, n_out: int) -> Taps:
    """Output o averages inputs floor(o*n/n_out) up to, not including, ceil((o+1)*n/n_out)."""
    o = np.arange(n_out)
    start, stop = o * n // n_out, -(-(o + 1) * n // n_out)
    at = start[:, None] + np.arange(int((stop - start).max()))[None, :]
    at = np.where(at < stop[:, None], at, start[:, None])
    return Taps(at, at)


@rule("_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
      *(f"adaptive_{kind}_pool{n}d" for kind in ("avg", "max") for n in (1, 2, 3)))  # fmt: skip
def adaptive_pool(call: Call, x: Value, size: Any) -> Result:
    """Output o pools its share of the map; to 1 it is a global pool."""
    n = _rank(call.op)
    assert x.field is not None
    first = len(x.shape) - n
    field = x.field
    kernel, stride = [], []
    for d in range(first, len(x.shape)):
        a, b = x.shape[d], call.out[0][d]
        if b == 1 or a % b == 0:
            kernel.append(a // b)
            stride.append(1 if b == 1 else a // b)
        else:
            kernel.append(int((-(-(np.arange(b) + 1) * a // b) - np.arange(b) * a // b).max()))
            stride.append(a // b)
        if b == 1 and a > 1:
            field = reduce(field, (d,))
        elif a != b:
            field = tapped(field, d, a, adaptive_taps(a, b), Fraction(a, b))
    call.window = Window(tuple(kernel), tuple(stride), ((0, 0),) * n, (1,) * n)
    field = field.unmasked()
    return field if len(call.out) == 1 else (field,) * len(call.out)


@rule("fractional_max_pool2d", "fractional_max_pool3d", "max_unpool2d", "max_unpool3d")
def scattered(call: Call, x: Value, *args: Any, **kwargs: Any) -> Result:
    """Windows placed by random numbers, or targets placed by the data: any position of the map, channel by channel."""
    first = len(x.shape) - _rank(call.op)
    fields = []
    for v in values((x, *args, *kwargs.values())):  # of the random numbers each channel has its own, of places each map
        if v.field is not None:
            space = range(min(first, len(v.shape) - 1), len(v.shape))
            fields.append(mix(reduce(v.field, space).unmasked(), touched(v.field, space)))
    return (join(fields),) * len(call.out) if len(call.out) > 1 else join(fields)


# ------------------------------------------------------------------------------------------- unfold, fold, padding


@rule("im2col")
def im2col(call: Call, x: Value, k: Any, dilation: Any, padding: Any, stride: Any) -> Result:
    """F.unfold: the taps of each window become channels, the windows one dim."""
    ks, ds, ps, ss = (spatial(v, 2) for v in (k, dilation, padding, stride))
    call.window = Window(ks, ss, tuple((p, p) for p in ps), ds)
    field = x.field
    assert field is not None
    dim = len(x.shape) - 3
    shape = list(x.shape)
    for i in (1, 0):  # each spatial dim becomes (tap, window); the inner one first, so that dim numbers stay valid
        at = dim + 1 + i
        n = shape[at]
        n_out = (n + 2 * ps[i] - ds[i] * (ks[i] - 1) - 1) // ss[i] + 1
        index = np.arange(ks[i])[:, None] * ds[i] + np.arange(n_out)[None, :] * ss[i] - ps[i]
        flat = index.reshape(-1, 1)
        taps = Taps(np.where((flat >= 0) & (flat < n), flat, -1), flat)
        field = tapped(field, at, n, taps)
        old = (*shape[:at], flat.size, *shape[at + 1 :])
        shape[at : at + 1] = [ks[i], n_out]
        new = tuple(shape)
        field = field.map(partial(reshape_part, old=old, new=new))
    # (..., C, kh, oh, kw, ow) -> (..., C, kh, kw, oh, ow)
    lead = list(range(dim + 1))
    order = [*lead, dim + 1, dim + 3, dim + 2, dim + 4]
    field = field.map(lambda p: permute_part(p, order))
    moved = tuple(shape[d] for d in order)
    field = field.map(lambda p: reshape_part(p, moved, call.out[0]))
    return rescaled(field, Fraction(_common(ss)))


def rescaled(field: Field, factor: Fraction) -> Field:
    """The grid of every axis became coarser (factor above 1) or finer by a movement that is no window."""
    return field.each(lambda a: a.with_parts(a.parts, a.jump * factor))


def _common(strides: tuple[int, ...]) -> int:
    """The windows of an image lie `stride` apart; with unequal strides the nominal jump is left alone."""
    return strides[0] if len(set(strides)) == 1 else 1


@rule("col2im")
def col2im(call: Call, x: Value, size: Any, k: Any, dilation: Any, padding: Any, stride: Any) -> Result:
    """F.fold: each window's column is added back at its place (the transpose of unfold)."""
    hw, ks, ds, ps, ss = (spatial(v, 2) for v in (size, k, dilation, padding, stride))
    field = x.field
    assert field is not None
    batch, out = x.shape[:-2], call.out[0]
    windows = [(hw[i] + 2 * ps[i] - ds[i] * (ks[i] - 1) - 1) // ss[i] + 1 for i in (0, 1)]
    dim = len(out) - 3
    split = (*batch, out[dim], ks[0], ks[1], windows[0], windows[1])
    field = field.map(lambda p: reshape_part(p, x.shape, split))
    order = [*range(dim + 1), dim + 1, dim + 3, dim + 2, dim + 4]
    field = field.map(lambda p: permute_part(p, order))
    for i in (1, 0):  # (tap, window) -> position
        field = _folded(field, dim + 1 + 2 * i, hw[i], ks[i], windows[i], ss[i], ps[i], ds[i])
    return rescaled(field, Fraction(1, _common(ss)))


def _folded(
    field: Field, dim: int, n_out: int, k: int, n: int, s: int, p: int, d: int, scale: Fraction = _ONE
) -> Field:  # fmt: skip
    def change(a: AxisField) -> AxisField:
        parts = [folded_part(q, dim, n_out, k, n, s, p, d, a.jump, a.turn) for q in a.parts]
        return a.with_parts(parts, a.jump * scale if a.runs_along(dim) or a.runs_along(dim + 1) else None)

    return field.each(change)


@rule("unfold_backward")
def unfold_backward(call: Call, x: Value, sizes: Sequence[int], dim: int, size: int, step: int) -> Result:
    """The transpose of Tensor.unfold, an overlap-add: what istft ends with."""
    at, n = dim % len(sizes), len(x.shape)
    order = [*range(at), n - 1, *range(at, n - 1)]
    taps_first = x.field and x.field.map(lambda p: permute_part(p, order))
    return taps_first and _folded(taps_first, at, sizes[at], size, x.shape[at], step, 0, 1, Fraction(1, step))


@rule("unfold")
def unfold(call: Call, x: Value, dim: int, size: int, step: int) -> Result:
    """Tensor.unfold: overlapping slices of a dim; the taps become a new last dim."""
    assert x.field is not None
    at = dim % len(x.shape)
    n_out = call.out[0][at]
    index = (np.arange(n_out)[:, None] * step + np.arange(size)[None, :]).reshape(-1, 1)
    taps = Taps(index, index)
    field = tapped(x.field, at, x.shape[at], taps, Fraction(step))
    flat = (*x.shape[:at], index.size, *x.shape[at + 1 :])
    split = (*x.shape[:at], n_out, size, *x.shape[at + 1 :])
    order = [*range(at + 1), *range(at + 2, len(split)), at + 1]
    return field.map(lambda p: permute_part(reshape_part(p, flat, split), order))


def _padded(field: Field, dim: int, n: int, before: int, after: int, mode: str) -> Field:
    def change(a: AxisField) -> AxisField:
        return a.with_parts([pad_part(p, dim, n, before, after, mode, a.jump, a.turn) for p in a.parts])

    return field.each(change)


@rule(
    "constant_pad_nd",
    "pad",
    "reflection_pad1d",
    "reflection_pad2d",
    "reflection_pad3d",
    "replication_pad1d",
    "replication_pad2d",
    "replication_pad3d",
    "_pad_circular",
)
def pad(call: Call, x: Value, pads: Sequence[int], mode: Any = "constant", value: Any = None) -> Result:
    """F.pad lists (before, after) from the last dim backwards; negative amounts crop."""
    if "_pad" in call.op and call.op != "constant_pad_nd":
        mode = "circular" if call.op == "_pad_circular" else "reflect" if "refl" in call.op else "replicate"
    elif call.op == "constant_pad_nd" or not isinstance(mode, str):
        mode = "constant"
    field = x.field
    assert field is not None
    amounts = []
    for i in range(len(pads) // 2):
        dim = len(x.shape) - 1 - i
        before, after = pads[2 * i], pads[2 * i + 1]
        amounts.append((before, after))
        if before or after:
            n = x.shape[dim]
            field = _padded(field, dim, n, before, after, mode)
    n = len(amounts)
    call.window = Window((1,) * n, (1,) * n, tuple(reversed(amounts)), (1,) * n)
    return field
