"""Element-wise ops, and those that set elements to a constant.

Most element-wise ops need no line here: `torch.Tag.pointwise` marks them and the trace applies `pointwise`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ..field import Field, Mask, Part, blank, broadcast, broadcast_part, join, take_part
from .registry import Call, Result, Value, everywhere, pointwise, rule

rule(
    *(
        "lift_fresh positive resolve_conj "
        "resolve_neg conj _conj feature_dropout alpha_dropout feature_alpha_dropout "
        "quantize_per_tensor quantize_per_channel dequantize fake_quantize_per_tensor_affine "
        "fake_quantize_per_channel_affine real imag "
        "_native_batch_norm_legit_no_training prelu _prelu_kernel rrelu_with_noise rrelu  "
        "hardshrink softshrink celu selu relu6 hardtanh hardswish hardsigmoid silu mish gelu elu leaky_relu relu "
        "log_sigmoid log_sigmoid_forward softplus threshold square clip clamp clamp_min clamp_max "
        "isfinite isinf isnan isreal nan_to_num bernoulli "
        "addcmul addcdiv lerp sub rsub divide multiply subtract true_divide floor_divide remainder fmod "
        "pow float_power maximum minimum fmax fmin hypot atan2 xlogy "
        "eq ne lt le gt ge logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not "
        "bitwise_xor isclose heaviside copysign polar complex bucketize "
        "abs angle sgn"
    ).split(),
    *(f"quantized::{op}" for op in "add add_relu mul mul_relu relu6 leaky_relu sigmoid hardswish elu celu".split()),
    # what torch's own derivatives are written in
    *(f"prims::{op}" for op in "add sub mul div neg abs exp log sin cos sqrt rsqrt tanh erf pow".split()),
)(pointwise)


def _negative_infinite(v: Any) -> bool:
    if isinstance(v, Value):
        return v.const is not None and v.const.numel() == 1 and _negative_infinite(v.const.item())
    return isinstance(v, int | float) and v == float("-inf")


def mask_of(flags: Any, shape: tuple[int, ...], zero: bool) -> Mask | None:
    """A Mask from a constant boolean tensor that broadcasts to `shape`; None when nothing is masked."""
    array = np.asarray(flags.cpu().numpy(), dtype=np.bool_)
    if not array.any():
        return None
    array = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    dims = tuple(i for i, n in enumerate(array.shape) if n > 1)
    return Mask(Part(array.squeeze(tuple(i for i, n in enumerate(array.shape) if n == 1))[None], dims), zero)


@rule("masked_fill")
def masked_fill(call: Call, x: Value, mask: Value, value: Any) -> Result:
    """Masked positions no longer depend on x. With a constant mask and -inf a softmax will skip them."""
    if mask.const is None or mask.field is not None:
        return pointwise(call, x, mask, value)
    return _replaced(call, x, mask, value)


def _replaced(call: Call, x: Value, mask: Value, value: Any) -> Field | None:
    """x where a constant mask is false, `value` where it is true."""
    out = call.out[0]
    inside = mask_of(mask.const, out, zero=False)
    field = None if x.field is None else broadcast(x.field, x.shape, out)
    other = broadcast(value.field, value.shape, out) if isinstance(value, Value) and value.field is not None else None
    if inside is None:
        return field
    kept = blank(field, inside.part, out, inside=True) if field is not None else None
    laid = blank(other, inside.part, out, inside=False) if other is not None else None
    fields = [f for f in (kept, laid) if f is not None]
    if not fields:
        return None
    result = join(fields)
    if _negative_infinite(value) and (field is None or field.mask is None):
        return Field(result.axes, result.approx, inside)
    return result


@rule("where")
def where(call: Call, condition: Value, x: Any = None, y: Any = None) -> Result:
    if x is None:  # torch.where(condition) is nonzero: which positions come out depends on the data
        return everywhere(call, condition)
    if condition.const is None or condition.field is not None:
        return pointwise(call, condition, x, y)
    if isinstance(x, Value) and x.field is not None:
        flipped = Value(condition.shape, None, ~condition.const.bool())
        return _replaced(call, x, flipped, y)
    if isinstance(y, Value) and y.field is not None:
        return _replaced(call, y, condition, x)
    return None


def _with_mask(field: Field | None, operand: Value, out: tuple[int, ...]) -> Field | None:
    """-inf stays -inf when something finite is added to it."""
    if field is None:
        return None
    source = operand.field.mask if operand.field is not None else None
    if source is not None and not source.zero:
        part = broadcast_part(source.part, operand.shape, out)
        return Field(field.axes, field.approx, Mask(part, False))
    if operand.field is None and operand.const is not None and operand.const.is_floating_point():
        blocked = operand.const == float("-inf")
        if bool(blocked.any()):
            return Field(field.axes, field.approx, mask_of(blocked, out, zero=False))
    return field


@rule("add")
def add(call: Call, x: Any, other: Any, alpha: Any = 1) -> Result:
    """The hull; a constant additive mask of -inf marks what a softmax will skip."""
    field = pointwise(call, x, other)
    assert not isinstance(field, tuple)
    for operand in (x, other):
        if isinstance(operand, Value) and (operand.field is None or operand.field.mask is not None):
            masked = _with_mask(field, operand, call.out[0])
            if masked is not field:
                return masked
    return field


@rule("tril", "triu")
def triangle(call: Call, x: Value, diagonal: int = 0) -> Result:
    """The other triangle is set to 0."""
    assert x.field is not None
    m, n = x.shape[-2:]
    kept = np.tri(m, n, diagonal, dtype=np.bool_) if call.op == "tril" else ~np.tri(m, n, diagonal - 1, dtype=np.bool_)
    gone = Part(~kept[None], (len(x.shape) - 2, len(x.shape) - 1))
    return blank(x.field, gone, x.shape, inside=True)


def keeps_mask(call: Call, x: Value, *args: Any, **kwargs: Any) -> Result:
    """Identity up to layout and type: -inf stays -inf and 0 stays 0."""
    field = pointwise(call, x, *args, *kwargs.values())
    if x.field is not None and x.field.mask is not None and isinstance(field, Field):
        return Field(field.axes, field.approx, x.field.mask)
    return field


rule(*"to _to_copy clone contiguous dropout native_dropout detach alias".split())(keeps_mask)


@rule("mul", "div")
def scale(call: Call, x: Any, other: Any, **kwargs: Any) -> Result:
    """Scaling by a positive number keeps what is masked."""
    for a, b in ((x, other), (other, x)):
        if isinstance(a, Value) and isinstance(b, int | float) and b > 0:
            return keeps_mask(call, a)
    return pointwise(call, x, other)


@rule("copy")
def copy(call: Call, x: Value, source: Value, *args: Any, **kwargs: Any) -> Result:
    """`x.copy_(source)`: what x held is gone."""
    return None if source.field is None else broadcast(source.field, source.shape, call.out[0])


@rule(
    "fill",
    "zero",
    "empty_like",
    "rand_like",
    "randn_like",
    "randint_like",
    "new_empty",
    "new_empty_strided",
    "uniform",
    "normal",
    "random",
    "exponential",
)
def constant(call: Call, x: Any, value: Any = None, *args: Any, **kwargs: Any) -> Result:
    """Only the shape of x is used."""
    if isinstance(value, Value) and value.field is not None:
        return broadcast(value.field, value.shape, call.out[0])
    return None


@rule("embedding")
def embedding(call: Call, weight: Value, indices: Value, *args: Any, **kwargs: Any) -> Result:
    """One row of the table per index: the dims of the indices, then the features."""
    return None if indices.field is None else indices.field.unmasked()


@rule("glu")
def glu(call: Call, x: Value, dim: int = -1) -> Result:
    """The first half of a dim times the sigmoid of the second."""
    assert x.field is not None
    at = dim % len(x.shape)
    n = x.shape[at]
    halves = [x.field.map(partial(take_part, dim=at, n=n, index=np.arange(i, i + n // 2))) for i in (0, n // 2)]
    return join([h.unmasked() for h in halves])


@rule("one_hot")
def one_hot(call: Call, x: Value, *args: Any) -> Result:
    return embedding(call, x, x)
