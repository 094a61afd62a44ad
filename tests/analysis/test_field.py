"""Laws of the domain, by hypothesis: hulls, windows, movements, spans and writes."""

from __future__ import annotations

import doctest
import sys
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rfcalc.analysis import field, memo, reading
from rfcalc.analysis import parts as atoms
from rfcalc.analysis import windows as sliding
from rfcalc.analysis.beside import beside_axes
from rfcalc.analysis.field import NOTHING, AxisField, Field, identity, join, join_axes, reduce
from rfcalc.analysis.moves import (
    pad_part,
    permute_part,
    place_part,
    prefix_part,
    reduce_part,
    renumber_part,
    reshape_part,
    take_part,
)
from rfcalc.analysis.parts import EMPTY, Part, Span, dense, expand_span, line_of, minimum, spread
from rfcalc.analysis.windows import transposed_taps, window_length, window_part
from rfcalc.analysis.writes import write_box

laws = settings(max_examples=60)
SHAPE = (3, 4, 2)
ONE = Fraction(1)


@st.composite
def parts(draw, shape=SHAPE, spans=True):
    """A part over some dims; some positions are empty; it may exist on a stretch of one dim, along which it is even."""
    span = None
    if spans and draw(st.booleans()):
        at = draw(st.integers(0, len(shape) - 1))
        start = draw(st.integers(0, shape[at] - 1))
        span = Span(at, start, draw(st.integers(start + 1, shape[at])))
    dims = tuple(d for d in range(len(shape)) if draw(st.booleans()) and (span is None or span.dim != d))
    sizes = [shape[d] for d in dims]
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    low = rng.integers(0, 9, sizes)
    high = low + rng.integers(0, 5, sizes)
    bounds = np.stack([low, -high, low - rng.integers(0, 3, sizes), -high - rng.integers(0, 3, sizes)])
    bounds[:2, rng.random(sizes) < 0.1] = EMPTY
    return Part(bounds, dims, True, span)


@st.composite
def fields(draw, shape=SHAPE):
    return Field((AxisField(tuple(draw(st.lists(parts(shape), min_size=1, max_size=3)))),))


def full(items, shape=SHAPE):
    """Parts written out over every dim."""
    bounds, dims = dense(items, shape)
    sizes = [shape[d] if d in dims else 1 for d in range(len(shape))]
    return np.broadcast_to(bounds.reshape(4, *sizes), (4, *shape))


def hull(f, shape=SHAPE):
    return np.full((4, *shape), EMPTY) if f is None else full(f.axes[0].parts, shape)


def same(a, b):
    np.testing.assert_array_equal(a, b)


def test_doctests():
    results = [doctest.testmod(module) for module in (field, atoms, sliding)]
    assert all(result.attempted for result in (results[0], results[2]))
    assert not any(result.failed for result in results)


# ------------------------------------------------------------------------------------------------------------- hulls


@laws
@given(fields(), fields(), fields())
def test_join_is_a_hull(a, b, c):
    same(hull(join([a, b])), hull(join([b, a])))
    same(hull(join([join([a, b]), c])), hull(join([a, join([b, c])])))
    same(hull(join([a, a])), hull(a))
    same(hull(join([a, b])), np.minimum(hull(a), hull(b)))


@laws
@given(fields())
def test_empty_is_neutral(a):
    nothing = Field((AxisField((Part(np.full((4, SHAPE[0]), EMPTY), (0,)),)),))
    same(hull(join([a, nothing])), hull(a))
    same(hull(join([a, Field((NOTHING,))])), hull(a))


@laws
@given(parts(), st.sets(st.integers(0, 2)))
def test_reduce_is_the_minimum(p, dims):
    got = reduce_part(p, frozenset(dims))
    assert dims.isdisjoint(got.dims)
    same(full([got]), np.broadcast_to(full([p]).min(tuple(d + 1 for d in dims), keepdims=True), (4, *SHAPE)))


# ----------------------------------------------------------------------------------------------------------- windows

windows = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.integers(0, 3), st.integers(1, 3))


def slide(part, n, jump, k, s, before, after, d):
    n_out = window_length(n, k, s, before, after, d)
    return window_part(part, 0, n, n_out, k, s, before, d, jump), n_out


@laws
@given(parts((6,), spans=False))
def test_a_window_of_one_is_the_identity(p):
    same(full([window_part(p, 0, 6, 6, 1, 1, 0, 1, ONE)], (6,)), full([p], (6,)))


@laws
@given(st.integers(20, 30), windows, windows)
def test_two_windows_follow_the_recurrence(n, first, second):
    """r + (k - 1) d j and j s in the unclipped rows; the start moves back by p j (Araujo et al. 2019)."""
    part, length, r, j, start = identity(n, 0).parts[0], n, 1, 1, 0
    for k, s, before, after, d in (first, second):
        part, length = slide(part, length, Fraction(j), k, s, before, after, d)
        r, start, j = r + (k - 1) * d * j, start - before * j, j * s
    low = start + j * np.arange(length)
    same(full([part], (length,))[2:], np.stack([low, -(low + r - 1)]))


@laws
@given(st.integers(20, 30), windows, windows)
def test_exact_bounds_lie_in_the_input_and_in_the_clipped_field(n, first, second):
    part, length, j = identity(n, 0).parts[0], n, 1
    for k, s, before, after, d in (first, second):
        part, length = slide(part, length, Fraction(j), k, s, before, after, d)
        j *= s
    low, high, ulow, uhigh = full([part], (length,))
    there = low < EMPTY // 2
    assert (low[there] >= 0).all()
    assert (-high[there] <= n - 1).all()
    assert (low[there] <= -high[there]).all()
    assert (low[there] >= ulow[there]).all()
    assert (-high[there] <= -uhigh[there]).all()


@laws
@given(st.integers(1, 8), windows)
def test_a_window_by_definition(n, window):
    """Output o sees the real inputs among `o*s - p + t*d`."""
    k, s, before, after, d = window
    if n + before + after < d * (k - 1) + 1:
        return
    part, n_out = slide(identity(n, 0).parts[0], n, ONE, *window)
    got = full([part], (n_out,))
    for o in range(n_out):
        taps = [o * s - before + t * d for t in range(k)]
        real = [t for t in taps if 0 <= t < n]
        assert got[:2, o].tolist() == ([min(real), -max(real)] if real else [EMPTY, EMPTY])
        assert got[2:, o].tolist() == [taps[0], -taps[-1]]


@st.composite
def chains(draw):
    """A map, and windows one behind the other that leave something of it."""
    n = draw(st.integers(4, 40))
    steps, size = [], n
    for _ in range(draw(st.integers(1, 5))):
        k, s, p, d = (draw(st.integers(*span)) for span in ((1, 5), (1, 3), (0, 4), (1, 3)))
        out = window_length(size, k, s, p, p, d)
        if out < 1:
            break
        steps.append((size, out, k, s, p, d))
        size = out
    return n, steps


@laws
@given(chains(), chains())
def test_a_line_is_its_array(one, other):
    """What is known of an array by arithmetic is what stands in it; also of the hull of two."""
    ends = []
    for n, steps in (one, other):
        part, jump = identity(n, 2).parts[0], ONE
        for size, out, k, s, p, d in steps:
            if 2 not in part.dims:
                break
            line = sliding._window_line(line_of(part.bounds), size, out, k, s, p, d, jump)
            if line is not None:
                assert (sliding._drawn(line, out) == sliding._window(part.bounds, 1, out, k, s, p, d, jump)).all()
            part, jump = window_part(part, 2, size, out, k, s, p, d, jump), jump * s
        ends.append(part)
    a, b = ends
    if a.bounds.shape == b.bounds.shape:
        hull = minimum(a.bounds, b.bounds)
        if line_of(hull) is not None:
            assert (sliding._drawn(line_of(hull), hull.shape[1]) == hull).all()
    memo.forget()


def test_padding_goes_on_with_the_nominal_jump():
    """A jump that the array itself does not have, as where two paths disagree, is still the one that counts."""
    part = window_part(identity(8, 2).parts[0], 2, 8, 8, 3, 1, 1, 1, Fraction(2))
    assert part.bounds[2].tolist() == [-2, 0, 1, 2, 3, 4, 5, 6]
    assert line_of(part.bounds) is None


def test_usual_windows_stay_lines():
    part, size, jump = identity(224, 2).parts[0], 224, ONE
    for k, s, p in ((7, 2, 3), (3, 2, 1), (3, 1, 1), (3, 2, 1), (3, 1, 1)):
        out = window_length(size, k, s, p, p, 1)
        part, size, jump = window_part(part, 2, size, out, k, s, p, 1, jump), out, jump * s
        assert line_of(part.bounds) is not None
    memo.forget()
    assert line_of(part.bounds) is None


@laws
@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(0, 3))
def test_a_dense_block_continues_its_concatenation(sizes, odd):
    """One operand more each time is the same as all at once."""
    n = 6
    base = identity(n, 2)
    axes = [base.with_parts([window_part(base.parts[0], 2, n, n, 2 * i + 1, 1, i, 1, ONE)]) for i in range(len(sizes))]
    if odd < len(axes):
        axes[odd] = join_axes([axes[odd], base])
    grown = [beside_axes(axes[:i], sizes[:i], 1) for i in range(1, len(sizes) + 1)][-1]
    reduced = reduce(Field((grown,)), (1,)).axes[0]
    memo.forget()
    once = beside_axes(axes, sizes, 1)
    assert once.before is None
    again = reduce(Field((once,)), (1,)).axes[0]
    for a, b in ((grown, once), (reduced, again)):
        assert (a.jump, a.aligned, a.mixed) == (b.jump, b.aligned, b.mixed)
        shape = (1, sum(sizes), n)
        assert (dense(a.parts, shape)[0] == dense(b.parts, shape)[0]).all()
    memo.forget()


def test_the_same_fields_in_other_widths_are_other_concatenations():
    first, wide = identity(6, 2), identity(6, 2)
    last = wide.with_parts([window_part(wide.parts[0], 2, 6, 6, 3, 1, 1, 1, ONE)])
    beside_axes([first, wide], [2, 2], 1)
    found = beside_axes([first, wide, last], [3, 1, 2], 1)
    assert [part.span[1:] for part in found.parts] == [(0, 3), (3, 4), (4, 6)]
    memo.forget()


def test_a_dense_block_may_be_longer_than_python_recurses():
    n, length = 4, sys.getrecursionlimit() + 100
    base = identity(n, 2)
    axes = [base.with_parts([base.parts[0]]) for _ in range(length)]
    grown = [beside_axes(axes[:i], [1] * i, 1) for i in range(2, length + 1)][-1]
    assert grown.before is not None
    assert len(reduce(Field((grown,)), (1,)).axes[0].parts) == 1
    memo.forget()


def test_lines_of_one_position_agree_whatever_their_step():
    ends = [window_part(identity(6, 2).parts[0], 2, 6, 1, 6, step, 0, 1, ONE) for step in (1, 2)]
    assert len({line_of(end.bounds).step for end in ends}) == 2
    assert join_axes([AxisField((end,)) for end in ends]).aligned
    memo.forget()


@laws
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2))
def test_transposed_taps_by_definition(n, k, s, p, d):
    n_out = max(1, (n - 1) * s - 2 * p + d * (k - 1) + 1)
    taps = transposed_taps(n, n_out, k, s, p, d)
    reached = [[i for i in range(n) for t in range(k) if i * s - p + t * d == o] for o in range(n_out)]
    assert [sorted(int(v) for v in row if v >= 0) for row in taps.exact] == [sorted(r) for r in reached]


# --------------------------------------------------------------------------------------------------------- movements


@laws
@given(parts(), st.permutations(range(3)))
def test_permute_and_back(p, order):
    there = permute_part(p, order)
    shape = tuple(SHAPE[d] for d in order)
    same(full([there], shape), full([p]).transpose(0, *(d + 1 for d in order)))
    back = permute_part(there, sorted(range(3), key=order.__getitem__))
    same(full([back]), full([p]))


@laws
@given(parts(), st.sampled_from([(24,), (12, 2), (3, 8), (4, 6), (2, 3, 2, 2), (3, 1, 4, 2), (6, 2, 2), (3, 4, 2)]))
def test_reshape_and_back(p, new):
    there = reshape_part(p, SHAPE, new)
    same(full([there], new), full([p]).reshape(4, *new))
    same(full([reshape_part(there, new, SHAPE)]), full([p]))


@laws
@given(parts(), st.integers(0, 2), st.data())
def test_take(p, dim, data):
    n = SHAPE[dim]
    same(full([take_part(p, dim, n, np.arange(n))]), full([p]))
    index = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=5)))
    shape = (*SHAPE[:dim], len(index), *SHAPE[dim + 1 :])
    same(full([take_part(p, dim, n, index)], shape), full([p]).take(index, dim + 1))


@laws
@given(
    parts(),
    st.integers(0, 2),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from(["constant", "circular", "reflect", "replicate"]),
)
def test_pad_then_crop(p, dim, before, after, mode):
    n = SHAPE[dim]
    padded = pad_part(p, dim, n, before, after, mode, ONE)
    shape = (*SHAPE[:dim], n + before + after, *SHAPE[dim + 1 :])
    outside = np.r_[0:before, before + n : before + n + after]
    if mode == "constant":
        assert (full([padded], shape)[:2].take(outside, dim + 1) == EMPTY).all()
    elif max(before, after) < n:
        at = np.pad(np.arange(n), (before, after), {"circular": "wrap", "replicate": "edge"}.get(mode, mode))
        same(full([padded], shape)[:2], full([p])[:2].take(at, dim + 1))
    same(full([pad_part(padded, dim, shape[dim], -before, -after, "constant", ONE)]), full([p]))


@laws
@given(parts(), st.integers(0, 2))
def test_prefix_is_a_running_hull(p, dim):
    got = full([prefix_part(p, dim, SHAPE[dim])])
    same(got, np.minimum.accumulate(full([p]), dim + 1))
    assert (np.diff(got, axis=dim + 1) <= 0).all()
    assert (got <= full([p])).all()


@laws
@given(parts(), st.integers(0, 2), st.integers(0, 2), st.integers(0, 2))
def test_place_then_take(p, dim, before, after):
    n = SHAPE[dim]
    total = before + n + after
    placed = place_part(p, dim, before, n, total)
    shape = (*SHAPE[:dim], total, *SHAPE[dim + 1 :])
    got = full([placed], shape)
    same(got.take(np.arange(before, before + n), dim + 1), full([p]))
    assert (got.take(np.r_[0:before, before + n : total], dim + 1) == EMPTY).all()


# ------------------------------------------------------------------------------------------------------------- spans


@laws
@given(parts(), st.integers(0, 2), st.data())
def test_a_span_is_its_array(p, dim, data):
    """Under every operation a part with a span and the same part written out give the same."""
    if p.span is None:
        return
    out = expand_span(p, SHAPE[p.span.dim])
    same(full([p]), full([out]))
    n = SHAPE[dim]
    index = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=5)))
    order = data.draw(st.permutations(range(3)))
    k = data.draw(st.integers(1, n))
    new = data.draw(st.sampled_from([(24,), (12, 2), (3, 8), (3, 1, 4, 2)]))
    grown = tuple(n + 3 if d == dim else s for d, s in enumerate(SHAPE))
    cases = [
        (lambda q: take_part(q, dim, n, index), (*SHAPE[:dim], len(index), *SHAPE[dim + 1 :])),
        (lambda q: permute_part(q, order), tuple(SHAPE[d] for d in order)),
        (lambda q: reshape_part(q, SHAPE, new), new),
        (lambda q: window_part(q, dim, n, n - k + 1, k, 1, 0, 1, ONE), (*SHAPE[:dim], n - k + 1, *SHAPE[dim + 1 :])),
        (lambda q: prefix_part(q, dim, n), SHAPE),
        (lambda q: place_part(q, dim, 1, n, n + 3), grown),
        (lambda q: pad_part(q, dim, n, 1, 2, "replicate", ONE), grown),
        (lambda q: pad_part(q, dim, n, 1, 2, "constant", ONE), grown),
        (lambda q: spread(q, dim, n), SHAPE),
        (lambda q: renumber_part(q, {0: 0, 1: 2, 2: 3}), (3, 1, 4, 2)),
        (lambda q: reduce_part(q, frozenset((dim,))), SHAPE),
    ]
    for i, (move, shape) in enumerate(cases):
        a, b = full([move(p)], shape), full([move(out)], shape)
        rows = slice(None) if i not in (3, 6, 7) else slice(0, 2)  # beyond the ends only the exact rows are defined
        np.testing.assert_array_equal(a[rows], b[rows], err_msg=f"operation {i}")


# ------------------------------------------------------------------------------------------------------------ writes


@laws
@given(st.lists(parts(), min_size=1, max_size=2), st.data())
def test_write_box(kept, data):
    """What was written can be read there; the rest is what it was."""
    box = []
    for dim in data.draw(st.sets(st.integers(0, 2), min_size=1)):
        some = data.draw(st.sets(st.integers(0, SHAPE[dim] - 1), min_size=1))
        box.append((dim, np.array(sorted(some))))
    size = tuple(len(dict(box)[d]) if d in dict(box) else n for d, n in enumerate(SHAPE))
    written = data.draw(parts(size))
    old, new = Field((AxisField(tuple(kept)),)), Field((AxisField((written,)),))
    where = np.ix_(range(4), *(dict(box).get(d, np.arange(n)) for d, n in enumerate(SHAPE)))
    expected = full(kept).copy()
    expected[where] = full([written], size)
    same(hull(write_box(old, new, SHAPE, box)), expected)
    expected[where] = EMPTY
    cleared = hull(write_box(old, None, SHAPE, box))
    same(cleared, expected)


def test_a_join_is_mixed_if_any_operand_is():
    plain = identity(4, 0)
    longer = AxisField((*plain.parts, Part(np.array([0, -3, 0, -3]), (), False)), mixed=False)
    for with_context in (plain.as_mixed(), AxisField(longer.parts, mixed=True)):
        for operands in ([plain, with_context], [with_context, plain], [plain, plain, with_context]):
            assert join_axes(operands).mixed
    assert not join_axes([plain, identity(4, 0)]).mixed


@laws
@given(st.integers(0, 1 << 30), st.integers(1, 4), st.integers(1, 40))
def test_distinct_columns_are_all_columns_once(seed, high, n):
    b = np.random.default_rng(seed).integers(0, high, (4, n))
    found = [tuple(column) for column in reading._distinct(b).T]
    assert len(found) == len(set(found))
    assert set(found) == {tuple(column) for column in b.T}


def test_what_is_the_same_everywhere_is_context_only_beside_what_is_not():
    even = Part(np.array([0, -3, 0, -3]), ())
    on_some = even._replace(span=Span(0, 0, 2))
    assert all(p.local for p in atoms.merge([even, on_some]))
    assert [p.local for p in atoms.merge([*identity(4, 0).parts, even])] == [True, False]


def test_a_part_that_equals_the_hull_of_others_is_dominated():
    part = identity(4, 0).parts[0]
    assert atoms.dominated(part, [part])
    assert not atoms.dominated(part, [part._replace(bounds=part.bounds + 1)])
