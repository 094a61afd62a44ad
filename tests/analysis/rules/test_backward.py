"""Derivatives: what each of torch's backward ops reads."""

from __future__ import annotations

import pytest

MASK = (True, True, True)


def spans(*pairs):
    return list(pairs)


# A gradient whose positions see themselves, and what its op hands back for four inputs, the window two taps of step 2.
@pytest.mark.parametrize(
    ("op", "n", "out", "args", "expected"),
    [
        ("avg_pool2d_backward", 2, 4, (lambda r: r.weight(1, 1, 1, 4), (1, 2), (1, 2), 0, False, True, None),
         spans((0, 0), (0, 0), (1, 1), (1, 1))),
        ("avg_pool2d_backward", 3, 4, (lambda r: r.weight(1, 1, 1, 4), (1, 2), (1, 1), 0, False, True, None),
         spans((0, 0), (0, 1), (1, 2), (2, 2))),
        ("slice_backward", 2, 4, ((1, 1, 1, 4), 3, 1, 3, 1), spans(None, (0, 0), (1, 1), None)),
        ("slice_backward", 2, 4, ((1, 1, 1, 4), -1, 0, 4, 2), spans((0, 0), None, (1, 1), None)),
        ("upsample_nearest2d_backward", 8, 4, ([1, 8], (1, 1, 1, 4), None, None),
         spans((0, 1), (2, 3), (4, 5), (6, 7))),
        ("replication_pad2d_backward", 6, 4, (lambda r: r.weight(1, 1, 1, 4), (1, 1, 0, 0)),
         spans((0, 1), (2, 2), (3, 3), (4, 5))),
        ("reflection_pad2d_backward", 6, 4, (lambda r: r.weight(1, 1, 1, 4), (1, 1, 0, 0)),
         spans((1, 1), (0, 2), (3, 5), (4, 4))),
        ("_adaptive_avg_pool2d_backward", 3, 4, (lambda r: r.weight(1, 1, 1, 4),),
         spans((0, 0), (0, 1), (1, 2), (2, 2))),
        ("_softmax_backward_data", 4, 4, (lambda r: r.weight(1, 1, 1, 4), 1, None),
         spans((0, 0), (1, 1), (2, 2), (3, 3))),
    ],
)  # fmt: skip
def test_along_a_line(rules, op, n, out, args, expected):
    args = [a(rules) if callable(a) else a for a in args]
    got = rules.run(op, (1, 1, 1, out), rules.image(1, 1, 1, n, axes=(3,)), *args)
    assert got.exact == (expected,)
    assert got.approx == frozenset()


@pytest.mark.parametrize("op", ["max_pool2d_with_indices_backward", "adaptive_max_pool2d_backward"])
def test_a_maximum_reads_what_it_was_taken_of(rules, op):
    grad, x, indices = rules.weight(1, 1, 1, 2), rules.weight(1, 1, 1, 4), rules.image(1, 1, 1, 2, axes=(3,))
    args = () if "adaptive" in op else ((1, 2), (1, 2), 0, 1, False)
    assert rules.run(op, (1, 1, 1, 4), grad, x, *args, indices).exact == (spans((0, 0), (0, 0), (1, 1), (1, 1)),)


def test_convolution(rules):
    """Five inputs, three outputs: by the input a transposed window, by the weight the positions that meet its tap."""
    grad, x, weight = rules.image(1, 1, 1, 3, axes=(3,)), rules.weight(1, 1, 1, 5), rules.weight(1, 1, 1, 3)
    shapes = [(1, 1, 1, 5), (1, 1, 1, 3), (1,)]
    rest = ([1], (1, 1), (0, 0), (1, 1), False, (0, 0), 1, MASK)
    by_input, by_weight, by_bias = rules.run("convolution_backward", shapes, grad, x, weight, *rest)
    assert by_input.exact == (spans((0, 0), (0, 1), (0, 2), (1, 2), (2, 2)),)
    assert by_weight.exact == (spans(*[(0, 2)] * 3),)
    assert by_bias.exact == (spans((0, 2)),)
    x, grad = rules.image(1, 1, 1, 5, axes=(3,)), rules.weight(1, 1, 1, 3)
    by_input, by_weight, by_bias = rules.run("convolution_backward", shapes, grad, x, weight, *rest)
    assert (by_input, by_bias) == (None, None)
    assert by_weight.exact == (spans((0, 2), (1, 3), (2, 4)),)


def test_only_the_gradients_that_were_asked_for(rules):
    grad, x, weight = rules.image(1, 1, 1, 3, axes=(3,)), rules.weight(1, 1, 1, 5), rules.weight(1, 1, 1, 3)
    rest = ([1], (1, 1), (0, 0), (1, 1), False, (0, 0), 1, (False, False, True))
    assert rules.run("convolution_backward", (1,), grad, x, weight, *rest).exact == (spans((0, 2)),)


def test_normalisation(rules):
    x, grad, one = rules.image(1, 2, 3, axes=(2,)), rules.weight(1, 2, 3), rules.weight(2)
    shapes = [(1, 2, 3), (2,), (2,)]
    mine = spans((0, 0), (1, 1), (2, 2))
    ends = (one, one, one, False, 1e-5, MASK)
    assert rules.run("native_batch_norm_backward", shapes, grad, x, one, one, *ends)[0] is None
    by_input, by_weight, by_bias = rules.run("native_batch_norm_backward", shapes, x, grad, one, one, *ends)
    assert by_input.exact == (mine * 2,)
    assert by_weight.exact == by_bias.exact == (spans((0, 2), (0, 2)),)
    by_input, *_ = rules.run("native_group_norm_backward", shapes, grad, x, one, one, one, 1, 2, 3, 1, MASK)
    assert by_input.exact == (spans(*[(0, 2)] * 6),)
    last = [(1, 2, 3), (3,), (3,)]
    by_input, by_weight, by_bias = rules.run(
        "native_layer_norm_backward", last, rules.image(1, 2, 3, axes=(1,)), grad, [3], one, one, one, one, MASK
    )
    assert by_input.exact == (spans(*[(0, 0)] * 3, *[(1, 1)] * 3),)
    assert by_weight.exact == by_bias.exact == (spans(*[(0, 1)] * 3),)
