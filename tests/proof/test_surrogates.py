"""The oracle has a stand-in for every op that needs one, and says of every other that it needs none."""

from __future__ import annotations

import pytest

pytest.importorskip("torchvision")

from rfcalc.analysis.rules import RULES, register
from rfcalc.proof.surrogates import LINEAR, SURROGATES
from rfcalc.proof.surrogates.registry import surrogate


def functions_with_rules():
    """As torch's functions are called: an op of torchvision by its own name.

    What torch computes backwards no forward calls by name: it asks for a `grad`, which has a surrogate.
    """
    reached = {op.split("::")[-1] for op in RULES if "::" not in op or op.startswith("torchvision::")}
    return {op for op in reached if "_backward" not in op or op in SURROGATES}


def test_every_rule_has_a_surrogate_or_is_linear():
    assert sorted(functions_with_rules() - LINEAR - set(SURROGATES)) == []
    assert sorted(LINEAR & set(SURROGATES)) == []
    assert sorted(LINEAR - functions_with_rules()) == []


@pytest.mark.parametrize("name", sorted(RULES)[::40])
def test_no_op_has_two_rules(name):
    with pytest.raises(ValueError, match="has a rule already"):
        register(name, RULES[name])


@pytest.mark.parametrize("name", sorted(SURROGATES)[::40])
def test_no_function_has_two_surrogates(name):
    with pytest.raises(ValueError, match=f"{name} has a surrogate already"):
        surrogate(f"a_new_one {name}")(lambda call: None)
    assert "a_new_one" not in SURROGATES
