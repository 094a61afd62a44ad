"""Level 2, whole dims: norms, softmax, means."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rfcalc.analysis.fast.registry import (
    NUMBERS,
    fits,
    is_reached,
    is_taken_for_channels_last,
    kept_dims,
    named,
    output_of,
    shortcut,
    sizes_of,
)
from rfcalc.analysis.rules import RULES, Call
from rfcalc.analysis.run import Run
from rfcalc.analysis.values import PLAIN


@shortcut(F.batch_norm)
def batch_norm(
    run: Run, op: Any, /, input: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
    training: Any = False, momentum: Any = 0.1, eps: Any = 1e-5,
) -> Any:  # fmt: skip
    if type(input) is not Tensor or training is not False or type(running_mean) not in PLAIN:
        return NotImplemented
    v, dtype = run.value(input), input.dtype
    if v.field is None or len(v.shape) < 2 or not dtype.is_floating_point or not input.is_contiguous():
        return NotImplemented
    channels, pristine = v.shape[1], run.pristine
    for t in (running_mean, running_var, weight, bias):
        if t is None:
            continue
        if type(t) not in PLAIN or t.numel() != channels or t.dtype is not dtype:
            return NotImplemented
        if id(t) not in pristine and is_reached(run, t):
            return NotImplemented
    if running_var is None or running_mean.dim() != 1 or running_var.dim() != 1:  # of a weight only the count matters
        return NotImplemented
    if type(momentum) not in NUMBERS or type(eps) not in NUMBERS or eps <= 0:
        return NotImplemented
    call = Call("batch_norm", (v.shape,))
    return output_of(run, op, input, v, call, run.interpret(kept_dims, call, v))


@shortcut(F.layer_norm)
def layer_norm(
    run: Run, op: Any, /, input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5
) -> Any:
    if type(input) is not Tensor or not input.is_contiguous() or not input.is_floating_point():
        return NotImplemented
    v = run.value(input)
    tail = sizes_of(normalized_shape)
    if v.field is None or type(tail) is not tuple or not tail or type(eps) not in NUMBERS:
        return NotImplemented
    if v.shape[-len(tail) :] != tail:
        return NotImplemented
    if not fits(run, weight, tail, input) or not fits(run, bias, tail, input):
        return NotImplemented
    call = Call("layer_norm", (v.shape,))
    return output_of(run, op, input, v, call, run.interpret(RULES["layer_norm"], call, v, tail))


@shortcut(F.group_norm)
def group_norm(
    run: Run, op: Any, /, input: Any, num_groups: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5
) -> Any:
    if type(input) is not Tensor or not input.is_contiguous() or not input.is_floating_point():
        return NotImplemented
    v = run.value(input)
    groups = sizes_of(num_groups)
    if v.field is None or len(v.shape) < 2 or type(groups) is not int or groups < 1 or v.shape[1] % groups:
        return NotImplemented
    if 0 in v.shape or (len(v.shape) > 3 and 1 in v.shape[1:] and is_taken_for_channels_last(input, v.shape)):
        return NotImplemented
    channels = v.shape[1:2]
    if not fits(run, weight, channels, input) or not fits(run, bias, channels, input) or type(eps) not in NUMBERS:
        return NotImplemented
    call = Call("group_norm", (v.shape,))
    return output_of(run, op, input, v, call, run.interpret(RULES["group_norm"], call, v, groups))


@shortcut(F.softmax, F.log_softmax)
def softmax(run: Run, op: Any, /, input: Any, dim: Any = None, _stacklevel: Any = 3, dtype: Any = None) -> Any:
    if type(_stacklevel) is not int:
        return NotImplemented
    return low_softmax(run, op, input, dim, dtype)


@shortcut(torch.softmax, torch.log_softmax, Tensor.softmax, Tensor.log_softmax)
def low_softmax(run: Run, op: Any, /, input: Any, dim: Any, dtype: Any = None) -> Any:
    if type(input) is not Tensor or dtype is not None or not input.is_contiguous() or not input.is_floating_point():
        return NotImplemented
    v = run.value(input)
    dim = sizes_of(dim)
    if v.field is None or type(dim) is not int or not -len(v.shape) <= dim < len(v.shape):
        return NotImplemented
    call = Call("softmax", (v.shape,))
    return output_of(run, op, input, v, call, run.interpret(RULES["softmax"], call, v, dim))


@shortcut(*named("mean sum"))
def merged(run: Run, op: Any, /, input: Any, dim: Any = None, keepdim: Any = False) -> Any:
    if type(input) is not Tensor or type(keepdim) is not bool or not input.is_contiguous():
        return NotImplemented
    dims = sizes_of(dim)
    if dims is None or not input.is_floating_point():
        return NotImplemented
    v = run.value(input)
    n = len(v.shape)
    dims = (dims,) if type(dims) is int else dims
    if v.field is None or not dims or any(not -n <= d < n for d in dims):
        return NotImplemented
    gone = {d % n for d in dims}
    if len(gone) != len(dims):
        return NotImplemented
    shape = tuple(1 if d in gone else s for d, s in enumerate(v.shape) if keepdim or d not in gone)
    call = Call("mean", (shape,))
    return output_of(run, op, input, v, call, run.interpret(RULES["mean"], call, v, list(dims), keepdim))
