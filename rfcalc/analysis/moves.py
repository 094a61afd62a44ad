"""What happens to one part when elements move: picked, padded, permuted, reshaped, reduced, placed. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np

from rfcalc.analysis.grids import extend, narrowed
from rfcalc.analysis.memo import MEMO
from rfcalc.analysis.parts import (
    EMPTY,
    Index,
    Part,
    Shape,
    Span,
    axis_in,
    blank_exact,
    check_size,
    expand_span,
    laid_along,
    neutral,
    settle,
    spread,
)


def take_part(part: Part, dim: int, n: int, index: Index) -> Part:
    """Pick positions along a dim (slice, flip, roll, index_select)."""
    if not len(index):  # a tensor without elements depends on nothing
        return Part(np.full(part.bounds.shape[0], neutral(part.bounds), part.bounds.dtype), (), part.local)
    span = part.span
    if span is not None and span.dim == dim:
        inside = np.flatnonzero((index >= span.start) & (index < span.stop))
        if dim not in part.dims and inside.size and inside[-1] - inside[0] + 1 == inside.size:
            whole = inside.size == len(index)
            return part._replace(span=None if whole else Span(dim, int(inside[0]), int(inside[-1]) + 1))
        if not inside.size:
            return take_part(part._replace(span=None), dim, n, inside)
        part = expand_span(part, n)
    if dim not in part.dims:
        return part
    out = part._replace(bounds=part.bounds.take(index, axis_in(part, dim)))
    return narrowed(out, part, dim) if len(index) == 1 else out


def pad_part(
    part: Part, dim: int, n: int, before: int, after: int, mode: str, jump: Fraction, turn: int = 1
) -> Part:  # fmt: skip
    """Pad (or crop, where negative) one dim; `mode` is torch's: constant, reflect, replicate, circular."""
    at = np.arange(-before, n + after)
    if part.bounds.dtype == np.bool_:  # a mask: padding is an ordinary constant
        grown = spread(expand_span(part, n), dim, n)
        return grown._replace(
            bounds=np.where(
                laid_along((at >= 0) & (at < n), grown.bounds.ndim, axis_in(grown, dim)),
                grown.bounds.take(np.clip(at, 0, n - 1), axis_in(grown, dim)),
                False,
            )
        )
    if part.span is not None and part.span.dim == dim:
        part = expand_span(part, n)
    outside = (at < 0) | (at >= n)
    if dim not in part.dims:
        if mode != "constant" or not outside.any():
            return part
        return blank_exact(part, dim, ~outside)
    ax = axis_in(part, dim)
    grows = before > 0 or after > 0
    ext = extend(part.bounds, ax, max(before, 0), max(after, 0), jump, turn) if grows else part.bounds
    start = max(-before, 0)
    out = ext[(slice(None),) * ax + (slice(start, start + len(at)),)]
    if mode != "constant" and outside.any():
        exact = part.bounds[:2].take(_wrapped(before, after, n, mode), ax)
        out = np.concatenate([exact, out[2:]])
    return part._replace(bounds=out)


def _wrapped(before: int, after: int, n: int, mode: str) -> Index:
    """The input position a padded position copies."""
    at = np.arange(-before, n + after)
    if mode == "circular":  # what a negative amount crops is gone before the rest is wrapped
        first, kept = max(-before, 0), n + min(before, 0) + min(after, 0)
        return np.clip(first + (at - first) % max(kept, 1), 0, n - 1)
    if mode == "replicate":
        return np.clip(at, 0, n - 1)
    if n == 1:
        return np.zeros_like(at)
    folded = np.abs(at) % (2 * n - 2)
    return np.where(folded >= n, 2 * n - 2 - folded, folded)


def permute_part(part: Part, order: Sequence[int]) -> Part:
    """New dim i is old dim `order[i]`."""
    where = {old: new for new, old in enumerate(order)}
    moved = [where[d] for d in part.dims]
    rank = sorted(range(len(moved)), key=moved.__getitem__)
    b = part.bounds if rank == list(range(len(moved))) else part.bounds.transpose(0, *(r + 1 for r in rank))
    span = part.span and part.span._replace(dim=where[part.span.dim])
    return Part(b, tuple(sorted(moved)), part.local, span)


def renumber_part(part: Part, where: dict[int, int]) -> Part:
    """Rename dims in ascending order; a dim that is missing has size 1 and is dropped."""
    gone = [i + 1 for i, d in enumerate(part.dims) if d not in where]
    b = part.bounds.squeeze(tuple(gone)) if gone else part.bounds
    span = part.span
    if span is not None:
        span = span._replace(dim=where[span.dim]) if span.dim in where else None
    return Part(b, tuple(where[d] for d in part.dims if d in where), part.local, span)


@lru_cache(maxsize=4096)
def reshape_plan(old: Shape, new: Shape) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Groups of old dims and of new dims with equal products; dims of size 1 belong to no group."""
    a = [i for i, n in enumerate(old) if n != 1]
    b = [i for i, n in enumerate(new) if n != 1]
    plan = []
    i = j = 0
    while i < len(a) and j < len(b):
        ei, ej = i + 1, j + 1
        left, right = old[a[i]], new[b[j]]
        while left != right:
            if left < right:
                left, ei = left * old[a[ei]], ei + 1
            else:
                right, ej = right * new[b[ej]], ej + 1
        plan.append((tuple(a[i:ei]), tuple(b[j:ej])))
        i, j = ei, ej
    return plan


def reshape_part(part: Part, old: Shape, new: Shape) -> Part:
    """Move bounds through a reshape. Dims that stay whole only change their number; the rest is written out."""
    plan = reshape_plan(old, new)
    if part.span is not None and not any(src == (part.span.dim,) and len(dst) == 1 for src, dst in plan):
        part = expand_span(part, old[part.span.dim])
    span = part.span
    size, full, target, dims, fresh = [part.bounds.shape[0]], [part.bounds.shape[0]], [part.bounds.shape[0]], [], []
    for src, dst in plan:
        if span is not None and part.span is not None and src == (part.span.dim,):
            span = span._replace(dim=dst[0])
        if not any(d in part.dims for d in src):
            continue
        size += [old[d] if d in part.dims else 1 for d in src]
        full += [old[d] for d in src]
        target += [new[d] for d in dst]
        dims += list(dst)
        if len(src) > 1 or len(dst) > 1:
            fresh += list(dst)
    if not fresh:  # the array itself, if it loses no dim of size 1: what is known of it is known by identity
        b = part.bounds if len(target) == part.bounds.ndim else part.bounds.reshape(target)
        return Part(b, tuple(dims), part.local, span)
    check_size(math.prod(full))
    b = np.broadcast_to(part.bounds.reshape(size), full).reshape(target)
    return settle(Part(b, tuple(dims), part.local, span), fresh)


def broadcast_part(part: Part, old: Shape, new: Shape) -> Part:
    """Right-align `old` with `new`; a dim of size 1 that grows no longer carries the field."""
    shift = len(new) - len(old)
    if not shift and old == new:
        return part
    where = {d: d + shift for d in range(len(old)) if old[d] == new[d + shift]}
    span = part.span
    if span is not None and span.dim not in where:  # a dim of size 1: the span is all or nothing of it
        part = part._replace(span=None)
    return renumber_part(part, where)


def reduce_part(part: Part, dims: frozenset[int]) -> Part:
    """Hull over whole dims, which stay in the numbering (as with keepdim)."""
    span = part.span
    if span is not None and span.dim in dims:
        part = part._replace(span=None)
    if dims.isdisjoint(part.dims):
        return part
    hit = tuple(i + 1 for i, d in enumerate(part.dims) if d in dims)
    if part.bounds.dtype == np.bool_:
        return part._replace(bounds=np.all(part.bounds, axis=hit), dims=tuple(d for d in part.dims if d not in dims))
    b = part.bounds
    key = ("reduce", id(b), hit)
    found = MEMO.get(key)
    if found is None:
        found = MEMO[key] = (b.min(hit, initial=EMPTY), b)
    return part._replace(bounds=found[0], dims=tuple(d for d in part.dims if d not in dims))


def prefix_part(part: Part, dim: int, n: int) -> Part:
    """Running hull along a dim (cumulative ops, causal attention)."""
    if part.span is not None and part.span.dim == dim:
        part = expand_span(part, n)
    if dim not in part.dims:
        return part
    ax = axis_in(part, dim)
    return part._replace(bounds=np.minimum.accumulate(part.bounds, ax))


def place_part(part: Part, dim: int, start: int, n: int, total: int) -> Part:
    """An operand of a concatenation: it exists at `start <= index < start + n` of `total`."""
    if n == total:
        return part
    if part.span is None and dim not in part.dims:
        return Part(part.bounds, part.dims, part.local, Span(dim, start, start + n))
    if part.span is not None:
        if part.span.dim == dim and dim not in part.dims:
            return part._replace(span=Span(dim, part.span.start + start, part.span.stop + start))
        part = spread(part, dim, n) if part.span.dim != dim else expand_span(part, n)
    return _place_array(part, dim, start, total)


def _place_array(part: Part, dim: int, start: int, total: int) -> Part:
    ax = axis_in(part, dim)
    shape = list(part.bounds.shape)
    n = shape[ax]
    shape[ax] = total
    check_size(math.prod(shape))
    out = np.full(shape, neutral(part.bounds), part.bounds.dtype)
    out[(slice(None),) * ax + (slice(start, start + n),)] = part.bounds
    return part._replace(bounds=out)
