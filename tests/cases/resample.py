"""Cases of resampling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from cases.registry import LINE, VOLUME, case, fn

for _align in (False, True):
    case(f"linear {_align}", lambda a=_align: nn.Upsample(scale_factor=2, mode="linear", align_corners=a), LINE)
    case(f"bilinear {_align}", lambda a=_align: nn.Upsample((12, 5), mode="bilinear", align_corners=a))
    case(f"bicubic {_align}", lambda a=_align: nn.Upsample((12, 5), mode="bicubic", align_corners=a))
    case(
        f"trilinear {_align}", lambda a=_align: nn.Upsample(scale_factor=1.6, mode="trilinear", align_corners=a), VOLUME
    )
    for _mode in ("bilinear", "bicubic"):
        fn(
            f"{_mode} antialias {_align}",
            lambda x, m=_mode, a=_align: F.interpolate(x, (3, 14), mode=m, antialias=True, align_corners=a),
            (2, 10, 9),
        )
fn("bilinear scale", lambda x: F.interpolate(x, scale_factor=(1.7, 0.6), mode="bilinear"))
fn(
    "bilinear recompute",
    lambda x: F.interpolate(x, scale_factor=(1.7, 0.6), mode="bilinear", recompute_scale_factor=True),
)
for _mode in ("nearest", "nearest-exact"):
    fn(
        f"{_mode} scale that torch ignores",
        lambda x, m=_mode: F.interpolate(x, scale_factor=(1.1, 2.1), mode=m)[..., 1:],
        (1, 7, 2),
    )
fn("circular pad that crops", lambda x: F.pad(x, (-2, 3, 1, -4), "circular"))
fn("reflect pad that crops", lambda x: F.pad(x, (-2, 3, 1, -4), "reflect"))
fn("replicate pad that crops", lambda x: F.pad(x, (-2, 3, 1, -4), "replicate"))
case("pixel_shuffle", lambda: nn.PixelShuffle(2), (8, 3, 4))
case("pixel_unshuffle", lambda: nn.PixelUnshuffle(2), (1, 6, 8))
case("channel_shuffle", lambda: nn.ChannelShuffle(2), (4, 3, 5))
fn("native_channel_shuffle", lambda x: torch.native_channel_shuffle(x, 2), (4, 3, 5))
fn("grid_sample", lambda x, grid: F.grid_sample(x, grid, align_corners=True), grid=lambda: torch.rand(1, 3, 4, 2) - 0.5)
fn(
    "grid_sample 3d",
    lambda x, grid: F.grid_sample(x, grid, align_corners=True),
    VOLUME,
    grid=lambda: torch.rand(1, 2, 2, 3, 3),
)
fn(
    "spatial transformer",
    lambda x, head: F.grid_sample(
        x, F.affine_grid(head(x.mean((2, 3))).view(1, 2, 3), x.shape, False), align_corners=False
    ),
    head=lambda: nn.Linear(2, 6),
)
