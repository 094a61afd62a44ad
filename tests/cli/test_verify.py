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
    assert (found.code, found.out, found.err) == (0, "proved: 30 boxes are equal, of 3 layers at 15 positions\n", "")


def test_chosen_layers_and_positions(rfcalc, write_design):
    found = rfcalc("verify", write_design(NET), "--layer", "0", "--layer", "2", "--positions", "2", "--seed", "3")
    assert found.out == "proved: 8 boxes are equal, of 2 layers at 4 positions\n"


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


def test_the_first_disagreement_is_named(rfcalc, write_design, one_off):
    found = rfcalc("verify", write_design(NET))
    assert found.code == 1
    assert found.out == "disagrees: 0 at 0,0, axis H: table 0..1, gradient 0..2\n"
    assert found.err == ""


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
    assert (found.code, found.out) == (0, "proved: 20 boxes are equal, of 4 layers at 20 positions\n")


SEQUENCE_FIRST = """
    from torch import nn
    INPUT_SHAPE = (7, 16)
    model = nn.TransformerEncoderLayer(16, 4, 32)
"""


def test_the_layout_holds_for_the_proof_too(rfcalc, write_design):
    found = rfcalc("verify", write_design(SEQUENCE_FIRST), "--layout", "TNC")
    assert (found.code, found.out) == (0, "proved: 55 boxes are equal, of 11 layers at 55 positions\n")


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


@pytest.mark.parametrize(
    ("checks", "unmeasured", "text"),
    [
        ([EQUAL], {}, "proved: 1 box is equal, of 1 layer at 1 position"),
        (
            [EQUAL, LOOSE, LOOSE],
            {"argmax": "no gradient reaches it", "crop": "its map is empty"},
            "proved: 1 box is equal, of 1 layer at 1 position; 1 row is approximate (box contained, not shown equal); "
            "1 row could not be tried: no gradient reaches it (argmax); 1 row could not be tried: its map is empty "
            "(crop)",
        ),
        (
            [LOOSE],
            {},
            "not proved: no box was shown equal; 1 row is approximate (box contained, not shown equal)",
        ),
        (
            [],
            dict.fromkeys("abcde", "no gradient reaches it"),
            "not proved: no box was shown equal; 5 rows could not be tried: no gradient reaches it (a, b, c and 2 "
            "more)",
        ),
        ([EMPTY], {}, "not proved: no box was shown equal"),
        ([], {}, "not proved: no box was shown equal; the table has no rows"),
    ],
)
def test_what_is_said_of_a_proof(checks, unmeasured, text):
    assert proof(checks, unmeasured) == (text, text.startswith("proved"))
