"""Level 2 never changes a result: every shortcut answers as level 1 does, or declines, in every memory layout."""

import contextlib
import functools
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import rfcalc
from rfcalc.analysis.fast.layers import LAYERS
from rfcalc.analysis.fast.registry import SHORTCUTS, broadcast_shape
from rfcalc.analysis.run import Run
from rfcalc.analysis.values import RuleError

N = 8  # every dim of the map, so that any permutation of it still fits the weights
W = {n: torch.ones(N, N, *(3,) * n) for n in (1, 2, 3)}
ONE = torch.ones(N)
RANK = dict.fromkeys("conv1d max_pool1d avg_pool1d adaptive_avg_pool1d dropout1d".split(), 1)
RANK |= dict.fromkeys("conv3d max_pool3d avg_pool3d adaptive_avg_pool3d dropout3d".split(), 3)
LAYOUTS = {
    "contiguous": lambda y: y,
    "channels_last": lambda y: y.movedim(1, -1).contiguous().movedim(-1, 1),
    "permuted": lambda y: y.transpose(1, 2),
    "strided": lambda y: torch.cat([y, y], -1)[..., ::2],
}


def pools(f, y):
    yield f(y, 2)
    yield f(y, 3, 2, 1)
    yield f(y, 3, stride=1, padding=1)
    yield f(y, 3, 2, ceil_mode=True)
    yield f(y, (2,) * (y.dim() - 2))


def max_pools(f, y):
    yield from pools(f, y)
    yield f(y, 3, 1, 0, 2)
    if getattr(torch, f.__name__, None) is not f:
        yield f(y, 2, return_indices=True)


def convs(f, y):
    n = y.dim() - 2
    w = W[n]
    yield f(y, w)
    yield f(y, w, ONE, 2, 1)
    yield f(y, w, padding="same", dilation=2)
    yield f(y, w, padding="valid")
    yield f(y, w[:, :1], groups=N)
    yield f(y, w[:, : N // 2], stride=(2,) * n, padding=(1,) * n, groups=2)
    yield f(y, y[0, :, None].expand(N, N, *y.shape[2:])[(..., *(slice(0, 3),) * n)])  # a weight the input reaches
    yield f(y[0], w)


def adaptive_pools(f, y):
    n = y.dim() - 2
    yield f(y, 1)
    yield f(y, 3)
    yield f(y, (5,) * n)
    if n > 1:
        yield f(y, (None,) + (4,) * (n - 1))


def dropouts(f, y):
    yield f(y, 0.5, False)
    low = getattr(F, f.__name__, None) is not f
    yield f(y, 0.5, True) if low else f(y, training=True)
    if not low:
        yield f(y, 0.1, training=False, inplace=True)


def unary(f, y):
    yield f(y)
    name = f.__name__
    if getattr(F, name, None) is f and name in ("relu", "relu6", "leaky_relu", "elu", "silu", "mish", "hardswish"):
        yield f(y, inplace=True) + y
    if name in ("leaky_relu", "elu", "celu"):
        yield f(y, 0.3)
    if name == "hardtanh":
        yield f(y, -2.0, 2.0)
    if name == "gelu":
        yield f(y, approximate="tanh")
    if name in ("abs", "neg", "square") and f is getattr(torch, name):
        yield f(torch.ones_like(y, dtype=torch.long)) + y
        yield torch.add(y, f(y, out=torch.empty_like(y)))


def inside(f, y):
    half = y[..., : N // 2]
    yield f(half)
    yield y


def operands(y):
    yield 3.0
    yield 2
    yield y
    yield y.flip(-1)
    yield y[:, :1]
    yield y.new_ones(N, 1, 1)
    yield y.mean((2, 3), keepdim=True)
    yield y.double()


def binary(f, y):
    for b in operands(y):
        yield f(y, b)
    if f in (torch.add, torch.sub, Tensor.add, Tensor.sub):
        yield f(y, y, alpha=2)
    if f in (torch.div, Tensor.div):
        yield f(y, 2, rounding_mode="floor")
    if f is torch.mul:
        yield f(y[:, :1], y)
        yield f(y > 0, y)
        yield f(y.new_tensor(2.0), y)


def inplace(f, y):
    for b in operands(y):
        z = y.clone() if b is not y else y * 1
        f(z[..., 1:], b if not isinstance(b, Tensor) else b[..., 1:] if b.shape[-1] == N else b)
        yield z


def norms(f, y):
    yield f(y, torch.zeros(N), ONE)
    yield f(y, torch.zeros(N), ONE, ONE, ONE, False)
    yield f(y, None, None, training=True)


def layer_norms(f, y):
    yield f(y, (N,))
    yield f(y, (N, N), weight=torch.ones(N, N))


def group_norms(f, y):
    yield f(y, 1)
    yield f(y, 4, ONE, ONE)


def linears(f, y):
    yield f(y, torch.ones(5, N))
    yield f(y, torch.ones(5, N), torch.ones(5))
    yield f(y, y[0, 0])
    yield f(y, ONE)
    yield f(y.double(), torch.ones(5, N, dtype=torch.double))


def matmuls(f, y):
    b = f in (torch.bmm, Tensor.bmm)
    y = y[0] if b else y
    yield f(y, y)
    yield f(y, y.transpose(-1, -2))
    yield f(y, torch.ones(N, N, 3) if b else torch.ones(N, 3))
    if not b:
        yield f(y, ONE)
        yield f(y, y[0])
        yield f(torch.ones(4, N), y)


def softmaxes(f, y):
    yield f(y, 1)
    yield f(y, dim=-1)
    yield f(y, dim=2, dtype=torch.float64)


def attentions(f, y):
    yield f(y, y, y)
    yield f(y, y, y, is_causal=True)
    yield f(y, y.flip(-2), y, torch.ones(N, N, dtype=torch.bool).tril())
    yield f(y[0], y[0], y[0])
    yield f(y[..., :4, :], y, y, scale=0.5)
    yield f(y, y, y, y)


def multi_heads(f, y):
    x = y[0]
    plain = nn.MultiheadAttention(N, 2).eval()
    yield plain(x, x, x, need_weights=False)[0]
    yield plain(x, x, x)[0]
    yield plain(x, x.flip(0), x, need_weights=False)[0]
    yield plain(x, x, x, need_weights=False, attn_mask=torch.ones(N, N).triu(1).bool(), is_causal=True)[0]
    yield plain(x, x, x, need_weights=False, key_padding_mask=torch.zeros(N, N).bool())[0]
    yield nn.MultiheadAttention(N, 2, batch_first=True, bias=False).eval()(x, x, x, need_weights=False)[0]
    yield nn.MultiheadAttention(N, 2, add_zero_attn=True, add_bias_kv=True).eval()(x, x, x, need_weights=False)[0]


VIEWS = {
    "flatten": [(), (1,), (2, 3), (0, -2)],
    "view": [(1, N * N, N), ((N, -1),), (torch.int32,)],
    "reshape": [((1, N * N, N),), ((N, 4, -1),), ((-1,),)],
    "permute": [((0, 2, 3, 1),), ((0, 1, -1, -2),)],
    "transpose": [(1, 2), (-1, -2)],
    "unsqueeze": [(0,), (-1,)],
    "squeeze": [(), (0,), (1,)],
}


def views(f, y):
    for args in VIEWS[f.__name__]:
        try:
            z = f(y, *args)
        except RuntimeError:  # a view of a layout that has none
            continue
        if z.is_floating_point():
            z[..., :1] += 1
        yield z
        yield y  # what was written through the view


def cats(f, y):
    yield f([y, y], 1)
    yield f((y, y.flip(-1)), dim=-1)
    yield f([y, y.new_zeros(1, N, N, 3)], -1)
    yield f([y, y.double()], 1)
    yield f([y.mean((2, 3)), y[:, 0, 0]], 1)
    yield f([y])


def merges(f, y):
    yield f(y)
    yield f(y, 1)
    yield f(y, (2, 3))
    yield f(y, [-1], keepdim=True)
    yield f(y, -2, True)
    yield f(y, 1, dtype=torch.float64)
    yield f(y, dim=()) if f is torch.mean else f(y, dim=0)


CASES = {
    "_unary": unary,
    "_inside": inside,
    "dropout": dropouts,
    "dropout1d": dropouts,
    "low_dropout": dropouts,
    "alpha_dropout": dropouts,
    "conv": convs,
    "max_pool": max_pools,
    "avg_pool": pools,
    "adaptive_pool": adaptive_pools,
    "batch_norm": norms,
    "layer_norm": layer_norms,
    "group_norm": group_norms,
    "linear": linears,
    "matmul": matmuls,
    "bmm": matmuls,
    "softmax": softmaxes,
    "low_softmax": softmaxes,
    "sdpa": attentions,
    "self_attention": multi_heads,
    "run_view": views,
    "cat": cats,
    "merged": merges,
}


def builder_of(f):
    """The args builder of a registered function."""
    family = SHORTCUTS[f].__name__
    if family != "run_binary":
        return CASES[family]
    return inplace if f.__name__.startswith("__i") or (f.__name__.endswith("_") and f.__name__[0] != "_") else binary


class Calls(nn.Module):
    """Calls one function in all its forms on a map of one layout, and notes the layouts of what came out."""

    def __init__(self, f, layout):
        super().__init__()
        self.f, self.layout = f, LAYOUTS[layout]

    def forward(self, x):
        rank = RANK.get(self.f.__name__, 2)
        x = getattr(F, f"max_pool{rank}d")(x, 2, 1, 0)  # the positions differ in what they see
        seen.clear()
        outs = []
        for z in builder_of(self.f)(self.f, self.layout(x)):
            for t in z if isinstance(z, tuple) else (z,):
                seen.append((tuple(t.shape), t.stride(), t.dtype))
                outs.append(t)
        return outs


seen = []


def identity_of(f):
    return f"{getattr(f, '__module__', None) or 'Tensor'}.{f.__name__}"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("f", list(SHORTCUTS), ids=identity_of)
def test_levels_agree(f, layout):
    size = (N,) + (N + 1,) * RANK.get(f.__name__, 2)
    reports, layouts = [], []
    for level in (1, 2):
        reports.append(rfcalc.analyze(Calls(f, layout), size, level=level).to_dict())
        layouts.append(list(seen))
    assert reports[0]["output_shapes"], "no case of this function ran"
    assert reports[0]["rows"] == reports[1]["rows"]
    assert reports[0] == reports[1]
    if layout == "contiguous":
        assert layouts[0] == layouts[1]  # a view taken later must succeed or fail alike


def test_every_family_answers_something(monkeypatch):
    """Not every key is seen: `x + y` reaches torch as `Tensor.add`, F.sigmoid as a method."""
    answered = set()

    def noting(f, short):
        @functools.wraps(short)
        def call(*args, **kwargs):
            try:
                out = short(*args, **kwargs)
            except TypeError:  # an argument it does not take
                return NotImplemented
            answered.update({builder_of(f)} if out is not NotImplemented else ())
            return out

        return call

    for f, short in list(SHORTCUTS.items()):
        monkeypatch.setitem(SHORTCUTS, f, noting(f, short))
    for f in SHORTCUTS:
        rfcalc.analyze(Calls(f, "contiguous"), (N,) + (N + 1,) * RANK.get(f.__name__, 2))
    assert answered == {*CASES.values(), binary, inplace}


LAYER = {
    nn.Conv1d: lambda: nn.Conv1d(N, N, 3, stride=2, padding=1),
    nn.Conv2d: lambda: nn.Conv2d(N, N, 3, stride=2, padding="valid", groups=2, bias=False),
    nn.Conv3d: lambda: nn.Conv3d(N, N, 3, padding="same", dilation=2),
    nn.BatchNorm1d: lambda: nn.BatchNorm1d(N),
    nn.BatchNorm2d: lambda: nn.BatchNorm2d(N, affine=False),
    nn.BatchNorm3d: lambda: nn.BatchNorm3d(N),
    nn.Linear: lambda: nn.Linear(N + 1, N, bias=False),
    nn.LayerNorm: lambda: nn.LayerNorm((N + 1, N + 1)),
    nn.Dropout: nn.Dropout,
    nn.ReLU: lambda: nn.ReLU(True),
    nn.ReLU6: nn.ReLU6,
    nn.SiLU: lambda: nn.SiLU(True),
    nn.Hardswish: nn.Hardswish,
    nn.GELU: lambda: nn.GELU("tanh"),
}


def test_every_layer_has_a_case():
    assert set(LAYER) == set(LAYERS)


def both_levels(net, shape):
    short, full = (rfcalc.analyze(net, shape, level=level).to_dict() for level in (2, 1))
    assert short == full
    return short


@pytest.mark.parametrize("kind", list(LAYERS), ids=lambda kind: kind.__name__)
def test_a_plain_layer_goes_straight_to_its_shortcut(kind, monkeypatch):
    """Its own forward does not run, and the report is that of its forward."""
    n = {"1d": 1, "3d": 3}.get(kind.__name__[-2:], 2)
    net = nn.Sequential(nn.Identity(), LAYER[kind](), nn.Identity())
    both_levels(net, (N,) + (N + 1,) * n)
    # With torch's globals, so that it counts as torch's own.
    monkeypatch.setattr(kind, "forward", types.FunctionType(refuse.__code__, kind.forward.__globals__))
    assert rfcalc.analyze(net, (N,) + (N + 1,) * n).rows[0].op == kind.__name__


def refuse(self, x):
    raise AssertionError("ran")


def with_parameter(layer, name, value):
    setattr(layer, name, nn.Parameter(value))
    return layer


def hooked(net):
    net.register_forward_hook(lambda module, args, out: F.max_pool2d(out, 2))
    return net


def pre_hooked(net):
    net.register_forward_pre_hook(lambda module, args: (F.max_pool2d(args[0], 2),))
    return net


def with_own_forward(net):
    net.forward = lambda x: nn.Conv2d.forward(net, F.max_pool2d(x, 2))
    return net


class Late(nn.Module):
    """Registers a hook on a layer while it runs."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(N, N, 3)

    def forward(self, x):
        handle = self.conv.register_forward_hook(lambda module, args, out: out[..., 1:])
        x = self.conv(x)
        handle.remove()
        return self.conv(input=x)


class Running(nn.Module):
    """Changes a layer before it calls it."""

    def __init__(self, layer, change):
        super().__init__()
        self.layer, self.change = layer, change

    def forward(self, x):
        self.change(self.layer, x)
        return self.layer(x)


def pooled(self, x, *args):
    return F.conv2d(F.max_pool2d(x, 2), self.weight, self.bias)


def bound(layer, name):
    layer.__dict__[name] = types.MethodType(pooled, layer)
    return layer


def kept_elsewhere(layer, keep):
    weight = layer.weight.detach()
    del layer.weight
    keep(layer, weight)
    return layer


def swapped(layer, x):
    layer.__class__ = Pooling


class Pooling(nn.Conv2d):
    def forward(self, x):
        return super().forward(F.max_pool2d(x, 2))


class Padding(TorchFunctionMode):
    """A mode of the model's own, which answers a convolution in its own way."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.conv2d:
            args = (F.max_pool2d(args[0], 2), *args[1:])
        return func(*args, **(kwargs or {}))


class InMode(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.layer, self.mode = nn.Conv2d(N, N, 3), mode

    def forward(self, x):
        with self.mode():
            return self.layer(x)


class Scaled(Tensor):
    """A weight whose class has a convolution of its own."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            if func is torch.conv2d:
                args = (F.max_pool2d(args[0], 2), args[1].as_subclass(Tensor), *args[2:])
            return func(*args, **(kwargs or {}))


class Named(Tensor):
    pass


def weighing(kind):
    layer = nn.Conv2d(N, N, 3, bias=False)
    layer._parameters["weight"] = layer.weight.detach().as_subclass(kind)
    return layer


def listed(layer):
    layer.stride, layer.padding, layer.dilation = [2, 2], [1, 1], [1, 1]
    return layer


def forgiving(net, x):
    with contextlib.suppress(RuntimeError):  # as torch raises it
        net(x[:, 1:])


UNUSUAL = {
    "trained while it runs": lambda: Running(nn.BatchNorm2d(N), lambda layer, x: layer.train()),
    "dropout trained while it runs": lambda: Running(nn.Dropout(), lambda layer, x: layer.train()),
    "forward replaced while it runs": lambda: Running(nn.Conv2d(N, N, 3), lambda layer, x: bound(layer, "forward")),
    "class replaced while it runs": lambda: Running(nn.Conv2d(N, N, 3), swapped),
    "_conv_forward replaced": lambda: bound(nn.Conv2d(N, N, 3), "_conv_forward"),
    "weight as an attribute": lambda: kept_elsewhere(nn.Conv2d(N, N, 3), lambda m, w: m.__dict__.update(weight=w)),
    "weight as a buffer": lambda: kept_elsewhere(nn.LayerNorm(N + 1), lambda m, w: m.register_buffer("weight", w)),
    "weight made from the input": lambda: kept_elsewhere(
        nn.Linear(N + 1, 1), lambda m, w: m.register_forward_pre_hook(lambda m, a: setattr(m, "weight", a[0][0, 0, :1]))
    ),
    "a mode of the model's": lambda: InMode(Padding),
    "a device": lambda: InMode(lambda: torch.device("cpu")),
    "torch functions off": lambda: InMode(torch._C.DisableTorchFunction),
    "a class of weight": lambda: weighing(Scaled),
    "a class of weight without methods": lambda: weighing(Named),
    "lists": lambda: listed(nn.Conv2d(N, N, 3)),
    "refused, then caught": lambda: Running(nn.Conv2d(N, N, 3), forgiving),
    "a hook": lambda: hooked(nn.Conv2d(N, N, 3)),
    "a hook before": lambda: pre_hooked(nn.Conv2d(N, N, 3)),
    "a forward of its own": lambda: with_own_forward(nn.Conv2d(N, N, 3)),
    "a hook while it runs, keywords": Late,
    "padding mode": lambda: nn.Conv2d(N, N, 3, padding=1, padding_mode="reflect"),
    "weight_norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(N, N, 3)),
    "old weight_norm": lambda: nn.utils.weight_norm(nn.Conv2d(N, N, 3)),
    "no statistics": lambda: nn.BatchNorm2d(N, track_running_stats=False),
    "no batch": lambda: nn.Sequential(nn.Flatten(0, 1), nn.Conv2d(N, N, 3)),
    "another layout": lambda: nn.Sequential(nn.Unflatten(1, (1, N)), nn.Flatten(1, 2), nn.Conv2d(N, N, 1)),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_layer_goes_the_long_way(name):
    both_levels(nn.Sequential(nn.Conv2d(N, N, 1), UNUSUAL[name]()), (N, N + 1, N + 1))


def test_a_patched_class_goes_the_long_way(monkeypatch):
    net = nn.Sequential(nn.Conv2d(N, N, 3))
    plain = both_levels(net, (N, N, N))
    for name in ("forward", "_conv_forward"):
        with monkeypatch.context() as patch:
            patch.setattr(nn.Conv2d, name, functools.wraps(getattr(nn.Conv2d, name))(pooled))
            assert both_levels(net, (N, N, N)) != plain


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm2d(N), (N, N)),
        (nn.BatchNorm2d(N), (N,)),
        (nn.BatchNorm1d(N), (N, N, N)),
        (nn.BatchNorm3d(N), (N, N, N)),
        (with_parameter(nn.BatchNorm2d(N), "weight", torch.ones(N - 1)), (N, N, N)),
        (with_parameter(nn.Conv2d(N, N, 3), "bias", torch.ones(N).double()), (N, N, N)),
        (with_parameter(nn.Linear(N, N), "bias", torch.ones(N - 1)), (N, N, N)),
    ],
    ids=str,
)
def test_what_torch_refuses_is_refused(layer, shape):
    for level in (1, 2):
        with pytest.raises(rfcalc.ForwardError, match=type(layer).__name__):
            rfcalc.analyze(nn.Sequential(nn.ReLU(), layer), shape, level=level)


def test_the_layer_that_fails_is_named_not_one_that_failed_before():
    net = nn.Sequential(Running(nn.Conv2d(N, N, 3), forgiving), nn.Linear(N, 1))
    for level in (1, 2):
        with pytest.raises(rfcalc.ForwardError, match=r"1 \(Linear\)"):
            rfcalc.analyze(net, (N, N + 1, N + 1), level=level)


def test_global_hooks_are_seen():
    net = nn.Sequential(nn.Conv2d(N, N, 3), nn.ReLU())
    plain = both_levels(net, (N, N, N))
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, out: F.max_pool2d(out, 2) if isinstance(module, nn.ReLU) else None
    )
    try:
        assert both_levels(net, (N, N, N)) != plain
    finally:
        handle.remove()


def test_a_layer_that_refuses_its_input_is_named():
    for level in (1, 2):
        with pytest.raises(rfcalc.ForwardError, match=r"1 \(Conv2d\)"):
            rfcalc.analyze(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 3)), (N, N, N), level=level)


def test_broadcast_shape_is_torchs():
    shapes = [(), (1,), (3,), (4, 1), (1, 3), (4, 3), (2, 1, 3), (2,)]
    for a in shapes:
        for b in shapes:
            try:
                known = tuple(torch.broadcast_shapes(a, b))
            except RuntimeError:
                known = None
            assert broadcast_shape(a, b) == known


class Calling(nn.Module):
    """A convolution whose positions differ in what they see, then one call; `y` is the map and `self` the weights."""

    def __init__(self, call, size):
        super().__init__()
        n = len(size) - 1
        self.first = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[n - 1](N, N, 2)
        self.weight, self.bias = nn.Parameter(torch.ones(N, N, *(2,) * n)), nn.Parameter(torch.ones(N))
        self.matrix = nn.Parameter(torch.ones(N, size[-1] - 1))
        self.tail = nn.Parameter(torch.ones(size[-1] - 1))
        self.register_buffer("mean", torch.ones(N))
        self.call = call

    def forward(self, x):
        return self.call(self.first(x), self)


MAP = (N, N + 1, N + 1)
# Each line is one call, spelled in the ways that torch takes it.
SPELLINGS = {
    "conv1d": (
        (N, N + 1),
        lambda y, m: F.conv1d(y, m.weight, m.bias, 2, 1, 2),
        lambda y, m: F.conv1d(input=y, weight=m.weight, bias=m.bias, stride=2, padding=1, dilation=2),
        lambda y, m: F.conv1d(y, m.weight, m.bias, np.int64(2), [np.int32(1)], dilation=(np.int64(2),)),
    ),
    "conv2d": (
        MAP,
        lambda y, m: F.conv2d(y, m.weight, None, 2, 1),
        lambda y, m: F.conv2d(input=y, weight=m.weight, stride=2, padding=1),
        lambda y, m: F.conv2d(y, stride=(2, 2), padding=[1, 1], weight=m.weight, groups=np.int64(1)),
        lambda y, m: torch.conv2d(y, m.weight, stride=[np.int64(2), 2], padding=np.int64(1)),
    ),
    "max_pool2d": (
        MAP,
        lambda y, m: F.max_pool2d(y, 3, 2, 1),
        lambda y, m: F.max_pool2d(y, kernel_size=3, stride=2, padding=1),
        lambda y, m: F.max_pool2d(input=y, kernel_size=(3, 3), stride=[2], padding=np.int64(1), dilation=1),
        lambda y, m: F.max_pool2d(y, np.int64(3), (np.int32(2), 2), 1, 1, False, False),
        lambda y, m: nn.MaxPool2d(np.int64(3), 2, 1)(y),
    ),
    "max_pool2d by its own size": (
        MAP,
        lambda y, m: F.max_pool2d(y, 2),
        lambda y, m: F.max_pool2d(y, 2, None),
        lambda y, m: F.max_pool2d(y, 2, stride=()),
        lambda y, m: F.max_pool2d(y, 2, stride=2, ceil_mode=False),
    ),
    "avg_pool2d": (
        MAP,
        lambda y, m: F.avg_pool2d(y, 3, 2, 1, False, False),
        lambda y, m: F.avg_pool2d(y, 3, stride=2, padding=1, count_include_pad=False),
        lambda y, m: F.avg_pool2d(input=y, kernel_size=3, stride=2, padding=1, divisor_override=4),
        lambda y, m: nn.AvgPool2d(3, 2, 1, count_include_pad=True)(y),
    ),
    "adaptive_avg_pool2d": (
        MAP,
        lambda y, m: F.adaptive_avg_pool2d(y, 3),
        lambda y, m: F.adaptive_avg_pool2d(input=y, output_size=(3, np.int64(3))),
        lambda y, m: F.adaptive_avg_pool2d(y, output_size=[3, 3]),
    ),
    "add": (
        MAP,
        lambda y, m: y + y.flip(-1),
        lambda y, m: torch.add(y, other=y.flip(-1)),
        lambda y, m: torch.add(input=y, other=y.flip(-1), alpha=2),
        lambda y, m: y.add(other=y.flip(-1)),
        lambda y, m: torch.add(y, y.flip(-1), out=torch.empty_like(y)),
    ),
    "relu": (
        MAP,
        lambda y, m: F.relu(y),
        lambda y, m: F.relu(input=y),
        lambda y, m: F.relu(y, inplace=False),
        lambda y, m: nn.ReLU()(input=y),
    ),
    "softmax": (
        MAP,
        lambda y, m: F.softmax(y, 1),
        lambda y, m: F.softmax(input=y, dim=np.int64(1)),
        lambda y, m: y.softmax(dim=1),
        lambda y, m: torch.softmax(y, -3, y.dtype),
        lambda y, m: torch.softmax(y, dim=1, out=torch.empty_like(y)),
    ),
    "linear": (
        MAP,
        lambda y, m: F.linear(y, m.matrix, m.bias),
        lambda y, m: F.linear(input=y, weight=m.matrix, bias=m.bias),
    ),
    "matmul": (
        MAP,
        lambda y, m: y @ y.flip(-1),
        lambda y, m: torch.matmul(input=y, other=y.flip(-1)),
        lambda y, m: y.matmul(other=y.flip(-1)),
    ),
    "batch_norm": (
        MAP,
        lambda y, m: F.batch_norm(y, m.mean, m.mean, m.bias, m.bias),
        lambda y, m: F.batch_norm(input=y, running_mean=m.mean, running_var=m.mean, weight=m.bias, bias=m.bias),
    ),
    "layer_norm": (
        MAP,
        lambda y, m: F.layer_norm(y, (N,), m.tail, m.tail),
        lambda y, m: F.layer_norm(input=y, normalized_shape=[np.int64(N)], weight=m.tail, bias=m.tail),
    ),
    "group_norm": (
        MAP,
        lambda y, m: F.group_norm(y, 2, m.bias),
        lambda y, m: F.group_norm(input=y, num_groups=np.int64(2), weight=m.bias),
    ),
    "cat": (
        MAP,
        lambda y, m: torch.cat([y, y], 1),
        lambda y, m: torch.cat(tensors=(y, y), dim=np.int64(1)),
        lambda y, m: torch.concatenate([y, y], axis=-3),
    ),
    "mean": (
        MAP,
        lambda y, m: y.mean((2, 3), True),
        lambda y, m: torch.mean(y, dim=(2, 3), keepdim=True),
        lambda y, m: torch.mean(input=y, dim=[np.int64(2), -1], keepdim=True),
        lambda y, m: y.mean(axis=(2, 3), keepdims=True),
    ),
    "transpose": (
        MAP,
        lambda y, m: y.transpose(1, 2),
        lambda y, m: y.transpose(dim0=1, dim1=np.int64(2)),
        lambda y, m: torch.transpose(input=y, dim0=1, dim1=-2),
    ),
    "flatten": (
        MAP,
        lambda y, m: y.flatten(2),
        lambda y, m: torch.flatten(y, start_dim=2),
        lambda y, m: torch.flatten(input=y, start_dim=np.int64(2), end_dim=-1),
    ),
    "view": (
        MAP,
        lambda y, m: y.view(1, N, -1),
        lambda y, m: y.view((1, N, np.int64(N * N))),
        lambda y, m: y.view(size=(1, N, -1)),
    ),
    "reshape": (
        MAP,
        lambda y, m: y.reshape(1, N, -1),
        lambda y, m: torch.reshape(input=y, shape=(1, np.int64(N), -1)),
    ),
    "permute": (
        MAP,
        lambda y, m: y.permute(0, 2, 3, 1),
        lambda y, m: y.permute(dims=(0, 2, 3, np.int64(1))),
        lambda y, m: torch.permute(y, [0, -2, -1, 1]),
    ),
    "dropout": (
        MAP,
        lambda y, m: F.dropout(y, 0.1, False),
        lambda y, m: F.dropout(input=y, p=0.1, training=False),
        lambda y, m: torch.dropout(y, p=0.1, train=False),
    ),
}


def told(report):
    """What a report says of the network, whatever its calls are called and however many they are."""
    rows = [{**row, "op": "", "path": "", "name": "", "call": 0} for row in report["rows"]]
    return rows, report["receptive_field"], report["totals"]["macs"]


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_call_is_the_same_however_it_is_spelled(name):
    size, *calls = SPELLINGS[name]
    first, *others = [told(both_levels(Calling(call, size), size)) for call in calls]
    assert all(other == first for other in others)


REFUSED = {
    "padding below 0": lambda y, m: F.conv2d(y, m.weight, padding=-1),
    "padding below 0 along one dim": lambda y, m: F.conv2d(y, m.weight, padding=(0, -1)),
    "stride 0": lambda y, m: F.conv2d(y, m.weight, stride=0),
    "dilation 0": lambda y, m: F.conv2d(y, m.weight, dilation=0),
    "a float stride": lambda y, m: F.conv2d(y, m.weight, stride=2.0),
    "three strides": lambda y, m: F.conv2d(y, m.weight, stride=(1, 1, 1)),
    "padding same with a stride": lambda y, m: F.conv2d(y, m.weight, padding="same", stride=2),
    "groups that do not divide": lambda y, m: F.conv2d(y, m.weight, groups=3),
    "groups 0": lambda y, m: F.conv2d(y, m.weight, groups=0),
    "a weight of another rank": lambda y, m: F.conv2d(y, m.weight[..., 0]),
    "the convolution of another rank": lambda y, m: F.conv1d(y, m.weight),
    "a weight of another dtype": lambda y, m: F.conv2d(y, m.weight.double()),
    "a bias of another size": lambda y, m: F.conv2d(y, m.weight, m.bias[1:]),
    "a bias of another rank": lambda y, m: F.conv2d(y, m.weight, m.bias[:, None]),
    "a bias that is a number": lambda y, m: F.conv2d(y, m.weight, 1.0),
    "a kernel beyond the input": lambda y, m: F.conv2d(y, m.weight, dilation=20),
    "a keyword unknown to torch": lambda y, m: F.conv2d(y, m.weight, pad=1),
    "transposed: stride 0": lambda y, m: F.conv_transpose2d(y, m.weight, stride=0),
    "transposed: channels": lambda y, m: F.conv_transpose2d(y[:, 1:], m.weight),
    "transposed: output padding": lambda y, m: F.conv_transpose2d(y, m.weight, output_padding=1),
    "transposed: bias": lambda y, m: F.conv_transpose2d(y, m.weight, m.bias[1:]),
    "unfold: padding below 0": lambda y, m: F.unfold(y, 2, padding=-1),
    "a pool of another rank": lambda y, m: F.max_pool1d(y, 2),
    "a module of another rank": lambda y, m: nn.AvgPool1d(2)(y),
    "a pool of stride 0": lambda y, m: F.max_pool2d(y, 2, stride=0),
    "a pool of padding below 0": lambda y, m: F.avg_pool2d(y, 2, padding=-1),
    "a pool of padding above half": lambda y, m: F.max_pool2d(y, 2, padding=2),
    "a pool of dilation 0": lambda y, m: F.max_pool2d(y, 2, dilation=0),
    "a pool of no size": lambda y, m: F.max_pool2d(y, 0),
    "a pool of divisor 0": lambda y, m: F.avg_pool2d(y, 2, divisor_override=0),
    "a pool to a negative size": lambda y, m: F.adaptive_avg_pool2d(y, -1),
    "batch norm: channels": lambda y, m: F.batch_norm(y, m.mean[1:], m.mean[1:]),
    "batch norm: dtype": lambda y, m: F.batch_norm(y, m.mean, m.mean, m.bias.double()),
    "batch norm: half of the statistics": lambda y, m: F.batch_norm(y, m.mean, None),
    "layer norm: shape": lambda y, m: F.layer_norm(y, (N + 1,)),
    "layer norm: weight": lambda y, m: F.layer_norm(y, (N, N), m.tail),
    "group norm: groups": lambda y, m: F.group_norm(y, 3),
    "group norm: bias": lambda y, m: F.group_norm(y, 2, bias=m.bias[1:]),
    "linear: features": lambda y, m: F.linear(y[..., 1:], m.matrix),
    "linear: dtype": lambda y, m: F.linear(y, m.matrix.double()),
    "linear: bias": lambda y, m: F.linear(y, m.matrix, m.bias[1:]),
    "matmul: sizes": lambda y, m: y @ y[..., 1:, :],
    "bmm: batches are not broadcast": lambda y, m: torch.bmm(y[0], y[0, :1]),
    "softmax: dim": lambda y, m: F.softmax(y, 4),
    "softmax: dim below": lambda y, m: torch.log_softmax(y, -5),
    "cat: shapes": lambda y, m: torch.cat([y, y[..., 1:]], 1),
    "cat: ranks": lambda y, m: torch.cat([y, y[0]], 1),
    "cat: dim": lambda y, m: torch.cat([y, y], 4),
    "cat: nothing": lambda y, m: torch.cat([], 1),
    "cat: a number": lambda y, m: torch.cat([1.0, y], 1),
    "mean: dim": lambda y, m: y.mean(4),
    "mean: one dim twice": lambda y, m: y.mean((1, -3)),
    "view: size": lambda y, m: y.view(3, -1),
    "permute: dims": lambda y, m: y.permute(0, 1, 2),
    "flatten: order": lambda y, m: torch.flatten(y, start_dim=2, end_dim=1),
    "broadcasting": lambda y, m: y + y[..., 1:-1],
    "attention: heads": lambda y, m: F.scaled_dot_product_attention(y, y[:, 1:], y[:, 1:]),
    "attention: mask": lambda y, m: F.scaled_dot_product_attention(y, y, y, y[0, 0, 1:]),
    "attention: mask and causal": lambda y, m: F.scaled_dot_product_attention(
        y, y, y, y[0, 0], is_causal=True
    ),
    "dropout of another rank": lambda y, m: F.dropout1d(y, 0.5, False),
    "a probability above 1": lambda y, m: F.dropout(y, 1.5, False),
    "relu of torch has no inplace": lambda y, m: torch.relu(y, True),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_refuses_with_storage_is_refused_at_both_levels(name):
    net = Calling(REFUSED[name], MAP).eval()
    with pytest.raises((RuntimeError, TypeError, ValueError, IndexError)), torch.inference_mode():
        net(torch.ones(1, *MAP))  # on the CPU
    for level in (1, 2):
        with pytest.raises(rfcalc.ForwardError):
            rfcalc.analyze(net, MAP, level=level)


UNBATCHED = {
    "max_pool2d": lambda y, m: F.max_pool2d(y[0], 2),
    "max_pool2d of a squeezed map": lambda y, m: nn.MaxPool2d(2)(y[:, :1].squeeze(1)),
    "max_pool1d": lambda y, m: nn.MaxPool1d(2)(y[0, 0]),
    "avg_pool2d": lambda y, m: F.avg_pool2d(y[0], 3, 1),
    "adaptive_avg_pool2d": lambda y, m: F.adaptive_avg_pool2d(y[0], 2),
    "conv2d": lambda y, m: F.conv2d(y[0], m.weight),
    "batch_norm": lambda y, m: F.batch_norm(y.mean((2, 3)), m.mean, m.mean),
}


@pytest.mark.parametrize("name", UNBATCHED)
def test_maps_without_a_batch_are_read_as_torch_reads_them(name):
    report = rfcalc.analyze(Calling(UNBATCHED[name], MAP), MAP)
    with torch.inference_mode():
        out = Calling(UNBATCHED[name], MAP).eval()(torch.ones(1, *MAP))
    assert report.output_shapes == (tuple(out.shape),)
    both_levels(Calling(UNBATCHED[name], MAP), MAP)


def test_weights_that_the_input_reaches_are_seen():
    """Statistics, scales and biases made from the input are no constants."""
    for call in (
        lambda y, m: F.batch_norm(y, y.mean((0, 2, 3)), m.mean),
        lambda y, m: F.layer_norm(y, (N,), y[0, 0, 0]),
        lambda y, m: F.group_norm(y, 2, m.bias, y[0, :, 0, 0]),
        lambda y, m: F.linear(y, m.matrix, y[0, :, 0, 0]),
        lambda y, m: F.conv2d(y, m.weight, y[0, :, 0, 0]),
    ):
        both_levels(Calling(call, MAP), MAP)


def test_a_rule_that_gives_up_is_an_approximate_row_at_both_levels():
    net = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Flatten(2))
    report = both_levels(net, (1, 4096, 4096))
    assert report["approximate_ops"] == ["flatten"]
    assert "the rule of flatten did not apply" in report["notes"][0]


@pytest.mark.parametrize("name", sorted(set(SPELLINGS) - {"dropout"}))  # which needs no rule
def test_a_rule_that_fails_is_an_approximate_row_at_both_levels(name, monkeypatch):
    def broken(rule, call, *args, **kwargs):
        raise RuleError("ValueError: broken")

    monkeypatch.setattr(Run, "interpret", staticmethod(broken))
    size, *calls = SPELLINGS[name]
    for call in calls:
        report = both_levels(Calling(call, size), size)
        assert report["approximate_ops"]
        assert report["notes"]
        assert all("(ValueError: broken)" in note for note in report["notes"])


def test_a_fault_of_ours_is_not_blamed_on_the_design(monkeypatch):
    """Neither in a shortcut nor at level 1, and what the forward or torch raises still is the design's."""
    net = nn.Sequential(nn.Conv2d(N, N, 3), nn.ReLU())

    monkeypatch.setattr("rfcalc.analysis.fast.window.output_of", None)
    with pytest.raises(TypeError, match="NoneType"):
        rfcalc.analyze(net, MAP, level=2)
    rfcalc.analyze(net, MAP, level=1)
    monkeypatch.setattr(Run, "settle", None)
    with pytest.raises(TypeError, match="NoneType"):
        rfcalc.analyze(net, MAP, level=1)


@pytest.mark.parametrize(
    "call",
    [
        lambda y, m: {}["theirs"],
        lambda y, m: y.size(9),
        lambda y, m: y[0, 0, 0, 0, 0],
        lambda y, m: y[[1, "a"]],
        lambda y, m: m.first(y, y),
        lambda y, m: torch.einsum("ab,bc->ac", y, y),
        lambda y, m: y.reshape(3, 3),
        lambda y, m: sorted([1, "a"]),
        lambda y, m: np.zeros((2, 3)) @ np.zeros((2, 3)),
        lambda y, m: m.missing(y),
    ],
)
def test_what_the_forward_raises_is_blamed_on_the_design(call):
    for level in (1, 2):
        with pytest.raises(rfcalc.ForwardError):
            rfcalc.analyze(Calling(call, MAP), MAP, level=level)


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
def test_a_window_of_no_whole_numbers_is_torchs_to_refuse(level, name):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, MAP[0], 3, 3))

        def forward(self, x):
            return F.conv2d(x, self.weight, **{name: 1.5})

    with pytest.raises(rfcalc.ForwardError, match=name):
        rfcalc.analyze(Half(), MAP, level=level)


@pytest.mark.parametrize("which", [0, 1])
def test_statistics_of_two_dims_are_left_to_level_1(which):
    """torch's CPU kernel refuses them; both levels must say the same."""

    def outcome(level):
        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                shapes = [(MAP[0],), (MAP[0],)]
                shapes[which] = (1, MAP[0])
                self.mean, self.var = (nn.Buffer(torch.ones(s)) for s in shapes)

            def forward(self, x):
                return F.batch_norm(x, self.mean, self.var)

        try:
            return rfcalc.analyze(Two(), MAP, level=level).rows
        except rfcalc.ForwardError as error:
            return str(error)

    assert outcome(1) == outcome(2)
