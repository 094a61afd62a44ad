"""Surrogates of functions that move elements, where autograd needs help."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from rfcalc.proof.surrogates.registry import Call, lifted, surrogate


@surrogate("native_channel_shuffle")
def _channel_shuffle(call: Call, x: Tensor, groups: int) -> Tensor:
    """Its own derivative is missing in torch."""
    return F.channel_shuffle(x, groups)


@surrogate("split chunk unbind tensor_split hsplit vsplit dsplit unsafe_split unsafe_chunk")
def _pieces(call: Call, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    """Views one by one: autograd lets none of several views of one call be written to."""
    by_name = {"hsplit": 1 if x.ndim > 1 else 0, "vsplit": 0, "dsplit": 2}
    given = args[0] if call.base == "unbind" and args else args[1] if len(args) > 1 else 0
    dim = kwargs.get("dim", by_name.get(call.base, given))
    if call.base == "unbind":
        return tuple(x.select(dim, i) for i in range(x.shape[dim]))
    step = x.stride(dim) or 1
    real = call.values()
    return tuple(x.narrow(dim, (t.storage_offset() - x.storage_offset()) // step, t.shape[dim]) for t in real)


@surrogate("pad fold constant_pad_nd col2im unfold_backward")
def _filled(call: Call, *args: Any, **kwargs: Any) -> Tensor:
    """Padding and gaps between strides are constants; at 0 they would cut later products."""
    return lifted(call.real())
