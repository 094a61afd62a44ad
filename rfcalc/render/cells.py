"""Values -> the text of a table's cell: numbers per axis, sizes in bytes, marks. Used by every renderer.

>>> collapsed((28, 28)), collapsed((28, 14)), in_bytes(76_864)
('28', '28x14', '75.06 KiB')
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rfcalc.analysis.report import Axis, LayerRow
    from rfcalc.gate.verdict import Figures


def per_axis(values: Sequence[Any], axes: Sequence[Axis]) -> str:
    """One number when all axes agree, `28x14` when they do not, `28x14,3` when inputs differ."""
    inputs = sorted({axis.input for axis in axes})
    groups = [[v for v, axis in zip(values, axes, strict=True) if axis.input == i] for i in inputs]
    texts = [collapsed(group) for group in groups]
    return texts[0] if len(set(texts)) == 1 else ",".join(texts)


def collapsed(values: Sequence[Any]) -> str:
    """One number when all agree, else all of them joined by x."""
    texts = [atom(value) for value in values]
    return texts[0] if len(set(texts)) == 1 else "x".join(texts)


def atom(value: Any) -> str:
    """One value; of a name only what prints, so that no design can write a control sequence to a terminal."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):  # padding before and after
        return str(value[0]) if value[0] == value[1] else f"{value[0]}:{value[1]}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int | Fraction):
        return str(value)
    return "".join(letter if letter.isprintable() else "?" for letter in str(value))


def mark_of(row: LayerRow, axes: Sequence[Axis]) -> str:
    """`~` approximate, `!` unaligned, `*` global, with the axes' names unless it is all of them."""
    mark = ("" if row.exact else "~") + ("" if row.aligned else "!")
    if all(row.is_global) and row.is_global:
        return f"{mark}*"
    named = [axis.name for axis, is_global in zip(axes, row.is_global, strict=True) if is_global]
    return mark + (f"*{','.join(named)}" if named else "")


def in_bytes(count: int) -> str:
    """A count of bytes in the largest unit that keeps it above 1."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def figure_texts(figures: Figures) -> dict[str, str]:
    """Name -> value of every figure of a design, as people read them; depth counts the layers that multiply."""
    return {
        "params": f"{figures.params:,}",
        "RF": collapsed(figures.rf_output),
        "spatial RF": collapsed(figures.rf_spatial),
        "MACs": f"{figures.macs:,}",
        "activations": in_bytes(figures.peak_activation_bytes),
        "depth": f"{figures.layers:,}",
    }


def changes(before: Figures, after: Figures) -> str:
    """`params 6,720 -> 7,032, +312; RF 26 -> 28`: every figure that changed."""
    old, new = figure_texts(before), figure_texts(after)
    by = {"params": after.params - before.params, "MACs": after.macs - before.macs}
    found = [
        f"{name} {old[name]} -> {new[name]}" + (f", {by[name]:+,}" if name in by else "")
        for name in new
        if old[name] != new[name]
    ]
    return "; ".join(found) or "no figure changed"


def nearest(wanted: str, known: Sequence[str]) -> str:
    """What to say of an unknown name: the nearest known ones, or all of them."""
    near = difflib.get_close_matches(wanted, known, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(known)}"
