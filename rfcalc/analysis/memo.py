"""Remembered results, the one way all of the analysis shares: found by the identity of their operands.

H and W of a square map share their arrays, so work is done once for both. The operands are kept alive beside the
result, so that an id cannot be reused. `forget` drops everything when an analysis ends."""

from __future__ import annotations

from typing import Any

# Results by identity of their operands: H and W of a square map share their arrays, so work is done once for both.
# The operands are kept alive beside the result, so an id cannot be reused. Cleared after each trace.
MEMO: dict[tuple[Any, ...], tuple[Any, ...]] = {}


# What is known of an array beside its numbers, by identity: saves reading them. Lives as long as `_memo`.
LINES: dict[int, tuple[Any, Any]] = {}


def forget() -> None:
    """Drop the shared intermediate results (called when a trace ends)."""
    MEMO.clear()
    LINES.clear()
