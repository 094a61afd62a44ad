"""Threads that a forward starts: a run sees the thread it is in, so that what others compute would go unseen."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.overrides import TorchFunctionMode

from rfcalc.analysis.calls import call_name, is_query

UNSEEN = "the forward calls `{}` of torch in a thread that it starts, which no run sees; call it in the forward's own"


class _Watch(TorchFunctionMode):
    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not is_query(func):
            self.seen.append(call_name(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def watched() -> Iterator[list[str]]:
    """Gives the names of torch functions that threads call which this one starts inside."""
    seen: list[str] = []
    here, start = threading.get_ident(), threading.Thread.start

    def begin(self: threading.Thread) -> None:
        if threading.get_ident() == here:
            inner = self.run

            def run() -> None:
                with _Watch(seen):
                    inner()

            self.run = run  # type: ignore[method-assign]
        start(self)

    threading.Thread.start = begin  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        threading.Thread.start = start  # type: ignore[method-assign]
