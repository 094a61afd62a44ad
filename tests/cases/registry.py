"""How a case is noted down: a name, how to make the network, its input shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from programs import Apply
from torch import Tensor, nn

Case = tuple[str, Callable[[], nn.Module], Any]
CASES: list[Case] = []
LINE, MAP, VOLUME, TOKENS = (2, 9), (2, 7, 9), (2, 4, 5, 6), (5, 4)


def case(name: str, make: Callable[[], nn.Module], shape: Any = MAP) -> None:
    CASES.append((name, make, shape))


def fn(name: str, function: Callable[..., Any], shape: Any = MAP, **held: Callable[[], Any]) -> None:
    """A case of a plain function; `held` makes its modules and buffers anew for every build."""
    CASES.append((name, lambda: Apply(function, **{k: make() for k, make in held.items()}), shape))


def weights(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.full(shape, 0.5)


def first_of(y: Any) -> Tensor:
    y = y if isinstance(y, Tensor) else y[0]
    return y if y.is_floating_point() else y.float()


def written(x: Tensor, change: Callable[[Tensor], Any]) -> Tensor:
    y = x * 1
    view = y[:, :, 1:3]
    change(y)
    return torch.cat([y, view], 2)


aten, vision_ops = torch.ops.aten, torch.ops.torchvision
