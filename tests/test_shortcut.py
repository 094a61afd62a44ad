"""Level 2 never changes a result: every shortcut answers as level 1 does, or declines, in every memory layout."""

import contextlib
import functools
import types

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import rfcalc
from rfcalc.shortcut import LAYERS, SHORTCUTS, broadcast_shape

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
    yield f(y, 0.5, True) if f is torch.dropout else f(y, training=True)
    if f is not torch.dropout:
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
    "conv": convs,
    "max_pool": max_pools,
    "avg_pool": pools,
    "adaptive_pool": adaptive_pools,
    "batch_norm": norms,
    "layer_norm": layer_norms,
    "group_norm": group_norms,
    "linear": linears,
    "matmul": matmuls,
    "softmax": softmaxes,
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
            out = short(*args, **kwargs)
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
