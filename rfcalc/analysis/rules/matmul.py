"""Contractions: matrix products, linear layers, attention."""

from __future__ import annotations

from typing import Any

import numpy as np

from rfcalc.analysis.field import Field, broadcast, drop_dims, everything, join, mix, reduce, seen_hull, touched
from rfcalc.analysis.moves import permute_part, prefix_part, renumber_part
from rfcalc.analysis.parts import Part, Shape
from rfcalc.analysis.pattern import Lost
from rfcalc.analysis.rules.parameters import per_output, with_parameters
from rfcalc.analysis.rules.pointwise import blocked_entries, guessed, mask_of, with_mask
from rfcalc.analysis.rules.registry import Call, Result, Value, everywhere, pointwise, rule, unknown
from rfcalc.analysis.rules.view import taken
from rfcalc.analysis.stretches import Mask, Rows, moved_mask


def _moved(field: Field, where: dict[int, int]) -> Field:
    return field.map(lambda p: renumber_part(p, where))


def product(a: Value, b: Value, out: Shape) -> Field | None:
    """`a (..., M, K) @ b (..., K, N)`: merge over K, keep M and N; entries of a that are known as 0 are skipped."""
    fields = []
    na, nb, no = len(a.shape), len(b.shape), len(out)
    if a.field is not None:
        mask = a.field.mask
        skips = mask is not None and (mask.zero or mask.pending)
        f = seen_hull(a.field, mask.part, a.shape, na - 1) if mask and skips else reduce(a.field.unmasked(), (na - 1,))
        where = {d: d + no - na for d in range(na - 1)}
        f = _moved(f.unmasked(), where)
        fields.append(_batch(f, a.shape[:-2], out))
    if b.field is not None:
        mask = a.field.mask if a.field is not None else None
        if mask is not None and mask.zero:
            f = _weighted(b, a.shape, mask, out)
        else:
            f = reduce(b.field, (nb - 2,)).unmasked()
            where = {d: d + no - nb for d in range(nb) if d != nb - 2}
            f = _batch(_moved(f, where), b.shape[:-2], out)
        fields.append(f)
    if not fields:
        return None
    result = join(fields)
    if a.field is None or b.field is None:
        return result
    # Where an axis runs along batch dims only, as in attention along the other axis, each entry meets only its like.
    contracted = zip(touched(a.field, (na - 2, na - 1)), touched(b.field, (nb - 2, nb - 1)), strict=True)
    return mix(result, [p or q for p, q in contracted])


def _batch(field: Field, batch: Shape, out: Shape) -> Field:
    """Batch dims of size 1 are broadcast."""
    shift = len(out) - 2 - len(batch)
    grown = [d + shift for d, n in enumerate(batch) if n == 1 and out[d + shift] != 1]
    if not grown:
        return field
    where = {d: d for d in range(len(out)) if d not in grown}
    return _moved(field, where)


def _weighted(b: Value, a_shape: Shape, mask: Mask, out: Shape) -> Field:
    """Rows m of the result see only those k whose weight is not known to be 0."""
    assert b.field is not None
    n = len(out)
    # Lay b's field out over (..., M, K, N) beside the mask over (..., M, K), then merge over K.
    wide = (*out[:-1], a_shape[-1], out[-1])
    nb, na = len(b.shape), len(a_shape)
    where = {d: d + n - nb for d in range(nb - 2)} | {nb - 2: n - 1, nb - 1: n}
    f = _batch(_moved(b.field.unmasked(), where), b.shape[:-2], out)
    flags = moved_mask(mask, lambda p: renumber_part(p, {d: d + n - na for d in range(na)}))
    assert flags is not None
    return drop_dims(seen_hull(f, flags.part, wide, n - 1), (n - 1,), n + 1)


@rule("mm", "bmm", "matmul", "mv", "dot", "vdot", "inner")
def matmul(call: Call, a: Value, b: Value, *args: Any, **kwargs: Any) -> Result:
    """Vectors are matrices with a dim of size 1 that disappears again."""
    out = call.out[0]
    if call.op == "inner" and len(b.shape) > 1:
        if len(a.shape) != 2 or len(b.shape) != 2:
            return unknown(call, a, b)
        b = _transposed(b)
    left = a if len(a.shape) > 1 else _row(a)
    right = b if len(b.shape) > 1 else _column(b)
    full = out
    if len(b.shape) == 1:
        full = (*full, 1)
    if len(a.shape) == 1:
        full = (*full[: len(full) - 1], 1, full[-1]) if len(b.shape) != 1 else (1, 1)
    field = product(left, right, full)
    if field is None or full == out:
        return field
    gone = [len(full) - 1] if len(b.shape) == 1 else []
    gone += [len(full) - 2] if len(a.shape) == 1 else []
    return drop_dims(field, gone, len(full))


def _row(v: Value) -> Value:
    return Value((1, *v.shape), v.field and _moved(v.field, {0: 1}))


def _column(v: Value) -> Value:
    return Value((*v.shape, 1), v.field)


@rule("linear", "quantized::linear")
def linear(call: Call, x: Value, weight: Any, *bias: Any) -> Result:
    """Merge over the last dim. Quantized layers give their weights packed, as an object of its own."""
    if not isinstance(weight, Value):
        weight = Value(())
    field = x.field and reduce(x.field, (len(x.shape) - 1,)).unmasked()
    return with_parameters(field, (per_output(weight), *bias), call.out[0])


@rule("addmm", "addmv", "addbmm", "baddbmm")
def add_product(call: Call, base: Value, a: Value, b: Value, *args: Any, **kwargs: Any) -> Result:
    """A product added to something; addbmm also sums over the batch, addmv takes a vector."""
    out = call.out[0]
    if call.op == "addmv":
        field = product(a, _column(b), (*out, 1))
        field = field and drop_dims(field, (len(out),), len(out) + 1)
    elif call.op == "addbmm":
        field = product(a, b, (a.shape[0], *out))
        field = field and drop_dims(reduce(field, (0,)), (0,), len(out) + 1)
    else:
        field = product(a, b, out)
    fields = [] if field is None else [field]
    if base.field is not None:
        fields.append(broadcast(base.field, base.shape, out))
    joined = join(fields) if fields else None
    return with_mask(joined, base, out, call.op) if base.field is None or base.field.mask is not None else joined


@rule("addr")
def add_outer(call: Call, base: Value, a: Value, b: Value, *args: Any, **kwargs: Any) -> Result:
    return pointwise(call, base, Value((*a.shape, 1), a.field), b)


@rule("cdist", "_cdist_forward")
def distances(call: Call, a: Value, b: Value, *args: Any, **kwargs: Any) -> Result:
    """Every row of a with every row of b: laid out as a product with b transposed."""
    return product(a, _transposed(b), call.out[0])


def _transposed(v: Value) -> Value:
    n = len(v.shape)
    order = [*range(n - 2), n - 1, n - 2]
    return Value(tuple(v.shape[d] for d in order), v.field and v.field.map(lambda p: permute_part(p, order)))


@rule("bilinear", "_trilinear")
def bilinear(call: Call, a: Value, b: Value, *args: Any, **kwargs: Any) -> Result:
    """x1 W x2 at each position: both last dims merge."""
    if call.op != "bilinear":
        return everywhere(call, a, b, *args)
    fields = [reduce(v.field, (len(v.shape) - 1,)) for v in (a, b) if v.field is not None]
    weight, *bias = args
    return with_parameters(join(fields) if fields else None, (per_output(weight), *bias), call.out[0])


# ----------------------------------------------------------------------------------------------------- attention


def attention(q: Value, k: Value, v: Value, mask: Any, causal: bool, out: Shape) -> Field:
    """softmax(q k^T) v. Each query keeps its own field; all keys it may see join, a prefix where causal."""
    t, s = q.shape[-2], k.shape[-2]
    n = len(out)
    known = _allowed(mask, (t, s), n)
    if isinstance(known, Lost):
        known = None
        q = Value(q.shape, guessed(q.field, "scaled_dot_product_attention"))
    fields = []
    if q.field is not None:
        fields.append(_heads(q, out))
    shared = []
    for x in (k, v):
        if x.field is not None:
            shared.append(_heads(x, out))
    if isinstance(mask, Value) and mask.field is not None:
        by_query = reduce(mask.field, (len(mask.shape) - 1,)).unmasked()
        fields.append(mix(broadcast(by_query, (*mask.shape[:-1], 1), out)))
    if shared:
        keys = join(shared)
        if causal and known is None and t == s:
            fields.append(keys.each(lambda a: a.with_parts([prefix_part(p, n - 2, s) for p in a.parts])))
        elif known is not None or (causal and t != s):
            flags = known or _triangle(t, s, n)
            where = {d: d for d in range(n - 2)} | {n - 2: n - 1}
            wide = (*out[:-2], t, s)
            fields.append(seen_hull(_moved(keys, where), flags, wide, n - 1))
        else:
            fields.append(reduce(keys, (n - 2,)))
    along = [touched(x.field, (len(x.shape) - 2,)) for x in (k, v) if x.field is not None]
    return mix(join(fields), [any(axis) for axis in zip(*along, strict=True)] if along else None)


def _heads(v: Value, out: Shape) -> Field:
    """Queries, keys or values merged over their features, beside the heads of the result; heads may share keys."""
    assert v.field is not None
    n, head = len(v.shape), len(out) - 3
    field = _moved(reduce(v.field, (n - 1,)).unmasked(), {d: d + len(out) - n for d in range(n)})
    if n > 2 and v.shape[-3] not in (1, out[head]):
        field = taken(field, head, v.shape[-3], np.arange(out[head]) * v.shape[-3] // out[head])
    return _batch(field, v.shape[:-2], out)


def _triangle(t: int, s: int, n: int) -> Rows:
    stops = np.minimum(np.arange(1, t + 1), s)[None]
    return Rows(np.zeros_like(stops), stops, n - 2, n - 1, s)


def _allowed(mask: Any, size: tuple[int, int], n: int) -> Part | Rows | Lost | None:
    """The blocked entries of a constant mask: False in a boolean one, -inf in an additive one."""
    if not isinstance(mask, Value):
        return None
    return mask_of(mask, _merge((1,) * (n - 2) + size, mask.shape), blocked_entries)


def _merge(a: Shape, b: Shape) -> Shape:
    b = (1,) * (len(a) - len(b)) + b
    return tuple(max(x, y) for x, y in zip(a, b, strict=True))


@rule("scaled_dot_product_attention", "_scaled_dot_product_attention_math",
      "_scaled_dot_product_flash_attention_for_cpu")  # fmt: skip
def sdpa(
    call: Call, q: Value, k: Value, v: Value, mask: Any = None, dropout: float = 0.0, causal: bool = False,
    *args: Any, attn_mask: Any = None, is_causal: bool = False, **kwargs: Any,
) -> Result:  # fmt: skip
    if call.op == "_scaled_dot_product_flash_attention_for_cpu":  # the mask is given by name alone
        mask, causal = attn_mask, bool(dropout)
    field = attention(q, k, v, mask if mask is not None else attn_mask, causal or is_causal, call.out[0])
    return field if len(call.out) == 1 else (field, *(everything(field) for _ in call.out[1:]))


@rule("outer", "ger")
def outer(call: Call, a: Value, b: Value) -> Result:
    column = Value((*a.shape, 1), a.field)
    return pointwise(call, column, b)


@rule("cross", "linalg_cross")
def cross(call: Call, a: Value, b: Value, dim: int = -1, **kwargs: Any) -> Result:
    n = len(call.out[0])
    fields = [reduce(broadcast(v.field, v.shape, call.out[0]), (dim % n,)) for v in (a, b) if v.field is not None]
    return join(fields)
