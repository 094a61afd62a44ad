"""One training step as a CUDA graph, and what a GPU needs around it."""

from __future__ import annotations

import contextlib
import ctypes
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from rfcalc.errors import ForwardError
from rfcalc.text import one_line


def keep_memory() -> None:
    """Tell glibc to keep what is freed: else every large tensor is fetched from the kernel anew, page by page zeroed.

    That is a third to a half of a small network's step. Other C libraries are left as they are.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, mmap_max = -1, -4  # of malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def cudnn(**changed: bool) -> contextlib.AbstractContextManager[None]:
    """cuDNN with these settings changed: its own `flags` resets what is not named, and so turns cuDNN off."""
    cudnn = torch.backends.cudnn
    kept = {name: getattr(cudnn, name) for name in ("enabled", "benchmark", "deterministic")}
    context: contextlib.AbstractContextManager[None] = cudnn.flags(**{**kept, **changed})
    return context


class Captured:
    """A step recorded as a CUDA graph at the fourth full batch and replayed from then on.

    The three before are plain steps on another stream, as capturing wants them: they count like any other. A last,
    smaller batch is a plain step. Where capturing fails, all are, and a warning says so.
    """

    def __init__(self, step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        self.plain = step
        self.plain_steps = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[Tensor, ...] = ()
        self.outputs: tuple[Tensor, Tensor] | None = None
        self.failed = False

    def __call__(self, rows: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        if not self.inputs:
            self.inputs = (rows.clone(), drawn.clone())
        if self.failed or rows.shape != self.inputs[0].shape:
            return self.plain(rows, drawn)
        if self.plain_steps < 3:
            self.plain_steps += 1
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                outputs = self.plain(rows, drawn)
            torch.cuda.current_stream().wait_stream(side)
            return outputs
        if self.graph is None and not self._capture():
            return self.plain(rows, drawn)
        for place, value in zip(self.inputs, (rows, drawn), strict=True):
            place.copy_(value)
        assert self.graph is not None
        assert self.outputs is not None  # made with the graph
        self.graph.replay()
        return self.outputs

    def _capture(self) -> bool:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.outputs = self.plain(*self.inputs)
        except (RuntimeError, ForwardError) as error:
            self.failed = True
            warnings.warn(f"the step cannot be captured as a CUDA graph and runs plainly: {one_line(error)}")
            return False
        self.graph = graph
        return True
