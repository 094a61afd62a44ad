"""Random networks as printable programs.

A `Program` is an input shape and a list of `Step`s. Every step takes a map `(1, C, *sizes)` and gives one back, so that
steps compose freely; what needs tokens, windows or another layout goes there and comes back. Programs are drawn
adaptively: a step that does not fit the shape so far is left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

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


class Fn(nn.Module):
    """A function of the model and its inputs, with submodules by name."""

    def __init__(self, f: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.f = f
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.f(self, *args, **kwargs)


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
        joins: dict[str, Any] = {"add": torch.add, "mul": torch.mul, "maximum": torch.maximum, "sub": torch.sub}
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
