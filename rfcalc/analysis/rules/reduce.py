"""Ops that merge whole dims: reductions, softmax, normalisation, sorting, Fourier transforms."""

from __future__ import annotations

from typing import Any

import numpy as np

from rfcalc.analysis.field import (
    AxisField,
    Field,
    blank,
    drop_dims,
    join,
    mix,
    normalise,
    reduce,
    seen_hull,
    touched,
    written_out,
)
from rfcalc.analysis.moves import renumber_part
from rfcalc.analysis.parts import Part
from rfcalc.analysis.rules.parameters import with_parameters
from rfcalc.analysis.rules.registry import Call, Result, Value, Window, dim_of, dims_of, pointwise, rule, unknown
from rfcalc.analysis.rules.window import group_channels
from rfcalc.analysis.stretches import Mask, Rows


def reduced(call: Call, x: Value, dims: tuple[int, ...]) -> Result:
    """Hull over dims; whether they stay as size 1 is read off the output's shape."""
    field = x.field
    assert field is not None
    out = call.out[0]
    ndim = len(x.shape)
    # Averaging over all of space is global pooling, however it is written.
    tail = tuple(range(2, ndim))
    if ndim > 2 and dims == tail:
        k = tuple(x.shape[2:])
        call.window = Window(k, (1,) * len(k), ((0, 0),) * len(k), (1,) * len(k))
    field = reduce(field, dims)
    if field.mask is not None and not (field.mask.pending and call.op in ("sum", "mean")):  # of zeros, it is zero
        field = field.unmasked()
    if len(out) != ndim:
        field = drop_dims(field, dims, ndim)
    return field if len(call.out) == 1 else (field,) * len(call.out)


@rule("sum", "mean", "nansum", "nanmean", "amax", "amin", "prod", "std", "var", "std_mean", "var_mean", "all", "any",
      "logsumexp", "count_nonzero", "aminmax", "argmax", "argmin", "max", "min", "median", "nanmedian", "mode",
      "linalg_vector_norm", "norm", "frobenius_norm", "quantile", "nanquantile", "_is_all_true",
      "_is_any_true")  # fmt: skip
def reduction(call: Call, x: Value, *args: Any, **kwargs: Any) -> Result:
    """Reductions spell `dim` as an int, a list or nothing, in the first or second place."""
    if call.op in ("max", "min") and args and isinstance(args[0], Value):
        return pointwise(call, x, *args)  # the element-wise overload max(x, y)
    if call.op in _QUANTILES:
        return _quantile(call, x, *args, **kwargs)
    candidates = [kwargs.get("dim"), *[a for a in args if a is not None]]
    dims: Any = next((a for a in candidates if a is not None and _is_dims(a, call, len(x.shape))), None)
    return reduced(call, x, dims_of(dims, len(x.shape)))


def _quantile(call: Call, x: Value, q: Any, dim: int | None = None, *args: Any, **kwargs: Any) -> Result:
    """Each quantile asked for, in a first dim where they are several, of all along a dim."""
    dims = dims_of(dim, len(x.shape))
    field = x.field and reduce(x.field, dims).unmasked()
    several = isinstance(q, Value) and len(q.shape) == 1
    if field is not None and len(call.out[0]) - several != len(x.shape):
        field = drop_dims(field, dims, len(x.shape))
    if several:
        field = field and field.map(lambda p: renumber_part(p, {d: d + 1 for d in range(len(x.shape))}))
    return with_parameters(field, (q,), call.out[0], len(call.out[0]) - several)


_QUANTILES = ("quantile", "nanquantile")


def _is_dims(a: Any, call: Call, ndim: int) -> bool:
    if isinstance(a, bool | Value):
        return False
    if isinstance(a, list | tuple):
        return all(isinstance(i, int) for i in a)
    # norm(x, p, dim): a lone number is the order, not a dim
    return isinstance(a, int) and call.op not in ("linalg_vector_norm", "norm", "frobenius_norm")


@rule("softmax", "_softmax", "_safe_softmax", "log_softmax", "_log_softmax")
def softmax(call: Call, x: Value, dim: int, *args: Any, **kwargs: Any) -> Result:
    """Each element joined with all unmasked elements along dim."""
    field = x.field
    assert field is not None
    at = dim_of(dim, len(x.shape))
    mask = field.mask
    if x.shape and x.shape[at] == 1:
        return field.unmasked()
    if mask is not None and mask.zero:  # a 0 is a number like any other here
        field, mask = field.unmasked(), None
    if mask is not None and isinstance(mask.part, Rows) and mask.part.k != at:
        field = written_out(field)
        mask = field.mask
    if mask is not None and isinstance(mask.part, Rows):
        # What a row sees holds each of its unmasked elements, and nothing holds the others.
        hull = mix(seen_hull(field, mask.part, x.shape, at))
        return Field(hull.axes, hull.approx, Mask(mask.part, "log" not in call.op, pending=True))
    flags = mask and mask.part
    assert not isinstance(flags, Rows)
    seen = blank(field, flags, x.shape, inside=True) if flags is not None else field
    row = _changed_only(seen, reduce(seen, (at,)))
    if row is None:
        return Field(field.axes, field.approx, mask and Mask(mask.part, True))
    result = mix(join([seen.unmasked(), row]), touched(seen, (at,)))
    if flags is not None:  # 0 (or -inf), whatever the others are
        result = blank(result, flags, x.shape, inside=True)
        return Field(result.axes, result.approx, Mask(flags, "log" not in call.op))
    return result


def _changed_only(old: Field, new: Field) -> Field | None:
    """None when no axis varied along the reduced dim: nothing was mixed."""

    def layout(f: Field) -> list[set[Any]]:
        return [{(p.dims, p.span) for p in a.parts} for a in f.axes]

    return None if layout(old) == layout(new) else new


# --------------------------------------------------------------------------------------------------- normalisation


@rule("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(call: Call, x: Value, shape: Any, *args: Any, **kwargs: Any) -> Result:
    """Statistics over the last dims; the native forms give them too."""
    n = len(x.shape)
    dims = range(n - len(shape), n)
    field = with_parameters(x.field and normalise(x.field, dims), (*args, *kwargs.values()), call.out[0])
    return field if len(call.out) == 1 else (field, *(x.field and reduce(x.field, dims) for _ in call.out[1:]))


def _group_stats(x: Value, groups: int) -> Field | None:
    """Statistics over the channels of a group and all of space."""
    field = x.field
    if field is None:
        return None
    channels = x.shape[1]
    space = tuple(range(2, len(x.shape)))
    if groups == 1:
        return normalise(field, (1, *space))
    if groups == channels:
        return normalise(field, space)

    def statistics(f: Field) -> Field:
        return group_channels(reduce(f, space), 1, channels, channels, groups)

    # Statistics that say nothing new are left out: a part that does not vary over space or inside a group.
    stats = statistics(field)
    axes = []
    for a, s in zip(field.axes, stats.axes, strict=True):
        extra = tuple(p._replace(local=False) for p in s.parts if not any(_same(p, q) for q in a.parts))
        mixed = a.mixed or bool(extra)
        axes.append(AxisField((*a.parts, *extra), a.jump, a.aligned, mixed, turn=a.turn) if extra else a)
    return Field(tuple(axes), field.approx)


def _same(p: Part, q: Part) -> bool:
    return p.dims == q.dims and p.span == q.span and np.array_equal(p.bounds, q.bounds)


@rule("group_norm")
def group_norm(call: Call, x: Value, groups: int, *args: Any, **kwargs: Any) -> Result:
    return with_parameters(_group_stats(x, groups), (*args, *kwargs.values()), call.out[0], len(x.shape) - 2)


@rule("native_group_norm")
def native_group_norm(
    call: Call, x: Value, weight: Any, bias: Any, n: int, c: int, hxw: int, groups: int, eps: float
) -> Result:
    """Beside the result the mean and the deviation of each sample and group."""
    space = tuple(range(2, len(x.shape)))
    field = with_parameters(_group_stats(x, groups), (weight, bias), call.out[0], len(space))
    own = x.field and group_channels(reduce(x.field, space), 1, x.shape[1], groups, groups)
    return field, own, own


def _of_channels(x: Value) -> Field | None:
    """What a number per channel, over batch and space, depends on."""
    others = (0, *range(2, len(x.shape)))
    return x.field and drop_dims(reduce(x.field, others).unmasked(), others, len(x.shape))


def _update(call: Call, x: Value, *statistics: Any) -> None:
    """In training the running statistics take in those of the batch; torch's schemas do not say so."""
    own = _of_channels(x)
    call.writes = tuple((v, with_parameters(own, (v,), v.shape)) for v in statistics if isinstance(v, Value))


@rule("instance_norm")
def instance_norm(
    call: Call, x: Value, weight: Any, bias: Any, mean: Any, var: Any, use_input_stats: bool, *rest: Any
) -> Result:
    """With running statistics it is point-wise, as batch norm in evaluation."""
    given = (weight, bias) if use_input_stats else (weight, bias, mean, var)
    if use_input_stats:
        _update(call, x, mean, var)
    field = _group_stats(x, x.shape[1]) if use_input_stats else x.field and x.field.unmasked()
    return with_parameters(field, given, call.out[0], len(x.shape) - 2)


@rule("batch_norm", "native_batch_norm", "_batch_norm_impl_index")
def batch_norm(call: Call, x: Value, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *rest: Any) -> Result:
    """Point-wise in evaluation; statistics over batch and space where it has no running ones."""
    others = (0, *range(2, len(x.shape)))
    field = x.field and (normalise(x.field, others) if training else x.field.unmasked())
    given = (weight, bias) if training else (weight, bias, mean, var)
    if training:
        _update(call, x, mean, var)
    field = with_parameters(field, given, call.out[0], len(x.shape) - 2)
    if len(call.out) == 1:
        return field
    own = _of_channels(x)
    return field, *(own if training and out == x.shape[1:2] else None for out in call.out[1:])


@rule("_native_batch_norm_legit_no_training")
def frozen_batch_norm(call: Call, x: Value, weight: Any, bias: Any, mean: Any, var: Any, *rest: Any) -> Result:
    return batch_norm(call, x, weight, bias, mean, var, False)


# ------------------------------------------------------------------------------------------------ along one dim


@rule("sort", "argsort", "topk", "kthvalue", "msort")
def ordered(call: Call, x: Value, *args: Any, **kwargs: Any) -> Result:
    """Any output along the dim may be any input along it."""
    field = x.field
    assert field is not None
    ints = [a for a in args if isinstance(a, int) and not isinstance(a, bool)]
    dim = kwargs.get("dim", ints[-1] if len(ints) > (call.op in ("topk", "kthvalue")) else -1)
    if call.op == "msort":
        dim = 0
    if call.op == "sort" and args and isinstance(args[0], bool):
        dim = ints[-1] if ints else -1
    at = dim_of(dim, len(x.shape))
    moved = mix(reduce(field, (at,)).unmasked(), touched(field, (at,)))
    if len(call.out[0]) != len(x.shape):
        moved = drop_dims(moved, (at,), len(x.shape))
    return moved if len(call.out) == 1 else (moved,) * len(call.out)


def _fourier(call: Call, x: Value, size: Any = None, dim: Any = None, *args: Any, **kwargs: Any) -> Result:
    """A Fourier transform is global along its dims."""
    field = x.field
    assert field is not None
    op, n = call.op, len(x.shape)
    if dim is None:
        dim = (-2, -1) if op.endswith("2") else None if op.endswith("n") else -1
    if dim is None and size is not None and op.endswith("n"):
        dim = tuple(range(n - len(size), n))
    dims = dims_of(dim, n)
    return mix(reduce(field, dims).unmasked(), touched(field, dims))


rule(*(f"fft_{op}{end}" for op in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft") for end in ("", "2", "n")))(
    _fourier
)


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def fourier_low(call: Call, x: Value, dim: Any, *args: Any) -> Result:
    return _fourier(call, x, None, dim)


@rule("pdist")
def pairwise(call: Call, *args: Any, **kwargs: Any) -> Result:
    """One number per pair of rows, in no grid: truthful, not tight, and said so."""
    return unknown(call, *args, **kwargs)


@rule("renorm")
def renorm(call: Call, x: Value, p: Any, dim: int, maxnorm: Any) -> Result:
    """Each slice along dim is scaled by its own norm: statistics over the other dims."""
    n = len(x.shape)
    return x.field and normalise(x.field, [d for d in range(n) if d != dim_of(dim, n)])
