"""A run leaves nothing where the design's next forward would find it: globals, closures, attributes, weights."""

from __future__ import annotations

import functools

import pytest
import torch
from programs import Apply
from torch import nn

import rfcalc

both_levels = pytest.mark.parametrize("level", [1, 2])
IMAGE = (1, 8, 8)
CACHE = {"kept": 1}
ITEMS: list = []
LAST = None


class Box:
    """A helper that is no module, nor knows one."""

    def __init__(self, depth):
        self.inner = Box(depth - 1) if depth else None
        self.last = None


BOX = Box(4)


@functools.lru_cache
def positions(n):
    return torch.arange(n).float()


def remembered(x):
    return CACHE.setdefault("x", x)


def made():
    items, last = [], None

    class Net(nn.Module):
        shared = {}  # noqa: RUF012
        seen = None

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x):
            global LAST  # noqa: PLW0603
            nonlocal last
            y = LAST = last = self.conv(remembered(x))
            for kept in (ITEMS, items):
                kept.append(y)
            BOX.inner.inner.inner.inner.last = y
            self.shared["y"] = type(self).seen = type(self).new = y
            return y + positions(8)

    return Net, items, lambda: last


@both_levels
def test_nothing_is_kept_outside_of_the_model(level):
    kind, items, last = made()
    assert rfcalc.analyze(kind(), IMAGE, level=level).rf_output == (3, 3)
    assert CACHE == {"kept": 1}
    assert (ITEMS, items, LAST, last()) == ([], [], None, None)
    assert BOX.inner.inner.inner.inner.last is None
    assert (kind.shared, kind.seen, hasattr(kind, "new")) == ({}, None, False)
    assert positions.cache_info().currsize == 0


@both_levels
def test_what_a_forward_notes_beside_its_tensors_stays(level):
    noted = []
    rfcalc.analyze(Apply(lambda x: (noted.append(tuple(x.shape)), x * 2)[1]), IMAGE, level=level)
    assert noted == [(1, *IMAGE)]


@both_levels
def test_a_second_analysis_says_the_same(level):
    net = made()[0]()
    assert len({rfcalc.analyze(net, IMAGE, level=level).peak_activation_bytes for _ in range(3)}) == 1


@both_levels
def test_a_forward_that_fails_keeps_nothing_either(level):
    def forward(x, m):
        remembered(m(x))
        raise ValueError("not today")

    with pytest.raises(rfcalc.ForwardError, match="not today"):
        rfcalc.analyze(Apply(forward, m=nn.Conv2d(1, 1, 3)), IMAGE, level=level)
    assert CACHE == {"kept": 1}


@both_levels
@pytest.mark.parametrize("cast", ["double", "half", "bfloat16"])
def test_a_module_that_forward_casts_is_put_back(cast, level):
    layer = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    own = dict(layer.named_parameters())

    def forward(x, m):
        return getattr(m, cast)()(getattr(x, cast)()).float()

    assert rfcalc.analyze(Apply(forward, m=layer), IMAGE, level=level).rf_output == (3, 3)
    after = layer.state_dict()
    assert all(after[k].dtype is v.dtype and torch.equal(after[k], v) for k, v in before.items())
    assert all(p is own[k] for k, p in layer.named_parameters())


@both_levels
def test_a_module_that_forward_moves_is_put_back(level):
    layer = nn.Conv2d(1, 2, 3)
    assert rfcalc.analyze(Apply(lambda x, m: m.to(x.device)(x), m=layer), IMAGE, level=level).rf_output == (3, 3)
    assert layer.weight.device.type == "cpu"
    assert layer(torch.zeros(1, *IMAGE)).shape == (1, 2, 6, 6)


@both_levels
def test_a_tensor_set_to_another_of_its_shape(level):
    def forward(x, m):
        y = x * 1
        y.set_(m(x))
        return y + 0

    report = rfcalc.analyze(Apply(forward, m=nn.Conv2d(1, 1, 3, padding=1)), IMAGE, level=level)
    assert report.rf_output == (3, 3)


@both_levels
@pytest.mark.parametrize("way", ["out", "data", "storage", "copied"])
def test_a_tensor_given_another_storage(way, level):
    def forward(x, m):
        y, seen = x * 1, m(x)
        if way == "out":
            torch.add(seen, 0, out=y)
        elif way == "data":
            y.data = seen
        elif way == "storage":
            y.set_(seen.untyped_storage(), 0, seen.shape, seen.stride())
        else:
            y.data.copy_(seen)
        return y + 0

    report = rfcalc.analyze(Apply(forward, m=nn.Conv2d(1, 1, 3, padding=1)), IMAGE, level=level)
    assert report.rf_output == (3, 3) or report.approximate_ops
