"""Cases of windows: convolution, pooling, unfolding, padding, and their transposes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from cases.registry import LINE, MAP, VOLUME, aten, case, fn, weights

for _n, _shape in ((1, LINE), (2, MAP), (3, VOLUME)):
    _conv, _back = getattr(nn, f"Conv{_n}d"), getattr(nn, f"ConvTranspose{_n}d")
    case(f"conv{_n}d", lambda c=_conv: c(2, 3, 3, 2, 1, 2), _shape)
    case(f"conv{_n}d same", lambda c=_conv: c(2, 3, 4, padding="same"), _shape)
    case(f"conv{_n}d valid", lambda c=_conv: c(2, 3, 2, padding="valid"), _shape)
    case(f"conv{_n}d groups", lambda c=_conv: c(2, 4, 3, groups=2, padding=1), _shape)
    for _mode in ("reflect", "replicate", "circular"):
        case(f"conv{_n}d {_mode}", lambda c=_conv, m=_mode: c(2, 2, 3, padding=1, padding_mode=m), _shape)
    case(f"conv_transpose{_n}d", lambda c=_back: c(2, 3, 3, 2, 1, 1), _shape)
    case(f"conv_transpose{_n}d dilated", lambda c=_back: c(2, 2, 2, 3, 0, 0, 2, False, 2), _shape)
    case(f"max_pool{_n}d", lambda n=_n: getattr(nn, f"MaxPool{n}d")(2, 2, 1, 2), _shape)
    case(f"max_pool{_n}d ceil", lambda n=_n: getattr(nn, f"MaxPool{n}d")(3, 2, ceil_mode=True), _shape)
    fn(f"max_pool{_n}d indices", lambda x, n=_n: getattr(F, f"max_pool{n}d")(x, 2, return_indices=True)[0], _shape)
    case(f"avg_pool{_n}d", lambda n=_n: getattr(nn, f"AvgPool{n}d")(3, 2, 1, True, False), _shape)
    case(f"lp_pool{_n}d", lambda n=_n: getattr(nn, f"LPPool{n}d")(2, 3, 2, True), _shape)
    case(f"adaptive_avg_pool{_n}d", lambda n=_n: getattr(nn, f"AdaptiveAvgPool{n}d")(3), _shape)
    case(f"adaptive_avg_pool{_n}d one", lambda n=_n: getattr(nn, f"AdaptiveAvgPool{n}d")(1), _shape)
    case(f"adaptive_max_pool{_n}d", lambda n=_n: getattr(nn, f"AdaptiveMaxPool{n}d")(2), _shape)
    case(f"reflection_pad{_n}d", lambda n=_n: getattr(nn, f"ReflectionPad{n}d")(2), _shape)
    case(f"replication_pad{_n}d", lambda n=_n: getattr(nn, f"ReplicationPad{n}d")(2), _shape)
    case(f"circular pad{_n}d", lambda n=_n: getattr(nn, f"CircularPad{n}d")(2), _shape)
    case(f"zero pad{_n}d", lambda n=_n: getattr(nn, f"ConstantPad{n}d")((1, -1) + (0, 2) * (n - 1), 0.0), _shape)
    case(f"instance_norm{_n}d", lambda n=_n: getattr(nn, f"InstanceNorm{n}d")(2), _shape)
    case(
        f"instance_norm{_n}d running",
        lambda n=_n: getattr(nn, f"InstanceNorm{n}d")(2, track_running_stats=True),
        _shape,
    )
    case(f"batch_norm{_n}d", lambda n=_n: getattr(nn, f"BatchNorm{n}d")(2), _shape)
    case(f"batch_norm{_n}d own", lambda n=_n: getattr(nn, f"BatchNorm{n}d")(2, track_running_stats=False), _shape)
    for _mode in ("nearest", "nearest-exact", "area"):
        case(f"{_mode}{_n}d", lambda m=_mode: nn.Upsample(scale_factor=1.5, mode=m), _shape)
        fn(f"{_mode}{_n}d size", lambda x, m=_mode: F.interpolate(x, [2 * s - 1 for s in x.shape[2:]], mode=m), _shape)
fn("functional conv", lambda x, w: F.conv2d(F.pad(x, (1, 0, 0, 2)), w, stride=(2, 1)), w=weights(3, 2, 2, 3))
fn("torch conv", lambda x, w: torch.conv2d(x, w, None, 1, 1), w=weights(3, 2, 3, 3))
fn(
    "convolution",
    lambda x, w: torch.convolution(x, w, None, [2, 1], [1, 0], [1, 1], False, [0, 0], 1),
    w=weights(3, 2, 3, 3),
)
fn(
    "convolution transposed",
    lambda x, w: torch.convolution(x, w, None, [2, 1], [0, 0], [1, 1], True, [0, 0], 1),
    w=weights(2, 3, 3, 3),
)
fn("conv of the input", lambda x: F.conv2d(x, x[0, :, None, :3, :2] * 2, x[0, :, 0, 0], padding=1, groups=2))
fn("conv by the input", lambda x: F.conv1d(torch.ones(1, 2, 5), x[0, :, 2:4, :3], x[0, :, 0, 0]))
fn("conv_transpose of the input", lambda x: F.conv_transpose2d(x, x[0, :, None, :1, 2:3] * 2, x[0, :, 0, 0], groups=2))
fn("dynamic filter", lambda x: F.conv2d(x, x.mean((2, 3)).view(1, 2, 1, 1).expand(1, 2, 3, 3)))
fn(
    "fixed filter",
    lambda x, w: F.conv2d(x, w, groups=2),
    w=lambda: torch.tensor([-1.0, 0, 1]).expand(2, 1, 1, 3).clone(),
)
fn("max_unpool2d", lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), (2, 6, 8))
fn("max_unpool3d", lambda x: F.max_unpool3d(*F.max_pool3d(x, 2, return_indices=True), 2), (2, 4, 4, 6))
case("fractional_max_pool2d", lambda: nn.FractionalMaxPool2d(2, 3))
case("fractional_max_pool3d", lambda: nn.FractionalMaxPool3d(2, 2), VOLUME)
fn("im2col", lambda x: F.unfold(x, (2, 3), 2, 1, (1, 2)))
fn("col2im", lambda x: F.fold(x, (5, 7), (2, 3), stride=(1, 2)), (12, 12))
fn("unfold and fold", lambda x: F.fold(F.unfold(x, 3, padding=1, stride=2), x.shape[2:], 3, padding=1, stride=2))
fn("unfold_backward", lambda x: aten.unfold_backward(x.unfold(3, 3, 2), x.shape, 3, 3, 2))
fn("fold alone", lambda x: F.fold(x[:, :, 0], (4, 4), (2, 1), stride=2), (4, 1, 4))
fn("unfold", lambda x: x.unfold(2, 3, 2).unfold(3, 2, 1).sum((-1, -2)))
case("avg_pool whole", lambda: nn.AvgPool2d((7, 9)))
case("max_pool whole", lambda: nn.MaxPool2d((7, 9), 1))
fn("wide window", lambda x: F.avg_pool2d(x, 1, 3))
case(
    "far dilation",
    lambda: nn.Sequential(nn.Conv2d(2, 2, 3, dilation=6, padding=6), nn.Conv2d(2, 2, 3, 2, 3)),
    (2, 9, 8),
)
