"""Layers that a CPU trains faster than torch's own: dropout, and what stands around a norm.

A small network's step is bound by memory and by random numbers rather than by arithmetic: nearly half of it went into
a number for every element, of which 97 of 100 said "keep", and every pass over the activations counts.

>>> fuse(model)                                                                               # doctest: +SKIP

Names, weights and evaluation stay what they are; training computes the same but for rounding and for what is drawn.
Second derivatives are refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

M = TypeVar("M", bound=nn.Module)

_RARE = 0.2
"""Up to this probability the gaps between dropped elements are the cheaper way."""


def fuse(model: nn.Module) -> None:
    """Give every plain nn.Dropout and nn.Sequential of the model, in place, the class here that does its work."""
    for module in model.modules():
        if type(module) is nn.Dropout and not module.inplace:
            module.__class__ = SparseDropout
        elif type(module) is nn.Sequential:
            module.__class__ = FusedSequential


# --- dropout -------------------------------------------------------------------------------------------------


class SparseDropout(nn.Dropout):
    """Each element is zeroed with probability p, independently, as nn.Dropout does; the numbers drawn are others."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` with elements dropped and the others scaled by 1 / (1 - p) in training; else `x` itself."""
        if not self.training or self.p == 0:
            return x
        if self.p > _RARE:
            return super().forward(x)
        dropped: Tensor = _Drop.apply(x, self.p)
        return dropped


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        ctx.factor = 1 / (1 - p)
        kept = x * ctx.factor
        dropped = _positions(x.numel(), p, x.device)
        ctx.strides = kept.stride()
        ctx.save_for_backward(dropped)
        return _zeroed(kept, dropped)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _passed(gradients[0], ctx.factor, ctx.strides, *ctx.saved_tensors), None


def _passed(gradient: Tensor, factor: float, strides: tuple[int, ...], dropped: Tensor) -> Tensor:
    """The gradient times the factor where the value went: positions count elements as the output's lie in memory."""
    kept = torch.empty_strided(gradient.shape, strides, dtype=gradient.dtype)
    return _zeroed(torch.mul(gradient, factor, out=kept), dropped)


def _positions(count: int, p: float, device: torch.device) -> Tensor:
    """The successes, in order, of `count` trials of probability p, from their gaps: those are geometric.

    A few more are drawn than needed; that they could not reach the end has a probability below 1e-9.
    """
    expected = count * p
    draws = int(expected + 6 * math.sqrt(expected) + 20)
    # P(gap > k) = (1 - p)^k, so a gap is 1 + floor(log u / log(1 - p)), with u in (0, 1].
    gaps = torch.rand(draws, device=device).neg_().add_(1).log_().div_(math.log1p(-p))
    # A gap beyond the end is as good as one to the end; those of a tiny p would not fit a whole number.
    ends = gaps.clamp_(max=count).long().add_(1).cumsum(0)
    return ends[: int(torch.searchsorted(ends, count, right=True))] - 1


def _zeroed(x: Tensor, positions: Tensor) -> Tensor:
    """`x`, which fills its memory without gaps, with zeros at these places in it."""
    x.as_strided((x.numel(),), (1,)).index_fill_(0, positions, 0.0)
    return x


# --- around a norm -------------------------------------------------------------------------------------------


class FusedSequential(nn.Sequential):
    """nn.Sequential that trains `[ReLU] BatchNorm2d [ReLU] [Dropout]` as one function, in fewer passes over memory."""

    def forward(self, input: Any) -> Any:  # torch's name: designs may use it
        """What the modules make of `input`, one after the other."""
        modules, at = list(self), 0
        while at < len(modules):
            found = _stretch(modules, at)
            if found and _fits(input, found.norm):
                input = _Normed.apply(input, found.norm.weight, found.norm.bias, found)
                at += found.length
            else:
                input = modules[at](input)
                at += 1
        return input


def _fits(x: Any, norm: nn.BatchNorm2d) -> bool:
    """Whether the norm can take it; if not, it says so itself better than torch's function, which looks at nothing."""
    if not isinstance(x, Tensor) or x.ndim != 4 or x.numel() <= x.shape[1]:
        return False
    parts = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    return all(part is not None and part.shape == x.shape[1:2] for part in parts)


@dataclass(frozen=True)
class _Stretch:
    """Modules of a sequence that go together: a norm and what stands beside it."""

    norm: nn.BatchNorm2d
    before: bool
    """A ReLU stands in front of the norm."""
    after: bool
    """A ReLU stands behind it."""
    p: float
    """Of the dropout at the end; 0 where there is none."""
    length: int


_READERS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
"""Modules that never write into their input."""


def _stretch(modules: list[nn.Module], start: int) -> _Stretch | None:
    """The one that begins there, if any.

    A ReLU in front works in place, so it must follow a convolution here: nothing else sees that output, and the
    gradient does not need it.
    """
    at = start
    before = bool(start and _plain(modules, start - 1, nn.Conv2d) and _plain(modules, start, nn.ReLU))
    at += before
    norm = _usual_norm(modules, at)
    if norm is None:
        return None
    at += 1
    after = _plain(modules, at, nn.ReLU) is not None
    at += after
    p = _droppable(modules, at, after)
    at += p > 0
    return _Stretch(norm, before, after, p, at - start) if before or after or p else None


def _usual_norm(modules: list[nn.Module], at: int) -> nn.BatchNorm2d | None:
    """The norm that is there, with weights and with statistics that are averaged exponentially."""
    norm = _plain(modules, at, nn.BatchNorm2d)
    if norm is None or not norm.track_running_stats or norm.momentum is None:
        return None
    parts = (norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.num_batches_tracked)
    return None if any(part is None for part in parts) else norm


def _droppable(modules: list[nn.Module], at: int, after: bool) -> float:
    """The probability of the dropout that is there, if a stretch can take it in; else 0.

    A ReLU is differentiated by its output, so a dropout may write into that only where a module that leaves it alone
    follows: what comes behind the sequence might add to it in place.
    """
    dropout = _plain(modules, at, SparseDropout)
    if dropout is None or not 0 < dropout.p <= _RARE:
        return 0.0
    return dropout.p if not after or any(_plain(modules, at + 1, kind) for kind in _READERS) else 0.0


def _plain(modules: list[nn.Module], at: int, kind: type[M]) -> M | None:
    """The module that is there, if of exactly this class and in training: others may do more, and hooks want a call."""
    one = modules[at] if at < len(modules) else None
    if not isinstance(one, kind) or type(one) is not kind:
        return None
    hooks = one._forward_hooks or one._forward_pre_hooks or one._backward_hooks or one._backward_pre_hooks
    return one if one.training and not hooks and "forward" not in vars(one) else None


class _Normed(torch.autograd.Function):
    """A stretch. A dropout's factor goes into the norm's weight and bias, where it costs nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, one: _Stretch) -> Tensor:
        if one.before:
            x.relu_()
        norm, ctx.one, ctx.factor = one.norm, one, 1 / (1 - one.p)
        norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]  # as `_usual_norm` saw
        weight, bias = weight * ctx.factor, bias * ctx.factor
        settings: tuple[Any, ...] = (norm.running_mean, norm.running_var, True, norm.momentum, norm.eps)
        y, mean, inverse = torch.native_batch_norm(x, weight, bias, *settings)
        if one.after:
            y.relu_()
        dropped = _positions(y.numel(), one.p, y.device) if one.p else None
        if dropped is not None:
            _zeroed(y, dropped)
        ctx.strides = y.stride()
        ctx.save_for_backward(x, weight, mean, inverse, dropped, y if one.after else None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, weight, mean, inverse, dropped, y = ctx.saved_tensors
        gradient = gradients[0]
        if y is not None:  # zero where the output is: dropped elements too
            gradient = torch.ops.aten.threshold_backward(gradient, y, 0)
        elif dropped is not None:
            gradient = _passed(gradient, 1.0, ctx.strides, dropped)
        wanted = [ctx.needs_input_grad[0], True, True]
        found, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, None, None, mean, inverse, True, ctx.one.norm.eps, wanted
        )
        if ctx.one.before and found is not None:
            torch.ops.aten.threshold_backward.grad_input(found, x, 0, grad_input=found)
        return found, by_weight * ctx.factor, by_bias * ctx.factor, None
