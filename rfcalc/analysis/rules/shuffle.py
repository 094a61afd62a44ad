"""Ops that repeat, turn or shuffle positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from rfcalc.analysis.field import drop_dims, reduce
from rfcalc.analysis.moves import renumber_part
from rfcalc.analysis.rules.registry import Call, Result, Value, dim_of, dims_of, everywhere, rule
from rfcalc.analysis.rules.view import permuted, reshaped, taken
from rfcalc.analysis.rules.window import rescaled


@rule("flip", "fliplr", "flipud")
def flip(call: Call, x: Value, dims: Any = None) -> Result:
    field = x.field
    assert field is not None
    for d in {"fliplr": (1,), "flipud": (0,)}.get(call.op) or dims_of(dims, len(x.shape)):
        field = taken(field, d, x.shape[d], np.arange(x.shape[d])[::-1].copy())
    return field


@rule("roll")
def roll(call: Call, x: Value, shifts: Any, dims: Any = ()) -> Result:
    field, old = x.field, x.shape
    assert field is not None
    amounts = [shifts] if isinstance(shifts, int) else list(shifts)
    axes = [dims] if isinstance(dims, int) else list(dims)
    if not axes:  # rolls the flattened tensor
        n = math.prod(old)
        rolled = taken(reshaped(field, old, (n,)), 0, n, np.roll(np.arange(n), amounts[0]))
        return reshaped(rolled, (n,), old)
    for s, d in zip(amounts, axes, strict=True):
        at = dim_of(d, len(old))
        field = taken(field, at, old[at], np.roll(np.arange(old[at]), s))
    return field


# ---------------------------------------------------------------------------------------------- repeats and shuffles


@rule("repeat", "tile")
def repeat(call: Call, x: Value, times: Sequence[int]) -> Result:
    field = x.field
    assert field is not None
    out = call.out[0]
    shape = (1,) * (len(out) - len(x.shape)) + x.shape
    shift = len(out) - len(x.shape)
    field = field.map(lambda p: renumber_part(p, {d: d + shift for d in range(len(x.shape))})) if shift else field
    for d, (a, b) in enumerate(zip(shape, out, strict=True)):
        if a != b:
            field = taken(field, d, a, np.arange(b) % a)
    return field


@rule("repeat_interleave")
def repeat_interleave(call: Call, x: Value, repeats: Any = None, dim: int | None = None, **kwargs: Any) -> Result:
    if x.field is None or isinstance(repeats, Value) or repeats is None:
        return everywhere(call, x, repeats)
    if dim is None:
        n = math.prod(x.shape)
        return taken(reshaped(x.field, x.shape, (n,)), 0, n, np.arange(n * repeats) // repeats)
    at = dim_of(dim, len(x.shape))
    return taken(x.field, at, x.shape[at], np.arange(x.shape[at] * repeats) // repeats)


@rule("pixel_shuffle")
def pixel_shuffle(call: Call, x: Value, r: int) -> Result:
    """(C r^2, H, W) -> (C, H r, W r): channel (c, i, j) goes to phase (i, j)."""
    field = x.field
    assert field is not None
    *b, c, h, w = x.shape
    n = len(b)
    split = (*b, c // (r * r), r, r, h, w)
    field = reshaped(field, x.shape, split)
    field = permuted(field, [*range(n), n, n + 3, n + 1, n + 4, n + 2])
    return rescaled(reshaped(field, (*b, c // (r * r), h, r, w, r), call.out[0]), Fraction(1, r))


@rule("pixel_unshuffle")
def pixel_unshuffle(call: Call, x: Value, r: int) -> Result:
    field = x.field
    assert field is not None
    *b, c, h, w = x.shape
    n = len(b)
    split = (*b, c, h // r, r, w // r, r)
    field = reshaped(field, x.shape, split)
    field = permuted(field, [*range(n), n, n + 2, n + 4, n + 1, n + 3])
    return rescaled(reshaped(field, (*b, c, r, r, h // r, w // r), call.out[0]), Fraction(r))


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(call: Call, x: Value, groups: int) -> Result:
    field = x.field
    assert field is not None
    b, c, *rest = x.shape
    split = (b, groups, c // groups, *rest)
    field = permuted(reshaped(field, x.shape, split), [0, 2, 1, *range(3, len(split))])
    return reshaped(field, (b, c // groups, groups, *rest), x.shape)


@rule("view_as_real", "view_as_complex")
def complex_view(call: Call, x: Value) -> Result:
    """The pair (real, imaginary) is a new last dim of 2."""
    if x.field is None or call.op != "view_as_complex":
        return x.field
    n = len(x.shape)
    return drop_dims(reduce(x.field, (n - 1,)), (n - 1,), n)
