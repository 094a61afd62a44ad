"""Resampling taps against torch's own kernels, measured on rows of an identity matrix."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F

from rfcalc.analysis.rules.resample import antialias_taps, cubic_taps, linear_taps, nearest_taps


def measured(n, size, scale, mode, align, antialias=False):
    """The inputs with a weight in each output. Two-dimensional modes run along the width of a map of height 2."""
    flat = mode in ("nearest", "nearest-exact", "linear")
    probe = torch.eye(n, dtype=torch.float64)[:, None]
    probe = probe if flat else probe[:, :, None].expand(n, 1, 2, n)
    sizes = None if size is None else [size] if flat else [2, size]
    scales = None if scale is None else [scale] if flat else [1.0, scale]
    out = F.interpolate(probe, sizes, scales, mode, align, None, antialias)
    weights = out.reshape(n, -1, out.shape[-1])[:, 0].T
    return [sorted(torch.nonzero(row.abs() > 1e-6).flatten().tolist()) for row in weights]


def taps_of(taps):
    return [sorted({int(v) for v in row if v >= 0}) for row in taps.exact]


SIZES = [(1, 1), (1, 4), (2, 1), (2, 5), (5, 1), (5, 3), (5, 5), (5, 10), (7, 4), (7, 12), (9, 2), (10, 7)]
FACTORS = [(5, 2.0), (5, 0.5), (7, 1.5), (7, 0.7), (9, 1 / 3), (4, 3.0), (10, 0.3), (6, 1.0)]


@pytest.mark.parametrize(("n", "size"), SIZES)
def test_sizes(n, size):
    assert taps_of(nearest_taps(n, size, None, False)) == measured(n, size, None, "nearest", None)
    assert taps_of(nearest_taps(n, size, None, True)) == measured(n, size, None, "nearest-exact", None)
    for align in (False, True):
        assert taps_of(linear_taps(n, size, None, align)) == measured(n, size, None, "linear", align)
        assert taps_of(cubic_taps(n, size, None, align)) == measured(n, size, None, "bicubic", align)
        for mode, support in (("bilinear", 1), ("bicubic", 2)):
            ours = antialias_taps(n, size, None, align, support)
            assert taps_of(ours) == measured(n, size, None, mode, align, True), (mode, align)


@pytest.mark.parametrize(("n", "factor"), FACTORS)
def test_factors(n, factor):
    """Where a factor is given, torch steps by it and not by the ratio of the lengths."""
    size = int(n * factor)
    assert taps_of(nearest_taps(n, size, factor, False)) == measured(n, None, factor, "nearest", None)
    assert taps_of(nearest_taps(n, size, factor, True)) == measured(n, None, factor, "nearest-exact", None)
    for align in (False, True):
        assert taps_of(linear_taps(n, size, factor, align)) == measured(n, None, factor, "linear", align)
        assert taps_of(cubic_taps(n, size, factor, align)) == measured(n, None, factor, "bicubic", align)
        for mode, support in (("bilinear", 1), ("bicubic", 2)):
            ours = antialias_taps(n, size, factor, align, support)
            assert taps_of(ours) == measured(n, None, factor, mode, align, True), (mode, align)


@pytest.mark.parametrize(
    ("op", "args", "exact", "free"),
    [
        ("upsample_nearest1d", ([6],), [(0, 0), (0, 0), (1, 1), (1, 1), (2, 2), (2, 2)], None),
        ("_upsample_nearest_exact1d", ([2],), [(0, 0), (2, 2)], None),
        (
            "upsample_linear1d", ([6], False),
            [(0, 0), (0, 1), (0, 1), (1, 2), (1, 2), (2, 2)], [(-1, 0), (0, 1), (0, 1), (1, 2), (1, 2), (2, 3)],
        ),
        ("upsample_linear1d", ([5], True), [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)], None),
        ("upsample_linear1d", (None, True, [1.0]), [(0, 0), (1, 1), (2, 2)], None),
    ],
)  # fmt: skip
def test_rules(rules, op, args, exact, free):
    got = rules.run(op, (1, 1, len(exact)), rules.image(1, 1, 3), *args)
    assert got.exact == (exact,)
    assert got.free == (free or exact,)
    assert got.jumps == (Fraction(3, len(exact)),)


def test_sampling_is_global_but_knows_its_own_coordinates(rules):
    x, grid = rules.image(1, 2, 3, 4), rules.image(1, 2, 5, 2, axes=(1, 2))
    assert rules.run("grid_sampler", (1, 2, 2, 5), x, rules.const(torch.zeros(1, 2, 5, 2))).exact == (
        [(0, 2)] * 20, [(0, 3)] * 20,
    )  # fmt: skip
    alone = rules.run("grid_sampler", (1, 1, 2, 5), rules.weight(1, 1, 3, 4), grid)
    assert alone.exact == ([(0, 0)] * 5 + [(1, 1)] * 5, [(i, i) for i in range(5)] * 2)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("factor", [0.3, 0.5, 0.9, 1.0, 1.04, 1.3, 1.9, 2.0, 2.04, 2.3, 2.45, 3.3, "size", "recompute"])
def test_nearest_reads_what_torch_reads(rules, ndim, exact, n, factor):
    """In two dims torch copies or halves the index where the lengths allow it, whatever the factor says."""
    wide = [*[2] * (ndim - 1), n]
    ramp = torch.arange(float(n)).expand(1, 1, *wide)
    mode = "nearest-exact" if exact else "nearest"
    if factor == "size":
        out, given = F.interpolate(ramp, [*[2] * (ndim - 1), 2 * n + 1], mode=mode), None
    elif factor == "recompute":
        out, given = F.interpolate(ramp, scale_factor=2.3, mode=mode, recompute_scale_factor=True), None
    elif int(n * factor) == 0:
        pytest.skip("no output")
    else:
        given = [*[1.0] * (ndim - 1), factor]
        out = F.interpolate(ramp, scale_factor=given, mode=mode)
    op = f"_upsample_nearest_exact{ndim}d" if exact else f"upsample_nearest{ndim}d"
    x = rules.image(1, 1, *wide, axes=(ndim + 1,))
    size = tuple(out.shape)
    assert rules.run(op, size, x, list(size[2:]), given).exact == ([(int(v), int(v)) for v in out.flatten()],)
