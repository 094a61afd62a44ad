"""Surrogates of losses: the sum of prediction and target."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from rfcalc.proof.surrogates.registry import Call, bent, summed, surrogate, tensors_in


@surrogate(
    "mse_loss l1_loss smooth_l1_loss huber_loss soft_margin_loss binary_cross_entropy binary_cross_entropy_with_logits"
)
def _loss(call: Call, *args: Any, reduction: str = "mean", **kwargs: Any) -> Tensor:
    every = summed(call.operands(), np.broadcast_shapes(*(t.shape for t in tensors_in(args, kwargs))))
    every = bent(every) if call.curved else every  # each element has its own curve
    return every if reduction == "none" else every.mean()


@surrogate("multi_margin_loss multilabel_margin_loss")
def _margin_loss(call: Call, x: Tensor, target: Tensor, *args: Any, reduction: str = "mean", **kwargs: Any) -> Tensor:
    return x.mean(-1) if reduction == "none" else x.mean()


@surrogate("multilabel_margin_loss_forward")
def _margin_loss_kernel(call: Call, x: Tensor, target: Tensor, reduction: int) -> Any:
    return (x.mean(-1) if reduction == 0 else x.mean()), *call.values()[1:]


@surrogate("ctc_loss _ctc_loss")
def _ctc_loss(call: Call, scores: Tensor, *args: Any, **kwargs: Any) -> Any:
    """All paths through the time steps of a sample."""
    real = call.values()
    each = scores.mean((0, 2)) if scores.ndim == 3 else scores.mean()
    if call.base == "_ctc_loss":
        return each, *real[1:]
    return each if each.shape == real.shape else each.mean()
