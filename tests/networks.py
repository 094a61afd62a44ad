"""Random networks as printable programs, and one small hand-made case per op.

A `Program` is an input shape and a list of `Step`s. Every step takes a map `(1, C, *sizes)` and gives one back, so that
steps compose freely; what needs tokens, windows or another layout goes there and comes back. Programs are drawn
adaptively: a step that does not fit the shape so far is left out.

`CASES` are `(name, make the module, input shape)` for the ops that random networks rarely or never reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary
from torch.utils.checkpoint import checkpoint
from torchvision.ops import deform_conv2d, nms

MAX_SIZE, MAX_CELLS, MAX_CHANNELS = 26, 2400, 12


@dataclass(frozen=True)
class Step:
    op: str
    options: tuple[tuple[str, Any], ...] = ()

    def __repr__(self) -> str:
        return f"{self.op}({', '.join(f'{k}={v!r}' for k, v in self.options)})"


@dataclass(frozen=True)
class Program:
    shape: tuple[int, ...]
    steps: tuple[Step, ...]

    def __repr__(self) -> str:
        lines = "".join(f"\n    {s!r}," for s in self.steps)
        return f"Program({self.shape}, ({lines}\n))"

    def build(self) -> nn.Module:
        return build(self.shape, self.steps)[0]


def build(shape: tuple[int, ...], steps: tuple[Step, ...]) -> tuple[nn.Module, tuple[int, ...]]:
    """The module of some steps and the shape it gives."""
    modules, x = [], torch.zeros(1, *shape)
    for step in steps:
        module, x = extend(x, step)
        modules.append(module)
    return nn.Sequential(*modules), tuple(x.shape[1:])


def extend(x: Tensor, step: Step) -> tuple[nn.Module, Tensor]:
    """The module of one step on a map, and the map it gives. Raises what torch does where the step does not fit."""
    module = OPS[step.op].make(tuple(x.shape[1:]), **dict(step.options)).eval()
    with torch.no_grad():
        return module, module(x)


# --------------------------------------------------------------------------------------------------- the vocabulary

Shape = tuple[int, ...]
Draw = Callable[[Any], Any]


@dataclass(frozen=True)
class Op:
    make: Callable[..., nn.Module]
    draw: Callable[..., dict[str, Any]]
    ranks: tuple[int, ...]


OPS: dict[str, Op] = {}


def op(draw: Callable[..., dict[str, Any]], *ranks: int) -> Callable[[Any], Any]:
    """Register the maker of an op: `make(shape, **options)`, with a function that draws the options for a shape."""

    def register(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        OPS[make.__name__.rstrip("_")] = Op(make, draw, ranks or (1, 2, 3))
        return make

    return register


class Apply(nn.Module):
    """A function of the map, with the modules and buffers it uses."""

    def __init__(self, fn: Callable[..., Any], **held: Any) -> None:
        super().__init__()
        self.fn = fn
        self.names = tuple(held)
        for name, value in held.items():
            if isinstance(value, Tensor):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, *inputs: Tensor) -> Any:
        return self.fn(*inputs, *(getattr(self, name) for name in self.names))


def pick(draw: Draw, *options: Any) -> Any:
    return draw(st.sampled_from(options))


def number(draw: Draw, low: int, high: int) -> int:
    return draw(st.integers(low, max(low, high)))


def each(draw: Draw, n: int, low: int, high: int) -> tuple[int, ...]:
    return tuple(number(draw, low, high) for _ in range(n))


def space(shape: Shape) -> int:
    return len(shape) - 1


def some_dim(draw: Draw, shape: Shape) -> int:
    """A spatial dim of the map with batch."""
    return number(draw, 2, len(shape))


def nothing(draw: Draw, shape: Shape) -> dict[str, Any]:
    return {}


# windows


def _conv_options(draw: Draw, shape: Shape) -> dict[str, Any]:
    n, c = space(shape), shape[0]
    kernel = each(draw, n, 1, 4 if n < 3 else 3)
    same = pick(draw, False, False, True)
    groups = pick(draw, 1, 1, 1, c, math.gcd(c, 2))
    return {
        "out": groups * number(draw, 1, 3 if groups < 3 else 1),
        "kernel": kernel,
        "stride": (1,) * n if same else each(draw, n, 1, 3),
        "padding": "same" if same else each(draw, n, 0, 3),
        "dilation": each(draw, n, 1, 3 if n < 3 else 2),
        "groups": groups,
        "mode": pick(draw, "zeros", "zeros", "zeros", "reflect", "replicate", "circular"),
        "bias": pick(draw, True, False),
    }


@op(_conv_options)
def conv(shape, out, kernel, stride, padding, dilation, groups, mode, bias):
    cls = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[space(shape) - 1]
    return cls(shape[0], out, kernel, stride, padding, dilation, groups, bias, mode)


def _transposed_options(draw: Draw, shape: Shape) -> dict[str, Any]:
    n, c = space(shape), shape[0]
    stride, dilation = each(draw, n, 1, 3), each(draw, n, 1, 2)
    groups = pick(draw, 1, 1, c)
    return {
        "out": groups * number(draw, 1, 2),
        "kernel": each(draw, n, 1, 4),
        "stride": stride,
        "padding": each(draw, n, 0, 2),
        "output_padding": tuple(number(draw, 0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True)),
        "dilation": dilation,
        "groups": groups,
        "bias": pick(draw, True, False),
    }


@op(_transposed_options)
def conv_transpose(shape, out, kernel, stride, padding, output_padding, dilation, groups, bias):
    cls = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[space(shape) - 1]
    return cls(shape[0], out, kernel, stride, padding, output_padding, groups, bias, dilation)


def _pool_options(draw: Draw, shape: Shape) -> dict[str, Any]:
    kernel = each(draw, space(shape), 1, 4)
    return {
        "kernel": kernel,
        "stride": each(draw, space(shape), 1, 3),
        "padding": tuple(number(draw, 0, k // 2) for k in kernel),
        "ceil": pick(draw, False, True),
    }


@op(lambda draw, shape: {**_pool_options(draw, shape), "dilation": each(draw, space(shape), 1, 3)})
def max_pool(shape, kernel, stride, padding, ceil, dilation):
    cls = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[space(shape) - 1]
    return cls(kernel, stride, padding, dilation, ceil_mode=ceil)


@op(lambda draw, shape: {**_pool_options(draw, shape), "count_pad": pick(draw, True, False)})
def avg_pool(shape, kernel, stride, padding, ceil, count_pad):
    cls = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[space(shape) - 1]
    return cls(kernel, stride, padding, ceil, count_pad)


@op(lambda draw, shape: {k: v for k, v in _pool_options(draw, shape).items() if k != "padding"})
def lp_pool(shape, kernel, stride, ceil):
    n = space(shape)
    if n == 1:
        return nn.LPPool1d(2, kernel[0], stride[0], ceil)
    return (nn.LPPool2d, nn.LPPool3d)[n - 2](2, kernel, stride, ceil)


@op(lambda draw, shape: {"size": each(draw, space(shape), 1, 6), "kind": pick(draw, "avg", "max")})
def adaptive_pool(shape, size, kind):
    names = {"avg": "AdaptiveAvgPool", "max": "AdaptiveMaxPool"}
    return getattr(nn, f"{names[kind]}{space(shape)}d")(size)


@op(nothing)
def global_pool(shape):
    return Apply(lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True))


def _pad_options(draw: Draw, shape: Shape) -> dict[str, Any]:
    mode = pick(draw, "constant", "constant", "reflect", "replicate", "circular")
    low = -1 if mode == "constant" else 0
    return {"amounts": each(draw, 2 * space(shape), low, 2), "mode": mode}


@op(_pad_options)
def pad(shape, amounts, mode):
    return Apply(lambda x: F.pad(x, amounts, mode))


def _interpolate_options(draw: Draw, shape: Shape) -> dict[str, Any]:
    n = space(shape)
    smooth = {1: ("linear",), 2: ("bilinear", "bicubic"), 3: ("trilinear",)}[n]
    mode = pick(draw, "nearest", "nearest-exact", "area", *smooth, *smooth)
    by_size = pick(draw, True, False) or mode == "area"
    options: dict[str, Any] = {"mode": mode}
    if by_size:
        options["size"] = tuple(number(draw, max(1, s // 2), 2 * s) for s in shape[1:])
    else:
        options["scale_factor"] = tuple(pick(draw, 2.0, 0.5, 1.5, 0.7, 3.0, 1.0) for _ in range(n))
        options["recompute_scale_factor"] = pick(draw, None, True)
    if mode in smooth:
        options["align_corners"] = pick(draw, False, True)
    if mode in ("bilinear", "bicubic"):
        options["antialias"] = pick(draw, False, False, True)
    return options


@op(_interpolate_options)
def interpolate(shape, **options):
    return Apply(lambda x: F.interpolate(x, **options))


@op(lambda draw, shape: {"kind": pick(draw, "shuffle", "unshuffle"), "r": pick(draw, 2, 3)}, 2)
def pixel_shuffle(shape, kind, r):
    return nn.PixelShuffle(r) if kind == "shuffle" else nn.PixelUnshuffle(r)


def _unfold_options(draw: Draw, shape: Shape) -> dict[str, Any]:
    return {
        "kernel": each(draw, 2, 1, 3),
        "dilation": each(draw, 2, 1, 2),
        "padding": each(draw, 2, 0, 1),
        "stride": each(draw, 2, 1, 2),
        "back": pick(draw, "fold", "tokens", "mean"),
    }


@op(_unfold_options, 2)
def unfold(shape, kernel, dilation, padding, stride, back):
    """im2col, and back to a map: by fold, as a map of windows, or averaged over the taps."""
    h, w = ((shape[1 + i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2))

    def run(x: Tensor) -> Tensor:
        columns = F.unfold(x, kernel, dilation, padding, stride)
        if back == "fold":
            return F.fold(columns, x.shape[2:], kernel, dilation, padding, stride)
        windows = columns.view(x.shape[0], x.shape[1], kernel[0] * kernel[1], h, w)
        return windows.mean(2) if back == "mean" else windows.flatten(1, 2)

    return Apply(run)


@op(
    lambda draw, shape: {
        "dim": some_dim(draw, shape),
        "size": number(draw, 1, 3),
        "step": number(draw, 1, 3),
        "mean": pick(draw, True, False),
    }
)
def tensor_unfold(shape, dim, size, step, mean):
    def run(x: Tensor) -> Tensor:
        windows = x.unfold(dim, size, step)
        return windows.mean(-1) if mean else windows.movedim(-1, 2).flatten(1, 2)

    return Apply(run)


# moving around


def _slice_options(draw: Draw, shape: Shape) -> dict[str, Any]:
    dim = some_dim(draw, shape)
    n = shape[dim - 1]
    return {
        "dim": dim,
        "start": number(draw, 0, n // 2),
        "stop": pick(draw, None, n, n - 1, n // 2 + 1),
        "step": number(draw, 1, 3),
    }


@op(_slice_options)
def slice_(shape, dim, start, stop, step):
    where = (slice(None),) * dim + (slice(start, stop, step),)
    return Apply(lambda x: x[where])


@op(lambda draw, shape: {"dims": pick(draw, (2,), (-1,), tuple(range(2, len(shape) + 1)))})
def flip(shape, dims):
    return Apply(lambda x: x.flip(dims))


@op(lambda draw, shape: {"dim": pick(draw, some_dim(draw, shape), None), "shift": number(draw, -3, 4)})
def roll(shape, dim, shift):
    return Apply(lambda x: x.roll(shift) if dim is None else torch.roll(x, shift, dim))


@op(lambda draw, shape: {"kind": pick(draw, "transpose", "permute", "rot90", "movedim", "reshape", "swapaxes")}, 2, 3)
def turn(shape, kind):
    """Spatial dims change places, or (reshape) only their lengths do."""
    n = space(shape)
    order = (0, 1, *range(n + 1, 1, -1))
    turns = {
        "transpose": lambda x: x.transpose(2, 3),
        "permute": lambda x: x.permute(order),
        "rot90": lambda x: torch.rot90(x, 1, (2, 3)),
        "movedim": lambda x: x.movedim(-1, 2),
        "reshape": lambda x: x.reshape(*x.shape[:2], *x.shape[:1:-1]),
        "swapaxes": lambda x: torch.swapaxes(x, -2, -1),
    }
    return Apply(turns[kind])


@op(lambda draw, shape: {"dim": some_dim(draw, shape)})
def trade_channels(shape, dim):
    """A spatial dim takes the place of the channels."""
    return Apply(lambda x: x.transpose(1, dim))


@op(nothing, 2, 3)
def remix(shape):
    """Flatten everything and cut it up differently."""
    return Apply(lambda x: x.flatten(1).view(x.shape[0], x.shape[-1], x.shape[1], *x.shape[2:-1]))


@op(lambda draw, shape: {"r": 2})
def space_to_depth(shape, r):
    """By view and permute, with what does not divide cropped off."""
    n = space(shape)
    kept = tuple(s // r for s in shape[1:])

    def run(x: Tensor) -> Tensor:
        for d, k in enumerate(kept):
            x = x.narrow(2 + d, 0, k * r)
        blocks = x.reshape(x.shape[0], x.shape[1], *(m for k in kept for m in (k, r)))
        inner, outer = range(3, 3 + 2 * n, 2), range(2, 2 + 2 * n, 2)
        return blocks.permute(0, 1, *inner, *outer).flatten(1, 1 + n)

    return Apply(run)


def _window_options(draw: Draw, shape: Shape) -> dict[str, Any]:
    return {
        "size": number(draw, 2, 4),
        "shift": number(draw, 0, 2),
        "kind": pick(draw, "mean", "linear", "attention", "max"),
    }


@op(_window_options)
def windows(shape, size, shift, kind):
    """Swin's way: pad to whole windows, roll, work inside each window, undo it all."""
    n, c = space(shape), shape[0]
    padded = tuple(-(-s // size) * size for s in shape[1:])
    amounts = [v for s, p in zip(shape[:0:-1], padded[::-1], strict=True) for v in (0, p - s)]
    dims = tuple(range(2, 2 + n))

    def inside(tokens: Tensor, mix: Any) -> Tensor:
        if kind == "mean":
            return tokens + tokens.mean(1, keepdim=True)
        if kind == "max":
            return tokens.amax(1, keepdim=True).expand_as(tokens)
        if kind == "linear":
            return mix(tokens.transpose(1, 2)).transpose(1, 2)
        return (tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens

    def run(x: Tensor, mix: Any) -> Tensor:
        x = torch.roll(F.pad(x, amounts), (-shift,) * n, dims)
        blocks = x.view(x.shape[0], c, *(m for p in padded for m in (p // size, size)))
        outer, inner = range(2, 2 + 2 * n, 2), range(3, 3 + 2 * n, 2)
        order = (0, *outer, *inner, 1)
        tokens = blocks.permute(order).reshape(-1, size**n, c)
        tokens = inside(tokens, mix)
        blocks = tokens.view(1, *(p // size for p in padded), *(size,) * n, c)
        back = sorted(range(len(order)), key=order.__getitem__)
        x = blocks.permute(back).reshape(1, c, *padded)
        x = torch.roll(x, (shift,) * n, dims)
        for d, s in enumerate(shape[1:]):
            x = x.narrow(2 + d, 0, s)
        return x

    return Apply(run, mix=nn.Linear(size**n, size**n))


@op(
    lambda draw, shape: {
        "dim": pick(draw, 1, some_dim(draw, shape)),
        "kind": pick(draw, "chunk", "split", "sections", "tensor_split", "unbind"),
    }
)
def pieces(shape, dim, kind):
    """Cut along a dim, work on the first piece, put all back in another order."""
    n = shape[dim - 1]

    def run(x: Tensor) -> Tensor:
        if kind == "unbind":
            return torch.stack(x.unbind(dim)[::-1], dim)
        if kind == "chunk":
            cut = x.chunk(2, dim)
        elif kind == "split":
            cut = x.split(max(1, n // 2), dim)
        elif kind == "sections":
            cut = torch.split(x, [1, n - 1], dim)
        else:
            cut = torch.tensor_split(x, (1, n // 2), dim)
        first = cut[0] + cut[0].flip(-1)
        return torch.cat([*cut[1:], first], dim)

    return Apply(run)


@op(lambda draw, shape: {"dim": some_dim(draw, shape), "kind": pick(draw, "repeat", "expand", "interleave", "tile")})
def repeat(shape, dim, kind):
    def run(x: Tensor) -> Tensor:
        times = [2 if d == dim else 1 for d in range(x.ndim)]
        if kind == "repeat":
            return x.repeat(times)
        if kind == "tile":
            return torch.tile(x, times)
        if kind == "interleave":
            return x.repeat_interleave(2, dim)
        row = x.select(dim, x.shape[dim] // 2).unsqueeze(dim)
        return row.expand_as(x) + x

    return Apply(run)


def _index_options(draw: Draw, shape: Shape) -> dict[str, Any]:
    dim = some_dim(draw, shape)
    index = tuple(number(draw, 0, shape[dim - 1] - 1) for _ in range(number(draw, 1, 5)))
    return {"dim": dim, "index": index, "kind": pick(draw, "select", "list", "buffer", "take", "stack")}


@op(_index_options)
def index(shape, dim, index, kind):
    where = torch.tensor(index)

    def run(x: Tensor, where: Tensor) -> Tensor:
        if kind == "select":
            return torch.index_select(x, dim, where)
        if kind == "stack":
            return torch.stack([x.select(dim, i) for i in index], dim)
        if kind == "take":
            return x.movedim(dim, 0)[where].movedim(0, dim)
        return x[(slice(None),) * dim + (list(index) if kind == "list" else where,)]

    return Apply(run, where=where)


# joins


def _branch_options(draw: Draw, shape: Shape, depth: int = 0, only: Collection[str] = ()) -> dict[str, Any]:
    kinds = ("add", "add", "mul", "cat", "cat_space", "maximum", "sub", "div", "where", "stack")
    return {
        "left": draw_steps(draw, shape, number(draw, 0, 1), depth + 1, only),
        "right": draw_steps(draw, shape, number(draw, 1, 3), depth + 1, only),
        "join": pick(draw, *kinds),
        "crop": pick(draw, "start", "centre", "resize"),
    }


@op(_branch_options)
def branch(shape, left, right, join, crop):
    """Two paths from one map; they are cropped (or resized) to a common size, and channels made equal."""
    a, a_shape = build(shape, left)
    b, b_shape = build(shape, right)
    channels = min(a_shape[0], b_shape[0])

    def fit(x: Tensor, sizes: Shape) -> Tensor:
        if crop == "resize":
            return F.interpolate(x, sizes, mode="nearest")
        for d, n in enumerate(sizes):
            x = x.narrow(2 + d, (x.shape[2 + d] - n) // 2 if crop == "centre" else 0, n)
        return x

    def run(x: Tensor, a: Any, b: Any) -> Tensor:
        y, z = a(x), b(x)
        sizes = tuple(map(min, y.shape[2:], z.shape[2:]))
        y, z = fit(y, sizes), fit(z, sizes)
        if join == "cat":
            return torch.cat([y, z], 1)
        y, z = y[:, :channels], z[:, :channels]
        if join == "cat_space":
            return torch.cat([y, z], 2)
        if join == "stack":
            return torch.stack((y, z), 2).flatten(1, 2)
        if join == "where":
            return torch.where(y > z, y, z)
        if join == "div":
            return y / (z + 1)
        joins = {"add": torch.add, "mul": torch.mul, "maximum": torch.maximum, "sub": torch.sub}
        return joins[join](y, z)

    return Apply(run, a=a, b=b)


@op(lambda draw, shape: {"gate": pick(draw, "sigmoid", "softmax", "hardsigmoid"), "max": pick(draw, False, True)})
def squeeze_excite(shape, gate, max):
    """Context of the whole map gates each channel."""
    c = shape[0]
    gates = {"sigmoid": torch.sigmoid, "softmax": lambda s: s.softmax(1), "hardsigmoid": F.hardsigmoid}

    def run(x: Tensor, mix: Any) -> Tensor:
        flat = x.flatten(2)
        pooled = flat.amax(2) if max else flat.mean(2)
        return x * gates[gate](mix(pooled)).view(x.shape[0], c, *[1] * (x.ndim - 2))

    return Apply(run, mix=nn.Linear(c, c))


# statistics along dims


@op(
    lambda draw, shape: {
        "kind": pick(draw, "batch", "group", "instance", "layer", "layer_last", "channels", "rms", "lrn", "l2")
    }
)
def norm(shape, kind):
    c, n = shape[0], space(shape)
    if kind == "batch":
        return (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[n - 1](c)
    if kind == "instance":
        return (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[n - 1](c, affine=True)
    if kind == "group":
        return nn.GroupNorm(2 if c % 2 == 0 else 1, c)
    if kind == "lrn":
        return nn.LocalResponseNorm(3)
    if kind == "l2":
        return Apply(lambda x: F.normalize(x, dim=1))
    if kind == "channels":
        return Apply(lambda x, ln: ln(x.movedim(1, -1)).movedim(-1, 1), ln=nn.LayerNorm(c))
    if kind == "rms":
        return nn.RMSNorm(shape[-1:])
    return nn.LayerNorm(shape[1:] if kind == "layer" else shape[-1:])


def _reduce_options(draw: Draw, shape: Shape) -> dict[str, Any]:
    kinds = ("mean", "sum", "amax", "amin", "max", "min", "median", "var", "std", "logsumexp", "prod", "norm")
    return {"dim": some_dim(draw, shape), "kind": pick(draw, *kinds), "back": pick(draw, "keep", "add", "mul")}


@op(_reduce_options)
def reduce(shape, dim, kind, back):
    """Statistics over one dim, left as size 1 or brought back to the map."""

    def run(x: Tensor) -> Tensor:
        y = x.norm(dim=dim, keepdim=True) if kind == "norm" else getattr(x, kind)(dim, keepdim=True)
        y = y if isinstance(y, Tensor) else y.values
        return y if back == "keep" else x + y if back == "add" else y * x

    return Apply(run)


def _along_options(draw: Draw, shape: Shape) -> dict[str, Any]:
    kinds = ("softmax log_softmax cumsum cumprod cummax logcumsumexp backwards sort topk diff").split()
    return {"dim": pick(draw, 1, some_dim(draw, shape), some_dim(draw, shape)), "kind": pick(draw, *kinds)}


@op(_along_options)
def along(shape, dim, kind):
    """What mixes along one dim and keeps it."""
    kinds = {
        "softmax": lambda x: x.softmax(dim),
        "log_softmax": lambda x: F.log_softmax(x, dim),
        "cumsum": lambda x: torch.cumsum(x, dim),
        "cumprod": lambda x: x.cumprod(dim),
        "cummax": lambda x: x.cummax(dim)[0],
        "logcumsumexp": lambda x: x.logcumsumexp(dim),
        "backwards": lambda x: x.flip(dim).cumsum(dim).flip(dim),
        "sort": lambda x: x.sort(dim).values,
        "topk": lambda x: x.topk(min(3, x.shape[dim]), dim).values,
        "diff": lambda x: x.diff(dim=dim),
    }
    return Apply(kinds[kind])


@op(
    lambda draw, shape: {
        "dim": some_dim(draw, shape),
        "out": number(draw, 1, 6),
        "how": pick(draw, "linear", "einsum", "matmul"),
    }
)
def linear(shape, dim, out, how):
    """Dense along one spatial dim, as in an MLP mixer."""

    def run(x: Tensor, layer: Any) -> Tensor:
        x = x.transpose(dim, -1)
        if how == "linear":
            y = layer(x)
        elif how == "einsum":
            y = torch.einsum("...i,oi->...o", x, layer.weight)
        else:
            y = torch.matmul(x, layer.weight.t())
        return y.transpose(dim, -1)

    return Apply(run, layer=nn.Linear(shape[dim - 1], out))


@op(lambda draw, shape: {"channels": number(draw, 1, 4)})
def pointwise_linear(shape, channels):
    return Apply(
        lambda x, layer: layer(x.movedim(1, -1)).movedim(-1, 1).contiguous(), layer=nn.Linear(shape[0], channels)
    )


@op(lambda draw, shape: {"how": pick(draw, "bmm", "einsum", "matmul", "outer")})
def gram(shape, how):
    """Products of the map with itself: similarities of rows, or of row and column profiles."""

    def run(x: Tensor) -> Tensor:
        rows = x.flatten(0, 1).flatten(1, -2) if x.ndim > 3 else x.transpose(0, 1).reshape(x.shape[1], 1, -1)
        if how == "bmm":
            y = torch.bmm(rows.transpose(1, 2), rows)
        elif how == "einsum":
            y = torch.einsum("cij,cik->cjk", rows, rows)
        elif how == "matmul":
            y = rows.mT @ rows
        else:
            mean = rows.mean(1)
            y = mean.unsqueeze(2) * mean.unsqueeze(1)
        y = y.mean(2)
        return x + y.view(1, x.shape[1], *[1] * (x.ndim - 3), -1)

    return Apply(run)


# tokens


ATTENTIONS = ("manual causal band sdpa sdpa_causal sdpa_bool sdpa_float sdpa_band mha mha_causal").split()


def _attention_options(draw: Draw, shape: Shape) -> dict[str, Any]:
    return {
        "kind": pick(draw, *ATTENTIONS),
        "residual": pick(draw, False, True),
        "dim": pick(draw, 0, some_dim(draw, shape)),
    }


def _band(t: int) -> Tensor:
    at = torch.arange(t)
    return (at[:, None] - at[None, :]).abs() <= 1


def _attend(tokens: Tensor, kind: str, layers: Any) -> Tensor:
    t = tokens.shape[1]
    if kind.startswith("mha"):
        mask = None
        if kind == "mha_causal":
            mask = torch.full((t, t), -math.inf).triu(1)
        return layers.mha(tokens, tokens, tokens, attn_mask=mask, need_weights=False)[0]
    q, k, v = layers.qkv(tokens).chunk(3, -1)
    allowed = {"causal": lambda: torch.ones(t, t).tril().bool(), "band": lambda: _band(t)}
    if kind.startswith("sdpa"):
        q, k, v = (z.unsqueeze(1) for z in (q, k, v))
        if kind == "sdpa_causal":
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif kind == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            mask = _band(t) if kind == "sdpa_band" else torch.ones(t, t, dtype=torch.bool).tril()
            if kind == "sdpa_float":
                mask = torch.zeros(t, t).masked_fill(~mask, -math.inf)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return layers.out(y.squeeze(1))
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if kind in allowed:
        scores = scores.masked_fill(~allowed[kind](), -math.inf)
    return layers.out(scores.softmax(-1) @ v)


@op(_attention_options)
def attention(shape, kind, residual, dim):
    """Self attention over all positions as tokens, or (dim) along one dim with the others as batch."""
    c = shape[0]
    layers = nn.ModuleDict(
        {"qkv": nn.Linear(c, 3 * c), "out": nn.Linear(c, c), "mha": nn.MultiheadAttention(c, 1, batch_first=True)}
    )
    holder = nn.Module()
    for name, layer in layers.items():
        holder.add_module(name, layer)

    def run(x: Tensor, holder: Any) -> Tensor:
        if dim == 0:
            tokens = x.flatten(2).transpose(1, 2)
            y = _attend(tokens, kind, holder).transpose(1, 2).reshape(x.shape)
        else:
            laid = x.movedim(1, -1).movedim(dim - 1, -2)
            tokens = laid.reshape(-1, x.shape[dim], c)
            y = _attend(tokens, kind, holder).view(laid.shape).movedim(-2, dim - 1).movedim(-1, 1)
        return x + y if residual else y

    return Apply(run, holder=holder)


@op(nothing)
def class_token(shape):
    """A learned token in front attends with all others; it is left on."""
    c = shape[0]

    def run(x: Tensor, mha: Any, token: Any) -> Tensor:
        tokens = torch.cat([token.weight.unsqueeze(0), x.flatten(2).transpose(1, 2)], 1)
        tokens = tokens + mha(tokens, tokens, tokens, need_weights=False)[0]
        return tokens[:, 1:].transpose(1, 2).reshape(x.shape) * tokens[:, :1].transpose(1, 2).reshape(
            1, c, *[1] * (x.ndim - 2)
        )

    return Apply(run, mha=nn.MultiheadAttention(c, 1, batch_first=True), token=nn.Embedding(1, c))


def _rnn_options(draw: Draw, shape: Shape) -> dict[str, Any]:
    return {
        "kind": pick(draw, "LSTM", "GRU", "RNN"),
        "both": pick(draw, False, True),
        "layers": number(draw, 1, 2),
        "hidden": number(draw, 1, 3),
        "batch_first": pick(draw, True, False),
    }


@op(_rnn_options, 1, 2)
def rnn(shape, kind, both, layers, hidden, batch_first):
    """A recurrent layer along the last dim, for each row."""
    layer = getattr(nn, kind)(shape[0], hidden, layers, bidirectional=both, batch_first=batch_first)

    def run(x: Tensor, layer: Any) -> Tensor:
        rows = x.movedim(1, -1)
        tokens = rows.reshape(-1, *rows.shape[-2:])
        y = layer(tokens)[0] if batch_first else layer(tokens.transpose(0, 1))[0].transpose(0, 1)
        return y.reshape(*rows.shape[:-1], y.shape[-1]).movedim(-1, 1)

    return Apply(run, layer=layer)


@op(lambda draw, shape: {"dim": some_dim(draw, shape), "kind": pick(draw, "abs", "filter", "both")})
def fourier(shape, dim, kind):
    def run(x: Tensor) -> Tensor:
        if kind == "filter":
            return torch.fft.irfft(torch.fft.rfft(x, dim=dim) * 2, n=x.shape[dim], dim=dim)
        if kind == "both":
            return torch.fft.fftn(x, dim=tuple(range(2, x.ndim))).real
        return torch.fft.fft(x, dim=dim).abs()

    return Apply(run)


# masks and writes in place


def _mask_options(draw: Draw, shape: Shape) -> dict[str, Any]:
    return {
        "dim": some_dim(draw, shape),
        "period": number(draw, 2, 3),
        "kind": pick(draw, "where", "fill", "fill_", "both", "product"),
    }


@op(_mask_options)
def mask(shape, dim, period, kind):
    """A constant pattern along one dim keeps some positions."""
    flags = torch.arange(shape[dim - 1]) % period == 0
    flags = flags.reshape([-1 if d == dim else 1 for d in range(len(shape) + 1)])

    def run(x: Tensor, flags: Tensor) -> Tensor:
        if kind == "where":
            return torch.where(flags, x, 0.7)
        if kind == "fill":
            return x.masked_fill(flags, 1.0)
        if kind == "fill_":
            return x.clone().masked_fill_(~flags, 0.5)
        if kind == "product":
            return x * (flags.float() + 1)
        return torch.where(flags, x, x.flip(dim))

    return Apply(run, flags=flags)


WRITES = (
    "shifted_add strided relu_view copy chunk transposed indexed buffer select nested overwrite flat "
    "after_view diagonal"
).split()


def _write_options(draw: Draw, shape: Shape) -> dict[str, Any]:
    return {"dim": some_dim(draw, shape), "kind": pick(draw, *WRITES)}


@op(_write_options)
def write(shape, dim, kind):
    """Writes in place, most of them through views."""
    n = shape[dim - 1]
    half = max(1, n // 2)

    def run(x: Tensor, index: Tensor) -> Tensor:
        lead = (slice(None),) * dim
        y = x.clone()
        if kind == "shifted_add":
            y[(*lead, slice(1, None))] += x[(*lead, slice(None, -1))]
        elif kind == "strided":
            y[(*lead, slice(None, None, 2))] = x.mean(dim, keepdim=True)
        elif kind == "relu_view":
            F.relu(y[(*lead, slice(1, None))], inplace=True)
            y[(*lead, slice(0, half))].mul_(2).add_(x.narrow(dim, n - half, half))
        elif kind == "copy":
            y.narrow(dim, 0, half).copy_(x.flip(dim).narrow(dim, 0, half))
        elif kind == "chunk":
            a = y.chunk(2, dim)[0]
            a += x.narrow(dim, n - a.shape[dim], a.shape[dim])
        elif kind == "transposed":
            y.transpose(1, dim)[:, 0] += x.transpose(1, dim)[:, n - 1]
        elif kind == "indexed":
            y[(*lead, index)] = x.narrow(dim, 0, 1).expand_as(y[(*lead, index)]) * 2
        elif kind == "buffer":
            y = x.new_full(x.shape, 0.5)
            y[(*lead, slice(0, half))] = x.narrow(dim, n - half, half)
        elif kind == "select":
            y.select(dim, 0).add_(x.select(dim, n - 1))
        elif kind == "nested":
            y[(*lead, slice(0, half))][:, :1].add_(x.narrow(dim, n - half, half)[:, :1])
        elif kind == "overwrite":
            y[(*lead, slice(0, half))] = 0.5
        elif kind == "flat":
            y.view(-1)[: y.numel() // 2] += x.reshape(-1)[-(y.numel() // 2) :]
        elif kind == "after_view":
            z = y.narrow(dim, 0, half)
            y.add_(x.flip(dim))
            return torch.cat([z, y], dim)
        else:
            y.diagonal(0, 1, dim).add_(x.mean())
        return y

    return Apply(run, index=torch.tensor(sorted({0, n // 2})))


ACTIVATIONS = (
    "relu relu_ gelu silu tanh sigmoid hardswish leaky_relu softplus clamp abs exp square neg PReLU ReLU6 ELU "
    "Dropout Identity round sin data double"
).split()


@op(lambda draw, shape: {"name": pick(draw, *ACTIVATIONS)})
def activation(shape, name):
    if hasattr(nn, name):
        return getattr(nn, name)()
    odd = {
        "relu_": lambda x: x.clone().relu_(),
        "clamp": lambda x: x.clamp(0, 6),
        "data": lambda x: x.detach() + x.data,
        "double": lambda x: x.to(torch.float32).contiguous().type_as(x),
        "leaky_relu": F.leaky_relu,
        "gelu": F.gelu,
        "silu": F.silu,
        "hardswish": F.hardswish,
        "softplus": F.softplus,
    }
    return Apply(odd[name] if name in odd else getattr(torch, name))


@op(nothing)
def glu(shape):
    return Apply(lambda x: F.glu(torch.cat([x, x.flip(2)], 1), 1))


@op(nothing, 2)
def sampled(shape):
    """A warp whose coordinates the map itself gives."""
    return Apply(
        lambda x, offsets: F.grid_sample(x, offsets(x).permute(0, 2, 3, 1).tanh(), align_corners=False),
        offsets=nn.Conv2d(shape[0], 2, 1),
    )


# --------------------------------------------------------------------------------------------------------- drawing


def fits(shape: Shape) -> bool:
    sizes = all(1 <= s <= MAX_SIZE for s in shape[1:])
    return sizes and 1 <= shape[0] <= MAX_CHANNELS and math.prod(shape) <= MAX_CELLS


def draw_steps(
    draw: Draw, shape: Shape, count: int, depth: int = 0, only: Collection[str] = ()
) -> tuple[Step, ...]:  # fmt: skip
    """Up to `count` steps that fit one after the other; `only` of these ops, if any are given."""
    steps: list[Step] = []
    x = torch.zeros(1, *shape)
    for _ in range(count):
        shape = tuple(x.shape[1:])
        name = draw(st.sampled_from([n for n in _names(space(shape), depth) if not only or n in only]))
        options = OPS[name].draw(draw, shape, depth, only) if name == "branch" else OPS[name].draw(draw, shape)
        step = Step(name, tuple(options.items()))
        try:
            y = extend(x, step)[1]
        except (RuntimeError, ValueError, IndexError):
            continue  # it does not fit this map
        if y.ndim == x.ndim and fits(tuple(y.shape[1:])):
            steps.append(step)
            x = y
    return tuple(steps)


# Windows and joins are what most networks are made of: they come up more often.
_OFTEN = ("conv", "conv", "conv", "max_pool", "conv_transpose", "interpolate", "branch", "branch", "write", "attention")


def _names(rank: int, depth: int) -> tuple[str, ...]:
    names = (*OPS, *_OFTEN)
    return tuple(n for n in names if rank in OPS[n].ranks and (n != "branch" or depth < 2))


@st.composite
def programs(draw: Draw, only: Collection[str] = ()) -> Program:
    rank = draw(st.sampled_from((1, 2, 2, 2, 2, 3)))
    low, high = ((5, 14), (5, 14), (3, 6))[rank - 1]
    sizes = draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank, unique=True))
    shape = (number(draw, 1, 4), *sizes)
    return Program(shape, draw_steps(draw, shape, number(draw, 1, 8), only=only))


# ----------------------------------------------------------------------------------------------------------- cases

Case = tuple[str, Callable[[], nn.Module], Any]
CASES: list[Case] = []
LINE, MAP, VOLUME, TOKENS = (2, 9), (2, 7, 9), (2, 4, 5, 6), (5, 4)


def case(name: str, make: Callable[[], nn.Module], shape: Any = MAP) -> None:
    CASES.append((name, make, shape))


def fn(name: str, function: Callable[..., Any], shape: Any = MAP, **held: Callable[[], Any]) -> None:
    """A case of a plain function; `held` makes its modules and buffers anew for every build."""
    CASES.append((name, lambda: Apply(function, **{k: make() for k, make in held.items()}), shape))


def _weights(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.full(shape, 0.5)


# windows
for _n, _shape in ((1, LINE), (2, MAP), (3, VOLUME)):
    _conv, _back = getattr(nn, f"Conv{_n}d"), getattr(nn, f"ConvTranspose{_n}d")
    case(f"conv{_n}d", lambda c=_conv: c(2, 3, 3, 2, 1, 2), _shape)
    case(f"conv{_n}d same", lambda c=_conv: c(2, 3, 4, padding="same"), _shape)
    case(f"conv{_n}d valid", lambda c=_conv: c(2, 3, 2, padding="valid"), _shape)
    case(f"conv{_n}d groups", lambda c=_conv: c(2, 4, 3, groups=2, padding=1), _shape)
    for _mode in ("reflect", "replicate", "circular"):
        case(f"conv{_n}d {_mode}", lambda c=_conv, m=_mode: c(2, 2, 3, padding=1, padding_mode=m), _shape)
    case(f"conv_transpose{_n}d", lambda c=_back: c(2, 3, 3, 2, 1, 1), _shape)
    case(f"conv_transpose{_n}d dilated", lambda c=_back: c(2, 2, 2, 3, 0, 0, 2, False, 2), _shape)
    case(f"max_pool{_n}d", lambda n=_n: getattr(nn, f"MaxPool{n}d")(2, 2, 1, 2), _shape)
    case(f"max_pool{_n}d ceil", lambda n=_n: getattr(nn, f"MaxPool{n}d")(3, 2, ceil_mode=True), _shape)
    fn(f"max_pool{_n}d indices", lambda x, n=_n: getattr(F, f"max_pool{n}d")(x, 2, return_indices=True)[0], _shape)
    case(f"avg_pool{_n}d", lambda n=_n: getattr(nn, f"AvgPool{n}d")(3, 2, 1, True, False), _shape)
    case(f"lp_pool{_n}d", lambda n=_n: getattr(nn, f"LPPool{n}d")(2, 3, 2, True), _shape)
    case(f"adaptive_avg_pool{_n}d", lambda n=_n: getattr(nn, f"AdaptiveAvgPool{n}d")(3), _shape)
    case(f"adaptive_avg_pool{_n}d one", lambda n=_n: getattr(nn, f"AdaptiveAvgPool{n}d")(1), _shape)
    case(f"adaptive_max_pool{_n}d", lambda n=_n: getattr(nn, f"AdaptiveMaxPool{n}d")(2), _shape)
    case(f"reflection_pad{_n}d", lambda n=_n: getattr(nn, f"ReflectionPad{n}d")(2), _shape)
    case(f"replication_pad{_n}d", lambda n=_n: getattr(nn, f"ReplicationPad{n}d")(2), _shape)
    case(f"circular pad{_n}d", lambda n=_n: getattr(nn, f"CircularPad{n}d")(2), _shape)
    case(f"zero pad{_n}d", lambda n=_n: getattr(nn, f"ConstantPad{n}d")((1, -1) + (0, 2) * (n - 1), 0.0), _shape)
    case(f"instance_norm{_n}d", lambda n=_n: getattr(nn, f"InstanceNorm{n}d")(2), _shape)
    case(
        f"instance_norm{_n}d running",
        lambda n=_n: getattr(nn, f"InstanceNorm{n}d")(2, track_running_stats=True),
        _shape,
    )
    case(f"batch_norm{_n}d", lambda n=_n: getattr(nn, f"BatchNorm{n}d")(2), _shape)
    case(f"batch_norm{_n}d own", lambda n=_n: getattr(nn, f"BatchNorm{n}d")(2, track_running_stats=False), _shape)
    for _mode in ("nearest", "nearest-exact", "area"):
        case(f"{_mode}{_n}d", lambda m=_mode: nn.Upsample(scale_factor=1.5, mode=m), _shape)
        fn(f"{_mode}{_n}d size", lambda x, m=_mode: F.interpolate(x, [2 * s - 1 for s in x.shape[2:]], mode=m), _shape)
fn("functional conv", lambda x, w: F.conv2d(F.pad(x, (1, 0, 0, 2)), w, stride=(2, 1)), w=_weights(3, 2, 2, 3))
fn("torch conv", lambda x, w: torch.conv2d(x, w, None, 1, 1), w=_weights(3, 2, 3, 3))
fn(
    "convolution",
    lambda x, w: torch.convolution(x, w, None, [2, 1], [1, 0], [1, 1], False, [0, 0], 1),
    w=_weights(3, 2, 3, 3),
)
fn(
    "convolution transposed",
    lambda x, w: torch.convolution(x, w, None, [2, 1], [0, 0], [1, 1], True, [0, 0], 1),
    w=_weights(2, 3, 3, 3),
)
fn("dynamic filter", lambda x: F.conv2d(x, x.mean((2, 3)).view(1, 2, 1, 1).expand(1, 2, 3, 3)))
fn(
    "fixed filter",
    lambda x, w: F.conv2d(x, w, groups=2),
    w=lambda: torch.tensor([-1.0, 0, 1]).expand(2, 1, 1, 3).clone(),
)
fn("max_unpool2d", lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), (2, 6, 8))
fn("max_unpool3d", lambda x: F.max_unpool3d(*F.max_pool3d(x, 2, return_indices=True), 2), (2, 4, 4, 6))
case("fractional_max_pool2d", lambda: nn.FractionalMaxPool2d(2, 3))
case("fractional_max_pool3d", lambda: nn.FractionalMaxPool3d(2, 2), VOLUME)
fn("im2col", lambda x: F.unfold(x, (2, 3), 2, 1, (1, 2)))
fn("col2im", lambda x: F.fold(x, (5, 7), (2, 3), stride=(1, 2)), (12, 12))
fn("unfold and fold", lambda x: F.fold(F.unfold(x, 3, padding=1, stride=2), x.shape[2:], 3, padding=1, stride=2))
fn("unfold", lambda x: x.unfold(2, 3, 2).unfold(3, 2, 1).sum((-1, -2)))
case("avg_pool whole", lambda: nn.AvgPool2d((7, 9)))
case("max_pool whole", lambda: nn.MaxPool2d((7, 9), 1))
fn("wide window", lambda x: F.avg_pool2d(x, 1, 3))
case(
    "far dilation",
    lambda: nn.Sequential(nn.Conv2d(2, 2, 3, dilation=6, padding=6), nn.Conv2d(2, 2, 3, 2, 3)),
    (2, 9, 8),
)

# resampling
for _align in (False, True):
    case(f"linear {_align}", lambda a=_align: nn.Upsample(scale_factor=2, mode="linear", align_corners=a), LINE)
    case(f"bilinear {_align}", lambda a=_align: nn.Upsample((12, 5), mode="bilinear", align_corners=a))
    case(f"bicubic {_align}", lambda a=_align: nn.Upsample((12, 5), mode="bicubic", align_corners=a))
    case(
        f"trilinear {_align}", lambda a=_align: nn.Upsample(scale_factor=1.6, mode="trilinear", align_corners=a), VOLUME
    )
    for _mode in ("bilinear", "bicubic"):
        fn(
            f"{_mode} antialias {_align}",
            lambda x, m=_mode, a=_align: F.interpolate(x, (3, 14), mode=m, antialias=True, align_corners=a),
            (2, 10, 9),
        )
fn("bilinear scale", lambda x: F.interpolate(x, scale_factor=(1.7, 0.6), mode="bilinear"))
fn(
    "bilinear recompute",
    lambda x: F.interpolate(x, scale_factor=(1.7, 0.6), mode="bilinear", recompute_scale_factor=True),
)
for _mode in ("nearest", "nearest-exact"):
    fn(
        f"{_mode} scale that torch ignores",
        lambda x, m=_mode: F.interpolate(x, scale_factor=(1.1, 2.1), mode=m)[..., 1:],
        (1, 7, 2),
    )
fn("circular pad that crops", lambda x: F.pad(x, (-2, 3, 1, -4), "circular"))
fn("reflect pad that crops", lambda x: F.pad(x, (-2, 3, 1, -4), "reflect"))
fn("replicate pad that crops", lambda x: F.pad(x, (-2, 3, 1, -4), "replicate"))
case("pixel_shuffle", lambda: nn.PixelShuffle(2), (8, 3, 4))
case("pixel_unshuffle", lambda: nn.PixelUnshuffle(2), (1, 6, 8))
case("channel_shuffle", lambda: nn.ChannelShuffle(2), (4, 3, 5))
fn("native_channel_shuffle", lambda x: torch.native_channel_shuffle(x, 2), (4, 3, 5))
fn("grid_sample", lambda x, grid: F.grid_sample(x, grid, align_corners=True), grid=lambda: torch.rand(1, 3, 4, 2) - 0.5)
fn(
    "grid_sample 3d",
    lambda x, grid: F.grid_sample(x, grid, align_corners=True),
    VOLUME,
    grid=lambda: torch.rand(1, 2, 2, 3, 3),
)
fn(
    "spatial transformer",
    lambda x, head: F.grid_sample(
        x, F.affine_grid(head(x.mean((2, 3))).view(1, 2, 3), x.shape, False), align_corners=False
    ),
    head=lambda: nn.Linear(2, 6),
)

# pointwise
for _name in (
    "CELU ELU GELU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid Mish PReLU RReLU ReLU ReLU6 SELU "
    "SiLU Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink Dropout Dropout2d AlphaDropout FeatureAlphaDropout "
    "Identity"
).split():
    case(_name, lambda n=_name: nn.Sequential(nn.Conv1d(2, 2, 3), getattr(nn, n)()), LINE)
for _name in (
    "abs ceil cos erf exp expm1 floor frac isfinite isnan log log1p neg reciprocal relu round rsqrt sigmoid sign sin "
    "sqrt square tan tanh trunc clone contiguous detach relu_ sigmoid_ tanh_ abs_ neg_ exp_ sqrt_ isinf isreal "
    "positive nan_to_num logical_not bernoulli lgamma digamma erfinv asinh atan conj resolve_conj resolve_neg"
).split():
    fn(_name, lambda x, n=_name: getattr(x[..., 1:] * 0.5, n)(), LINE)
for _name in (
    "add sub mul div true_divide floor_divide remainder fmod pow float_power maximum minimum fmax fmin atan2 hypot "
    "xlogy eq ne lt le gt ge logical_and logical_or logical_xor copysign isclose heaviside logaddexp divide multiply "
    "subtract max min add_ sub_ mul_ div_ ldexp nextafter"
).split():
    fn(f"{_name} two", lambda x, n=_name: getattr(torch.Tensor, n)(x[..., 2:] * 1, x[..., :-2]), LINE)
fn("operators", lambda x: (3 - x) / 2 + 2**x * (x // 0.1) - x % 2 + 1 / x - abs(-x), LINE)
fn("bitwise", lambda x: ((x > 0) & (x.flip(2) < 1) | ~(x > 2) ^ (x < 3)).to(x.dtype), LINE)
fn(
    "bitwise_named",
    lambda x: torch.bitwise_xor(torch.bitwise_or(torch.bitwise_and(x > 0, x > 1), x > 2), torch.bitwise_not(x > 3)) * x,
    LINE,
)
fn("addcmul", lambda x: torch.addcmul(x, x.flip(2), x.roll(1, 2)) + torch.addcdiv(x, x.roll(2, 2), x), LINE)
fn("lerp", lambda x: torch.lerp(x, x.flip(2), 0.3), LINE)
fn("rsub", lambda x: torch.rsub(x, x.flip(2), alpha=2) + torch.add(x, x.roll(1, 2), alpha=-1), LINE)
fn("clamp", lambda x: x.clamp(0, 1) + x.clamp_min(0.1) + x.clamp_max(2.0) + torch.clip(x, x.flip(2), x + 1), LINE)
fn(
    "threshold",
    lambda x: F.threshold(x, 0.1, 2.0) + F.hardtanh(x) + F.logsigmoid(x) + F.rrelu(x) + F.prelu(x, torch.ones(2)),
    LINE,
)
fn("glu", lambda x: F.glu(x, 1) + F.glu(x[..., :8], 3).sum(3, keepdim=True))
fn("complex", lambda x: torch.complex(x, x.flip(3)).abs() + torch.polar(x, x.roll(1, 3)).real + torch.angle(x))
fn(
    "view_as_complex",
    lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(3, (-1, 2)).contiguous()) * 2).flatten(3),
    (2, 3, 8),
)
fn("imag", lambda x: torch.complex(x, x.flip(2)).imag + torch.complex(x, x.roll(1, 2)).conj().real, LINE)
fn("rotary", lambda x: x * x.cos() + torch.cat((-x[..., 2:], x[..., :2]), -1) * x.sin(), TOKENS)
fn("casts", lambda x: x.to(torch.float64).half().float().type_as(x) + x.double().to(x), LINE)
fn("type", lambda x: x.type(torch.float64) + x.bfloat16(), LINE)
fn("where data", lambda x: torch.where(x > x.flip(2), x, 0.0), LINE)
fn("where three", lambda x: torch.where(x.roll(1, 2) > 0, x, x.roll(3, 2)), LINE)
fn("masked_fill data", lambda x: x.masked_fill(x.roll(1, 2) > 0.5, 0.0), LINE)
fn(
    "bucketize",
    lambda x, edges: torch.bucketize(x.flip(2), edges).to(x.dtype) + x,
    LINE,
    edges=lambda: torch.arange(4.0),
)
fn("tril", lambda x: x.tril() + x.triu(1))
fn("fake quantize", lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, 0, 255), LINE)
fn(
    "fill",
    lambda x: (
        x.flip(2)
        + torch.zeros_like(x)
        + torch.ones_like(x) * x.new_ones(1)
        + torch.full_like(x, 2.0)
        + x.new_full((9,), 1.0)
    ),
    LINE,
)
fn("out", lambda x: torch.add(x, x.flip(2), out=torch.empty_like(x)), LINE)
fn("no_grad", lambda x: _without_gradient(x) + x, LINE)


def _without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x.flip(2) * 2


# statistics
for _name in (
    "sum mean amax amin prod std var logsumexp norm nansum nanmean median mode max min nanmedian argmax argmin".split()
):
    fn(_name, lambda x, n=_name: _first(getattr(x, n)(dim=2)))
    if _name not in ("amax", "amin", "logsumexp", "mode"):
        fn(f"{_name} whole", lambda x, n=_name: _first(getattr(x[:, :, 1:, 1:], n)()))
for _name in "sum mean amax amin std var logsumexp nansum".split():
    fn(f"{_name} dims", lambda x, n=_name: getattr(x, n)(dim=(1, 3), keepdim=True) + x)
for _name in "all any count_nonzero".split():
    fn(_name, lambda x, n=_name: getattr(x > 1, n)(2).to(x.dtype))


def _first(y: Any) -> Tensor:
    y = y if isinstance(y, Tensor) else y[0]
    return y if y.is_floating_point() else y.float()


fn("var_mean", lambda x: torch.var_mean(x, 3)[1] + torch.std_mean(x, 3)[0])
fn("aminmax", lambda x: x.aminmax(dim=2).max)
fn("vector_norm", lambda x: torch.linalg.vector_norm(x, 2, 2) + torch.linalg.vector_norm(x, float("inf"), (2,)))
fn("frobenius", lambda x: torch.norm(x, dim=(2, 3), keepdim=True) + torch.linalg.norm(x[..., 1:], dim=3, keepdim=True))
fn("quantile", lambda x: x.quantile(0.3, 2) + x.nanquantile(0.5, 2))
fn("kthvalue", lambda x: x.kthvalue(2, 3).values)
fn("topk", lambda x: x.topk(2, 2).values)
fn("topk indices", lambda x: x.gather(2, x.topk(2, 2).indices))
fn("sort", lambda x: x.sort(2, descending=True).values + x.msort() + torch.sort(x, stable=True, dim=2)[0])
fn("argsort", lambda x: x.argsort(3).float())
fn("softmax", lambda x: x.softmax(2))
fn("log_softmax", lambda x: x.log_softmax(3))
fn("softmin", lambda x: F.softmin(x, 2))
case("softmax2d", nn.Softmax2d)
fn("gumbel_softmax", lambda x: F.gumbel_softmax(x, dim=3))
fn("masked softmax", lambda x: x.masked_fill(torch.ones(9, 9).triu(1).bool(), -math.inf).softmax(-1) @ x, (9, 9))
fn("masked by what is like it", lambda x: x.masked_fill(torch.ones_like(x).triu(1) > 0, -1e9).softmax(-1) @ x, (9, 9))
fn("masked with zeros", lambda x: x.masked_fill(torch.ones(9, 9).triu(1).bool(), 0) @ x, (9, 9))
fn("masked twice", lambda x: (x.tril() + torch.full((9, 9), -math.inf).triu(1)).softmax(-1).softmax(-1) @ x, (9, 9))
fn("masked, of empty", lambda x: (x + torch.empty(9, 9).fill_(-math.inf).triu(1)).softmax(-1).mean(1) @ x[0], (9, 9))
case("layer_norm", lambda: nn.LayerNorm((7, 9)))
case("layer_norm last", lambda: nn.LayerNorm(9))
case("rms_norm", lambda: nn.RMSNorm(9))
case("group_norm", lambda: nn.GroupNorm(2, 4), (4, 5, 6))
fn(
    "group_norm mixed",
    lambda x, norm: norm(torch.cat([x, F.pad(x, (2, -2))], 1)),
    (2, 5, 6),
    norm=lambda: nn.GroupNorm(2, 4),
)
case("local_response_norm", lambda: nn.LocalResponseNorm(3), (4, 5))
fn("normalize", lambda x: F.normalize(x, dim=3))
fn("cosine_similarity", lambda x: F.cosine_similarity(x, x.flip(3), 2))
fn("cdist", lambda x: torch.cdist(x[:, :3], x[:, 1:]), TOKENS)
fn("fft", lambda x: torch.fft.fft(x).abs())
fn("fft2", lambda x: torch.fft.fft2(x).real)
fn("fftn", lambda x: torch.fft.ifftn(torch.fft.fftn(x, dim=(3,)), dim=(2,)).imag)
fn("rfft", lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=2), n=7, dim=2))
fn("rfft2", lambda x: torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[2:]))
fn("rfftn", lambda x: torch.fft.irfftn(torch.fft.rfftn(x, dim=(2, 3))))
fn("hfft", lambda x: torch.fft.hfft(torch.fft.ihfft(x, dim=3), dim=3))
fn("ifft", lambda x: torch.fft.ifft2(torch.fft.ifft(x, dim=2)).abs())
fn("fftshift", lambda x: torch.fft.ifftshift(torch.fft.fftshift(x, dim=2), dim=3))

# running along a dim
for _name in "cumsum cumprod logcumsumexp cummax cummin".split():
    fn(_name, lambda x, n=_name: _first(getattr(x, n)(2)))
fn("diff", lambda x: x.diff(dim=2))
for _kind in ("LSTM", "GRU", "RNN"):
    fn(_kind, lambda x, m: m(x)[0], TOKENS, m=lambda k=_kind: getattr(nn, k)(4, 3, batch_first=True))
    fn(
        f"{_kind} both",
        lambda x, m: m(x)[0],
        TOKENS,
        m=lambda k=_kind: getattr(nn, k)(4, 3, batch_first=True, bidirectional=True),
    )
    fn(
        f"{_kind} deep",
        lambda x, m: m(x)[0],
        TOKENS,
        m=lambda k=_kind: getattr(nn, k)(4, 3, 2, batch_first=True, bidirectional=True),
    )
    fn(f"{_kind} state", lambda x, m: _first(m(x)[1]), TOKENS, m=lambda k=_kind: getattr(nn, k)(4, 3, batch_first=True))
    fn(f"{_kind} time first", lambda x, m: m(x.transpose(0, 1))[0], TOKENS, m=lambda k=_kind: getattr(nn, k)(4, 3))
    fn(f"{_kind}Cell", lambda x, m: _first(m(x[:, 1])), TOKENS, m=lambda k=_kind: getattr(nn, f"{k}Cell")(4, 3))
fn("RNN relu", lambda x, m: m(x)[0], TOKENS, m=lambda: nn.RNN(4, 3, nonlinearity="relu", batch_first=True))
fn("LSTM projected", lambda x, m: m(x)[0], TOKENS, m=lambda: nn.LSTM(4, 3, proj_size=2, batch_first=True))

# products
fn("matmul", lambda x: x @ x.transpose(2, 3))
fn("matmul vector", lambda x: (x[0] @ x[0, 0]) @ x[0, :, 0], TOKENS)
fn("mm", lambda x: torch.mm(x[0], x[0].t()), TOKENS)
fn("bmm", lambda x: torch.bmm(x, x.transpose(1, 2)), TOKENS)
fn("mv", lambda x: torch.mv(x[0], x[0, 1]), TOKENS)
fn("dot", lambda x: torch.dot(x[0, 0], x[0, 1]) + torch.vdot(x[0, 2], x[0, 1]), TOKENS)
fn("inner", lambda x: torch.inner(x[0], x[0, 1]), TOKENS)
fn("outer", lambda x: torch.outer(x[0, 0], x[0, 1]) + torch.ger(x[0, 2], x[0, 1]), TOKENS)
fn("cross", lambda x: torch.linalg.cross(x, x.flip(1)) + torch.cross(x, x.roll(1, 1), dim=2), (5, 3))
fn("kron", lambda x: torch.kron(x[0, :2], x[0, 2:4]), TOKENS)
fn("addmm", lambda x: torch.addmm(x[0, :, :1], x[0], x[0].t()), TOKENS)
fn(
    "baddbmm",
    lambda x: torch.baddbmm(x[:, :, :1], x, x.transpose(1, 2)) + torch.addbmm(x[0, :1, :1], x, x.transpose(1, 2)),
    TOKENS,
)
fn("addmv", lambda x: torch.addmv(x[0, :, 0], x[0], x[0, 1]) + torch.addr(x[0], x[0, :, 1], x[0, 2]).sum(1), TOKENS)
fn("einsum", lambda x: torch.einsum("nchw,nchv->ncwv", x, x))
fn(
    "einsum heads",
    lambda x: torch.einsum(
        "bhqk,bkhd->bqhd",
        torch.einsum("bqhd,bkhd->bhqk", *2 * [x.unflatten(2, (2, 2))]).softmax(-1),
        x.unflatten(2, (2, 2)),
    ),
    TOKENS,
)
fn("tensordot", lambda x: torch.tensordot(x, x, ([1, 3], [1, 3])))
case("linear", lambda: nn.Linear(9, 3))
fn("linear dynamic", lambda x: F.linear(x, x[0, :2]), TOKENS)
fn("bilinear", lambda x, m: m(x, x.flip(1)), TOKENS, m=lambda: nn.Bilinear(4, 4, 3))
fn("fixed product", lambda x, w: w @ x, w=lambda: torch.ones(3, 7))
fn("hadamard", lambda x, w: x * w + w, w=_weights(7, 1))
case("mixer", lambda: nn.Sequential(nn.Linear(9, 9), Apply(lambda x: x.transpose(2, 3)), nn.Linear(7, 4)))

# attention
for _name in ATTENTIONS:
    case(f"attention {_name}", lambda k=_name: attention((2, 7), k, False, 0), (2, 7))
    case(f"attention {_name} windows", lambda k=_name: attention((2, 4, 5), k, True, 3), (2, 4, 5))
fn("attention cross", lambda x, y: F.scaled_dot_product_attention(x, y, y), [(5, 4), (3, 4)])
fn(
    "attention memory",
    lambda x, memory: F.scaled_dot_product_attention(x, memory, memory),
    TOKENS,
    memory=_weights(1, 3, 4),
)
fn("attention queries", lambda x, query: F.scaled_dot_product_attention(query, x, x), TOKENS, query=_weights(1, 3, 4))
fn(
    "attention grouped",
    lambda x: F.scaled_dot_product_attention(
        *(x.unflatten(2, (h, 2)).transpose(1, 2)[:, :g] for h, g in ((2, 2), (2, 1), (2, 1))), enable_gqa=True
    ),
    TOKENS,
)
fn("attention bias", lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=x @ x.transpose(1, 2)), TOKENS)
fn("mha weights", lambda x, m: m(x, x, x)[1], TOKENS, m=lambda: nn.MultiheadAttention(4, 2, batch_first=True))
fn(
    "mha padding",
    lambda x, m: m(x, x, x, key_padding_mask=torch.tensor([[False] * 4 + [True]]))[0],
    TOKENS,
    m=lambda: nn.MultiheadAttention(4, 2, batch_first=True),
)
fn(
    "mha bias_kv",
    lambda x, m: m(x, x, x)[0],
    TOKENS,
    m=lambda: nn.MultiheadAttention(4, 2, batch_first=True, add_bias_kv=True, add_zero_attn=True),
)
fn(
    "mha memory",
    lambda x, y, m: m(x, y, y)[0],
    [(5, 4), (3, 6)],
    m=lambda: nn.MultiheadAttention(4, 2, kdim=6, vdim=6, batch_first=True),
)
case("encoder layer", lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), TOKENS)
case(
    "encoder",
    lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, norm_first=True), 2),
    TOKENS,
)
fn(
    "decoder layer",
    lambda x, m: m(x, x.flip(1)),
    TOKENS,
    m=lambda: nn.TransformerDecoderLayer(4, 2, 8, batch_first=True),
)
fn(
    "encoder causal",
    lambda x, m: m(x, torch.full((5, 5), -math.inf).triu(1), is_causal=True),
    TOKENS,
    m=lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
)
case("class token", lambda: class_token((2, 3, 4)), (2, 3, 4))
fn("embedding positions", lambda x, m: x + m(torch.arange(x.shape[1])), TOKENS, m=lambda: nn.Embedding(5, 4))
case("embedding", lambda: nn.Sequential(nn.Embedding(7, 3), nn.Conv1d(6, 2, 1)), (6,))

# moving around
for _name, _move in {
    "view": lambda x: x.view(1, 2, 63),
    "reshape": lambda x: x.reshape(1, 9, 7, 2),
    "flatten": lambda x: x.flatten(1, 2),
    "unflatten": lambda x: x.unflatten(3, (3, 3)),
    "ravel": lambda x: x.ravel(),
    "view_as": lambda x: x.view_as(x),
    "reshape_as": lambda x: x.reshape_as(x.transpose(2, 3)),
    "squeeze": lambda x: x.unsqueeze(2).squeeze(0).squeeze(),
    "squeeze many": lambda x: x[:, :1].squeeze((0, 1)),
    "unsqueeze": lambda x: x.unsqueeze(-1),
    "permute": lambda x: x.permute(0, 3, 1, 2),
    "transpose": lambda x: x.transpose(-1, 2),
    "swapdims": lambda x: x.swapdims(1, 3),
    "T": lambda x: x[0, 0].T,
    "t": lambda x: x[0, 0].t(),
    "mT": lambda x: x.mT,
    "mH": lambda x: x.mH,
    "H": lambda x: x[0, 0].H,
    "adjoint": lambda x: x.adjoint(),
    "movedim": lambda x: x.movedim((1, 2), (3, 0)),
    "moveaxis": lambda x: torch.moveaxis(x, 1, -1),
    "expand": lambda x: x[:, :, :1].expand(-1, -1, 4, -1),
    "expand_as": lambda x: x.mean(2, keepdim=True).expand_as(x) + x,
    "broadcast_to": lambda x: x[:, :, :1].broadcast_to(1, 2, 3, 9),
    "getitem": lambda x: x[0, :, 1:-1, ::2],
    "getitem ellipsis": lambda x: x[..., None, 2],
    "getitem minus": lambda x: x[:, :, -3:],
    "narrow": lambda x: x.narrow(3, -4, 3),
    "select": lambda x: x.select(2, -1),
    "flip": lambda x: x.flip(2, 3),
    "fliplr": lambda x: x[0].fliplr() + x[0].flipud(),
    "roll": lambda x: x.roll((1, -2), (2, 3)),
    "roll all": lambda x: x.roll(4),
    "rot90": lambda x: x.rot90(1, (2, 3)),
    "chunk": lambda x: torch.cat(x.chunk(3, 3)[::-1], 3),
    "split": lambda x: x.split(2, 3)[1],
    "split sizes": lambda x: x.split([2, 7], 3)[1],
    "tensor_split": lambda x: x.tensor_split(4, 3)[2],
    "unbind": lambda x: x.unbind(2)[3],
    "hsplit": lambda x: x[0].hsplit([2, 4])[1] + x[0].dsplit(3)[0].sum(2, keepdim=True)[:, 2:4],
    "vsplit": lambda x: x[0].vsplit(2)[1],
    "unsafe_split": lambda x: x.unsafe_split(3, 3)[1] + x.unsafe_chunk(3, 3)[0],
    "iterate": lambda x: sum(row for row in x[0, 0]),
    "repeat": lambda x: x.repeat(1, 1, 2, 1),
    "tile": lambda x: x.tile(2),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 3),
    "repeat_interleave flat": lambda x: x.repeat_interleave(2),
    "cat": lambda x: torch.cat([x, x.flip(3)], 2),
    "concat": lambda x: torch.concat([x[:, :, :2], x], 2) + torch.concatenate([x, x[:, :, :2]], 2),
    "stack": lambda x: torch.stack([x, x.flip(3)], 2),
    "hstack": lambda x: torch.hstack([x, x.flip(3)]) + torch.vstack([x, x]).flatten(0, 1),
    "index_select": lambda x: x.index_select(3, torch.tensor([4, 0, 4])),
    "index list": lambda x: x[:, :, [5, 1]],
    "index tensor": lambda x: x[:, :, torch.tensor([5, 1])],
    "index pairs": lambda x: x[:, :, torch.tensor([0, 2]), torch.tensor([1, 3])],
    "index grid": lambda x: x[:, :, torch.tensor([[0], [2]]), torch.tensor([1, 3])],
    "index apart": lambda x: x[:, torch.tensor([0, 1]), :, torch.tensor([1, 3])],
    "index mask": lambda x: x[:, :, torch.arange(7) % 2 == 0],
    "index mask 2d": lambda x: x[:, :, torch.ones(7, 9).tril().bool()],
    "index data": lambda x: x[0, 0, x[0, 1].argmax(0)],
    "index_select data": lambda x: x.index_select(3, x[0, 0, 0].argsort()),
    "gather": lambda x: x.gather(3, torch.zeros(1, 2, 7, 2, dtype=torch.long)),
    "take_along_dim": lambda x: x.take_along_dim(x.argsort(2), 2),
    "take": lambda x: x.take(torch.tensor([3, 60])),
    "diagonal": lambda x: x.diagonal(1, 2, 3),
    "diag": lambda x: x[0, 0].diag(),
    "diag_embed": lambda x: x[0, 0].diag_embed(),
    "trace": lambda x: x[0, 0].trace(),
    "block_diag": lambda x: torch.block_diag(x[0, 0], x[0, 1]),
    "meshgrid": lambda x: torch.meshgrid(x[0, 0, 0], x[0, 0, 1], indexing="ij")[0],
    "as_strided": lambda x: x.as_strided((3, 4), (9, 2)),
    "broadcast_tensors": lambda x: torch.broadcast_tensors(x, x[:, :, :1])[1],
    "atleast_3d": lambda x: torch.atleast_3d(x[0, 0]),
    "unravel": lambda x: x.contiguous(memory_format=torch.channels_last),
    "numpy_T": lambda x: x[0, 0].numpy_T if hasattr(x, "numpy_T") else x[0, 0].T,
    "unique_dim": lambda x: x.sort(3)[0],
    "tolist": lambda x: x[:, :, : len(x[0, 0].shape)],
    "one by one": lambda x: torch.stack([x[:, :, i] * i for i in range(7)], 2),
}.items():
    fn(_name, _move)

# writes
for _name in WRITES:
    case(f"write {_name}", lambda k=_name: write((7, 7, 9), 2, k), (7, 7, 9))
    case(f"write {_name} last", lambda k=_name: write((2, 4, 5), 3, k), (2, 4, 5))
fn("slice_scatter", lambda x: x.slice_scatter(x[:, :, :2], 2, 3, 5) + x.select_scatter(x[:, :, 0], 2, 1))
fn("diagonal_scatter", lambda x: x.diagonal_scatter(x[:, :, :, 0], 0, 2, 3))
fn("index_put", lambda x: x.index_put((torch.tensor([0]), torch.tensor([1])), x[0, 0]))
fn("index_fill", lambda x: x.index_fill(2, torch.tensor([1]), 0.5) + x.index_copy(2, torch.tensor([1]), x[:, :, :1]))
fn(
    "index_add",
    lambda x: (
        x.index_add(2, torch.tensor([1]), x[:, :, :1]) + x.index_reduce(3, torch.tensor([0]), x[..., 1:2], "mean")
    ),
)
fn(
    "scatter",
    lambda x: (
        x.scatter(3, torch.zeros(1, 2, 7, 1, dtype=torch.long), x[..., 2:3])
        + x.scatter_add(3, torch.ones(1, 2, 7, 1, dtype=torch.long), x[..., :1])
    ),
)
fn("scatter_reduce", lambda x: x.scatter_reduce(3, torch.zeros(1, 2, 7, 2, dtype=torch.long), x[..., 1:3], "sum"))
fn("masked_scatter", lambda x: x.masked_scatter(torch.arange(9) < 2, x[..., 3:5]))
fn("put", lambda x: x.put(torch.tensor([1]), x[0, 0, 0, 5:6]))
fn("mask write", lambda x: _written(x, lambda y: y.__setitem__((slice(None), slice(None), torch.arange(7) > 3), 0.5)))
fn("mask write data", lambda x: _written(x, lambda y: y.__setitem__(y.flip(2) > 1, 0.5)))
fn("fill_", lambda x: _written(x, lambda y: (y[:, :, :2].fill_(1.0), y[:, :, -1].zero_(), y[:, 0].copy_(x[:, 1]))))
fn(
    "add_ views",
    lambda x: _written(
        x, lambda y: (y.permute(0, 1, 3, 2)[..., 0].add_(x[:, :, 1]), y.view(-1)[5:7].add_(x[0, 0, 0, :2]))
    ),
)
fn("split write", lambda x: _written(x, lambda y: [p.add_(x[:, :, i : i + 1]) for i, p in enumerate(y.split(1, 2))]))
fn("unbind write", lambda x: _written(x, lambda y: y.unbind(2)[1].add_(x[:, :, 4])))
fn("squeeze write", lambda x: _written(x, lambda y: y.unsqueeze(0)[0, :, :, 1].mul_(x[:, :, 3])))
fn("expand write", lambda x: _written(x, lambda y: y.unflatten(3, (3, 3))[..., 1].add_(x[..., ::3])))
fn("masked_fill_", lambda x: _written(x, lambda y: y[:, :, 1:].masked_fill_(torch.arange(9) > 5, 0.5)))


def _written(x: Tensor, change: Callable[[Tensor], Any]) -> Tensor:
    y = x * 1
    view = y[:, :, 1:3]
    change(y)
    return torch.cat([y, view], 2)


# several sources for one place: the last stays, unless they are joined
_TWICE, _ROWS, _FIRST = torch.tensor([4, 0, 4]), torch.tensor([[0], [1]]), torch.tensor([0])
_PLACES = torch.tensor([4, 0, 4, 1, 1, 2]).repeat(7).view(1, 1, 7, 6).expand(1, 2, 7, 6)[..., :5]
_EVERY = torch.arange(8, -1, -1).expand(1, 2, 7, 9)
for _name, _change in (
    ("columns", lambda y, x: y.__setitem__((..., _TWICE), x[..., 5:8])),
    ("columns repeated", lambda y, x: y.__setitem__((..., _TWICE), x[..., 5:6])),
    ("columns by number", lambda y, x: y.__setitem__((..., _TWICE), 0.5)),
    ("channels and columns", lambda y, x: y.__setitem__((slice(None), _ROWS, 2, _TWICE), x[:, :, 5, 5:8])),
    (
        "apart",
        lambda y, x: y.__setitem__((_FIRST, slice(None), slice(1, 3), _TWICE), x[0, :, 3:5, 5:8].permute(2, 0, 1)),
    ),
    ("mask", lambda y, x: y.__setitem__((..., torch.arange(9) > 5), x[..., 1:4])),
    ("mask of elements", lambda y, x: y.__setitem__(torch.arange(126).view(1, 2, 7, 9) > 100, x.flatten()[:25])),
    ("mask by mean", lambda y, x: y.__setitem__(torch.arange(126).view(1, 2, 7, 9) > 100, x[..., :3].mean())),
    ("index_put_", lambda y, x: y.index_put_((_FIRST, _ROWS, _FIRST, _TWICE), x[0, :, 5, 5:8])),
    ("index_put_ add", lambda y, x: y.index_put_((_FIRST, _ROWS, _FIRST, _TWICE), x[0, :, 5, 5:8], True)),
    ("index_copy_", lambda y, x: y.index_copy_(3, _TWICE, x[..., 5:8])),
    ("scatter_", lambda y, x: y.scatter_(3, _PLACES, x)),
    ("scatter_ all", lambda y, x: y.scatter_(3, _EVERY, x)),
    ("scatter_ number", lambda y, x: y.scatter_(2, _PLACES, 0.5)),
    ("put_", lambda y, x: y.put_(_TWICE, x[0, 1, 0, 1:4])),
):
    fn(f"write {_name}", lambda x, change=_change: _written(x, lambda y: change(y, x)))
for _name, _join in (
    ("index_put", lambda x: x.index_put((_FIRST, _ROWS, _FIRST, _TWICE), x[0, :, :3, 5], accumulate=True)),
    ("index_put mask", lambda x: x.index_put((torch.arange(126).view(1, 2, 7, 9) > 123,), x[0, 0, 0, :2], True)),
    ("_unsafe_index_put", lambda x: torch.ops.aten._unsafe_index_put(x, [None, None, None, _TWICE], x[..., 5:8])),
    ("put", lambda x: x.put(_TWICE, x[0, 1, 0, 1:4], accumulate=True)),
    ("scatter add", lambda x: x.scatter(3, _PLACES, x[..., 4:], reduce="add")),
    ("scatter multiply", lambda x: x.scatter(3, _PLACES, 2.0, reduce="multiply")),
    ("scatter_add", lambda x: x.scatter_add(3, _PLACES, x[..., 4:])),
    *(
        (f"{n} {how} {kept}", lambda x, n=n, how=how, kept=kept: _reduced_into(x, n, how, kept))
        for n in ("scatter_reduce", "index_reduce")
        for how in ("amax", "mean")
        for kept in (True, False)
    ),
):
    fn(f"join {_name}", _join)


def _reduced_into(x: Tensor, name: str, how: str, kept: bool) -> Tensor:
    if name == "scatter_reduce":
        return x.scatter_reduce(3, _PLACES, x[..., 4:], how, include_self=kept)
    return x.index_reduce(3, _TWICE, x[..., 5:8], how, include_self=kept)


# packed sequences
def _packed(x: Tensor, layer: nn.Module) -> Tensor:
    steps = nn.utils.rnn.pack_padded_sequence(x.mT, torch.tensor([7]), batch_first=True)
    return nn.utils.rnn.pad_packed_sequence(layer(steps)[0], batch_first=True)[0]


for _kind in (nn.LSTM, nn.GRU, nn.RNN):
    for _both in (False, True):
        fn(
            f"packed {_kind.__name__} {_both}",
            _packed,
            LINE,
            layer=lambda k=_kind, b=_both: k(2, 3, batch_first=True, bidirectional=b),
        )


# losses
_CLASSES = torch.tensor([[0, 1, -100, 1, 0, 0, 1, 1, 0]])
for _how in ("none", "mean", "sum"):
    for _name in (
        "mse_loss l1_loss smooth_l1_loss huber_loss soft_margin_loss kl_div poisson_nll_loss "
        "binary_cross_entropy binary_cross_entropy_with_logits"
    ).split():
        fn(
            f"{_name} {_how}",
            lambda x, n=_name, how=_how: getattr(F, n)(x[..., 1:], x[..., :-1].detach() * 1, reduction=how),
            LINE,
        )
    fn(f"mse_loss constant {_how}", lambda x, how=_how: F.mse_loss(torch.ones(2, 9), x[0], reduction=how), LINE)
    fn(f"weighted {_how}", lambda x, how=_how: F.binary_cross_entropy(x, x.flip(2), x.roll(1, 2), reduction=how), LINE)
    fn(f"nll_loss {_how}", lambda x, how=_how: F.nll_loss(x, _CLASSES, reduction=how), LINE)
    fn(f"nll_loss over tokens {_how}", lambda x, how=_how: F.nll_loss(x[0], torch.tensor([5, 8]), reduction=how), LINE)
    fn(f"cross_entropy {_how}", lambda x, how=_how: F.cross_entropy(x, _CLASSES, reduction=how), LINE)
    fn(
        f"cross_entropy smooth {_how}",
        lambda x, how=_how: F.cross_entropy(x[..., None], _CLASSES[..., None], reduction=how, label_smoothing=0.1),
        LINE,
    )
    fn(f"cross_entropy soft {_how}", lambda x, how=_how: F.cross_entropy(x, x.flip(2).softmax(1), reduction=how), LINE)
    fn(
        f"cosine_embedding_loss {_how}",
        lambda x, how=_how: F.cosine_embedding_loss(x[0].mT, x[0].mT.flip(0), torch.ones(9), reduction=how),
        LINE,
    )
    fn(
        f"triplet_margin_loss {_how}",
        lambda x, how=_how: F.triplet_margin_loss(x[0].mT, x[0].mT.flip(0), x[0].mT.roll(1, 0), 50.0, reduction=how),
        LINE,
    )
    fn(
        f"multi_margin_loss {_how}",
        lambda x, how=_how: F.multi_margin_loss(x[0].mT, torch.zeros(9, dtype=torch.long), reduction=how),
        LINE,
    )
    fn(
        f"multilabel_margin_loss {_how}",
        lambda x, how=_how: F.multilabel_margin_loss(x[0].mT, torch.zeros(9, 2, dtype=torch.long), reduction=how),
        LINE,
    )
    fn(
        f"ctc_loss {_how}",
        lambda x, how=_how: F.ctc_loss(
            x.permute(2, 0, 1).log_softmax(2), torch.ones(1, 3, dtype=torch.long), (9,), (3,), reduction=how
        ),
        LINE,
    )
fn("_is_all_true", lambda x: torch._is_all_true(x > 1) * x[..., 1:], LINE)
fn("_is_any_true", lambda x: torch._is_any_true(x > 1) * x[..., 1:], LINE)


# only the shape or the type of the second tensor counts
_CENTRE = {"held": lambda: torch.rand(1, 2, 1, 1)}
for _name in ("type_as", "to"):
    fn(f"{_name} buffer", lambda x, held, n=_name: getattr(x[:, :, 1:], n)(held), **_CENTRE)
    fn(f"{_name} of a buffer", lambda x, held, n=_name: F.avg_pool2d(x - getattr(held, n)(x), 3), **_CENTRE)
    fn(
        f"{_name} of a count",
        lambda x, n=_name: torch.where(getattr(torch.arange(9), n)(x.flip(3)) > 3, x[:, :, 1:], x[:, :, :-1]),
    )
    fn(f"{_name} of another size", lambda x, n=_name: getattr(x[:, :, 1:], n)(x.mean(2)))
fn("view_as flipped", lambda x: F.avg_pool1d(x.mean(0).view_as(x.flip(3).flatten(2).view(2, 9, 7)), 2), MAP)
fn("reshape_as flipped", lambda x: x.permute(0, 1, 3, 2).reshape_as(x.flip(2)), MAP)
fn("expand_as flipped", lambda x: x.mean(2, keepdim=True).expand_as(x.flip(3)), MAP)
for _name, _make in (
    ("new_ones", lambda x: x.new_ones(5, 5)),
    ("ones_like", lambda x: torch.ones_like(x[0] @ x[0].transpose(0, 1))),
    ("new_full", lambda x: x.new_full((5, 5), 2.0)),
    ("full_like", lambda x: torch.full_like(x[0] @ x[0].transpose(0, 1), 1)),
):
    fn(
        f"causal by {_name}",
        lambda x, make=_make: (x @ x.mT).masked_fill(make(x).triu(1) > 0, -math.inf).softmax(-1) @ x,
        TOKENS,
    )


# modules and whole networks


class _Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.body, self.reentrant = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU()), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.body, x, use_reentrant=self.reentrant) + x


class _Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


class _Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"twice": self.conv(self.conv(x)), "rest": (x.mean(), [x])}


case("checkpoint", lambda: _Checkpointed(False))
case("checkpoint reentrant", lambda: _Checkpointed(True))
case("shared", _Shared)
fn("custom function", lambda x: _Swish.apply(x) + x.flip(2))
case("lazy", lambda: nn.Sequential(nn.LazyConv2d(3, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(2)))
case("weight_norm", lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 3)))
case("spectral_norm", lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 3, 3))))
case(
    "flatten linear", lambda: nn.Sequential(nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(70, 4), nn.Unflatten(1, (2, 2)))
)
fn("two inputs", lambda x, y: x * F.interpolate(y, x.shape[2:]), [(2, 7, 9), (2, 3, 4)])
case("separable", lambda: nn.Sequential(nn.Conv2d(4, 4, (1, 5), 1, (0, 2), groups=4), nn.Conv2d(4, 3, 1)), (4, 7, 9))
case("squeeze_excite", lambda: squeeze_excite((2, 7, 9), "sigmoid", False))
case("swin window", lambda: windows((2, 7, 9), 3, 1, "attention"))
case(
    "unet",
    lambda: branch(
        (2, 7, 9),
        (
            Step(
                "conv",
                tuple(
                    {
                        "out": 2,
                        "kernel": (3, 3),
                        "stride": (1, 1),
                        "padding": "same",
                        "dilation": (1, 1),
                        "groups": 1,
                        "mode": "zeros",
                        "bias": True,
                    }.items()
                ),
            ),
        ),
        (
            Step(
                "max_pool",
                (("kernel", (2, 2)), ("stride", (2, 2)), ("padding", (0, 0)), ("ceil", True), ("dilation", (1, 1))),
            ),
            Step("interpolate", (("mode", "nearest"), ("scale_factor", (2.0, 2.0)))),
        ),
        "cat",
        "start",
    ),
)

# low-level names: what a forward reaches only by calling them, or torch by itself further down

_aten, _vision = torch.ops.aten, torch.ops.torchvision


def _channels(value: float) -> Callable[[], Tensor]:
    return lambda: torch.full((2,), value)


fn("_adaptive_avg_pool2d", lambda x: torch._adaptive_avg_pool2d(x, (3, 2)))
fn("_adaptive_avg_pool3d", lambda x: torch._adaptive_avg_pool3d(x, (3, 2, 2)), VOLUME)
fn(
    "_batch_norm_impl_index",
    lambda x, m, v: torch._batch_norm_impl_index(x, None, None, m, v, False, 0.1, 1e-5, False)[0],
    m=_channels(0.0),
    v=_channels(1.0),
)
fn(
    "native_batch_norm",
    lambda x, m, v: torch.native_batch_norm(x, None, None, m, v, False, 0.1, 1e-5)[0],
    m=_channels(0.0),
    v=_channels(1.0),
)
fn("native_batch_norm own", lambda x: torch.native_batch_norm(x, None, None, None, None, True, 0.1, 1e-5)[0])
fn(
    "_native_batch_norm_legit_no_training",
    lambda x, m, v: _aten._native_batch_norm_legit_no_training(x, None, None, m, v, 0.1, 1e-5)[0],
    m=_channels(0.0),
    v=_channels(1.0),
)
fn("native_layer_norm", lambda x: torch.native_layer_norm(x, [9], None, None, 1e-5)[0])
fn("native_group_norm", lambda x: torch.native_group_norm(x, None, None, 1, 4, 30, 2, 1e-5)[0], (4, 5, 6))
if hasattr(torch, "_fused_rms_norm"):
    fn("_fused_rms_norm", lambda x: torch._fused_rms_norm(x, [9], None, 1e-5)[0])
fn(
    "_convolution",
    lambda x, w: torch._convolution(x, w, None, [2, 1], [1, 0], [1, 1], False, [0, 0], 1, False, False, False, False),
    w=_weights(3, 2, 3, 3),
)
fn("_fft_r2c", lambda x: torch._fft_r2c(x, [3], 0, False).real)
fn("_fft_c2c", lambda x: torch._fft_c2c(torch.complex(x, x.flip(3)), [2], 0, True).abs())
fn("_fft_c2r", lambda x: torch._fft_c2r(torch.complex(x, x), [3], 0, 17))  # a length whose angles cancel nowhere
fn("hfft2", lambda x: torch.fft.hfft2(torch.fft.ihfft2(x)))
fn("hfftn", lambda x: torch.fft.hfftn(torch.fft.ihfftn(x, dim=(3,)), dim=(3,)))
fn("_softmax", lambda x: torch._softmax(x, 2, False))
fn("_safe_softmax", lambda x: torch._safe_softmax(x, 2))
fn("_log_softmax", lambda x: torch._log_softmax(x, 2, False))
fn("_cdist_forward", lambda x: _aten._cdist_forward(x[:, :3], x[:, 1:], 2.0, None), TOKENS)
fn("pdist", lambda x: torch.pdist(x[0]), TOKENS)
fn("frobenius_norm", lambda x: _aten.frobenius_norm(x, dim=[2], keepdim=True))
fn("norm overload", lambda x: _aten.norm(x, 2, [2]))
fn(
    "_scaled_dot_product_attention_math",
    lambda x: torch._scaled_dot_product_attention_math(x, x, x, None, 0.0, True)[0],
    TOKENS,
)
fn(
    "_scaled_dot_product_flash_attention_for_cpu",
    lambda x: _aten._scaled_dot_product_flash_attention_for_cpu(x[None], x[None], x[None])[0],
    TOKENS,
)
fn("_trilinear", lambda x: torch._trilinear(x[0], x[0], x[0], [], [], [], [0, 1]), TOKENS)
fn(
    "attention causal cross",
    lambda x: F.scaled_dot_product_attention(x[:, :, :3], x, x, is_causal=True),
)
fn("attention causal cross wide", lambda x: F.scaled_dot_product_attention(x, x[:, :, :4], x[:, :, :4], is_causal=True))
fn("alias", lambda x: _aten.alias(x) + x)
fn("_to_copy", lambda x: _aten._to_copy(x, dtype=torch.float64) + x)
fn("_reshape_alias", lambda x: _aten._reshape_alias(x, [1, 2, 9, 7], [126, 63, 7, 1]))
fn("_unsafe_view", lambda x: _aten._unsafe_view(x, [1, 2, 63]))
fn("_unsafe_index", lambda x: _aten._unsafe_index(x, [None, None, torch.tensor([4, 1, 1])]))
fn("unsafe_split_with_sizes", lambda x: torch.unsafe_split_with_sizes(x, [2, 7], 3)[1])
fn("swapaxes", lambda x: x.swapaxes(1, 3))
fn("constant_pad_nd", lambda x: torch.constant_pad_nd(x, (1, -1, 0, 2)))
fn("_pad_circular", lambda x: torch._C._nn._pad_circular(x, (1, 2, 0, 1)))
for _n, _shape in ((1, LINE), (2, MAP), (3, VOLUME)):
    for _name in ("reflection", "replication"):
        _pad = getattr(torch._C._nn, f"{_name}_pad{_n}d")
        fn(f"torch {_name}_pad{_n}d", lambda x, f=_pad, n=_n: f(x, (1, 2) * n), _shape)
fn("_prelu_kernel", torch._prelu_kernel, w=_weights(1, 2, 1, 1))
fn("relu6", lambda x: _aten.relu6(x) + x.flip(2), LINE)
fn("log_sigmoid_forward", lambda x: _aten.log_sigmoid_forward(x)[0] + x.flip(2), LINE)
fn("rrelu_with_noise", lambda x: torch._C._nn.rrelu_with_noise(x, torch.ones(1, 2, 9)) + x.flip(2), LINE)
fn("sgn", lambda x: x.sgn() + x.flip(2), LINE)
fn("aten conj", lambda x: _aten.conj(x) + x.flip(2), LINE)
fn("native_dropout", lambda x: torch.native_dropout(x, 0.5, False)[0] + x.flip(2), LINE)
fn(
    "random like",
    lambda x: (
        x.flip(2)
        + torch.rand_like(x)
        + torch.randn_like(x)
        + torch.randint_like(x, 3)
        + x.new_zeros(9)
        + x.new_empty(9).fill_(1.0)
        + x.new_empty_strided((9,), (1,)).fill_(1.0)
    ),
    LINE,
)
fn(
    "random writes",
    lambda x: _written(
        x, lambda y: (y[:, :, 0].normal_(), y[:, :, 1].uniform_(), y[:, :, 4].random_(), y[:, :, 5].exponential_())
    ),
)
fn("one_hot", lambda x, m: m(x) + F.one_hot(x, 7), (6,), m=lambda: nn.Embedding(7, 7))

# reading where the data point: all four corners of a 2x2 map are read at its centre
fn(
    "grid_sampler_2d",
    lambda x, g: torch.grid_sampler_2d(x, g, 0, 0, True),
    (3, 2, 2),
    g=lambda: torch.zeros(1, 3, 4, 2),
)
fn(
    "grid_sampler_3d",
    lambda x, g: torch.grid_sampler_3d(x, g, 0, 0, True),
    (3, 2, 2, 2),
    g=lambda: torch.zeros(1, 2, 2, 3, 3),
)
_ROI = torch.tensor([[0.0, 0, 0, 3, 3]])
fn("roi_align", lambda x, b: _first(_vision.roi_align(x, b, 1.0, 2, 2, -1, False)), b=_ROI.clone)
fn("roi_pool", lambda x, b: _first(_vision.roi_pool(x, b, 1.0, 2, 2)), b=_ROI.clone)
fn("ps_roi_align", lambda x, b: _first(_vision.ps_roi_align(x, b, 1.0, 2, 2, 1)), (4, 7, 9), b=_ROI.clone)
fn("ps_roi_pool", lambda x, b: _first(_vision.ps_roi_pool(x, b, 1.0, 2, 2)), (4, 7, 9), b=_ROI.clone)
fn(
    "deform_conv2d",
    lambda x, o, w: deform_conv2d(x, o, w, padding=1),
    o=lambda: torch.zeros(1, 18, 7, 9),
    w=_weights(3, 2, 3, 3),
)
fn("nms", lambda x: nms(torch.cat([x[0], x[0] + 1], 1).abs(), x[0, :, 0], 0.5).float(), (5, 2))

# results without a gradient: only what is beside them can be measured
fn("nonzero", lambda x: torch.nonzero(x > 1).float().sum() + torch.argwhere(x > 1).float().sum() + x.mean())
fn("masked_select", lambda x: torch.masked_select(x, x > -1e9))
fn("unique", lambda x: torch.unique(x > 1).float().sum() + x.mean(), LINE)
fn("unique dim", lambda x: torch.unique(x > 1, dim=2).float().sum() + x.mean(), LINE)
fn("unique_consecutive", lambda x: torch.unique_consecutive(x > 1).float().sum() + x.mean(), LINE)
fn("bincount", lambda x: torch.bincount((x * 5).long().abs().flatten(), minlength=10).float().sum() + x.mean(), LINE)
fn("histc", lambda x: torch.histc(x, 5).sum() + x.mean(), LINE)
fn("isin", lambda x: torch.isin(x, torch.ones(3)).float().sum() + x.mean(), LINE)
fn("searchsorted", lambda x: torch.searchsorted(x.sort(2)[0], x).float(), LINE)
fn("multinomial", lambda x: torch.multinomial(x[0].abs(), 2).float().sum() + x.mean(), LINE)


# torch quantizes single precision only; in the oracle's double precision a function of the same name takes its place


def _named(name: str) -> Callable[[Tensor], Tensor]:
    def stand_in(x: Tensor) -> Tensor:
        return handle_torch_function(stand_in, (x,), x) if has_torch_function_unary(x) else x * 1

    stand_in.__name__ = name
    return stand_in


_STAND_INS = {n: _named(n) for n in ("quantize_per_tensor", "quantize_per_channel", "dequantize")}


def _quantized(x: Tensor, name: str, *options: Any) -> Tensor:
    if x.dtype == torch.float64:
        return _STAND_INS["dequantize"](_STAND_INS[name](x)) + x.flip(2)
    return torch.dequantize(getattr(torch, name)(x, *options)) + x.flip(2)


_SCALES, _ZEROS = torch.full((2,), 0.1), torch.zeros(2, dtype=torch.int32)
fn("quantize_per_tensor", lambda x: _quantized(x, "quantize_per_tensor", 0.1, 0, torch.quint8), LINE)
fn("quantize_per_channel", lambda x: _quantized(x, "quantize_per_channel", _SCALES, _ZEROS, 1, torch.quint8), LINE)
fn(
    "fake_quantize_per_channel_affine",
    lambda x: torch.fake_quantize_per_channel_affine(x, _SCALES, _ZEROS, 1, 0, 255) + x.flip(2),
    LINE,
)
fn("group_norm channels", lambda x, norm: norm(x.transpose(1, 3)), (2, 5, 4), norm=lambda: nn.GroupNorm(2, 4))
fn("grouped over channels", lambda x, m: m(x.transpose(1, 3)), (2, 5, 6), m=lambda: nn.Conv2d(6, 4, 1, groups=2))
fn("pixel_shuffle both", lambda x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2)[:, :, 1:], (1, 6, 8))


def _widened(x: Tensor, wide: nn.Module, near: nn.Module, groups: nn.Module) -> Tensor:
    """Two concatenations of the same fields, of other widths the second time."""
    first = torch.cat([x, -x], 1)
    y = wide(x)
    second = torch.cat([y, -y, near(y)], 1)
    return groups(second) + second[:, 12:, :1, :1] + first.mean()


fn(
    "cat again in other widths",
    _widened,
    (3, 6, 7),
    wide=lambda: nn.Conv2d(3, 6, 1),
    near=lambda: nn.Conv2d(6, 6, 3, padding=1),
    groups=lambda: nn.Conv2d(18, 6, 1, groups=3),
)
