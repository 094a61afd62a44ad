"""What level 2 answers itself: one table of torch functions, and how an adaptor makes its output.

An adaptor computes the output's shape, applies the rule of the ATen op, and hands back an empty tensor. It may always
say NotImplemented (an unusual argument, a layout whose strides matter, a constant), and level 1 takes over. Nothing
here knows what an op does to a field: that stands in `rules/` alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rfcalc.analysis.layout import memory_format
from rfcalc.analysis.parts import Shape
from rfcalc.analysis.rules import Call, Value
from rfcalc.analysis.rules.registry import Result
from rfcalc.analysis.run import Run
from rfcalc.analysis.values import PLAIN

Shortcut = Callable[..., Any]
_META = torch.device("meta")
SHORTCUTS: dict[Any, Shortcut] = {}


def shortcut(*functions: Any) -> Callable[[Shortcut], Shortcut]:
    """Register an adaptor for torch functions; a name that this torch does not have is None and is skipped."""

    def register(fn: Shortcut) -> Shortcut:
        for f in functions:
            if f is not None:
                SHORTCUTS[f] = fn
        return fn

    return register


def named(names: str) -> list[Any]:
    """The functions of these names in torch, torch.nn.functional and as tensor methods."""
    found = []
    for name in names.split():
        found += [f for home in (torch, F, Tensor) if (f := getattr(home, name, None)) is not None]
    return found


def empty_as_torch(x: Tensor, shape: Shape) -> Tensor:
    """What torch returns for an element-wise function of one operand: its strides."""
    return meta_empty(shape, x) if x.is_contiguous() else torch.empty_like(x)


def meta_empty(shape: Shape, like: Tensor) -> Tensor:
    """`like.new_empty(shape)`, without the detour through torch's Python reference of it."""
    return torch.empty(shape, dtype=like.dtype, device=_META)


INTS, NUMBERS = frozenset((int,)), frozenset((int, float))


def sizes_of(a: Any) -> Any:
    """An int or a tuple of ints, also where torch was given a list or integers of numpy; None for anything else."""
    kind = type(a)
    if kind is int:
        return a
    if kind is tuple:
        for i in a:
            if type(i) is not int:
                break
        else:
            return a
    if isinstance(a, np.integer):
        return int(a)
    if isinstance(a, list | tuple):
        sizes = tuple([sizes_of(i) for i in a])
        return sizes if INTS.issuperset(map(type, sizes)) else None
    return None


def is_reached(run: Run, t: Tensor) -> bool:
    """Does what the input reaches also reach this weight or statistic?"""
    return id(t) not in run.pristine and run.value(t).field is not None


def fits(run: Run, t: Any, shape: Shape, x: Tensor) -> bool:
    """Is a weight absent, or a plain tensor of this shape, of the dtype of x, and no function of the input?"""
    return t is None or (type(t) in PLAIN and t.dtype is x.dtype and t.shape == shape and not is_reached(run, t))


def output_of(run: Run, op: Any, x: Tensor, v: Value, call: Call, field: Result) -> Tensor:
    """Make the contiguous output tensor of a finished call, with its field."""
    return attached(run, op, torch.empty(call.out[0], dtype=x.dtype, device=_META), v, call, field)


def attached(run: Run, op: Any, out: Tensor, v: Value, call: Call, field: Result) -> Tensor:
    """The output tensor of a finished call, with its field written on it."""
    op.ins.append((v.shape, v.field))
    if call.window is not None:
        op.windows.append(call.window)
    run.new(out, field)  # type: ignore[arg-type]
    return out


def kept_dims(call: Call, x: Value) -> Result:
    """The element-wise rule of one operand of the output's shape."""
    assert x.field is not None
    return x.field.unmasked()


def broadcast_shape(a: Shape, b: Shape) -> Shape | None:
    """Torch's broadcasting; None where it would refuse.

    >>> broadcast_shape((1, 8, 1, 1), (4, 4)), broadcast_shape((3,), (4,))
    ((1, 8, 4, 4), None)
    """
    if a == b:
        return a
    n = max(len(a), len(b))
    out = []
    for x, y in zip((1,) * (n - len(a)) + a, (1,) * (n - len(b)) + b, strict=True):
        if x != y and x != 1 and y != 1:
            return None
        out.append(y if x == 1 else x)
    return tuple(out)


def joined_by_x(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))


def is_taken_for_channels_last(x: Tensor, shape: Shape) -> bool:
    """Of a contiguous map with a 1 among its sizes: has it strides that torch takes for channels last?"""
    if len(shape) == 3:  # is given a dim more where it matters
        return x.stride(1) == 1 and shape[2] != 1
    return memory_format(x) is not torch.contiguous_format
