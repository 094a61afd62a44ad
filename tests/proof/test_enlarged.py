"""The unclipped field, proved by gradients on a larger input."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from programs import Apply, Program, programs
from torch import nn

from rfcalc import RfcalcError, analyze
from rfcalc.proof import enlarged
from rfcalc.proof.enlarged import each_way, enlarge

pytestmark = pytest.mark.usefixtures("one_thread")


def disagreements(model, shape, positions=4, more=0):
    checks = list(enlarge(model, shape, analyze(model, shape)).check(positions))
    assert len(checks) >= more
    return [
        f"{c.layer} at {c.position}, axis {c.axis.name}: report {c.expected}, gradient {c.measured}"
        for c in checks
        if not c.agrees
    ]


def conv(k, s=1, p=0, i=1, o=1):
    return nn.Conv2d(i, o, k, s, p)


def up(mode, by=2, **options):
    return nn.Upsample(scale_factor=by, mode=mode, **options)


# Ops after which each position depends on what lies around it, wherever the map ends.
MOVING_ALONG = (
    "conv", "conv_transpose", "max_pool", "avg_pool", "lp_pool", "pad", "interpolate", "pixel_shuffle", "unfold",
    "tensor_unfold", "flip", "turn", "squeeze_excite", "norm", "pointwise_linear", "activation", "glu", "branch",
    "global_pool", "space_to_depth",
)  # fmt: skip


class UNet(nn.Module):
    """Down to a map of one position and up again, with shortcuts."""

    def __init__(self, mode, depth):
        super().__init__()
        self.down = nn.ModuleList(conv(3, 2, 1) for _ in range(depth))
        self.up = nn.ModuleList(up(mode) for _ in range(depth))
        self.mix = nn.ModuleList(conv(3, 1, 1) for _ in range(depth))

    def forward(self, x):
        kept = []
        for layer in self.down:
            kept.append(x)
            x = layer(x)
        for resize, layer in zip(self.up, self.mix, strict=True):
            x = layer(resize(x) + kept.pop())
        return x


FOLLOWING = [
    nn.Sequential(conv(3, 1, 1), conv(1, 1, 1), conv(1, 2), conv(3, 1, 1)),
    nn.Sequential(conv(3, 2, 1), conv(3, 1, 1), up("bilinear"), conv(3, 1, 1)),
    nn.Sequential(conv(3, 2, 1), up("nearest"), conv(3, 1, 1), up("bicubic"), conv(3, 2, 1), conv(3, 1, 1)),
    nn.Sequential(conv(3, 2, 1), nn.ConvTranspose2d(1, 1, 4, 2, 1), conv(3, 1, 1), conv(5, 1, 2)),
    nn.Sequential(nn.ConvTranspose2d(1, 1, 1, (1, 3), 0, (0, 2)), conv(3, 1, 1)),
    nn.Sequential(conv(3, 1, 1), Apply(lambda x: x.flip(2)), conv(3, 1, 1), conv(3, 1, 1)),
    nn.Sequential(conv(3, 2, 1, o=4), nn.PixelShuffle(2), conv(3, 1, 1), conv(3, 1, 1)),
    UNet("bilinear", 3),
    UNet("nearest", 3),
    nn.Sequential(conv(3, 2, 1), conv(3, 2, 1), conv(3, 2, 1), up("nearest", 4), conv(3, 1, 1)),
]


@pytest.mark.parametrize("model", FOLLOWING)
def test_what_follows_the_border(model):
    assert disagreements(model, (1, 8, 8), positions=12, more=20) == []


@pytest.mark.parametrize("model", FOLLOWING)
def test_one_axis_after_the_other(model):
    """The same boxes on inputs that are longer one way only."""
    report = analyze(model, (1, 8, 16))
    found = [(run, check) for run in each_way(model, (1, 8, 16), report) for check in run.check()]
    assert {check.axis.name for _, check in found} == {"H", "W"}
    assert all(check.agrees for _, check in found)
    shown = {check.layer for _, check in found} | {n for run, _ in found for n in run.skipped}
    assert shown == {row.name for row in report.rows}


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_a_map_without_interior_has_the_field_of_a_larger_one(mode):
    """Down to one position: the widths of all phases are those that a map with an interior has there."""
    small, large = (analyze(UNet(mode, 3), (1, n, n)).rows for n in (8, 128))
    inner = analyze(UNet(mode, 3), (1, 128, 128))
    for a, b in zip(small, large, strict=True):
        assert (a.r_min, a.r_out, a.r_local, a.is_global) == (b.r_min, b.r_out, b.r_local, b.is_global)
        centre = [inner.region(b.name, (n // 2 + i,) * 2)[0] for n in b.n_out[:1] for i in range(-n // 8, n // 8)]
        widths = [r.exact[1] - r.exact[0] + 1 for r in centre]
        assert (min(widths), max(widths)) == (b.r_min[0], b.r_out[0])


@settings(max_examples=120)
@given(programs(MOVING_ALONG))
def test_random_networks(program: Program):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = program.build()
        try:
            assert disagreements(model, program.shape) == []
        except RfcalcError as error:
            assert "too large" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (nn.Sequential(conv(3, 1, 1), nn.Flatten(), nn.Linear(64, 2)), "does not run on a larger input"),
        (nn.Sequential(conv(3, 1, 1), Apply(lambda x, p: x + p, p=torch.ones(1, 1, 8, 8))), "does not run on a larger"),
        (nn.Sequential(conv(3, 1, 1), nn.AdaptiveAvgPool2d(2)), "does not grow with the input"),
        (nn.Sequential(conv(3, 1, 1), nn.AdaptiveAvgPool2d(1)), "global context"),
        (nn.Sequential(conv(3, 1, 1), Apply(lambda x: x.flatten(2))), "no map with a dim for each axis"),
        (nn.Sequential(conv(3, 1, 1), Apply(lambda x: x.roll(1, 2))), "rolled"),
        (nn.Sequential(conv(3, 1, 1), up("bilinear", align_corners=True)), "stretched"),
        (nn.Sequential(conv(3, 1, 1), Apply(lambda x: (x > 0).float())), ""),
    ],
)
def test_what_cannot_be_measured_is_named(model, why):
    report = analyze(model, (1, 8, 8))
    run = enlarge(model, (1, 8, 8), report)
    last = report.rows[-1].name
    assert why in run.skipped.get(last, "")
    measured = {check.layer for check in run.check()}
    assert (last in measured) is not bool(why)
    assert "0" in measured
    assert all(check.kind == "unclipped" and check.agrees for check in run.check())


def test_several_inputs_grow_together():
    model = Apply(lambda a, b, c: c(a + b), c=conv(3, 1, 1))
    shapes = [(1, 6, 8), (1, 6, 8)]
    checks = list(enlarge(model, shapes, analyze(model, shapes)).check())
    assert {c.axis.name for c in checks} == {"0.H", "0.W", "1.H", "1.W"}
    assert all(c.agrees for c in checks)


def test_an_input_that_would_not_fit_is_refused():
    model = nn.Sequential(*[conv(3, 2, 1) for _ in range(12)])
    with pytest.raises(RfcalcError, match="too large"):
        enlarge(model, (1, 8, 8), analyze(model, (1, 8, 8)))


def test_what_is_too_dear_is_named(monkeypatch):
    """Rows are measured in turn as long as all their gradients together are affordable."""
    model = nn.Sequential(*[conv(3, 1, 1) for _ in range(4)])
    report = analyze(model, (1, 8, 8))
    places, grown = 5, 1 + 2 * 5 / 8
    monkeypatch.setattr(enlarged, "_MAX_WORK", places * grown * (report.rows[0].macs + 16 * 64) * 3)
    runs = list(each_way(model, (1, 8, 8), report))
    assert [run.margin for run in runs] == [5, 5]
    for run in runs:
        assert [row.name for row in run.rows] == ["0", "1"]
        assert run.skipped == dict.fromkeys("23", "gradients on the larger input cost too much")


def test_what_would_not_fit_into_memory_is_refused(monkeypatch):
    monkeypatch.setattr(enlarged, "_MAX_KEPT", 64)
    model = conv(3, 1, 1)
    with pytest.raises(RfcalcError, match="too large"):
        list(each_way(model, (1, 8, 8), analyze(model, (1, 8, 8))))


def test_tokens_in_any_layout_and_given_tensors():
    model = Apply(lambda x, c: c(x.permute(1, 2, 0)), c=nn.Conv1d(4, 4, 5, 2, 2))
    report = analyze(model, (9, 4), layout="TNC")
    checks = [check for run in each_way(model, (9, 4), report, layout="TNC") for check in run.check()]
    assert [check.expected for check in checks if check.position == (0,)][-1:] == [(-2, 2)]
    assert all(check.agrees for check in checks)
    words = nn.Sequential(nn.Embedding(7, 4), Apply(lambda x: x.transpose(1, 2)), nn.Conv1d(4, 4, 3, 1, 1))
    ids = torch.randint(7, (1, 9))
    checks = [check for run in each_way(words, ids, analyze(words, ids)) for check in run.check()]
    assert {check.layer for check in checks} >= {"2"}
    assert all(check.agrees for check in checks)


@pytest.mark.parametrize("n", [7, 9])
@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear", "bicubic"])
@pytest.mark.parametrize("by", [1.5, 2.5])
def test_a_scale_factor_steps_evenly_also_where_the_map_is_cut(n, mode, by):
    """7 positions times 1.5 are 10, but neighbours are 2/3 apart, not 7/10."""
    model = nn.Sequential(conv(3, 1, 1), up(mode, by), conv(3, 1, 1), conv(3, 1, 1))
    report = analyze(model, (1, n, n))
    assert float(report.rows[-1].j_out[0]) == pytest.approx(1 / by)
    run = enlarge(model, (1, n, n), report)
    checks = list(run.check())
    assert not run.skipped
    assert all(check.agrees and check.exact for check in checks)


def test_a_map_shorter_than_one_turn_is_marked_and_holds_what_is_true():
    """Of one position nobody can tell in which rhythm a transposed convolution leaves others out."""
    layers = nn.Conv1d(1, 1, 3, 2, 1), nn.ConvTranspose1d(1, 1, 1, 3), nn.Conv1d(1, 1, 1, 1, 3), nn.Conv1d(1, 1, 3)
    model = nn.Sequential(*layers)
    report = analyze(model, (1, 2))
    checks = list(enlarge(model, (1, 2), report).check(positions=9))
    assert all(check.agrees for check in checks)
    assert {check.layer for check in checks if not check.exact} == {"2", "3"}
    assert [row.aligned for row in report.rows] == [True, True, False, False]


def test_a_report_of_too_small_a_kernel_disagrees():
    """A field that moves with its position is the same everywhere, so the report is wrong, not the measurement."""
    run = enlarge(conv(5, 1, 2), (1, 8, 8), analyze(conv(3, 1, 1), (1, 8, 8)))
    checks = [check for check in run.check() if check.position == (4, 4)]
    assert [(check.expected, check.measured) for check in checks] == [((3, 5), (2, 6))] * 2
    assert not any(check.agrees for check in checks)
