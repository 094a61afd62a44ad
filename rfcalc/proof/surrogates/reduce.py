"""Surrogates of reductions, softmax, norms and Fourier transforms: means over the same dims."""

from __future__ import annotations

import types
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rfcalc.proof.surrogates.pointwise import pointwise
from rfcalc.proof.surrogates.registry import Call, at_value, dims_of, mean_over, surrogate, with_parameters
from rfcalc.proof.surrogates.window import each_of

# reductions and running ops


@surrogate(
    "max min amax amin aminmax median nanmedian mode var std var_mean std_mean prod nanmean nansum logsumexp sort "
    "msort argsort argmax argmin all any count_nonzero topk kthvalue quantile nanquantile norm linalg_norm "
    "linalg_vector_norm frobenius_norm _is_all_true _is_any_true"
)
def _reduction(call: Call, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The mean over the same dims, in the shape of each real output; indices stay as they are, with a shadow."""
    if args and isinstance(args[0], Tensor) and call.base in ("max", "min"):
        return pointwise(call, x, *args)
    # The dim comes second, after another number in some.
    second = call.base in ("topk", "kthvalue", "quantile", "nanquantile") or "norm" in call.base
    given = args[1:] if second else args
    dim = kwargs.get("dim", kwargs.get("axis", given[0] if given else None))
    if dim is None and call.base in ("sort", "argsort", "topk", "kthvalue", "mode"):
        dim = -1
    if dim is None and call.base in ("median", "nanmedian") and not given:
        dim = tuple(range(x.ndim))
    source = call.operands()[0]
    mean = mean_over(source, (0,) if call.base == "msort" else dims_of(x, dim))

    def shaped(value: Tensor) -> Tensor:
        there = mean.reshape(value.shape) if mean.numel() == value.numel() else mean.expand(value.shape).clone()
        return there if value.is_floating_point() else call.cast_shadow(value, there)

    real = call.values()
    if isinstance(real, Tensor):
        return shaped(real)
    return type(real)([shaped(v) for v in real])


@surrogate("softmax log_softmax softmin gumbel_softmax _softmax _log_softmax _safe_softmax")
def _softmax(call: Call, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Each element with the mean of all along the dim, at value 1; what is masked with -inf becomes 0."""
    given = args[0] if args and call.base != "gumbel_softmax" else args[3] if len(args) > 3 else None
    dim = kwargs.get("dim", given)
    if dim is None:
        dim = -1 if call.base == "gumbel_softmax" else 0 if x.ndim in (0, 1, 3) else 1
    if x.ndim == 0:
        return x.clone()
    seen = ~x.detach().isneginf()
    both = torch.where(seen, x, 0) + mean_over(x, (dim,))
    return torch.where(seen, at_value(both, torch.ones_like(both)), 0)


# normalisation


@surrogate("native_layer_norm native_group_norm native_batch_norm _batch_norm_impl_index _fused_rms_norm")
def _native_norm(call: Call, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The result as of the named forms; its statistics are means over the same dims."""
    real = call.values()
    others = [d for d in range(x.ndim) if d != 1]
    if call.base == "native_group_norm":
        weight, bias, _, _, _, groups, _ = args
        total = _group_norm(call, x, groups, weight, bias)
        own = x.reshape(x.shape[0], groups, -1).mean(2)
    elif "batch" in call.base:
        total = _batch_norm(call, x, *args[:5])
        own = x.mean(others)
    else:
        total = _layer_norm(call, x, *args)
        own = mean_over(x, range(-len(args[0]), 0))
    return (total, *(own if isinstance(v, Tensor) and v.shape == own.shape else v for v in real[1:]))


@surrogate("_native_batch_norm_legit_no_training")
def _frozen_batch_norm(call: Call, x: Tensor, *args: Any) -> Any:
    return (_batch_norm(call, x, *args[:4]), *call.values()[1:])


@surrogate("layer_norm rms_norm")
def _layer_norm(call: Call, x: Tensor, shape: Sequence[int], *args: Any, **kwargs: Any) -> Tensor:
    return with_parameters(x + mean_over(x, range(-len(shape), 0)), (*args, *kwargs.values()))


@surrogate("group_norm")
def _group_norm(call: Call, x: Tensor, groups: int, *args: Any, **kwargs: Any) -> Tensor:
    split = x.reshape(x.shape[0], groups, -1, *x.shape[2:])
    total = (split + mean_over(split, range(2, split.ndim))).flatten(1, 2)
    return with_parameters(total, (*args, *kwargs.values()), x.ndim - 2)


@surrogate("instance_norm")
def _instance_norm(
    call: Call, x: Tensor, running_mean: Any = None, running_var: Any = None, weight: Any = None, bias: Any = None,
    use_input_stats: bool = True, *args: Any, **kwargs: Any,
) -> Tensor:  # fmt: skip
    total = x + mean_over(x, range(2, x.ndim)) if use_input_stats else x.clone()
    statistics = () if use_input_stats else (running_mean, running_var)
    return with_parameters(total, (weight, bias, *statistics), x.ndim - 2)


@surrogate("batch_norm")
def _batch_norm(
    call: Call, x: Tensor, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
    training: bool = False, *args: Any, **kwargs: Any,
) -> Tensor:  # fmt: skip
    # torch.batch_norm, which is not a Python function, orders them weight, bias, mean, var.
    if not isinstance(call.func, types.FunctionType):
        running_mean, running_var, weight, bias = weight, bias, running_mean, running_var
    own = training or running_mean is None
    total = x + mean_over(x, [d for d in range(x.ndim) if d != 1]) if own else x.clone()
    return with_parameters(total, (weight, bias, *(() if own else (running_mean, running_var))), x.ndim - 2)


@surrogate("local_response_norm")
def _local_response_norm(call: Call, x: Tensor, size: int, *args: Any, **kwargs: Any) -> Tensor:
    """Each channel with the mean of its neighbours."""
    across = F.pad(x.movedim(1, -1), (size // 2, (size - 1) // 2)).unfold(-1, size, 1).mean(-1)
    return x + across.movedim(-1, 1)


@surrogate("normalize")
def _normalize(call: Call, x: Tensor, p: float = 2.0, dim: Any = 1, *args: Any, **kwargs: Any) -> Tensor:
    return x + mean_over(x, dims_of(x, dim))


@surrogate("cosine_similarity pairwise_distance")
def _similarity(call: Call, *args: Any, **kwargs: Any) -> Tensor:
    default = 1 if call.base == "cosine_similarity" else -1
    given = args[2] if len(args) > 2 and call.base == "cosine_similarity" else default
    both = reduce(torch.add, call.operands())
    return both.mean(kwargs.get("dim", given)).expand(call.shape()).clone()


@surrogate(
    "fft_fft fft_fft2 fft_fftn fft_ifft fft_ifft2 fft_ifftn fft_rfft fft_rfft2 fft_rfftn fft_irfft fft_irfft2 "
    "fft_irfftn fft_hfft fft_hfft2 fft_hfftn fft_ihfft fft_ihfft2 fft_ihfftn _fft_r2c _fft_c2r _fft_c2c"
)
def _fourier(call: Call, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Every frequency sees every position along the transformed dims."""
    if call.base.startswith("_fft"):  # (x, dims, ...)
        args = (None, args[0])
    size = kwargs.get("n", kwargs.get("s", args[0] if args else None))
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if dim is None and call.base.endswith("n") and size is not None:
        dim = tuple(range(-len(size), 0))
    if dim is None:
        dim = {"2": (-2, -1), "n": tuple(range(x.ndim))}.get(call.base[-1], -1)
    real = call.values()
    seen = x
    if call.base.startswith(("fft_fft", "fft_ifft", "fft_rfft")) and size is not None:
        for d, length in zip(dims_of(x, dim), each_of(size, 1, ()), strict=True):
            seen = seen.narrow(d, 0, min(length, x.shape[d]))  # a shorter transform crops first
    parts = torch.view_as_real(seen).sum(-1) if seen.is_complex() else seen
    mean = mean_over(parts, dims_of(x, dim)).expand(real.shape).clone()
    return torch.complex(mean, mean) if real.is_complex() else mean


@surrogate("renorm")
def _renorm(call: Call, x: Tensor, p: Any, dim: int, maxnorm: Any) -> Tensor:
    return x + mean_over(x, [d for d in range(x.ndim) if d != dim % x.ndim])
