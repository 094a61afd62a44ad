"""Ops that run along a dim: cumulative ops and recurrent layers."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from rfcalc.analysis.field import Field, drop_dims, mix, reduce, taken_reversed, touched
from rfcalc.analysis.moves import permute_part, prefix_part, renumber_part, take_part
from rfcalc.analysis.rules.registry import Call, Result, Value, dim_of, everywhere, rule, values


def prefixed(field: Field, dim: int, n: int) -> Field:
    runs = touched(field, (dim,))
    if not any(runs):
        return field.unmasked()
    return mix(field.each(lambda a: a.with_parts([prefix_part(p, dim, n) for p in a.parts])), runs)


@rule("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp")
def cumulative(call: Call, x: Value, dim: int, *args: Any, **kwargs: Any) -> Result:
    """Position t depends on all positions up to t."""
    assert x.field is not None
    at = dim_of(dim, len(x.shape))
    field = prefixed(x.field, at, x.shape[at]) if x.shape else x.field
    return field if len(call.out) == 1 else (field,) * len(call.out)


def is_packed(args: tuple[Any, ...]) -> bool:
    """A packed sequence gives its step sizes in the second place and its parameters in the fourth."""
    return bool(args) and isinstance(args[0], list | tuple)


@rule("_pack_padded_sequence")
def pack(call: Call, x: Value, lengths: Value, batch_first: bool) -> Result:
    """The steps one after another, and of each those samples that are long enough; their number is no data."""
    if x.field is None or lengths.field is not None or x.shape[0 if batch_first else 1] != 1:
        return everywhere(call, x, lengths)
    steps = x.shape[1 if batch_first else 0]
    field = drop_dims(x.field, (0 if batch_first else 1,), len(x.shape))
    kept = np.arange(call.out[0][0])
    return field.map(partial(take_part, dim=0, n=steps, index=kept)), None


@rule("_pad_packed_sequence")
def unpack(call: Call, x: Value, sizes: Value, batch_first: bool, *args: Any) -> Result:
    out = call.out[0]
    sample = 0 if batch_first else 1
    if x.field is None or sizes.field is not None or out[sample] != 1 or out[1 - sample] != x.shape[0]:
        return everywhere(call, x, sizes)
    where = {d: d + (d >= sample) for d in range(len(x.shape))}
    return x.field.map(partial(renumber_part, where=where)), None


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(call: Call, x: Value, state: Any, params: Any, *args: Any, **kwargs: Any) -> Result:
    """Output t sees the inputs up to t; a bidirectional layer, or a second layer on top of one, sees all.

    Arguments as in ATen: has_biases, num_layers, dropout, train, bidirectional, batch_first.
    """
    if is_packed(args):  # (steps of all samples, features), sizes of the steps, state, params
        state, params, packed = params, args[0], args[1:]
        batch_first = False
        args = (*packed[:5], batch_first) if len(packed) >= 5 else ()
        if len(x.shape) != 2 or call.out[0][0] != x.shape[0] or call.out[1][1] != 1:
            args = ()  # the samples of a batch take turns
    states = list(state) if isinstance(state, list | tuple) else [state]
    if x.field is None or len(args) < 6 or any(v.field is not None for v in values((*states, params))):
        return everywhere(call, x, *states, params)
    _, layers, _, _, bidirectional, batch_first = args[:6]
    time = 1 if batch_first and len(x.shape) == 3 else 0
    n = x.shape[time]
    field = reduce(x.field, (len(x.shape) - 1,)).unmasked()
    whole, runs = reduce(field, (time,)), touched(field, (time,))
    if not bidirectional:
        out = prefixed(field, time, n)
    elif layers > 1:
        out = mix(whole, runs)
    else:
        forward, backward = prefixed(field, time, n), taken_reversed(field, time, n, prefix_part)
        hidden = call.out[0][-1] // 2
        from rfcalc.analysis.rules.combine import beside

        shape = (*call.out[0][:-1], hidden)
        last = len(shape) - 1
        both = beside([Value(shape, forward), Value(shape, mix(backward, runs))], last)
        assert both is not None
        out = both
    ends = mix(whole, runs)
    if batch_first and len(x.shape) == 3:  # the state is (layers, batch, features)
        ends = ends.map(lambda p: permute_part(p, (1, 0, 2)))
    return (out, *(ends for _ in call.out[1:]))
