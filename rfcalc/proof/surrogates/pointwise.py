"""Surrogates of element-wise functions: the sum of all operands that depend on the input."""

from __future__ import annotations

import itertools
import types
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rfcalc.errors import InputError
from rfcalc.proof.surrogates.registry import (
    PRODUCTS,
    Call,
    mean_over,
    multiplied,
    summed,
    surrogate,
    tensors_in,
    with_parameters,
)


@surrogate(
    "relu relu6 leaky_relu elu selu celu gelu silu mish hardtanh hardswish hardsigmoid sigmoid tanh softplus softsign "
    "logsigmoid log_sigmoid threshold clamp clamp_min clamp_max clip rrelu hardshrink softshrink tanhshrink "
    "floor ceil round trunc fix frac sign sgn neg negative positive exp2 expm1 log log2 log10 log1p sqrt "
    "rsqrt square reciprocal sin cos tan asin acos atan arcsin arccos arctan sinh cosh asinh acosh atanh sinc erf erfc "
    "erfinv logit lgamma digamma i0 deg2rad rad2deg nan_to_num pow float_power xlogy ldexp heaviside copysign sub rsub "
    "subtract mul multiply div divide true_divide floordiv truediv floor_divide mod fmod remainder maximum "
    "minimum fmax fmin atan2 arctan2 hypot logaddexp logaddexp2 lerp addcmul addcdiv nextafter special_expit "
    "special_erf special_log1p special_expm1 special_logit special_entr special_xlogy bernoulli conj conj_physical "
    "resolve_conj _prelu_kernel rrelu_with_noise dequantize quantize_per_tensor quantize_per_channel "
    "fake_quantize_per_tensor_affine"
)
def pointwise(call: Call, x: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Element by element: the sum of all operands that depend on the input. In place, a sole operand stays as it is."""
    operands = call.operands()
    if call.curved and call.base in PRODUCTS and len(args) == 1 and not kwargs:
        return multiplied(call, x, *args)
    alone = len(operands) == 1 and operands[0] is x
    if call.in_place and alone:
        return operands[0]
    total = summed(operands, np.broadcast_shapes(*(t.shape for t in tensors_in(call.args, call.kwargs))))
    return total if call.in_place else call.whole(total)


@surrogate("fake_quantize_per_channel_affine")
def _by_channel(call: Call, x: Tensor, scale: Tensor, zero: Tensor, axis: int, *args: Any) -> Tensor:
    return with_parameters(x.clone(), (scale, zero), x.ndim - 1 - axis)


@surrogate("log_sigmoid_forward native_dropout")
def _beside_what_is_kept(call: Call, x: Tensor, *args: Any) -> Any:
    """Beside the result these give what their gradient needs."""
    return (x.clone(), *call.values()[1:])


@surrogate("prelu")
def _prelu(call: Call, x: Tensor, weight: Tensor) -> Tensor:
    """One slope per channel, or one for all."""
    return with_parameters(x.clone(), (weight,), max(x.ndim - 2, 0))


@surrogate("normal")
def _normal(call: Call, *args: Any, **kwargs: Any) -> Any:
    """Mean and deviation; in place what was there is gone."""
    return call.real() if call.in_place else pointwise(call, *args, **kwargs)


@surrogate("exp")
def _exp(call: Call, x: Tensor) -> Tensor:
    """What is masked with -inf is 0 from here on."""
    return torch.where(x.detach().isneginf(), 0, x)


@surrogate("add radd")
def _add(call: Call, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Real, for the sake of masks of -inf, but never a difference or with what is only compared."""
    shadowed = any(id(t) in call.shadows for t in tensors_in(call.args))
    return pointwise(call, x, *args) if kwargs.get("alpha") is not None or shadowed else call.real()


@surrogate(
    "eq ne lt le gt ge greater greater_equal less less_equal not_equal isnan isinf isfinite isreal isneginf "
    "logical_and logical_or logical_not logical_xor and or xor invert bitwise_and bitwise_or bitwise_not bitwise_xor "
    "isclose signbit bool long int"
)
def _compared(call: Call, *args: Any, **kwargs: Any) -> Any:
    """The real booleans or integers, which remember in secret what they depend on."""
    result = call.real()
    if not isinstance(result, Tensor) or result.requires_grad:
        return result
    shadow = summed(call.operands(), result.shape) if call.operands() else None
    if shadow is None or result.is_floating_point():
        return shadow if shadow is not None else result
    return call.cast_shadow(result, shadow)


@surrogate("to type_as")
def _cast(call: Call, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The dependence of the first tensor alone, also where the type has no gradient; the second says which type."""
    result: Tensor = call.real()
    shadow = call.shadow_of(x)
    source = x if shadow is None else shadow
    if result.requires_grad or not source.requires_grad:
        return result
    return source.clone() if result.is_floating_point() else call.cast_shadow(result, source.clone())


@surrogate("where")
def _where(call: Call, condition: Tensor, *branches: Any, **kwargs: Any) -> Any:
    """A known condition chooses; of one that compares the input, both branches and the condition count."""
    if call.shadow_of(condition) is None:
        return call.real()
    return pointwise(call, condition, *branches) if branches else call.values()


@surrogate("masked_fill")
def _masked_fill(call: Call, x: Tensor, mask: Tensor, value: Any) -> Tensor:
    """A known mask cuts the dependence; one that compares the input adds its own."""
    shadow = call.shadow_of(mask)
    return x.masked_fill(mask, value) if shadow is None else summed([x, shadow], x.shape)


@surrogate("dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout")
def _dropout(call: Call, x: Tensor, p: float = 0.5, training: bool = True, *args: Any, **kwargs: Any) -> Tensor:
    """Out of training it gives back the tensor itself."""
    return x.clone() if (kwargs.get("train", training) and not call.in_place) else x


@surrogate("detach data")
def _detach(call: Call, x: Tensor) -> Tensor:
    """A view of the same storage whose dependence goes on."""
    return x if call.in_place else x.view_as(x)


@surrogate("numpy tolist")
def _leave(call: Call, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    return call.func(x.detach(), *args, **kwargs)


@surrogate("real imag angle abs absolute")
def _part(call: Call, x: Tensor) -> Tensor:
    """Both parts, of a complex tensor; a real one is its own part."""
    if x.is_complex():
        return torch.view_as_real(x.resolve_conj()).sum(-1)
    return x if call.in_place or call.base == "real" else x.clone()


@surrogate("polar complex")
def _complex(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """A complex number is one value: both parts depend on all that either does."""
    both = summed(call.operands(), call.shape())
    return torch.complex(both, both)


@surrogate("view_as_complex")
def _view_as_complex(call: Call, x: Tensor) -> Tensor:
    both = x.sum(-1)
    return torch.complex(both, both)


@surrogate("glu")
def _glu(call: Call, x: Tensor, dim: int = -1) -> Tensor:
    return summed(x.chunk(2, dim), call.shape())


@surrogate("_embedding_bag")
def _embedding_bag_kernel(
    call: Call, weight: Tensor, indices: Tensor, offsets: Tensor, scale: bool = False, mode: int = 0,
    sparse: bool = False, per_sample_weights: Any = None, *args: Any, **kwargs: Any,
) -> Any:  # fmt: skip
    real = call.values()
    bags = _bags(call, indices, weight, offsets, per_sample_weights, len(real[0]))
    return (bags, *real[1:])


@surrogate("embedding_bag")
def _embedding_bag(
    call: Call, indices: Tensor, weight: Tensor, offsets: Any = None, *args: Any, per_sample_weights: Any = None,
    **kwargs: Any,
) -> Any:  # fmt: skip
    if not isinstance(call.func, types.FunctionType):  # torch's own has the table first
        return _embedding_bag_kernel(call, indices, weight, offsets, *args, **kwargs)
    return _bags(call, indices, weight, offsets, per_sample_weights, call.shape()[0])


def _bags(call: Call, indices: Tensor, weight: Tensor, offsets: Any, per_sample_weights: Any, count: int) -> Tensor:
    """The sum of a bag, of the numbers that depend on the input."""
    parts = [p.unsqueeze(-1) for p in (call.seen_of(indices), call.seen_of(per_sample_weights)) if p is not None]
    if weight.requires_grad:
        parts.append(weight[indices] if call.shadow_of(indices) is None else mean_over(weight, (0,)))
    each = summed(parts, (*indices.shape, weight.shape[-1]))
    if each.ndim == 3:
        return each.mean(1)
    edges = [*offsets.tolist(), len(each)]
    return torch.stack([each[a:b].sum(0) for a, b in itertools.pairwise(edges[: count + 1])])


@surrogate("embedding one_hot")
def _embedding(call: Call, indices: Tensor, weight: Any = None, *args: Any, **kwargs: Any) -> Tensor:
    """One row per index, and each number of the row is the index."""
    features = weight.shape[-1] if isinstance(weight, Tensor) else kwargs.get("num_classes", weight) or -1
    stand_in = call.shadow_of(indices)
    if isinstance(weight, Tensor) and weight.requires_grad:
        picked = weight[indices] if stand_in is None else mean_over(weight, (0,)) + stand_in.unsqueeze(-1)
        return picked.expand(*indices.shape, features).clone()
    if features < 1 and stand_in is None:
        raise InputError("`one_hot` without `num_classes` needs the numbers of its input")
    if features < 1:
        features = call.shape()[-1]
    rows = (indices if stand_in is None else stand_in).unsqueeze(-1).expand(*indices.shape, features).clone()
    return call.cast_shadow(call.values(), rows) if call.base == "one_hot" and stand_in is not None else rows
