"""Surrogates of contractions and attention: factors at value 1, so that products stay in range."""

from __future__ import annotations

import math
import types
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rfcalc.proof.surrogates.registry import (
    Call,
    at_value,
    lifted,
    map_leaves,
    mean_over,
    ones_like,
    signature_of,
    surrogate,
)


@surrogate("cdist _cdist_forward")
def _cdist(call: Call, a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return a.mean(-1).unsqueeze(-1) + b.mean(-1).unsqueeze(-2)


@surrogate("cross linalg_cross")
def _cross(call: Call, *args: Any, **kwargs: Any) -> Tensor:
    both = reduce(torch.add, call.operands())
    dim = kwargs.get("dim", args[2] if len(args) > 2 else -1)
    return mean_over(both, (dim if dim is not None else -1,)).expand(call.shape()).clone()


# products and attention


def _positive_weights(call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with constant weights made positive: a fixed filter may hold zeros and both signs."""

    def change(v: Any) -> Any:
        if not isinstance(v, Tensor) or v.requires_grad or not v.is_floating_point():
            return v
        return v.abs() + (v == 0)

    x, *rest = call.args
    return (x, *map_leaves(rest, change)), map_leaves(call.kwargs, change)


@surrogate(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d conv_tbc linear bilinear "
    "convolution _convolution"
)
def _weighted(call: Call, *args: Any, **kwargs: Any) -> Tensor:
    call.args, call.kwargs = _positive_weights(call)
    return lifted(product(call))


@surrogate(
    "matmul mm bmm mv dot vdot inner outer ger einsum tensordot kron addmm addmv addbmm baddbmm addr chain_matmul "
    "linalg_multi_dot linalg_matmul linalg_vecdot _trilinear"
)
def product(call: Call, *args: Any, **kwargs: Any) -> Tensor:
    """The product of factors at value 1, or of one factor and a constant of no sign."""
    many = len(call.operands()) > 1

    def factor(v: Any) -> Any:
        if not isinstance(v, Tensor) or v.is_complex() or not v.is_floating_point():
            return v
        return (ones_like(v) if many else v) if v.requires_grad else v.abs()

    args, kwargs = map_leaves((call.args, call.kwargs), factor)
    result: Tensor = call.func(*args, **kwargs)
    return result


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """softmax(q k^T) v and its weights, all factors at value 1. `mask`: true where a query may look."""
    q, k, v = (at_value(t, torch.ones_like(t)) for t in (q, k, v))
    scores = q @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + torch.where(bias.isneginf(), 0, bias)
    seen = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.expand(scores.shape)
    held = torch.where(seen, scores, -math.inf)
    both = torch.where(seen, scores, 0) + mean_over(held, (-1,))
    weights = torch.where(seen, at_value(both, torch.ones_like(both)), 0)
    return weights @ v, weights


def _allowed(mask: Tensor) -> Tensor:
    """A boolean mask as it is, an additive one where it is not -inf."""
    return mask if mask.dtype == torch.bool else ~mask.detach().isneginf()


@surrogate("scaled_dot_product_attention")
def _sdpa(
    call: Call, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    if enable_gqa:
        copies = query.shape[-3] // key.shape[-3]
        key, value = (t.repeat_interleave(copies, -3) for t in (key, value))
    mask = None if attn_mask is None else _allowed(attn_mask)
    if is_causal:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    shadow = call.shadow_of(attn_mask)
    if shadow is not None:  # flags that are an input hide nothing for sure
        return _attend(query, key, value, None, None)[0] + mean_over(shadow, (-1,))
    bias = attn_mask if attn_mask is not None and attn_mask.requires_grad else None
    return _attend(query, key, value, mask, bias)[0]


@surrogate("_scaled_dot_product_attention_math _scaled_dot_product_flash_attention_for_cpu")
def _sdpa_kernel(
    call: Call, query: Tensor, key: Tensor, value: Tensor, *args: Any, attn_mask: Any = None, is_causal: bool = False,
    **kwargs: Any,
) -> Any:  # fmt: skip
    """Queries with keys and values; the kernel of the CPU takes its mask by name alone."""
    given = (attn_mask, *args) if call.base.endswith("cpu") else (*args, *((attn_mask,) if not args else ()))
    mask, _, causal = (*given, 0.0, is_causal)[:3] if len(given) > 1 else (*given, 0.0, is_causal)
    return _sdpa(call, query, key, value, mask, 0.0, causal or is_causal), *call.values()[1:]


@surrogate("multi_head_attention_forward")
def _multi_head_attention(call: Call, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """torch's own function does this in one call, so its inner softmax has to be replaced here."""
    signature = signature_of(call.func)
    assert signature is not None
    bound = signature.bind(*call.args, **call.kwargs)
    bound.apply_defaults()
    a = types.SimpleNamespace(**bound.arguments)
    batched = a.query.ndim == 3
    inputs = [t if batched else t.unsqueeze(1) for t in (a.query, a.key, a.value)]
    if a.use_separate_proj_weight:
        weights = [a.q_proj_weight, a.k_proj_weight, a.v_proj_weight]
    else:
        weights = a.in_proj_weight.chunk(3)
    q, k, v = (F.linear(x, w.abs()) for x, w in zip(inputs, weights, strict=True))
    if a.bias_k is not None:
        k, v = (torch.cat([x, b.abs().expand(1, x.shape[1], -1)]) for x, b in ((k, a.bias_k), (v, a.bias_v)))
    if a.add_zero_attn:
        k, v = (torch.cat([x, torch.zeros_like(x[:1])]) for x in (k, v))
    extra = int(a.bias_k is not None) + int(a.add_zero_attn)
    # (length, batch, heads * features) -> (batch, heads, length, features)
    q, k, v = (x.reshape(*x.shape[:2], a.num_heads, -1).permute(1, 2, 0, 3) for x in (q, k, v))
    # A mask that is made of the input hides nothing for sure, and each query depends on that of all keys.
    flags, pads = call.seen_of(a.attn_mask), call.seen_of(a.key_padding_mask)
    mask = None
    if a.attn_mask is not None and flags is None:
        mask = ~a.attn_mask if a.attn_mask.dtype == torch.bool else _allowed(a.attn_mask)
        mask = F.pad(mask, (0, extra), value=True)
        if mask.ndim == 3:
            mask = mask.reshape(-1, a.num_heads, *mask.shape[1:])
    if a.key_padding_mask is not None and pads is None:
        keys = a.key_padding_mask
        keys = ~keys if keys.dtype == torch.bool else _allowed(keys)
        keys = F.pad(keys, (0, extra), value=True).reshape(-1, 1, 1, k.shape[-2])
        mask = keys if mask is None else mask & keys
    out, shares = _attend(q, k, v, mask, None)
    out = F.linear(out.permute(2, 0, 1, 3).flatten(2), a.out_proj_weight.abs())
    if flags is not None:
        queries = mean_over(flags, (-1,)).squeeze(-1)
        queries = queries.reshape(-1, a.num_heads, queries.shape[-1]).mean(1) if flags.ndim == 3 else queries[None]
        out = out + queries.T.unsqueeze(-1)
    if pads is not None:
        out = out + mean_over(pads.reshape(-1, pads.shape[-1]), (-1,))
    if a.average_attn_weights:
        shares = shares.mean(1)
    if not batched:
        out, shares = out.squeeze(1), shares.squeeze(0)
    return out, shares if a.need_weights else None
