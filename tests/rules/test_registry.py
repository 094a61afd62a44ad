"""Every registered rule is exercised by a case, so that the gradient oracle (`test_random_networks.py`) has seen it."""

from __future__ import annotations

import pytest
import torch
from networks import CASES

from rfcalc import trace
from rfcalc.report import analyze
from rfcalc.rules import RULES

pytest.importorskip("torchvision")


def known_to_torch(op: str) -> bool:
    """Older torches lack the newest ops."""
    return any(hasattr(space, op) for space in (torch.ops.aten, torch.ops.torchvision, torch.ops.quantized))


@pytest.mark.filterwarnings("ignore")
def test_every_rule_is_reached_by_a_case(monkeypatch):
    seen: set[str] = set()
    failed: set[str] = set()
    apply = trace.Run.apply

    def recorded(self, rule, call, args, kwargs):
        seen.add(call.op)
        fields = apply(self, rule, call, args, kwargs)
        failed.update(self.failed)
        return fields

    monkeypatch.setattr(trace.Run, "apply", recorded)
    for _, make, shape in CASES:
        analyze(make().eval(), shape, level=1)
    newest = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 15)
    missing = {op for op in RULES if op not in seen and (newest or known_to_torch(op))}
    assert missing == set(), "registered, and in no case of networks.py"
    assert failed == set(), "rules that raised on the arguments of a case"
