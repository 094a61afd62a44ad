"""What is done along one dim leaves the other axis alone, on both levels."""

from __future__ import annotations

import pytest
import torch
from programs import Apply
from torch import nn

from rfcalc import analyze


def axial(x, attend):
    """Attention along H, each column for itself."""
    b, c, h, w = x.shape
    columns = x.permute(0, 3, 2, 1).reshape(b * w, h, c)
    return attend(columns).reshape(b, w, h, c).permute(0, 3, 2, 1)


def by_hand(t):
    return (t @ t.transpose(1, 2)).softmax(-1) @ t


@pytest.mark.parametrize(
    ("op", "r_h", "global_h"),
    [
        (lambda x: x + x.cumsum(2), 12, False),
        (lambda x: x + x.flip(2).cumsum(2).flip(2), 12, False),
        (lambda x: x.softmax(2), 8, True),
        (lambda x: x.sort(2)[0], 8, True),
        (lambda x: x - x.mean(2, keepdim=True), 8, True),
        (lambda x: x + x.amax(2, keepdim=True), 8, True),
        (lambda x: nn.functional.normalize(x, dim=2), 8, True),
        (lambda x: nn.functional.layer_norm(x.transpose(2, 3), (8,)).transpose(2, 3), 8, True),
        (lambda x: torch.fft.fft(x, dim=2).real, 8, True),
        (lambda x: axial(x, by_hand), 8, True),
        (lambda x: axial(x, lambda t: nn.functional.scaled_dot_product_attention(t, t, t)), 8, True),
    ],
)
def test_only_the_axis_of_the_dim_changes(op, r_h, global_h):
    model = Apply(lambda x, c: op(c(x)), c=nn.Conv2d(1, 1, 5, padding=2))
    first, second = (analyze(model, (1, 8, 8), level=level) for level in (1, 2))
    assert first.rows == second.rows
    assert all(row.r_out[1] == 5 and not row.is_global[1] for row in first.rows if row.grid == (2, 3))
    last = first.rows[-1]
    assert (last.r_out, last.r_local[1], last.is_global) == ((r_h, 5), 5, (global_h, False))


def test_a_field_as_wide_as_a_small_input_is_no_context():
    """The same op on a larger input has the same answer."""
    model = Apply(lambda x, c: x + c(x).cumsum(2), c=nn.Conv2d(1, 1, 15, padding=7))
    for n in (8, 64):
        last = analyze(model, (1, n, n)).rows[-1]
        assert (last.is_global, last.r_out[1]) == ((False, False), 15)
