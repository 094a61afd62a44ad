"""`rfcalc verify`: one line, and an exit code that says whether the table is true."""

import dataclasses

import pytest
from rfcalc_cli.verify import proof

from rfcalc.analysis.report import Axis
from rfcalc.proof.boxes import Check

NET = """
    from torch import nn
    INPUT_SHAPE = (1, 12, 10)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
"""


def test_a_true_table(rfcalc, write_design):
    found = rfcalc("verify", write_design(NET))
    assert (found.code, found.err) == (0, "")
    assert found.out.splitlines() == [
        "proved: 30 exact boxes are equal, of 3 layers at 15 positions",
        "  20 unclipped boxes are equal, of 2 layers at 18 positions",
        "  1 row not tried, unclipped: carries the field of a row that was measured (1)",
    ]


def test_chosen_layers_and_positions(rfcalc, write_design):
    found = rfcalc("verify", write_design(NET), "--layer", "0", "--layer", "2", "--positions", "2", "--seed", "3")
    assert found.out.splitlines() == [
        "proved: 8 exact boxes are equal, of 2 layers at 4 positions",
        "  8 unclipped boxes are equal, of 2 layers at 6 positions",
    ]


@pytest.fixture
def one_off(monkeypatch):
    """The oracle's boxes, one too large."""
    from rfcalc.proof.boxes import Oracle

    true = Oracle.check

    def check(*args, **kwargs):
        for found in true(*args, **kwargs):
            low, high = found.measured
            yield dataclasses.replace(found, measured=(low, high + 1))

    monkeypatch.setattr(Oracle, "check", check)


def test_disagreements_are_a_table(rfcalc, write_design, one_off):
    found = rfcalc("verify", write_design(NET))
    assert (found.code, found.err) == (1, "")
    assert [line.split() for line in found.out.splitlines()[1:4]] == [
        ["layer", "position", "axis", "box", "table", "gradient"],
        ["0", "0,0", "H", "exact", "0..1", "0..2"],
        ["0", "0,0", "W", "exact", "0..1", "0..2"],
    ]
    assert found.out.startswith("wrong: 30 boxes disagree with the gradient\n")
    assert "  and 20 more\n" in found.out
    assert "  20 unclipped boxes are equal, of 2 layers at 18 positions\n" in found.out


def test_a_fault_beyond_the_border_is_seen_on_a_longer_input_alone(rfcalc, write_design, monkeypatch):
    """Padding beyond the kernel once repeated the field of the border instead of going on with the grid."""
    from rfcalc.analysis import grids

    def frozen(n, left, right, period, step):
        import numpy as np

        at = np.clip(np.arange(-left, n + right), 0, n - 1)
        return at, np.zeros_like(at), np.zeros_like(at)

    monkeypatch.setattr(grids, "_continuation", frozen)
    net = """
        from torch import nn
        INPUT_SHAPE = (1, 6, 6)
        model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 1, padding=3), nn.Conv2d(1, 1, 3))
    """
    found = rfcalc("verify", write_design(net))
    assert found.code == 1
    wrong = [line.split() for line in found.out.splitlines() if line.startswith("  ") and ".." in line]
    assert {line[3] for line in wrong} == {"unclipped"}
    assert any(line[0] == "2" for line in wrong)


BIG = """
    from torch import nn
    INPUT_SHAPE = (1, 8, 8)
    model = nn.Sequential(*[nn.Conv2d(1, 1, 3, 2, 1) for _ in range(25)])
"""


def test_a_longer_input_that_would_be_too_large_is_said(rfcalc, write_design):
    found = rfcalc("verify", write_design(BIG))
    assert found.code == 0
    assert "25 rows not tried, unclipped: " in found.out
    assert "too large" in found.out


TOKENS = """
    import torch
    from torch import nn
    INPUT_SHAPE = (9,)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places = nn.Embedding(50, 8), nn.Embedding(9, 8)
            self.conv = nn.Conv1d(8, 8, 3)

        def forward(self, ids):
            return self.conv((self.words(ids) + self.places(torch.arange(9))).transpose(1, 2))
"""


def test_designs_that_read_indices_are_proved(rfcalc, write_design):
    found = rfcalc("verify", write_design(TOKENS))
    assert (found.code, found.out.splitlines()[0]) == (
        0,
        "proved: 20 exact boxes are equal, of 4 layers at 20 positions",
    )


SEQUENCE_FIRST = """
    from torch import nn
    INPUT_SHAPE = (7, 16)
    model = nn.TransformerEncoderLayer(16, 4, 32)
"""


def test_the_layout_holds_for_the_proof_too(rfcalc, write_design):
    found = rfcalc("verify", write_design(SEQUENCE_FIRST), "--layout", "TNC")
    assert (found.code, found.out.splitlines()[0]) == (
        0,
        "proved: 55 exact boxes are equal, of 11 layers at 55 positions",
    )


INTEGERS = """
    import torch
    INPUT_SHAPE = (1, 12)

    class Net(torch.nn.Module):
        def forward(self, x):
            return torch.zeros_like(x) + 1
"""


def test_where_no_gradient_comes_nothing_is_proved(rfcalc, write_design):
    found = rfcalc("verify", write_design(INTEGERS))
    assert found.code == 1
    assert found.out.startswith("not proved: no box was shown equal")


AXIS = Axis(0, 2, "L", 9)
EQUAL = Check("conv", (0,), AXIS, (0, 2), (0, 2))
EMPTY = Check("zeros", (0,), AXIS, None, None)
LOOSE = Check("odd", (0,), AXIS, (0, 8), (1, 2), exact=False)
BEYOND = Check("conv", (0,), AXIS, (-1, 2), (-1, 2), kind="unclipped")
WRONG = Check("conv", (0,), AXIS, (-1, 2), (-2, 2), kind="unclipped")
MISSED = Check("odd", (0,), AXIS, (0, 1), (1, 2), exact=False)
ONE = "1 exact box is equal, of 1 layer at 1 position"
NONE = "no box was shown equal"
CONTAINED = "1 row is approximate (box contained, not shown equal): odd"


@pytest.mark.parametrize(
    ("checks", "untried", "lines"),
    [
        ([EQUAL], {}, [f"proved: {ONE}"]),
        ([EQUAL, BEYOND], {}, [f"proved: {ONE}", "1 unclipped box is equal, of 1 layer at 1 position"]),
        ([BEYOND], {}, ["proved: 1 unclipped box is equal, of 1 layer at 1 position"]),
        (
            [EQUAL, LOOSE, LOOSE],
            {"exact": {"argmax": "no gradient"}, "unclipped": {"crop": "its map is empty"}},
            [
                f"proved: {ONE}", CONTAINED, "1 row not tried, exact: no gradient (argmax)",
                "1 row not tried, unclipped: its map is empty (crop)",
            ],
        ),
        ([LOOSE], {}, [f"not proved: {NONE}", CONTAINED]),
        (
            [],
            {"exact": dict.fromkeys("abcde", "no gradient")},
            [f"not proved: {NONE}", "5 rows not tried, exact: no gradient (a, b, c and 2 more)"],
        ),
        ([EMPTY], {}, [f"not proved: {NONE}"]),
        ([], {}, [f"not proved: {NONE}", "the table has no rows"]),
        (
            [EQUAL, WRONG],
            {},
            [
                "wrong: 1 box disagrees with the gradient", "layer  position  axis  box        table  gradient",
                "conv   0         L     unclipped  -1..2  -2..2", ONE,
            ],
        ),
        (
            [MISSED],
            {},
            [
                "wrong: 1 box disagrees with the gradient", "layer  position  axis  box    table  gradient",
                "odd    0         L     exact  0..1   1..2", NONE,
            ],
        ),
    ],
)  # fmt: skip
def test_what_is_said_of_a_proof(checks, untried, lines):
    text, proved = proof(checks, untried)
    assert text.split("\n  ") == lines
    assert proved is lines[0].startswith("proved")
