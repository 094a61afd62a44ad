"""Weights, biases and statistics that are made of the input. That each rule takes them in, the cases prove."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rfcalc import analyze


def test_a_parameter_lies_along_its_channels(rules):
    c = rules.image(2, axes=(0,))
    out = rules.run("conv1d", (1, 2, 3), rules.weight(1, 4, 5), rules.weight(2, 4, 3), c)
    assert out.exact == ([(0, 0)] * 3 + [(1, 1)] * 3,)
    table = rules.image(3, 2, axes=(0, 1))
    picked = rules.run("embedding", (2, 2), table, rules.const([2, 0]))
    assert picked.exact == ([(2, 2)] * 2 + [(0, 0)] * 2, [(0, 0), (1, 1)] * 2)


def test_transposed_weights_are_laid_out_by_group(rules):
    weight = rules.image(4, 3, 2, axes=(0, 1))
    out = rules.run("conv_transpose1d", (1, 6, 2), rules.weight(1, 4, 1), weight, None, 1, 0, 0, 2)
    assert out.exact == ([(0, 1)] * 6 + [(2, 3)] * 6, [(i // 2, i // 2) for i in (*range(6), *range(6))])


@pytest.mark.parametrize(("op", "args"), [("native_layer_norm", ([4, 6],)), ("native_group_norm", (1, 4, 6, 2))])
def test_norms_give_their_statistics(rules, op, args):
    x = rules.image(1, 4, 6, axes=(1, 2))
    shape = (1, 1, 1) if op == "native_layer_norm" else (1, 2)
    given = (args[0], None, None, 1e-5) if op == "native_layer_norm" else (None, None, *args, 1e-5)
    _, mean, deviation = rules.run(op, [(1, 4, 6), shape, shape], x, *given)
    channels = [(0, 3)] if op == "native_layer_norm" else [(0, 1), (2, 3)]
    assert mean.exact == deviation.exact == (channels, [(0, 5)] * len(channels))


class Statistics(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        mean, deviation = torch.zeros(2), torch.ones(2)
        self.norm(x, mean, deviation)
        return mean + 1


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize(
    "norm",
    [lambda *a: F.batch_norm(*a, training=True), F.instance_norm, lambda x, m, v: torch.native_batch_norm(
        x, None, None, m, v, True, 0.1, 1e-5)],
)  # fmt: skip
def test_training_writes_running_statistics(norm, level):
    assert analyze(Statistics(norm), (2, 5), level=level).coverage == (1.0,)
