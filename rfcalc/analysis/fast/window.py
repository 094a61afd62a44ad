"""Level 2, windows: convolution and pooling."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rfcalc.analysis.fast.registry import (
    Shortcut,
    fits,
    is_reached,
    is_taken_for_channels_last,
    joined_by_x,
    output_of,
    shortcut,
    sizes_of,
)
from rfcalc.analysis.parts import Shape
from rfcalc.analysis.refusals import RefusedError
from rfcalc.analysis.rules import RULES, Call, Value
from rfcalc.analysis.rules.window import conv_window
from rfcalc.analysis.rules.work import WORK
from rfcalc.analysis.run import Run
from rfcalc.analysis.values import PLAIN
from rfcalc.analysis.windows import window_length


def _conv(n: int) -> Shortcut:
    name = f"conv{n}d"
    rule = RULES[name]

    def conv(
        run: Run, op: Any, /, input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: Any = 1,
    ) -> Any:  # fmt: skip
        """A batched convolution whose shapes fit; anything else is torch's to refuse."""
        if type(input) is not Tensor or type(weight) not in PLAIN:
            return NotImplemented
        v = run.value(input)
        shape = tuple(weight.shape)
        if v.field is None or len(v.shape) != n + 2 or len(shape) != n + 2:
            return NotImplemented
        if input.dtype is not weight.dtype or not input.is_contiguous() or is_reached(run, weight):
            return NotImplemented
        if (v.shape[1] == 1 or v.shape[-1] == 1) and is_taken_for_channels_last(input, v.shape):
            return NotImplemented
        if not weight.is_contiguous() or (bias is not None and not fits(run, bias, shape[:1], input)):
            return NotImplemented
        padding = padding if type(padding) is str else sizes_of(padding)
        stride, dilation, groups = sizes_of(stride), sizes_of(dilation), sizes_of(groups)
        if stride is None or padding is None or dilation is None or type(groups) is not int:
            return NotImplemented
        out_shape, macs = _conv_shape(v.shape, shape, stride, padding, dilation, groups)
        if out_shape is None:
            return NotImplemented
        call = Call(name, (out_shape,))
        field = run.interpret(rule, call, v, Value(shape), bias, stride, padding, dilation, groups)
        run.count(macs)
        return output_of(run, op, input, v, call, field)

    return conv


for _n in (1, 2, 3):
    shortcut(getattr(torch, f"conv{_n}d"))(_conv(_n))


@lru_cache(maxsize=4096)
def _conv_shape(
    x: Shape, weight: Shape, stride: Any, padding: Any, dilation: Any, groups: int
) -> tuple[Shape | None, int]:  # fmt: skip
    """The shape of the output and the work; None where torch may refuse. Raises RefusedError where x does not fit."""
    n = len(weight) - 2
    amounts = (stride, dilation) if isinstance(padding, str) else (stride, dilation, padding)
    if any(not isinstance(a, int) and len(a) not in (1, n) for a in amounts):
        return None, 0
    if isinstance(padding, str) and padding not in ("same", "valid"):
        return None, 0
    if groups < 1 or weight[0] % groups or 0 in weight:
        return None, 0
    w = conv_window(weight, stride, padding, dilation, groups)
    if min(w.stride) < 1 or min(w.dilation) < 1 or min(map(min, w.padding)) < 0:
        return None, 0
    if padding == "same" and max(w.stride) > 1:
        return None, 0
    if x[1] != weight[1] * groups:
        raise RefusedError(f"expected {weight[1] * groups} input channels, found {x[1]} (input {joined_by_x(x[1:])})")
    sizes = []
    for n, k, s, (b, a), d in zip(x[2:], w.kernel, w.stride, w.padding, w.dilation, strict=True):
        sizes.append(window_length(n, k, s, b, a, d))
        if n + a + b < d * (k - 1) + 1:
            wide = joined_by_x([d * (k - 1) + 1 for k, d in zip(w.kernel, w.dilation, strict=True)])
            raise RefusedError(f"a window of {wide} does not fit the input of {joined_by_x(x[2:])} with its padding")
    out = (x[0], weight[0], *sizes)
    return out, WORK[f"conv{len(sizes)}d"](out, Value(x), Value(weight))


def _mapped(run: Run, x: Any, n: int) -> Value | None:
    """The value of a batch of maps of n dims that a pool can read; None for anything else."""
    if type(x) is not Tensor or not x.is_contiguous() or not x.is_floating_point():
        return None
    v = run.value(x)
    if v.field is None or len(v.shape) != n + 2 or 0 in v.shape:
        return None
    return None if 1 in v.shape[1:] and is_taken_for_channels_last(x, v.shape) else v


def _max_pool(n: int) -> Shortcut:
    def max_pool(
        run: Run, op: Any, /, input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        ceil_mode: Any = False, return_indices: Any = False,
    ) -> Any:  # fmt: skip
        v = _mapped(run, input, n)
        if v is None or return_indices is not False:
            return NotImplemented
        return _pooled(run, op, input, v, f"max_pool{n}d", (kernel_size, stride, padding, dilation), ceil_mode)

    return max_pool


def _avg_pool(n: int) -> Shortcut:
    def avg_pool(
        run: Run, op: Any, /, input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0,
        ceil_mode: Any = False, count_include_pad: Any = True, divisor_override: Any = None,
    ) -> Any:  # fmt: skip
        v = _mapped(run, input, n)
        if v is None or type(count_include_pad) is not bool or divisor_override is not None:
            return NotImplemented
        return _pooled(run, op, input, v, f"avg_pool{n}d", (kernel_size, stride, padding), ceil_mode)

    return avg_pool


def _adaptive_pool(n: int) -> Shortcut:
    name = f"adaptive_avg_pool{n}d"

    def adaptive_pool(run: Run, op: Any, /, input: Any, output_size: Any) -> Any:
        v = _mapped(run, input, n)
        if v is None or (n > 1 and not isinstance(output_size, int | list | tuple)):  # torch takes the len of others
            return NotImplemented
        if n > 1 and isinstance(output_size, list | tuple) and len(output_size) == n:
            output_size = [a if b is None else b for a, b in zip(v.shape[2:], output_size, strict=True)]
        sizes = sizes_of(output_size)
        sizes = (sizes,) * n if type(sizes) is int else sizes
        if sizes is None or len(sizes) != n or min(sizes) < 1:
            return NotImplemented
        call = Call(name, ((*v.shape[:2], *sizes),))
        return output_of(run, op, input, v, call, run.interpret(RULES[name], call, v, sizes))

    return adaptive_pool


for _n in (1, 2, 3):
    # F.max_pool2d is a choice between two functions; which of the three torch reports depends on its version.
    shortcut(getattr(torch, f"max_pool{_n}d"), getattr(F, f"max_pool{_n}d"))(_max_pool(_n))
    shortcut(getattr(F, f"avg_pool{_n}d"))(_avg_pool(_n))
    shortcut(getattr(F, f"adaptive_avg_pool{_n}d"))(_adaptive_pool(_n))


def _pooled(run: Run, op: Any, x: Tensor, v: Value, name: str, given: tuple[Any, ...], ceil: Any) -> Any:
    n = len(v.shape) - 2
    step = given[1]
    args = (sizes_of(given[0]), () if step is None else sizes_of(step), *map(sizes_of, given[2:]))
    if None in args or type(ceil) is not bool:
        return NotImplemented
    k, s, p, *rest = ((a,) * n if type(a) is int else a * n if len(a) == 1 else a for a in args)
    d = rest[0] if rest else (1,) * n
    s = s or k
    if not len(k) == len(s) == len(p) == len(d) == n or min(*k, *s, *d) < 1 or min(p) < 0:
        return NotImplemented
    if any(2 * b > a for a, b in zip(k, p, strict=True)):
        return NotImplemented
    spans = zip(v.shape[2:], k, s, p, d, strict=True)
    sizes = [window_length(size, a, b, c, c, e, ceil) for size, a, b, c, e in spans]
    if min(sizes) < 1:
        raise RefusedError(
            f"a window of {joined_by_x(k)} does not fit the input of {joined_by_x(v.shape[2:])} with its padding"
        )
    call = Call(name, ((*v.shape[:2], *sizes),))
    return output_of(run, op, x, v, call, run.interpret(RULES[name], call, v, *args))
