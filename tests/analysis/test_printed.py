"""What else a row prints, each against a law of its own: J, start, padding, N, coverage, R without context, MACs."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from cases import CASES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import Apply, Program, programs
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rfcalc import analyze
from rfcalc.proof.oracle import prepare

law = settings(
    max_examples=60, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)  # fmt: skip


@st.composite
def stacks(draw):
    """Kernel, stride, padding and dilation of a few convolutions in a row."""
    number = st.integers
    return draw(st.lists(st.tuples(number(1, 4), number(1, 2), number(0, 3), number(1, 2)), min_size=1, max_size=4))


@law
@given(stacks())
def test_jump_start_and_padding_of_a_plain_stack(layers):
    """J is how far neighbouring centres of the unclipped field lie apart, the rest is read off its first position."""
    model = nn.Sequential(*[nn.Conv1d(1, 1, k, s, p, d) for k, s, p, d in layers])
    report = analyze(model, (1, 64))
    jump, start, over = 1, 0.5, 0
    for row, (k, s, p, d) in zip(report.rows, layers, strict=True):
        start += ((k - 1) * d / 2 - p) * jump
        over += p * jump
        jump *= s
        boxes = [report.region(row.name, (i,))[0].unclipped for i in range(row.n_out[0])]
        centres = [(low + high) / 2 + 0.5 for low, high in boxes]
        assert {b - a for a, b in itertools.pairwise(centres)} == {float(row.j_out[0])} == {jump}
        assert row.start == (start,) == (centres[0],)
        assert row.effective_padding == (over,) == (-boxes[0][0],)


@law
@given(programs())
def test_shapes_and_coverage_of_random_networks(program: Program):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = program.build().eval()
        report = analyze(model, program.shape)
        if not report.rows:
            return
        with torch.no_grad():
            out = model(torch.rand(1, *program.shape))
        assert report.output_shapes[0] == tuple(out.shape)
        last = report.rows[-1]
        oracle = prepare(model, program.shape, report, layers=[last.name])
    if oracle.outputs[last.call] is None or last.shape_out != report.output_shapes[0]:
        return
    assert last.n_out == (tuple(out.shape[d] for d in last.grid) or (1,) * len(report.axes))
    for axis, covered, touched in zip(
        report.axes, report.coverage, oracle.touched(last.call, (), (), report.axes), strict=True
    ):
        seen = [] if touched is None else touched.nonzero().flatten().tolist()
        assert covered * axis.size == pytest.approx(seen[-1] - seen[0] + 1 if seen else 0)


class Gated(nn.Module):
    """A block whose context may be taken away."""

    def __init__(self, gate, norm):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.gate, self.norm = gate, norm

    def forward(self, x):
        y = self.norm(self.a(x))
        return self.b(self.gate(y)) + y


def excited():
    return Apply(lambda x, c: x * c(x.mean((2, 3), keepdim=True)).sigmoid(), c=nn.Conv2d(4, 4, 1))


@pytest.mark.parametrize(
    ("gate", "norm"),
    [
        (excited(), nn.Identity()), (nn.Identity(), nn.GroupNorm(2, 4)), (excited(), nn.GroupNorm(1, 4)),
        (excited(), nn.InstanceNorm2d(4)),
    ],
)  # fmt: skip
def test_the_local_field_is_that_without_the_context(gate, norm):
    """R_local is R of the same network where gates and statistics are left out; the others see the whole input."""
    with_context = nn.Sequential(nn.Conv2d(1, 4, 3, 1, 1), Gated(gate, norm), nn.Conv2d(4, 1, 3, 1, 1))
    without = nn.Sequential(with_context[0], Gated(nn.Identity(), nn.Identity()), with_context[2])
    found, plain = analyze(with_context, (1, 32, 40)), analyze(without, (1, 32, 40))
    for row in plain.rows:
        assert row.r_local == row.r_out
        assert not any(row.is_global)
        assert found.row(row.name).r_local == row.r_out
    last = found.rows[-1]
    assert last.is_global == found.output_global == (True, True)
    assert last.r_out == found.rf_output == (32, 40)
    assert found.rf_spatial == plain.rf_spatial == plain.rf_output


COUNTED = ("conv", "linear", "addmm", "baddbmm", "bmm", "matmul", "mm")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "shape"), [pytest.param(*c[1:], id=c[0]) for c in CASES if c[0].lower().startswith(COUNTED)]
)
def test_macs_are_half_of_what_torch_counts(make, shape):
    model = make().eval()
    report = analyze(model, shape)
    if len(report.input_shapes) > 1:
        pytest.skip("several inputs")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.rand(1, *shape))
    if not counter.get_total_flops():
        pytest.skip("torch counts nothing here")
    assert report.macs == counter.get_total_flops() // 2
