"""Level 2: common torch functions answered before torch does, by the same rules.

torch computes the shape of an element-wise op on the meta device in hundreds of microseconds; here it takes a few. An
adaptor computes the output's shape itself, applies the rule of the ATen op, and hands back an empty tensor. It may
always say NotImplemented (an unusual argument, a layout whose strides matter, a constant), and level 1 takes over.
Its parameters have torch's names and order, so that Python binds a call as torch does; what does not bind, what torch
might refuse, and a rule that gives up are left to level 1 too. Nothing may be written to the run before the rule was
applied. Nothing here knows what an op does to a field: that stands in `rules/` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .field import Shape, join, mix, reduce, touched, window_length
from .refusals import RefusedError
from .rules import RULES, Call, Value
from .rules.registry import Result
from .rules.window import conv_window
from .rules.work import WORK
from .trace import PLAIN, Layer, Run, Shortcuts, Traced, execute, write

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


def _named(names: str) -> list[Any]:
    """The functions of these names in torch, torch.nn.functional and as tensor methods."""
    found = []
    for name in names.split():
        found += [f for home in (torch, F, Tensor) if (f := getattr(home, name, None)) is not None]
    return found


def _empty(x: Tensor, shape: Shape) -> Tensor | None:
    """What torch would return: contiguous for contiguous, the same strides for the same shape; else not ours to say."""
    if x.is_contiguous():
        return _meta(shape, x)
    return torch.empty_like(x) if tuple(x.shape) == shape else None


def _meta(shape: Shape, like: Tensor) -> Tensor:
    """`like.new_empty(shape)`, without the detour through torch's Python reference of it."""
    return torch.empty(shape, dtype=like.dtype, device=_META)


_INTS, _NUMBERS = frozenset((int,)), frozenset((int, float))


def _sizes(a: Any) -> Any:
    """An int or a tuple of ints, also where torch was given a list or integers of numpy; None for anything else."""
    kind = type(a)
    if kind is int or (kind is tuple and _INTS.issuperset(map(type, a))):
        return a
    if isinstance(a, np.integer):
        return int(a)
    if isinstance(a, list | tuple):
        sizes = tuple([_sizes(i) for i in a])
        return sizes if _INTS.issuperset(map(type, sizes)) else None
    return None


def _reached(run: Run, t: Tensor) -> bool:
    """Does what the input reaches also reach this weight or statistic?"""
    ident = id(t)
    if ident in run.known:
        return run.value(t).field is not None
    return ident not in run.params and ident not in run.buffers and run.value(t).field is not None


def _fits(run: Run, t: Any, shape: Shape, x: Tensor) -> bool:
    """Is a weight absent, or a plain tensor of this shape, of the dtype of x, and no function of the input?"""
    return t is None or (type(t) in PLAIN and t.dtype is x.dtype and t.shape == shape and not _reached(run, t))


def _out(run: Run, op: Any, x: Tensor, v: Value, call: Call, field: Result) -> Any:
    """Make the output tensor of a finished call, with its field."""
    out = _empty(x, call.out[0])
    if out is None:
        return NotImplemented
    op.ins.append((v.shape, v.field))
    if call.window is not None:
        op.windows.append(call.window)
    run.new(out, field)  # type: ignore[arg-type]
    return out


# ------------------------------------------------------------------------------------------------- element-wise


def _kept(call: Call, x: Value) -> Result:
    """The element-wise rule of one operand of the output's shape."""
    assert x.field is not None
    return x.field.unmasked()


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
    if not _NUMBERS.issuperset(numbers) or given.get("min_val", -1) > given.get("max_val", 1):
        return None
    return given


_INPLACE = ("inplace",)


def _unary_of(names: tuple[str, ...]) -> Shortcut:
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
        call = Call("relu", (v.shape,))
        return _out(run, op, input, v, call, run.interpret(_kept, call, v))

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
        write(v, run.interpret(_kept, Call("relu", (v.shape,)), v))  # type: ignore[arg-type]
    op.ins.append((v.shape, before))
    return x


for _name in (
    "relu relu6 leaky_relu elu selu celu gelu silu mish hardswish hardsigmoid hardtanh sigmoid tanh "
    "softplus softsign exp log sqrt rsqrt abs neg square sin cos erf"
).split():
    for _f in _named(_name):
        _functional = _f is getattr(F, _name, None)
        shortcut(_f)(_unary_of(tuple(n for n in _OPTIONS.get(_name, ()) if _functional or n != "inplace")))
for _name in "relu_ relu6_ leaky_relu_ elu_ silu_ hardswish_ sigmoid_ tanh_ hardtanh_".split():
    shortcut(*_named(_name))(_inside_of(tuple(n for n in _OPTIONS.get(_name[:-1], ()) if n != "inplace")))


@shortcut(F.dropout, F.dropout2d, F.dropout3d)
def dropout(run: Run, op: Any, /, input: Any, p: Any = 0.5, training: Any = True, inplace: Any = False) -> Any:
    """In evaluation torch hands back the tensor itself."""
    if type(input) is not Tensor or training is not False or type(inplace) is not bool:
        return NotImplemented
    v = run.value(input)
    if v.field is None or type(p) not in _NUMBERS or not 0 <= p <= 1:
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
        elif type(b) in _NUMBERS:
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
            write(va, field)  # type: ignore[arg-type]
            return a
        out = _meta(shape, a) if a.is_contiguous() else torch.empty_like(a)
        run.new(out, field)  # type: ignore[arg-type]
        return out

    return run_binary


for _name, _rule in {"add": "add", "sub": "sub", "mul": "mul", "div": "div", "truediv": "div"}.items():
    _forms = [*_named(_name), getattr(Tensor, f"__{_name}__", None), getattr(Tensor, f"__r{_name}__", None)]
    # `3 / x` and `x / 3` differ only in the value
    shortcut(*[f for f in _forms if f is not None])(_binary(_rule, inplace=False))
    _forms = [getattr(Tensor, f"__i{_name}__", None), getattr(Tensor, f"{_name}_", None)]
    shortcut(*[f for f in _forms if f is not None])(_binary(_rule, inplace=True))


# ---------------------------------------------------------------------------------------------- windows and norms


def _times(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))


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
        if input.dtype is not weight.dtype or not _lies_plainly(input, v.shape) or _reached(run, weight):
            return NotImplemented
        if not weight.is_contiguous() or not _fits(run, bias, shape[:1], input):
            return NotImplemented
        padding = padding if type(padding) is str else _sizes(padding)
        stride, dilation, groups = _sizes(stride), _sizes(dilation), _sizes(groups)
        if stride is None or padding is None or dilation is None or type(groups) is not int:
            return NotImplemented
        out_shape, macs = _conv_shape(v.shape, shape, stride, padding, dilation, groups)
        if out_shape is None:
            return NotImplemented
        call = Call(name, (out_shape,))
        field = run.interpret(rule, call, v, Value(shape), bias, stride, padding, dilation, groups)
        out = _out(run, op, input, v, call, field)
        run.count(macs)
        return out

    return conv


for _n in (1, 2, 3):
    shortcut(getattr(torch, f"conv{_n}d"))(_conv(_n))


def _lies_plainly(x: Tensor, shape: Shape) -> bool:
    """Contiguous, and with one channel not of the strides that torch takes for channels last."""
    return x.is_contiguous() and (shape[1] != 1 or x.stride(1) != 1 or shape[2:] == (1,) * (len(shape) - 2))


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
        raise RefusedError(f"expected {weight[1] * groups} input channels, found {x[1]} (input {_times(x[1:])})")
    sizes = []
    for n, k, s, (b, a), d in zip(x[2:], w.kernel, w.stride, w.padding, w.dilation, strict=True):
        sizes.append(window_length(n, k, s, b, a, d))
        if n + a + b < d * (k - 1) + 1:
            wide = _times([d * (k - 1) + 1 for k, d in zip(w.kernel, w.dilation, strict=True)])
            raise RefusedError(f"a window of {wide} does not fit the input of {_times(x[2:])} with its padding")
    out = (x[0], weight[0], *sizes)
    return out, WORK[f"conv{len(sizes)}d"](out, Value(x), Value(weight))


def _mapped(run: Run, x: Any, n: int) -> Value | None:
    """The value of a batch of maps of n dims that a pool can read; None for anything else."""
    if type(x) is not Tensor or not x.is_contiguous() or not x.is_floating_point():
        return None
    v = run.value(x)
    return v if v.field is not None and len(v.shape) == n + 2 and 0 not in v.shape else None


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
        if v is None:
            return NotImplemented
        if n > 1 and isinstance(output_size, list | tuple) and len(output_size) == n:
            output_size = [a if b is None else b for a, b in zip(v.shape[2:], output_size, strict=True)]
        sizes = _sizes(output_size)
        sizes = (sizes,) * n if type(sizes) is int else sizes
        if sizes is None or len(sizes) != n or min(sizes) < 1:
            return NotImplemented
        call = Call(name, ((*v.shape[:2], *sizes),))
        return _out(run, op, input, v, call, run.interpret(RULES[name], call, v, sizes))

    return adaptive_pool


for _n in (1, 2, 3):
    # F.max_pool2d is a choice between two functions; which of the three torch reports depends on its version.
    shortcut(getattr(torch, f"max_pool{_n}d"), getattr(F, f"max_pool{_n}d"))(_max_pool(_n))
    shortcut(getattr(F, f"avg_pool{_n}d"))(_avg_pool(_n))
    shortcut(getattr(F, f"adaptive_avg_pool{_n}d"))(_adaptive_pool(_n))


def _pooled(run: Run, op: Any, x: Tensor, v: Value, name: str, given: tuple[Any, ...], ceil: Any) -> Any:
    n = len(v.shape) - 2
    step = given[1]
    args = (_sizes(given[0]), () if step is None else _sizes(step), *map(_sizes, given[2:]))
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
        raise RefusedError(f"a window of {_times(k)} does not fit the input of {_times(v.shape[2:])} with its padding")
    call = Call(name, ((*v.shape[:2], *sizes),))
    return _out(run, op, x, v, call, run.interpret(RULES[name], call, v, *args))


@shortcut(F.batch_norm)
def batch_norm(
    run: Run, op: Any, /, input: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
    training: Any = False, momentum: Any = 0.1, eps: Any = 1e-5,
) -> Any:  # fmt: skip
    if type(input) is not Tensor or training is not False or not input.is_floating_point():
        return NotImplemented
    v = run.value(input)
    if v.field is None or len(v.shape) < 2 or running_mean is None or running_var is None or not input.is_contiguous():
        return NotImplemented
    channels = v.shape[1]
    for t in (running_mean, running_var, weight, bias):
        if t is None:
            continue
        if type(t) not in PLAIN or t.numel() != channels or t.dim() != 1:
            return NotImplemented
        if t.dtype is not input.dtype or _reached(run, t):
            return NotImplemented
    if type(momentum) not in _NUMBERS or type(eps) not in _NUMBERS or eps <= 0:
        return NotImplemented
    call = Call("batch_norm", (v.shape,))
    return _out(run, op, input, v, call, run.interpret(_kept, call, v))


@shortcut(F.layer_norm)
def layer_norm(
    run: Run, op: Any, /, input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5
) -> Any:
    if type(input) is not Tensor or not input.is_contiguous() or not input.is_floating_point():
        return NotImplemented
    v = run.value(input)
    tail = _sizes(normalized_shape)
    if v.field is None or type(tail) is not tuple or not tail or type(eps) not in _NUMBERS:
        return NotImplemented
    if v.shape[-len(tail) :] != tail:
        return NotImplemented
    if not _fits(run, weight, tail, input) or not _fits(run, bias, tail, input):
        return NotImplemented
    call = Call("layer_norm", (v.shape,))
    return _out(run, op, input, v, call, run.interpret(RULES["layer_norm"], call, v, tail))


@shortcut(F.group_norm)
def group_norm(
    run: Run, op: Any, /, input: Any, num_groups: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5
) -> Any:
    if type(input) is not Tensor or not input.is_contiguous() or not input.is_floating_point():
        return NotImplemented
    v = run.value(input)
    groups = _sizes(num_groups)
    if v.field is None or len(v.shape) < 2 or type(groups) is not int or groups < 1 or v.shape[1] % groups:
        return NotImplemented
    channels = v.shape[1:2]
    if not _fits(run, weight, channels, input) or not _fits(run, bias, channels, input) or type(eps) not in _NUMBERS:
        return NotImplemented
    call = Call("group_norm", (v.shape,))
    return _out(run, op, input, v, call, run.interpret(RULES["group_norm"], call, v, groups))


# ----------------------------------------------------------------------------------------- contractions, attention


@shortcut(F.linear)
def linear(run: Run, op: Any, /, input: Any, weight: Any, bias: Any = None) -> Any:
    if type(input) is not Tensor or type(weight) not in PLAIN:
        return NotImplemented
    if input.dtype is not weight.dtype or not input.is_contiguous() or not input.is_floating_point():
        return NotImplemented
    v = run.value(input)
    shape = tuple(weight.shape)
    if v.field is None or len(shape) != 2 or not v.shape:
        return NotImplemented
    if v.shape[-1] != shape[1]:
        raise RefusedError(f"expected {shape[1]} input features, found {v.shape[-1]} (input {_times(v.shape[1:])})")
    if _reached(run, weight) or not _fits(run, bias, shape[:1], input):
        return NotImplemented
    call = Call("linear", ((*v.shape[:-1], shape[0]),))
    wv = Value(shape)
    out = _out(run, op, input, v, call, run.interpret(RULES["linear"], call, v, wv))
    run.count(WORK["linear"](call.out[0], v, wv))
    return out


def _multiplied(run: Run, op: Any, a: Any, b: Any, batched: bool) -> Any:
    if type(a) is not Tensor or type(b) is not Tensor or a.dtype is not b.dtype or not a.is_floating_point():
        return NotImplemented
    va, vb = run.value(a), run.value(b)
    if len(va.shape) < 2 or len(vb.shape) < 2 or va.shape[-1] != vb.shape[-2]:
        return NotImplemented
    if batched and (len(va.shape) != 3 or va.shape[:-2] != vb.shape[:-2]):
        return NotImplemented
    batch = broadcast_shape(va.shape[:-2], vb.shape[:-2])
    if batch is None or (va.field is None and vb.field is None):
        return NotImplemented
    call = Call("matmul", ((*batch, va.shape[-2], vb.shape[-1]),))
    field = run.interpret(RULES["matmul"], call, va, vb)
    run.count(WORK["matmul"](call.out[0], va, vb))
    op.ins += [(v.shape, v.field) for v in (va, vb) if v.field is not None]
    out = _meta(call.out[0], a)
    run.new(out, field)  # type: ignore[arg-type]
    return out


@shortcut(*_named("matmul"), Tensor.__matmul__)
def matmul(run: Run, op: Any, /, input: Any, other: Any) -> Any:
    return _multiplied(run, op, input, other, False)


@shortcut(torch.bmm, Tensor.bmm)
def bmm(run: Run, op: Any, /, input: Any, mat2: Any) -> Any:
    return _multiplied(run, op, input, mat2, True)


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
    dim = _sizes(dim)
    if v.field is None or type(dim) is not int or not -len(v.shape) <= dim < len(v.shape):
        return NotImplemented
    call = Call("softmax", (v.shape,))
    return _out(run, op, input, v, call, run.interpret(RULES["softmax"], call, v, dim))


def _mask_fits(mask: Any, query: Tensor, shape: Shape) -> bool:
    """Is an attention mask absent, or one that broadcasts to the weights of this shape?"""
    if mask is None:
        return True
    if type(mask) not in PLAIN or mask.dtype not in (torch.bool, query.dtype) or mask.dim() < 2:
        return False
    return broadcast_shape(tuple(mask.shape), shape) == shape


@shortcut(F.scaled_dot_product_attention)
def sdpa(
    run: Run, op: Any, /, query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: Any = 0.0,
    is_causal: Any = False, scale: Any = None, enable_gqa: Any = False,
) -> Any:  # fmt: skip
    if not all(type(t) is Tensor and t.dtype is query.dtype for t in (query, key, value)) or enable_gqa is not False:
        return NotImplemented
    if query.dim() < 3 or not query.is_floating_point() or type(dropout_p) not in _NUMBERS or dropout_p != 0:
        return NotImplemented
    q, k, v = run.value(query), run.value(key), run.value(value)
    if any(x.field is None for x in (q, k, v)) or not (q.shape[:-2] == k.shape[:-2] == v.shape[:-2]):
        return NotImplemented
    if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2] or (attn_mask is not None and is_causal):
        return NotImplemented
    if type(is_causal) is not bool or (scale is not None and type(scale) not in _NUMBERS):
        return NotImplemented
    if not _mask_fits(attn_mask, query, (*q.shape[:-1], k.shape[-2])):
        return NotImplemented
    mask = run.value(attn_mask) if attn_mask is not None else None
    call = Call("scaled_dot_product_attention", ((*q.shape[:-1], v.shape[-1]),))
    field = run.interpret(RULES[call.op], call, q, k, v, mask, 0.0, is_causal)
    run.count(WORK[call.op](call.out[0], q, k, v))
    op.ins += [(x.shape, x.field) for x in (q, k, v, mask) if x is not None and x.field is not None]
    as_query = q.shape == call.out[0] and not query.is_contiguous() and query.stride(-1) == 1
    out = torch.empty_like(query) if as_query else _meta(call.out[0], query)
    run.new(out, field)  # type: ignore[arg-type]
    return out


@shortcut(F.multi_head_attention_forward)
def self_attention(
    run: Run, op: Any, /, query: Any, key: Any, value: Any, embed_dim_to_check: Any, num_heads: Any,
    in_proj_weight: Any, in_proj_bias: Any, bias_k: Any, bias_v: Any, add_zero_attn: Any, dropout_p: Any,
    out_proj_weight: Any, out_proj_bias: Any, training: Any = True, key_padding_mask: Any = None,
    need_weights: Any = True, attn_mask: Any = None, use_separate_proj_weight: Any = False,
    q_proj_weight: Any = None, k_proj_weight: Any = None, v_proj_weight: Any = None, static_k: Any = None,
    static_v: Any = None, average_attn_weights: Any = True, is_causal: Any = False,
) -> Any:  # fmt: skip
    """Plain self-attention of one sequence: the projections merge features, then every query sees every key."""
    if need_weights or add_zero_attn or training or is_causal or use_separate_proj_weight:
        return NotImplemented
    if any(u is not None for u in (bias_k, bias_v, key_padding_mask, attn_mask, static_k, static_v)):
        return NotImplemented
    if query is not key or key is not value or type(query) is not Tensor or query.dim() != 3:
        return NotImplemented
    if not query.is_contiguous() or in_proj_weight is None or out_proj_weight is None:
        return NotImplemented
    v = run.value(query)
    t, b, e = v.shape
    if v.field is None or e != embed_dim_to_check or type(num_heads) is not int or num_heads < 1 or e % num_heads:
        return NotImplemented
    weights = ((in_proj_weight, (3 * e, e)), (in_proj_bias, (3 * e,)), (out_proj_weight, (e, e)), (out_proj_bias, (e,)))
    if t == 1 or not all(_fits(run, w, shape, query) for w, shape in weights):
        return NotImplemented
    call = Call("multi_head_attention_forward", (v.shape,))
    field = run.interpret(_attended, call, v)
    run.count(4 * t * b * e * e + 2 * b * t * t * e)
    op.ins.append((v.shape, v.field))
    out = _meta(v.shape, query)
    run.new(out, field)  # type: ignore[arg-type]
    return out, None


def _attended(call: Call, x: Value) -> Result:
    assert x.field is not None
    own = reduce(x.field, (2,)).unmasked()
    return mix(join([own, reduce(own, (0,))]), touched(own, (0,)))


# -------------------------------------------------------------------------------------------------- moving, merging


# A view's arguments in order, for a call that names some; `view(dtype)` and named dims are level 1's.
_VIEW_ARGUMENTS: dict[str, Callable[..., tuple[Any, ...]]] = {
    "flatten": lambda start_dim=0, end_dim=-1: (start_dim, end_dim),
    "view": lambda size: (size,),
    "reshape": lambda shape: (shape,),
    "permute": lambda dims: (dims,),
    "transpose": lambda dim0, dim1: (dim0, dim1),
    "unsqueeze": lambda dim: (dim,),
    "squeeze": lambda dim: (dim,),
}


def _native_view(rule_name: str) -> Shortcut:
    """Views are cheap in torch: it makes the view, the rule moves the field."""
    rule, ordered = RULES[rule_name], _VIEW_ARGUMENTS[rule_name]

    def run_view(run: Run, op: Any, /, input: Any, *args: Any, **kwargs: Any) -> Any:
        x = input
        if type(x) is not Tensor:
            return NotImplemented
        v = run.value(x)
        if v.field is None or type(v) is not Traced:
            return NotImplemented
        if kwargs:
            try:
                args = ordered(*args, **kwargs)
            except TypeError:
                return NotImplemented
        args = tuple([_sizes(a) for a in args])
        if None in args:
            return NotImplemented
        out = execute(_NATIVE[rule_name], (x, *args), _NO_KEYWORDS)
        if out is x:
            op.ins.append((v.shape, v.field))
            return x
        if not out._is_view() and out.untyped_storage()._cdata != x.untyped_storage()._cdata:
            return NotImplemented  # a reshape that had to copy
        call = Call(rule_name, (tuple(out.shape),))
        field = run.interpret(rule, call, v, *args)
        op.ins.append((v.shape, v.field))
        run.view(out, v, rule, call, (v, *args), field)  # type: ignore[arg-type]
        return out

    return run_view


_NO_KEYWORDS: dict[str, Any] = {}
_NATIVE: dict[str, Any] = {
    "flatten": torch.flatten, "view": Tensor.view, "reshape": Tensor.reshape, "permute": Tensor.permute,
    "transpose": Tensor.transpose, "unsqueeze": Tensor.unsqueeze, "squeeze": Tensor.squeeze,
}  # fmt: skip
for _name in _NATIVE:
    shortcut(*_named(_name))(_native_view(_name))


@shortcut(torch.cat, torch.concat, torch.concatenate)
def cat(run: Run, op: Any, /, tensors: Any, dim: Any = 0) -> Any:
    if not isinstance(tensors, list | tuple) or not tensors or type(tensors[0]) is not Tensor:
        return NotImplemented
    first = tensors[0]
    n, dtype = first.dim(), first.dtype
    dim = _sizes(dim)
    if type(dim) is not int or not -n <= dim < n:
        return NotImplemented
    at = dim % n
    usual = tuple(first.shape)
    before, after = usual[:at], usual[at + 1 :]
    for t in tensors:
        if type(t) is not Tensor or t.dtype is not dtype or not t.is_contiguous():
            return NotImplemented
    items = run.values(tensors)
    for v in items:
        shape = v.shape
        if shape != usual:  # most are like the one before
            if len(shape) != n or shape[:at] != before or shape[at + 1 :] != after:
                return NotImplemented
            usual = shape
    ins = [(v.shape, v.field) for v in items if v.field is not None]
    if not ins:
        return NotImplemented
    call = Call("cat", ((*before, sum([v.shape[at] for v in items]), *after),))
    field = run.interpret(RULES["cat"], call, items, at)
    op.ins += ins
    out = _meta(call.out[0], first)
    run.new(out, field)  # type: ignore[arg-type]
    return out


@shortcut(*_named("mean sum"))
def merged(run: Run, op: Any, /, input: Any, dim: Any = None, keepdim: Any = False) -> Any:
    if type(input) is not Tensor or type(keepdim) is not bool or not input.is_contiguous():
        return NotImplemented
    dims = _sizes(dim)
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
    return _out(run, op, input, v, call, run.interpret(RULES["mean"], call, v, list(dims), keepdim))


# ------------------------------------------------------------------------------------------------------ whole layers


def _plain(table: dict[str, Any], *names: str) -> tuple[Any, ...] | None:
    """The tensors of these names, if all stand there: one kept elsewhere, or of a class of its own, is its owner's."""
    found = []
    for name in names:
        t = table.get(name, table)
        if t is not None and type(t) not in PLAIN:
            return None
        found.append(t)
    return tuple(found)


def _conv_arguments(d: dict[str, Any]) -> tuple[Any, ...] | None:
    own = _plain(d["_parameters"], "weight", "bias")
    if own is None or own[0] is None or d["padding_mode"] != "zeros":  # padded by an op of its own
        return None
    return *own, d["stride"], d["padding"], d["dilation"], d["groups"]


def _norm_arguments(d: dict[str, Any]) -> tuple[Any, ...] | None:
    statistics, own = _plain(d["_buffers"], "running_mean", "running_var"), _plain(d["_parameters"], "weight", "bias")
    if statistics is None or own is None or d["training"]:
        return None
    return *statistics, *own, False, 0.0, d["eps"]


def _linear_arguments(d: dict[str, Any]) -> tuple[Any, ...] | None:
    own = _plain(d["_parameters"], "weight", "bias")
    return None if own is None or own[0] is None else own


def _layer_norm_arguments(d: dict[str, Any]) -> tuple[Any, ...] | None:
    own = _plain(d["_parameters"], "weight", "bias")
    return None if own is None else (d["normalized_shape"], *own, d["eps"])


def _dropout_arguments(d: dict[str, Any]) -> tuple[Any, ...] | None:
    return None if d["training"] else (d["p"], False)


def _unary_arguments(d: dict[str, Any]) -> tuple[Any, ...]:
    return (True,) if d.get("inplace") else ()


LAYERS: dict[type[nn.Module], Layer] = {
    nn.Conv1d: Layer(torch.conv1d, _conv_arguments),
    nn.Conv2d: Layer(torch.conv2d, _conv_arguments),
    nn.Conv3d: Layer(torch.conv3d, _conv_arguments),
    nn.BatchNorm1d: Layer(F.batch_norm, _norm_arguments, frozenset((2, 3))),
    nn.BatchNorm2d: Layer(F.batch_norm, _norm_arguments, frozenset((4,))),
    nn.BatchNorm3d: Layer(F.batch_norm, _norm_arguments, frozenset((5,))),
    nn.Linear: Layer(F.linear, _linear_arguments),
    nn.LayerNorm: Layer(F.layer_norm, _layer_norm_arguments),
    nn.Dropout: Layer(F.dropout, _dropout_arguments),
    nn.ReLU: Layer(F.relu, _unary_arguments),
    nn.ReLU6: Layer(F.relu6, _unary_arguments),
    nn.SiLU: Layer(F.silu, _unary_arguments),
    nn.Hardswish: Layer(F.hardswish, _unary_arguments),
    nn.GELU: Layer(F.gelu, _unary_arguments),
}
LEVEL_2 = Shortcuts(SHORTCUTS, LAYERS)
