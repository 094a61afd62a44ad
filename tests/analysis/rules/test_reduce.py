"""Reductions, softmax and statistics: which dims merge, on a 2x3 map of one axis per dim."""

from __future__ import annotations

import math

import pytest
import torch

ROWS, COLUMNS = [(0, 0)] * 3 + [(1, 1)] * 3, [(0, 0), (1, 1), (2, 2)] * 2
ALL_ROWS, ALL_COLUMNS = [(0, 1)] * 6, [(0, 2)] * 6


@pytest.mark.parametrize(
    ("op", "out", "args", "kwargs", "rows", "columns"),
    [
        ("sum", (), (), {}, [(0, 1)], [(0, 2)]),
        ("sum", (2,), ([1],), {}, [(0, 0), (1, 1)], [(0, 2)] * 2),
        ("mean", (1, 3), ([0], True), {}, [(0, 1)] * 3, [(0, 0), (1, 1), (2, 2)]),
        ("amax", (3,), (-2,), {}, [(0, 1)] * 3, [(0, 0), (1, 1), (2, 2)]),
        ("std", (2,), (), {"dim": [1]}, [(0, 0), (1, 1)], [(0, 2)] * 2),
        ("norm", (2,), (2, [1]), {}, [(0, 0), (1, 1)], [(0, 2)] * 2),
        ("linalg_vector_norm", (), (2,), {}, [(0, 1)], [(0, 2)]),
        ("quantile", (3,), (0.5, 0), {}, [(0, 1)] * 3, [(0, 0), (1, 1), (2, 2)]),
        ("softmax", (2, 3), (1,), {}, ROWS, ALL_COLUMNS),
        ("_softmax", (2, 3), (-2, False), {}, ALL_ROWS, COLUMNS),
        ("layer_norm", (2, 3), ([3],), {}, ROWS, ALL_COLUMNS),
        ("layer_norm", (2, 3), ([2, 3],), {}, ALL_ROWS, ALL_COLUMNS),
        ("topk", (2, 2), (2, 1), {}, [(0, 0)] * 2 + [(1, 1)] * 2, [(0, 2)] * 4),
        ("kthvalue", (3,), (1, 0), {}, [(0, 1)] * 3, [(0, 0), (1, 1), (2, 2)]),
        ("argsort", (2, 3), (0,), {}, ALL_ROWS, COLUMNS),
        ("msort", (2, 3), (), {}, ALL_ROWS, COLUMNS),
        ("fft_fft", (2, 3), (), {}, ROWS, ALL_COLUMNS),
        ("fft_fft", (2, 3), (None, 0), {}, ALL_ROWS, COLUMNS),
        ("fft_fft2", (2, 3), (), {}, ALL_ROWS, ALL_COLUMNS),
        ("_fft_r2c", (2, 2), ([1], 0, True), {}, [(0, 0)] * 2 + [(1, 1)] * 2, [(0, 2)] * 4),
    ],
)
def test_merged_dims(rules, op, out, args, kwargs, rows, columns):
    assert rules.run(op, out, rules.image(2, 3, axes=(0, 1)), *args, **kwargs).exact == (rows, columns)


def test_sort_with_its_stable_flag_first(rules):
    got = rules.run("sort", [(2, 3), (2, 3)], rules.image(2, 3, axes=(0, 1)), True, 0)
    assert [a.exact for a in got] == [(ALL_ROWS, COLUMNS)] * 2


# Channels 4, width 2, one axis each.
@pytest.mark.parametrize(
    ("groups", "channels", "width"),
    [
        (1, [(0, 3)] * 8, [(0, 1)] * 8),
        (2, [(0, 1)] * 4 + [(2, 3)] * 4, [(0, 1)] * 8),
        (4, [(c, c) for c in range(4) for _ in (0, 1)], [(0, 1)] * 8),
    ],
)
def test_group_norm(rules, groups, channels, width):
    assert rules.run("group_norm", (1, 4, 2), rules.image(1, 4, 2, axes=(1, 2)), groups).exact == (channels, width)


def test_batch_and_instance_norm(rules):
    x, same = rules.image(2, 1, 3, axes=(0, 2)), (ROWS, COLUMNS)
    assert rules.run("batch_norm", (2, 1, 3), x, None, None, 0, 1, False).exact == same
    assert rules.run("batch_norm", (2, 1, 3), x, None, None, None, None, True).exact == (ALL_ROWS, ALL_COLUMNS)
    assert rules.run("instance_norm", (2, 1, 3), x, None, None, 0, 1, False).exact == same
    assert rules.run("instance_norm", (2, 1, 3), x, None, None, None, None, True).exact == (ROWS, ALL_COLUMNS)


def test_whole_space_is_global_pooling(rules):
    window = rules.run("mean", (1, 2), rules.image(1, 2, 3, 4), [2, 3]).window
    assert (window.kernel, window.stride) == ((3, 4), (1, 1))
    assert rules.run("mean", (1, 2, 3), rules.image(1, 2, 3, 4), [3]).window is None


def test_softmax_skips_what_is_masked(rules):
    """A causal mask of -inf over 3x3 scores whose columns are the axis."""
    from rfcalc.analysis.rules import RULES, Call, Value

    mask = rules.const(torch.ones(3, 3).triu(1).bool())
    scores = RULES["masked_fill"](Call("masked_fill", ((3, 3),)), rules.image(3, 3, axes=(1,)), mask, -math.inf)
    got = rules.run("softmax", (3, 3), Value((3, 3), scores), 1)
    assert got.exact == ([(0, 0), None, None, (0, 1), (0, 1), None, (0, 2), (0, 2), (0, 2)],)


def test_renorm_scales_each_slice_by_its_own_norm(rules):
    """A row along H is scaled by all of W, and by nothing of other rows."""
    got = rules.run("renorm", (1, 1, 2, 3), rules.image(1, 1, 2, 3), 2, 2, 1.0)
    assert got.exact == ([(0, 0)] * 3 + [(1, 1)] * 3, [(0, 2)] * 6)
