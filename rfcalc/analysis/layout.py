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


def _is_plain_on_cpu(op: str, args: Any, result: Any, elementwise: bool) -> bool:
    """Operands of one shape, each of them contiguous, are one block to torch, of which no strides are looked at."""
    if type(result) is not Tensor or not result.is_meta or 1 not in result.shape:
        return False
    if op in _PLAIN_FOR_PLAIN:
        return bool(args[0].is_contiguous())
    if not elementwise or op in _KEEP_STRIDES:
        return False
    if op in _TAKE_NUMBERS_AS_TENSORS and any(isinstance(a, int | float) for a in args):
        return False
    return all(t.shape == result.shape and t.is_contiguous() for t in args if isinstance(t, Tensor))


_LAYOUTS: dict[str, Callable[..., torch.memory_format | None]] = {
    **dict.fromkeys(("conv2d", "conv3d", "conv_transpose2d", "conv_transpose3d", "convolution"), _of_window),
    **dict.fromkeys(("group_norm", "roll", "batch_norm", "native_batch_norm", "pixel_shuffle"), _of_input),
    **dict.fromkeys(("max_unpool2d", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle"), _of_input),
    **dict.fromkeys(("upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d"), _of_input),
    **dict.fromkeys(("upsample_bicubic2d", "upsample_nearest3d", "upsample_trilinear3d"), _of_input),
    **dict.fromkeys(("reflection_pad2d", "reflection_pad3d", "replication_pad2d", "replication_pad3d"), _of_input),
    **dict.fromkeys(("log_sigmoid", "max_pool1d", "rrelu", "rrelu_with_noise"), _plain),
    "pad": _of_padding,
}


def elements_of(x: Tensor, size: Any, stride: Any, storage_offset: int | None = None) -> Any:
    """Which element of x, counted from 1, each element of `x.as_strided(...)` is; 0: another of its storage."""

    numbers = torch.zeros(x.untyped_storage().nbytes() // x.element_size(), dtype=torch.int64)
    numbers.as_strided(x.shape, x.stride(), x.storage_offset()).copy_(torch.arange(1, x.numel() + 1).view(x.shape))
    start = x.storage_offset() if storage_offset is None else storage_offset
    return numbers.as_strided(size, stride, start).reshape(-1).numpy()


# A contiguous map with a 1 among its sizes may have strides of channels last as well. These give back plain ones.
_PLAIN_FOR_PLAIN = frozenset(
    "batch_norm layer_norm native_layer_norm log_softmax _log_softmax softmax _softmax hardswish".split()
)
_KEEP_STRIDES = frozenset("clone hardtanh relu6".split())
_TAKE_NUMBERS_AS_TENSORS = frozenset("add sub rsub mul div floor_divide remainder fmod".split())


def as_on_cpu(op: str, args: Any, result: Any, elementwise: bool) -> Any:
    """The result of an op, with the strides that a CPU would have given it. `elementwise`: it makes a new tensor so."""
    if _is_plain_on_cpu(op, args, result, elementwise):
        return torch.empty(result.shape, dtype=result.dtype, device="meta")
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
