"""The gate against rows and reports made by hand, and what it has to say of real networks."""

from pathlib import Path

import pytest
import torch
import torchvision
from reports import report, row, window
from torch import nn

import rfcalc
from rfcalc.gate.budget import LIMITS as FIELDS
from rfcalc.gate.budget import SWITCHES, Budget, check, depth, limit_problem
from rfcalc.gate.cautions import Caution, cautions, suited, suspects
from rfcalc.gate.gridding import holes

NONE = Budget(max_params=None, min_rf=None)
ROWS = (
    window("a", "Conv2d", 3, params=72, macs=500, activation_bytes=40, r_out=(3, 3)),
    row("b", "ReLU", activation_bytes=80),
    window("c", "Conv2d", 3, params=720, macs=100, exact=False, aligned=False),
    row("d", "Linear", params=90, macs=90),
)
REPORT = report(*ROWS, params=882, macs=690, peak_activation_bytes=120, rf_output=(28, 20), rf_spatial=(18, 19))
LIMITS = [
    ("max_params", 881, 882, 1, ("c", "d", "a"), "882 parameters, 1 over max_params 881; c alone has 720"),
    ("max_params", 882, None, 0, (), ""),
    ("min_rf", 21, 20, 1, (), "20 pixels seen by the output, 1 short of min_rf 21"),
    ("min_rf", 20, None, 0, (), ""),
    ("min_rf_spatial", 28, 18, 10, (), "18 pixels seen by the last spatial map, 10 short of min_rf_spatial 28"),
    ("min_rf_spatial", 18, None, 0, (), ""),
    ("max_macs", 600, 690, 90, ("a", "c", "d"), "690 MACs, 90 over max_macs 600; a alone has 500"),
    ("max_macs", 690, None, 0, (), ""),
    (
        "max_activation_bytes",
        100,
        120,
        20,
        ("b", "a"),
        "120 bytes of live activations at the peak, 20 over max_activation_bytes 100; b alone has 80",
    ),
    ("max_activation_bytes", 120, None, 0, (), ""),
    ("max_layers", 2, 3, 1, (), "3 layers that multiply, 1 over max_layers 2"),
    ("max_layers", 3, None, 0, (), ""),
    (
        "require_exact",
        True,
        1,
        1,
        ("c",),
        "1 layers that depend on an operation without a rule; require_exact allows none",
    ),
    (
        "require_aligned",
        True,
        1,
        1,
        ("c",),
        "1 layers whose paths disagree on centre or jump; require_aligned allows none",
    ),
]


@pytest.mark.parametrize(("limit", "value", "measured", "missed", "layers", "message"), LIMITS)
def test_every_limit(limit, value, measured, missed, layers, message):
    budget = Budget(**{"max_params": None, "min_rf": None, limit: value})
    found = check(REPORT, budget)
    if measured is None:
        assert found == []
        return
    (violation,) = found
    allowed = 0 if value is True else value
    assert (violation.limit, violation.allowed, violation.measured) == (limit, allowed, measured)
    assert (violation.missed_by, violation.layers, violation.message) == (missed, layers, message)


def test_limits_are_told_in_the_order_of_the_budget():
    values = {name: name in SWITCHES or (99 if FIELDS[name].least else 1) for name in {case[0] for case in LIMITS}}
    assert [v.limit for v in check(REPORT, Budget(**values))] == [name for name in FIELDS if name in values]


@pytest.mark.parametrize("name", FIELDS)
def test_the_name_of_a_limit_says_what_kind_it_is(name):
    """Flags, the JSON schema and what is said of a missed limit go by the name."""
    entry = FIELDS[name]
    assert name.split("_")[0] == ("require" if name in SWITCHES else "min" if entry.least else "max")
    measured = entry.measure(REPORT)
    assert measured is None or type(measured) is int
    assert {type(entry.share(row)) for row in ROWS} == {int}
    assert entry.help.endswith(".")
    assert entry.words == entry.words.strip(" .")


def test_without_limits_everything_passes():
    assert check(REPORT, NONE) == []
    assert check(REPORT, Budget(max_params=False, min_rf=False)) == []


@pytest.mark.parametrize(
    ("name", "value", "fine"),
    [
        ("max_params", 1, True),
        ("max_params", None, True),
        ("max_params", False, True),
        ("max_params", True, False),
        ("max_params", 0, False),
        ("max_params", -1, False),
        ("max_params", 8e3, False),
        ("max_params", "8000", False),
        ("require_exact", True, True),
        ("require_exact", 1, False),
        ("require_exact", None, False),
    ],
)
def test_what_a_limit_may_be(name, value, fine):
    assert (limit_problem(name, value) is None) == fine


@pytest.mark.parametrize("wrong", [{"max_params": 0}, {"min_rf": "28"}, {"max_macs": 1.5}, {"require_exact": 1}])
def test_a_budget_refuses_what_can_be_no_limit(wrong):
    (name,) = wrong
    with pytest.raises(rfcalc.InputError, match=f"Budget: {name} is .*; expected"):
        Budget(**wrong)


def test_depth_counts_what_multiplies():
    assert depth(REPORT) == 3


def analyzed(net, shape):
    return rfcalc.analyze(net, shape)


def chain(*kernels, width=2):
    return nn.Sequential(*[nn.Conv2d(1 if i == 0 else width, width, k, padding=k // 2) for i, k in enumerate(kernels)])


def kinds(found):
    return {caution.kind: caution for caution in found}


def test_layers_that_can_add_no_context():
    """R before each layer: 1, 3, 5, 7, 9 on a map of 7."""
    found = kinds(cautions(analyzed(chain(3, 3, 3, 3, 3), (1, 7, 7))))
    assert found["unproductive"].layers == ("3", "4")
    assert "2 layers are fed by units that see the whole input (7x7)" in found["unproductive"].message
    assert kinds(cautions(analyzed(chain(3, 3, 3), (1, 7, 7)))) == {}
    one = kinds(cautions(analyzed(chain(7, 3), (1, 7, 7))))["unproductive"]
    assert (one.layers, one.message.startswith("1 layer is fed by")) == (("1",), True)


def test_a_head_that_reads_the_whole_map_is_not_blamed():
    pooled = nn.Sequential(chain(3, 3, 3, 3), nn.AvgPool2d(7), nn.Conv2d(2, 2, 1))
    assert kinds(cautions(analyzed(pooled, (1, 7, 7))))["unproductive"].layers == ("0.3",)
    flat = nn.Sequential(chain(3, 3, 3), nn.Conv2d(2, 10, 7), nn.Flatten())
    assert kinds(cautions(analyzed(flat, (1, 7, 7)))) == {}


def test_global_context_is_left_out():
    """A gate lets every unit see everything; its layers' own windows still add context."""
    report = analyzed(torchvision.models.mobilenet_v3_small(), (3, 224, 224))
    assert any(any(r.is_global) for r in report.rows)
    local = [r.name for r in report.rows if r.op == "Conv2d" and max(r.kernel) > 1 and max(r.r_local) <= 224]
    assert not set(local) & set(kinds(cautions(report)).get("unproductive", Caution("x", (), "")).layers)


def test_what_hangs_over_the_border_does_not_see_the_whole_input():
    """73 pixels wide, but of its taps 36 apart no unit has more than one inside a map of 32."""
    wide = nn.Sequential(nn.Conv2d(1, 2, 3, dilation=36, padding=36), nn.Conv2d(2, 2, 3, padding=1))
    report = analyzed(wide, (1, 32, 32))
    assert (report.row("0").r_out, report.fed_by_all(report.row("1"))) == ((73, 73), (False, False))
    assert "unproductive" not in kinds(cautions(report))
    seen = analyzed(nn.Sequential(nn.Conv2d(1, 2, 33, padding=16), nn.Conv2d(2, 2, 3, padding=1)), (1, 32, 32))
    assert seen.fed_by_all(seen.row("1")) == (True, True)
    assert kinds(cautions(seen))["unproductive"].layers == ("1",)
    assert rfcalc.Report.from_dict(seen.to_dict()).fed_by_all(seen.row("1")) is None


class Squeezed(nn.Module):
    def forward(self, x):
        return x * x.mean((2, 3), keepdim=True).sigmoid()


class Attended(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return self.attend(tokens, tokens, tokens)[0].transpose(1, 2).reshape(x.shape)


class Rows(nn.Module):
    """Every column looks along itself only: global along H, local along W."""

    def forward(self, x):
        return x.softmax(2)


GLOBAL = {
    "group": (nn.GroupNorm(2, 8), (True, True)),
    "instance": (nn.InstanceNorm2d(8), (True, True)),
    "layer": (nn.LayerNorm([8, 32, 32]), (True, True)),
    "squeeze": (Squeezed(), (True, True)),
    "attention": (Attended(), (True, True)),
    "rows": (Rows(), (True, False)),
    "none": (nn.Identity(), (False, False)),
}


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("case", GLOBAL)
def test_an_output_that_sees_the_whole_input_meets_every_field(case, level):
    """The local field of 13 pixels is judged by min_rf_spatial, and along an axis that is not global."""
    norm, is_global = GLOBAL[case]
    convs = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(2)]
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), norm, nn.Conv2d(8, 8, 3, stride=2, padding=1), *convs)
    report = rfcalc.analyze(net, (3, 32, 32), level=level)
    assert report.output_global == is_global
    budget = Budget(max_params=None, min_rf=44, min_rf_spatial=44)
    missed = [(v.limit, v.measured) for v in check(report, budget)]
    assert missed == ([] if all(is_global) else [("min_rf", 13)]) + [("min_rf_spatial", 13)]
    again = rfcalc.Report.from_dict(report.to_dict())
    assert (again, check(again, budget)) == (report, check(report, budget))


def test_unreached_parameters():
    net = nn.Sequential(nn.Conv2d(1, 2, 3))
    net.spare = nn.Linear(3, 4)
    net.forward = net[0].forward
    caution = kinds(cautions(analyzed(net, (1, 9, 9))))["unreached"]
    assert (caution.layers, caution.message) == (("spare",), "16 parameters that forward never reaches: spare")


def test_a_layer_that_runs_is_not_called_unreached():
    """`0` runs and owns 5 parameters that nothing uses, as the design owns 3; `spare` as a whole is never reached."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3))
    net.extra, net[0].extra = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(5))
    net.spare = nn.Sequential(nn.Linear(3, 4))
    net.forward = lambda x: net[0](x).relu()
    caution = kinds(cautions(analyzed(net, (1, 9, 9))))["unreached"]
    assert caution.layers == ("Sequential", "0", "spare.0")
    assert caution.message == (
        "24 parameters that forward never reaches: parameters of Sequential itself, parameters of 0 itself, spare.0"
    )


def dilated(*dilations):
    return nn.Sequential(*[nn.Conv2d(1 if i == 0 else 2, 2, 3, dilation=d, padding=d) for i, d in enumerate(dilations)])


@pytest.mark.parametrize(
    ("dilations", "missing"),
    [
        ((1, 1, 1), None),
        ((1, 2, 3), None),
        ((1, 2, 5), None),  # Wang et al. 2018, hybrid dilated convolution: no holes
        ((2, 1, 1), (0, 0)),  # holes that later layers fill
        ((2, 2, 2), (6, 6)),  # of 13 lines 7 are seen
        ((3, 3), (8, 8)),
        ((1, 2, 9), (4, 4)),
    ],
)
def test_holes_of_dilation(dilations, missing):
    net = dilated(*dilations)
    report = analyzed(net, (1, 64, 64))
    found = holes(net, (1, 64, 64), report)
    assert bool(suspects(report)) == (missing is not None)
    assert found == ({} if missing is None else dict.fromkeys(suspects(report), missing))
    said = kinds(cautions(report, found))
    assert ("gridding" in said) == (missing is not None and any(missing))


class Branches(nn.Module):
    """A dilated branch, whose holes nothing fills, and a plain one: two answers, or added up in either order."""

    def __init__(self, way):
        super().__init__()
        self.way, self.plain, self.dilated = way, dilated(1), dilated(2, 2)

    def forward(self, x):
        if self.way == "apart":
            return self.dilated(x), self.plain(x)
        if self.way == "plain first":
            return self.plain(x) + self.dilated(x)
        return self.dilated(x) + self.plain(x)


@pytest.mark.parametrize(("way", "missing"), [("apart", 4), ("plain first", 2), ("dilated first", 2)])
def test_holes_are_measured_where_the_branches_end(way, missing):
    """Rows stand in the order of their calls: the last one need not be made of the dilated one."""
    net = Branches(way)
    report = analyzed(net, (1, 64, 64))
    assert holes(net, (1, 64, 64), report) == {"dilated.0": (missing, missing)}


def test_what_a_later_branch_fills_is_no_hole():
    class Filled(nn.Module):
        def __init__(self):
            super().__init__()
            self.near, self.far = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(1, 2, 3, dilation=2, padding=2)

        def forward(self, x):
            return self.near(x) + self.far(x)

    report = analyzed(Filled(), (1, 32, 32))
    assert suspects(report) == ("far",)
    assert holes(Filled(), (1, 32, 32), report) == {"far": (0, 0)}


def test_global_context_hides_holes():
    """Statistics over the map make every unit depend on every pixel: no gradient tells what the windows skip."""
    for dilations in ((2, 1, 1), (2, 2, 2)):
        layers = [layer for conv in dilated(*dilations) for layer in (conv, nn.GroupNorm(1, 2))]
        report = analyzed(nn.Sequential(*layers), (1, 64, 64))
        with pytest.raises(rfcalc.RfcalcError, match="global context"):
            holes(nn.Sequential(*layers), (1, 64, 64), report)
    assert judge_cautions("nn.Conv2d(1, 2, 3, dilation=2, padding=2), nn.GroupNorm(1, 2)") == [
        "dilation may leave holes behind 0; not measured"
    ]


def test_a_dilated_head_is_judged():
    """Its map is 1x1: nothing of a map lies behind it, and it still skips two lines of five."""
    assert judge_cautions("nn.Conv2d(1, 2, 3, dilation=2), nn.Flatten()") == [
        "dilation of 0 leaves holes: inside its field a unit of the last map behind skips 2 lines of pixels"
    ]


def judge_cautions(layers):
    """What `judge` warns of on a 5x5 input."""
    import tempfile

    from rfcalc.gate.verdict import judge

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "net.py"
        file.write_text(f"from torch import nn\nINPUT_SHAPE = (1, 5, 5)\nmodel = nn.Sequential({layers})\n")
        verdict = judge(str(file))
    assert verdict.error == ""
    return [caution.message for caution in verdict.cautions]


def test_holes_are_those_of_the_taps():
    """Against the sums of offsets t * d, by definition."""
    for dilations in ((2, 2), (4, 2), (1, 5), (2, 3, 4)):
        seen = {0}
        for d in dilations:
            seen = {a + t * d for a in seen for t in (-1, 0, 1)}
        net = dilated(*dilations)
        report = analyzed(net, (1, 64, 64))
        gaps = max(seen) - min(seen) + 1 - len(seen)
        assert set(holes(net, (1, 64, 64), report).values()) <= {(gaps, gaps)}
        assert bool(suspects(report)) >= bool(gaps)


def test_unmeasured_dilation_is_said():
    report = analyzed(dilated(2, 2), (1, 64, 64))
    assert "not measured" in kinds(cautions(report))["gridding"].message
    assert kinds(cautions(report, {})) == {}


def test_suited_sizes():
    """From one more than the last layer is fed by, to what the last spatial map sees."""
    assert suited(analyzed(chain(3, 3, 3), (1, 32, 32))) == ((6, 7), (6, 7))
    ladder = rfcalc.load_design(str(Path(__file__).parents[2] / "models/step8.py"))
    assert suited(analyzed(ladder.build(), ladder.input_shape)) == ((15, 18), (15, 18))
    assert suited(analyzed(nn.Flatten(), (1, 8, 8))) == (None, None)
    attention = nn.TransformerEncoderLayer(8, 2, batch_first=True)
    assert suited(rfcalc.analyze(attention, (5, 8), layout="TC")) == (None,)


@pytest.mark.parametrize("size", [28, 40])
def test_the_sizes_do_not_hang_on_the_head(size):
    """However the map is brought together, and whatever the size it was tried on."""
    for head in (nn.AdaptiveAvgPool2d(1), nn.AvgPool2d(size), nn.Flatten()):
        assert suited(analyzed(nn.Sequential(chain(3, 3, 3), head), (1, size, size))) == ((6, 7), (6, 7))


def test_of_a_larger_input_no_unit_sees_all():
    net = chain(3, 3, 5, 3)
    _, high = suited(analyzed(net, (1, 32, 32)))[0]
    for size, sees_all in ((high, True), (high + 1, False)):
        last = analyzed(net, (1, size, size))
        seen = last.region(last.rows[-1].name, (size // 2, size // 2))[0].unclipped
        assert (seen[1] - seen[0] + 1 >= size) == sees_all


def test_the_sizes_are_where_the_cautions_begin():
    net = chain(3, 3, 5, 3)
    low, _ = suited(analyzed(net, (1, 32, 32)))[0]
    assert kinds(cautions(analyzed(net, (1, low, low)))) == {}
    assert "unproductive" in kinds(cautions(analyzed(net, (1, low - 1, low - 1))))


def test_the_gate_needs_no_torch():
    import subprocess
    import sys

    code = "import sys, rfcalc.gate.budget, rfcalc.gate.cautions; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert torch.is_tensor(torch.ones(1))
