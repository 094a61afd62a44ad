"""What a report says: the values of the literature, rows, totals, regions, and the way to JSON and back."""

import doctest
import json
import sys
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from programs import Fn
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import rfcalc
import rfcalc.analysis.analyze
import rfcalc.analysis.report
from rfcalc.analysis.beside import beside_axes
from rfcalc.analysis.field import identity
from rfcalc.analysis.memo import forget
from rfcalc.analysis.rows import Reader


def torchvision_model(target, shape):
    pytest.importorskip("torchvision")
    return rfcalc.analyze(rfcalc.load_design(f"torchvision.models.{target}").build(), shape)


def last_row(report, path):
    return [r for r in report.rows if f"{r.path}.".startswith(f"{path}.")][-1]


# ---------------------------------------------------------------------------------------------- known values

KNOWN = [  # Araujo et al. 2019 for those with padding; r, jump and effective padding per axis
    ("vgg:vgg16", (3, 224, 224), "features", (212, 212), (32, 32), (90, 90)),
    ("inception:inception_v3", (3, 299, 299), "Mixed_7c", (1311, 1311), (32, 32), (618, 618)),
    ("alexnet:alexnet", (3, 224, 224), "features", (195, 195), (32, 32), (66, 66)),
    ("resnet:resnet18", (3, 224, 224), "layer4", (435, 435), (32, 32), (217, 217)),
    ("resnet:resnet50", (3, 224, 224), "layer4", (427, 427), (32, 32), (213, 213)),
    ("resnet:resnet152", (3, 224, 224), "layer4", (1451, 1451), (32, 32), (725, 725)),
    ("mobilenet:mobilenet_v2", (3, 224, 224), "features", (491, 491), (32, 32), (245, 245)),
    ("densenet:densenet121", (3, 224, 224), "features", (2071, 2071), (32, 32), (1021, 1021)),
    ("convnext:convnext_tiny", (3, 224, 224), "features", (1688, 1688), (32, 32), (828, 828)),
    ("segmentation:fcn_resnet50", (3, 224, 224), "classifier", (443, 443), (8, 8), (221, 221)),
    ("video:r3d_18", (3, 16, 112, 112), "layer4", (109, 219, 219), (8, 16, 16), (54, 109, 109)),
]


@pytest.mark.parametrize(("target", "shape", "path", "r", "jump", "padding"), KNOWN, ids=[k[0] for k in KNOWN])
def test_known_values(target, shape, path, r, jump, padding):
    report = torchvision_model(target, shape)
    row = last_row(report, path)
    assert (row.r_out, row.j_out, row.effective_padding) == (r, jump, padding)
    assert row.start == tuple((size - 1) / 2 + 0.5 - p for size, p in zip(r, padding, strict=True))
    assert row.r_local == row.r_out
    assert row.aligned
    assert row.exact
    assert not any(row.is_global)


def test_inception_branches_of_1x7_are_not_square():
    report = torchvision_model("inception:inception_v3", (3, 299, 299))
    wide, tall = (report.row(f"Mixed_6b.branch7x7_{i}.conv") for i in (2, 3))
    assert (wide.kernel, tall.kernel) == ((1, 7), (7, 1))
    assert wide.r_out == (wide.r_in[0], wide.r_in[1] + 6 * wide.j_in[1])  # H stays, W grows
    assert tall.r_out == (wide.r_out[1], wide.r_out[1])


def test_efficientnet_is_global_with_a_local_field():
    report = torchvision_model("efficientnet:efficientnet_b0", (3, 224, 224))
    row = last_row(report, "features")
    assert (row.r_out, row.r_local, row.is_global) == ((224, 224), (851, 851), (True, True))
    assert report.rf_spatial == (851, 851)
    assert report.rf_output == (224, 224)


# ---------------------------------------------------------------------------------------- global, local, phases


def test_squeeze_and_excitation():
    def forward(m, x):
        y = m.conv(x)
        return y * y.mean((2, 3), keepdim=True).sigmoid()

    report = rfcalc.analyze(Fn(forward, conv=nn.Conv2d(3, 4, 3, padding=1)), (3, 20, 30))
    gate, out = report.row("mean"), report.row("mul")
    assert gate.r_out == (22, 32)  # a pooled map is as wide as the READMEs count it
    assert (out.r_out, out.r_local, out.is_global) == ((20, 30), (3, 3), (True, True))
    assert report.rf_spatial == (3, 3)
    assert report.region("mul", (0, 0))[1].exact == (0, 29)


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.GroupNorm(1, 4)], ids=str)
def test_spatial_statistics_are_global(norm):
    report = rfcalc.analyze(nn.Sequential(nn.Conv2d(3, 4, 3), norm), (3, 20, 20))
    assert report.rows[0].is_global == (False, False)
    row = report.rows[1]
    assert (row.r_out, row.r_local, row.is_global) == ((20, 20), (3, 3), (True, True))


def test_batch_norm_is_pointwise():
    report = rfcalc.analyze(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), (3, 20, 20))
    assert (report.rows[1].r_out, report.rows[1].is_global) == ((3, 3), (False, False))


def test_upsampling_differs_by_phase():
    net = nn.Sequential(nn.Conv2d(1, 1, 3, 2, 1), nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(1, 1, 2))
    up, conv = rfcalc.analyze(net, (1, 16, 16)).rows[1:]
    assert (up.j_out, up.r_min, up.r_out) == ((1, 1), (3, 3), (3, 3))
    assert not up.aligned  # two neighbours see the same
    assert (conv.r_min, conv.r_out, conv.aligned) == ((3, 3), (5, 5), True)


def test_jump_of_a_transposed_convolution_is_a_fraction():
    row = rfcalc.analyze(nn.ConvTranspose2d(1, 1, 2, 2), (1, 8, 8)).rows[0]
    assert row.j_out == (Fraction(1, 2), Fraction(1, 2))
    assert row.n_out == (16, 16)


def test_paths_that_disagree_are_not_aligned():
    net = Fn(lambda m, x: x[:, :, 1:, 1:] + m.conv(x), conv=nn.Conv2d(1, 1, 2))
    report = rfcalc.analyze(net, (1, 8, 8))
    assert (report.rows[-1].aligned, report.rows[-1].r_out) == (False, (2, 2))
    assert report.row("conv").aligned
    same = Fn(lambda m, x: x + m.conv(x), conv=nn.Conv2d(1, 1, 3, padding=1))
    assert rfcalc.analyze(same, (1, 8, 8)).rows[-1].aligned


# ------------------------------------------------------------------------------------------------- totals


def conv_pool_chain():
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(8, 4, 1))


def test_rows_and_params():
    net = conv_pool_chain()
    net[3].bias.requires_grad_(False)
    report = rfcalc.analyze(net, (3, 10, 12))
    assert [r.op for r in report.rows] == ["Conv2d", "ReLU", "MaxPool2d", "Conv2d"]
    assert [r.params for r in report.rows] == [216, 0, 0, 36]
    assert report.rows[3].trainable_params == 32
    assert (report.params, report.trainable_params) == (252, 248)
    pool = report.rows[2]
    assert (pool.kernel, pool.stride, pool.padding, pool.dilation) == ((2, 2), (2, 2), ((0, 0),) * 2, (1, 1))
    assert (pool.n_in, pool.n_out, pool.ch_in, pool.ch_out) == ((8, 10), (4, 5), 8, 8)
    assert (pool.j_in, pool.j_out, pool.r_in, pool.r_out) == ((1, 1), (2, 2), (3, 3), (4, 4))
    assert (pool.start, pool.effective_padding, pool.moves_grid) == ((2.0, 2.0), (0, 0), True)
    assert not report.rows[1].moves_grid
    assert report.output_shapes == ((1, 4, 4, 5),)


def test_peak_memory_by_hand():
    conv, pool = 8 * 8 * 10 * 4, 8 * 4 * 5 * 4
    image = 3 * 10 * 12 * 4
    one, _, two, _ = conv_pool_chain()
    chain = Fn(lambda m, x: m.b(m.a(x)), a=one, b=nn.ReLU(inplace=True))
    # While a convolution runs its input lives on: the caller holds the image throughout.
    assert rfcalc.analyze(chain, (3, 10, 12)).peak_activation_bytes == image + conv
    out_of_place = Fn(lambda m, x: m.b(m.a(x)), a=one, b=nn.ReLU())
    assert rfcalc.analyze(out_of_place, (3, 10, 12)).peak_activation_bytes == image + 2 * conv
    for level in (1, 2):
        report = rfcalc.analyze(conv_pool_chain(), (3, 10, 12), level=level)
        assert report.peak_activation_bytes == image + conv + pool
        assert [r.activation_bytes for r in report.rows] == [conv, conv, pool, 4 * 4 * 5 * 4]
    held = Fn(lambda m, x: m.b(m.a(x)) + 0 * m.a(x).mean(), a=one, b=two)
    assert rfcalc.analyze(held, (3, 10, 12)).peak_activation_bytes == image + pool + conv + 4


def flops(model, shapes):
    with torch.device("meta"):
        xs = [torch.empty(1, *s) for s in shapes]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval().to("meta")(*xs)
    return counter.get_total_flops()


def einsum_net():
    return Fn(lambda m, x: torch.einsum("bchw,bdhw->bcd", x, m.conv(x)), conv=nn.Conv2d(4, 6, 3, padding=1))


WORK = {
    "conv_transpose": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), (4, 9, 7)),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(8, 16, 3, groups=4), nn.Conv2d(16, 16, 3, groups=16)), (8, 12, 12)),
    "conv1d": (lambda: nn.Conv1d(4, 8, 5, dilation=2), (4, 33)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (1, 2, 3)), (2, 5, 6, 7)),
    "einsum": (einsum_net, (4, 8, 8)),
    "linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 10)), (3, 4, 4)),
    "attention": (lambda: nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), (12, 16)),
    "matmul": (lambda: Fn(lambda m, x: x @ x.transpose(-1, -2)), (4, 8, 6)),
}


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("case", WORK)
def test_macs_are_half_of_torchs_flops(case, level):
    make, shape = WORK[case]
    with torch.device("meta"):
        model = make()
    macs = rfcalc.analyze(model, shape, level=level).macs
    assert macs > 0
    assert 2 * macs == flops(model, [shape])


@pytest.mark.parametrize("target", ["resnet:resnet18", "vision_transformer:vit_b_16"])
def test_macs_of_torchvision(target):
    pytest.importorskip("torchvision")
    model = rfcalc.load_design(f"torchvision.models.{target}").build()
    report = rfcalc.analyze(model, (3, 224, 224))
    assert 2 * report.macs == flops(model, [(3, 224, 224)])
    assert report.macs == sum(r.macs for r in report.rows)
    assert report.params == sum(p.numel() for p in model.parameters()) == sum(r.params for r in report.rows)


def test_macs_of_an_lstm():
    """torch counts none for its fused kernel: each of the four weight matrices is applied once per step."""
    lstm = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)
    report = rfcalc.analyze(lstm, (7, 6), layout="TC")
    assert report.macs == 7 * sum(p.numel() for p in lstm.parameters() if p.dim() == 2)
    assert report.params == sum(p.numel() for p in lstm.parameters())


# ------------------------------------------------------------------------------------------- layouts, inputs


def test_layout_of_tokens():
    report = rfcalc.analyze(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), (12, 16), layout="TC")
    assert [(a.name, a.dim, a.size) for a in report.axes] == [("T", 1, 12)]
    assert (report.rf_output, report.coverage) == ((12,), (1.0,))
    assert report.rows[-1].is_global == (True,)


def test_layouts_name_the_axes():
    assert [a.name for a in rfcalc.analyze(nn.Conv1d(2, 2, 3), (2, 9)).axes] == ["L"]
    assert [a.name for a in rfcalc.analyze(nn.Conv3d(2, 2, 3), (2, 9, 9, 9)).axes] == ["D", "H", "W"]
    last = Fn(lambda m, x: m.conv(x.permute(0, 3, 1, 2)), conv=nn.Conv2d(2, 2, (3, 5)))
    report = rfcalc.analyze(last, (9, 10, 2), layout="HWC")
    assert [(a.name, a.dim) for a in report.axes] == [("H", 1), ("W", 2)]
    assert report.rows[-1].r_out == (3, 5)


@pytest.mark.parametrize(
    ("shape", "layout", "says"),
    [
        ((1, 0, 8), None, "not a positive whole number"),
        ((1, -3, 8), None, "not a positive whole number"),
        ((1, 2.5, 8), None, "not a positive whole number"),
        ((), None, "no shape found"),
        ((1, 8, 8), "TC", "layout 'TC': 2 letters"),
        ((1, 8), "CC", "no axis to measure"),
    ],
)
def test_bad_inputs_are_named(shape, layout, says):
    with pytest.raises(rfcalc.InputError, match=says):
        rfcalc.analyze(nn.Identity(), shape, layout=layout)


def test_errors_of_the_forward_name_the_layer():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(5, 4, 3)))
    for level in (1, 2):
        with pytest.raises(rfcalc.ForwardError, match=r"1\.1 \(Conv2d\)") as caught:
            rfcalc.analyze(net, (1, 9, 9), level=level)
        assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------- regions


def test_region():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), nn.Conv2d(2, 2, 3, padding=1))
    report = rfcalc.analyze(net, (1, 9, 11))
    rows, columns = report.region("1", (0, 1))
    assert (rows.axis.name, rows.exact, rows.unclipped) == ("H", (0, 3), (-3, 3))
    assert (columns.axis.name, columns.exact, columns.unclipped) == ("W", (0, 5), (-1, 5))
    assert report.region("1", (-5, -5)) == report.region(report.row("1"), (0, 1))
    assert [r.exact for r in report.region("1", (-1, -1))] == [(5, 8), (7, 10)]


def test_region_of_a_position_that_sees_nothing():
    report = rfcalc.analyze(Fn(lambda m, x: F.pad(x, (2, 2, 0, 0))), (1, 4, 4))
    columns = report.region("pad", (1, 0))[1]
    assert columns.exact is None
    assert report.region("pad", (1, 2))[1].exact == (0, 0)


def test_region_errors():
    report = rfcalc.analyze(nn.Sequential(nn.Conv2d(1, 2, 3)), (1, 9, 9))
    for at in [(7, 0), (0, -8), (0,), (0, 0, 0)]:
        with pytest.raises(rfcalc.InputError, match="outside its map of 7x7"):
            report.region("0", at)
    with pytest.raises(rfcalc.InputError, match="nearest: 0"):
        report.region("conv1", (0, 0))
    again = rfcalc.Report.from_dict(report.to_dict())
    with pytest.raises(rfcalc.InputError, match="read back from JSON"):
        again.region("0", (0, 0))


# ---------------------------------------------------------------------------------------- frozen, JSON, doctests


def every_kind():
    net = nn.Sequential(
        nn.Conv2d(2, 4, 2, padding="same"), nn.ConvTranspose2d(4, 2, 2, 2), nn.Flatten(), nn.Linear(512, 3)
    )
    net.spare = nn.Linear(2, 2)
    return Fn(lambda m, x: m.net[:4](x), net=net)


@pytest.mark.parametrize(
    ("make", "shape"),
    [(every_kind, (2, 8, 8)), (lambda: Fn(lambda m, a, b: a + b.mean()), ((1, 4, 4), (3, 5))), (nn.Identity, (1, 4))],
)
def test_json_round_trip(make, shape):
    report = rfcalc.analyze(make(), shape, name="design.py:Net")
    data = json.loads(json.dumps(report.to_dict()))
    assert data["schema"] == "rfcalc.report/1"
    assert data["design"] == "design.py:Net"
    again = rfcalc.Report.from_dict(data)
    assert again == report
    assert again.to_dict() == report.to_dict()


def test_json_form():
    data = rfcalc.analyze(every_kind(), (2, 8, 8)).to_dict()
    conv, up = data["rows"][:2]
    assert conv["padding"] == [[0, 1], [0, 1]]
    assert (conv["j_out"], up["j_out"]) == ([1, 1], ["1/2", "1/2"])
    assert conv["global"] == [False, False]
    assert data["unreached"] == [{"path": "net.spare", "params": 6}]
    assert data["totals"]["params"] == sum(r["params"] for r in data["rows"]) + 6
    assert data["input_shape"] == [2, 8, 8]


def test_other_schemas_are_refused():
    data = rfcalc.analyze(nn.Identity(), (1, 4)).to_dict()
    for schema in ({"schema": "rfcalc.report/2"}, {"schema": None}):
        with pytest.raises(rfcalc.InputError, match=r"expected 'rfcalc\.report/1'"):
            rfcalc.Report.from_dict(data | schema)


def test_padding_on_its_own_stays_aligned():
    """Where W is padded the field of H is empty; its grid goes on all the same."""
    report = rfcalc.analyze(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(2, 2, 3)), (1, 9, 9)
    )
    assert [(row.aligned, row.r_out, row.start) for row in report.rows] == [
        (True, (3, 3), (1.5, 1.5)),
        (True, (3, 3), (0.5, 0.5)),
        (True, (5, 5), (1.5, 1.5)),
    ]


def test_both_axes_of_a_square_map_share_what_was_worked_out():
    layers = [nn.Conv2d(1, 2, 3, stride=2), nn.MaxPool2d(2), nn.Conv2d(2, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1)]
    report = rfcalc.analyze(nn.Sequential(*layers, nn.Flatten()), (1, 29, 29))
    for name, field in report.fields.items():
        h, w = (axis.parts[0].bounds for axis in field.axes)
        assert h is w, name


def test_a_dense_block_may_be_longer_than_python_recurses():
    length = sys.getrecursionlimit() + 100
    axes = [identity(4, 2).with_parts(identity(4, 2).parts) for _ in range(length)]
    grown = [beside_axes(axes[:i], (1,) * i, 1) for i in range(2, length + 1)][-1]
    reader = Reader((), "CHW")
    assert reader.along(grown) == {2}
    assert reader.facts_beside(grown).largest == 1
    forget()


def test_values_are_frozen():
    report = rfcalc.analyze(nn.Conv2d(1, 1, 3), (1, 8, 8))
    region = report.region("Conv2d", (0, 0))[0]
    for value, attribute in [
        (report, "params"),
        (report.rows[0], "r_out"),
        (report.axes[0], "size"),
        (region, "exact"),
    ]:
        with pytest.raises(AttributeError):
            setattr(value, attribute, 0)
    assert isinstance(hash(report.rows[0]), int)
    assert all(
        isinstance(getattr(report.rows[0], f), tuple) for f in ("kernel", "r_out", "start", "padding", "is_global")
    )


def test_doctests():
    results = [doctest.testmod(module) for module in (rfcalc.analysis.analyze, rfcalc.analysis.report)]
    assert sum(result.attempted for result in results) >= 4
    assert not any(result.failed for result in results)
