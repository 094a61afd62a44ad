"""Windows: intervals, jump and printed geometry, worked out by hand on signals of a few samples."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from rfcalc import analyze


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
    back = rules.run("col2im", (1, 1, 1, 3), columns, (1, 3), (1, 2), 1, 0, 1)
    assert (back.exact, back.free) == (([(0, 0), (0, 1), (1, 1)],), ([(-1, 0), (0, 1), (1, 2)],))
    by_tap = rules.run("col2im", (1, 1, 1, 3), rules.image(1, 2, 2, axes=(1,)), (1, 3), (1, 2), 1, 0, 1)
    assert by_tap.exact == ([(0, 0), (0, 1), (1, 1)],)


def test_overlap_add(rules):
    """Two windows of 3 taps, 2 apart: the transpose of unfold."""
    back = rules.run("unfold_backward", (1, 5), rules.image(1, 2, 3, axes=(1,)), [1, 5], 1, 3, 2)
    assert (back.exact, back.jumps) == (([(0, 0), (0, 0), (0, 1), (1, 1), (1, 1)],), (Fraction(1, 2),))
    assert back.free == ([(-1, 0), (0, 0), (0, 1), (1, 1), (1, 2)],)


def test_random_windows_see_the_whole_map(rules):
    got = rules.run("fractional_max_pool2d", (1, 1, 1, 2), rules.image(1, 1, 2, 3), 2, (1, 2))
    assert got.exact == ([(0, 1)] * 2, [(0, 2)] * 2)


# ------------------------------------------------------------------------------------------ padding beyond the kernel

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
PADS = {1: nn.ConstantPad1d, 2: nn.ConstantPad2d, 3: nn.ConstantPad3d}


def both_levels(model, shape):
    first, second = analyze(model, shape, level=1), analyze(model, shape, level=2)
    assert first.rows == second.rows
    return second


@st.composite
def plain_layers(draw, n):
    """One layer, as its kind and per dim (k, s, p, d), padded as far as torch allows."""
    kind = draw(st.sampled_from(["conv", "conv", "pool", "pad"]))
    if kind == "pad":
        return kind, tuple(draw(st.tuples(*[st.tuples(st.integers(0, 4), st.integers(0, 4))] * n)))
    dims = []
    for _ in range(n):
        k = draw(st.integers(1, 3))
        p = draw(st.integers(0, 4 if kind == "conv" else k // 2))
        dims.append((k, draw(st.integers(1, 3)), p, draw(st.integers(1, 2))))
    return kind, tuple(dims)


def plain_stack(layers, dims):
    """The stack with only those of its dims."""
    made = []
    for kind, geometry in layers:
        kept = [geometry[i] for i in dims]
        if kind == "pad":  # torch lists the last dim first
            made.append(PADS[len(dims)]([v for pair in reversed(kept) for v in pair], 0.0))
        else:
            k, s, p, d = zip(*kept, strict=True)
            made.append(CONVS[len(dims)](1, 1, k, s, p, d) if kind == "conv" else POOLS[len(dims)](k, s, p, d))
    return nn.Sequential(*made)


@settings(max_examples=150)
@given(st.data(), st.sampled_from([1, 2, 2, 3]))
def test_r_of_a_plain_stack_is_the_recurrence_at_every_position(data, n):
    """r += (k - 1) * d * j, j *= s: whatever the padding, on any input, and per axis as in one dim."""
    layers = data.draw(st.lists(plain_layers(n), min_size=1, max_size=5))
    sizes = data.draw(st.tuples(*[st.integers(7, 12 if n < 3 else 8)] * n))
    model = plain_stack(layers, range(n))
    try:
        model(torch.zeros(1, 1, *sizes))
    except RuntimeError:
        assume(False)
    rows = both_levels(model, (1, *sizes)).rows
    larger = analyze(model, (1, *[n + 29 for n in sizes])).rows
    assume(all(1 not in row.n_out for row in rows if row.op.startswith("MaxPool")))  # global pooling never steps
    r, j = [1] * n, [1] * n
    for (kind, geometry), row, more in zip(layers, rows, larger, strict=True):
        if kind != "pad":
            for i, (k, s, _, d) in enumerate(geometry):
                r[i], j[i] = r[i] + (k - 1) * d * j[i], j[i] * s
        assert row.r_min == row.r_out == more.r_min == more.r_out == tuple(r)
        assert (row.j_out, row.aligned, row.start, row.is_global) == (tuple(j), True, more.start, (False,) * n)
    for i in range(n):
        alone = analyze(plain_stack(layers, [i]), (1, sizes[i])).rows
        assert [(one.r_out[0], one.start[0]) for one in alone] == [(row.r_out[i], row.start[i]) for row in rows]


class Net(nn.Module):
    def __init__(self, forward, *layers):
        super().__init__()
        self.call, self.layers = forward, nn.ModuleList(layers)

    def forward(self, x):
        return self.call(x, *self.layers)


def conv(k, s=1, p=0, i=1):
    return nn.Conv2d(i, 1, k, s, p)


@pytest.mark.parametrize(
    ("model", "r", "r_min", "aligned"),
    [
        (Net(lambda x, a, b, c: c(F.pad(a(x), (2,) * 4) + b(x)), conv(1), conv(1, 1, 2), conv(3, 1, 1)), 3, 3, True),
        (Net(lambda x, a, b: b(F.pad(a(x), (1, 3, 1, 3)) + F.pad(x, (2,) * 4)), conv(1), conv(3, 1, 1)), 4, 4, False),
        (Net(lambda x, a, b: b(torch.cat([a(x), F.pad(x, (2,) * 4)], 1)), conv(1, 1, 2), conv(3, 1, 1, 2)), 3, 3, True),
        (Net(lambda x, a, b, c: c(b(a(x)[:, :, 5:6])), conv(1, 1, 2), conv(3, 1, 1), conv(3, 2, 1)), 5, 5, True),
        (Net(lambda x, a, b: b(a(x).transpose(2, 3)), conv(1, 1, 2), conv(3, 2, 1)), 3, 3, True),
        (Net(lambda x, a, b: b(a(x).flatten(2).reshape(1, 1, 12, 12)), conv(1, 1, 2), conv(3, 1, 1)), 3, 3, True),
        (nn.Sequential(conv(8), conv(1, 1, 1), conv(3, 1, 1), conv(3, 2, 1), conv(3, 1, 1)), 16, 16, True),
        (nn.Sequential(conv(1, 1, 2), conv(3, 1, 1), nn.AdaptiveAvgPool2d(1)), 14, 14, True),
        (nn.Sequential(conv(1, 1, 2), nn.AdaptiveAvgPool2d(2)), 6, 6, True),
        (nn.Sequential(conv(1, 1, 2), nn.ReflectionPad2d(3), conv(3)), 3, 3, True),
        # outputs of a transposed convolution that no input reaches: every other one, in both dims
        (nn.Sequential(nn.ConvTranspose2d(1, 1, 1, 2), conv(3, 1, 1)), 2, 1, True),
    ],
)  # fmt: skip
def test_what_follows_positions_that_see_padding_only(model, r, r_min, aligned):
    last = both_levels(model, (1, 8, 8)).rows[-1]
    assert (last.r_out, last.r_min, last.aligned) == ((r, r), (r_min, r_min), aligned)


def test_a_pooled_axis_has_no_grid_along_the_other_dim():
    """Once W is averaged, neither padding nor a stride along H or W changes what is known of it."""
    model = Net(lambda x, a, b, c: c(b(a(x.mean(3, keepdim=True)))), conv(1, 1, 1), conv(3, 2, 1), conv(3, 1, 1))
    rows = both_levels(model, (1, 8, 8)).rows
    assert [row.r_out[1] for row in rows] == [8] * 4
    assert [row.r_min for row in rows] == [row.r_out for row in rows]


def test_operands_beside_each_other_go_on_apart():
    """Of two maps one above the other W keeps its field; only windows over the seam see both along H."""
    model = Net(lambda x, a, b: b(torch.cat([a(x), a(x)], 2)), conv(1, 1, 2), conv(3, 1, 1))
    last = both_levels(model, (1, 8, 8)).rows[-1]
    assert (last.r_min, last.r_out) == ((3, 3), (12, 3))


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_padding_reads_what_torch_reads(rules, mode, n):
    """Every pair of amounts that torch takes, negative ones among them: it crops first, then fills."""
    ops = {"constant": "constant_pad_nd", "circular": "_pad_circular", "reflect": "reflection_pad1d"}
    op = ops.get(mode, "replication_pad1d")
    for before, after in itertools.product(range(-3, 6), repeat=2):
        try:
            ramp = F.pad(torch.arange(1.0, n + 1).view(1, 1, n), (before, after), mode)
        except RuntimeError:
            continue
        kept = n + min(before, 0) + min(after, 0)
        if not ramp.numel() or (mode == "circular" and max(before, after) > kept):
            continue  # torch leaves memory unwritten there
        got = rules.run(op, tuple(ramp.shape), rules.image(1, 1, n), (before, after))
        assert got.exact == ([None if v == 0 else (int(v) - 1,) * 2 for v in ramp.flatten()],), (before, after)
