"""What a run writes down: one event per torch-function call, in which module; and what level 2 offers it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from rfcalc.analysis.field import Field
from rfcalc.analysis.parts import Shape
from rfcalc.analysis.rules import Window


class Frame:
    """One call of one module."""

    __slots__ = ("module", "parent", "path")

    def __init__(self, module: nn.Module | None, path: str, parent: Frame | None) -> None:
        self.module, self.path, self.parent = module, path, parent


class Event:
    """One op: what came in, what went out, and the geometry and work of it.

    Made when the op begins; dispatch calls below it add to it; `record` closes those that the input reaches.
    """

    __slots__ = ("field", "frame", "ins", "macs", "nbytes", "number", "op", "params", "shape", "windows")

    op: str
    shape: Shape
    field: Field
    nbytes: int

    def __init__(self, number: int, frame: Frame) -> None:
        self.number, self.frame = number, frame
        self.ins: list[tuple[Shape, Field]] = []
        self.windows: list[Window] = []
        self.macs = 0
        self.params: list[int] = []


@dataclass(slots=True)
class Trace:
    """What a run left behind."""

    events: list[Event]
    outputs: list[tuple[Shape, Field | None]]
    output_number: int
    macs: int
    peak: int
    used: set[int]
    failed: dict[str, str]


class Layer(NamedTuple):
    """What calling a plain layer of torch comes to: one torch function, and its arguments behind the input.

    `arguments` is given the layer's `__dict__`; None: this one is set up in a way that only its own forward knows.
    `ndims`: of the tensors it takes, where it is particular about that.
    """

    function: Callable[..., Any]
    arguments: Callable[[dict[str, Any]], tuple[Any, ...] | None]
    ndims: frozenset[int] | None = None


class Shortcuts(NamedTuple):
    """What level 2 answers itself: torch functions, and the layers that are one call of such a function."""

    functions: dict[Any, Callable[..., Any]]
    layers: dict[type[nn.Module], Layer]
