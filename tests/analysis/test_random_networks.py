"""The analysis against the gradient oracle: random networks and one case per op, on both levels, exactly."""

from __future__ import annotations

import warnings

import pytest
from cases import CASES
from hypothesis import given, settings
from programs import Program, programs
from torch import nn

from rfcalc import Report, analyze
from rfcalc.proof.oracle import prepare

POSITIONS = 4  # a corner, an edge, the centre, the far corner


pytestmark = pytest.mark.usefixtures("one_thread")


def both_levels(model: nn.Module, shape) -> Report:
    first, second = analyze(model, shape, level=1), analyze(model, shape, level=2)
    assert second.to_dict() == first.to_dict(), "the two levels disagree"
    return second


def disagreements(model: nn.Module, shape, report: Report) -> list[str]:
    oracle = prepare(model, shape, report)
    return [
        f"{c.layer} at {c.position}, axis {c.axis.name}: report {c.expected}, gradient {c.measured}"
        for c in oracle.check(report, positions=POSITIONS)
        if not c.agrees
    ]


@settings(max_examples=500)
@given(programs())
def test_random_networks(program: Program):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own advice about odd paddings and tiny variances
        model = program.build()
        assert disagreements(model, program.shape, both_levels(model, program.shape)) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "make", "shape"), CASES, ids=[c[0] for c in CASES])
def test_case(name, make, shape):
    model = make().eval()
    assert disagreements(model, shape, both_levels(model, shape)) == []


def test_case_names_are_unique():
    names = [c[0] for c in CASES]
    assert len(names) == len(set(names))
