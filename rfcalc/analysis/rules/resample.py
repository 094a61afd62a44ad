"""Up- and down-sampling along one dim at a time, and sampling at positions given by the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from rfcalc.analysis.field import Field, join, mix, reduce, touched
from rfcalc.analysis.moves import renumber_part
from rfcalc.analysis.rules.registry import Call, Result, Value, Window, everywhere, rule
from rfcalc.analysis.rules.window import tapped
from rfcalc.analysis.windows import HOLE, Taps

# A weight below this is rounding noise of float coordinates, not a tap.
_NOISE = 1e-6


def _scale(n: int, n_out: int, given: float | None) -> float:
    """torch uses the caller's scale factor where there is one, the ratio of lengths elsewhere."""
    return 1.0 / given if given else n / n_out


def _taps(n: int, at: np.ndarray[Any, Any], weights: np.ndarray[Any, Any]) -> Taps:
    used = np.abs(weights) > _NOISE
    exact = np.where(used, np.clip(at, 0, n - 1), -1)
    free = np.where(used, at, HOLE)
    return Taps(exact.astype(np.int64), free.astype(np.int64))


@lru_cache(maxsize=256)
def nearest_taps(n: int, n_out: int, given: float | None, half: bool) -> Taps:
    """`floor(o * scale)`, or `floor((o + 1/2) * scale)` for nearest-exact; torch computes in float32."""
    scale = np.float32(_scale(n, n_out, given))
    o = np.arange(n_out, dtype=np.float32)
    at = np.floor((o + np.float32(0.5 if half else 0.0)) * scale).astype(np.int64)[:, None]
    at = np.minimum(at, n - 1)
    return Taps(at, at)


def _source(n: int, n_out: int, given: float | None, align: bool) -> np.ndarray[Any, Any]:
    o = np.arange(n_out, dtype=np.float64)
    if align:
        return o * ((n - 1) / (n_out - 1) if n_out > 1 else 0.0)
    return (o + 0.5) * _scale(n, n_out, given) - 0.5


@lru_cache(maxsize=256)
def linear_taps(n: int, n_out: int, given: float | None, align: bool) -> Taps:
    """The two neighbours of the source coordinate; a weight of zero is no tap, and the ends are clamped."""
    at = _source(n, n_out, given, align)
    low = np.floor(at + _NOISE)
    frac = at - low
    taps = np.stack([low, low + 1], 1).astype(np.int64)
    # torch clamps the coordinate, so below 0 only the first input counts; clipping both taps says the same.
    return _taps(n, taps, np.stack([1 - frac, frac], 1))


@lru_cache(maxsize=256)
def cubic_taps(n: int, n_out: int, given: float | None, align: bool) -> Taps:
    """Four neighbours, weighted by the cubic convolution kernel (Keys 1981, A = -3/4), clamped at the ends."""
    at = _source(n, n_out, given, align)
    low = np.floor(at + _NOISE)
    frac = np.where(np.abs(at - low) < _NOISE, 0.0, at - low)
    taps = low[:, None].astype(np.int64) + np.arange(-1, 3)[None, :]
    distance = np.abs(frac[:, None] - np.arange(-1, 3)[None, :])
    weights = np.where(distance < _NOISE, 1.0, np.where(np.abs(distance - np.round(distance)) < _NOISE, 0.0, 1.0))
    return _taps(n, taps, weights)


@lru_cache(maxsize=256)
def antialias_taps(n: int, n_out: int, given: float | None, align: bool, support: int) -> Taps:
    """A triangle (support 1) or cubic (support 2) filter widened by the scale when it shrinks the map."""
    scale = ((n - 1) / (n_out - 1) if n_out > 1 else 0.0) if align else _scale(n, n_out, given)
    width = support * max(scale, 1.0)
    rows = []
    for o in range(n_out):
        centre = scale * (o + 0.5)
        at = np.arange(math.floor(centre - width + 0.5), math.floor(centre + width + 0.5))
        distance = np.abs(at + 0.5 - centre) / max(scale, 1.0)
        alive = distance < support - _NOISE
        if support == 2:
            alive &= np.abs(distance - 1) > _NOISE
        rows.append(at[alive])
    most = max(len(r) for r in rows)
    free = np.array([[*r, *([HOLE] * (most - len(r)))] for r in rows], np.int64)
    return Taps(np.where((free >= 0) & (free < n), free, -1), free)


def _jump(n: int, n_out: int, given: float | None) -> Fraction:
    """How far neighbours lie apart: by the caller's scale factor, where it counts, also if the map is cut to whole
    numbers (7 positions times 1.5 are 10)."""
    return Fraction(1 / given).limit_denominator(1 << 10) if given else Fraction(n, n_out)


def _resample(
    call: Call,
    x: Value,
    n: int,
    taps: Callable[[int, int, float | None], Taps],
    given: list[float | None],
    align: bool = False,
) -> Result:
    field: Field | None = x.field
    assert field is not None
    first = len(x.shape) - n
    for i in range(n):
        a, b = x.shape[first + i], call.out[0][first + i]
        scale = given[i]
        field = tapped(field, first + i, a, taps(a, b, scale), _jump(a, b, None if align else scale))
    call.window = Window((1,) * n, (1,) * n, ((0, 0),) * n, (1,) * n)
    return field


def _scales(args: tuple[Any, ...], n: int) -> list[float | None]:
    """The trailing scale arguments: a list (the .vec overloads) or one number per dim."""
    for a in args:
        if isinstance(a, list | tuple):
            return [float(v) for v in a]
    numbers = [None if a is None else float(a) for a in args]
    return numbers if len(numbers) == n else [None] * n


@rule(
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d",
)
def nearest(call: Call, x: Value, size: Any = None, *scales: Any, **named: Any) -> Result:
    """In two dims torch copies or halves the index where it can, and never looks at the scale (in three only for maps
    laid out with the channels last, which a shape does not tell)."""
    n, half = int(call.op[-2]), "exact" in call.op
    given = _scales((*scales, *named.values()), n)
    plain = call.op == "upsample_nearest2d"
    if plain:
        sizes = zip(x.shape[-n:], call.out[0][-n:], given, strict=True)
        given = [None if b in (a, 2 * a) else scale for a, b, scale in sizes]
    return _resample(call, x, n, lambda a, b, scale: nearest_taps(a, b, scale, half), given)


@rule("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d")
def linear(call: Call, x: Value, size: Any, align: bool, *scales: Any, **named: Any) -> Result:
    n = int(call.op[-2])
    given = _scales((*scales, *named.values()), n)
    return _resample(call, x, n, lambda a, b, scale: linear_taps(a, b, scale, align), given, align)


@rule("upsample_bicubic2d")
def cubic(call: Call, x: Value, size: Any, align: bool, *scales: Any, **named: Any) -> Result:
    given = _scales((*scales, *named.values()), 2)
    return _resample(call, x, 2, lambda a, b, scale: cubic_taps(a, b, scale, align), given, align)


@rule("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")
def antialiased(call: Call, x: Value, size: Any, align: bool, *scales: Any, **named: Any) -> Result:
    given = _scales((*scales, *named.values()), 2)
    support = 2 if "cubic" in call.op else 1
    return _resample(call, x, 2, lambda a, b, scale: antialias_taps(a, b, scale, align, support), given, align)


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def grid_sample(call: Call, x: Value, grid: Value, *args: Any, **kwargs: Any) -> Result:
    """Reads anywhere in space, channel by channel; each position also depends on its own entry of the grid."""
    n = len(x.shape)
    fields = [] if x.field is None else [mix(reduce(x.field, range(2, n)).unmasked(), touched(x.field, range(2, n)))]
    if grid.field is not None:
        own = reduce(grid.field, (n - 1,)).unmasked()  # (batch, *space, coordinate) -> (batch, channel, *space)
        where = {0: 0} | {d: d + 1 for d in range(1, n - 1)}
        fields.append(own.map(lambda p: renumber_part(p, where)))
    return join(fields)


_OF_TORCHVISION = "deform_conv2d roi_align roi_pool ps_roi_align ps_roi_pool nms"


@rule("affine_grid_generator", *(f"torchvision::{op}" for op in _OF_TORCHVISION.split()))
def sampled(call: Call, *args: Any, **kwargs: Any) -> Result:
    """Reads wherever the data (or the weights) point: truly global."""
    return everywhere(call, *args, **kwargs)
