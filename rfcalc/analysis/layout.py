"""The strides of a result where torch's kernels for storage-less tensors say something else than its CPU kernels.

Whether a later `reshape` or `contiguous` copies or gives a view depends on them, and with it who sees a write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def memory_format(t: Tensor) -> torch.memory_format:
    """What torch's kernels take the layout of a tensor for: by its strides alone, as `suggest_memory_format` does."""
    sizes, strides = t.shape, t.stride()
    n = len(sizes)
    least = 0
    if n not in _FORMATS or strides[1] == 0:
        return torch.contiguous_format
    for d in (1, *range(n - 1, 1, -1), 0):
        if sizes[d] == 0 or strides[d] < least or (d == 0 and least == strides[1]):
            return torch.contiguous_format
        least = strides[d] * max(sizes[d], 1)
    return _FORMATS[n]


def _of_input(x: Tensor, *rest: Any) -> torch.memory_format:
    return memory_format(x)


def _of_window(x: Tensor, weight: Tensor, *rest: Any) -> torch.memory_format:
    """A convolution runs with channels last where its input or its weight lies so."""
    own = memory_format(x)
    return memory_format(weight) if own is torch.contiguous_format else own


def _of_padding(x: Tensor, pad: Any, mode: str = "constant", *rest: Any) -> torch.memory_format | None:
    return memory_format(x) if mode in ("reflect", "replicate") else None


def _plain(*args: Any) -> torch.memory_format:
    return torch.contiguous_format


_LAYOUTS: dict[str, Callable[..., torch.memory_format | None]] = {
    **dict.fromkeys(("conv2d", "conv3d", "conv_transpose2d", "conv_transpose3d", "convolution"), _of_window),
    **dict.fromkeys(("group_norm", "roll", "batch_norm", "native_batch_norm"), _of_input),
    **dict.fromkeys(("reflection_pad2d", "reflection_pad3d", "replication_pad2d", "replication_pad3d"), _of_input),
    **dict.fromkeys(("log_sigmoid", "max_pool1d"), _plain),
    "pad": _of_padding,
}


def as_on_cpu(op: str, args: Any, result: Any) -> Any:
    """The result of an op, with the strides that a CPU would have given it."""
    if op == "scaled_dot_product_attention":  # as the queries lie, where their features lie side by side
        as_query = result.is_meta and args[0].shape == result.shape and args[0].stride(-1) == 1
        return torch.empty_like(args[0]) if as_query else result
    layout = _LAYOUTS.get(op)
    if layout is None or type(result) is not Tensor or not result.is_meta:
        return result
    form = layout(*args)
    if form is None or len(args[0].shape) != len(result.shape):
        return result
    as_told = torch.empty(result.shape, dtype=result.dtype, device="meta", memory_format=form)
    return result if as_told.stride() == result.stride() else as_told
