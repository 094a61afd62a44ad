"""The run: the user's model is left as it was, any forward is followed, and what is not known is said."""

import collections
import copy
import dataclasses
import functools
import io
import logging
import random
import subprocess
import sys
import threading
import typing
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from programs import Fn
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import rfcalc
from rfcalc.analysis.rules import RULES

both_levels = pytest.mark.parametrize("level", [1, 2])
IMAGE = (1, 8, 8)


def conv(channels=1, k=3, **kwargs):
    return nn.Conv2d(channels, channels, k, padding=k // 2, **kwargs)


# ------------------------------------------------------------------------------------------ the model afterwards


class Messy(nn.Module):
    """A forward that changes everything a forward can change."""

    def __init__(self, fails):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout()
        self.register_buffer("counted", torch.zeros(3))
        self.register_buffer("replaced", torch.arange(4.0))
        self.register_buffer("late", None)
        self.fails, self.calls, self.log, self.seen = fails, 0, [1], {"a": 1}
        self.plain = torch.zeros(2)

    def forward(self, x):
        self.calls += 1
        self.log.append("forward")
        self.seen["b"] = 2
        self.counted += 1
        self.counted[0].mul_(5)
        self.plain.add_(3)
        self.replaced = torch.ones(4)
        self.late = x.mean()
        self.new = x
        self.conv.mark = "left here"
        self.conv.register_forward_hook(lambda *_: None)
        self.drop.register_forward_pre_hook(lambda *_: None)
        self.norm.train()
        random.random(), np.random.rand(), torch.rand(1)
        x = self.norm.eval()(self.conv(x))
        if self.fails:
            raise RuntimeError("told to")
        return self.drop(x) + torch.randn(2, 1, 1)


def state_of(model):
    """Everything of a model that must stay, by identity and by value."""
    modules, tensors = {}, {}
    for path, m in model.named_modules():
        d = dict(m.__dict__)
        modules[path] = {k: (id(v), copy.copy(v) if isinstance(v, list | dict) else None) for k, v in d.items()}
        for kind in ("_parameters", "_buffers", "_forward_hooks", "_forward_pre_hooks", "_modules"):
            modules[path][kind] = [(k, id(v)) for k, v in d[kind].items()]
        for k, t in [*d["_parameters"].items(), *d["_buffers"].items(), *d.items()]:
            if isinstance(t, Tensor):
                values = None if t.is_meta else t.detach().clone().tolist()
                tensors[path, k] = (id(t), t.dtype, t.device, t.requires_grad, t.grad is None, values, dict(t.__dict__))
    return modules, tensors


def random_states():
    name, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), (name, keys.tolist(), *rest)


@both_levels
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("kind", ["float", "half", "meta"])
def test_the_model_is_left_as_it_was(kind, fails, level):
    model = Messy(fails)
    if kind == "half":
        model.half()
    if kind == "meta":
        model.to("meta")
    model.train()
    model.norm.eval()  # mixed flags
    fired = []
    model.conv.register_forward_hook(lambda *_: fired.append("after"))
    model.conv.register_forward_pre_hook(lambda *_: fired.append("before"))
    before, randoms, grad = state_of(model), random_states(), torch.is_grad_enabled()
    if fails:
        with pytest.raises(rfcalc.ForwardError, match="told to"):
            rfcalc.analyze(model, IMAGE, level=level)
    else:
        report = rfcalc.analyze(model, IMAGE, level=level)
        assert report.params == sum(p.numel() for p in model.parameters())
    after = state_of(model)
    assert after[0] == before[0]
    assert str(after[1]) == str(before[1])
    assert random_states() == randoms
    assert torch.is_grad_enabled() == grad
    assert fired[:2] == ["before", "after"]
    assert [m.training for m in (model, model.conv, model.norm, model.drop)] == [True, True, False, True]
    assert not any("_call_impl" in m.__dict__ for m in model.modules())
    assert not hasattr(model, "new")
    assert not hasattr(model.conv, "mark")


def test_the_model_trains_as_before():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(72, 2))
    twin = copy.deepcopy(model)
    rfcalc.analyze(model, IMAGE)
    for net in (model, twin):
        torch.manual_seed(1)
        net(torch.ones(2, 1, 8, 8)).sum().backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    assert torch.equal(model[1].running_mean, twin[1].running_mean)
    assert model.state_dict().keys() == twin.state_dict().keys()


def test_containers_hung_on_torchs_own_modules_stay():
    net = nn.Sequential(nn.Conv2d(1, 1, 3))
    net[0].taps, net.cache = [], {}
    net[0].register_forward_hook(lambda m, args, out: m.taps.append(out))
    net.register_forward_hook(lambda m, args, out: m.cache.update(last=out))
    rfcalc.analyze(net, IMAGE)
    assert (net[0].taps, net.cache) == ([], {})


class Keeping(nn.Module):
    def __init__(self):
        super().__init__()
        self.kept = []

    def forward(self, x):
        self.kept.append(x)
        return x + 1


def test_containers_of_a_module_that_an_older_torch_has_pickled_stay():
    net = Keeping()
    del net.__dict__["_is_full_backward_hook"]
    rfcalc.analyze(net, IMAGE)
    assert net.kept == []


@both_levels
def test_compiled_modules_are_read_as_they_were_written(level):
    inner = nn.Sequential(conv(), nn.ReLU())
    plain = rfcalc.analyze(nn.Sequential(inner, conv()), IMAGE, level=level)
    net = nn.Sequential(torch.compile(inner, backend="eager"), conv())
    compiled = rfcalc.analyze(net, IMAGE, level=level)
    assert [(row.op, row.r_out) for row in compiled.rows] == [(row.op, row.r_out) for row in plain.rows]
    assert "training" not in vars(net[0])


def test_inputs_given_as_tensors_stay():
    x = torch.zeros(1, 1, 8, 8)
    rfcalc.analyze(Fn(lambda m, x: x.add_(1)), x)
    assert x.sum() == 0
    assert not x.__dict__


def test_hooks_that_change_the_result_count():
    net = nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU())
    net[0].register_forward_hook(lambda m, args, out: F.max_pool2d(out, 2))
    net[1].register_forward_pre_hook(lambda m, args: (F.avg_pool2d(args[0], 3),))
    assert rfcalc.analyze(net, IMAGE).rf_output == (8, 8)


# ----------------------------------------------------------------------------------------------- modules and paths


@both_levels
def test_shared_modules(level):
    shared = conv()
    net = Fn(lambda m, x: m.b(m.a(m.a(x))), a=shared, b=shared)
    report = rfcalc.analyze(net, IMAGE, level=level)
    assert [r.name for r in report.rows] == ["a", "a#2", "a#3"]
    assert [r.params for r in report.rows] == [10, 0, 0]
    assert [r.r_out[0] for r in report.rows] == [3, 5, 7]
    assert report.params == 10


@both_levels
def test_tied_weights(level):
    net = nn.Sequential(conv(), nn.ReLU(), conv())
    net[2].weight = net[0].weight
    report = rfcalc.analyze(net, IMAGE, level=level)
    assert [r.params for r in report.rows] == [10, 0, 1]
    assert report.params == sum(p.numel() for p in net.parameters()) == 11


@both_levels
def test_functional_calls_and_parameters_of_their_own(level):
    def forward(m, x):
        x = F.conv2d(x, m.weight, padding=1)
        return F.max_pool2d(F.relu(x), 2) * m.scale

    net = Fn(forward, weight=nn.Parameter(torch.ones(2, 1, 3, 3)), scale=nn.Parameter(torch.ones(1)))
    report = rfcalc.analyze(net, IMAGE, level=level)
    assert [r.name.removesuffix("_with_indices") for r in report.rows] == ["conv2d", "relu", "max_pool2d", "mul"]
    assert report.rf_output == (4, 4)
    assert sum(r.params for r in report.rows) == report.params == 19
    assert report.unreached == ()


def test_nested_containers_have_dotted_paths():
    blocks = nn.ModuleList([nn.Sequential(conv(), nn.ReLU()) for _ in range(2)])
    heads = nn.ModuleDict({"left": conv(k=1), "right": conv(k=5)})

    def forward(m, x):
        for block in m.blocks:
            x = x + block(x)
        return {k: head(x) for k, head in m.heads.items()}

    report = rfcalc.analyze(Fn(forward, blocks=blocks, heads=heads), IMAGE)
    names = "blocks.0.0 blocks.0.1 add blocks.1.0 blocks.1.1 add#2 heads.left heads.right"
    assert " ".join(r.name for r in report.rows) == names
    assert report.row("heads.right").r_out == (9, 9)


@both_levels
def test_unreached_parameters_are_listed(level):
    net = Fn(
        lambda m, x: m.used(x),
        used=conv(),
        spare=nn.Sequential(nn.Linear(3, 2), conv()),
        own=nn.Parameter(torch.ones(4)),
    )
    report = rfcalc.analyze(net, IMAGE, level=level)
    assert sorted(report.unreached) == [("", 4), ("spare.0", 8), ("spare.1", 10)]
    assert report.params == 32
    assert sum(r.params for r in report.rows) == 10


# ----------------------------------------------------------------------------------------------- inputs and outputs


@dataclasses.dataclass
class Data:
    image: typing.Any
    name: str = "kept"


class Named(typing.NamedTuple):
    image: typing.Any
    other: typing.Any


INPUTS = {
    "plain": (IMAGE, lambda m, x: x),
    "two": ((IMAGE, (1, 6)), lambda m, x, y: x + y.mean()),
    "list": ([IMAGE, IMAGE], lambda m, x, y: x + y),
    "keywords": ({"y": IMAGE, "x": (1, 6)}, lambda m, *, x, y: y + x.mean()),
    "dataclass": (Data(IMAGE), lambda m, d: d.image if d.name == "kept" else None),
    "named": (Named(IMAGE, IMAGE), lambda m, x, y: x + y),
    "nested": (([IMAGE, {"k": IMAGE}],), lambda m, x: x[0] + x[1]["k"]),
    "tensor": (torch.zeros(1, *IMAGE), lambda m, x: x),
    "size": (torch.Size(IMAGE), lambda m, x: x),
}


@both_levels
@pytest.mark.parametrize("case", INPUTS)
def test_inputs(case, level):
    shape, pick = INPUTS[case]
    report = rfcalc.analyze(Fn(lambda m, *a, **k: m.conv(pick(m, *a, **k)), conv=conv()), shape, level=level)
    assert report.output_shapes == ((1, 1, 8, 8),)
    assert IMAGE in report.input_shapes
    assert max(report.row("conv").r_out) >= 3
    assert len({a.input for a in report.axes}) == len(report.input_shapes)


def test_each_input_has_its_own_axes():
    net = Fn(lambda m, a, b: (m.conv(a), m.line(b)), conv=conv(), line=nn.Conv1d(2, 2, 5))
    report = rfcalc.analyze(net, (IMAGE, (2, 20)))
    assert [a.name for a in report.axes] == ["0.H", "0.W", "1.L"]
    assert report.row("conv").r_out == (3, 3, 0)
    assert report.row("line").r_out == (0, 0, 5)


class Result(collections.OrderedDict):
    """As libraries of language models return."""


OUTPUTS = {
    "tuple": lambda y: (y, (y, [y])),
    "dict": lambda y: {"a": y, "b": {"c": y, "d": y}, "e": 3},
    "dataclass": lambda y: Data((y, y, y)),
    "named": lambda y: Named(y, (y, y)),
    "object": lambda y: Result(a=y, b=y, c=[y]),
    "with others": lambda y: (None, y, "text", y, 1.5, y),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_outputs(case):
    report = rfcalc.analyze(Fn(lambda m, x: OUTPUTS[case](m.conv(x)), conv=conv()), IMAGE)
    assert report.output_shapes == ((1, 1, 8, 8),) * 3
    assert report.rf_output == (3, 3)


# ----------------------------------------------------------------------------------------- what wraps a module


@both_levels
def test_lazy_modules(level):
    net = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(5))
    report = rfcalc.analyze(net, (2, 8, 8), level=level)
    assert report.params == 2 * 4 * 9 + 4 + 8 + 4 * 36 * 5 + 5
    assert report.output_shapes == ((1, 5),)
    assert any("lazy" in note for note in report.notes)
    assert isinstance(net[0].weight, nn.parameter.UninitializedParameter)  # still lazy
    assert net(torch.ones(1, 3, 9, 9)).shape == (1, 5)


@both_levels
@pytest.mark.filterwarnings("ignore:None of the inputs")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant, level):
    net = Fn(
        lambda m, x: checkpoint(m.block, x, use_reentrant=reentrant), block=nn.Sequential(conv(), nn.ReLU(), conv())
    )
    report = rfcalc.analyze(net, IMAGE, level=level)
    assert [r.name for r in report.rows if r.params] == ["block.0", "block.2"]
    assert report.rf_output == (5, 5)
    assert report.approximate_ops == ()


def old_weight_norm(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(module)


WRAPPED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old weight_norm": old_weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}


@both_levels
@pytest.mark.parametrize("case", WRAPPED)
def test_parametrizations(case, level):
    net = nn.Sequential(WRAPPED[case](nn.Conv2d(2, 4, 3)), nn.ReLU())
    report = rfcalc.analyze(net, (2, 8, 8), level=level)
    assert report.rf_output == (3, 3)
    assert report.params == sum(p.numel() for p in net.parameters())
    assert report.params == sum(r.params for r in report.rows)
    assert report.approximate_ops == ()
    if case in ("weight_norm", "spectral_norm", "old weight_norm"):
        assert report.rows[0].name == "0"
        assert report.rows[0].op == "Conv2d"
        assert report.rows[0].kernel == (3, 3)


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 5, padding=2)

    def forward(self, x):
        if x.shape[1] == 1:
            x = torch.relu(self.conv(x))
        return x[:, :, 1:] + x[:, :, :-1]


@both_levels
def test_scripted_code_is_seen(level):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(Scripted())
    net = nn.Sequential(conv(), scripted, conv())
    plain = rfcalc.analyze(nn.Sequential(conv(), Scripted(), conv()), IMAGE, level=level)
    report = rfcalc.analyze(net, IMAGE, level=level)
    assert report.rf_output == plain.rf_output == (10, 9)
    assert report.params == plain.params
    assert report.macs == plain.macs
    assert report.approximate_ops == ()


# ------------------------------------------------------------------------- of an operand only the shape, or the type


@both_levels
@pytest.mark.parametrize("how", ["type_as", "to"])
def test_a_cast_is_no_join(level, how):
    """The other tensor may have any rank; nothing of what it depends on is in the result or in its row."""

    def forward(m, x):
        y = m.conv(x)
        mean = getattr(m.mean, how)(x.flip(3))
        return getattr(y - mean, how)(x.mean()) + getattr(torch.arange(8), how)(y)

    model = Fn(forward, conv=conv(), mean=nn.Buffer(torch.zeros(1, 1, 1, 1)))
    report = rfcalc.analyze(model, IMAGE, level=level)
    cast = next(row for row in report.rows if row.op == how)
    assert (cast.r_in, cast.r_out, report.rf_output) == ((3, 3), (3, 3), (3, 3))
    assert (report.approximate_ops, report.notes) == ((), ())


@both_levels
@pytest.mark.parametrize(
    "mask",
    [
        lambda y: y.new_zeros(8, 8).fill_(1).triu(1),
        lambda y: torch.arange(8).type_as(y)[None] > torch.arange(8).to(y)[:, None],
        lambda y: torch.ones(8, 8).to(y).triu(1).view_as(y[0]),
        lambda y: torch.ones(1).expand_as(y[0, 0]).triu(1).reshape_as(y[0]),
    ],
)
def test_what_is_made_in_the_likeness_of_a_tensor_is_a_known_constant(level, mask):
    def forward(m, x):
        return (x @ x.mT).masked_fill(mask(x).bool(), float("-inf")).softmax(-1) @ x

    report = rfcalc.analyze(Fn(forward), IMAGE, level=level)
    assert [report.region(report.rows[-1], (i, 0))[0].exact for i in range(8)] == [(0, i) for i in range(8)]


@both_levels
def test_a_constant_that_is_filled_by_chance_through_a_view_is_not_known(level):
    def forward(m, x):
        flags = torch.zeros_like(x)
        flags[..., :4].uniform_()
        return torch.where(flags > 0.5, x, x.flip(3))

    row = rfcalc.analyze(Fn(forward), IMAGE, level=level).rows[-1]
    assert row.r_out == (1, 8)


# ------------------------------------------------------------------------------------------- forwards that need values


def with_item(m, x):
    return m.conv(x) * x.mean().item()


def with_branch(m, x):
    return m.conv(x) if x.sum() > -1e9 else x


def with_nonzero(m, x):
    y = m.conv(x)
    return y[:, :, : len(x.flatten().nonzero()) // 100 + 8]


def with_mask(m, x):
    y = m.conv(x)
    return y[y > -1e9].sum() + y


def with_nms(m, x):
    ops = pytest.importorskip("torchvision.ops")
    y = m.conv(x)
    boxes = torch.tensor([[0.0, 0, 4, 4], [4, 4, 8, 8]])
    return y[0, 0, ops.nms(boxes, y[0, 0, 0, :2], 0.5)]


@both_levels
@pytest.mark.parametrize("forward", [with_item, with_branch, with_nonzero, with_mask, with_nms])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_values_come_from_a_run_on_cpu(forward, device, level):
    net = Fn(forward, conv=conv()).to(device)
    report = rfcalc.analyze(net, IMAGE, level=level)
    assert any("run on CPU tensors, because the forward needs values" in note for note in report.notes)
    assert report.row("conv").r_out == (3, 3)
    assert report.params == 10
    assert all(p.device.type == device for p in net.parameters())


def formats(m, x):
    y = m.conv(x)
    return (y, f"{y.mean():.3f}")[0]


def logs(m, x):
    y = m.conv(x)
    logging.getLogger("design").warning("mean %.3f", y.mean())
    return y


def goes_on_after_an_error(m, x):
    y = m.conv(x)
    try:
        return y if x.sum().item() > -1e9 else x
    except Exception:
        return x


@both_levels
@pytest.mark.parametrize(
    "forward",
    [
        formats,
        logs,
        goes_on_after_an_error,
        lambda m, x: (m.conv(x), x.numpy())[0],
        lambda m, x: (m.conv(x), np.asarray(x))[0],
        lambda m, x: (m.conv(x), "{:.1e}".format(x.sum()))[0],  # noqa: UP032
        lambda m, x: (m.conv(x), torch.from_dlpack(x))[0],
        lambda m, x: (m.conv(x), x.tolist(), [float(v) for v in x.flatten()[:3]])[0],
    ],
)
def test_numbers_that_are_only_looked_at_change_nothing(forward, level, capsys):
    report = rfcalc.analyze(Fn(forward, conv=conv()), IMAGE, level=level)
    assert (report.rf_output, report.approximate_ops) == ((3, 3), ())
    assert any("needs values" in note for note in report.notes)
    assert "Logging error" not in capsys.readouterr().err


@both_levels
@pytest.mark.parametrize(
    ("forward", "named"),
    [
        (lambda m, x: m.conv(x) * x.mean().item(), "mul"),
        (lambda m, x: m.conv(x) / (float(x.mean()) ** 0.5 + 1e-5), "div"),
        (lambda m, x: m.conv(x).clamp(max=float(x.max())), "clamp"),
        (lambda m, x: m.conv(x).mul_(float(np.asarray(x).mean())), "mul"),
        (lambda m, x: m.conv(x) + torch.tensor(float(x.mean())), "lift_fresh"),
        (lambda m, x: torch.tensor(m.conv(x).tolist()), "lift_fresh"),
        (lambda m, x: torch.from_numpy(m.conv(x).numpy()) * 1, "lift_fresh"),
        (lambda m, x: torch.from_dlpack(m.conv(x)), "output"),
        (lambda m, x: torch.full((3,), x.mean().item()), "full"),
        (lambda m, x: m.conv(x)[:, :, x.argmax() % 6], "select"),
        (lambda m, x: m.conv(x).roll(int(x.argmax()) % 6, 2), "roll"),
    ],
)
def test_numbers_that_leave_torch_and_come_back_carry_what_they_are_made_of(forward, named, level):
    report = rfcalc.analyze(Fn(forward, conv=conv()), IMAGE, level=level)
    assert report.rf_output == (8, 8)
    assert named in report.approximate_ops
    assert any(f"the rule of {named} did not apply" in note for note in report.notes)


@both_levels
def test_a_length_that_follows_the_data_makes_no_values_of_it(level):
    def forward(m, x):
        return m.conv(x) + torch.arange(int((x > -1).sum(-1).max()))

    report = rfcalc.analyze(Fn(forward, conv=conv()), IMAGE, level=level)
    assert (report.rf_output, report.approximate_ops) == ((3, 3), ())


@both_levels
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_refused_in_one_line(layout, level):
    def forward(m, x):
        return torch.nested.as_nested_tensor([x[0, 0, :3], x[0, 0]], layout=layout)

    with pytest.raises(rfcalc.errors.ForwardError, match="a nested tensor has no shape"):
        rfcalc.analyze(Fn(forward), IMAGE, level=level)


@both_levels
def test_what_a_forward_prints_is_no_row(level):
    def forward(m, x):
        y = m.conv(x)
        return (y, f"{y} {y.mean():.3f}", str(y), repr(x))[0]

    report = rfcalc.analyze(Fn(forward, conv=conv()), IMAGE, level=level)
    assert [row.name for row in report.rows] == ["conv", "mean"]


@both_levels
@pytest.mark.parametrize("change", [lambda v: v.mul_(0.5), lambda v: v.add_(1), lambda v: v.__imul__(2.0)])
def test_a_number_written_through_a_view_leaves_the_dependence_as_it_is(change, level):
    def forward(m, x):
        y = x * 1
        change(y.unfold(2, 2, 2))
        return y * 1

    report = rfcalc.analyze(Fn(forward), IMAGE, level=level)
    assert (report.rf_output, report.approximate_ops) == ((1, 1), ())


@both_levels
def test_as_strided_of_a_view_reads_all_that_it_is_a_view_of(level):
    def forward(m, x):
        return x.mul(1)[:, :, 4:].as_strided((4, 8), (8, 1), 0) * 1

    report = rfcalc.analyze(Fn(forward), IMAGE, level=level)
    assert (report.rf_output, report.approximate_ops) == ((8, 8), ("as_strided",))


@both_levels
@pytest.mark.parametrize(
    ("forward", "shape"),
    [
        (lambda m, x: torch.mul(x, 2, out=torch.empty(0)), (1, 1, 8, 8)),
        (lambda m, x: torch.max(x, 2, out=(torch.empty(0), torch.empty(0, dtype=torch.long)))[0], (1, 1, 8)),
        (lambda m, x: torch.sort(x, 2, out=(torch.empty_like(x), torch.empty(1, 1, 8, 8, dtype=torch.long)))[0], None),
    ],
)
def test_out_tensors_with_storage_are_given_back_in_the_shape_of_the_result(forward, shape, level):
    report = rfcalc.analyze(Fn(forward), IMAGE, level=level)
    assert report.output_shapes == (shape or (1, 1, 8, 8),)


TOKENS_BEFORE = torch.ones(6, 6).triu(1).bool()
SOME = torch.tensor([True, False, False, True, False, False])


@both_levels
@pytest.mark.parametrize("heads", [False, True])
def test_a_mask_written_with_leading_dims_is_read(heads, level):
    def forward(m, x):
        a = x @ x.mT
        a = a[:, None].repeat(1, 2, 1, 1) if heads else a
        a[(slice(None),) * (a.dim() - 2) + (TOKENS_BEFORE,)] = float("-inf")
        a = a.softmax(-1)
        return (a.sum(1) if heads else a) @ x

    report = rfcalc.analyze(Fn(forward), (6, 4), level=level, layout="TC")
    assert [report.region(report.rows[-1], (i,))[0].exact for i in range(6)] == [(0, i) for i in range(6)]


@both_levels
@pytest.mark.parametrize("mask", [lambda x: SOME, lambda x: SOME.to(x.device)])
def test_whole_tokens_filled_by_a_mask_see_nothing(mask, level):
    def forward(m, x):
        y = x * 1
        y[:, mask(x)] = 0.5
        return y

    report = rfcalc.analyze(Fn(forward), (6, 4), level=level, layout="TC")
    seen = [report.region(report.rows[-1], (i,))[0].exact for i in range(6)]
    assert seen == [None if some else (i, i) for i, some in enumerate(SOME.tolist())]


@both_levels
def test_scripted_code_that_asks_for_numbers_is_run_on_values(level):
    @torch.jit.script
    def either(x: Tensor) -> Tensor:
        if bool(x.sum() > -1e9):
            return x
        return x * 2

    report = rfcalc.analyze(Fn(lambda m, x: either(m.conv(x)), conv=conv()), IMAGE, level=level)
    assert report.rf_output == (3, 3)
    assert any("scripted code asks for numbers" in note for note in report.notes)


@both_levels
@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: F.conv2d(x.repeat(1, 2, 1, 1), torch.ones(3, 1, 3, 3), groups=2),
        lambda m, x: F.adaptive_avg_pool2d(x, np.int64(3)),
    ],
)
def test_calls_that_torch_refuses_are_refused(forward, level):
    with pytest.raises(rfcalc.ForwardError):
        rfcalc.analyze(Fn(forward), IMAGE, level=level)


@both_levels
def test_an_observer_that_a_kernel_has_resized_is_put_back(level):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.Sequential(conv(), nn.ReLU(), nn.Conv2d(1, 2, 3))
        net.qconfig = torch.ao.quantization.get_default_qat_qconfig("x86")
        net = torch.ao.quantization.prepare_qat(net.train())
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert rfcalc.analyze(net, IMAGE, level=level).output_shapes == ((1, 2, 6, 6),)
    after = net.state_dict()
    assert all(after[k].shape == v.shape and after[k].equal(v) for k, v in before.items())


@both_levels
def test_a_compressed_sparse_weight_multiplies_as_a_dense_one(level):
    w = torch.eye(8).to_sparse_csr()
    report = rfcalc.analyze(Fn(lambda m, x: w @ m.conv(x)[0, 0], conv=conv()), IMAGE, level=level)
    assert (report.output_shapes, report.rf_output, report.notes) == (((8, 8),), (10, 3), ())


@both_levels
def test_an_own_op_without_a_storage_less_kernel_is_run_on_values(level):
    @torch.library.custom_op("rfcalc_tests::squared", mutates_args=())
    def squared(x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() ** 2)

    report = rfcalc.analyze(Fn(lambda m, x: squared(m.conv(x)), conv=conv()), IMAGE, level=level)
    assert report.approximate_ops == ("rfcalc_tests::squared",)
    assert any("needs values" in note for note in report.notes)


def test_plain_forwards_need_no_values():
    assert rfcalc.analyze(conv(), IMAGE).notes == ()


def test_rebuild_is_asked_for_weights():
    made = []

    def rebuild():
        made.append(Fn(with_item, conv=conv()))
        return made[-1]

    report = rfcalc.analyze(Fn(with_item, conv=conv()).to("meta"), IMAGE, rebuild=rebuild)
    assert len(made) == 1
    assert report.params == 10


@both_levels
def test_dynamically_quantized_modules(level):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            net = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), {nn.Linear})
        except (RuntimeError, NotImplementedError, AttributeError) as error:
            pytest.skip(f"no quantized engine here: {error}")
    report = rfcalc.analyze(nn.Sequential(conv(), net), IMAGE, level=level)
    assert any("run on CPU tensors" in note for note in report.notes)
    assert report.output_shapes == ((1, 1, 8, 4),)
    assert report.params == 10
    assert report.approximate_ops == ("quantized::linear_dynamic",)
    assert [r.exact for r in report.rows] == [True, False, False]
    assert report.rf_output == (8, 8)


# ----------------------------------------------------------------------------------------------------- unknown ops


@functools.cache
def namesake():
    """An op of a user's own that bears an ATen name, and is none."""
    library = torch.library.Library("rfcalc_own", "DEF")
    library.define("relu(Tensor x) -> Tensor")
    library.define("relu_(Tensor(a!) x) -> Tensor(a!)")
    library.define("tripled(Tensor x) -> Tensor", tags=(torch.Tag.pointwise,))
    library.define("conv2d(Tensor x, Tensor weight) -> Tensor")
    library.define("mean(Tensor x) -> Tensor")
    library.impl("relu", lambda x: x.flip(3) + x, "CompositeExplicitAutograd")
    library.impl("relu_", lambda x: x, "CompositeExplicitAutograd")
    library.impl("tripled", lambda x: x * 3, "CompositeExplicitAutograd")
    library.impl("conv2d", lambda x, weight: x * 1, "CompositeExplicitAutograd")
    library.impl("mean", lambda x: x * 2, "CompositeImplicitAutograd")
    return library


@both_levels
@pytest.mark.parametrize("write", [False, True])
def test_a_rule_that_fails_is_named_in_its_row_also_when_read_again(monkeypatch, level, write):
    def fails(call, *args, **kwargs):
        raise LookupError("not today")

    def forward(m, x):
        y = x * 1
        part = y.unfold(3, 2, 1)
        if write:
            y.add_(1)
            y[:, :, 0].mul_(x[:, :, 1])
        return part * 2

    monkeypatch.setitem(RULES, "unfold", fails)
    report = rfcalc.analyze(Fn(forward), IMAGE, level=level)
    assert report.approximate_ops == ("unfold",)
    assert [row.exact for row in report.rows if row.op == "unfold"] == [False]
    assert not report.rows[-1].exact
    assert report.notes == (
        "the rule of unfold did not apply (LookupError: not today); its output is taken to depend on everything",
    )


@both_levels
@pytest.mark.parametrize(
    ("transformed", "field"),
    [
        (lambda m, x: torch.func.jvp(torch.sin, (x,), (x.flip(3),))[1], (1, 8)),
        (lambda m, x: torch.func.jvp(m.conv, (x,), (x.flip(3),))[1], (3, 3)),  # linear: of the tangent alone, mirrored
        (lambda m, x: torch.func.vmap(m.conv)(x), (3, 3)),
        (lambda m, x: torch.func.vmap(lambda row: row + row.flip(1), 2, 2)(x[0])[None], (8, 1)),
    ],
)
def test_function_transforms_are_seen_through(level, transformed, field):
    """The row of what comes out of a derivative along a tangent depends on the value and on the tangent."""
    report = rfcalc.analyze(Fn(transformed, conv=conv()), IMAGE, level=level)
    last = next(row for row in reversed(report.rows) if row.op != "getitem")
    assert (last.r_out, report.rf_output, report.approximate_ops) == (field, field, ())


@both_levels
def test_a_rule_is_not_said_to_fail_on_a_constant(level):
    report = rfcalc.analyze(Fn(lambda m, x: x * torch.arange(9.0).unfold(0, 2, 1).sum(1)), IMAGE, level=level)
    assert (report.approximate_ops, report.notes, report.rf_output) == ((), (), (1, 1))


@both_levels
@pytest.mark.parametrize(
    ("op", "rest", "field", "approximate"),
    [
        ("relu", (), (8, 8), ("rfcalc_own::relu",)),
        ("relu_", (), (8, 8), ("rfcalc_own::relu",)),
        ("conv2d", (torch.zeros(1, 1, 3, 3),), (8, 8), ("rfcalc_own::conv2d",)),
        ("tripled", (), (3, 3), ()),  # torch itself says that it is element-wise
        ("mean", (), (3, 3), ()),  # made of other ops, which are seen
    ],
)
def test_an_op_with_the_name_of_another_is_not_taken_for_it(level, op, rest, field, approximate):
    namesake()
    own = getattr(torch.ops.rfcalc_own, op)
    report = rfcalc.analyze(Fn(lambda m, x: own(m.conv(x), *rest), conv=conv()), IMAGE, level=level)
    assert (report.rf_output, report.approximate_ops) == (field, approximate)
    assert report.macs == 9 * 64
    assert [row.exact for row in report.rows] == [True, not approximate]


@functools.cache
def unknown_op():
    @torch.library.custom_op("rfcalc_tests::mystery", mutates_args=())
    def mystery(x: Tensor) -> Tensor:
        return x.clone()

    mystery.register_fake(torch.empty_like)
    return mystery


@both_levels
def test_an_unknown_op_is_conservative_and_named(level):
    net = Fn(lambda m, x: m.b(unknown_op()(m.a(x))), a=conv(), b=conv())
    report = rfcalc.analyze(net, IMAGE, level=level)
    a, strange, b = report.rows
    assert (a.exact, strange.exact, b.exact) == (True, False, False)
    assert len(report.approximate_ops) == 1
    assert "mystery" in report.approximate_ops[0]
    assert strange.r_out == b.r_out == (8, 8)
    assert [r.exact for r in report.region(strange.name, (0, 0))] == [(0, 7), (0, 7)]


def test_an_unknown_op_beside_the_path_changes_nothing_else():
    net = Fn(lambda m, x: (m.a(x), unknown_op()(x)), a=conv())
    report = rfcalc.analyze(net, IMAGE)
    assert report.row("a").exact
    assert report.rf_output == (3, 3)
    assert len(report.approximate_ops) == 1


# ----------------------------------------------------------------------------------------------------- writes


def through_a_slice(m, x):
    y = x.clone()
    y[:, :, 1:] += x[:, :, :-1]
    return y


def through_views_of_views(m, x):
    y = x.clone()
    y.permute(0, 1, 3, 2).flatten(0, 1)[:, :, 1:].add_(x.transpose(2, 3)[0, :, :, :-1])
    return y


def through_a_piece(m, x):
    y = x.clone()
    y.split([1, 7], 2)[1].copy_(x[:, :, :-1] + x[:, :, 1:])
    return y


def seen_by_an_older_view(m, x):
    y = x.clone()
    tail = y[:, :, 1:]
    y[:, :, 1:].add_(x[:, :, :-1])
    return torch.cat([y[:, :, :1], tail], 2)


@both_levels
@pytest.mark.parametrize("write", [through_a_slice, through_views_of_views, through_a_piece, seen_by_an_older_view])
def test_writes_through_views(write, level):
    report = rfcalc.analyze(Fn(write), IMAGE, level=level)
    name = report.rows[-1].name
    assert report.rows[-1].exact
    if write is seen_by_an_older_view:
        assert report.region(name, (0, 3))[0].exact == (0, 0)
        assert report.region(name, (5, 3))[0].exact == (4, 5)
    assert report.rf_output == (2, 1)
    assert report.approximate_ops == ()


def test_overwriting_forgets():
    def forward(m, x):
        y = m.conv(x)
        y[:, :, :, :] = x
        return y * 1

    assert rfcalc.analyze(Fn(forward, conv=conv(k=5)), IMAGE).rf_output == (1, 1)


def test_filled_storage_of_ones_own():
    def forward(m, x):
        out = torch.zeros(1, 1, 4, 8, device=x.device)
        for i in range(4):
            out[:, :, i] = x[:, :, 2 * i]
        return out * 1

    report = rfcalc.analyze(Fn(forward), IMAGE)
    assert [report.region("mul", (i, 3))[0].exact for i in range(4)] == [(0, 0), (2, 2), (4, 4), (6, 6)]


# --------------------------------------------------------------------------------------------- views and copies


def turned(x):
    return x.transpose(2, 3) * 1.0


CHANGED = {
    "contiguous copies": (turned, lambda y: y.contiguous(), False),
    "contiguous is the tensor": (lambda x: x * 1.0, lambda y: y.contiguous(), True),
    "reshape copies": (turned, lambda y: y.reshape(1, 1, 1, 64), False),
    "reshape is a view": (lambda x: x * 1.0, lambda y: y.reshape(1, 1, 1, 64), True),
    "flatten copies": (turned, lambda y: y.flatten(2), False),
    "flatten is a view": (lambda x: x * 1.0, lambda y: y.flatten(2), True),
    "ravel copies": (turned, torch.ravel, False),
    "reshape_as copies": (turned, lambda y: y.reshape_as(torch.empty(64)), False),
    "unflatten is a view": (turned, lambda y: y.unflatten(1, (1, 1)), True),
    "to another type": (turned, lambda y: y.to(torch.float64), False),
    "to the same type": (turned, lambda y: y.to(torch.float32), True),
    "to, told to copy": (turned, lambda y: y.to(torch.float32, copy=True), False),
    "to channels last": (lambda x: x.repeat(1, 2, 1, 1), lambda y: y.to(memory_format=torch.channels_last), False),
    "half": (turned, lambda y: y.half(), False),
    "float": (turned, lambda y: y.float(), True),
    "type": (turned, lambda y: y.type(torch.float64), False),
    "type_as": (turned, lambda y: y.type_as(y), True),
    "clone": (turned, lambda y: y.clone(), False),
    "detach": (turned, lambda y: y.detach(), True),
    "data": (turned, lambda y: y.data, True),
    "pixel_shuffle by 1": (lambda x: x * 1.0, lambda y: F.pixel_shuffle(y, 1), False),
    "broadcast_tensors": (turned, lambda y: torch.broadcast_tensors(y, torch.zeros(()))[0], True),
    "of a transposed convolution": (
        lambda x: F.conv2d(x.to(memory_format=torch.channels_last).repeat(1, 2, 1, 1), torch.ones(2, 2, 1, 1)),
        lambda y: y.flatten(2),
        True,
    ),
}


@both_levels
@pytest.mark.parametrize("case", CHANGED)
def test_a_copy_is_no_view(case, level):
    """Is what was written to the result seen in the tensor before it? As torch itself does it."""
    make, change, shared = CHANGED[case]

    def forward(m, x):
        y = make(x)
        change(y).fill_(0.5)
        return y * 1

    with torch.no_grad():
        x = torch.rand(1, *IMAGE)
        assert torch.equal(forward(None, x), torch.full_like(forward(None, x), 0.5)) is shared
    report = rfcalc.analyze(Fn(forward), IMAGE, level=level)
    assert report.rf_output == ((0, 0) if shared else (1, 1))
    assert report.approximate_ops == ()


LAID_OUT = {
    "channels last": ((4, 8, 8), lambda x: x.to(memory_format=torch.channels_last)),
    "permuted": ((8, 8, 4), lambda x: x.permute(0, 3, 1, 2)),
    "one channel, permuted": ((8, 8, 1), lambda x: x.permute(0, 3, 1, 2)),
    "transposed": ((4, 8, 6), lambda x: x.transpose(2, 3)),
    "heads": ((6, 96), lambda x: x.reshape(1, 6, 3, 4, 8).permute(2, 0, 3, 1, 4)[1]),
    "sliced": ((8, 6, 8), lambda x: x[:, ::2]),
    "expanded": ((4, 1, 8), lambda x: x.expand(1, 4, 6, 8)),
    "channels last, one channel": ((1, 6, 8), lambda x: x.to(memory_format=torch.channels_last)),
    "channels last, one position": ((4, 1, 1), lambda x: x.to(memory_format=torch.channels_last)),
}
LAYERS = {
    "conv": lambda c: nn.Conv2d(c, 3, 3, padding=1),
    "conv, weight channels last": lambda c: nn.Conv2d(c, 3, 3).to(memory_format=torch.channels_last),
    "transposed conv": lambda c: nn.ConvTranspose2d(c, 3, 2),
    "batch norm": nn.BatchNorm2d,
    "group norm": lambda c: nn.GroupNorm(1, c),
    "relu": lambda c: nn.ReLU(),
    "logsigmoid": lambda c: nn.LogSigmoid(),
    "reflect": lambda c: nn.ReflectionPad2d(1),
    "softmax": lambda c: nn.Softmax(1),
    "max pool": lambda c: nn.MaxPool2d(2),
    "scaled": lambda c: Fn(lambda m, x: 2 * x + 1),
    "rolled": lambda c: Fn(lambda m, x: x.roll(1, 2)),
    "matmul": lambda c: Fn(lambda m, x: x.transpose(2, 3) @ x),
    "attention": lambda c: Fn(lambda m, x: F.scaled_dot_product_attention(x, x, x)),
    "mean": lambda c: Fn(lambda m, x: x.mean(1)),
    "layer norm": lambda c: Fn(lambda m, x: F.layer_norm(x, x.shape[-1:])),
    "log softmax": lambda c: nn.LogSoftmax(1),
    "gelu": lambda c: nn.GELU(),
    "relu6": lambda c: nn.ReLU6(),
    "hardswish": lambda c: nn.Hardswish(),
    "rrelu": lambda c: nn.RReLU(),
    "clamped": lambda c: Fn(lambda m, x: x.clamp(0, 1)),
    "squared": lambda c: Fn(lambda m, x: x * x),
    "gated": lambda c: Fn(lambda m, x: x * x.mean((2, 3), keepdim=True)),
    "copied": lambda c: Fn(lambda m, x: x.clone()),
    "joined": lambda c: Fn(lambda m, x: torch.cat([x, x], 2)),
    "nearest": lambda c: nn.Upsample(scale_factor=2),
    "bilinear": lambda c: nn.Upsample(scale_factor=2, mode="bilinear"),
    "shuffled": lambda c: Fn(lambda m, x: F.pixel_shuffle(x.repeat(1, 4, 1, 1), 2)),
    "shuffled alone": lambda c: nn.PixelShuffle(2),
    "average pool": lambda c: nn.AvgPool2d(2),
    "unpool": lambda c: Fn(lambda m, x: F.max_unpool2d(*F.max_pool2d(x, 1, return_indices=True), 1)),
}


def strides(t):
    return [s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1]


def doubled(y):
    """Twice the channels, which lie as those of `y` are taken to: of one channel its own strides do not tell."""
    return torch.cat([y, y], 1)


@both_levels
@pytest.mark.parametrize("laid", LAID_OUT)
@pytest.mark.parametrize("layer", LAYERS)
def test_results_lie_as_on_a_cpu(layer, laid, level):
    shape, lay = LAID_OUT[laid]
    x = lay(torch.zeros(1, *shape))
    part = LAYERS[layer](x.shape[1]).eval()
    seen = []

    def forward(m, x):
        y = m.part(lay(x * 1))
        seen.append((strides(y), strides(doubled(y))))
        return y

    try:
        with torch.no_grad():
            y = part(x)
    except RuntimeError:
        pytest.skip("a layer that the map is too small for")
    rfcalc.analyze(Fn(forward, part=part), shape, level=level)
    assert seen[-1] == (strides(y), strides(doubled(y)))


def into(y, op, *args, out):
    """An op told where to write, and what is there afterwards."""
    op(*args, out=out)
    return out * 1 if y is None else y * 1


def zeroed(y, *changes):
    """Its first three rows are cleared after the tensor itself was given another shape."""
    for change, *args in changes:
        getattr(y, change)(*args)
    y[:, :3] = 0.0
    return y


def with_data(y):
    z = torch.zeros_like(y)
    z.data = y
    return z * 1


# What is made of a (1, 5, 9) map whose positions see three samples: its shape, the field, the bytes at the peak.
RESHAPED = {
    "transpose_": (lambda y: y.transpose_(1, 2), (1, 9, 5), 3),
    "swapdims_": (lambda y: y.swapdims_(1, 2), (1, 9, 5), 3),
    "swapaxes_": (lambda y: y.swapaxes_(-1, 1), (1, 9, 5), 3),
    "t_": (lambda y: y[0].t_().unsqueeze_(0), (1, 9, 5), 3),
    "unsqueeze_ and squeeze_": (lambda y: y.unsqueeze_(1).squeeze_(1), (1, 5, 9), 3),
    "squeeze_ all": (lambda y: y.squeeze_().unsqueeze_(0), (1, 5, 9), 3),
    "as_strided_": (lambda y: y.as_strided_((1, 5, 4), (45, 9, 2)), (1, 5, 4), 3),
    "resize_": (lambda y: y.resize_(5, 9).unsqueeze(0), (1, 5, 9), 3),
    "data": (with_data, (1, 5, 9), 3),
    "a write afterwards": (lambda y: zeroed(y, ("transpose_", 1, 2)), (1, 9, 5), 3),
    "a write to what it was": (lambda y: zeroed(y.view(1, 5, 9), ("transpose_", 1, 2)) is None or y, (1, 5, 9), 3),
    "out=": (lambda y: into(None, torch.add, y, y, out=torch.empty_like(y)), (1, 5, 9), 3),
    "out= of another size": (lambda y: into(None, torch.mul, y, y, out=y.new_empty(0)), (1, 5, 9), 3),
    "out= of a shortcut": (lambda y: into(None, torch.exp, y, out=y.new_empty(0)), (1, 5, 9), 3),
    "out= a part": (lambda y: into(y, torch.exp, y[:, :, :2], out=y[:, :, 2:4]), (1, 5, 9), 3),
    "out= a list": (lambda y: into(None, torch.cat, [y, y], 1, out=y.new_empty(0)), (1, 10, 9), 3),
}


@both_levels
@pytest.mark.parametrize("case", RESHAPED)
def test_a_tensor_itself_gets_another_shape(case, level):
    change, shape, r = RESHAPED[case]
    net = Fn(lambda m, x: change(m.conv(x)), conv=nn.Conv1d(4, 5, 3))
    with torch.no_grad():
        assert net(torch.ones(1, 4, 11)).shape == shape
    report = rfcalc.analyze(net, (4, 11), level=level)
    assert report.output_shapes == (shape,)
    assert report.rf_output == (r,)
    assert report.approximate_ops == ()
    first, last = (report.region(report.rows[-1], [i] * len(report.rows[-1].n_out))[0].exact for i in (0, 3))
    assert first is None if "write" in case else first == (0, 2)
    assert last in ((3, 5), (6, 8), (0, 2), (1, 3))


@both_levels
def test_more_and_fewer_elements_are_anywhere(level):
    for size in (10, 100):
        net = Fn(lambda m, x, size=size: m.conv(x).resize_(1, size), conv=nn.Conv1d(4, 5, 3))
        report = rfcalc.analyze(net, (4, 11), level=level)
        assert report.rf_output == (11,)
        assert report.approximate_ops == ("resize",)


@both_levels
@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("center", [False, True])
def test_short_time_fourier(window, center, level):
    """How many samples three frames see: a window of 16, two hops of 4."""

    def forward(m, x):
        s = torch.stft(x, 16, 4, window=m.window if window else None, center=center, return_complex=True)
        return m.conv(torch.view_as_real(s).permute(0, 3, 1, 2))

    net = Fn(forward, conv=nn.Conv2d(2, 1, (1, 3)))
    net.register_buffer("window", torch.hann_window(16))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = rfcalc.analyze(net, (64,), level=level)
    assert report.rf_output == (24,)
    assert report.approximate_ops == ()


@both_levels
def test_what_a_forward_sets_of_a_weight_is_put_back(level):
    """The max-norm idiom of EEGNet; flags, gradients and shapes as well."""

    def forward(m, x):
        m.conv.weight.data = torch.renorm(m.conv.weight.data, 2, 0, 0.1)
        m.conv.bias.requires_grad_(False)
        m.conv.bias.grad = None
        m.scale.unsqueeze_(0)
        return m.conv(x) * m.scale

    for device in ("cpu", "meta"):
        net = Fn(forward, conv=conv()).to(device)
        net.register_buffer("scale", torch.ones(1, device=device))
        net.conv.bias.grad = grad = torch.ones(1, device=device)
        weight, values = net.conv.weight, None if device == "meta" else net.conv.weight.tolist()
        storage = weight.untyped_storage()._cdata
        report = rfcalc.analyze(net, IMAGE, level=level)
        assert report.rf_output == (3, 3)
        assert report.unreached == ()
        assert net.conv.weight is weight
        assert weight.untyped_storage()._cdata == storage
        assert values is None or weight.tolist() == values
        assert net.conv.bias.requires_grad
        assert net.conv.bias.grad is grad
        assert net.scale.shape == (1,)
        assert not weight.__dict__


# ------------------------------------------------------------------------------------------------ live activations

FIRST = """
import torch, rfcalc
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(4, 4, 3, padding=1)
    def block(self, x):
        y = {op}
        return y
    def forward(self, x):
        x = self.c(x)
        return self.block(x) + x
for level in {levels}:
    print(rfcalc.analyze(Net(), (4, 16, 16), level=level).peak_activation_bytes)
"""


@pytest.mark.parametrize("levels", ["(2, 1, 2)", "(1, 2, 1)"])
@pytest.mark.parametrize("op", ["x.cumsum(2)", "torch.nn.functional.hardswish(x.logsumexp(2, True)).expand_as(x)"])
def test_the_peak_is_that_of_the_forward_whatever_ran_before(op, levels):
    """The first call of a kernel imports, and a frame of torch that stays holds the forward's own with it."""
    code = FIRST.format(op=op, levels=levels)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert len(set(out)) == 1
    if "cumsum" in op:
        assert out[0] == str(4 * 4096)  # the input, which the caller holds, and three maps


@both_levels
def test_the_peak_of_in_place_layers(level):
    net = Fn(lambda m, x: functools.reduce(lambda x, _: m.r(m.l(x)), range(9), x), l=nn.Linear(32, 32), r=nn.ReLU(True))
    assert rfcalc.analyze(net, (32,), level=level).peak_activation_bytes == 3 * 128


# ---------------------------------------------------------------------------------------------------- scripted code


def loaded(module):
    file = io.BytesIO()
    torch.jit.save(module, file)
    file.seek(0)
    return torch.jit.load(file)


def plain_net():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 1, 3)).eval()


IN_SCRIPT = {
    "script": lambda: torch.jit.script(plain_net()),
    "trace": lambda: torch.jit.trace(plain_net(), torch.rand(1, 1, 12, 12)),
    "freeze": lambda: torch.jit.freeze(torch.jit.script(plain_net())),
    "loaded script": lambda: loaded(torch.jit.script(plain_net())),
    "loaded trace": lambda: loaded(torch.jit.trace(plain_net(), torch.rand(1, 1, 12, 12))),
    "loaded freeze": lambda: loaded(torch.jit.freeze(torch.jit.script(plain_net()))),
    "first": lambda: nn.Sequential(torch.jit.script(plain_net()[0]), *plain_net()[1:]),
    "last": lambda: nn.Sequential(*plain_net()[:3], torch.jit.trace(plain_net()[3], torch.rand(1, 2, 10, 10))),
}


@both_levels
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", IN_SCRIPT)
def test_scripted_modules(case, level):
    net = IN_SCRIPT[case]()
    flags = [getattr(m, "training", None) for m in net.modules()]
    for _ in range(3):  # the script interpreter optimises what it has run before
        report = rfcalc.analyze(net, (1, 12, 12), level=level)
        assert report.rf_output == (5, 5)
        assert report.macs == 10 * 10 * 2 * 9 + 8 * 8 * 2 * 9
        assert report.peak_activation_bytes == 4 * (12 * 12 + 2 * 200)
        assert report.approximate_ops == ()
        assert report.unreached == ()
        kinds = [r.name.rpartition(".")[2].partition("#")[0] for r in report.rows]
        assert len(kinds) == (3 if "freeze" in case else 4)
        total = sum(p.numel() for p in net.parameters())
        assert report.params == sum(r.params for r in report.rows) == total == (0 if "freeze" in case else 43)
    assert [getattr(m, "training", None) for m in net.modules()] == flags
    assert not any("_call_impl" in m.__dict__ for m in net.modules())


# ------------------------------------------------------------------------------------------------ unusual modules


def nested(depth):
    return functools.reduce(lambda inner, _: nn.Sequential(inner), range(depth), conv())


@both_levels
def test_modules_nested_as_deep_as_torch_calls_them(level):
    net = nested(220)
    assert net(torch.zeros(1, *IMAGE)).shape == (1, *IMAGE)
    assert rfcalc.analyze(net, IMAGE, level=level).rf_output == (3, 3)


@both_levels
def test_modules_nested_deeper_than_torch_calls_them(level):
    net = nested(2000)
    with pytest.raises(rfcalc.ForwardError, match="recursion") as caught:
        rfcalc.analyze(net, IMAGE, level=level)
    assert len(str(caught.value)) < 600
    uncalled = Fn(lambda m, x: m.used(x), used=conv(), deep=net)
    assert rfcalc.analyze(uncalled, IMAGE, level=level).params == 20


@both_levels
def test_outputs_made_one_by_one(level):
    report = rfcalc.analyze(Fn(lambda m, x: (m.conv(x) for _ in range(2)), conv=conv()), IMAGE, level=level)
    assert report.output_shapes == ((1, 1, 8, 8),) * 2
    assert report.rf_output == (3, 3)


@both_levels
def test_parameters_of_a_functional_call_are_reached(level):
    def forward(m, x):
        twice = {k: p * 2 for k, p in m.conv.named_parameters()}
        return torch.func.functional_call(m.conv, twice, (x,))

    report = rfcalc.analyze(Fn(forward, conv=conv()), IMAGE, level=level)
    assert report.unreached == ()
    assert sum(r.params for r in report.rows) == report.params == 10


@both_levels
def test_a_module_that_returns_its_weight(level):
    report = rfcalc.analyze(Fn(lambda m, x: m.weight, weight=nn.Parameter(torch.rand(3, 2))), (2,), level=level)
    assert report.params == 6
    assert report.notes == ("the output does not depend on the input",)


class Cache:
    """A helper that is no module, as caches of keys and values are."""

    def __init__(self):
        self.last, self.all, self.inner = None, [], {"more": collections.deque([1]), "list": []}


@both_levels
def test_helpers_keep_nothing_of_the_run(level):
    def forward(m, x):
        m.cache.last = x
        m.cache.all.append(x)
        m.cache.inner["list"].append(x)
        m.table["cache"].last = x
        return m.conv(x)

    net = Fn(forward, conv=conv(), cache=Cache(), table={"cache": Cache()})
    rfcalc.analyze(net, IMAGE, level=level)
    assert (net.cache.last, net.cache.all, net.cache.inner["list"], net.table["cache"].last) == (None, [], [], None)


def test_threads_take_turns():
    net = nn.Sequential(*(conv() for _ in range(20))).train()
    seen = []
    threads = [
        threading.Thread(target=lambda: seen.extend(rfcalc.analyze(net, IMAGE).row("19").r_out for _ in range(3)))
        for _ in range(4)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert seen == [(41, 41)] * 12
    assert all(m.training for m in net.modules())
    assert not any("_call_impl" in m.__dict__ for m in net.modules())


class Entered(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@both_levels
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_mode_that_a_forward_leaves_on_is_taken_off(level, error):
    """The run's own would stay on the stack in its place, and see what is called after it."""

    def forward(m, x):
        Entered().__enter__()
        raise error

    with pytest.raises((rfcalc.ForwardError, KeyboardInterrupt)):
        rfcalc.analyze(Fn(forward), IMAGE, level=level)
    assert torch._C._len_torch_function_stack() == 0
