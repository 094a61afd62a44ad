"""Losses: which elements one number of them is made of."""

from __future__ import annotations

import pytest
import torch

from rfcalc.analysis.rules import RULES, Call, Value


def backwards(rules, n):
    return Value((1, n), RULES["flip"](Call("flip", ((1, n),)), rules.image(1, n, axes=(1,)), [1]))


@pytest.mark.parametrize("op", ["mse_loss", "smooth_l1_loss", "huber_loss", "soft_margin_loss"])
def test_element_by_element_or_reduced(rules, op):
    x, y = rules.image(1, 3, axes=(1,)), backwards(rules, 3)
    assert rules.run(op, (1, 3), x, y, 0).exact == ([(0, 2), (1, 1), (0, 2)],)
    assert rules.run(op, (), x, y, 1).exact == ([(0, 2)],)
    assert rules.run(op, (1, 3), x, rules.const(torch.zeros(1, 3)), 0).exact == ([(0, 0), (1, 1), (2, 2)],)
    assert rules.run(op, (2, 3), x, rules.const(torch.zeros(2, 1)), 0).exact == ([(0, 0), (1, 1), (2, 2)] * 2,)


def test_the_score_of_a_known_class(rules):
    scores = rules.image(2, 3, axes=(1,))
    picked, total = rules.run("nll_loss_forward", [(2,), ()], scores, rules.const([2, -100]), None, 0, -100)
    assert (picked.exact, total) == (([(2, 2), None],), None)
    assert rules.run("nll_loss_forward", [(), ()], scores, rules.const([2, 1]), None, 1, -100)[0].exact == ([(1, 2)],)


def test_the_score_of_a_class_from_the_data(rules):
    scores = rules.image(2, 3, axes=(1,))
    picked, total = rules.run("nll_loss_forward", [(2,), ()], scores, rules.image(2, axes=(0,)), None, 1, -100)
    assert picked.exact == ([(0, 2)] * 2,)
    assert total.exact == ([(0, 1)],)


def test_margins_compare_every_score(rules):
    scores = rules.image(2, 3, axes=(0,))
    assert rules.run("multi_margin_loss", (2,), scores, rules.const([0, 1]), 1, 1.0, None, 0).exact == (
        [(0, 0), (1, 1)],
    )
    assert rules.run("multi_margin_loss", (), scores, rules.const([0, 1])).exact == ([(0, 1)],)


def test_truth_of_everything(rules):
    assert rules.run("_is_all_true", (), rules.image(2, 3, axes=(1,))).exact == ([(0, 2)],)
