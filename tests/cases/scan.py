"""Cases of ops that run along a dim."""

from __future__ import annotations

from torch import nn

from cases.registry import TOKENS, first_of, fn

for _name in "cumsum cumprod logcumsumexp cummax cummin".split():
    fn(_name, lambda x, n=_name: first_of(getattr(x, n)(2)))
fn("diff", lambda x: x.diff(dim=2))
for _kind in ("LSTM", "GRU", "RNN"):
    fn(_kind, lambda x, m: m(x)[0], TOKENS, m=lambda k=_kind: getattr(nn, k)(4, 3, batch_first=True))
    fn(
        f"{_kind} both",
        lambda x, m: m(x)[0],
        TOKENS,
        m=lambda k=_kind: getattr(nn, k)(4, 3, batch_first=True, bidirectional=True),
    )
    fn(
        f"{_kind} deep",
        lambda x, m: m(x)[0],
        TOKENS,
        m=lambda k=_kind: getattr(nn, k)(4, 3, 2, batch_first=True, bidirectional=True),
    )
    fn(
        f"{_kind} state",
        lambda x, m: first_of(m(x)[1]),
        TOKENS,
        m=lambda k=_kind: getattr(nn, k)(4, 3, batch_first=True),
    )
    fn(f"{_kind} time first", lambda x, m: m(x.transpose(0, 1))[0], TOKENS, m=lambda k=_kind: getattr(nn, k)(4, 3))
    fn(f"{_kind}Cell", lambda x, m: first_of(m(x[:, 1])), TOKENS, m=lambda k=_kind: getattr(nn, f"{k}Cell")(4, 3))
fn("RNN relu", lambda x, m: m(x)[0], TOKENS, m=lambda: nn.RNN(4, 3, nonlinearity="relu", batch_first=True))
fn("LSTM projected", lambda x, m: m(x)[0], TOKENS, m=lambda: nn.LSTM(4, 3, proj_size=2, batch_first=True))
