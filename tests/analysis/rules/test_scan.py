"""Ops that run along a dim: cumulative ops and recurrent layers."""

from __future__ import annotations

import pytest

PREFIX, SUFFIX, ALL = [(0, 0), (0, 1), (0, 2)], [(0, 2), (1, 2), (2, 2)], [(0, 2)] * 3


@pytest.mark.parametrize("op", ["cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"])
def test_cumulative(rules, op):
    out = [(3, 2), (3, 2)] if op in ("cummax", "cummin") else (3, 2)
    got = rules.run(op, out, rules.image(3, 2, axes=(0, 1)), 0)
    for answer in got if isinstance(got, list) else [got]:
        assert answer.exact == ([p for p in PREFIX for _ in (0, 1)], [(0, 0), (1, 1)] * 3)
    assert rules.run("cumsum", (3, 2), rules.image(3, 2, axes=(0,)), 1).exact == (
        [(i, i) for i in range(3) for _ in (0, 1)],
    )


# x is (time, batch, features) or (batch, time, features); the axis is time.
@pytest.mark.parametrize("op", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    ("layers", "bidirectional", "first", "second"),
    [(1, False, PREFIX, PREFIX), (2, False, PREFIX, PREFIX), (1, True, PREFIX, SUFFIX), (2, True, ALL, ALL)],
)
def test_recurrent(rules, op, batch_first, layers, bidirectional, first, second):
    """One feature per direction (two where there is one direction)."""
    shape, time = ((1, 3, 2), 1) if batch_first else ((3, 1, 2), 0)
    states = [(1, 1, 2)] * (2 if op == "lstm" else 1)
    out, *ends = rules.run(
        op, [shape, *states], rules.image(*shape, axes=(time,)), [rules.weight(1, 1, 2)], [],
        True, layers, 0.0, False, bidirectional, batch_first,
    )  # fmt: skip
    assert out.exact == ([v for pair in zip(first, second, strict=True) for v in pair],)
    assert all(e.exact == ([(0, 2)] * 2,) for e in ends)
