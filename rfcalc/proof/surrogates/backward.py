"""Differentiating in a forward: gradients of stand-ins that curve, so that their gradients depend on what they read.

A stand-in is a sum of positive numbers, whose derivative is constant. Where the forward differentiates, stand-ins of
functions that are no straight lines are bent upwards: their second derivatives are positive, and cannot cancel either.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rfcalc.proof.surrogates.registry import CURVES, Call, surrogate

CURVES.update(
    "relu relu6 leaky_relu elu selu celu gelu silu mish hardtanh hardswish hardsigmoid sigmoid tanh softplus softsign "
    "logsigmoid log_sigmoid threshold clamp clamp_min clamp_max clip rrelu prelu tanhshrink exp exp2 expm1 log log2 "
    "log10 log1p sqrt rsqrt square reciprocal sin cos tan asin acos atan sinh cosh asinh acosh atanh sinc erf erfc "
    "logit pow float_power xlogy maximum minimum atan2 hypot logaddexp abs absolute glu "
    "softmax log_softmax layer_norm group_norm instance_norm rms_norm normalize norm vector_norm std var logsumexp "
    "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
    "amax amin prod".split()
)


_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def differentiates(func: Any) -> bool:
    """Does this call of the forward's take a derivative?"""
    return func in (torch.autograd.grad, torch.autograd.backward, Tensor.backward, torch._VF._make_dual)


@surrogate("grad")
def _grad(call: Call, outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
    """As it is, but differentiable itself, and leaving the graph for what comes after."""
    options = {**kwargs, "retain_graph": True, "create_graph": True}
    if isinstance(given := options.get("grad_outputs"), tuple | list):
        options["grad_outputs"] = [_lifted(g) for g in given]
    return torch.autograd.grad(outputs, inputs, *args, **options)


def _lifted(g: Any) -> Any:
    """What forward mode made of two backwards differentiates by: a zero, and all is linear in it."""
    zero = isinstance(g, Tensor) and g.requires_grad and not _is_wrapped(g) and not g.detach().any()
    return g + 1 if zero else g


@surrogate("backward")
def _backward(call: Call, outputs: Any, gradient: Any = None, *args: Any, **kwargs: Any) -> None:
    gradient = kwargs.get("gradient", kwargs.get("grad_tensors", gradient))
    torch.autograd.backward(outputs, gradient, retain_graph=True, create_graph=True)
