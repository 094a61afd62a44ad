"""Cases of quantization, which needs stand-ins in double precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from cases.registry import LINE, fn

# torch quantizes single precision only; in the oracle's double precision a function of the same name takes its place


def _named(name: str) -> Callable[[Tensor], Tensor]:
    def stand_in(x: Tensor) -> Tensor:
        return handle_torch_function(stand_in, (x,), x) if has_torch_function_unary(x) else x * 1

    stand_in.__name__ = name
    return stand_in


_STAND_INS = {n: _named(n) for n in ("quantize_per_tensor", "quantize_per_channel", "dequantize")}


def _quantized(x: Tensor, name: str, *options: Any) -> Tensor:
    if x.dtype == torch.float64:
        return _STAND_INS["dequantize"](_STAND_INS[name](x)) + x.flip(2)
    return torch.dequantize(getattr(torch, name)(x, *options)) + x.flip(2)


_SCALES, _ZEROS = torch.full((2,), 0.1), torch.zeros(2, dtype=torch.int32)
fn("quantize_per_tensor", lambda x: _quantized(x, "quantize_per_tensor", 0.1, 0, torch.quint8), LINE)
fn("quantize_per_channel", lambda x: _quantized(x, "quantize_per_channel", _SCALES, _ZEROS, 1, torch.quint8), LINE)
fn(
    "fake_quantize_per_channel_affine",
    lambda x: torch.fake_quantize_per_channel_affine(x, _SCALES, _ZEROS, 1, 0, 255) + x.flip(2),
    LINE,
)
fn("group_norm channels", lambda x, norm: norm(x.transpose(1, 3)), (2, 5, 4), norm=lambda: nn.GroupNorm(2, 4))
fn("grouped over channels", lambda x, m: m(x.transpose(1, 3)), (2, 5, 6), m=lambda: nn.Conv2d(6, 4, 1, groups=2))
fn("pixel_shuffle both", lambda x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2)[:, :, 1:], (1, 6, 8))


def _widened(x: Tensor, wide: nn.Module, near: nn.Module, groups: nn.Module) -> Tensor:
    """Two concatenations of the same fields, of other widths the second time."""
    first = torch.cat([x, -x], 1)
    y = wide(x)
    second = torch.cat([y, -y, near(y)], 1)
    return groups(second) + second[:, 12:, :1, :1] + first.mean()


fn(
    "cat again in other widths",
    _widened,
    (3, 6, 7),
    wide=lambda: nn.Conv2d(3, 6, 1),
    near=lambda: nn.Conv2d(6, 6, 3, padding=1),
    groups=lambda: nn.Conv2d(18, 6, 1, groups=3),
)
