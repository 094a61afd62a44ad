"""Element by element: hulls with broadcasting, and what sets elements to a constant."""

from __future__ import annotations

import math

import pytest
import torch

from rfcalc.analysis.rules import RULES, Call, Value, elementwise, unknown

I3 = [(0, 0), (1, 1), (2, 2)]


def reversed_(rules, n):
    x = rules.image(n, axes=(0,))
    return Value((n,), RULES["flip"](Call("flip", ((n,),)), x, [0]))


@pytest.mark.parametrize("op", ["sub", "maximum", "eq", "lerp", "add", "mul", "div"])
def test_two_operands(rules, op):
    got = rules.run(op, (3,), rules.image(3, axes=(0,)), reversed_(rules, 3))
    assert got.exact == ([(0, 2), (1, 1), (0, 2)],)


@pytest.mark.parametrize("op", ["relu", "clamp", "to", "clone", "detach", "prelu"])
def test_one_operand(rules, op):
    assert rules.run(op, (3,), rules.image(3, axes=(0,)), 0.5).exact == (I3,)


def test_broadcasting(rules):
    got = rules.run("add", (2, 3), rules.image(2, 1, axes=(0,)), reversed_(rules, 3))
    assert got.exact == ([(0, 2), (0, 1), (0, 0), (1, 2), (1, 1), (0, 1)],)


@pytest.mark.parametrize(
    ("op", "args", "exact"),
    [
        ("masked_fill", (torch.tensor([True, False, False]), 0.0), [None, (1, 1), (2, 2)]),
        ("masked_fill", (torch.tensor([False] * 3), 0.0), I3),
    ],
)
def test_masks(rules, op, args, exact):
    assert rules.run(op, (3,), rules.image(3, axes=(0,)), rules.const(args[0]), *args[1:]).exact == (exact,)


def test_where(rules):
    x, y = rules.image(3, axes=(0,)), reversed_(rules, 3)
    flags = rules.const([True, False, True])
    assert rules.run("where", (3,), flags, x, y).exact == ([(0, 0), (1, 1), (2, 2)],)
    assert rules.run("where", (3,), flags, y, x).exact == ([(2, 2), (1, 1), (0, 0)],)
    assert rules.run("where", (3,), flags, x, 0.0).exact == ([(0, 0), None, (2, 2)],)
    assert rules.run("where", (3,), flags, rules.weight(3), x).exact == ([None, (1, 1), None],)
    assert rules.run("where", (3,), rules.weight(3), x, y).exact == ([(0, 2), (1, 1), (0, 2)],)  # unknown flags


@pytest.mark.parametrize(
    ("op", "diagonal", "kept"),
    [("tril", 0, [1, 0, 0, 1, 1, 0]), ("tril", 1, [1, 1, 0, 1, 1, 1]), ("triu", 0, [1, 1, 1, 0, 1, 1]),
     ("triu", 1, [0, 1, 1, 0, 0, 1])],
)  # fmt: skip
def test_triangles(rules, op, diagonal, kept):
    got = rules.run(op, (2, 3), rules.image(2, 3, axes=(0,)), diagonal)
    assert got.exact == ([(i // 3, i // 3) if k else None for i, k in enumerate(kept)],)


def test_constants_and_copies(rules):
    x, y = rules.image(3, axes=(0,)), reversed_(rules, 3)
    assert rules.run("rand_like", (3,), x) is None
    assert rules.run("fill", (3,), x, 1.0) is None
    assert rules.run("copy", (3,), x, y).exact == ([(2, 2), (1, 1), (0, 0)],)


def test_glu(rules):
    assert rules.run("glu", (2,), rules.image(4, axes=(0,))).exact == ([(0, 2), (1, 3)],)


def test_embedding(rules):
    assert rules.run("embedding", (2, 3), rules.weight(9, 3), rules.image(2, axes=(0,))).exact == (
        [(0, 0)] * 3 + [(1, 1)] * 3,
    )


def test_infinity_survives_a_sum_a_scale_and_a_copy(rules):
    """Additive masks: what is -inf stays so, and a softmax skips it."""
    mask = rules.const(torch.tensor([0.0, -math.inf, 0.0]))
    field = RULES["add"](Call("add", ((3,),)), rules.image(3, axes=(0,)), mask)
    for op, args in (("mul", (2.0,)), ("clone", ()), ("add", (1.0,))):
        field = RULES[op](Call(op, ((3,),)), Value((3,), field), *args)
    assert rules.run("softmax", (3,), Value((3,), field), 0).exact == ([(0, 2), None, (0, 2)],)


def test_an_unknown_op_is_named_and_sees_everything(rules):
    x = rules.image(3, axes=(0,))
    answer = rules.read(unknown(Call("mystery", ((3,),)), x), (3,))
    assert answer.exact == ([(0, 2)] * 3,)
    assert answer.approx == {"mystery"}
    assert rules.read(elementwise(Call("tan", ((3,),)), x), (3,)).exact == (I3,)
