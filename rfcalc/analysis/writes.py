"""Writing into a box of a tensor: what stood there is gone, what is written lies there. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rfcalc.analysis.field import NOTHING, Field, join_axes
from rfcalc.analysis.moves import take_part
from rfcalc.analysis.parts import EMPTY, Index, Part, Shape, Span, axis_in, dominated, expand_span, spread


def write_box(old: Field | None, new: Field | None, shape: Shape, box: Sequence[tuple[int, Index]]) -> Field | None:
    """Overwrite the positions `index` of each `(dim, index)` in `box`; `new` is numbered like `shape`."""
    box = [(d, i) for d, i in box if len(i) != shape[d] or (np.diff(i) != 1).any()]
    if not box or (old is None and new is None):
        return new
    if any(not len(i) for _, i in box):
        return old
    some = old or new
    assert some is not None
    dims = tuple(d for d, _ in box)
    hole = np.zeros([shape[d] for d in dims], np.bool_)
    hole[np.ix_(*(i for _, i in box))] = True

    def punch(p: Part, written: Sequence[Part]) -> Part:
        inside = p
        for d, index in box:
            inside = take_part(inside, d, shape[d], index)
        if dominated(inside, written):  # `x[box] += y`: what was there is there still
            return p
        for d in dims:
            p = spread(expand_span(p, shape[d]) if p.span is not None and p.span.dim == d else p, d, shape[d])
        sizes = [shape[d] if d in dims else 1 for d in p.dims]
        return p._replace(bounds=np.where(hole.reshape(sizes), EMPTY, p.bounds))

    def place(p: Part) -> Part:
        for d, index in box:
            solid = index[-1] - index[0] + 1 == len(index)
            if d not in p.dims and p.span is None and solid:
                p = p._replace(span=Span(d, int(index[0]), int(index[-1]) + 1))
                continue
            p = spread(expand_span(p, len(index)) if p.span is not None and p.span.dim == d else p, d, len(index))
            ax = axis_in(p, d)
            size = list(p.bounds.shape)
            size[ax] = shape[d]
            grown = np.full(size, EMPTY, np.int64)
            grown[(slice(None),) * ax + (index,)] = p.bounds
            p = p._replace(bounds=grown)
        return p

    axes = []
    for i in range(len(some.axes)):
        fresh = new.axes[i].parts if new else ()
        kept = old.axes[i].with_parts([punch(p, fresh) for p in old.axes[i].parts]) if old else NOTHING
        laid = new.axes[i].with_parts([place(p) for p in new.axes[i].parts]) if new else NOTHING
        axes.append(join_axes([kept, laid]) if kept.parts and laid.parts else kept if kept.parts else laid)
    return Field(tuple(axes), (old.approx if old else frozenset()) | (new.approx if new else frozenset()))
