"""`rfcalc compare`: what is asked for, where it goes. How it looks: tests/render/test_comparison.py."""

import json
from pathlib import Path

import pytest

NET = """
    from torch import nn
    INPUT_SHAPE = (1, 12, 12)
    print("a design may talk")
    class Net(nn.Module):
        def __init__(self, width=4):
            super().__init__()
            self.first = nn.Conv2d(1, width, 3)
            self.last = nn.Conv2d(width, 2, 3)
        def forward(self, x):
            return self.last(self.first(x))
"""
CONFIG = """
    [tool.rfcalc]
    max_params = 100
    min_rf = 5
    [[tool.rfcalc.design]]
    path = "wide.py"
    max_params = 1000
"""
PARAMS = {"net.py:Net": 40 + 74, "wide.py:Net": 80 + 146, "small.py:Net": 20 + 38}


@pytest.fixture
def nets(write_design):
    """Three designs and a file without one; a budget that only `small` and, by an exception, `wide` keep."""
    write_design(NET)
    write_design(NET.replace("width=4", "width=8"), "wide.py")
    write_design(NET.replace("width=4", "width=2"), "small.py")
    write_design("WIDTH = 8", "constants.py")
    return write_design(CONFIG, "pyproject.toml")


def designs(found) -> dict[str, dict]:
    assert found.code == 0, found.err
    return {design["design"]: design for design in json.loads(found.out)["designs"]}


def test_a_line_per_design_in_their_order(rfcalc, nets):
    found = rfcalc("compare", "wide.py", "net.py", "small.py")
    assert found.code == 0
    heading, _, *lines = found.out.split("\n\n")[0].splitlines()
    assert heading.split() == "design params RF spatial RF MACs activations depth verdict".split()
    assert [line.split()[0] for line in lines] == ["wide.py:Net", "net.py:Net", "small.py:Net"]
    assert [line.split()[1] for line in lines] == ["226", "114", "58"]
    assert [line.split()[-2:] for line in lines] == [["2", "PASS"], ["FAIL", "max-params"], ["2", "PASS"]]
    assert "a design may talk" in found.err


def test_figures_and_the_limits_that_apply_to_each(rfcalc, nets):
    found = designs(rfcalc("compare", ".", "--format", "json"))
    assert {name: design["figures"]["params"] for name, design in found.items()} == PARAMS
    assert found["net.py:Net"]["figures"]["macs"] == 36 * 100 + 72 * 64
    assert found["net.py:Net"]["figures"]["rf_output"] == [5, 5]
    assert found["net.py:Net"]["figures"]["layers"] == 2
    assert {name: design["missed"] for name, design in found.items()} == {
        "net.py:Net": ["max_params"],
        "small.py:Net": [],
        "wide.py:Net": [],
    }


def test_another_config(rfcalc, nets, write_design):
    write_design("[tool.rfcalc]\nmin_rf = 6", "other.toml")
    found = designs(rfcalc("compare", "net.py", "wide.py", "--config", "other.toml", "--format", "json"))
    assert [design["missed"] for design in found.values()] == [["min_rf"], ["min_rf"]]


def test_sorted(rfcalc, nets):
    found = designs(rfcalc("compare", "*.py", "--sort", "params", "--format", "json"))
    assert list(found) == sorted(PARAMS, key=PARAMS.get)


def test_two_are_compared_layer_by_layer(rfcalc, nets):
    found = rfcalc("compare", "net.py", "wide.py")
    assert "net.py:Net -> wide.py:Net\nparams 114 -> 226, +112; MACs 8,208 -> 16,416, +8,208" in found.out
    assert "4 -> 8" in found.out
    assert "->" not in rfcalc("compare", ".").out


def test_input_and_layout(rfcalc, nets, write_design):
    found = designs(rfcalc("compare", "net.py", "wide.py", "--input", "1x8x10", "--format", "json"))
    assert [design["input_shapes"] for design in found.values()] == [[[1, 8, 10]], [[1, 8, 10]]]
    write_design("from torch import nn\nmodel = nn.Linear(4, 2)", "tokens.py")
    found = designs(rfcalc("compare", "tokens.py", "--input", "6x4", "--layout", "TC", "--format", "json"))
    assert found["tokens.py:model"]["figures"]["rf_output"] == [1]


def test_the_config_gives_the_shape_that_a_design_lacks(rfcalc, write_design):
    write_design(NET.replace("INPUT_SHAPE", "SHAPE"))
    write_design(NET, "own.py")
    write_design('[tool.rfcalc]\ninput = "1x20x20"', "pyproject.toml")
    found = designs(rfcalc("compare", "net.py", "own.py", "--format", "json"))
    assert [design["input_shapes"] for design in found.values()] == [[[1, 20, 20]], [[1, 12, 12]]]


def test_csv_into_a_file(rfcalc, nets, tmp_path):
    found = rfcalc("compare", ".", "--format", "csv", "--output", "out.csv")
    assert (found.code, found.out) == (0, "")
    heading, *lines = (tmp_path / "out.csv").read_text().splitlines()
    assert heading.startswith("design,params,")
    assert [line.split(",")[:2] for line in lines] == [
        ["net.py:Net", "114"],
        ["small.py:Net", "58"],
        ["wide.py:Net", "226"],
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nat.py"], "nat.py: no such file"),
        (["net.py", "broken.py"], "broken.py:1: not valid Python"),
        (["net.py", "constants.py:WIDTH"], "constants.py:WIDTH"),
        (["empty"], "empty: no target found: a folder without any Python file"),
        (["no/*.py"], "no/*.py: no target found: matches no Python file"),
        (["hidden"], "hidden: no file here defines a design"),
        (["net.py", "--sort", "parms"], "sort key 'parms': unknown; did you mean params"),
        (["net.py", "--format", "gitub"], "format 'gitub': unknown; did you mean github"),
        (["net.py", "--config", "no.toml"], "no.toml: no such file"),
        (["net.py", "--input", "1x0x3"], "--input"),
        (["net.py", "--layout", "T1"], "--layout"),
        (["net.py", "--output", "no/out.txt"], "no/out.txt: cannot be written"),
        (["net.py", "--input", "3x12x12"], "first (Conv2d)"),
        ([], "Missing argument 'TARGET"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(rfcalc, nets, write_design, tmp_path, arguments, says):
    (tmp_path / "empty").mkdir()
    write_design("x = = 1", "broken.py")
    write_design("class Plain(dict): ...", "hidden/none.py")
    found = rfcalc("compare", *arguments)
    assert found.code == 2
    assert found.out == ""
    assert says in found.err.splitlines()[-1]
    assert sum(line.startswith("rfcalc: ") for line in found.err.splitlines()) == 1
    assert "Traceback" not in found.err


def test_the_latest_run_of_a_design_is_shown(rfcalc, write_design):
    small = write_design(NET.replace("1, 12, 12", "1, 8, 8").replace("self.first(x))", "self.first(x)).mean((2, 3))")
                         .replace("width, 2, 3", "width, 10, 3"))  # fmt: skip
    write_design(NET, "other.py")
    options = ("--dataset", "digits", "--epochs", "1", "--last", "1", "--quiet")
    for target, code in (("99", 1), ("1", 0)):
        assert rfcalc("train", small, *options, "--target", target).code == code
    assert "trained" not in rfcalc("compare", small, "--runs", "elsewhere").out
    found = designs(rfcalc("compare", ".", "--format", "json"))
    assert found["other.py:Net"]["trained"] is None
    told = found["net.py:Net"]["trained"]
    assert (told["data"], told["claim"]["target"], told["verified"]) == ("digits", 1.0, True)
    assert " digits " in rfcalc("compare", ".").out
    Path("runs/net-Net/broken").mkdir()
    Path("runs/net-Net/broken/config.json").write_text("{")
    done = rfcalc("compare", ".")
    assert " digits " in done.out  # a damaged folder hides no other
    assert done.err.startswith("rfcalc: caution: runs/net-Net/broken/config.json: cannot be read as JSON")
    assert done.err.count("rfcalc: ") == 1
    write_design(NET)  # another design now
    assert designs(rfcalc("compare", small, "--format", "json"))["net.py:Net"]["trained"] is None


def test_a_forward_that_exits_is_told(rfcalc, write_design):
    design = write_design(NET.replace("return", "raise SystemExit(0); return"))
    for command in ("compare", "table"):
        found = rfcalc(command, design)
        assert (found.code, found.out) == (2, "")
        assert found.err.splitlines()[-1] == "rfcalc: net.py:Net: forward failed: SystemExit: 0"
    for command in (["summary"], ["train", "--dataset", "digits", "--input", "1x28x28"]):
        found = rfcalc(*command, design)
        assert (found.code, found.out) == (2, "")
        assert found.err.splitlines()[-1] == "rfcalc: a design called sys.exit(0); expected one that does not exit"
