"""Surrogates of indexing, whose indices may depend on the input."""

from __future__ import annotations

from typing import Any

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
    operands = [*shadows, x] if x.requires_grad else shadows
    return summed([t.mean() for t in operands], result.shape)


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
