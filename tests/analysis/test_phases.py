"""R of a layer: the widths of all units whose paths read no tap that a border cut, from narrowest to widest."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import Apply
from torch import nn

from rfcalc import analyze
from rfcalc.proof.oracle import prepare

LENGTH = 96


pytestmark = pytest.mark.usefixtures("one_thread")


def conv(k, s=1, p=0, d=1):
    return nn.Conv1d(1, 1, k, s, p, d)


def resize(**options):
    return Apply(lambda x: F.interpolate(x, **options))


def cubic(by, mode="bicubic", antialias=False):
    """What torch has for images only, along one dim."""
    return Apply(lambda x: F.interpolate(x[..., None], scale_factor=(by, 1), mode=mode, antialias=antialias)[..., 0])


def interior_widths(model, length):
    """Per row with a moving field, the narrowest and the widest box of the gradient over the middle half of its map."""
    report = analyze(model, (1, length))
    oracle = prepare(model, (1, length), report)
    found = {}
    for row in report.rows:
        if {d for p in report.fields[row.name].axes[0].parts for d in p.dims} != set(row.grid):
            continue  # on the way through a shuffle
        n = row.n_out[0]
        boxes = [oracle.measure(row.call, row.grid, (i,), report.axes)[0] for i in range(n // 4, n - n // 4)]
        widths = [high - low + 1 for low, high in filter(None, boxes)]
        found[row.name] = (row, min(widths), max(widths))
    return found


def unlike(model, length=LENGTH):
    return [
        f"{name}: report {row.r_min[0]}..{row.r_out[0]}, gradient {low}..{high}"
        for name, (row, low, high) in interior_widths(model, length).items()
        if (row.r_min[0], row.r_out[0]) != (low, high)
    ]


class Pyramid(nn.Module):
    """Down in steps, and up again with a sum of what each level saw."""

    def __init__(self, mode, depth=2):
        super().__init__()
        self.down = nn.ModuleList(conv(3, 2, 1) for _ in range(depth))
        self.side = nn.ModuleList(conv(1) for _ in range(depth))
        self.smooth = conv(3, 1, 1)
        self.mode = mode

    def forward(self, x):
        kept = []
        for down, side in zip(self.down, self.side, strict=True):
            x = down(x)
            kept.append(side(x))
        y = kept.pop()
        while kept:
            level = kept.pop()
            y = self.smooth(level + F.interpolate(y, size=level.shape[2:], mode=self.mode))
        return y


def shuffle(by):
    """A pixel shuffle of one dim."""
    return Apply(lambda x, c: c(x).movedim(1, 2).reshape(1, 1, -1), c=nn.Conv1d(1, by, 3, 1, 1))


def unshuffle(by):
    """Space to depth, as one writes it by hand."""
    return Apply(lambda x, c: c(x.view(1, -1, by).movedim(2, 1)), c=nn.Conv1d(by, 1, 3, 1, 1))


DECODERS = [
    nn.Sequential(conv(3, 2, 1), conv(3, 2, 1), resize(scale_factor=2, mode="linear"), conv(3, 1, 1)),
    nn.Sequential(conv(3, 2, 1), resize(scale_factor=2, mode="nearest"), conv(3, 1, 1), conv(3, 2, 1), conv(3, 1, 1)),
    nn.Sequential(conv(3, 3, 1), resize(scale_factor=2, mode="linear"), conv(3, 1, 1), conv(3, 1, 1)),
    nn.Sequential(conv(3, 3, 1), resize(scale_factor=2, mode="nearest-exact"), conv(3, 1, 1)),
    nn.Sequential(conv(3, 2, 1), nn.ConvTranspose1d(1, 1, 4, 2, 1), conv(3, 1, 1)),
    nn.Sequential(conv(3, 2, 1), nn.ConvTranspose1d(1, 1, 3, 2, 1, 1), conv(3, 1, 1), nn.ConvTranspose1d(1, 1, 2, 2)),
    nn.Sequential(conv(3, 2, 1), shuffle(2), conv(3, 1, 1), shuffle(3), conv(3, 1, 1)),
    nn.Sequential(conv(3, 1, 1), unshuffle(4), conv(3, 1, 1), shuffle(2), conv(3, 1, 1), unshuffle(3)),
    nn.Sequential(conv(3, 1, 1), resize(scale_factor=1.5, mode="linear"), conv(3, 1, 1)),
    nn.Sequential(conv(3, 2, 1), resize(scale_factor=1.5, mode="nearest"), conv(3, 1, 1), conv(3, 2, 1)),
    nn.Sequential(conv(3, 1, 1), resize(scale_factor=2, mode="linear"), resize(scale_factor=2, mode="linear"), conv(3)),
    nn.Sequential(resize(scale_factor=2), resize(scale_factor=3), conv(3, 1, 1), conv(3, 4, 1), conv(3, 1, 1)),
    nn.Sequential(conv(3, 1, 1), nn.MaxPool1d(3, 2, 1), resize(scale_factor=4, mode="linear"), nn.AvgPool1d(3, 3)),
    nn.Sequential(conv(3, 2, 1), cubic(2), conv(3, 1, 1), cubic(1.5), conv(3, 1, 1)),
    nn.Sequential(conv(3, 1, 1), cubic(0.5, antialias=True), conv(3, 1, 1), cubic(2, "bilinear", True), conv(3, 1, 1)),
    nn.Sequential(conv(3, 1, 1), cubic(1 / 3, antialias=True), conv(3, 1, 1), cubic(2)),
    nn.Sequential(
        conv(3, 1, 1),
        Apply(lambda x: F.interpolate(x, size=x.shape[2] * 3 // 2, mode="linear")),
        conv(3, 2, 1),
        conv(3, 1, 1),
    ),
    nn.Sequential(conv(3, 1, 1), Apply(lambda x: F.interpolate(x, size=x.shape[2] * 2 // 3)), conv(3, 1, 1)),
    Pyramid("linear"),
    Pyramid("nearest", 3),
]


@pytest.mark.parametrize("model", DECODERS)
@pytest.mark.parametrize("length", [LENGTH, LENGTH + 48])
def test_decoders(model, length):
    assert unlike(model, length) == []


HALVES = {
    "pixels to channels": lambda x: x.view(1, 1, 8, 2, 8, 2).permute(0, 1, 3, 5, 2, 4).reshape(1, 4, 8, 8),
    "patches": lambda x: x.reshape(1, 1, 8, 2, 8, 2).permute(0, 2, 4, 3, 5, 1).reshape(1, 64, 4),
    "channels last": lambda x: x.permute(0, 2, 3, 1).reshape(1, 8, 2, 8, 2).permute(0, 1, 3, 2, 4),
}


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("level", [1, 2])
def test_a_reshape_that_cuts_a_grid_makes_longer_steps(name, level):
    rows = analyze(nn.Sequential(nn.Conv2d(1, 1, 3, 1, 1), Apply(HALVES[name])), (1, 16, 16), level=level).rows
    assert rows[-1].j_out == (2, 2)


@pytest.mark.parametrize("level", [1, 2])
def test_windows_and_back(level):
    """Windows of 4x4 and tokens of them, as in shifted-window attention; and tokens put together to a map."""

    def windows(x):
        return x.view(1, 1, 4, 4, 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(16, 16, 1)

    def back(x):
        return x.view(1, 4, 4, 4, 4, 1).permute(0, 5, 1, 3, 2, 4).reshape(1, 1, 16, 16)

    def tokens(x):
        return x.flatten(2).transpose(1, 2).transpose(1, 2).unflatten(2, (16, 16))

    model = nn.Sequential(nn.Conv2d(1, 1, 3, 1, 1), Apply(windows), Apply(back), Apply(tokens), nn.Flatten())
    rows = {row.name: row for row in analyze(model, (1, 16, 16), level=level).rows}
    assert rows["1.reshape"].j_out == (4, 4)
    assert all(rows[name].j_out == (1, 1) for name in ("2.reshape", "3.flatten", "3.unflatten", "4"))


@st.composite
def stacks(draw):
    """Printable layers of a random decoder."""
    steps = []
    for _ in range(draw(st.integers(1, 6))):
        k, s, d = (draw(st.integers(1, n)) for n in (4, 3, 2))
        by = draw(st.sampled_from([2.0, 3.0, 1.5]))
        kind = draw(st.sampled_from(["conv", "conv", "pool", "transposed", "linear", "nearest", "nearest-exact"]))
        steps.append((kind, k, s, d, by))
    return steps


def built(steps):
    """The layers as far as their map stays between a few positions and too many."""
    layers, n = [], LENGTH
    for kind, k, s, d, by in steps:
        layer = {
            "conv": lambda k=k, s=s, d=d: conv(k, s, d * (k - 1) // 2, d),
            "pool": lambda k=k, s=s: nn.MaxPool1d(k, s, k // 2),
            "transposed": lambda k=k, s=s: nn.ConvTranspose1d(1, 1, max(k, s), s),
        }.get(kind, lambda kind=kind, by=by: resize(scale_factor=by, mode=kind))()
        with torch.no_grad():
            m = layer(torch.zeros(1, 1, n)).shape[2]
        if 24 <= m <= 300:
            layers.append(layer)
            n = m
    return nn.Sequential(*layers)


@settings(
    max_examples=120, derandomize=True, database=None, deadline=None, print_blob=False,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(stacks())
def test_random_decoders(steps):
    model = built(steps)
    if len(model):
        assert unlike(model) == []


def banded(x, queries, keys, width=40):
    """Scores before a softmax, where a query sees the keys of some numbers up to its own."""
    scores = x[:, :, queries].transpose(1, 2) @ x[:, :, keys]
    flags = torch.ones(scores.shape[1:], dtype=torch.bool)
    return scores.masked_fill(~(flags.tril() & flags.triu(-width)), -torch.inf) * 2


@pytest.mark.parametrize("shift", [-20, 0, 20])
def test_large_scores_of_keys_that_stand_elsewhere(shift):
    """Not the key of a query's own number need be the nearest to it."""
    queries, keys = (slice(max(0, by), 300 + max(0, by)) for by in (shift, -shift))
    row = analyze(Apply(lambda x: banded(x, queries, keys)), (1, 320)).rows[-1]
    true = [abs(q + shift - k) + 1 for q in range(300) for k in range(max(0, q - 40), q + 1)]
    assert (row.r_min[0], row.r_out[0]) == (min(true), max(true))


def test_larger_scores_of_uneven_keys_are_marked():
    """Beyond what can be written out, a few positions do not tell."""
    row = analyze(Apply(lambda x: banded(x, slice(None, -20), slice(20, None))), (1, 1600)).rows[-1]
    assert not row.aligned
