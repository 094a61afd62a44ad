"""Surrogates of indexing, whose indices may depend on the input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rfcalc.proof.surrogates.registry import Call, dims_of, map_leaves, mean_over, summed, surrogate, tensors_in

# indices


@surrogate("index_select")
def _index_select(call: Call, x: Tensor, dim: int, index: Tensor) -> Tensor:
    """An index made of the input may pick any position."""
    shadow = call.shadow_of(index)
    if shadow is None:
        return x.index_select(dim, index)
    across = shadow.reshape([-1 if d == dim % x.ndim else 1 for d in range(x.ndim)])
    return (mean_over(x, (dim,)) if x.requires_grad else 0) + across.expand(call.shape())


@surrogate("gather")
def _gather(call: Call, x: Tensor, dim: int, index: Tensor, **kwargs: Any) -> Tensor:
    shadow = call.shadow_of(index)
    if shadow is None:
        return x.gather(dim, index)
    return mean_over(x, (dim,)).expand(index.shape) + shadow if x.requires_grad else shadow


@surrogate("take_along_dim")
def _take_along_dim(call: Call, x: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    if call.shadow_of(indices) is None:
        return x.take_along_dim(indices, dim)
    parts = [t for t in (call.shadow_of(indices), mean_over(x, dims_of(x, dim))) if t is not None and t.requires_grad]
    return summed(parts, call.shape())


@surrogate("getitem")
def _getitem(call: Call, x: Tensor, index: Any) -> Any:
    result: Tensor = call.real()
    shadows = [s for s in map(call.shadow_of, tensors_in(index)) if s is not None]
    if not shadows:
        return call.follow(result)
    items = index if isinstance(index, tuple) else (index,)
    if any(isinstance(i, list) or (isinstance(i, Tensor) and i.dtype in _FLAGS) for i in items):
        operands = [*shadows, x] if x.requires_grad else shadows
        return summed([t.mean() for t in operands], result.shape)
    return summed(list(_by_entry(call, x, items)), result.shape)


@surrogate("index _unsafe_index")
def _index(call: Call, x: Tensor, indices: Any) -> Any:
    return _getitem(call, x, tuple(slice(None) if i is None else i for i in indices))


@surrogate("masked_scatter")
def _masked_scatter(call: Call, x: Tensor, mask: Tensor, source: Tensor) -> Any:
    """A known mask places the source; of one that compares the input, anything may lie anywhere."""
    shadow = call.shadow_of(mask)
    if shadow is None:
        return call.real()
    return summed([t for t in (x, shadow.mean(), source.mean()) if t.requires_grad], call.shape())


@surrogate("nonzero argwhere masked_select _unique2 unique_consecutive unique_dim bincount nms")
def _of_unknown_length(call: Call, *args: Any, **kwargs: Any) -> Any:
    """The numbers of the report's run and of this one give results of other lengths: there is nothing to compare."""
    return call.real()


@surrogate("histc multinomial isin pdist")
def _picked(call: Call, *args: Any, **kwargs: Any) -> Any:
    """What comes out depends on all that goes in."""
    real = call.values()
    total = summed([t.mean() for t in call.operands()], ())

    def shaped(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        spread = total.expand(value.shape).clone()
        return spread if value.is_floating_point() else call.cast_shadow(value, spread)

    return map_leaves(real, shaped)


_FLAGS = (torch.bool, torch.uint8)


def _by_entry(call: Call, x: Tensor, items: tuple[Any, ...]) -> Iterator[Tensor]:
    """What each position takes from its own entry of every index, and from all of x along the dims indexed."""
    dim, places = 0, {}
    taken = sum(i is not None and i is not Ellipsis for i in items)
    for k, item in enumerate(items):
        if isinstance(item, Tensor):
            places[k] = dim
        dim += x.ndim - taken if item is Ellipsis else item is not None
    shape = torch.Size(np.broadcast_shapes(*(items[k].shape for k in places)))
    for k, d in places.items():
        shadow = call.shadow_of(items[k])
        if shadow is not None:  # laid along the dim, and picked in its own order
            entries = shadow.expand(shape).reshape([-1 if i == d else 1 for i in range(x.ndim)])
            numbers = torch.arange(shape.numel()).view(shape)
            picks = tuple(numbers if i == k else torch.zeros_like(v) if i in places else v for i, v in enumerate(items))
            yield entries.expand([n if i != d else -1 for i, n in enumerate(x.shape)])[picks]
    if x.requires_grad:
        yield mean_over(x, tuple(places.values())).expand(x.shape)[items]


@surrogate("take")
def _take(call: Call, x: Tensor, index: Tensor) -> Tensor:
    shadow = call.shadow_of(index)
    if shadow is None:
        return x.take(index)
    return shadow + x.mean() if x.requires_grad else shadow.clone()


@surrogate("bucketize searchsorted")
def _between(call: Call, a: Any, b: Any, *args: Any, **kwargs: Any) -> Tensor:
    """A number, and all the boundaries of its row."""
    numbers, edges = (a, b) if call.base == "bucketize" else (b, a)
    real: Tensor = call.values()
    parts = [call.seen_of(numbers), *(call.seen_of(v) for v in (edges, kwargs.get("sorter")))]
    seen = [p if i == 0 else mean_over(p, (-1,)) for i, p in enumerate(parts) if p is not None]
    return call.cast_shadow(real, summed([p if p.numel() > 1 else p.reshape(()) for p in seen], real.shape))


@surrogate("setitem")
def _setitem(call: Call, x: Tensor, index: Any, value: Any) -> Any:
    """After `x[x < 0] = y` both the old and the new may be anywhere, and so may the reason."""
    shadow = call.shadow_of(index)
    if shadow is None:
        if not isinstance(value, Tensor) or not any(t.dtype is torch.long for t in tensors_in(index)):
            return call.real()
        source = torch.arange(1.0, x.numel() + 1).view(x.shape)
        source[index] = torch.arange(x.numel() + 1.0, x.numel() + 1 + value.numel()).view(value.shape)
        x.copy_(by_number(source, x, value))
        return None
    x += shadow.reshape(*shadow.shape, *[1] * (x.ndim - shadow.ndim))
    if isinstance(value, Tensor) and value.requires_grad:
        x += value.mean()
    return None


@surrogate("scatter index_copy index_put _unsafe_index_put put")
def _written(call: Call, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Where several values go to one place the last one stays; torch's derivative gives to all of them."""
    accumulate = kwargs.get("accumulate", args[2] if call.base in ("index_put", "put") and len(args) > 2 else False)
    reduce_by = kwargs.get("reduce")
    values = [t for t in tensors_in(args, kwargs) if t.is_floating_point()]
    if reduce_by is not None:
        return torch.scatter_add(x, args[0], args[1], values[0]) if values else x.clone()
    if accumulate or not values:
        return call.real()
    first = torch.arange(1.0, x.numel() + 1).view(x.shape)
    second = torch.arange(x.numel() + 1.0, x.numel() + 1 + values[0].numel()).view(values[0].shape)
    given, named = map_leaves((args, kwargs), lambda v: second if v is values[0] else v)
    return by_number(call.func(first, *given, **named), x, values[0])


def by_number(source: Tensor, *items: Tensor) -> Tensor:
    """The elements of the items, which are numbered from 1, in the order of `source`."""
    return torch.cat([t.flatten() for t in items])[source.long() - 1]


@surrogate("scatter_reduce index_reduce")
def joined(call: Call, x: Tensor, dim: int, index: Tensor, source: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The sum stands for whatever joins them."""
    kept = kwargs.get("include_self", True)
    if call.base == "scatter_reduce":
        return torch.scatter_add(x if kept else x.scatter(dim, index, 0.0), dim, index, source)
    return torch.index_add(x if kept else x.index_fill(dim, index, 0.0), dim, index, source)
