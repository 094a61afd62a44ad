"""Multiply-accumulates of an op: half of what torch's `FlopCounterMode` counts, which the tests hold.

What no input reaches is no work of the forward: it has no row, and could be computed once and kept.
Not read off torch's own table: importing it imports triton, a tenth of a command's time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rfcalc.analysis.parts import Shape
from rfcalc.analysis.rules.registry import Value
from rfcalc.analysis.rules.scan import is_packed

Work = Callable[..., int]


def _conv(out: Shape, x: Value, weight: Value, *rest: Any, transposed: bool = False, **kw: Any) -> int:
    """Every weight once per position and sample: of the output, or of the input that a transposed one spreads."""
    shape = x.shape if transposed else out
    n = len(weight.shape) - 2
    samples = shape[0] if len(shape) == n + 2 else 1
    return _product((samples, *shape[-n:]), _product(weight.shape, 1))


def _conv_transpose(out: Shape, x: Value, weight: Value, *rest: Any, **kw: Any) -> int:
    return _conv(out, x, weight, transposed=True)


def _convolution(
    out: Shape, x: Value, weight: Value, bias: Any, s: Any, p: Any, d: Any, transposed: bool, *rest: Any
) -> int:
    return _conv(out, x, weight, transposed=transposed)


def _product(out: Shape, inner: int) -> int:
    n = inner
    for size in out:
        n *= size
    return n


def _linear(out: Shape, x: Value, weight: Value, *rest: Any) -> int:
    return _product(out, x.shape[-1])


def _matmul(out: Shape, a: Value, b: Value, *rest: Any, **kw: Any) -> int:
    """torch counts no work for a product of two vectors or of a matrix and a vector (they are not mm or bmm)."""
    if len(b.shape) == 1 and len(a.shape) <= 2:
        return 0
    return _product(out, a.shape[-1])


def _add_product(out: Shape, base: Value, a: Value, b: Value, *rest: Any, **kw: Any) -> int:
    return _product(out, a.shape[-1])


def _attention(out: Shape, q: Value, k: Value, v: Value, *rest: Any, **kw: Any) -> int:
    """q k^T and p v."""
    t, s = q.shape[-2], k.shape[-2]
    heads = 1
    for n in out[:-2]:
        heads *= n
    return heads * t * s * (q.shape[-1] + v.shape[-1])


def _recurrent(out: Shape, x: Value, state: Any, params: Sequence[Any], *args: Any) -> int:
    """Every matrix of the layer is applied once per time step; of a packed sequence the steps lie one after another."""
    if len(args) < 6:
        return 0
    if is_packed(args):
        params = args[0]
    steps = _product(x.shape[:-1], 1)
    return sum(_product(p.shape, steps) for p in params if isinstance(p, Value) and len(p.shape) == 2)


def _deformed(out: Shape, x: Value, weight: Value, *rest: Any, **kw: Any) -> int:
    """As a convolution: what the taps read is moved, not how many there are."""
    return _conv(out, x, weight)


def _bilinear(out: Shape, a: Value, b: Value, weight: Value, *rest: Any) -> int:
    """Every weight once per position."""
    return _product(out[:-1], _product(weight.shape, 1))


WORK: dict[str, Work] = {
    **{f"conv{n}d": _conv for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _conv_transpose for n in (1, 2, 3)},
    "convolution": _convolution,
    "_convolution": _convolution,
    "torchvision::deform_conv2d": _deformed,
    "bilinear": _bilinear,
    "linear": _linear,
    "matmul": _matmul,
    "mm": _matmul,
    "bmm": _matmul,
    "addmm": _add_product,
    "baddbmm": _add_product,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
}
