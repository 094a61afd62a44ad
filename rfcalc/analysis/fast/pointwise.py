"""Level 2, element by element: torch's meta kernels take hundreds of microseconds for these, here it is a few."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rfcalc.analysis.fast.registry import (
    NUMBERS,
    Shortcut,
    attached,
    broadcast_shape,
    empty_as_torch,
    is_taken_for_channels_last,
    kept_dims,
    meta_empty,
    named,
    shortcut,
)
from rfcalc.analysis.parts import Shape
from rfcalc.analysis.rules import RULES, Call
from rfcalc.analysis.run import Run
from rfcalc.analysis.values import PLAIN, Traced, write

# What the functional forms take beside the input; those of torch itself and the methods take no `inplace`.
_OPTIONS = {
    "relu": ("inplace",), "relu6": ("inplace",), "selu": ("inplace",), "silu": ("inplace",), "mish": ("inplace",),
    "hardswish": ("inplace",), "hardsigmoid": ("inplace",), "leaky_relu": ("negative_slope", "inplace"),
    "elu": ("alpha", "inplace"), "celu": ("alpha", "inplace"), "hardtanh": ("min_val", "max_val", "inplace"),
    "softplus": ("beta", "threshold"), "gelu": ("approximate",),
}  # fmt: skip


def _options(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Arguments by name; None where torch may refuse them."""
    given = dict(zip(names, args, strict=False)) | kwargs
    if len(given) != len(args) + len(kwargs) or not given.keys() <= set(names):
        return None
    if given.get("approximate", "none") not in ("none", "tanh") or type(given.get("inplace", False)) is not bool:
        return None
    numbers = [type(a) for name, a in given.items() if name not in ("approximate", "inplace")]
    if not NUMBERS.issuperset(numbers) or given.get("min_val", -1) > given.get("max_val", 1):
        return None
    return given


_INPLACE = ("inplace",)


def _lies_oddly(x: Tensor, shape: Shape) -> bool:
    """Strides that torch's iterators look at, and keep, where they do not go over one contiguous block."""
    return 1 in shape[1:] and len(shape) > 3 and is_taken_for_channels_last(x, shape)


def _unary_of(names: tuple[str, ...], keeps_strides: bool) -> Shortcut:
    def _unary(run: Run, op: Any, /, input: Any, *args: Any, **kwargs: Any) -> Any:
        if type(input) is not Tensor or not input.is_floating_point():
            return NotImplemented
        if not kwargs and len(args) == 1 and args[0] is True and names == _INPLACE:  # as layers call it
            return _written(run, op, input)
        given = _options(names, args, kwargs) if args or kwargs else kwargs
        if given is None:
            return NotImplemented
        if given.get("inplace"):
            return _written(run, op, input)
        v = run.value(input)
        if v.field is None:
            return NotImplemented
        if keeps_strides and _lies_oddly(input, v.shape):
            return NotImplemented
        call = Call("relu", (v.shape,))
        field = run.interpret(kept_dims, call, v)
        return attached(run, op, empty_as_torch(input, v.shape), v, call, field)

    return _unary


def _inside_of(names: tuple[str, ...]) -> Shortcut:
    def _inside(run: Run, op: Any, /, input: Any, *args: Any, **kwargs: Any) -> Any:
        if type(input) is not Tensor or not input.is_floating_point():
            return NotImplemented
        if (args or kwargs) and _options(names, args, kwargs) is None:
            return NotImplemented
        return _written(run, op, input)

    return _inside


def _written(run: Run, op: Any, x: Tensor) -> Any:
    """In-place: the tensor itself."""
    v = run.value(x)
    if v.field is None or not isinstance(v, Traced):
        return NotImplemented
    before = v.field
    if before.mask is not None:
        write(v, run.interpret(kept_dims, Call("relu", (v.shape,)), v))  # type: ignore[arg-type]
    op.ins.append((v.shape, before))
    return x


for _name in (
    "relu relu6 leaky_relu elu selu celu gelu silu mish hardswish hardsigmoid hardtanh sigmoid tanh "
    "softplus softsign exp log sqrt rsqrt abs neg square sin cos erf"
).split():
    for _f in named(_name):
        _functional = _f is getattr(F, _name, None)
        _names = tuple(n for n in _OPTIONS.get(_name, ()) if _functional or n != "inplace")
        shortcut(_f)(_unary_of(_names, _name in ("relu6", "hardtanh")))
for _name in "relu_ relu6_ leaky_relu_ elu_ silu_ hardswish_ sigmoid_ tanh_ hardtanh_".split():
    shortcut(*named(_name))(_inside_of(tuple(n for n in _OPTIONS.get(_name[:-1], ()) if n != "inplace")))


@shortcut(F.dropout, F.dropout2d, F.dropout3d)
def dropout(run: Run, op: Any, /, input: Any, p: Any = 0.5, training: Any = True, inplace: Any = False) -> Any:
    """In evaluation torch hands back the tensor itself."""
    if type(input) is not Tensor or training is not False or type(inplace) is not bool:
        return NotImplemented
    v = run.value(input)
    if v.field is None or type(p) not in NUMBERS or not 0 <= p <= 1:
        return NotImplemented
    op.ins.append((v.shape, v.field))
    return input


@shortcut(F.dropout1d)
def dropout1d(run: Run, op: Any, /, input: Any, p: Any = 0.5, training: Any = True, inplace: Any = False) -> Any:
    return dropout(run, op, input, p, training, inplace) if input.dim() in (2, 3) else NotImplemented


@shortcut(torch.dropout, torch.alpha_dropout, torch.feature_alpha_dropout)
def low_dropout(run: Run, op: Any, /, input: Any, p: Any, train: Any) -> Any:
    return dropout(run, op, input, p, train)


@shortcut(F.alpha_dropout, F.feature_alpha_dropout)
def alpha_dropout(run: Run, op: Any, /, input: Any, p: Any = 0.5, training: Any = False, inplace: Any = False) -> Any:
    return dropout(run, op, input, p, training, inplace)


def _binary(rule_name: str, inplace: bool) -> Shortcut:
    rule = RULES[rule_name]

    def run_binary(run: Run, op: Any, /, input: Any, other: Any) -> Any:
        a, b = input, other
        if type(a) not in PLAIN or not a.is_floating_point():
            return NotImplemented
        va = run.value(a)
        if type(b) is Tensor:
            vb: Any = run.value(b)
            shape = broadcast_shape(va.shape, vb.shape)
            if shape is None or a.dtype is not b.dtype or not (a.is_contiguous() and b.is_contiguous()):
                return NotImplemented
            if va.shape != vb.shape and (_lies_oddly(a, va.shape) or _lies_oddly(b, vb.shape)):
                return NotImplemented
        elif type(b) in NUMBERS and not _lies_oddly(a, va.shape):
            vb, shape = b, va.shape
        else:
            return NotImplemented
        ins = [(v.shape, v.field) for v in (va, vb) if type(v) is Traced and v.field is not None]
        if not ins or (inplace and (shape != va.shape or type(va) is not Traced)):
            return NotImplemented
        call = Call(rule_name, (shape,))
        field = run.interpret(rule, call, va, vb)
        op.ins += ins
        if inplace:
            if field is not va.field:  # as at level 1: `x *= 2` leaves the dependence as it is
                write(va, field)  # type: ignore[arg-type]
            return a
        out = meta_empty(shape, a) if a.is_contiguous() else torch.empty_like(a)
        run.new(out, field)  # type: ignore[arg-type]
        return out

    return run_binary


for _name, _rule in {"add": "add", "sub": "sub", "mul": "mul", "div": "div", "truediv": "div"}.items():
    _forms = [*named(_name), getattr(Tensor, f"__{_name}__", None), getattr(Tensor, f"__r{_name}__", None)]
    # `3 / x` and `x / 3` differ only in the value
    shortcut(*[f for f in _forms if f is not None])(_binary(_rule, inplace=False))
    _forms = [getattr(Tensor, f"__i{_name}__", None), getattr(Tensor, f"{_name}_", None)]
    shortcut(*[f for f in _forms if f is not None])(_binary(_rule, inplace=True))
