"""Element-wise ops, and those that set elements to a constant.

Most element-wise ops need no line here: `torch.Tag.pointwise` marks them and the trace applies `pointwise`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from rfcalc.analysis.field import Field, blank, broadcast, drop_dims, join, mix, reduce
from rfcalc.analysis.moves import broadcast_part, reshape_part, take_part
from rfcalc.analysis.parts import Part
from rfcalc.analysis.pattern import Lost, masked
from rfcalc.analysis.rules.parameters import with_parameters
from rfcalc.analysis.rules.registry import Call, Result, Value, everywhere, pointwise, rule, values
from rfcalc.analysis.stretches import Mask, Rows, both_masks, flags_of, moved_mask

rule(
    *(
        "lift_fresh positive resolve_conj "
        "resolve_neg conj _conj feature_dropout alpha_dropout feature_alpha_dropout "
        "quantize_per_tensor dequantize fake_quantize_per_tensor_affine real imag normal "
        "_prelu_kernel rrelu_with_noise rrelu  "
        "hardshrink softshrink celu selu relu6 hardtanh hardswish hardsigmoid silu mish gelu elu leaky_relu relu "
        "log_sigmoid log_sigmoid_forward softplus threshold square clip clamp clamp_min clamp_max "
        "isfinite isinf isnan isreal nan_to_num bernoulli "
        "addcmul addcdiv lerp sub rsub divide multiply subtract true_divide floor_divide remainder fmod "
        "pow float_power maximum minimum fmax fmin hypot atan2 xlogy "
        "eq ne lt le gt ge logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not "
        "bitwise_xor isclose heaviside copysign polar complex "
        "abs angle sgn"
    ).split(),
    *(f"quantized::{op}" for op in "add add_relu mul mul_relu relu6 leaky_relu sigmoid hardswish elu celu".split()),
    # what torch's own derivatives are written in
    *(f"prims::{op}" for op in "add sub mul div neg abs exp log sin cos sqrt rsqrt tanh erf pow".split()),
)(pointwise)


_BLOCKED = -1e6  # a softmax makes an exact 0 of it, beside whatever else; the bias of a distance stays above


def _blocks(v: Any) -> bool:
    """Is this the number -inf, or one of those that stand for it?"""
    number = _number(v)
    return number is not None and number <= _BLOCKED


def _number(v: Any) -> float | None:
    if isinstance(v, Value):
        return float(v.const.item()) if v.field is None and v.const is not None and v.const.numel() == 1 else None
    return v if isinstance(v, int | float) else None


def blocked_entries(t: Any) -> Any:
    """What a mask given to attention blocks: False in a boolean one, -inf in an additive one."""
    return t <= _BLOCKED if t.is_floating_point() else ~t.bool()


def mask_of(v: Value, shape: tuple[int, ...], test: Callable[[Any], Any]) -> Part | Rows | Lost | None:
    """Where a test holds of a constant that broadcasts to `shape`; None where nowhere, or where it is no constant."""
    known = v.pattern if v.const is None else v.const
    return None if known is None or v.field is not None else masked(known, test, shape)


def guessed(field: Field | None, op: str) -> Field | None:
    """A mask that nobody can read any more: what it hides is still in the field, and the report says so."""
    return field and Field(field.axes, field.approx | {f"{op} with a large mask"}, field.mask)


def _flags(t: Any) -> Any:
    return t.bool()


def _no_flags(t: Any) -> Any:
    return ~t.bool()


@rule("masked_fill")
def masked_fill(call: Call, x: Value, mask: Value, value: Any) -> Result:
    """Masked positions no longer depend on x. With a constant mask and -inf a softmax will skip them."""
    if mask.field is not None or (mask.const is None and mask.pattern is None):
        return pointwise(call, x, mask, value)
    return _replaced(call, x, mask_of(mask, call.out[0], _flags), value)


def _replaced(call: Call, x: Value, inside: Part | Rows | Lost | None, value: Any) -> Field | None:
    """x where a constant mask is false, `value` where it is true."""
    out = call.out[0]
    field = None if x.field is None else broadcast(x.field, x.shape, out)
    other = broadcast(value.field, value.shape, out) if isinstance(value, Value) and value.field is not None else None
    if inside is None:
        return field
    if isinstance(inside, Lost):
        fields = [f for f in (field, other) if f is not None]
        return guessed(join(fields), call.op) if fields else None
    number = _number(value)
    if field is not None and number is not None and (number <= _BLOCKED or number == 0):
        return _masked(field, inside, out, number == 0)
    flags = flags_of(inside) if isinstance(inside, Rows) else inside
    kept = blank(field, flags, out, inside=True) if field is not None else None
    laid = blank(other, flags, out, inside=False) if other is not None else None
    fields = [f for f in (kept, laid) if f is not None]
    return join(fields) if fields else None


def _masked(field: Field, inside: Part | Rows, out: tuple[int, ...], zero: bool) -> Field:
    """The field with -inf or 0 where `inside` says, beside what was masked alike before."""
    earlier = field.mask
    known = inside if earlier is None or earlier.zero != zero else both_masks(earlier.part, inside, out)
    if isinstance(known, Rows) and (earlier is None or (earlier.zero == zero and earlier.pending)):
        return Field(field.axes, field.approx, Mask(known, zero, pending=True))
    flags = flags_of(inside) if isinstance(inside, Rows) else inside
    kept = blank(field, flags, out, inside=True)
    return Field(kept.axes, kept.approx, Mask(known, zero))


@rule("where")
def where(call: Call, condition: Value, x: Any = None, y: Any = None) -> Result:
    if x is None:  # torch.where(condition) is nonzero: which positions come out depends on the data
        return everywhere(call, condition)
    if condition.field is not None or (condition.const is None and condition.pattern is None):
        return pointwise(call, condition, x, y)
    if isinstance(x, Value) and x.field is not None:
        return _replaced(call, x, mask_of(condition, call.out[0], _no_flags), y)
    if isinstance(y, Value) and y.field is not None:
        return _replaced(call, y, mask_of(condition, call.out[0], _flags), x)
    return None


def with_mask(field: Field | None, operand: Value, out: tuple[int, ...], op: str) -> Field | None:
    """-inf stays -inf when something finite is added to it."""
    if field is None:
        return None
    source = operand.field.mask if operand.field is not None else None
    if source is not None and not source.zero:
        mask = moved_mask(source, lambda p: broadcast_part(p, operand.shape, out))
        return Field(field.axes, field.approx, mask and mask._replace(pending=False))
    floats = operand.const is None or operand.const.is_floating_point()
    blocked = mask_of(operand, out, blocked_entries) if floats else None
    if isinstance(blocked, Lost):
        return guessed(field, op)
    return field if blocked is None else Field(field.axes, field.approx, Mask(blocked, False))


def _masked_further(call: Call, x: Value, constant: Any) -> Result:
    """Stretches of -inf or 0, and a constant added to them."""
    assert x.field is not None
    field = broadcast(x.field, x.shape, call.out[0])
    mask = field.mask
    blocked = mask_of(constant, call.out[0], blocked_entries) if isinstance(constant, Value) else None
    if mask is None or mask.zero:
        return with_mask(field.unmasked(), constant, call.out[0], call.op) if blocked is not None else field.unmasked()
    if isinstance(blocked, Lost):
        return guessed(field, call.op)
    return field if blocked is None else _masked(field, blocked, call.out[0], False)


@rule("add")
def add(call: Call, x: Any, other: Any, alpha: Any = 1) -> Result:
    """The hull; a constant additive mask of -inf marks what a softmax will skip."""
    for a, b in ((x, other), (other, x)):
        mask = a.field.mask if isinstance(a, Value) and a.field is not None else None
        if mask is not None and mask.pending and (not isinstance(b, Value) or b.field is None):
            return _masked_further(call, a, b)
    field = pointwise(call, x, other)
    assert not isinstance(field, tuple)
    for operand in (x, other):
        if isinstance(operand, Value) and (operand.field is None or operand.field.mask is not None):
            masked = with_mask(field, operand, call.out[0], call.op)
            if masked is not field:
                return masked
    return field


@rule("tril", "triu")
def triangle(call: Call, x: Value, diagonal: int = 0) -> Result:
    """The other triangle is set to 0."""
    assert x.field is not None
    m, n = x.shape[-2:]
    edge = np.clip(np.arange(m) + diagonal + (call.op == "tril"), 0, n)[None]
    starts, stops = (np.zeros_like(edge), edge) if call.op == "tril" else (edge, np.full_like(edge, n))
    return _masked(x.field, Rows(starts, stops, len(x.shape) - 2, len(x.shape) - 1, n), x.shape, True)


def keeps_mask(call: Call, x: Value, *args: Any, **kwargs: Any) -> Result:
    """Identity up to layout and type: -inf stays -inf and 0 stays 0."""
    others = () if call.op == "type_as" else values((*args, *kwargs.values()))
    if x.field is not None and x.field.mask is not None and all(v.field is None for v in others):
        return x.field if len(call.out) == 1 else (x.field,) * len(call.out)
    field = pointwise(call, x, *args, *kwargs.values())
    if x.field is not None and x.field.mask is not None and isinstance(field, Field):
        return Field(field.axes, field.approx, x.field.mask._replace(pending=False))
    return field


rule(*"to _to_copy clone contiguous dropout native_dropout detach alias".split())(keeps_mask)


@rule("mul", "div")
def scale(call: Call, x: Any, other: Any, **kwargs: Any) -> Result:
    """Scaling by a positive number keeps what is masked."""
    for a, b in ((x, other), (other, x)) if call.op == "mul" else ((x, other),):
        if isinstance(a, Value) and a.field is not None and a.field.mask is not None:
            number = _number(b)
            if number is not None and number > 0:
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
    "normal_",
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
    return with_parameters(indices.field and indices.field.unmasked(), (rows_of(weight, indices),), call.out[0])


def rows_of(table: Value, indices: Value) -> Value:
    """What comes out of a table that is made of the input: the rows of known indices, else any of them."""
    if table.field is None:
        return table
    last = table.shape[-1]
    if indices.const is None or indices.field is not None:
        return Value((last,), drop_dims(mix(reduce(table.field, (0,)).unmasked()), (0,), 2))
    index = np.asarray(indices.const.cpu().numpy(), np.int64).reshape(-1)
    picked = table.field.map(partial(take_part, dim=0, n=table.shape[0], index=index))
    old, new = (index.size, last), (*indices.shape, last)
    return Value(new, picked.map(lambda p: reshape_part(p, old, new)))


@rule("prelu")
def prelu(call: Call, x: Value, weight: Value) -> Result:
    """One slope per channel, or one for all."""
    return with_parameters(x.field and x.field.unmasked(), (weight,), call.out[0], max(len(x.shape) - 2, 0))


@rule("quantize_per_channel", "fake_quantize_per_channel_affine")
def by_channel(call: Call, x: Value, scales: Value, zeros: Value, axis: int, *args: Any) -> Result:
    return with_parameters(x.field and x.field.unmasked(), (scales, zeros), call.out[0], len(x.shape) - 1 - axis)


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
    return x.field and x.field.unmasked()
