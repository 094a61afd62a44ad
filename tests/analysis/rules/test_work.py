"""Multiply-accumulates: rows add up to the total, and what torch's own counter does not know is counted by hand."""

from __future__ import annotations

import pytest
import torch
from cases import CASES
from programs import Apply
from torch import nn
from torchvision.ops import DeformConv2d

from rfcalc.analysis.analyze import analyze


@pytest.mark.filterwarnings("ignore")
def test_rows_add_up_to_the_total():
    for name, make, shape in CASES:
        report = analyze(make().eval(), shape)
        assert sum(row.macs for row in report.rows) == report.macs, name


def packed(x, layer):
    steps = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([x.shape[1]]), batch_first=True)
    return nn.utils.rnn.pad_packed_sequence(layer(steps)[0], batch_first=True)[0]


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("both", [False, True])
def test_a_packed_sequence_is_as_much_work_as_a_plain_one(level, kind, both):
    layer = kind(4, 5, batch_first=True, bidirectional=both)
    plain = analyze(Apply(lambda x, layer: layer(x)[0], layer=layer), (7, 4), level=level, layout="TC")
    report = analyze(Apply(packed, layer=layer), (7, 4), level=level, layout="TC")
    assert report.macs == plain.macs == 7 * sum(p.numel() for p in layer.parameters() if p.ndim == 2)
    assert sum(row.macs for row in report.rows) == report.macs
    assert report.rf_output == plain.rf_output
    for position in range(7):
        ends = [r.region(r.rows[-1], (position,))[0].exact for r in (plain, report)]
        assert ends[0] == ends[1] == ((0, 6) if both else (0, position))


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize(
    ("forward", "parts", "shape", "macs"),
    [
        (
            lambda x, offsets, conv: conv(x, offsets(x)),
            {"offsets": nn.Conv2d(4, 18, 1), "conv": DeformConv2d(4, 6, 3, padding=1, groups=2)},
            (4, 5, 6),
            30 * 18 * 4 + 30 * 6 * 2 * 9,
        ),
        (lambda x, pair: pair(x, x.flip(1)), {"pair": nn.Bilinear(4, 4, 5)}, (7, 4), 7 * 5 * 4 * 4),
        (lambda x, conv: x + conv(torch.ones(1, 1, 4, 4)), {"conv": nn.Conv2d(1, 1, 1)}, (1, 4, 4), 0),
        (lambda x, w: x @ (w.weight @ w.weight), {"w": nn.Linear(4, 4)}, (7, 4), 7 * 4 * 4),
    ],
)
def test_work_by_hand(level, forward, parts, shape, macs):
    """A product of weights alone is no work of the forward: no input reaches it, and it has no row."""
    report = analyze(Apply(forward, **parts), shape, level=level)
    assert report.macs == macs == sum(row.macs for row in report.rows)
