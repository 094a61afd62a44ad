"""Products and attention: what merges and what stays. Axis 0 of the left factor's rows, and so on, by hand."""

from __future__ import annotations

import pytest
import torch

from rfcalc.analysis.rules import Value


@pytest.mark.parametrize(
    ("op", "a", "b", "out", "exact"),
    [
        ("mm", (2, 3), (3, 2), (2, 2), ([(0, 0), (0, 0), (1, 1), (1, 1)], [(0, 2)] * 4)),
        ("matmul", (2, 3), (4, 3, 1), (4, 2, 1), ([(0, 0), (1, 1)] * 4, [(0, 2)] * 8)),
        ("mv", (2, 3), (3,), (2,), ([(0, 0), (1, 1)], [(0, 2)] * 2)),
        ("linear", (2, 3), (4, 3), (2, 4), ([(0, 0)] * 4 + [(1, 1)] * 4, [(0, 2)] * 8)),
    ],
)
def test_left_factor(rules, op, a, b, out, exact):
    assert rules.run(op, out, rules.image(*a, axes=(0, 1)), rules.weight(*b)).exact == exact


@pytest.mark.parametrize(
    ("op", "a", "b", "out", "exact"),
    [
        ("mm", (2, 3), (3, 2), (2, 2), ([(0, 2)] * 4, [(0, 0), (1, 1)] * 2)),
        ("matmul", (4, 2, 3), (3, 2), (4, 2, 2), ([(0, 2)] * 16, [(0, 0), (1, 1)] * 8)),
        ("matmul", (3,), (3, 2), (2,), ([(0, 2)] * 2, [(0, 0), (1, 1)])),
    ],
)
def test_right_factor(rules, op, a, b, out, exact):
    assert rules.run(op, out, rules.weight(*a), rules.image(*b, axes=(0, 1))).exact == exact


def test_both_factors_and_the_base(rules):
    a, b = rules.image(2, 3, axes=(0,)), Value((3, 2), rules.image(2, 3, axes=(0,)).field)
    assert rules.run("dot", (), rules.image(3, axes=(0,)), rules.weight(3)).exact == ([(0, 2)],)
    got = rules.run("addmm", (2, 2), rules.image(2, 2, axes=(1,)), a, rules.weight(3, 2))
    assert got.exact == ([(0, 0), (0, 1), (0, 1), (1, 1)],)  # its column of the base, its row of a
    assert rules.run("mm", (2, 2), a, Value((3, 2), b.field)).exact == ([(0, 1), (0, 1), (0, 1), (0, 1)],)
    assert rules.run("outer", (2, 3), rules.image(2, axes=(0,)), rules.weight(3)).exact == (
        [(0, 0)] * 3 + [(1, 1)] * 3,
    )
    assert rules.run("outer", (3, 2), rules.weight(3), rules.image(2, axes=(0,))).exact == ([(0, 0), (1, 1)] * 3,)
    crossed = rules.run("linalg_cross", (2, 3), rules.image(2, 3, axes=(0, 1)), rules.weight(2, 3))
    assert crossed.exact == ([(0, 0)] * 3 + [(1, 1)] * 3, [(0, 2)] * 6)
    both = rules.run("bilinear", (2, 5), rules.image(2, 3, axes=(0, 1)), rules.weight(2, 4), rules.weight(5, 3, 4))
    assert both.exact == ([(0, 0)] * 5 + [(1, 1)] * 5, [(0, 2)] * 10)


T = 3
BAND = torch.tensor([[True, True, False], [False, True, False], [False, True, True]])


@pytest.mark.parametrize(
    ("mask", "causal", "seen"),
    [
        (None, False, [(0, 2)] * 3),
        (None, True, [(0, 0), (0, 1), (0, 2)]),
        (BAND, False, [(0, 1), (1, 1), (1, 2)]),
        (torch.zeros(3, 3).masked_fill(~BAND, float("-inf")), False, [(0, 1), (1, 1), (1, 2)]),
    ],
)
def test_attention_to_memory(rules, mask, causal, seen):
    """Keys and values carry the axis, queries nothing."""
    memory = rules.image(1, T, 1, axes=(1,))
    allowed = None if mask is None else rules.const(mask)
    got = rules.run(
        "scaled_dot_product_attention", (1, T, 1), rules.weight(1, T, 1), memory, memory, allowed, 0.0, causal
    )
    assert got.exact == (seen,)


def test_attention_to_itself(rules):
    x = rules.image(1, T, 1, axes=(1,))
    run = rules.run("scaled_dot_product_attention", (1, T, 1), x, x, x, None, 0.0, True)
    assert run.exact == ([(0, 0), (0, 1), (0, 2)],)
    only_queries = rules.run("scaled_dot_product_attention", (1, T, 1), x, rules.weight(1, 5, 1), rules.weight(1, 5, 1))
    assert only_queries.exact == ([(0, 0), (1, 1), (2, 2)],)


def test_causal_attention_to_a_longer_memory(rules):
    memory = rules.image(1, 4, 1, axes=(1,))
    got = rules.run(
        "scaled_dot_product_attention", (1, 2, 1), rules.weight(1, 2, 1), memory, memory, None, 0.0, is_causal=True
    )
    assert got.exact == ([(0, 0), (0, 1)],)


def test_the_kernel_of_the_cpu_takes_its_mask_by_name(rules):
    x = rules.weight(1, 1, 2, 3)
    out, _ = rules.run(
        "_scaled_dot_product_flash_attention_for_cpu", [(1, 1, 2, 3), (1, 2, 1)], x, x, x, 0.0, False,
        attn_mask=rules.image(1, 1, 2, 2, axes=(2, 3)),
    )  # fmt: skip
    assert out.exact == ([(0, 0)] * 3 + [(1, 1)] * 3, [(0, 1)] * 6)
