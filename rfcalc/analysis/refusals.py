"""What torch refuses on tensors with storage and lets pass without: a design that cannot run must not be measured.

The meta device skips checks that torch's kernels make. Each function here takes the arguments of an ATen op and raises
RefusedError where the CPU would refuse them. Only level 1 asks; level 2 leaves whatever is unusual to level 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

Refusal = Callable[..., None]
REFUSALS: dict[str, Refusal] = {}
RANGES: dict[str, Refusal] = {}  # the same, of arguments in which constants stand with their numbers
_LOW = (torch.float16, torch.bfloat16)
_FLAGS = (torch.bool, torch.uint8)


class RefusedError(RuntimeError):
    """A call that torch refuses."""


def refusal(*ops: str) -> Callable[[Refusal], Refusal]:
    """Register what is asked of an ATen op, named without namespace and overload."""

    def register(fn: Refusal) -> Refusal:
        REFUSALS.update(dict.fromkeys(ops, fn))
        return fn

    return register


def _refuse_unless(holds: bool, why: str) -> None:
    if not holds:
        raise RefusedError(why)


def _each(value: Any) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _same_dtypes(x: Tensor, others: Iterable[Any]) -> None:
    """Where the input is of integers that is the run's own choice: a model that reads indices gets no other."""
    for t in others if x.is_floating_point() else ():
        if isinstance(t, Tensor):
            _refuse_unless(t.dtype is x.dtype, f"expected one dtype, found an input of {x.dtype} beside {t.dtype}")


def window_fits(n: int, **given: Any) -> None:
    """The geometry of a window over n dims: kernel, stride and dilation from 1, padding from 0, one number or n."""
    for name, value in given.items():
        if isinstance(value, str):
            continue
        sizes, least = _each(value), 0 if "padding" in name else 1
        _refuse_unless(len(sizes) in (1, n), f"expected {n} numbers as {name}, found {list(sizes)}")
        _refuse_unless(all(s >= least for s in sizes), f"expected a {name} of at least {least}, found {list(sizes)}")


def _convolution(
    n: int, x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> None:  # fmt: skip
    _same_dtypes(x, (weight, bias))
    shape = tuple(weight.shape)
    ranks = f"expected a weight of {n + 2} dims and an input of {n + 1} or {n + 2}, found {len(shape)} and {x.dim()}"
    _refuse_unless(len(shape) == n + 2 and x.dim() in (n + 1, n + 2), ranks)
    window_fits(n, kernel=shape[2:], stride=stride, padding=padding, dilation=dilation, groups=(groups,) * n)
    _refuse_unless(shape[0] > 0, f"expected a weight with channels, found {shape}")


def _bias_fits(bias: Any, channels: int) -> None:
    fits = bias is None or tuple(bias.shape) == (channels,)
    _refuse_unless(fits, f"expected a bias of {channels} numbers, found {bias is not None and tuple(bias.shape)}")


def _convolves(n: int) -> Refusal:
    def check(
        x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
        groups: int = 1,
    ) -> None:  # fmt: skip
        _convolution(n, x, weight, bias, stride, padding, dilation, groups)
        made = weight.shape[0]
        _refuse_unless(made % groups == 0, f"expected output channels in {groups} groups, found {made}")
        _bias_fits(bias, made)

    return check


def _transposes(n: int) -> Refusal:
    def check(
        x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
        groups: int = 1, dilation: Any = 1,
    ) -> None:  # fmt: skip
        _convolution(n, x, weight, bias, stride, padding, dilation, groups)
        window_fits(n, output_padding=output_padding)
        channels = x.shape[-n - 1]
        _refuse_unless(channels == weight.shape[0], f"expected {weight.shape[0]} input channels, found {channels}")
        _refuse_unless(channels % groups == 0, f"expected channels in {groups} groups, found {channels}")
        _refuse_unless(0 not in x.shape[-n:], f"expected an input with positions, found {tuple(x.shape)}")
        _bias_fits(bias, weight.shape[1] * groups)
        more, steps, spread = (_spread(v, n) for v in (output_padding, stride, dilation))
        smaller = all(o < max(s, d) for o, s, d in zip(more, steps, spread, strict=True))
        _refuse_unless(smaller, f"expected an output_padding below stride or dilation, found {more}")

    return check


@refusal("im2col")
def im2col(x: Tensor, kernel: Any, dilation: Any, padding: Any, stride: Any) -> None:
    window_fits(2, kernel=kernel, dilation=dilation, padding=padding, stride=stride)


def _spread(value: Any, n: int) -> tuple[int, ...]:
    sizes = _each(value)
    return sizes * n if len(sizes) == 1 else sizes


for _n in (1, 2, 3):
    refusal(f"conv{_n}d")(_convolves(_n))
    refusal(f"conv_transpose{_n}d")(_transposes(_n))


@refusal("convolution", "_convolution")
def convolution(
    x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int, *rest: Any,
) -> None:  # fmt: skip
    n = weight.dim() - 2
    if transposed:
        _transposes(n)(x, weight, bias, stride, padding, output_padding, groups, dilation)
    else:
        _convolves(n)(x, weight, bias, stride, padding, dilation, groups)


def _normalises(x: Tensor, given: Sequence[Any]) -> None:
    """Numbers of the input's dtype, or of float32 beside an input of lower precision."""
    _same_dtypes(x, [t for t in given if not (x.dtype in _LOW and t is not None and t.dtype is torch.float32)])


@refusal("layer_norm", "group_norm")
def layer_norm(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, *rest: Any, **more: Any) -> None:
    _normalises(x, (weight, bias))


@refusal("batch_norm", "instance_norm")
def batch_norm(x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, *rest: Any) -> None:
    _normalises(x, (weight, bias, mean, var))


@refusal("linear")
def linear(x: Tensor, weight: Any, bias: Any = None) -> None:
    _same_dtypes(x, (weight, bias))


@refusal("as_strided")
def as_strided(x: Tensor, size: Any, stride: Any, offset: int | None = None) -> None:
    if 0 in size:
        return
    last = (x.storage_offset() if offset is None else offset) + sum(
        (n - 1) * s for n, s in zip(size, stride, strict=False)
    )
    held = x.untyped_storage().nbytes() // x.element_size()
    _refuse_unless(last < held, f"as_strided reads {last + 1:,} elements of a storage of {held:,}")


@refusal("as_strided_scatter")
def as_strided_scatter(x: Tensor, source: Tensor, size: Any, stride: Any, offset: int | None = None) -> None:
    as_strided(x, size, stride, offset)


@refusal("softmax", "log_softmax", "_softmax", "_log_softmax")
def softmax(x: Tensor, dim: int, *rest: Any, **more: Any) -> None:
    n = max(x.dim(), 1)
    _refuse_unless(-n <= dim < n, f"expected a dim of {-n} to {n - 1}, found {dim}")


def _in_range(index: Any, size: int, negative: bool) -> None:
    """An index whose numbers are known points into a dim of this size."""
    if not isinstance(index, Tensor) or index.is_meta or index.dtype in _FLAGS or not index.numel():
        return
    low, high = (int(n) for n in torch.aminmax(index))
    least = -size if negative else 0
    _refuse_unless(least <= low and high < size, f"index {low if low < least else high} is out of {size} positions")


def _along_dim(negative: bool) -> Refusal:
    def check(x: Tensor, dim: int, index: Tensor, *rest: Any) -> None:
        _in_range(index, x.shape[dim] if x.dim() else 1, negative)

    return check


def _indexed(x: Tensor, indices: Sequence[Any], *rest: Any) -> None:
    if not any(isinstance(i, Tensor) and i.dtype in _FLAGS for i in indices):  # a mask takes several dims
        for i, size in zip(indices, x.shape, strict=False):
            _in_range(i, size, True)


def _flat(x: Tensor, index: Tensor, *rest: Any) -> None:
    _in_range(index, x.numel(), True)


def _looked_up(table: Tensor, indices: Tensor, *rest: Any) -> None:
    _in_range(indices, table.shape[0], False)


RANGES |= {
    **dict.fromkeys("gather scatter scatter_add scatter_reduce".split(), _along_dim(False)),
    **dict.fromkeys("index_select index_add index_copy index_reduce".split(), _along_dim(False)),
    **dict.fromkeys("index _unsafe_index index_put _index_put_impl".split(), _indexed),
    "index_fill": _along_dim(True),
    **dict.fromkeys(("take", "put"), _flat),
    **dict.fromkeys(("embedding", "embedding_bag", "_embedding_bag", "_embedding_bag_forward_only"), _looked_up),
}


@refusal(
    "_nested_tensor_from_tensor_list", "_nested_view_from_buffer", "_nested_from_padded", "_nested_view_from_jagged"
)
def nested(*args: Any, **kwargs: Any) -> None:
    """The one refusal that is rfcalc's and not torch's."""
    raise RefusedError("a nested tensor has no shape along which dependence could be followed; pad it")
