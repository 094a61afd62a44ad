"""Movements against torch's own, run on a tensor of element numbers; jumps and writes by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from rfcalc import analyze
from rfcalc.analysis.parts import dense
from rfcalc.analysis.rules import RULES, Call, Value

aten = torch.ops.aten


def numbered(*shape):
    return torch.arange(int(np.prod(shape))).view(shape)


# Every element of the result is one element of the input (or none: 0 after counting from 1).
@pytest.mark.parametrize(
    ("op", "shape", "args"),
    [
        ("view", (2, 3, 4), ([4, 6],)),
        ("view", (2, 6), ([2, 3, 1, 2],)),
        ("squeeze", (2, 1, 3), (1,)),
        ("unsqueeze", (2, 3), (-1,)),
        ("permute", (2, 3, 4), ([2, 0, 1],)),
        ("transpose", (2, 3, 4), (0, -1)),
        ("t", (2, 3), ()),
        ("movedim", (2, 3, 4), ([0, 1], [2, 0])),
        ("numpy_T", (2, 3, 4), ()),
        ("expand", (2, 1, 3), ([2, 4, 3],)),
        ("slice", (5, 3), (0, 1, None, 2)),
        ("slice", (5, 3), (0, -3, -1)),
        ("narrow", (5, 3), (0, 1, 3)),
        ("select", (5, 3), (0, -2)),
        ("flip", (3, 4), ([1],)),
        ("roll", (3, 4), ([1], [1])),
        ("roll", (3, 4), ([-2, 1], [0, 1])),
        ("roll", (3, 4), ([5],)),
        ("rot90", (3, 4), (1, [0, 1])),
        ("repeat", (2, 3), ([2, 1, 2],)),
        ("tile", (2, 3), ([2],)),
        ("diagonal", (3, 4), (1,)),
        ("diag", (4,), (1,)),
        ("as_strided", (3, 4), ([2, 2], [5, 2], 1)),
        ("pixel_shuffle", (1, 8, 1, 2), (2,)),
        ("pixel_unshuffle", (1, 2, 2, 4), (2,)),
        ("channel_shuffle", (1, 6, 2), (2,)),
        ("index_select", (4, 3), (0, torch.tensor([3, 0, 0]))),
        ("index", (4, 3), ([torch.tensor([1, 2]), torch.tensor([0, -1])],)),
        ("index", (2, 3, 4), ([torch.tensor([1, 0]), None, torch.tensor([0, -1])],)),
        ("index", (4, 3), ([torch.tensor([True, False, False, True])],)),
        ("gather", (2, 3), (1, torch.tensor([[2], [0]]))),
        ("take", (2, 3), (torch.tensor([5, -6]),)),
    ],
)
def test_one_source_each(rules, op, shape, args):
    """With the flat element number as input axis, each output holds exactly the number torch puts there."""
    n = int(np.prod(shape))
    flat = rules.image(n, axes=(0,))
    x = Value(shape, RULES["view"](Call("view", (shape,)), flat))
    expected = getattr(aten, op)(numbered(*shape) + 1, *args) - 1
    given = [rules.const(a) if isinstance(a, torch.Tensor) else a for a in args]
    if op == "index":
        given = [[i if i is None else rules.const(i) for i in args[0]]]
    got = rules.run(op, tuple(expected.shape), x, *given)
    assert got.exact == ([None if v < 0 else (v, v) for v in expected.flatten().tolist()],)
    assert got.approx == frozenset()


@pytest.mark.parametrize(
    ("op", "n", "out", "args", "jump"),
    [
        ("slice", 9, (1, 1, 3), (2, 0, 9, 3), 3),
        ("flip", 9, (1, 1, 9), ([2],), 1),
        ("select", 9, (1, 1), (2, 4), 1),
    ],
)
def test_jump(rules, op, n, out, args, jump):
    assert rules.run(op, out, rules.image(1, 1, n), *args).jumps == (jump,)


def test_jump_of_pixel_shuffles(rules):
    assert rules.run("pixel_shuffle", (1, 1, 4, 6), rules.image(1, 4, 2, 3), 2).jumps == (0.5, 0.5)
    assert rules.run("pixel_unshuffle", (1, 4, 2, 3), rules.image(1, 1, 4, 6), 2).jumps == (2, 2)


@pytest.mark.parametrize(
    ("op", "sizes", "args"),
    [
        ("split", [(3, 1), (3, 1), (3, 1), (3, 1), (3, 1)], (1, 1)),
        ("split_with_sizes", [(3, 2), (3, 3)], ([2, 3], 1)),
        ("chunk", [(3, 3), (3, 2)], (2, 1)),
        ("unbind", [(3,)] * 5, (1,)),
    ],
)
def test_pieces(rules, op, sizes, args):
    answers = rules.run(op, sizes, rules.image(3, 5, axes=(1,)), *args)
    seen = [sorted(set(a.exact[0])) for a in answers]
    lengths = [s[1] if len(s) > 1 else 1 for s in sizes]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    assert seen == [[(p, p) for p in range(a, a + n)] for a, n in zip(starts, lengths, strict=True)]


def test_unknown_indices_may_pick_anything(rules):
    x, index = rules.image(4, 3, axes=(0, 1)), Value((2,), None)
    got = rules.run("index_select", (2, 3), x, 0, index)
    assert got.exact == ([(0, 3)] * 6, [(0, 0), (1, 1), (2, 2)] * 2)
    by_data = rules.run("index", (2, 3), x, [index])
    assert by_data.exact == ([(0, 3)] * 6, [(0, 0), (1, 1), (2, 2)] * 2)  # the dim that is not indexed stays


# Writes: the input axis counts the elements 0..5 of x and 6..11 of the source.
@pytest.mark.parametrize(
    ("op", "shape", "args"),
    [
        ("slice_scatter", (2, 2), lambda s: (s, 1, 1, 3)),
        ("select_scatter", (3,), lambda s: (s, 0, 1)),
        ("index_copy", (2, 1), lambda s: (1, torch.tensor([2]), s)),
        ("index_put", (2,), lambda s: ([torch.tensor([0, 1]), torch.tensor([2, 0])], s)),
        ("scatter", (2, 1), lambda s: (1, torch.tensor([[2], [0]]), s)),
        ("diagonal_scatter", (2,), lambda s: (s,)),
        ("masked_scatter", (6,), lambda s: (torch.tensor([[True, False, False], [False, True, True]]), s)),
        ("put", (2,), lambda s: (torch.tensor([4, 0]), s)),
    ],
)
def test_writes(rules, op, shape, args):
    x, n = (2, 3), int(np.prod(shape))
    both = rules.image(6 + n, axes=(0,))

    def part(start, stop, size):
        piece = RULES["slice"](Call("slice", ((stop - start,),)), both, 0, start, stop)
        return Value(size, RULES["view"](Call("view", (size,)), Value((stop - start,), piece)))

    expected = getattr(aten, op)(numbered(6).view(x), *args(numbered(n).view(shape) + 6))
    source = part(6, 6 + n, shape)
    given = [
        source if a is source else rules.const(a) if isinstance(a, torch.Tensor) else [rules.const(i) for i in a]
        if isinstance(a, list) else a
        for a in args(source)
    ]  # fmt: skip
    got = rules.run(op, x, part(0, 6, x), *given)
    assert got.exact == ([(v, v) for v in expected.flatten().tolist()],)


def test_accumulating_writes_keep_what_was_there(rules):
    x = rules.image(1, 4, axes=(1,))
    source = Value((1, 1), RULES["slice"](Call("slice", ((1, 1),)), x, 1, 0, 1))
    assert rules.run("index_add", (1, 4), x, 1, rules.const([2]), source).exact == ([(0, 0), (1, 1), (0, 2), (3, 3)],)
    assert rules.run("scatter_add", (1, 4), x, 1, rules.const([[3]]), source).exact == (
        [(0, 0), (1, 1), (2, 2), (0, 3)],
    )


@pytest.mark.parametrize(
    ("op", "args", "options", "exact"),
    [
        ("scatter", (1, [[2, 2]], "source"), {}, [(0, 0), (1, 1), (5, 5), (3, 3)]),
        ("scatter", (1, [[2, 2]], "source"), {"reduce": "add"}, [(0, 0), (1, 1), (2, 5), (3, 3)]),
        ("scatter", (1, [[2, 2]], 7.0), {}, [(0, 0), (1, 1), None, (3, 3)]),
        ("scatter", (1, [[2, 2]], 7.0), {"reduce": "multiply"}, [(0, 0), (1, 1), (2, 2), (3, 3)]),
        ("scatter_reduce", (1, [[2, 2]], "source", "amax"), {}, [(0, 0), (1, 1), (2, 5), (3, 3)]),
        ("scatter_reduce", (1, [[2, 2]], "source", "amax"), {"include_self": False}, [(0, 0), (1, 1), (4, 5), (3, 3)]),
        ("index_reduce", (1, [2, 2], "source", "prod"), {"include_self": False}, [(0, 0), (1, 1), (4, 5), (3, 3)]),
        ("put", ([-1, -1], "source"), {}, [(0, 0), (1, 1), (2, 2), (5, 5)]),
        ("put", ([-1, -1], "source", True), {}, [(0, 0), (1, 1), (2, 2), (3, 5)]),
        ("put", ([-1, -1], "source"), {"accumulate": True}, [(0, 0), (1, 1), (2, 2), (3, 5)]),
        ("index_put", ([[[0]], [[1, 1]]], "source"), {}, [(0, 0), (5, 5), (2, 2), (3, 3)]),
        ("index_put", ([None, [1, 1]], "source", True), {}, [(0, 0), (1, 5), (2, 2), (3, 3)]),
        ("_unsafe_index_put", ([None, [3, 0]], "source"), {}, [(5, 5), (1, 1), (2, 2), (4, 4)]),
    ],
)
def test_what_is_overwritten_is_gone_and_what_is_joined_is_not(rules, op, args, options, exact):
    """x holds the elements 0..3 of the axis, the source 4 and 5."""
    both = rules.image(1, 6, axes=(1,))
    x, source = (
        Value((1, b - a), RULES["slice"](Call("slice", ((1, b - a),)), both, 1, a, b)) for a, b in ((0, 4), (4, 6))
    )
    if op == "put":
        source = Value((2,), RULES["view"](Call("view", ((2,),)), source))

    def given(a):
        if a == "source":
            return source
        if isinstance(a, list) and (a[0] is None or isinstance(a[0], list)) and op.endswith("index_put"):
            return [None if i is None else rules.const(i) for i in a]
        return rules.const(a) if isinstance(a, list) else a

    assert rules.run(op, (1, 4), x, *map(given, args), **options).exact == (exact,)


def test_element_by_element_products_and_blocks(rules):
    x = rules.image(2, axes=(0,))
    assert rules.run("kron", (4,), x, rules.weight(2)).exact == ([(0, 0), (0, 0), (1, 1), (1, 1)],)
    assert rules.run("kron", (4,), rules.weight(2), x).exact == ([(0, 0), (1, 1), (0, 0), (1, 1)],)
    square = rules.image(2, 2, axes=(0,))
    assert rules.run("trace", (), square).exact == ([(0, 1)],)
    assert rules.run("block_diag", (3, 3), [square, rules.weight(1, 1)]).exact == (
        [(0, 0), (0, 0), None, (1, 1), (1, 1), None, None, None, None],
    )
    assert rules.run("repeat_interleave", (4,), x, 2).exact == ([(0, 0), (0, 0), (1, 1), (1, 1)],)


def test_taking_nothing(rules):
    assert rules.run("take", (0,), rules.image(1, 1, 4), rules.const(torch.zeros(0, dtype=torch.long))) is None


class Strided(nn.Module):
    def __init__(self, of, *args):
        super().__init__()
        self.of, self.args = of, args

    def forward(self, x):
        return self.of(x * 1).as_strided(*self.args)


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize(
    ("of", "args", "exact", "named"),
    [
        (lambda x: x[0, 0].T, ((1, 1, 2), (1, 1, 2), 1), [(0, 0), (1, 3)], ()),
        (lambda x: x[0, 0, 1:, 1:], ((1, 1, 1), (1, 1, 1)), [(1, 1), (1, 1)], ()),
        (lambda x: x[0, 0, 1:, 1:], ((1, 1, 1), (1, 1, 1), 0), [(0, 2), (0, 3)], ("as_strided",)),
    ],
)
def test_strides_count_from_the_start_of_the_storage(of, args, exact, named, level):
    """Of a 3x4 map, turned or cut: what the view itself holds is exact, the rest may be anywhere in the storage."""
    report = analyze(Strided(of, *args), (1, 3, 4), level=level)
    field = report.fields[report.rows[-1].name]
    whole = [dense(a.parts, args[0])[0] for a in field.axes]
    assert [(int(b[0].min()), int(-b[1].min())) for b in whole] == exact
    assert report.approximate_ops == named


@pytest.mark.parametrize("level", [1, 2])
def test_a_start_made_of_the_input(level):
    class Net(nn.Module):
        def forward(self, x):
            y = torch.ones(4)
            y.narrow(0, (x[0, 0, 0, 0] > 1).long(), 2).zero_()
            return y

    assert min(analyze(Net(), (1, 3, 4), level=level).coverage) > 0
