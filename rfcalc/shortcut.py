"""Level 2: common torch functions answered before torch does, by the same rules.

torch computes the shape of an element-wise op on the meta device in hundreds of microseconds; here it takes a few. An
adaptor computes the output's shape itself, applies the rule of the ATen op, and hands back an empty tensor. It may
always say NotImplemented (an unusual argument, a layout whose strides matter, a constant), and level 1 takes over.
Nothing here knows what an op does to a field: that stands in `rules/` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .field import Field, Shape, join, mix, reduce, window_length
from .rules import RULES, Call, Value
from .rules.window import conv_window
from .rules.work import WORK
from .trace import PLAIN, Layer, Run, Shortcuts, Traced, write

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


def _out(run: Run, op: Any, x: Tensor, v: Value, call: Call, field: Field | None) -> Any:
    """Make the output tensor of a finished call, with its field."""
    out = _empty(x, call.out[0])
    if out is None:
        return NotImplemented
    op.ins.append((v.shape, v.field))
    if call.window is not None:
        op.windows.append(call.window)
    run.new(out, field)
    return out


# ------------------------------------------------------------------------------------------------- element-wise


def _unary(run: Run, op: Any, x: Any, *args: Any, inplace: bool = False, **kwargs: Any) -> Any:
    if type(x) is not Tensor or not x.is_floating_point():
        return NotImplemented
    v = run.value(x)
    if v.field is None:
        return NotImplemented
    if inplace or (args and args[-1] is True):
        return _inside(run, op, x)
    return _out(run, op, x, v, Call("relu", (v.shape,)), v.field.unmasked())


def _inside(run: Run, op: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """In-place: the tensor itself."""
    if type(x) is not Tensor:
        return NotImplemented
    v = run.value(x)
    if v.field is None or not isinstance(v, Traced):
        return NotImplemented
    op.ins.append((v.shape, v.field))
    if v.field.mask is not None:
        write(v, v.field.unmasked())
    return x


shortcut(*_named(
    "relu relu6 leaky_relu elu selu celu gelu silu mish hardswish hardsigmoid hardtanh sigmoid tanh "
    "softplus softsign exp log sqrt rsqrt abs neg square sin cos erf"
))(_unary)  # fmt: skip
shortcut(*_named("relu_ relu6_ leaky_relu_ elu_ silu_ hardswish_ sigmoid_ tanh_ hardtanh_"))(_inside)


@shortcut(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.feature_alpha_dropout, F.alpha_dropout, torch.dropout)
def dropout(run: Run, op: Any, x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """In evaluation torch hands back the tensor itself."""
    if type(x) is not Tensor or training:
        return NotImplemented
    v = run.value(x)
    if v.field is None:
        return NotImplemented
    op.ins.append((v.shape, v.field))
    return x


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

    def run_binary(run: Run, op: Any, a: Any, b: Any, **kwargs: Any) -> Any:
        if kwargs or not isinstance(a, Tensor):
            return NotImplemented
        va = run.value(a)
        if type(b) is Tensor:
            vb: Any = run.value(b)
            shape = broadcast_shape(va.shape, vb.shape)
            if shape is None or a.dtype is not b.dtype or not (a.is_contiguous() and b.is_contiguous()):
                return NotImplemented
        elif type(b) in (int, float) and a.is_floating_point():
            vb, shape = b, va.shape
        else:
            return NotImplemented
        ins = [(v.shape, v.field) for v in (va, vb) if type(v) is Traced and v.field is not None]
        if not ins or (inplace and (shape != va.shape or type(va) is not Traced)):
            return NotImplemented
        call = Call(rule_name, (shape,))
        field = rule(call, va, vb)
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


@shortcut(torch.conv1d, torch.conv2d, torch.conv3d)
def conv(
    run: Run, op: Any, x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Any:  # fmt: skip
    """A batched convolution whose shapes fit; anything else is torch's to refuse."""
    if type(x) is not Tensor or type(weight) not in PLAIN:
        return NotImplemented
    v = run.value(x)
    shape = weight.shape
    if v.field is None or len(v.shape) != len(shape) or x.dtype is not weight.dtype or not _lies_plainly(x, v.shape):
        return NotImplemented
    if not weight.is_contiguous():
        return NotImplemented
    if id(weight) not in run.params and run.value(weight).field is not None:
        return NotImplemented
    if bias is not None and (bias.dtype is not x.dtype or bias.shape != shape[:1]):
        return NotImplemented
    stride, padding, dilation = _hashable(stride), _hashable(padding), _hashable(dilation)
    shape = tuple(shape)
    name, out_shape, macs = _conv_shape(v.shape, shape, stride, padding, dilation, groups)
    if out_shape is None:
        return NotImplemented
    call = Call(name, (out_shape,))
    field = RULES[name](call, v, Value(shape), bias, stride, padding, dilation, groups)
    run.count(macs)
    return _out(run, op, x, v, call, field)  # type: ignore[arg-type]


def _lies_plainly(x: Tensor, shape: Shape) -> bool:
    """Contiguous, and with one channel not of the strides that torch takes for channels last."""
    return x.is_contiguous() and (shape[1] != 1 or x.stride(1) != 1 or shape[2:] == (1,) * (len(shape) - 2))


def _hashable(sizes: Any) -> Any:
    return tuple(sizes) if type(sizes) is list else sizes


@lru_cache(maxsize=4096)
def _conv_shape(
    x: Shape, weight: Shape, stride: Any, padding: Any, dilation: Any, groups: int
) -> tuple[str, Shape | None, int]:  # fmt: skip
    """The op's name, the shape of its output, its work. Raises RuntimeError where x does not fit."""
    name = f"conv{len(weight) - 2}d"
    if x[1] != weight[1] * groups:
        raise RuntimeError(f"expected {weight[1] * groups} input channels, found {x[1]} (input {_times(x[1:])})")
    if weight[0] % groups:
        return name, None, 0
    w = conv_window(weight, stride, padding, dilation, groups)
    sizes = []
    for n, k, s, (b, a), d in zip(x[2:], w.kernel, w.stride, w.padding, w.dilation, strict=True):
        sizes.append(window_length(n, k, s, b, a, d))
        if n + a + b < d * (k - 1) + 1:
            wide = _times([d * (k - 1) + 1 for k, d in zip(w.kernel, w.dilation, strict=True)])
            raise RuntimeError(f"a window of {wide} does not fit the input of {_times(x[2:])} with its padding")
    out = (x[0], weight[0], *sizes)
    return name, out, WORK[name](out, Value(x), Value(weight))


# F.max_pool2d is a choice between two functions; which of the three torch reports depends on its version.
@shortcut(torch.max_pool1d, torch.max_pool2d, torch.max_pool3d, F.max_pool1d, F.max_pool2d, F.max_pool3d)
def max_pool(
    run: Run, op: Any, x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Any:  # fmt: skip
    if type(x) is not Tensor or return_indices or not x.is_contiguous():
        return NotImplemented
    v = run.value(x)
    n = len(v.shape) - 2
    if v.field is None or n not in (1, 2, 3):
        return NotImplemented
    return _pooled(run, op, x, v, f"max_pool{n}d", (kernel_size, stride or (), padding, dilation), n, ceil_mode)


@shortcut(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
def avg_pool(
    run: Run,
    op: Any,
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    *rest: Any,
) -> Any:
    if type(x) is not Tensor or not x.is_contiguous():
        return NotImplemented
    v = run.value(x)
    n = len(v.shape) - 2
    if v.field is None or n not in (1, 2, 3):
        return NotImplemented
    return _pooled(run, op, x, v, f"avg_pool{n}d", (kernel_size, stride or (), padding), n, ceil_mode)


def _pooled(
    run: Run, op: Any, x: Tensor, v: Value, name: str, args: tuple[Any, ...], n: int, ceil: bool
) -> Any:  # fmt: skip
    def each(a: Any) -> tuple[int, ...]:
        sizes = (a,) if isinstance(a, int) else tuple(a)
        return sizes * n if len(sizes) == 1 else sizes

    k, p, d = each(args[0]), each(args[2]), each(args[3]) if len(args) > 3 else (1,) * n
    s = each(args[1]) if args[1] != () else k
    if not all(len(a) == n for a in (k, s, p, d)) or any(2 * b > a for a, b in zip(k, p, strict=True)):
        return NotImplemented
    spans = zip(v.shape[2:], k, s, p, d, strict=True)
    sizes = [window_length(size, a, b, c, c, e, ceil) for size, a, b, c, e in spans]
    if min(sizes) < 1:
        raise RuntimeError(f"a window of {_times(k)} does not fit the input of {_times(v.shape[2:])} with its padding")
    call = Call(name, ((*v.shape[:2], *sizes),))
    return _out(run, op, x, v, call, RULES[name](call, v, *args))  # type: ignore[arg-type]


@shortcut(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
def adaptive_pool(run: Run, op: Any, x: Any, output_size: Any) -> Any:
    if type(x) is not Tensor or not x.is_contiguous():
        return NotImplemented
    v = run.value(x)
    n = len(v.shape) - 2
    if v.field is None or n not in (1, 2, 3):
        return NotImplemented
    sizes = (output_size,) * n if isinstance(output_size, int) else tuple(output_size)
    if len(sizes) != n:
        return NotImplemented
    sizes = tuple(a if b is None else b for a, b in zip(v.shape[2:], sizes, strict=True))
    call = Call(f"adaptive_avg_pool{n}d", ((*v.shape[:2], *sizes),))
    return _out(run, op, x, v, call, RULES[call.op](call, v, sizes))  # type: ignore[arg-type]


@shortcut(F.batch_norm)
def batch_norm(
    run: Run, op: Any, x: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Any:  # fmt: skip
    if type(x) is not Tensor or training:
        return NotImplemented
    v = run.value(x)
    if v.field is None or len(v.shape) < 2 or running_mean is None or not x.is_contiguous():
        return NotImplemented
    channels = v.shape[1]
    for t in (running_mean, running_var, weight, bias):
        if t is not None and t.numel() != channels:
            return NotImplemented  # torch's to refuse
    return _out(run, op, x, v, Call("batch_norm", (v.shape,)), v.field.unmasked())


@shortcut(F.layer_norm)
def layer_norm(
    run: Run, op: Any, x: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    if type(x) is not Tensor or not x.is_contiguous():
        return NotImplemented
    v = run.value(x)
    tail = tuple(normalized_shape)
    if v.field is None or v.shape[len(v.shape) - len(tail) :] != tail:
        return NotImplemented
    call = Call("layer_norm", (v.shape,))
    return _out(run, op, x, v, call, RULES["layer_norm"](call, v, tail))  # type: ignore[arg-type]


@shortcut(F.group_norm)
def group_norm(
    run: Run, op: Any, x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    if type(x) is not Tensor or not x.is_contiguous():
        return NotImplemented
    v = run.value(x)
    if (
        v.field is None
        or len(v.shape) < 2
        or v.shape[1] % num_groups
        or (weight is not None and len(weight) != v.shape[1])
    ):
        return NotImplemented
    call = Call("group_norm", (v.shape,))
    return _out(run, op, x, v, call, RULES["group_norm"](call, v, num_groups))  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------- contractions, attention


@shortcut(F.linear)
def linear(run: Run, op: Any, x: Any, weight: Any, bias: Any = None) -> Any:
    if type(x) is not Tensor or type(weight) not in PLAIN:
        return NotImplemented
    if x.dtype is not weight.dtype or not x.is_contiguous():
        return NotImplemented
    v = run.value(x)
    if v.field is None or len(weight.shape) != 2 or not v.shape:
        return NotImplemented
    if v.shape[-1] != weight.shape[1]:
        raise RuntimeError(
            f"expected {weight.shape[1]} input features, found {v.shape[-1]} (input {_times(v.shape[1:])})"
        )
    if id(weight) not in run.params and run.value(weight).field is not None:
        return NotImplemented
    if bias is not None and (bias.dtype is not x.dtype or bias.shape != weight.shape[:1]):
        return NotImplemented
    call = Call("linear", ((*v.shape[:-1], weight.shape[0]),))
    wv = Value(tuple(weight.shape))
    run.count(WORK["linear"](call.out[0], v, wv))
    return _out(run, op, x, v, call, RULES["linear"](call, v, wv))  # type: ignore[arg-type]


@shortcut(*_named("matmul"), Tensor.__matmul__, torch.bmm, Tensor.bmm)
def matmul(run: Run, op: Any, a: Any, b: Any) -> Any:
    if type(a) is not Tensor or type(b) is not Tensor or a.dtype is not b.dtype:
        return NotImplemented
    va, vb = run.value(a), run.value(b)
    if len(va.shape) < 2 or len(vb.shape) < 2 or va.shape[-1] != vb.shape[-2]:
        return NotImplemented
    batch = broadcast_shape(va.shape[:-2], vb.shape[:-2])
    if batch is None or (va.field is None and vb.field is None):
        return NotImplemented
    call = Call("matmul", ((*batch, va.shape[-2], vb.shape[-1]),))
    field = RULES["matmul"](call, va, vb)
    run.count(WORK["matmul"](call.out[0], va, vb))
    op.ins += [(v.shape, v.field) for v in (va, vb) if v.field is not None]
    out = _meta(call.out[0], a)
    run.new(out, field)  # type: ignore[arg-type]
    return out


@shortcut(*_named("softmax log_softmax"))
def softmax(run: Run, op: Any, x: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    if type(x) is not Tensor or dim is None or dtype is not None or not x.is_contiguous():
        return NotImplemented
    v = run.value(x)
    if v.field is None or not -len(v.shape) <= dim < len(v.shape):
        return NotImplemented
    return _out(run, op, x, v, Call("softmax", (v.shape,)), _softmaxed(v, dim))


def _softmaxed(v: Value, dim: int) -> Field | None:
    return RULES["softmax"](Call("softmax", (v.shape,)), v, dim)  # type: ignore[return-value]


@shortcut(F.scaled_dot_product_attention)
def sdpa(
    run: Run, op: Any, query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: Any = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    if not all(type(t) is Tensor for t in (query, key, value)) or enable_gqa or query.dim() < 3:
        return NotImplemented
    q, k, v = run.value(query), run.value(key), run.value(value)
    if any(x.field is None for x in (q, k, v)) or not (q.shape[:-2] == k.shape[:-2] == v.shape[:-2]):
        return NotImplemented
    if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2] or (attn_mask is not None and is_causal):
        return NotImplemented
    mask = run.value(attn_mask) if attn_mask is not None else None
    call = Call("scaled_dot_product_attention", ((*q.shape[:-1], v.shape[-1]),))
    field = RULES[call.op](call, q, k, v, mask, 0.0, is_causal)
    run.count(WORK[call.op](call.out[0], q, k, v))
    op.ins += [(x.shape, x.field) for x in (q, k, v, mask) if x is not None and x.field is not None]
    as_query = q.shape == call.out[0] and not query.is_contiguous() and query.stride(-1) == 1
    out = torch.empty_like(query) if as_query else _meta(call.out[0], query)
    run.new(out, field)  # type: ignore[arg-type]
    return out


@shortcut(F.multi_head_attention_forward)
def self_attention(
    run: Run, op: Any, query: Any, key: Any, value: Any, embed_dim: int, heads: int, in_weight: Any, in_bias: Any,
    bias_k: Any, bias_v: Any, add_zero: bool, dropout_p: float, out_weight: Any, out_bias: Any, training: bool = True,
    key_padding_mask: Any = None, need_weights: bool = True, attn_mask: Any = None,
    use_separate_proj_weight: bool = False, is_causal: bool = False, **rest: Any,
) -> Any:  # fmt: skip
    """Plain self-attention of one sequence: the projections merge features, then every query sees every key."""
    unusual = (bias_k, bias_v, key_padding_mask, attn_mask, in_weight is None or None)
    if (
        need_weights
        or add_zero
        or training
        or is_causal
        or use_separate_proj_weight
        or any(u is not None for u in unusual)
    ):
        return NotImplemented
    if (
        query is not key
        or key is not value
        or type(query) is not Tensor
        or query.dim() != 3
        or not query.is_contiguous()
    ):
        return NotImplemented
    v = run.value(query)
    t, b, e = v.shape
    if v.field is None or e != embed_dim or e % heads or query.dtype is not in_weight.dtype or t == 1:
        return NotImplemented
    own = reduce(v.field, (2,)).unmasked()
    field = mix(join([own, reduce(own, (0,))]))
    run.count(4 * t * b * e * e + 2 * b * t * t * e)
    op.ins.append((v.shape, v.field))
    out = _meta((t, b, e), query)
    run.new(out, field)
    return out, None


# -------------------------------------------------------------------------------------------------- moving, merging


def _native_view(rule_name: str) -> Shortcut:
    """Views are cheap in torch: it makes the view, the rule moves the field."""
    rule = RULES[rule_name]

    def run_view(run: Run, op: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        if type(x) is not Tensor or kwargs:
            return NotImplemented
        v = run.value(x)
        if v.field is None or type(v) is not Traced:
            return NotImplemented
        out = _NATIVE[rule_name](x, *args)
        if out is x:
            op.ins.append((v.shape, v.field))
            return x
        if not out._is_view() and out.untyped_storage()._cdata != x.untyped_storage()._cdata:
            return NotImplemented  # a reshape that had to copy
        call = Call(rule_name, (tuple(out.shape),))
        field = rule(call, v, *args)
        op.ins.append((v.shape, v.field))
        run.view(out, v, rule, call, (v, *args), field)  # type: ignore[arg-type]
        return out

    return run_view


_NATIVE: dict[str, Any] = {
    "flatten": torch.flatten, "view": Tensor.view, "reshape": Tensor.reshape, "permute": Tensor.permute,
    "transpose": Tensor.transpose, "unsqueeze": Tensor.unsqueeze, "squeeze": Tensor.squeeze,
}  # fmt: skip
for _name in _NATIVE:
    shortcut(*_named(_name))(_native_view(_name))


@shortcut(torch.cat, torch.concat, torch.concatenate)
def cat(run: Run, op: Any, tensors: Any, dim: int = 0, **kwargs: Any) -> Any:
    if kwargs or not isinstance(tensors, list | tuple) or not tensors:
        return NotImplemented
    first = tensors[0]
    n, dtype = first.dim(), first.dtype
    at = dim % n if n else 0
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
    field = RULES["cat"](call, items, at)
    op.ins += ins
    out = _meta(call.out[0], first)
    run.new(out, field)  # type: ignore[arg-type]
    return out


@shortcut(*_named("mean sum"))
def merged(run: Run, op: Any, x: Any, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
    if type(x) is not Tensor or kwargs or dim is None or not x.is_contiguous() or not x.is_floating_point():
        return NotImplemented
    v = run.value(x)
    n = len(v.shape)
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    if v.field is None or not dims or any(not -n <= d < n for d in dims):
        return NotImplemented
    gone = {d % n for d in dims}
    shape = tuple(1 if d in gone else s for d, s in enumerate(v.shape) if keepdim or d not in gone)
    call = Call("mean", (shape,))
    return _out(run, op, x, v, call, RULES["mean"](call, v, list(dims), keepdim))  # type: ignore[arg-type]


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
