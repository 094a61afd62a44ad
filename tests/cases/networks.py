"""Cases of modules and small whole networks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from programs import Step, branch, squeeze_excite, windows
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cases.registry import case, fn


class _Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.body, self.reentrant = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU()), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.body, x, use_reentrant=self.reentrant) + x


class _Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


class _Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"twice": self.conv(self.conv(x)), "rest": (x.mean(), [x])}


case("checkpoint", lambda: _Checkpointed(False))
case("checkpoint reentrant", lambda: _Checkpointed(True))
case("shared", _Shared)
fn("custom function", lambda x: _Swish.apply(x) + x.flip(2))
case("lazy", lambda: nn.Sequential(nn.LazyConv2d(3, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(2)))
case("weight_norm", lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 3)))
case("spectral_norm", lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 3, 3))))
case(
    "flatten linear", lambda: nn.Sequential(nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(70, 4), nn.Unflatten(1, (2, 2)))
)
fn("two inputs", lambda x, y: x * F.interpolate(y, x.shape[2:]), [(2, 7, 9), (2, 3, 4)])
case("separable", lambda: nn.Sequential(nn.Conv2d(4, 4, (1, 5), 1, (0, 2), groups=4), nn.Conv2d(4, 3, 1)), (4, 7, 9))
case("squeeze_excite", lambda: squeeze_excite((2, 7, 9), "sigmoid", False))
case("swin window", lambda: windows((2, 7, 9), 3, 1, "attention"))
case(
    "unet",
    lambda: branch(
        (2, 7, 9),
        (
            Step(
                "conv",
                tuple(
                    {
                        "out": 2,
                        "kernel": (3, 3),
                        "stride": (1, 1),
                        "padding": "same",
                        "dilation": (1, 1),
                        "groups": 1,
                        "mode": "zeros",
                        "bias": True,
                    }.items()
                ),
            ),
        ),
        (
            Step(
                "max_pool",
                (("kernel", (2, 2)), ("stride", (2, 2)), ("padding", (0, 0)), ("ceil", True), ("dilation", (1, 1))),
            ),
            Step("interpolate", (("mode", "nearest"), ("scale_factor", (2.0, 2.0)))),
        ),
        "cat",
        "start",
    ),
)
