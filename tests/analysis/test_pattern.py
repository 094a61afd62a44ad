"""Masks too large to be built: the same intervals as those that are, at the cost of a sequence."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import rfcalc
from rfcalc.analysis import ops, pattern, reading, schemas

INF = math.inf


class Attention(nn.Module):
    """Tokens that attend to themselves by a mask (true where allowed), spelled in one of the usual ways."""

    def __init__(self, mask, spelling="masked_fill"):
        super().__init__()
        self.mask, self.spelling = mask, spelling

    def forward(self, x):
        allowed, q = self.mask(x.shape[1]), x[:, None]
        if self.spelling == "sdpa":
            return F.scaled_dot_product_attention(q, q, q, attn_mask=allowed)[:, 0]
        scores = q @ q.transpose(-1, -2) / math.sqrt(x.shape[-1])
        if self.spelling == "additive":
            scores = scores + torch.zeros_like(allowed, dtype=x.dtype).masked_fill_(~allowed, -INF)
        elif self.spelling == "where":
            scores = torch.where(allowed, scores, torch.finfo(x.dtype).min)
        else:
            scores = scores.masked_fill(~allowed, -INF)
        return (scores.softmax(-1) @ q)[:, 0]


SPELLINGS = ["sdpa", "additive", "where", "masked_fill"]


def regions(found, row=-1):
    """Per position of a row, the first and last input it sees."""
    last = found.rows[row]
    return [found.region(last, at)[0].exact for at in itertools.product(*map(range, last.n_out))]


# --------------------------------------------------------------------------------------- the law, of random masks

sizes, few = st.integers(-4, 8), st.integers(0, 5)
leaves = st.one_of(
    st.builds(lambda d: lambda n: torch.ones(n, n, dtype=torch.bool).tril(d), sizes),
    st.builds(lambda d: lambda n: torch.full((n, n), True).triu(d), sizes),
    st.builds(lambda w: lambda n: _apart(n).abs() <= w, st.integers(0, 4)),
    st.builds(lambda s, w: lambda n: _dilated(n, s, w), st.integers(2, 3), st.integers(1, 3)),
    st.builds(lambda b: lambda n: (torch.arange(n) // b)[:, None] == (torch.arange(n) // b), st.integers(1, 5)),
    st.builds(lambda p: lambda n: torch.arange(n)[None, :].expand(n, n) < p, sizes),
    st.builds(lambda p: lambda n: (torch.arange(n) < p)[:, None].repeat(1, n), sizes),
    st.builds(lambda v: lambda n: torch.empty(n, n).fill_(v) > 0, st.booleans()),
    st.builds(lambda p: lambda n: _overwritten(torch.zeros(n, n), p), st.integers(1, 5)),
    st.builds(lambda a: lambda n: (2 * torch.arange(n))[:, None] >= torch.arange(n) + a, sizes),
    st.builds(lambda p: lambda n: torch.cat([torch.ones(n, p), torch.ones(n, n - p).tril(-p)], 1) > 0, few),
    st.builds(lambda p: lambda n: torch.cat([torch.ones(p, n), torch.eye(n)[p:]]).bool(), few),
)  # fmt: skip


def _dilated(n, step, width):
    return (_apart(n) % step == 0) & (_apart(n) >= 0) & (_apart(n) < width * step)


def _apart(n):
    at = torch.arange(n)
    return at.unsqueeze(1) - at


def _overwritten(m, p):
    m[:, :p] = 1
    m[p:, -1] = 1
    m[:p, p:].fill_(1)
    return m == 1


def extend(masks):
    return st.one_of(
        st.builds(lambda a: lambda n: ~a(n), masks),
        st.builds(lambda a, b: lambda n: a(n) & b(n), masks, masks),
        st.builds(lambda a, b: lambda n: torch.logical_or(a(n), b(n)), masks, masks),
        st.builds(lambda a: lambda n: a(n).transpose(0, 1), masks),
        st.builds(lambda a: lambda n: a(n + 3)[1 : n + 1, 2 : n + 2], masks),
        st.builds(lambda a: lambda n: a(n)[None, None].expand(1, 2, n, n)[:, 0].squeeze(0).clone(), masks),
        st.builds(lambda a: lambda n: torch.zeros(n, n).masked_fill(a(n), -INF) == 0, masks),
        st.builds(lambda a, b: lambda n: torch.where(a(n), b(n), False), masks, masks),
        st.builds(lambda a, d: lambda n: a(n).float().tril(d).to(torch.bool), masks, sizes),
    )


masks = st.recursive(leaves, extend, max_leaves=4)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150)
@given(masks, st.sampled_from(SPELLINGS), st.integers(5, 9), st.sampled_from([1, 2]))
def test_a_mask_by_its_pattern_lets_through_what_the_mask_does(mask, spelling, n, level):
    allowed = mask(n)
    assume(allowed.shape == (n, n) and bool(allowed.any(1).all()))
    seen = [{i, *row.nonzero().flatten().tolist()} for i, row in enumerate(allowed)]
    with pytest.MonkeyPatch.context() as patch:
        for module in (pattern, ops, schemas):
            patch.setattr(module, "LARGE", 20)
        found = rfcalc.analyze(Attention(mask, spelling), (n, 4), layout="TC", level=level)
    for (low, high), inputs in zip(regions(found), seen, strict=True):
        if found.approximate_ops:  # named, and never too little
            assert low <= min(inputs)
            assert high >= max(inputs)
        else:
            assert (low, high) == (min(inputs), max(inputs))


KNOWN = {
    "causal": lambda n: torch.ones(n, n, dtype=torch.bool).tril(),
    "causal, compared": lambda n: torch.arange(n)[:, None] >= torch.arange(n)[None],
    "the other way round": lambda n: torch.arange(n)[None] <= torch.arange(n)[:, None],
    "the old tutorial's": lambda n: (torch.triu(torch.ones(n, n)) == 1).transpose(0, 1),
    "generated": lambda n: nn.Transformer.generate_square_subsequent_mask(n) == 0,
    "window": lambda n: torch.ones(n, n).tril().triu(-3) > 0,
    "band": lambda n: _apart(n).abs() <= 2,
    "prefix": lambda n: (torch.arange(n)[None] <= torch.arange(n)[:, None]) | (torch.arange(n)[None] < 4),
    "prefix, written": lambda n: _overwritten(torch.ones(n, n).tril(), 4),
    "blocks": lambda n: (torch.arange(n) // 3)[:, None] == (torch.arange(n) // 3)[None],
    "blocks, causal": lambda n: (torch.arange(n) // 3)[:, None] >= (torch.arange(n) // 3)[None],
    "dilated": lambda n: (_apart(n) % 3 == 0) & (_apart(n) >= 0) & (_apart(n) < 12),
    "window and global": lambda n: (
        (_apart(n).abs() <= 1) | (torch.arange(n)[:, None] < 2) | (torch.arange(n)[None] < 2)
    ),
    "ALiBi": lambda n: (-0.5 * _apart(n).float()).masked_fill(torch.ones(n, n).triu(1).bool(), -INF) > -INF,
    "of the memory's length": lambda n: torch.cat([torch.ones(n, 3), torch.ones(n, n - 3).tril(-3)], 1).bool(),
    "a corner": lambda n: torch.ones(n + 9, n + 9, dtype=torch.bool).tril()[None, None, :n, :n][0, 0],
    "of empty": lambda n: torch.empty(n, n).fill_(-INF).triu_(1) == 0,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", KNOWN)
def test_the_usual_masks_are_exact_by_their_patterns(name, spelling, monkeypatch):
    """Every number of every row is what it is with the mask written out."""
    n = 17
    model = Attention(KNOWN[name], spelling)
    expected = rfcalc.analyze(model, (n, 4), layout="TC")
    for module, limit in ((pattern, "LARGE"), (ops, "LARGE"), (schemas, "LARGE"), (reading, "WRITE_OUT")):
        monkeypatch.setattr(module, limit, 20)
    for level in (1, 2):
        found = rfcalc.analyze(model, (n, 4), layout="TC", level=level)
        assert found.approximate_ops == ()
        assert found.rows == expected.rows
        assert (
            found.peak_activation_bytes == rfcalc.analyze(model, (n, 4), layout="TC", level=level).peak_activation_bytes
        )
        for row in range(len(found.rows)):
            assert regions(found, row) == regions(expected, row)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", KNOWN)
def test_a_hundred_thousand_tokens_at_the_cost_of_a_sequence(name, spelling):
    n = 100_000
    model = Attention(KNOWN[name], spelling)
    small = regions(rfcalc.analyze(model, (60, 4), layout="TC"))
    tracemalloc.start()
    found = rfcalc.analyze(model, (n, 4), layout="TC")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < n * n // 20  # two fifths of a bit for each entry of the mask; a mask of torch has eight
    assert found.approximate_ops == ()
    last = found.rows[-1]
    assert [found.region(last, (i,))[0].exact for i in range(6, 18)] == [
        (low, n - 1) if high == 59 else (low, high) for low, high in small[6:18]
    ]
    assert found.peak_activation_bytes > n * n


@pytest.mark.parametrize("level", [1, 2])
def test_a_pattern_nobody_can_follow_is_approximate_and_named(level):
    model = Attention(lambda n: torch.ones(n, n, dtype=torch.bool).tril().roll(3, 0))
    found = rfcalc.analyze(model, (3000, 4), layout="TC", level=level)
    assert found.approximate_ops == ("masked_fill with a large mask",)
    assert found.region(found.rows[-1], (5,))[0].exact == (0, 2999)


# ------------------------------------------------------------------------------------------------- torch's own layers


class Layer(nn.Module):
    def __init__(self, layer, mask, call):
        super().__init__()
        self.layer, self.call = layer, call
        self.mask = mask if callable(mask) else None
        if self.mask is None:
            self.register_buffer("held", mask)

    def forward(self, x):
        n = x.shape[1]
        return self.call(self.layer, x, self.mask(n) if self.mask else self.held[..., :n, :n])


def floats(n):
    return nn.Transformer.generate_square_subsequent_mask(n)


def flags(n):
    return torch.ones(n, n, dtype=torch.bool).triu(1)


def attends(**options):
    return lambda layer, x, mask: layer(x, x, x, attn_mask=mask, **options)[0]


LAYERS = {
    "mha": (lambda: nn.MultiheadAttention(4, 2, batch_first=True), attends()),
    "mha, no weights": (lambda: nn.MultiheadAttention(4, 2, batch_first=True), attends(need_weights=False)),
    "mha, hinted": (
        lambda: nn.MultiheadAttention(4, 2, batch_first=True),
        attends(need_weights=False, is_causal=True),
    ),
    "mha, per head": (
        lambda: nn.MultiheadAttention(4, 2, batch_first=True),
        lambda layer, x, mask: layer(x, x, x, attn_mask=mask[None].expand(2, -1, -1))[0],
    ),
    "encoder layer": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
        lambda layer, x, mask: layer(x, src_mask=mask),
    ),
    "encoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2),
        lambda layer, x, mask: layer(x, mask=mask),
    ),
    "transformer": (
        lambda: nn.Transformer(4, 2, 1, 1, 8, batch_first=True),
        lambda layer, x, mask: layer(x, x, src_mask=mask, tgt_mask=mask, memory_mask=mask),
    ),
    "four dims": (
        nn.Identity,
        lambda layer, x, mask: F.scaled_dot_product_attention(
            *[x[:, None]] * 3, attn_mask=(mask == 0)[None, None].expand(1, 1, -1, -1)
        )[:, 0],
    ),
    "queries before the end": (
        nn.Identity,
        lambda layer, x, mask: F.scaled_dot_product_attention(x[:, :-1], x, x, is_causal=True),
    ),
    "zeros": (nn.Identity, lambda layer, x, mask: (x @ x.mT).masked_fill(mask != 0, 0) @ x),
    "triangle": (nn.Identity, lambda layer, x, mask: (x @ x.mT).tril() @ x),
    "two masks": (
        nn.Identity,
        lambda layer, x, mask: (
            (x @ x.mT).masked_fill(mask != 0, -INF).masked_fill(mask.isinf(), -INF) + 1
        ).softmax(-1) @ x,
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make_mask", [floats, flags, "buffer"])
@pytest.mark.parametrize("name", LAYERS)
def test_causal_layers_of_torch(name, make_mask):
    make, call = LAYERS[name]
    for n in (6, 2100):  # below and beyond what is built
        model = Layer(make(), flags(2100) if make_mask == "buffer" else make_mask, call).eval()
        reports = [rfcalc.analyze(model, (n, 4), layout="TC", level=level) for level in (1, 2)]
        assert reports[0].to_dict()["rows"] == reports[1].to_dict()["rows"]
        for found in reports:
            assert found.approximate_ops == ()
            last = found.rows[-1]
            for i in (0, 1, 4, last.n_out[0] - 1):
                assert found.region(last, (i,))[0].exact == (0, i)
