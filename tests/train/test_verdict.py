"""Verdicts worked out by hand, the bounds against their definitions, and laws that hold for every run."""

import math
from fractions import Fraction

import pytest
from epochs import epoch, trained
from hypothesis import given
from hypothesis import strategies as st

from rfcalc.errors import RfcalcError
from rfcalc.train.verdict import Claim, bound, interval, judge, reaches

GOOD = [9000] * 10 + [9940, 9941, 9945, 9950, 9943]
ONE_SHORT = [9999] * 10 + [9940, 9939, 9999, 9999, 9999]
SURE = [9000] * 10 + [9956] * 5

# name: (counts of right images per seed), parameters, the rest of the claim -> hold, seeds, population
CASES = {
    "exactly at the target": ([GOOD], 8000, {}, (True, False, False)),
    "one image short, once": ([ONE_SHORT], 8000, {}, (False, False, True)),
    "the best epochs are not the last": ([[9999] * 10 + [9930] * 5], 1, {}, (False, False, False)),
    "short before the last five only": ([[9939, *SURE[1:]]], 1, {}, (True, False, True)),
    "one parameter too many": ([SURE] * 5, 8001, {}, (False, False, False)),
    "another budget": ([SURE] * 5, 8001, {"max_params": 8001}, (True, True, True)),
    "one epoch too many": ([[9956] * 16] * 5, 1, {}, (False, False, False)),
    "more epochs allowed": ([[9956] * 16] * 5, 1, {"max_epochs": 16}, (True, True, True)),
    "one seed of five short": ([GOOD] * 4 + [ONE_SHORT], 1, {}, (False, False, False)),
    "four seeds hold: 47 percent at least": ([GOOD] * 4, 1, {}, (True, False, False)),
    "five seeds hold: 55 percent at least": ([GOOD] * 5, 1, {}, (True, True, False)),
    "nine of ten: 61 percent at least": ([GOOD] * 9 + [ONE_SHORT], 1, {}, (False, True, False)),
    "the lowest seed counts": ([SURE] * 4 + [GOOD], 1, {}, (True, True, False)),
    "9955 of 10000 may be 99.398 percent": ([[9955] * 15], 1, {}, (True, False, False)),
    "9956 of 10000 are 99.409 or more": ([[9956] * 15], 1, {}, (True, False, True)),
    "a seed that has not begun": ([GOOD, []], 1, {}, (False, False, False)),
    "a seed that is not through": ([SURE] * 9 + [SURE[:14]], 1, {}, (False, False, False)),
    "only the last epoch": ([ONE_SHORT], 1, {"last": 1}, (True, False, True)),
    "all epochs": ([GOOD], 1, {"last": 15}, (False, False, False)),
    "a lower target": ([ONE_SHORT], 1, {"target": 99.39}, (True, False, True)),
    "raw weights are ten lower": ([GOOD], 1, {"weights": "raw"}, (False, False, False)),
    "raw weights, a lower target": ([GOOD], 1, {"weights": "raw", "target": 99.3}, (True, False, False)),
}


@pytest.mark.parametrize("name", CASES)
def test_cases(name):
    counts, params, options, expected = CASES[name]
    runs = {seed: trained(one, seed=seed) for seed, one in enumerate(counts, 1)}
    verdict = judge(runs, params=params, claim=Claim(**options))
    first = verdict.judged[0]
    assert (first.hold, first.enough_seeds, first.population) == expected
    for line, passed in zip(("hold", "seeds", "population"), expected, strict=True):
        assert judge(runs, params=params, claim=Claim(**options, require=line)).verified == passed


# correct, total, target: at 10,000 images every hundredth of a percent is a count; at others it falls between two.
@pytest.mark.parametrize(
    ("least", "total", "target"),
    [(9940, 10_000, 99.4), (358, 360, 99.4), (39_760, 40_000, 99.4), (7, 7, 99.9), (3, 3, 100), (1, 1000, 0.1)],
)
def test_the_target_is_compared_exactly(least, total, target):
    assert reaches(least, total, target)
    assert not reaches(least - 1, total, target)


def test_floats_would_get_it_wrong():
    assert reaches(9004, 10_000, 90.04)
    assert 100 * 9004 < 90.04 * 10_000
    assert 9004 / 10_000 < 90.04 / 100


def test_the_figures():
    runs = {2: trained([9900, 9950, 9960], seed=2), 1: trained([9900, 9948, 9954], seed=1), 3: trained([9990] * 3)}
    judged, raw = judge(runs, params=10, claim=Claim(last=2, target=99.5)).judged
    assert [(one.seed, one.correct, one.holds) for one in judged.seeds] == [
        (1, (9948, 9954), False),
        (2, (9950, 9960), True),
        (3, (9990, 9990), True),
    ]
    assert judged.spread.mean == pytest.approx((99.54 + 99.60 + 99.90) / 3)
    assert judged.spread.sd == pytest.approx(math.sqrt((0.14**2 + 0.08**2 + 0.22**2) / 2))
    assert (judged.spread.lowest, judged.lowest.seed, judged.holding) == (99.54, 1, 2)
    assert judged.bound == pytest.approx(0.13535, abs=1e-5)
    assert (judged.weights, raw.weights, raw.seeds[0].correct) == ("ema", "raw", (9938, 9944))
    assert judged.interval == interval(9954, 10_000)


def test_one_seed_has_no_deviation():
    judged, _ = judge({7: trained([9950] * 5)}, params=1).judged
    assert (judged.spread.sd, judged.spread.mean, judged.spread.lowest) == (None, 99.5, 99.5)


def test_without_averaged_weights_the_raw_ones_are_all():
    runs = {1: [epoch(i, ema=None) for i in range(1, 6)]}
    verdict = judge(runs, params=1, claim=Claim(weights="raw"))
    assert [one.weights for one in verdict.judged] == ["raw"]
    assert verdict.verified
    with pytest.raises(RfcalcError, match="the recipe keeps none; expected --weights raw"):
        judge(runs, params=1)


def test_epochs_that_are_still_to_come():
    verdict = judge({1: trained([9999] * 5), 2: []}, params=1, epochs=15)
    assert not verdict.verified
    judged = verdict.judged[0]
    assert [(one.epochs, one.correct, one.holds) for one in judged.seeds] == [(5, (), False), (0, (), False)]
    assert (judged.spread, judged.lowest, judged.interval, judged.bound) == (None, None, None, 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 0}, "target 0: expected percent"),
        ({"target": 100.1}, "target 100.1: expected"),
        ({"target": math.nan}, "target nan: expected"),
        ({"last": 0}, "last 0: expected 1 or more"),
        ({"max_params": 0}, "max_params 0"),
        ({"max_epochs": -1}, "max_epochs -1"),
        ({"weights": "best"}, "weights 'best': expected one of ema, raw"),
        ({"require": "luck"}, "require 'luck': expected one of hold, seeds, population"),
    ],
)
def test_what_cannot_be_claimed(options, message):
    with pytest.raises(RfcalcError, match=message):
        Claim(**options)


def test_more_last_epochs_than_epochs():
    with pytest.raises(RfcalcError, match="the last 5 epochs are to count, of 4; expected no more"):
        judge({1: trained([9999] * 4)}, params=1)
    with pytest.raises(RfcalcError, match="no seed"):
        judge({}, params=1)


# --- the bounds by their definitions -------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "n"), [(1, 1), (3, 3), (5, 5), (2, 3), (9, 10), (31, 32)])
def test_the_clopper_pearson_bound(k, n):
    """With that share, k or more of n happen in one trial of twenty."""
    p = bound(k, n)
    assert sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1)) == pytest.approx(0.05)
    assert bound(n, n) == pytest.approx(0.05 ** (1 / n))


def test_nothing_holds():
    assert bound(0, 3) == 0


@pytest.mark.parametrize(("correct", "total"), [(9940, 10_000), (9956, 10_000), (351, 360), (360, 360)])
def test_the_wilson_interval(correct, total):
    """The shares that lie 1.96 of their own standard deviations from what was found."""
    found = interval(correct, total)
    assert found.share == correct / total
    z = 1.959963984540054
    p = correct / total
    middle, half = p + z * z / (2 * total), z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    assert found.low == pytest.approx((middle - half) / (1 + z * z / total))
    assert found.high == pytest.approx(min(1, (middle + half) / (1 + z * z / total)))


# --- laws ----------------------------------------------------------------------------------------------------

counts = st.lists(st.integers(9900, 10_000), min_size=6, max_size=15)


@given(counts)
def test_only_the_last_epochs_count_and_not_their_order(run):
    claim = Claim(last=3)
    judged = judge({1: trained(run)}, params=1, claim=claim).judged[0]
    assert judged.hold == (min(run[-3:]) >= 9940)
    better = judge({1: trained([10_000] * (len(run) - 3) + run[-3:])}, params=1, claim=claim).judged[0]
    assert better == judged


@given(counts, st.integers(0, 14), st.integers(0, 50))
def test_more_images_right_never_hurt(run, place, more):
    place %= len(run)
    better = [*run[:place], min(10_000, run[place] + more), *run[place + 1 :]]
    lines = ("hold", "seeds", "population")
    before, after = (judge({seed: trained(one) for seed in range(6)}, params=1).judged[0] for one in (run, better))
    assert all(after.passes(line) >= before.passes(line) for line in lines)
    assert after.bound >= before.bound


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_bounds_lie_around_what_was_found(case):
    k, n = case
    found = interval(k, n)
    assert 0 <= found.low <= k / n <= found.high <= 1
    assert 0 <= bound(k, n) <= k / n
    assert bound(k, n + 1) <= bound(k, n)


@given(st.integers(1, 100_000), st.integers(1, 10_000))
def test_reaching_is_exact(total, hundredths):
    least = math.ceil(Fraction(hundredths * total, 10_000))
    assert reaches(least, total, hundredths / 100)
    assert not reaches(least - 1, total, hundredths / 100)
