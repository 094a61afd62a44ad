"""`rfcalc verify`: one line, and an exit code that says whether the table is true."""

import dataclasses

import pytest

NET = """
    from torch import nn
    INPUT_SHAPE = (1, 12, 10)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
"""


def test_a_true_table(rfcalc, write_design):
    found = rfcalc("verify", write_design(NET))
    assert (found.code, found.out, found.err) == (0, "proved: 3 layers, 15 positions, every box equal\n", "")


def test_chosen_layers_and_positions(rfcalc, write_design):
    found = rfcalc("verify", write_design(NET), "--layer", "0", "--layer", "2", "--positions", "2", "--seed", "3")
    assert found.out == "proved: 2 layers, 4 positions, every box equal\n"


@pytest.fixture
def one_off(monkeypatch):
    """The oracle's boxes, one too large."""
    from rfcalc.oracle import Oracle

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
