"""One design, judged in this process: what the verdict holds, and that a design can do no harm to the next."""

import os
import pickle
import sys
from pathlib import Path

import pytest
import torch

from rfcalc.gate.budget import Budget
from rfcalc.gate.settings import Settings
from rfcalc.gate.verdict import Figures, judge

STEP8 = str(Path(__file__).parents[2] / "models/step8.py")
FIGURES = Figures(
    params=6720,
    trainable_params=6720,
    macs=988_576,
    peak_activation_bytes=76_864,
    rf_output=(28, 28),
    rf_spatial=(18, 18),
    layers=8,
)
NET = """
    from torch import nn
    INPUT_SHAPE = (1, 12, 12)

    class Net(nn.Module):
        def __init__(self, width=4):
            super().__init__()
            self.first = nn.Conv2d(1, width, 3)
        def forward(self, x):
            return self.first(x)
"""
TINY = Budget(max_params=30, min_rf=5)


def test_a_design_that_passes():
    verdict = judge(STEP8)
    assert (verdict.outcome, verdict.error, verdict.violations, verdict.advice) == ("pass", "", (), ())
    assert (verdict.target, verdict.design, verdict.file) == (STEP8, f"{STEP8}:Net", STEP8)
    assert Path(STEP8).read_text().splitlines()[verdict.line - 1].startswith("class Net")
    assert verdict.budget == Budget()
    assert verdict.figures == FIGURES


def test_a_design_that_fails(write_design):
    verdict = judge(write_design(NET), Settings(TINY))
    assert verdict.outcome == "fail"
    assert [(found.limit, found.measured, found.missed_by) for found in verdict.violations] == [
        ("max_params", 40, 10),
        ("min_rf", 3, 2),
    ]
    assert verdict.advice
    assert len(verdict.suits) == 2


def test_remarks_are_left_out_on_request(write_design):
    verdict = judge(write_design(NET), Settings(TINY), remarks=False)
    assert (verdict.outcome, verdict.advice, verdict.cautions, verdict.suits) == ("fail", (), (), ())


def test_a_verdict_travels(write_design):
    verdict = judge(write_design(NET), Settings(TINY))
    assert pickle.loads(pickle.dumps(verdict)) == verdict


@pytest.mark.parametrize("source", ["", "WIDTH = 8", "def forward(x): return x"])
def test_a_file_without_a_design_gets_no_verdict(write_design, source):
    assert judge(write_design(source)) is None


# what is wrong: (source, target, what the error says)
ERRORS = {
    "missing": (NET, "nat.py", "nat.py: no such file; did you mean net.py?"),
    "not Python": ("class Net(", "net.py", "net.py:1: not valid Python"),
    "raises at import": ("import math\nmath.sqrt(-1)", "net.py", "net.py:2: raised at import: ValueError"),
    "exits at import": ("import sys\nsys.exit(3)", "net.py", "net.py:2: raised at import: SystemExit: 3"),
    "exits in the constructor": (
        NET.replace("super()", "raise SystemExit; super()"),
        "net.py",
        "net.py:7: building net.py:Net raised SystemExit",
    ),
    "exits in forward": (
        NET.replace("return self", "raise SystemExit('bye'); return self"),
        "net.py",
        "net.py:Net: forward failed: SystemExit: bye",
    ),
    "raises in forward": (
        NET.replace("return self", "raise ValueError('not\\n today'); return self"),
        "net.py",
        "forward failed: not today",
    ),
    "no such name": (NET, "net.py:Nat", "net.py: has no 'Nat'"),
    "no such module": (NET, "nets:Net", "nets: no module named 'nets'"),
    "no shape": (NET.replace("INPUT_SHAPE", "SHAPE"), "net.py", "net.py:Net: its input shape is not known"),
    "an exception that cannot be told": (
        "class Odd(Exception):\n    def __str__(self): raise ValueError\nraise Odd",
        "net.py",
        "net.py: ValueError",
    ),
}


@pytest.mark.parametrize(("source", "target", "says"), ERRORS.values(), ids=ERRORS)
def test_what_keeps_a_design_from_being_judged(write_design, capfd, source, target, says):
    write_design(source)
    verdict = judge(target)
    assert verdict.outcome == "error"
    assert says in verdict.error
    assert "\n" not in verdict.error
    assert (verdict.target, verdict.design) == (target, target)
    assert verdict.file == (None if target == "nets:Net" else target.partition(":")[0])
    assert (verdict.figures, verdict.violations) == (None, ())
    assert capfd.readouterr() == ("", "")


def test_a_mistake_of_ours_is_told_as_one(write_design, monkeypatch, capfd):
    monkeypatch.setattr("rfcalc.gate.budget.check", lambda *_: {}["a"])
    verdict = judge(write_design(NET), debug=True)
    assert verdict.outcome == "error"
    assert "KeyError: 'a'" in verdict.error
    assert "bug in rfcalc: run again with --debug" in verdict.error
    assert "Traceback" in capfd.readouterr().err


def shaped(**settings) -> Settings:
    return Settings(input_shape=(1, 20, 20), **settings)


# what is known: (source, target, settings, MACs of a 3x3 convolution to 4 channels or the error)
SHAPES = {
    "the design's own": (NET, "net.py", Settings(), 36 * 10 * 10),
    "its own before the settings": (NET, "net.py", shaped(), 36 * 10 * 10),
    "the settings before its own": (NET, "net.py", shaped(input_wins=True), 36 * 18 * 18),
    "only the settings": (NET.replace("INPUT_SHAPE", "SHAPE"), "net.py", shaped(), 36 * 18 * 18),
    "not for a part": (NET, "net.py#first", shaped(), "its input shape is not known"),
    "for this very part": (NET, "net.py#first", shaped(input_wins=True), 36 * 18 * 18),
    "an importable module": (NET, "net:Net", shaped(), 36 * 18 * 18),
    "a layout that does not fit": (NET, "net.py", Settings(layout="TC"), "layout 'TC': 2 letters"),
}


@pytest.mark.parametrize(("source", "target", "settings", "expected"), SHAPES.values(), ids=SHAPES)
def test_the_input_shape_that_applies(write_design, monkeypatch, source, target, settings, expected):
    write_design(source)
    monkeypatch.delitem(sys.modules, "net", raising=False)
    verdict = judge(target, settings)
    if isinstance(expected, str):
        assert expected in verdict.error
    else:
        assert verdict.figures.macs == expected


def test_what_a_design_does_to_the_process_ends_with_it(write_design, capfd):
    plain = judge(write_design(NET))
    rude = """
    import os, torch
    torch.nn.Conv2d = 3
    torch.nn.Module.__call__ = torch.nn.functional.relu = lambda *_: None
    del torch.nn.Linear
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    os.chdir("/")
    os.environ["HOME"] = "elsewhere"
    torch.set_grad_enabled(False)
    print("noise")
    """
    folder, home = os.getcwd(), os.environ.get("HOME")
    assert judge(write_design(rude + NET, "rude.py")).outcome == "error"
    assert (os.getcwd(), os.environ.get("HOME")) == (folder, home)
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_default_device() == torch.device("cpu")
    assert capfd.readouterr().out == ""
    assert judge("net.py") == plain
