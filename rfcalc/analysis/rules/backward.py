"""Derivatives, for a forward that differentiates: what torch's own backward ops read. Named as in ATen.

Those without a line here are of other families already (`expand` for a sum, `mm` for a product), or have no rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from rfcalc.analysis.field import Field, broadcast, drop_dims, everything, join, mix, normalise, reduce
from rfcalc.analysis.moves import renumber_part
from rfcalc.analysis.parts import Shape
from rfcalc.analysis.rules import pointwise as elements
from rfcalc.analysis.rules import reduce as statistics
from rfcalc.analysis.rules.registry import Call, Result, Value, pointwise, rule, spatial
from rfcalc.analysis.rules.resample import linear_taps, nearest_taps
from rfcalc.analysis.rules.view import permuted, slice_indices, taken
from rfcalc.analysis.rules.window import adaptive_taps, conv, conv_transpose, tapped
from rfcalc.analysis.windows import HOLE, Taps, transposed_taps
from rfcalc.analysis.writes import write_box

rule(*[f"{name}_backward" for name in (
    "tanh sigmoid threshold gelu silu elu leaky_relu hardtanh hardswish hardsigmoid hardshrink softshrink "
    "softplus log_sigmoid logit _prelu_kernel mse_loss smooth_l1_loss huber_loss "
    "binary_cross_entropy soft_margin_loss"
).split()])(pointwise)  # fmt: skip


def _joined(*values: Any) -> Field | None:
    """The hull of several tensors of one shape; None where the input reaches none of them."""
    fields = [v.field for v in values if isinstance(v, Value) and v.field is not None]
    return join(fields) if fields else None


def _wanted(mask: Sequence[bool], *makers: Callable[[], Field | None]) -> Result:
    """Of several gradients those that were asked for: the others are not among the outputs."""
    return tuple([make() for wanted, make in zip(mask, makers, strict=True) if wanted])


def _summed(field: Field | None, kept: int, ndim: int) -> Field | None:
    """The gradient of what is broadcast along all dims but one."""
    gone = [d for d in range(ndim) if d != kept]
    return field and drop_dims(reduce(field.unmasked(), gone), gone, ndim)


@rule("_new_zeros_with_same_feature_meta")
def zeros(call: Call, *args: Any, **kwargs: Any) -> Result:
    """The tangent of what has none: only a shape is used."""
    return None


# ------------------------------------------------------------------------------------------------------- windows


@rule("convolution_backward")
def convolution_backward(
    call: Call, grad: Value, x: Value, weight: Value, bias: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int, mask: Sequence[bool],
) -> Result:  # fmt: skip
    """By the input the transposed window of the gradient; by the weight every pair that a tap brings together."""

    def by_input() -> Any:
        back = Call(call.op, (x.shape,))
        if grad.field is None and weight.field is None:
            return None
        if transposed:
            return conv(back, grad, weight, None, stride, padding, dilation, groups)
        return conv_transpose(back, grad, weight, None, stride, padding, 0, groups, dilation)

    def by_weight() -> Field | None:
        if groups > 1:
            both = [mix(everything(v.field)) for v in (grad, x) if v.field is not None]
            return join(both) if both else None
        still, moving = (x, grad) if transposed else (grad, x)
        geometry = [spatial(a, len(x.shape) - 2) for a in (stride, padding, dilation)]
        return _by_weight(still, moving, weight.shape, *geometry)

    return _wanted(mask, by_input, by_weight, lambda: _summed(grad.field, 1, len(grad.shape)))


def _by_weight(
    still: Value, moving: Value, weight: Shape, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Field | None:  # fmt: skip
    """Tap t multiplies position o of the one with `o*s - p + t*d` of the other, summed over o and the batch."""
    fields = []
    for v, order in ((still, (1, 0)), (moving, (0, 1))):
        if v.field is None:
            continue
        field = reduce(v.field.unmasked(), (0,))
        for i, k in enumerate(weight[2:]):
            d, n = i + 2, moving.shape[i + 2]
            own = np.broadcast_to(np.arange(still.shape[d])[None, :], (k, still.shape[d]))
            other = own * stride[i] - padding[i] + np.arange(k)[:, None] * dilation[i]
            at = own if v is still else other
            field = tapped(field, d, v.shape[d], Taps(np.where((other >= 0) & (other < n), at, -1), at))
        lead = [(1, v.shape[1])[o] for o in order]
        field = permuted(field, (*order, *range(2, len(weight))))
        fields.append(broadcast(field, (*lead, *weight[2:]), weight))
    return join(fields) if fields else None


def _spread(field: Field | None, shape: Shape, out: Shape, n: int, taps: Callable[[int], Taps]) -> Field | None:
    """The gradient of a map's last `n` dims: `taps(i)` says which outputs each input went to."""
    if field is None:
        return None
    field = field.unmasked()
    for i in range(n):
        d = len(shape) - n + i
        field = tapped(field, d, shape[d], taps(i), Fraction(out[d], shape[d]) ** -1 if shape[d] else Fraction(1))
    return field


@rule("avg_pool2d_backward", "avg_pool3d_backward",
      "max_pool2d_with_indices_backward", "max_pool3d_with_indices_backward")  # fmt: skip
def pool_backward(call: Call, grad: Value, x: Value, kernel: Any, stride: Any, padding: Any, *rest: Any) -> Result:
    """Every window that a position lies in; of a maximum also what it was taken of."""
    is_max = call.op.startswith("max")
    n = int(call.op[8])
    ks, ps = spatial(kernel, n), spatial(padding, n)
    ss = spatial(stride, n, ks)
    ds = spatial(rest[0], n) if is_max else (1,) * n
    lead = len(x.shape) - n
    return _spread(
        _joined(grad, rest[2]) if is_max else grad.field, grad.shape, x.shape, n,
        lambda i: transposed_taps(grad.shape[lead + i], x.shape[lead + i], ks[i], ss[i], ps[i], ds[i]),
    )  # fmt: skip


def _turned(taps: Taps, n: int) -> Taps:
    """Of a table of which inputs each output sees, the table of which outputs each of n inputs goes to."""
    rows: list[list[int]] = [[] for _ in range(n)]
    for o, seen in enumerate(taps.exact):
        for i in {int(i) for i in seen if i >= 0}:
            rows[i].append(o)
    most = max([len(r) for r in rows], default=0) or 1
    at = np.array([r + [-1] * (most - len(r)) for r in rows], np.int64)
    return Taps(at, np.where(at < 0, HOLE, at))


@lru_cache(maxsize=256)
def _adaptive(n: int, n_out: int) -> Taps:
    return _turned(adaptive_taps(n, n_out), n)


@rule("_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward",
      "adaptive_max_pool2d_backward", "adaptive_max_pool3d_backward")  # fmt: skip
def adaptive_backward(call: Call, grad: Value, x: Value, indices: Any = None) -> Result:
    n = int(call.op[-11])
    lead = len(x.shape) - n
    field = _joined(grad, indices)
    return _spread(field, grad.shape, x.shape, n, lambda i: _adaptive(x.shape[lead + i], grad.shape[lead + i]))


@rule(*(f"{kind}{n}d_backward" for kind in ("upsample_nearest", "_upsample_nearest_exact") for n in (1, 2, 3)))
def nearest_backward(call: Call, grad: Value, size: Any, shape: Shape, *scales: Any) -> Result:
    n, half = int(call.op[-11]), "exact" in call.op

    def taps(i: int) -> Taps:
        a, b = shape[i + 2], grad.shape[i + 2]
        plain = call.op.startswith("upsample_nearest2d") and b in (a, 2 * a)
        return _turned(nearest_taps(a, b, None if plain or len(scales) != n else scales[i], half), a)

    return _spread(grad.field, grad.shape, tuple(shape), n, taps)


@rule("upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_trilinear3d_backward")
def linear_backward(call: Call, grad: Value, size: Any, shape: Shape, align: bool, *scales: Any) -> Result:
    n = int(call.op[-11])

    def taps(i: int) -> Taps:
        given = scales[i] if len(scales) == n else None
        return _turned(linear_taps(shape[i + 2], grad.shape[i + 2], given, align), shape[i + 2])

    return _spread(grad.field, grad.shape, tuple(shape), n, taps)


@rule(*(f"{kind}_pad{n}d_backward" for kind in ("reflection", "replication") for n in (1, 2, 3)))
def pad_backward(call: Call, grad: Value, x: Value, pads: Sequence[int]) -> Result:
    n, mode = int(call.op[-11]), "reflect" if call.op.startswith("refl") else "edge"

    def taps(i: int) -> Taps:
        size = x.shape[len(x.shape) - n + i]
        before, after = pads[2 * (n - 1 - i)], pads[2 * (n - 1 - i) + 1]
        grown = np.pad(np.arange(size), (max(before, 0), max(after, 0)), mode)  # type: ignore[call-overload]
        at = grown[max(-before, 0) : len(grown) - max(-after, 0)][:, None]
        return _turned(Taps(at, at), size)

    return _spread(grad.field, grad.shape, x.shape, n, taps)


# --------------------------------------------------------------------------------------------------------- views


@rule("slice_backward")
def slice_backward(call: Call, grad: Value, shape: Shape, dim: int, start: int, end: int, step: int) -> Result:
    at = dim % len(shape)
    return write_box(None, grad.field, tuple(shape), [(at, slice_indices(shape[at], start, end, step))])


@rule("select_backward")
def select_backward(call: Call, grad: Value, shape: Shape, dim: int, index: int) -> Result:
    at = dim % len(shape)
    where = {d: d + (d >= at) for d in range(len(shape))}
    grown = grad.field and grad.field.unmasked().map(lambda p: renumber_part(p, where))
    return write_box(None, grown, tuple(shape), [(at, np.array([index % shape[at]]))])


@rule("glu_backward")
def glu_backward(call: Call, grad: Value, x: Value, dim: int) -> Result:
    """Both halves of a dim read the gradient and each other."""
    at, half = dim % len(x.shape), grad.shape[dim]
    own = Value(grad.shape, None if x.field is None else elements.glu(call, x, dim))  # type: ignore[arg-type]
    field = _joined(grad, own)
    return field and taken(field.unmasked(), at, half, np.tile(np.arange(half), 2))


# ------------------------------------------------------------------------------------------------ normalisation


@rule("_softmax_backward_data", "_log_softmax_backward_data")
def softmax_backward(call: Call, grad: Value, out: Value, dim: int, dtype: Any) -> Result:
    both = _joined(grad, out)
    return both and statistics.softmax(Call(call.op, (out.shape,)), Value(out.shape, both.unmasked()), dim)


@rule("native_layer_norm_backward")
def layer_norm_backward(
    call: Call, grad: Value, x: Value, shape: Any, mean: Any, rstd: Any, weight: Any, bias: Any, mask: Sequence[bool]
) -> Result:
    """Means over the last dims of the gradient and of its product with x."""
    n, last = len(x.shape), len(shape)
    both = _joined(grad, x)
    over, lead = range(n - last, n), range(n - last)

    def kept(field: Field | None) -> Field | None:
        return field and drop_dims(reduce(field.unmasked(), lead), lead, n)

    return _wanted(
        mask,
        lambda: both and normalise(both.unmasked(), over),
        lambda: kept(both and normalise(both.unmasked(), over)),
        lambda: kept(grad.field),
    )


@rule("native_group_norm_backward")
def group_norm_backward(
    call: Call, grad: Value, x: Value, mean: Any, rstd: Any, weight: Any, n: int, c: int, hxw: int, groups: int,
    mask: Sequence[bool],
) -> Result:  # fmt: skip
    both = _joined(grad, x)
    normed: Any = both and statistics.group_norm(Call(call.op, (x.shape,)), Value(x.shape, both.unmasked()), groups)
    ndim = len(x.shape)
    return _wanted(mask, lambda: normed, lambda: _summed(normed, 1, ndim), lambda: _summed(grad.field, 1, ndim))


@rule("native_batch_norm_backward")
def batch_norm_backward(
    call: Call, grad: Value, x: Value, weight: Any, mean: Any, var: Any, save_mean: Any, save_invstd: Any,
    train: bool, eps: float, mask: Sequence[bool],
) -> Result:  # fmt: skip
    """In evaluation the gradient is scaled, whatever x is; in training, means over batch and space."""
    ndim, both = len(x.shape), _joined(grad, x)
    if train:
        both = both and normalise(both.unmasked(), (0, *range(2, ndim)))
    return _wanted(
        mask,
        lambda: both if train else grad.field and grad.field.unmasked(),
        lambda: _summed(both, 1, ndim),
        lambda: _summed(grad.field, 1, ndim),
    )
