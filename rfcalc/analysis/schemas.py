"""What the run needs of an ATen op's schema: the arguments it writes, what its results alias, its tags."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rfcalc.analysis.parts import Shape
from rfcalc.analysis.pattern import LARGE, Corner
from rfcalc.analysis.pattern_ops import FACTORIES
from rfcalc.analysis.rules import RULES, named
from rfcalc.analysis.values import execute, tensors_in


@dataclass(frozen=True, slots=True)
class Schema:
    """What the trace needs of an op's schema. `aliases`: per return, the argument it aliases, and if by a write."""

    op: str
    names: tuple[str, ...]
    written: tuple[str, ...]
    aliases: tuple[tuple[str, bool] | None, ...]
    pointwise: bool
    needs_values: bool
    random: bool
    outs: tuple[str, ...]  # the `out=` arguments, which a rule does not see
    reshapes: bool  # `transpose_`, `resize_`, `set_`: the tensor itself gets another shape over its storage


_VALUE_OPS = frozenset(
    "item _local_scalar_dense is_nonzero equal allclose _pack_padded_sequence _pad_packed_sequence".split()
)
INDEXED = frozenset(("index", "_unsafe_index"))  # of unknown length only where the index is a boolean mask
_UNINITIALISED = frozenset("empty empty_like empty_strided new_empty new_empty_strided empty_permuted".split())
# Of their tensor these take the shape and the type alone: what they make is as well known as a `torch.zeros`.
MADE_LIKE = frozenset("zeros_like ones_like full_like new_zeros new_ones new_full".split())


@lru_cache(maxsize=4096)
def schema_of(func: Any) -> Schema:
    schema = func._schema
    op = named(func)
    written = tuple(a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write)
    if op not in RULES and op.endswith("_") and not op.endswith("__"):
        op = op[:-1]
    by_set: dict[str, str] = {}
    spread_out = ""  # the argument whose pieces a returned list is: `Tensor(a -> *) self -> Tensor(a)[]`
    for a in schema.arguments:
        if a.alias_info is not None and "*" in a.alias_info.after_set:
            spread_out = a.name
        for alias in a.alias_info.before_set if a.alias_info is not None else ():
            by_set[alias] = a.name
    aliases = []
    for r in schema.returns:
        names = [by_set[s] for s in (r.alias_info.before_set if r.alias_info is not None else ()) if s in by_set]
        if not names and spread_out and r.type.kind() == "ListType":
            names = [spread_out]
        aliases.append((names[0], names[0] in written) if names else None)
    tags = set(func.tags)
    return Schema(
        op,
        tuple(a.name for a in schema.arguments),
        written,
        tuple(aliases),
        torch.Tag.pointwise in tags,
        op in _VALUE_OPS or torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags,
        torch.Tag.nondeterministic_seeded in tags or op in _UNINITIALISED,
        tuple(a.name for a in schema.arguments if a.is_out),
        torch.Tag.inplace_view in tags,
    )


INDEXING = frozenset((Tensor.__getitem__, Tensor.__setitem__))


def kept_index(index: Any) -> Any:
    """Lists and arrays as CPU tensors: torch would put them on the device of the tensor, and lose their numbers."""
    if isinstance(index, tuple):
        return tuple(kept_index(i) for i in index)
    if isinstance(index, np.ndarray) or (isinstance(index, list) and index and not any(tensors_in(index))):
        return execute(torch.as_tensor, (index,), {})
    return index


def by_flags(args: Any) -> bool:
    return any(t.dtype in (torch.bool, torch.uint8) for t in tensors_in(args[1:]))


def fills_by_flags(args: Any) -> tuple[Tensor, int] | None:
    """The mask where one number is written, as in `x[mask] = 0.5` and `x[:, mask] = 0.5`, and how many dims follow."""
    x, indices, value, *accumulate = args
    flags = indices[-1]
    lead = len(indices) - 1
    if flags is None or flags.dtype is not torch.bool or any(i is not None for i in indices[:-1]):
        return None
    rest = x.dim() - lead - flags.dim()
    fits = flags.shape == x.shape[lead : x.dim() - rest] and value.dim() == 0 and not any(accumulate)
    return (flags, rest) if fits else None


def cast_like(
    x: Tensor, other: Tensor, non_blocking: bool = False, copy: bool = False, memory_format: Any = None
) -> tuple[Any, ...]:  # fmt: skip
    """`x.type_as(other)` and `x.to(other)`: storage-less where one of the two is."""
    device = other.device if other.is_meta else x.device
    return torch.ops.aten.to.device, x, device, other.dtype, non_blocking, copy, memory_format


# Ops that take only the shape or the type of their second tensor, written without that tensor: (op, its arguments).
WITHOUT_OTHER: dict[Any, Callable[..., tuple[Any, ...]]] = {
    torch.ops.aten.type_as.default: cast_like,
    torch.ops.aten.to.other: cast_like,
    torch.ops.aten.view_as.default: lambda x, other: (torch.ops.aten.view.default, x, list(other.shape)),
    torch.ops.aten.reshape_as.default: lambda x, other: (torch.ops.aten.reshape.default, x, list(other.shape)),
    torch.ops.aten.expand_as.default: lambda x, other: (torch.ops.aten.expand.default, x, list(other.shape)),
}
LOOKS_AT_FIRST_ONLY = frozenset(
    (Tensor.type_as, Tensor.view_as, Tensor.reshape_as, Tensor.expand_as, Tensor.to, Tensor.resize_as_)
)


# These differentiate: they need the graph that torch keeps outside of inference mode.
UNPACK_DUAL = torch._VF._unpack_dual
DIFFERENTIATING = frozenset((torch.autograd.grad, torch.autograd.backward, Tensor.backward, torch._VF._make_dual))


_REPEATED = frozenset("clone contiguous _to_copy".split())  # these write out what `expand` repeats


def is_large(schema: Schema, args: Any, every: Sequence[Tensor]) -> bool:
    """Would torch build a constant that is too large to build, from tensors that are not?"""
    if schema.op in FACTORIES:
        if schema.op.endswith("_like"):
            return every[0].numel() > LARGE
        sizes = [a for a in args if isinstance(a, int | list | tuple)]
        size = sizes[0] if sizes and isinstance(sizes[0], list | tuple) else [a for a in sizes if isinstance(a, int)]
        return all(isinstance(n, int) for n in size) and math.prod(size if len(size) > 1 else (*size, *size)) > LARGE
    if not every or math.prod([t.numel() for t in every]) <= LARGE:
        return False
    if schema.op == "repeat":
        return bool(every[0].numel() * math.prod(args[1]) > LARGE)
    if not (schema.pointwise or schema.op in _REPEATED) or schema.written:
        return False
    n = max(t.dim() for t in every)
    shapes = [(1,) * (n - t.dim()) + tuple(t.shape) for t in every]
    held = max(t.untyped_storage().nbytes() // t.element_size() for t in every)
    return math.prod(map(max, *shapes) if len(shapes) > 1 else shapes[0]) > max(LARGE, held)


def returned_by(schema: Schema, args: Any, kwargs: Any, result: Any) -> Any:
    """In-place ops give back the tensors they were given, not their stand-ins, and an `out=` in its new shape."""

    def own(alias: tuple[str, bool] | None, made: Any) -> Any:
        if alias is None or not alias[1]:
            return made
        i = schema.names.index(alias[0])
        given = args[i] if i < len(args) else kwargs[alias[0]]
        if alias[0] in schema.outs and given.shape != made.shape:
            given.resize_(made.shape)
        return given

    if isinstance(result, tuple) and len(result) == len(schema.aliases):
        return tuple(map(own, schema.aliases, result))
    return own(schema.aliases[0] if schema.aliases else None, result)


_properties: Any = Tensor  # as torch's type stubs do not know them
SET_DATA = _properties.data.__set__
REQUIRING = frozenset((_properties.requires_grad.__set__, Tensor.requires_grad_))
SETTERS = frozenset((SET_DATA, *REQUIRING, _properties.grad.__set__, _properties.grad.__delete__))


def corner(op: str, args: Any, shape: Shape, parent: Shape) -> Corner | None:
    """Which rectangle of a large constant its view is; None where that is not one of every matrix in it."""
    lead = len(parent) - 2
    if op in ("slice", "narrow", "select") and lead >= 0:
        dim = args[1] % len(parent) if len(args) > 1 else 0
        start = (args[2] if len(args) > 2 else 0) or 0
        start = start + parent[dim] if start < 0 else start
        if dim < lead or (op == "slice" and len(args) > 4 and args[4] != 1):
            return None
        count = 1 if op == "select" else shape[dim]
        rows, columns = parent[-2:]
        return Corner(start, 0, count, columns) if dim == lead else Corner(0, start, rows, count)
    same = shape[-2:] == parent[-2:] and math.prod(shape) == math.prod(parent)
    return Corner(0, 0, *shape[-2:]) if same and op in ("view", "unsqueeze", "squeeze", "alias", "detach") else None
