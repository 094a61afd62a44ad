"""Ops that put tensors beside each other."""

from __future__ import annotations

import pytest

from rfcalc.analysis.rules import RULES, Call, Value


def shifted(rules, n, by):
    """A signal of length n that reads `by` samples further on."""
    x = rules.image(1, n + by, axes=(1,))
    return Value((1, n), RULES["slice"](Call("slice", ((1, n),)), x, 1, by, n + by))


@pytest.mark.parametrize(
    ("op", "out", "dim", "exact"),
    [
        ("cat", (1, 5), 1, [0, 1, 3, 4, None]),
        ("cat", (1, 5), -1, [0, 1, 3, 4, None]),
    ],
)
def test_cat(rules, op, out, dim, exact):
    """Two samples, two that start at 3, and one constant."""
    got = rules.run(op, out, [shifted(rules, 2, 0), shifted(rules, 2, 3), rules.weight(1, 1)], dim)
    assert got.exact == ([v if v is None else (v, v) for v in exact],)


def test_cat_along_another_dim(rules):
    got = rules.run("cat", (3, 2), [shifted(rules, 2, 0), rules.weight(1, 2), shifted(rules, 2, 3)], 0)
    assert got.exact == ([(0, 0), (1, 1), None, None, (3, 3), (4, 4)],)


@pytest.mark.parametrize(
    ("dim", "out", "exact"),
    [(0, (2, 1, 2), [0, 1, 3, 4]), (1, (1, 2, 2), [0, 1, 3, 4]), (-1, (1, 2, 2), [0, 3, 1, 4])],
)
def test_stack(rules, dim, out, exact):
    got = rules.run("stack", out, [shifted(rules, 2, 0), shifted(rules, 2, 3)], dim)
    assert got.exact == ([(v, v) for v in exact],)


@pytest.mark.parametrize(("indexing", "shape"), [("ij", (2, 3)), ("xy", (3, 2))])
def test_meshgrid(rules, indexing, shape):
    items = [rules.image(2, axes=(0,)), rules.weight(3)]
    got, other = rules.run("meshgrid", [shape, shape], items, indexing=indexing)
    along = 0 if indexing == "ij" else 1
    cells = [(i, j) for i in range(shape[0]) for j in range(shape[1])]
    assert got.exact == ([(c[along], c[along]) for c in cells],)
    assert other is None
