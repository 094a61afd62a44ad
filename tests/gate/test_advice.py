"""Advice is true: the network it describes, written by hand, has the figures it promises."""

import dataclasses
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

import rfcalc
from rfcalc.gate import changes
from rfcalc.gate.advice import advise
from rfcalc.gate.budget import Budget, check

SHAPE = (1, 28, 28)


def net(a=8, b=16, c=10, *, extra=(), extra_b=(), out=10):
    """A ladder step: two blocks, a pool between them, a pooled head. `extra` goes behind conv3, `extra_b` behind a."""
    layers = OrderedDict(
        conv1=nn.Sequential(nn.Conv2d(1, a, 3, bias=False), *extra_b) if extra_b else nn.Conv2d(1, a, 3, bias=False),
        bn1=nn.BatchNorm2d(a),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(a, b, 3),
        relu2=nn.ReLU(),
        pool=nn.MaxPool2d(2),
        conv3=nn.Sequential(nn.Conv2d(b, c, 3, bias=False), *extra) if extra else nn.Conv2d(b, c, 3, bias=False),
        bn3=nn.BatchNorm2d(c),
        gap=nn.AdaptiveAvgPool2d(1),
        head=nn.Conv2d(c, out, 1),
        flat=nn.Flatten(),
    )
    return nn.Sequential(layers)


def advice_on(build, budget, shape=SHAPE):
    report = rfcalc.analyze(build(), shape)
    return advise(build, shape, report, budget, check(report, budget))


def only(found, kind, layer=None):
    matching = [a for a in found if a.kind == kind and (layer is None or a.layer == layer)]
    assert matching, [(a.kind, a.layer, a.message) for a in found]
    return matching[0]


def assert_true(advice, changed, budget, shape=SHAPE):
    """The promised figures are those of the network that the advice describes."""
    report = rfcalc.analyze(changed, shape)
    assert (advice.params, advice.macs) == (report.params, report.macs)
    assert (advice.rf_output, advice.rf_spatial) == (report.rf_output, report.rf_spatial)
    assert advice.fits == (check(report, budget) == [])
    assert advice.limit not in [v.limit for v in check(report, budget)]


FREE = {"max_params": None, "min_rf": None}


def test_a_global_design_is_told_to_look_further_by_its_local_field():
    def build():
        convs = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(2)]
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.MaxPool2d(2), *convs)

    assert advice_on(build, Budget(**FREE | {"min_rf": 44}), (3, 32, 32)) == []
    found = advice_on(build, Budget(**FREE | {"min_rf_spatial": 20}), (3, 32, 32))
    assert {a.kind for a in found} >= {"convolution"}
    assert all(min(a.rf_spatial) >= 20 for a in found)


def test_nothing_is_mended_by_changing_nothing(monkeypatch):
    """A report that is not of this design would let any change seem to help."""

    def unchanged(design, violation):
        yield changes.Change("narrower", "conv1", "conv1: 8 -> 8 channels", (), lambda: None)

    monkeypatch.setitem(changes.CHANGES, "min_rf_spatial", unchanged)
    report = rfcalc.analyze(net(), SHAPE)
    missed = check(dataclasses.replace(report, rf_spatial=(1, 1)), Budget(**FREE | {"min_rf_spatial": 5}))
    assert [v.limit for v in missed] == ["min_rf_spatial"]
    assert advise(net, SHAPE, report, Budget(**FREE | {"min_rf_spatial": 5}), missed) == []


def test_a_narrower_layer():
    """conv2 holds 1,168, conv3 takes it in with 1,440: 163 parameters a channel; 2,842 in all."""
    budget = Budget(**FREE | {"max_params": 2_300})
    advice = only(advice_on(net, budget), "narrower", "conv2")
    assert advice.message == "conv2: 16 -> 12 channels"
    assert_true(advice, net(b=12), budget)
    report = rfcalc.analyze(net(b=13), SHAPE)
    assert check(report, budget), "one channel more would not fit"


def test_a_narrower_layer_takes_its_norm_along():
    budget = Budget(**FREE | {"max_params": 2_300})
    advice = only(advice_on(net, budget), "narrower", "conv1")
    width = int(advice.message.split("->")[1].split()[0])
    assert_true(advice, net(a=width), budget)
    assert check(rfcalc.analyze(net(a=width + 1), SHAPE), budget)


def test_every_layer_thinner():
    budget = Budget(**FREE | {"max_params": 500})
    advice = only(advice_on(net, budget), "thinner")
    percent = int(advice.message.split("at ")[1].split(" %")[0])
    assert_true(advice, net(*(max(1, w * percent // 100) for w in (8, 16, 10))), budget)


def test_one_more_convolution():
    """R is 14 at the output's last map; behind conv3 the jump is 2: each convolution adds 4."""
    budget = Budget(**FREE | {"min_rf_spatial": 14})
    assert rfcalc.analyze(net(), SHAPE).rf_spatial == (10, 10)
    advice = only(advice_on(net, budget), "convolution", "conv3")
    assert advice.message == "one more 3x3 convolution of 10 channels (padding 1, no bias) behind conv3"
    assert_true(advice, net(extra=[nn.Conv2d(10, 10, 3, padding=1, bias=False)]), budget)


def test_several_more_convolutions():
    budget = Budget(**FREE | {"min_rf_spatial": 20})
    advice = only(advice_on(net, budget), "convolution", "conv3")
    assert advice.message.startswith("3 more 3x3 convolutions of 10 channels")
    assert_true(advice, net(extra=[nn.Conv2d(10, 10, 3, padding=1, bias=False) for _ in range(3)]), budget)


def test_a_pool():
    budget = Budget(**FREE | {"min_rf_spatial": 17})
    advice = only(advice_on(net, budget), "pool")
    assert advice.message == "a 2x2 max pool behind bn1"
    assert_true(advice, net(extra_b=[nn.MaxPool2d(2)]), budget)


def plain(*more, at=2):
    """Two convolutions and their answer, a map: the output sees 5 pixels."""
    layers = [nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 3, 1)]
    layers[at] = nn.Sequential(layers[at], *more)
    return nn.Sequential(*layers)


def test_at_the_output():
    """Without a head the output sees what the last map sees; a pool would halve the answer."""
    budget = Budget(**FREE | {"min_rf": 9})
    found = advice_on(plain, budget)
    assert {a.kind for a in found} == {"convolution"}
    advice = only(found, "convolution", "2.0")
    assert advice.message.startswith("2 more 3x3 convolutions of 3 channels")
    assert_true(advice, plain(*(nn.Conv2d(3, 3, 3, padding=1, bias=False) for _ in range(2))), budget)


def test_a_pool_shrinks_what_a_global_pool_brings_together():
    """20 - 4 = 16 positions; a pool behind the first layer leaves floor(18 / 2) - 2 = 7 at jump 2, of R 8: 20."""
    make = lambda *more: nn.Sequential(plain(*more, at=0), nn.AdaptiveAvgPool2d(1))  # noqa: E731
    budget = Budget(**FREE | {"min_rf_spatial": 8})
    advice = only(advice_on(make, budget, (1, 20, 20)), "pool", "0.0.0")
    assert (advice.rf_spatial, advice.rf_output) == ((8, 8), (20, 20))
    assert_true(advice, make(nn.MaxPool2d(2)), budget, (1, 20, 20))


@pytest.mark.parametrize("dims", [1, 3])
def test_signals_and_volumes(dims):
    conv, pool, ahead = {
        1: (nn.Conv1d, nn.MaxPool1d, nn.AdaptiveAvgPool1d),
        3: (nn.Conv3d, nn.MaxPool3d, nn.AdaptiveAvgPool3d),
    }[dims]
    taps = {1: ("3-tap", "2-tap"), 3: ("3x3x3", "2x2x2")}[dims]

    def make(after_a=(), after_b=()):
        a, b = nn.Sequential(conv(1, 4, 3), *after_a), nn.Sequential(conv(4, 4, 3), *after_b)
        return nn.Sequential(a if after_a else a[0], b if after_b else b[0], ahead(1), conv(4, 3, 1))

    shape, budget = (1, *(16,) * dims), Budget(**FREE | {"min_rf_spatial": 7})
    found = advice_on(make, budget, shape)
    more, pooled = only(found, "convolution"), only(found, "pool", "0")
    assert more.message == f"one more {taps[0]} convolution of 4 channels (padding 1, no bias) behind {more.layer}"
    added = [conv(4, 4, 3, padding=1, bias=False)]
    assert_true(more, make(**{{"0": "after_a", "1": "after_b"}[more.layer]: added}), budget, shape)
    assert pooled.message == f"a {taps[1]} max pool behind 0"
    assert_true(pooled, make([pool(2)]), budget, shape)


class Spare(nn.Module):
    def __init__(self, spare=True, own=0):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 10, 1)
        self.a.own = nn.Parameter(torch.zeros(own)) if own else None
        if spare:
            self.spare = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20))

    def forward(self, x):
        return self.b(self.a(x))


def test_what_forward_never_reaches_can_go():
    budget = Budget(**FREE | {"max_params": 200})
    advice = only(advice_on(Spare, budget), "removed")
    assert advice.message == "without spare.0, spare.2, which forward never reaches"
    assert_true(advice, Spare(spare=False), budget)
    assert not [a for a in advice_on(Spare, Budget(**FREE | {"max_params": 100})) if a.kind == "removed"]


def test_what_runs_stays():
    """`a` runs, whatever it owns besides: 10 parameters that nothing uses."""
    budget = Budget(**FREE | {"max_params": 200})
    advice = only(advice_on(lambda: Spare(own=10), budget), "removed")
    assert advice.message == "without spare.0, spare.2, which forward never reaches"
    assert_true(advice, Spare(spare=False, own=10), budget)
    assert not [a for a in advice_on(lambda: Spare(own=500), budget) if a.kind == "removed"], "500 are no module's"


def test_less_work():
    budget = Budget(**FREE | {"max_macs": 500_000})
    found = advice_on(net, budget)
    advice = only(found, "narrower", "conv2")
    assert_true(advice, net(b=int(advice.message.split("->")[1].split()[0])), budget)
    thinner = only(found, "thinner")
    percent = int(thinner.message.split("at ")[1].split(" %")[0])
    assert_true(thinner, net(*(max(1, w * percent // 100) for w in (8, 16, 10))), budget)


def test_less_memory():
    budget = Budget(**FREE | {"max_activation_bytes": 50_000})
    for advice in advice_on(net, budget):
        if advice.kind == "thinner":
            percent = int(advice.message.split("at ")[1].split(" %")[0])
            assert_true(advice, net(*(max(1, w * percent // 100) for w in (8, 16, 10))), budget)
            break
    else:
        raise AssertionError("no advice on memory")


def deep(*left_out):
    layers = [nn.Conv2d(1, 4, 3), *(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)), nn.Conv2d(4, 10, 1)]
    return nn.Sequential(*(nn.Identity() if i in left_out else layer for i, layer in enumerate(layers)))


def test_a_layer_less():
    budget = Budget(**FREE | {"max_layers": 4})
    assert_true(only(advice_on(deep, budget), "removed", "3"), deep(3), budget)
    budget = Budget(**FREE | {"max_layers": 3})
    assert_true(only(advice_on(deep, budget), "removed", "2"), deep(2, 3), budget)
    assert advice_on(deep, Budget(**FREE | {"max_layers": 1})) == []


class Depthwise(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.start = nn.Conv2d(1, width, 3)
        self.depth = nn.Conv2d(width, width, 3, groups=width)
        self.point = nn.Conv2d(width, 40, 1)
        self.head = nn.Linear(40, 10)

    def forward(self, x):
        return self.head(self.point(self.depth(self.start(x))).mean((2, 3)))


def test_a_depthwise_layer_follows():
    budget = Budget(**FREE | {"max_params": 800})
    advice = only(advice_on(Depthwise, budget), "narrower", "start")
    assert_true(advice, Depthwise(int(advice.message.split("->")[1].split()[0])), budget)


class Between(nn.Module):
    """What stands between two layers may own numbers for each channel."""

    def __init__(self, layer, a=12, b=24):
        super().__init__()
        self.a, self.one = nn.Conv2d(1, a, 3), layer(a, 26)
        self.b, self.two = nn.Conv2d(a, b, 3), layer(b, 24)
        self.c = nn.Conv2d(b, 10, 3)

    def forward(self, x):
        return self.c(self.two(self.b(self.one(self.a(x)))))


BETWEEN = {
    "GroupNorm": (lambda c, n: nn.GroupNorm(4, c), 4),
    "GroupNorm, one group": (lambda c, n: nn.GroupNorm(1, c), 1),
    "GroupNorm, a group a channel": (lambda c, n: nn.GroupNorm(c, c), 1),
    "InstanceNorm": (lambda c, n: nn.InstanceNorm2d(c, affine=True, track_running_stats=True), 1),
    "InstanceNorm, no numbers": (lambda c, n: nn.InstanceNorm2d(c), 1),
    "LayerNorm": (lambda c, n: nn.LayerNorm([c, n, n]), 1),
    "LayerNorm, no numbers": (lambda c, n: nn.LayerNorm([c, n, n], elementwise_affine=False), 1),
    "PReLU": (lambda c, n: nn.PReLU(c), 1),
    "PReLU, one number": (lambda c, n: nn.PReLU(), 1),
    "SyncBatchNorm": (lambda c, n: nn.SyncBatchNorm(c), 1),
}


@pytest.mark.parametrize(("layer", "step"), BETWEEN.values(), ids=BETWEEN)
def test_what_each_channel_owns_follows(layer, step):
    """A layer keeps as many whole groups of channels as fit."""
    whole = rfcalc.analyze(Between(layer), SHAPE).params
    budget = Budget(**FREE | {"max_params": whole * 3 // 4})
    found = advice_on(lambda: Between(layer), budget)
    advice = only(found, "narrower", "b")
    kept = int(advice.message.split("->")[1].split()[0])
    assert kept % step == 0
    assert_true(advice, Between(layer, b=kept), budget)
    assert check(rfcalc.analyze(Between(layer, b=kept + step), SHAPE), budget), "one group more would not fit"
    thinner = only(found, "thinner")
    assert ("in whole groups" in thinner.message) == (step > 1)
    percent = int(thinner.message.split("at ")[1].split(" %")[0])
    assert_true(thinner, Between(layer, *(w * percent // 100 // step * step for w in (12, 24))), budget)


def test_less_memory_in_whole_groups():
    layer = BETWEEN["GroupNorm"][0]
    budget = Budget(**FREE | {"max_activation_bytes": 80_000})
    advice = only(advice_on(lambda: Between(layer), budget), "narrower", "b")
    assert_true(advice, Between(layer, b=int(advice.message.split("->")[1].split()[0])), budget)


def test_a_grouped_convolution_keeps_its_groups():
    make = lambda b=24: nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, b, 3, groups=4), nn.Conv2d(b, 10, 3))  # noqa: E731
    budget = Budget(**FREE | {"max_params": 2_000})
    advice = only(advice_on(make, budget), "narrower", "1")
    assert advice.message == "1: 24 -> 16 channels", "18 would fit, but not in 4 groups"
    assert_true(advice, make(16), budget)


class Branches(nn.Module):
    """Three branches of one map, joined."""

    def __init__(self, stem=16, a=8, b=24, c=16):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, stem, 3), nn.BatchNorm2d(stem)
        self.a, self.b = nn.Conv2d(stem, a, 1), nn.Conv2d(stem, b, 3, padding=1)
        self.c = nn.Conv2d(stem, c, 5, padding=2)
        self.joined, self.out = nn.BatchNorm2d(a + b + c), nn.Conv2d(a + b + c, 10, 1)

    def forward(self, x):
        x = self.norm(self.stem(x))
        return self.out(self.joined(torch.cat([self.a(x), self.b(x), self.c(x)], 1)))


def test_branches_that_are_joined():
    """49 % of 8, 24 and 16 channels leave rests, which do not add up to 49 % of 48; parts of 8 leave none."""
    budget = Budget(**FREE | {"max_params": 5_900})
    advice = only(advice_on(Branches, budget, (3, 20, 20)), "thinner")
    assert "at 5/8 of its channels (widths 5 to 15)" in advice.message
    assert_true(advice, Branches(10, 5, 15, 10), budget, (3, 20, 20))
    assert check(rfcalc.analyze(Branches(12, 6, 18, 12), (3, 20, 20)), budget)
    budget = Budget(**FREE | {"max_macs": 1_100_000})
    advice = only(advice_on(Branches, budget, (3, 20, 20)), "thinner")
    assert "at 50 % of its channels (widths 4 to 12)" in advice.message
    assert_true(advice, Branches(8, 4, 12, 8), budget, (3, 20, 20))


class Joined(nn.Module):
    """A map goes on beside what is made of it, up again from half the size."""

    def __init__(self, a=8, b=16, up=8, c=12):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, a, 3, padding=1), nn.Conv2d(a, b, 3, padding=1)
        self.pool, self.up = nn.MaxPool2d(2), nn.ConvTranspose2d(b, up, 2, 2)
        self.c, self.out = nn.Conv2d(up + a, c, 3, padding=1), nn.Conv2d(c, 1, 1)

    def forward(self, x):
        a = self.a(x)
        return self.out(self.c(torch.cat([self.up(self.b(self.pool(a))), a], 1)))


def test_a_map_goes_on_beside():
    """What `c` is given by `a` stays: a channel less of `up` is one input less, not two."""
    budget = Budget(**FREE | {"max_params": 3_000})
    found = advice_on(Joined, budget)
    for layer in ("b", "up", "c"):
        advice = only(found, "narrower", layer)
        assert_true(advice, Joined(**{layer: int(advice.message.split("->")[1].split()[0])}), budget)
    budget = Budget(**FREE | {"max_params": 1_000})
    advice = only(advice_on(Joined, budget), "thinner")
    percent = int(advice.message.split("at ")[1].split(" %")[0])
    assert_true(advice, Joined(*(w * percent // 100 for w in (8, 16, 8, 12))), budget)


class Again(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.stem, self.again = nn.Conv2d(1, width, 3), nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Conv2d(width, 10, 1)

    def forward(self, x):
        x = self.stem(x)
        for _ in range(3):
            x = self.again(x)
        return self.head(x)


def test_a_layer_called_again():
    """Its input is its own output: only all widths together change it."""
    budget = Budget(**FREE | {"max_params": 1_500})
    (advice,) = advice_on(Again, budget)
    percent = int(advice.message.split("at ")[1].split(" %")[0])
    assert_true(advice, Again(16 * percent // 100), budget)
    assert check(rfcalc.analyze(Again(16 * percent // 100 + 1), SHAPE), budget)


class Flat(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3)
        self.head = nn.Linear(width * 36, 10)

    def forward(self, x):
        return self.head(self.conv(x).flatten(1))


def test_a_flattening_head_follows():
    budget = Budget(**FREE | {"max_params": 2_000})
    advice = only(advice_on(Flat, budget, (1, 8, 8)), "narrower", "conv")
    width = int(advice.message.split("->")[1].split()[0])
    assert_true(advice, Flat(width), budget, (1, 8, 8))
    assert check(rfcalc.analyze(Flat(width + 1), (1, 8, 8)), budget)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 10, 1)

    def forward(self, x):
        x = self.a(x)
        return self.c(x + self.b(x))


def test_what_does_not_run_is_not_advised():
    """A narrower `a` no longer adds up with `b`; all of them thinner do."""
    found = advice_on(Residual, Budget(**FREE | {"max_params": 600}))
    assert [a.kind for a in found] == ["thinner"]


def test_a_shared_layer_is_left_alone():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 10, 1)

        def forward(self, x):
            return self.c(self.b(self.b(self.a(x))))

    for advice in advice_on(Shared, Budget(**FREE | {"max_params": 700})):
        assert advice.layer != "b"


class Heads(nn.Module):
    """The last layer is not the only one whose width is an answer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 32, 3)
        self.one, self.two = nn.Linear(32, 5), nn.Linear(32, 7)

    def forward(self, x):
        x = self.b(self.a(x)).mean((2, 3))
        return self.one(x), self.two(x)


def test_the_answer_keeps_its_shape():
    found = advice_on(Heads, Budget(**FREE | {"max_params": 2_000}))
    assert [(a.kind, a.layer) for a in found] == [("narrower", "a")], "one factor for all would thin the first head"
    mask = lambda: nn.Sequential(*(nn.Conv2d(c, d, 3, padding=1) for c, d in ((1, 8), (8, 8), (8, 2))))  # noqa: E731
    found = advice_on(mask, Budget(**FREE | {"min_rf_spatial": 8}))
    assert {a.kind for a in found} == {"convolution"}, "a pool would halve the map"


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 32, 3)
        self.c.weight = self.b.weight
        self.d = nn.Conv2d(32, 10, 1)

    def forward(self, x):
        return self.d(self.c(self.b(self.a(x))))


def test_a_shared_weight_is_left_alone():
    """Two widths for one weight would untie it, and the figures would be those of another design."""
    assert advice_on(Tied, Budget(**FREE | {"max_params": 8_000})) == []


def test_layers_that_take_any_size_are_left_alone():
    lazy = lambda: nn.Sequential(nn.LazyConv2d(32, 3), nn.LazyConv2d(32, 3), nn.Conv2d(32, 10, 1))  # noqa: E731
    assert advice_on(lazy, Budget(max_params=3_000, min_rf=40)) == []


def test_layers_without_a_width():
    """torch allows them; nothing can be said of parts of nothing."""
    make = lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 0), nn.Linear(0, 40), nn.Linear(40, 10))  # noqa: E731
    advice = only(advice_on(make, Budget(**FREE | {"max_params": 400})), "narrower")
    assert (advice.layer, advice.fits) == ("2", True)


def test_a_far_goal_is_not_stacked_up():
    assert [a for a in advice_on(net, Budget(**FREE | {"min_rf_spatial": 10**9})) if a.kind == "convolution"] == []


def test_the_design_is_what_it_was():
    built = net()
    before = {name: (id(m), dict(vars(m))) for name, m in built.named_modules()}
    shapes = {name: tuple(p.shape) for name, p in built.named_parameters()}
    budget = Budget(max_params=2_000, min_rf=60, max_macs=100_000, max_layers=3, max_activation_bytes=20_000)
    report = rfcalc.analyze(built, SHAPE)
    assert advise(lambda: built, SHAPE, report, budget, check(report, budget))
    assert {name: tuple(p.shape) for name, p in built.named_parameters()} == shapes
    assert {name: (id(m), dict(vars(m))) for name, m in built.named_modules()} == before


@pytest.mark.parametrize("limit", ["require_exact", "require_aligned"])
def test_no_arithmetic_mends_the_rest(limit):
    violation = rfcalc.Violation(limit, 0, 1, 1, (), "")
    report = rfcalc.analyze(net(), SHAPE)
    assert advise(net, SHAPE, report, Budget(**FREE | {limit: True}), [violation]) == []


def test_the_ladders():
    """Every advice on every rejected design ends what it is about."""
    given = 0
    for file in sorted((Path(__file__).parents[2] / "models").rglob("*.py")):
        design = rfcalc.load_design(str(file))
        report = rfcalc.analyze(design.build(), design.input_shape)
        for budget in (Budget(), Budget(max_params=5_000, min_rf=32, min_rf_spatial=24, max_macs=700_000)):
            violations = check(report, budget)
            found = advise(design.build, design.input_shape, report, budget, violations)
            given += len(found)
            for limit in {v.limit for v in violations}:
                assert len([a for a in found if a.limit == limit]) <= 3
            for advice in found:
                assert advice.limit in {v.limit for v in violations}
                if advice.limit == "max_params":
                    assert advice.params <= budget.max_params
                if advice.limit == "min_rf":
                    assert min(advice.rf_output) >= budget.min_rf
                if advice.limit == "max_macs":
                    assert advice.macs <= budget.max_macs
    assert given > 60
