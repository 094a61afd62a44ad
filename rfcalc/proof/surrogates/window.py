"""Surrogates of pooling: sums over exactly the windows that torch uses, asked of torch itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rfcalc.proof.surrogates.registry import Call, mean_over, surrogate

# windows and resampling, one dim at a time


def apply_per_dim(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Multiply the last dims by one `(n_out, n_in)` matrix each."""
    first = x.ndim - len(matrices)
    for i, matrix in enumerate(matrices):
        x = (x.transpose(first + i, -1) @ matrix.T).transpose(first + i, -1)
    return x


def each_of(value: Any, n: int, default: Sequence[Any]) -> list[Any]:
    """`2`, `[2]` or `[2, 3]` as one entry per dim."""
    if value is None or (isinstance(value, tuple | list) and not value):
        return list(default)
    if not isinstance(value, tuple | list):
        return [value] * n
    return list(value) * n if len(value) == 1 else list(value)


@lru_cache(maxsize=512)
def _max_windows(n: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool) -> Tensor:
    """Which inputs each window of a max pool sees, asked of torch: the maximum of a one-hot row is 1 inside."""
    hit = F.max_pool1d(torch.eye(n)[:, None], kernel, stride, padding, dilation, ceil)
    return (hit[:, 0].T > 0.5).double()


@surrogate("max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices")
def _max_pool(
    call: Call, x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Any:  # fmt: skip
    """The sum over exactly the same windows."""
    n = int(call.base[8])
    kernel = each_of(kernel_size, n, ())
    geometry = zip(
        x.shape[-n:], kernel, each_of(stride, n, kernel), each_of(padding, n, ()), each_of(dilation, n, ()), strict=True
    )
    y = apply_per_dim(x, [_max_windows(*g, ceil_mode) for g in geometry])
    return (y, call.values()[1]) if return_indices or "indices" in call.base else y


@surrogate(
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d adaptive_max_pool1d_with_indices "
    "adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices"
)
def _adaptive_max_pool(call: Call, x: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    pools = {"1": F.adaptive_avg_pool1d, "2": F.adaptive_avg_pool2d, "3": F.adaptive_avg_pool3d}
    y = pools[call.base[17]](x, output_size)
    return (y, call.values()[1]) if return_indices or "indices" in call.base else y


@surrogate("lp_pool1d lp_pool2d lp_pool3d")
def _lp_pool(
    call: Call, x: Tensor, norm_type: Any, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
) -> Tensor:
    pool: Callable[..., Tensor] = {"1": F.avg_pool1d, "2": F.avg_pool2d, "3": F.avg_pool3d}[call.base[7]]
    return pool(x, kernel_size, stride, 0, ceil_mode)


@surrogate(
    "max_unpool1d max_unpool2d max_unpool3d fractional_max_pool2d fractional_max_pool3d "
    "fractional_max_pool2d_with_indices fractional_max_pool3d_with_indices"
)
def _scattered(call: Call, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The data, or chance, decides where each value goes: any may go anywhere in its channel."""
    n = int(next(c for c in call.base if c.isdigit()))
    real = call.values()
    mean = mean_over(x, range(-n, 0))
    if isinstance(real, Tensor):
        return mean.expand(real.shape).clone()
    return (mean.expand(real[0].shape).clone(), real[1])
