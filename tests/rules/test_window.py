"""Windows: intervals, jump and printed geometry, worked out by hand on signals of a few samples."""

from __future__ import annotations

from fractions import Fraction

import pytest


@pytest.mark.parametrize(
    ("op", "n", "args", "exact", "free", "jump"),
    [
        # args: weight/kernel, bias, stride, padding, dilation, groups
        ("conv1d", 5, ((1, 1, 3), None, 1, 0), [(0, 2), (1, 3), (2, 4)], [(0, 2), (1, 3), (2, 4)], 1),
        ("conv1d", 4, ((1, 1, 3), None, 2, 1), [(0, 1), (1, 3)], [(-1, 1), (1, 3)], 2),
        ("conv1d", 5, ((1, 1, 2), None, 1, 0, 3), [(0, 3), (1, 4)], [(0, 3), (1, 4)], 1),
        ("conv1d", 3, ((1, 1, 4), None, 1, "same"), [(0, 2), (0, 2), (1, 2)], [(-1, 2), (0, 3), (1, 4)], 1),
        ("conv1d", 3, ((1, 1, 2), None, 1, "valid"), [(0, 1), (1, 2)], [(0, 1), (1, 2)], 1),
        ("conv1d", 2, ((1, 1, 3), None, 1, 3, 3), [(0, 0), (1, 1)], [(-3, 3), (-2, 4)], 1),
        ("conv1d", 2, ((1, 1, 1), None, 1, 1), [None, (0, 0), (1, 1), None], [(i, i) for i in (-1, 0, 1, 2)], 1),
        # args: weight, bias, stride, padding, output_padding, groups, dilation
        ("conv_transpose1d", 2, ((1, 1, 2), None, 2), [(0, 0), (0, 0), (1, 1), (1, 1)], None, "1/2"),
        ("conv_transpose1d", 2, ((1, 1, 3), None, 2, 1, 1), [(0, 0), (0, 1), (1, 1), (1, 1)], None, "1/2"),
        ("conv_transpose1d", 2, ((1, 1, 2), None, 3), [(0, 0), (0, 0), None, (1, 1), (1, 1)], None, "1/3"),
        ("conv_transpose1d", 3, ((1, 1, 3), None, 1, 1), [(0, 1), (0, 2), (1, 2)], [(-1, 1), (0, 2), (1, 3)], 1),
        ("conv_transpose1d", 2, ((1, 1, 2), None, 1, 0, 0, 1, 2), [(0, 0), (1, 1), (0, 0), (1, 1)], None, 1),
        # args: kernel, stride, padding, dilation
        ("max_pool1d", 5, (2, (), 0, 1, True), [(0, 1), (2, 3), (4, 4)], [(0, 1), (2, 3), (4, 5)], 2),
        ("max_pool1d", 5, (2, 2, 1, 2), [(1, 1), (1, 3)], [(-1, 1), (1, 3)], 2),
        ("max_pool1d", 3, (3,), [(0, 2)], [(0, 2)], 1),
        ("avg_pool1d", 4, (3, 1, 1), [(0, 1), (0, 2), (1, 3), (2, 3)], [(i - 1, i + 1) for i in range(4)], 1),
        ("adaptive_avg_pool1d", 7, (3,), [(0, 2), (2, 4), (4, 6)], [(0, 2), (2, 4), (4, 6)], "7/3"),
        ("adaptive_avg_pool1d", 3, (5,), [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)], None, "3/5"),
        ("adaptive_max_pool1d", 6, (1,), [(0, 5)], [(0, 5)], 1),
        ("constant_pad_nd", 3, ((2, -1),), [None, None, (0, 0), (1, 1)], [(i, i) for i in range(-2, 2)], 1),
        ("reflection_pad1d", 4, ((2, 3),), [(i, i) for i in (2, 1, 0, 1, 2, 3, 2, 1, 0)], None, 1),
        ("replication_pad1d", 3, ((2, 1),), [(i, i) for i in (0, 0, 0, 1, 2, 2)], [(i, i) for i in range(-2, 4)], 1),
        ("_pad_circular", 4, ((2, 1),), [(i, i) for i in (2, 3, 0, 1, 2, 3, 0)], None, 1),
    ],
)
def test_one_dim(rules, op, n, args, exact, free, jump):
    weight, *rest = args
    first = rules.weight(*weight) if op.startswith("conv") else weight
    got = rules.run(op, (1, 1, len(exact)), rules.image(1, 1, n), first, *rest)
    assert got.exact == (exact,)
    assert free is None or got.free == (free,)
    assert got.jumps == (Fraction(jump),)


@pytest.mark.parametrize(
    ("n_in", "k", "s", "p", "out", "kernel", "stride"),
    [(6, 2, 2, 0, 3, 2, 2), (6, 6, 6, 0, 1, 6, 1), (6, 9, 1, 2, 2, 9, 1), (5, 7, 3, 1, 1, 7, 1)],
)
def test_a_window_over_everything_prints_stride_1(rules, n_in, k, s, p, out, kernel, stride):
    got = rules.run("avg_pool1d", (1, 1, out), rules.image(1, 1, n_in), k, s, p)
    assert (got.window.kernel, got.window.stride) == ((kernel,), (stride,))


def test_geometry_of_a_convolution(rules):
    got = rules.run(
        "conv2d", (1, 6, 3, 4), rules.image(1, 4, 7, 9), rules.weight(6, 2, 3, 2), None, (2, 3), (1, 2), (1, 2), 2
    )
    w = got.window
    assert (w.kernel, w.stride, w.padding, w.dilation, w.groups) == ((3, 2), (2, 3), ((1, 1), (2, 2)), (1, 2), 2)
    assert got.jumps == (2, 3)


# Which channels a channel sees: the channels themselves are the axis.
@pytest.mark.parametrize(
    ("op", "channels", "weight", "groups", "exact"),
    [
        ("conv1d", 4, (6, 4, 1), 1, [(0, 3)] * 6),
        ("conv1d", 6, (4, 3, 1), 2, [(0, 2), (0, 2), (3, 5), (3, 5)]),
        ("conv1d", 6, (3, 2, 1), 3, [(0, 1), (2, 3), (4, 5)]),
        ("conv1d", 4, (8, 1, 1), 4, [(i // 2, i // 2) for i in range(8)]),
        ("conv_transpose1d", 6, (6, 1, 1), 2, [(0, 2), (3, 5)]),
        ("conv_transpose1d", 4, (4, 3, 1), 2, [(0, 1)] * 3 + [(2, 3)] * 3),
    ],
)
def test_groups(rules, op, channels, weight, groups, exact):
    order = (None, 1, 0, 1, groups) if op == "conv1d" else (None, 1, 0, 0, groups)
    x = rules.image(1, channels, 1, axes=(1,))
    assert rules.run(op, (1, len(exact), 1), x, rules.weight(*weight), *order).exact == (exact,)


def test_unfold(rules):
    got = rules.run("unfold", (1, 1, 3, 2), rules.image(1, 1, 6), 2, 2, 2)
    assert got.exact == ([(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5)],)
    assert got.jumps == (2,)


def test_im2col_and_back(rules):
    """A 1x3 map, windows of 1x2: taps first, windows last; fold adds the columns back."""
    x = rules.image(1, 1, 1, 3, axes=(3,))
    assert rules.run("im2col", (1, 2, 2), x, (1, 2), 1, 0, 1).exact == ([(0, 0), (1, 1), (1, 1), (2, 2)],)
    columns = rules.image(1, 2, 2, axes=(2,))  # the axis numbers the windows
    assert rules.run("col2im", (1, 1, 1, 3), columns, (1, 3), (1, 2), 1, 0, 1).exact == ([(0, 0), (0, 1), (1, 1)],)


def test_random_windows_see_the_whole_map(rules):
    got = rules.run("fractional_max_pool2d", (1, 1, 1, 2), rules.image(1, 1, 2, 3), 2, (1, 2))
    assert got.exact == ([(0, 1)] * 2, [(0, 2)] * 2)
