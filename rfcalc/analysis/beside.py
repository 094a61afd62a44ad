"""Operands that lie beside each other in a concatenation; dense blocks go on with one more each time. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rfcalc.analysis.field import AxisField, axes_agree, axis_field
from rfcalc.analysis.memo import MEMO
from rfcalc.analysis.moves import place_part
from rfcalc.analysis.parts import Part, Shape, Span


def beside_axes(axes: Sequence[AxisField], sizes: Shape, dim: int) -> AxisField:
    """Operands of a concatenation: each exists on its own stretch of `dim`, and is context where others vary."""
    key = ("beside", dim, *map(id, axes))
    grown = _one_more(axes, sizes, dim, key)
    if grown is not None:
        return grown
    total = sum(sizes)
    vary = [a.varies() for a in axes]
    some = any(vary)
    lead = axes[vary.index(True)] if some else next((a for a in axes if a.parts), axes[0])
    mixed, start = False, 0
    parts: list[Part] = []
    beside: list[AxisField] = []
    plain = True  # every part gets a stretch of its own, so none can merge with another
    for a, v, n in zip(axes, vary, sizes, strict=True):
        if a.parts and n:
            context = some and not v
            mixed = mixed or a.mixed or context
            for p in a.parts:
                local = p.local and not context
                if p.span is None and dim not in p.dims and n != total:
                    parts.append(Part(p.bounds, p.dims, local, Span(dim, start, start + n)))
                else:
                    plain = False
                    parts.append(place_part(p, dim, start, n, total)._replace(local=local))
            plain = plain and len(a.parts) == 1
            if not context:
                beside.append(a)
        start += n
    aligned, turn = _all_agree(lead, beside), math.lcm(*[a.turn for a in axes])
    if plain and len(parts) > 1:
        out = AxisField(tuple(parts), lead.jump, aligned, mixed or not all(p.local for p in parts), None, turn)
        if len(beside) == len(axes):
            MEMO[key] = (out, lead, sizes, axes)
        return out
    return axis_field(parts, lead.jump, aligned, mixed, turn)


def _one_more(
    axes: Sequence[AxisField], sizes: Shape, dim: int, key: tuple[Any, ...]
) -> AxisField | None:  # fmt: skip
    """A dense block concatenates what it concatenated before, and one operand more: only that one is new."""
    last = axes[-1]
    known = MEMO.get(key[:-1]) if len(axes) > 2 else None
    # One field may belong to tensors of several widths.
    if known is None or len(last.parts) != 1 or known[2] != sizes[:-1]:
        return None
    before, lead, earlier, _ = known
    p, n, start = last.parts[0], sizes[-1], sum(earlier)
    if p.span is not None or dim in p.dims or not n or last.varies() != lead.varies():
        return None
    parts = (*before.parts, Part(p.bounds, p.dims, p.local, Span(dim, start, start + n)))
    aligned = before.aligned and last.aligned and axes_agree(lead, last)
    turn = before.turn if before.turn == last.turn else math.lcm(before.turn, last.turn)
    out = AxisField(parts, lead.jump, aligned, before.mixed or last.mixed or not p.local, before, turn)
    MEMO[key] = (out, lead, sizes, axes)
    return out


def _all_agree(lead: AxisField, axes: Sequence[AxisField]) -> bool:
    """Alignment of many paths; H and W of a square map ask the same question."""
    paths = [(a.aligned, a.jump.numerator, a.jump.denominator, *[id(p.bounds) for p in a.parts]) for a in axes]
    key = ("agree", *paths)
    hit = MEMO.get(key)
    if hit is None:
        found = all(a.aligned and (a is lead or axes_agree(lead, a)) for a in axes)
        hit = MEMO[key] = (found, axes)
    return bool(hit[0])
