"""The oracle by itself: boxes worked out by hand, without the analysis."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from rfcalc import analyze
from rfcalc.analysis.calls import is_query
from rfcalc.errors import ForwardError, InputError, RfcalcError
from rfcalc.proof.boxes import Check, positions_of
from rfcalc.proof.oracle import prepare, verify
from rfcalc.proof.replay import replay


@dataclass(frozen=True)
class Axis:
    input: int
    dim: int
    name: str = "?"
    size: int = 0


@dataclass(frozen=True)
class Region:
    axis: Axis
    exact: tuple[int, int] | None


@dataclass(frozen=True)
class Row:
    name: str
    op: str
    call: int
    shape_out: tuple[int, ...]
    grid: tuple[int, ...]
    path: str = ""
    exact: bool = True

    @property
    def n_out(self):
        return tuple(self.shape_out[d] for d in self.grid)


@dataclass(frozen=True)
class Report:
    """As much of a report as the oracle reads; `boxes` maps (row, position) to one box per axis."""

    axes: tuple[Axis, ...]
    rows: tuple[Row, ...]
    boxes: dict = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def region(self, layer, position):
        return tuple(map(Region, self.axes, self.boxes[layer, position]))


class Fn(nn.Module):
    def __init__(self, fn, *layers):
        super().__init__()
        self.fn, self.layers = fn, nn.ModuleList(layers)

    def forward(self, *args, **kwargs):
        return self.fn(*args, *self.layers, **kwargs)


LINE, MAP = [Axis(0, 2)], [Axis(0, 2), Axis(0, 3)]


class Count(TorchFunctionMode):
    """How many calls a forward makes."""

    calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += not is_query(func)
        return func(*args, **(kwargs or {}))


def boxes(model, shape, position, call=None, grid=None, axes=None):
    """The measured boxes of one position of the last call, or of another one."""
    shapes = shape if isinstance(shape, list) else [shape]
    if call is None:
        twin, inputs = copy.deepcopy(model).eval(), [torch.rand(1, *s) for s in shapes]
        with torch.no_grad(), Count() as count:
            twin(*inputs)
        call = count.calls - 1
    oracle = replay(model.eval(), shape, {call: None})
    if axes is None:
        axes = LINE if len(shapes[0]) == 2 else MAP
    dims = tuple(range(2, oracle.outputs[call].ndim)) if grid is None else grid
    return oracle.measure(call, dims, position, axes)


def line(fn, position, length=12, channels=2, **kwargs):
    model = fn if isinstance(fn, nn.Module) else Fn(fn)
    return boxes(model, (channels, length), (position,), **kwargs)[0]


# boxes by hand


@pytest.mark.parametrize(
    ("layer", "position", "expected"),
    [
        (nn.Conv1d(2, 3, 3), 4, (4, 6)),
        (nn.Conv1d(2, 3, 3, stride=2, padding=1), 0, (0, 1)),
        (nn.Conv1d(2, 3, 3, stride=2, padding=1), 3, (5, 7)),
        (nn.Conv1d(2, 3, 3, dilation=3, padding=3), 5, (2, 8)),
        (nn.Conv1d(2, 2, 3, padding=6), 0, None),
        (nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular"), 0, (0, 11)),
        (nn.Conv1d(2, 2, 3, padding=2, padding_mode="reflect"), 0, (0, 2)),
        (nn.ConvTranspose1d(2, 2, 3, 2), 4, (1, 2)),
        (nn.ConvTranspose1d(2, 2, 3, 2), 5, (2, 2)),
        (nn.ConvTranspose1d(2, 2, 1, 2), 3, None),
        (nn.MaxPool1d(3, 2), 2, (4, 6)),
        (nn.MaxPool1d(5, 5, ceil_mode=True), 2, (10, 11)),
        (nn.MaxPool1d(3, 1, 1, dilation=2), 0, (1, 3)),
        (nn.AvgPool1d(4, 4, 2), 0, (0, 1)),
        (nn.LPPool1d(2, 3, 3), 1, (3, 5)),
        (nn.AdaptiveMaxPool1d(5), 1, (2, 4)),
        (nn.AdaptiveAvgPool1d(1), 0, (0, 11)),
        (nn.Upsample(scale_factor=2), 7, (3, 3)),
        (nn.Upsample(scale_factor=2, mode="linear"), 7, (3, 4)),
        (nn.Upsample(scale_factor=2, mode="linear"), 0, (0, 0)),
        (nn.Upsample(23, mode="linear", align_corners=True), 8, (4, 4)),
        (nn.BatchNorm1d(2), 3, (3, 3)),
        (nn.BatchNorm1d(2, track_running_stats=False), 3, (0, 11)),
        (nn.GroupNorm(1, 2), 3, (0, 11)),
        (nn.LayerNorm(12), 3, (0, 11)),
        (nn.Sequential(nn.Conv1d(2, 2, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(2, 1, 3)), 1, (2, 9)),
    ],
    ids=str,
)  # fmt: skip
def test_layers(layer, position, expected):
    assert line(layer, position) == expected


@pytest.mark.parametrize(
    ("fn", "position", "expected"),
    [
        (lambda x: x[..., 1::3], 2, (7, 7)),
        (lambda x: x.flip(-1), 1, (10, 10)),
        (lambda x: x.roll(3, 2), 1, (10, 10)),
        (lambda x: torch.cat([x, x.flip(2)], 2), 13, (10, 10)),
        (lambda x: x - x.roll(1, 2), 5, (4, 5)),
        (lambda x: 1 - x, 5, (5, 5)),
        (lambda x: x - x, 5, (5, 5)),
        (lambda x: x / x.roll(2, 2), 5, (3, 5)),
        (lambda x: x * x.mean(2, keepdim=True), 5, (0, 11)),
        (lambda x: torch.add(x, x.roll(1, 2), alpha=-1), 5, (4, 5)),
        (lambda x: x * 0, 5, (5, 5)),
        (lambda x: torch.maximum(x, x.roll(2, 2)), 5, (3, 5)),
        (lambda x: torch.where(x.roll(1, 2) > 0, x, x.roll(3, 2)), 5, (2, 5)),
        (lambda x: torch.where(torch.arange(12) < 5, x, x.flip(2)), 4, (4, 4)),
        (lambda x: torch.where(torch.arange(12) < 5, x, x.flip(2)), 5, (6, 6)),
        (lambda x: x.masked_fill(torch.arange(12) < 5, 0), 4, None),
        (lambda x: (x > x.roll(1, 2)).float(), 5, (4, 5)),
        (lambda x: x.clamp(0, 1e-9).relu().floor().sign().neg().sin().log().sqrt(), 5, (5, 5)),
        (lambda x: torch.cumsum(x, 2), 4, (0, 4)),
        (lambda x: x.cummax(2).values, 4, (0, 4)),
        (lambda x: x.diff(dim=2).cumsum(2), 4, (0, 5)),
        (lambda x: x.amax(2, keepdim=True).expand_as(x), 4, (0, 11)),
        (lambda x: x.sort(2).values, 4, (0, 11)),
        (lambda x: x.topk(3, 2)[0], 1, (0, 11)),
        (lambda x: x.softmax(2), 4, (0, 11)),
        (lambda x: x.detach() + x.data, 4, (4, 4)),
        (lambda x: x.to(torch.float16).float(), 4, (4, 4)),
        (lambda x: F.dropout(x, 0.9, training=True), 4, (4, 4)),
        (lambda x: torch.fft.ifft(torch.fft.fft(x)).real, 4, (0, 11)),
        (lambda x: F.pad(x, (2, 1)), 1, None),
        (lambda x: F.pad(x, (2, 1), mode="replicate"), 1, (0, 0)),
        (lambda x: F.glu(torch.cat([x, x.roll(3, 2)], 1), 1), 4, (1, 4)),
        (lambda x: F.unfold(x.unsqueeze(3), (3, 1)).mean(1, keepdim=True), 4, (4, 6)),
        (lambda x: x[:, :, x.argmax(2)[0]], 1, (0, 11)),
    ],
)  # fmt: skip
def test_functions(fn, position, expected):
    assert line(fn, position) == expected


def shifted(x):
    y = x.clone()
    y[:, :, 1:] += x[:, :, :-1]
    return y * 1


def activated_view(x):
    y = x * 1
    F.relu(y[:, :, 2:], inplace=True)
    y[:, :, :2] = y[:, :, 2:4]
    return y.add(0)


def piece(x):
    y = x * 1
    a, b = y.chunk(2, 2)
    a -= b
    return y.add(0)


def under_no_grad(x):
    with torch.no_grad():
        y = x.roll(1, 2) + x
    return y * 1


def under_inference(x):
    with torch.inference_mode():
        y = x.roll(1, 2) + x
    return y * 1


@pytest.mark.parametrize(
    ("fn", "position", "expected"),
    [
        (shifted, 4, (3, 4)), (shifted, 0, (0, 0)), (activated_view, 1, (3, 3)), (activated_view, 3, (3, 3)),
        (piece, 1, (1, 7)), (piece, 7, (7, 7)), (under_no_grad, 5, (4, 5)), (under_inference, 5, (4, 5)),
    ],
)  # fmt: skip
def test_writes_in_place_and_modes(fn, position, expected):
    assert line(fn, position) == expected


def test_a_later_write_does_not_change_an_earlier_layer():
    def fn(x):
        y = x * 2  # call 0
        y += x.roll(3, 2)
        return y

    assert line(fn, 5, call=0) == (5, 5)
    assert line(fn, 5) == (2, 5)


# attention and its masks


def manual(mask):
    def fn(x):
        t = x.transpose(1, 2)
        scores = (t @ t.transpose(1, 2) / 2).masked_fill(~mask, -math.inf)
        return scores.softmax(-1) @ t

    return fn


CAUSAL = torch.ones(12, 12).tril().bool()
BAND = CAUSAL & ~torch.ones(12, 12).tril(-3).bool()


def sdpa(**kwargs):
    return lambda x: F.scaled_dot_product_attention(*[x.transpose(1, 2)] * 3, **kwargs)


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (manual(CAUSAL), (0, 5)), (manual(BAND), (3, 5)), (manual(~CAUSAL), (5, 11)), (sdpa(), (0, 11)),
        (sdpa(is_causal=True), (0, 5)), (sdpa(attn_mask=BAND), (3, 5)),
        (sdpa(attn_mask=torch.zeros(12, 12).masked_fill(~BAND, -math.inf)), (3, 5)),
    ],
)  # fmt: skip
def test_masked_attention(fn, expected):
    assert line(fn, 5, grid=(1,)) == expected


def test_masked_weights_are_exactly_zero_and_depend_on_nothing():
    def fn(x):
        scores = x.transpose(1, 2) @ x
        return scores.masked_fill(~CAUSAL, -math.inf).softmax(-1)

    assert boxes(Fn(fn), (2, 12), (3, 7), grid=(1, 2), axes=LINE) == (None,)
    assert boxes(Fn(fn), (2, 12), (3, 2), grid=(1, 2), axes=LINE) == ((0, 3),)


@pytest.mark.parametrize(("mask", "expected"), [(None, (0, 5)), (torch.full((6, 6), -math.inf).triu(1), (0, 3))])
def test_multi_head_attention(mask, expected):
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    model = Fn(lambda x, attend: attend(x, x, x, attn_mask=mask)[0], attention)
    assert boxes(model, (6, 4), (3,), grid=(1,), axes=[Axis(0, 1)]) == (expected,)


def test_grouped_query_attention():
    def fn(x):  # (1, heads, tokens, features)
        return F.scaled_dot_product_attention(x, x[:, :2], x[:, :2], is_causal=True, enable_gqa=True)

    assert boxes(Fn(fn), (4, 6, 3), (2,), grid=(2,), axes=[Axis(0, 2)]) == ((0, 2),)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(kind):
    one, two = kind(3, 4, batch_first=True), kind(3, 4, batch_first=True, bidirectional=True)
    axes = [Axis(0, 1)]
    assert boxes(Fn(lambda x, layer: layer(x)[0], one), (20, 3), (7,), grid=(1,), axes=axes) == ((0, 7),)
    assert boxes(Fn(lambda x, layer: layer(x)[0], two), (20, 3), (7,), grid=(1,), axes=axes) == ((0, 19),)


# two dimensions, several inputs


@pytest.mark.parametrize(
    ("model", "position", "expected"),
    [
        (nn.MaxPool2d((2, 3), (2, 1), (1, 0), ceil_mode=True), (0, 4), ((0, 0), (4, 6))),
        (nn.Upsample((12, 5), mode="bicubic"), (6, 2), ((1, 4), (4, 4))),
        (nn.Upsample((3, 9), mode="bilinear", align_corners=False), (1, 4), ((2, 3), (4, 4))),
        (nn.PixelShuffle(1), (2, 3), ((2, 2), (3, 3))),
        (Fn(lambda x: F.interpolate(x, (3, 9), mode="bilinear", antialias=True)), (1, 4), ((1, 4), (4, 4))),
        (Fn(lambda x: F.grid_sample(x, torch.zeros(1, 2, 2, 2))), (0, 0), ((0, 5), (0, 8))),
        (Fn(lambda x: x.transpose(2, 3)), (4, 2), ((2, 2), (4, 4))),
    ],
    ids=str,
)
def test_maps(model, position, expected):
    assert boxes(model, (1, 6, 9), position) == expected


def test_several_inputs_and_keywords():
    model = Fn(lambda a, b: F.conv1d(a, torch.ones(1, 1, 3)) + b.mean(2, keepdim=True))
    axes = [Axis(0, 2), Axis(1, 2)]
    oracle = replay(model, {"a": (1, 8), "b": (1, 5)}, {3: "add"})
    assert oracle.measure(3, (2,), (4,), axes) == ((4, 6), (0, 4))
    oracle = replay(model, [(1, 8), (1, 5)], {3: "add"})
    assert oracle.measure(3, (2,), (4,), axes) == ((4, 6), (0, 4))


def test_an_embedding_keeps_the_dependence_of_its_indices():
    model = nn.Sequential(nn.Embedding(9, 3), nn.Flatten(), nn.Linear(18, 2))
    assert boxes(model, (6,), (4,), call=0, grid=(1,), axes=[Axis(0, 1)]) == ((4, 4),)


# weights and calls that are no ordinary ones


def test_a_fixed_filter_of_both_signs_counts_all_its_taps():
    class Sobel(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("weight", torch.tensor([[[0.0, 1.0, 0.0, -1.0, 0.0]]]))

        def forward(self, x):
            return F.conv1d(x, self.weight)

    assert line(Sobel(), 3, channels=1) == (3, 7)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_parts(reentrant):
    def fn(x, conv):
        return checkpoint(lambda y: conv(y).relu(), x, use_reentrant=reentrant) * 2

    model = Fn(fn, nn.Conv1d(2, 2, 3))
    assert line(model, 4) == (4, 6)


def test_a_custom_function_is_followed_through_its_forward():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.roll(1, 2) + x

        @staticmethod
        def backward(ctx, grad):
            return grad * 0

    assert line(Wrong.apply, 4) == (3, 4)
    x = torch.ones(1, 1, 3, requires_grad=True)
    Wrong.apply(x).sum().backward()
    assert (x.grad == 0).all()  # and works as ever afterwards


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_reparametrised_weights():
    assert line(nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 3, 3)), 4) == (4, 6)
    assert line(nn.utils.weight_norm(nn.Conv1d(2, 3, 3)), 4, call=1) == (4, 6)


def test_lazy_layers_are_initialised_before_the_run():
    oracle = replay(nn.Sequential(nn.LazyConv1d(3, 3), nn.LazyBatchNorm1d()).eval(), (2, 9), {1: "batch_norm"})
    assert oracle.measure(1, (2,), (4,), LINE) == ((4, 6),)


# what is left as it was


def test_the_model_and_the_random_state_are_untouched():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.ReLU(inplace=True)).train()
    model[1].register_forward_hook(lambda *a: torch.rand(1) and None)
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(7)
    random.seed(7)
    states = torch.get_rng_state(), random.getstate(), torch.get_default_dtype()
    replay(model, (1, 6, 6), {})
    with pytest.raises(ForwardError):
        replay(model, (2, 6, 6), {})
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), torch.get_default_dtype()) == states[1:]
    assert torch.is_grad_enabled()
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None and p.dtype == torch.float32 for p in model.parameters())


def test_a_model_without_storage_is_filled():
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3))
    assert line_of(model, 4) == (4, 6)
    assert next(model.parameters()).is_meta


def line_of(model, position):
    oracle = replay(model.eval(), (2, 12), {1: None})
    return oracle.measure(1, (2,), (position,), LINE)[0]


def test_a_buffer_without_values_is_refused():
    with torch.device("meta"):
        model = nn.Module()
        model.register_buffer("table", torch.zeros(3))
    with pytest.raises(InputError, match="buffer table has no values"):
        replay(model, (2, 12), {})


# verify


CONV = nn.Sequential(nn.Conv1d(1, 1, 3), nn.ReLU())
ROWS = (Row("0", "Conv1d", 0, (1, 1, 3), (2,), "0"), Row("1", "ReLU", 1, (1, 1, 3), (2,), "1"))
TRUTH = {(row.name, (i,)): ((i, i + 2),) for row in ROWS for i in range(3)}


def test_verify_agrees_with_a_true_report():
    checks = list(verify(CONV, (1, 5), Report((LINE[0],), ROWS, TRUTH)))
    assert all(c.agrees for c in checks)
    assert [(c.layer, c.position) for c in checks] == [(n, (i,)) for n in "01" for i in (0, 1, 2)]


def test_verify_finds_a_doctored_report():
    doctored = TRUTH | {("1", (1,)): ((1, 2),)}
    wrong = [c for c in verify(CONV, (1, 5), Report((LINE[0],), ROWS, doctored)) if not c.agrees]
    assert [(c.layer, c.position, c.expected, c.measured) for c in wrong] == [("1", (1,), (1, 2), (1, 3))]


def test_verify_only_some_layers():
    report = Report((LINE[0],), ROWS, TRUTH)
    assert {c.layer for c in verify(CONV, (1, 5), report, layers=["1"])} == {"1"}
    with pytest.raises(InputError, match="no layer '7'"):
        verify(CONV, (1, 5), report, layers=["7"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Row("tanh", "tanh", 1, (1, 1, 3), (2,)), "call 1 is `relu`, the report says `tanh`"),
        (Row("relu", "relu", 1, (1, 1, 4), (2,)), r"shape \(1, 1, 4\), found \(1, 1, 3\)"),
        (Row("relu", "relu", 9, (1, 1, 3), (2,)), "call 9 was not reached, the forward made 2 calls"),
    ],
)
def test_runs_that_do_not_line_up(row, message):
    with pytest.raises(RfcalcError, match=message):
        list(verify(CONV, (1, 5), Report((LINE[0],), (row,))))


def test_rows_without_a_gradient_are_named():
    rows = (Row("argmax", "argmax", 0, (1, 1), (1,)), Row("zeros_like", "zeros_like", 1, (1, 1, 5), (2,)))
    report = Report((LINE[0],), rows, {("argmax", (0,)): ((0, 4),)})
    oracle = prepare(Fn(lambda x: (x.argmax(2), torch.zeros_like(x))), (1, 5), report)
    assert oracle.unmeasured(report) == {"zeros_like": "no gradient reaches it"}
    assert all(c.agrees for c in oracle.check(report))


@pytest.mark.parametrize(
    ("expected", "measured", "exact", "agrees"),
    [
        ((1, 3), (1, 3), True, True), ((1, 3), (1, 2), True, False), (None, None, True, True),
        (None, (1, 1), True, False), ((1, 1), None, True, False),
        ((0, 9), (1, 2), False, True), ((2, 9), (1, 2), False, False),
        ((0, 9), None, False, True), (None, (1, 2), False, False),
    ],
)  # fmt: skip
def test_agreement(expected, measured, exact, agrees):
    assert Check("x", (0,), LINE[0], expected, measured, exact).agrees is agrees


def test_integer_inputs_are_refused():
    with pytest.raises(InputError, match="cannot feed integers"):
        replay(Fn(lambda table, index: table.index_select(2, index[0])), [(1, 5), (3,)], {})


def test_a_failing_forward_says_where():
    with pytest.raises(ForwardError, match=r"call 1 \(relu\): no such luck"):
        replay(Fn(_fails), (1, 5), {})


def _fails(x):
    (x + 1).relu()
    raise ValueError("no such luck")


def test_positions():
    assert positions_of((), 5) == [()]
    assert positions_of((1, 1), 5) == [(0, 0)]
    assert positions_of((4, 0), 5) == []
    assert positions_of((5, 7), 5) == [(0, 0), (0, 3), (2, 3), (4, 6), (2, 6)]
    assert len(set(positions_of((5, 7), 12, seed=3))) == 12
    assert sorted(positions_of((3,), 9)) == [(0,), (1,), (2,)]


def test_a_deep_network_of_residuals_neither_over_nor_underflows():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.gate = nn.Conv1d(2, 2, 3, padding=1), nn.Conv1d(2, 2, 1)

        def forward(self, x):
            return x + self.conv(x) * torch.sigmoid(self.gate(x.mean(2, keepdim=True)))

    model = nn.Sequential(*[Residual() for _ in range(100)], nn.Conv1d(2, 2, 3))
    assert line(model, 30, length=50) == (0, 49)
    plain = nn.Sequential(*[nn.Conv1d(2, 2, 3) for _ in range(200)])
    assert line(plain, 5, length=420) == (5, 405)


def test_an_op_of_ones_own_with_a_known_name_has_no_stand_in():
    library = torch.library.Library("rfcalc_oracle", "DEF")
    library.define("relu(Tensor x) -> Tensor")
    library.impl("relu", lambda x: x.flip(2) + x, "CompositeImplicitAutograd")

    class Net(nn.Module):
        def forward(self, x):
            return torch.ops.rfcalc_oracle.relu(x)

    report = analyze(Net(), (1, 8))
    checks = list(verify(Net(), (1, 8), report))
    assert {c.position: c.measured for c in checks}[(0,)] == (0, 7)
    assert all(c.agrees for c in checks)


def test_a_forward_that_looks_at_its_numbers_is_replayed():
    class Looks(nn.Conv2d):
        def forward(self, x):
            y = super().forward(x)
            y.numpy(), y.tolist(), f"{y.mean():.3f}", torch.from_dlpack(y)
            return y * 1

    net = Looks(1, 1, 3)
    checks = list(verify(net, (1, 6, 6), analyze(net, (1, 6, 6))))
    assert checks
    assert all(check.agrees and check.exact for check in checks)
