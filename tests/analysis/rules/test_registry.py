"""Every registered rule is exercised by a case, so that the gradient oracle (`test_random_networks.py`) has seen it."""

from __future__ import annotations

import doctest

import pytest
import torch
from cases import CASES

from rfcalc.analysis.analyze import analyze
from rfcalc.analysis.rules import RULES, register, registry, rule, values
from rfcalc.analysis.run import Run
from rfcalc.analysis.values import RuleError

pytest.importorskip("torchvision")


def known_to_torch(op: str) -> bool:
    """Older torches lack the newest ops."""
    space, _, name = op.rpartition("::")
    return hasattr(getattr(torch.ops, space or "aten"), name)


@pytest.mark.filterwarnings("ignore")
def test_every_rule_is_reached_by_a_case(monkeypatch):
    seen: set[str] = set()
    failed: set[str] = set()
    interpret = Run.interpret

    def recorded(rule, call, *args, **kwargs):
        seen.add(call.op)
        try:
            return interpret(rule, call, *args, **kwargs)
        except RuleError:
            if any(v.field is not None for v in values((*args, *kwargs.values()))):
                failed.add(call.op)  # of a constant nothing is asked but how to write to it
            raise

    monkeypatch.setattr(Run, "interpret", staticmethod(recorded))
    for _, make, shape in CASES:
        analyze(make().eval(), shape, level=1)
    newest = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 15)
    # Quantized ops need a machine with an engine for them; those of a user's own have other tests.
    ours = [op for op in RULES if op.split("::")[0] not in ("quantized", "prims", "rfcalc_example")]
    missing = {op for op in ours if op not in seen and (newest or known_to_torch(op))}
    assert missing == set(), "registered, and in no case of tests/cases"
    assert failed == set(), "rules that raised on the arguments of a case"


def test_the_example_of_the_docstring_runs():
    failed, tried = doctest.testmod(registry)
    assert (failed, tried > 5) == (0, True)
    del RULES["rfcalc_example::twice"]


@pytest.mark.parametrize("op", ["relu", "aten::relu", "torchvision::nms"])
def test_a_second_rule_for_an_op_is_refused(op):
    before = RULES[op.removeprefix("aten::")]
    with pytest.raises(ValueError, match=f"{op.removeprefix('aten::')} has a rule already"):
        register(op, lambda call, x: x.field)
    with pytest.raises(ValueError, match="has a rule already"):
        rule(op)(lambda call, x: x.field)
    assert RULES[op.removeprefix("aten::")] is before
