"""Surrogates of functions that run along a dim."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rfcalc.proof.surrogates.registry import Call, at_value, map_leaves, surrogate


@surrogate("cumprod logcumsumexp cummax cummin")
def _running(call: Call, x: Tensor, dim: int, **kwargs: Any) -> Any:
    total = x.cumsum(dim)
    real = call.values()
    return total if isinstance(real, Tensor) else type(real)((total, real[1]))


@surrogate("diff")
def _diff(call: Call, x: Tensor, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Tensor:
    x = torch.cat([t for t in (prepend, x, append) if t is not None], dim)
    for _ in range(n):
        x = x.narrow(dim, 1, x.shape[dim] - 1) + x.narrow(dim, 0, x.shape[dim] - 1)
    return x


@surrogate("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell")
def _recurrent(call: Call, *args: Any, **kwargs: Any) -> Any:
    """The real layer, fed with ones so that no gate saturates."""

    def fresh(v: Any) -> Any:
        return at_value(v, torch.ones_like(v)) if isinstance(v, Tensor) and v.requires_grad else v

    return call.func(*map_leaves(args, fresh), **map_leaves(kwargs, fresh))
