"""Level 2, contractions and attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rfcalc.analysis.fast.registry import (
    NUMBERS,
    broadcast_shape,
    fits,
    is_reached,
    joined_by_x,
    meta_empty,
    named,
    output_of,
    shortcut,
)
from rfcalc.analysis.field import join, mix, reduce, touched
from rfcalc.analysis.parts import Shape
from rfcalc.analysis.refusals import RefusedError
from rfcalc.analysis.rules import RULES, Call, Value
from rfcalc.analysis.rules.registry import Result
from rfcalc.analysis.rules.work import WORK
from rfcalc.analysis.run import Run
from rfcalc.analysis.values import PLAIN


@shortcut(F.linear)
def linear(run: Run, op: Any, /, input: Any, weight: Any, bias: Any = None) -> Any:
    if type(input) is not Tensor or type(weight) not in PLAIN:
        return NotImplemented
    if input.dtype is not weight.dtype or not input.is_contiguous() or not input.is_floating_point():
        return NotImplemented
    v = run.value(input)
    shape = tuple(weight.shape)
    if v.field is None or len(shape) != 2 or not v.shape:
        return NotImplemented
    if v.shape[-1] != shape[1]:
        raise RefusedError(
            f"expected {shape[1]} input features, found {v.shape[-1]} (input {joined_by_x(v.shape[1:])})"
        )
    if is_reached(run, weight) or not fits(run, bias, shape[:1], input):
        return NotImplemented
    call = Call("linear", ((*v.shape[:-1], shape[0]),))
    wv = Value(shape)
    out = output_of(run, op, input, v, call, run.interpret(RULES["linear"], call, v, wv))
    run.count(WORK["linear"](call.out[0], v, wv))
    return out


def _multiplied(run: Run, op: Any, a: Any, b: Any, batched: bool) -> Any:
    if type(a) is not Tensor or type(b) is not Tensor or a.dtype is not b.dtype or not a.is_floating_point():
        return NotImplemented
    va, vb = run.value(a), run.value(b)
    if len(va.shape) < 2 or len(vb.shape) < 2 or va.shape[-1] != vb.shape[-2]:
        return NotImplemented
    if batched and (len(va.shape) != 3 or va.shape[:-2] != vb.shape[:-2]):
        return NotImplemented
    batch = broadcast_shape(va.shape[:-2], vb.shape[:-2])
    if batch is None or (va.field is None and vb.field is None):
        return NotImplemented
    call = Call("matmul", ((*batch, va.shape[-2], vb.shape[-1]),))
    field = run.interpret(RULES["matmul"], call, va, vb)
    run.count(WORK["matmul"](call.out[0], va, vb))
    op.ins += [(v.shape, v.field) for v in (va, vb) if v.field is not None]
    out = meta_empty(call.out[0], a)
    run.new(out, field)  # type: ignore[arg-type]
    return out


@shortcut(*named("matmul"), Tensor.__matmul__)
def matmul(run: Run, op: Any, /, input: Any, other: Any) -> Any:
    return _multiplied(run, op, input, other, False)


@shortcut(torch.bmm, Tensor.bmm)
def bmm(run: Run, op: Any, /, input: Any, mat2: Any) -> Any:
    return _multiplied(run, op, input, mat2, True)


def mask_fits(mask: Any, query: Tensor, shape: Shape) -> bool:
    """Is an attention mask absent, or one that broadcasts to the weights of this shape?"""
    if mask is None:
        return True
    if type(mask) not in PLAIN or mask.dtype not in (torch.bool, query.dtype) or mask.dim() < 2:
        return False
    return broadcast_shape(tuple(mask.shape), shape) == shape


@shortcut(F.scaled_dot_product_attention)
def sdpa(
    run: Run, op: Any, /, query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: Any = 0.0,
    is_causal: Any = False, scale: Any = None, enable_gqa: Any = False,
) -> Any:  # fmt: skip
    if not all(type(t) is Tensor and t.dtype is query.dtype for t in (query, key, value)) or enable_gqa is not False:
        return NotImplemented
    if query.dim() < 3 or not query.is_floating_point() or type(dropout_p) not in NUMBERS or dropout_p != 0:
        return NotImplemented
    q, k, v = run.value(query), run.value(key), run.value(value)
    if any(x.field is None for x in (q, k, v)) or not (q.shape[:-2] == k.shape[:-2] == v.shape[:-2]):
        return NotImplemented
    if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2] or (attn_mask is not None and is_causal):
        return NotImplemented
    if type(is_causal) is not bool or (scale is not None and type(scale) not in NUMBERS):
        return NotImplemented
    if not mask_fits(attn_mask, query, (*q.shape[:-1], k.shape[-2])):
        return NotImplemented
    mask = run.value(attn_mask) if attn_mask is not None else None
    call = Call("scaled_dot_product_attention", ((*q.shape[:-1], v.shape[-1]),))
    field = run.interpret(RULES[call.op], call, q, k, v, mask, 0.0, is_causal)
    run.count(WORK[call.op](call.out[0], q, k, v))
    op.ins += [(x.shape, x.field) for x in (q, k, v, mask) if x is not None and x.field is not None]
    as_query = q.shape == call.out[0] and (not query.is_contiguous() or 1 in q.shape[1:]) and query.stride(-1) == 1
    out = torch.empty_like(query) if as_query else meta_empty(call.out[0], query)
    run.new(out, field)  # type: ignore[arg-type]
    return out


@shortcut(F.multi_head_attention_forward)
def self_attention(
    run: Run, op: Any, /, query: Any, key: Any, value: Any, embed_dim_to_check: Any, num_heads: Any,
    in_proj_weight: Any, in_proj_bias: Any, bias_k: Any, bias_v: Any, add_zero_attn: Any, dropout_p: Any,
    out_proj_weight: Any, out_proj_bias: Any, training: Any = True, key_padding_mask: Any = None,
    need_weights: Any = True, attn_mask: Any = None, use_separate_proj_weight: Any = False,
    q_proj_weight: Any = None, k_proj_weight: Any = None, v_proj_weight: Any = None, static_k: Any = None,
    static_v: Any = None, average_attn_weights: Any = True, is_causal: Any = False,
) -> Any:  # fmt: skip
    """Plain self-attention of one sequence: the projections merge features, then every query sees every key."""
    if need_weights or add_zero_attn or training or is_causal or use_separate_proj_weight:
        return NotImplemented
    if any(u is not None for u in (bias_k, bias_v, key_padding_mask, attn_mask, static_k, static_v)):
        return NotImplemented
    if query is not key or key is not value or type(query) is not Tensor or query.dim() != 3:
        return NotImplemented
    if not query.is_contiguous() or in_proj_weight is None or out_proj_weight is None:
        return NotImplemented
    v = run.value(query)
    t, b, e = v.shape
    if v.field is None or e != embed_dim_to_check or type(num_heads) is not int or num_heads < 1 or e % num_heads:
        return NotImplemented
    weights = ((in_proj_weight, (3 * e, e)), (in_proj_bias, (3 * e,)), (out_proj_weight, (e, e)), (out_proj_bias, (e,)))
    if t == 1 or not all(fits(run, w, shape, query) for w, shape in weights):
        return NotImplemented
    call = Call("multi_head_attention_forward", (v.shape,))
    field = run.interpret(_attended, call, v)
    run.count(4 * t * b * e * e + 2 * b * t * t * e)
    op.ins.append((v.shape, v.field))
    out = meta_empty(v.shape, query)
    run.new(out, field)  # type: ignore[arg-type]
    return out, None


def _attended(call: Call, x: Value) -> Result:
    assert x.field is not None
    own = reduce(x.field, (2,)).unmasked()
    return mix(join([own, reduce(own, (0,))]), touched(own, (0,)))
