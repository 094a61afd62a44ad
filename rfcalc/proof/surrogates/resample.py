"""Surrogates of resampling: the taps that torch uses, asked of torch itself with one-hot rows."""

from __future__ import annotations

from functools import lru_cache, reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rfcalc.proof.surrogates.registry import NEGLIGIBLE, Call, mean_over, surrogate
from rfcalc.proof.surrogates.window import apply_per_dim, each_of


@lru_cache(maxsize=512)
def _resampling(
    n: int, size: int | None, scale: float | None, dim: int, ndim: int, mode: str, options: tuple[Any, ...]
) -> Tensor:
    """The weight of each input in each output along one dim, asked of torch with one-hot rows."""
    # The other dims are 2 wide and stay so: torch's antialiasing goes astray in maps of width 1.
    probe = torch.eye(n, dtype=torch.float64).reshape(n, 1, *(n if d == dim else 1 for d in range(ndim)))
    probe = probe.repeat(1, 1, *(1 if d == dim else 2 for d in range(ndim)))
    sizes = None if size is None else [size if d == dim else 2 for d in range(ndim)]
    scales = None if scale is None else [scale if d == dim else 1.0 for d in range(ndim)]
    align, recompute, antialias = options
    out = F.interpolate(probe, sizes, scales, mode, align, recompute, antialias)
    weights = out.movedim(dim + 2, 1).reshape(n, out.shape[dim + 2], -1)[:, :, 0].T.abs()
    return torch.where(weights < NEGLIGIBLE, 0, weights)


@surrogate("interpolate")
def _interpolate(
    call: Call, x: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
    align_corners: bool | None = None, recompute_scale_factor: bool | None = None, antialias: bool = False,
) -> Tensor:  # fmt: skip
    n = x.ndim - 2
    none = [None] * n
    matrices = [
        _resampling(x.shape[2 + d], length, scale, d, n, mode, (align_corners, recompute_scale_factor, antialias))
        for d, (length, scale) in enumerate(zip(each_of(size, n, none), each_of(scale_factor, n, none), strict=True))
    ]
    return apply_per_dim(x, matrices)


@surrogate("upsample_bicubic2d _upsample_bicubic2d_aa _upsample_bilinear2d_aa")
def _upsample(call: Call, x: Tensor, size: Any, align: bool, *scales: Any, **named: Any) -> Tensor:
    """The weights of these have both signs, or are noise."""
    mode, sides = call.base.removeprefix("_").split("_")[1].removesuffix("2d"), call.shape()[2:]
    given = next((s for s in (*scales, *named.values()) if isinstance(s, list | tuple)), (*scales, *named.values()))
    ratios = given if len(given) == 2 and None not in given else (None, None)
    options = (align, None, call.base.endswith("aa"))
    matrices = [
        _resampling(x.shape[2 + d], n if scale is None else None, scale, d, 2, mode, options)
        for d, (n, scale) in enumerate(zip(sides, ratios, strict=True))
    ]
    return apply_per_dim(x, matrices)


@surrogate("grid_sample grid_sampler grid_sampler_2d grid_sampler_3d")
def _grid_sample(call: Call, x: Tensor, grid: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Where it reads is data: anywhere in the map, and the coordinates of this position."""
    return (mean_over(x, range(2, x.ndim)) + grid.mean(-1).unsqueeze(1)).expand(call.shape()).clone()


@surrogate("affine_grid affine_grid_generator")
def _affine_grid(call: Call, theta: Tensor, size: Any, *args: Any, **kwargs: Any) -> Tensor:
    return mean_over(theta, range(theta.ndim)).expand(call.shape()).clone()


@surrogate("deform_conv2d roi_align roi_pool ps_roi_align ps_roi_pool")
def _anywhere(call: Call, *args: Any, **kwargs: Any) -> Tensor:
    return reduce(torch.add, [t.mean() for t in call.operands()]).expand(call.shape()).clone()
