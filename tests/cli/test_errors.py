"""Everything a user can get wrong: one line on stderr, nothing on stdout, exit code 2, a traceback only on request."""

import importlib

import pytest

NET = """
    from torch import nn
    INPUT_SHAPE = (1, 28, 28)
    class Net(nn.Module):
        def __init__(self, width=8):
            super().__init__()
            self.first = nn.Conv2d(1, width, 3)
            self.second = nn.Conv2d(width, 10, 5, stride=2)
        def forward(self, x):
            return self.second(self.first(x))
"""
RAISING = NET.replace("return self.second", "raise ValueError('not\\n  today'); return self.second")

CASES = [
    ("file missing", NET, ["table", "nat.py"], "nat.py: no such file; did you mean net.py?"),
    ("a folder", NET, ["table", "."], ".: a folder; expected a Python file"),
    ("not Python", b"\x7fELF\x00\x01", ["table", "net.py"], "net.py"),
    ("syntax error", "x = 1\ny = = 2", ["table", "net.py"], "net.py:2: not valid Python: invalid syntax"),
    ("raising at import", "import math\nmath.sqrt(-1)", ["table", "net.py"], "net.py:2: raised at import: ValueError"),
    ("no design", "x = 1", ["table", "net.py"], "net.py: no design"),
    ("several designs", NET + "    class Other(nn.Module): ...", ["table", "net.py"], "net.py:Net, net.py:Other"),
    ("required arguments", NET.replace("width=8", "width"), ["table", "net.py"], "Net needs argument width"),
    ("wrong channel count", NET, ["table", "net.py", "--input", "3x28x28"], "first (Conv2d)"),
    ("input too small", NET, ["table", "net.py", "--input", "1x4x4"], "second (Conv2d)"),
    ("forward raising", RAISING, ["table", "net.py"], "not"),
    ("a shape of zero", NET, ["table", "net.py", "--input", "0x28x28"], "--input '0x28x28': expected whole numbers"),
    ("a negative shape", NET, ["table", "net.py", "--input", "1x-28x28"], "--input '1x-28x28': expected whole"),
    ("a shape of nan", NET, ["table", "net.py", "--input", "1xnanx28"], "--input '1xnanx28': expected whole"),
    (
        "a shape of inf",
        NET.replace("28, 28", "float('inf'), 28"),
        ["table", "net.py"],
        "net.py: INPUT_SHAPE is (1, inf",
    ),
    ("a malformed shape", NET, ["table", "net.py", "--input", "28,,28"], "as in 1x28x28"),
    ("an empty shape", NET, ["table", "net.py", "--input", ""], "as in 1x28x28"),
    ("no shape", NET.replace("INPUT_SHAPE", "SHAPE"), ["table", "net.py"], "--input 3x224x224"),
    ("no shape for a part", NET, ["table", "net.py#first"], "--input 3x224x224"),
    (
        "unknown column",
        NET,
        ["table", "net.py", "--columns", "name,r_oot"],
        "column 'r_oot': unknown; did you mean r_out",
    ),
    ("unknown format", NET, ["table", "net.py", "--format", "gitub"], "format 'gitub': unknown; did you mean github"),
    ("output in no folder", NET, ["table", "net.py", "--output", "no/out.txt"], "no/out.txt: cannot be written"),
    ("output is a folder", NET, ["table", "net.py", "--output", "."], ".: a folder; expected a file"),
    ("output under a file", NET, ["table", "net.py", "--output", "net.py/out"], "net.py/out: cannot be written"),
    ("both selections", NET, ["table", "net.py", "--all", "--geometry"], "--all and --geometry exclude each other"),
    ("level 3", NET, ["table", "net.py", "--level", "3"], "--level"),
    ("unknown option", NET, ["table", "net.py", "--colour"], "No such option: --colour"),
    ("unknown command", NET, ["tabel"], "No such command 'tabel'"),
    ("no target", NET, ["table"], "Missing argument 'TARGET"),
    ("no layer", NET, ["region", "net.py", "--at", "1,1"], "Missing option '--layer'"),
    ("unknown layer", NET, ["region", "net.py", "--layer", "frist", "--at", "1,1"], "first"),
    ("malformed position", NET, ["region", "net.py", "--layer", "first", "--at", "1;1"], "as in 3,4"),
    ("position outside", NET, ["region", "net.py", "--layer", "first", "--at", "1,26"], "26x26"),
    ("position of one axis", NET, ["region", "net.py", "--layer", "first", "--at", "1"], "26x26"),
    ("verify an unknown layer", NET, ["verify", "net.py", "--layer", "frist"], "first"),
    ("verify with no position", NET, ["verify", "net.py", "--positions", "0"], "--positions"),
    ("summary of a raising forward", RAISING, ["summary", "net.py"], "torchinfo could not run it: ValueError: not"),
    ("summary of nothing", NET, ["summary", "nat.py"], "nat.py: no such file"),
]


@pytest.mark.parametrize(("source", "arguments", "says"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_input_is_one_line_and_exit_code_2(rfcalc, write_design, tmp_path, source, arguments, says):
    write_design(source)
    before = sorted(tmp_path.iterdir())
    found = rfcalc(*arguments)
    assert found.code == 2
    assert found.out == ""
    assert found.err.startswith("rfcalc: ")
    assert found.err.count("\n") == 1
    assert "Traceback" not in found.err
    assert says in found.err
    assert sorted(tmp_path.iterdir()) == before


def test_debug_shows_the_traceback(rfcalc, write_design):
    write_design("1 / 0")
    found = rfcalc("table", "net.py", "--debug")
    assert found.code == 2
    assert "Traceback" in found.err
    assert found.err.splitlines()[-1].startswith("rfcalc: net.py:1: raised at import: ZeroDivisionError")


def test_a_bug_of_ours_says_so(rfcalc, write_design, monkeypatch):
    write_design(NET)
    monkeypatch.setattr("rfcalc.render.table._totals", lambda *_: {}["a\nb"])
    found = rfcalc("table", "net.py")
    assert (found.code, found.out, found.err.count("\n")) == (3, "", 1)
    assert "KeyError" in found.err
    assert "bug in rfcalc: run again with --debug" in found.err


def test_an_interrupt_is_silent(rfcalc, write_design):
    write_design("raise KeyboardInterrupt")
    found = rfcalc("table", "net.py")
    assert (found.code, found.out, found.err) == (130, "", "")


@pytest.mark.parametrize("level", ["1", "2"])
@pytest.mark.parametrize(
    ("home", "entry"),
    [
        ("rfcalc.analysis.rules.work.WORK", "conv_transpose2d"),
        ("rfcalc.analysis.refusals.REFUSALS", "conv_transpose2d"),
        ("rfcalc.analysis.layout._LAYOUTS", "conv_transpose2d"),
    ],
)
def test_a_fault_of_ours_is_not_blamed_on_the_design(rfcalc, write_design, monkeypatch, home, entry, level):
    """A table that the analysis looks into outside of its rules, where it would only be taken for an unknown op."""
    write_design(NET.replace("nn.Conv2d(width, 10, 5, stride=2)", "nn.ConvTranspose2d(width, 10, 5)"))
    module, _, table = home.rpartition(".")
    monkeypatch.setitem(getattr(importlib.import_module(module), table), entry, "no function")
    found = rfcalc("table", "net.py", "--level", level)
    assert (found.code, found.out) == (3, "")
    assert found.err.startswith("rfcalc: TypeError: 'str' object is not callable (")
    assert "this is a bug in rfcalc" in found.err
    assert "forward failed" not in found.err
