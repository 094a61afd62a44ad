"""What is known of a tensor of the run: its storage, its field, and how a view and its parent follow each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from rfcalc.analysis.field import Field, everything, join
from rfcalc.analysis.parts import Shape, TooLargeError
from rfcalc.analysis.pattern import LOST, Corner, Pattern, overwritten
from rfcalc.analysis.rules import Value

KEY = "_rfcalc_value"
PLAIN = frozenset((Tensor, nn.Parameter))


class NeedsValuesError(BaseException):
    """The forward asked for the numbers in a tensor, which a storage-less run does not have.

    No `Exception`: a forward that goes on after an error (`try: x.item()`), or the logging that prints one, must not
    take it for one of its own.
    """


class UnseenOpError(Exception):
    """Level 2 met a tensor made by an op it never saw (scripted code, say); level 1 sees every op."""


class NeedsGraphError(Exception):
    """The forward differentiates, and this run keeps no graph to differentiate by."""


class RuleError(Exception):
    """A rule gave up or failed: level 2 leaves the call to level 1, and level 1 takes the op as one without a rule."""


def execute(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Call what is torch's or the user's: an error that arises below this line is not ours."""
    return func(*args, **kwargs)


class Ledger:
    """Bytes of live activations. Storage is counted once, however many views share it."""

    __slots__ = ("live", "peak")

    def __init__(self) -> None:
        self.live = self.peak = 0


class Cell:
    """One storage: lives as long as any tensor on it, and counts writes so that views know when they are stale."""

    __slots__ = ("ledger", "nbytes", "version")

    def __init__(self, ledger: Ledger, nbytes: int) -> None:
        self.ledger, self.nbytes, self.version = ledger, nbytes, 0
        ledger.live += nbytes

    def __del__(self) -> None:
        self.ledger.live -= self.nbytes

    def grow(self, nbytes: int) -> None:
        """The storage was made larger, never smaller."""
        more = max(nbytes - self.nbytes, 0)
        self.nbytes += more
        self.ledger.live += more

    def release(self) -> None:
        """Count no more: the call that needed it is over, whoever still holds the tensor."""
        self.ledger.live -= self.nbytes
        self.nbytes = 0


class Traced(Value):
    """A tensor of the run. A view knows its parent, how to read itself off it, and how to write itself back."""

    __slots__ = ("back", "cell", "corner", "parent", "replay", "version")

    def __init__(self, shape: Shape, field: Field | None, cell: Cell, const: Any = None) -> None:
        self.shape, self.field, self.const, self.pattern = shape, field, const, None  # not by super(): one per op
        self.cell, self.version = cell, cell.version
        self.parent: Traced | None = None
        self.corner: Corner | None = None  # of a view of a large constant: which rectangle it is
        self.replay: Callable[[Field | None], Field | None] | None = None
        self.back: Callable[[Field | None, Field | None], Field | None] | None = None


def fresh(v: Traced) -> Traced:
    """Re-read a view whose storage was written to since."""
    if v.version != v.cell.version:
        if v.parent is not None and v.replay is not None:
            v.field = v.replay(fresh(v.parent).field)
        v.const = None
        v.pattern = v.pattern and LOST
        v.version = v.cell.version
    return v


def root_of(v: Value) -> Value:
    """What a tensor is a view of, as of now."""
    while isinstance(v, Traced) and v.parent is not None:
        v = fresh(v.parent)
    return v


def write(v: Traced, new: Field | None) -> None:
    """Set what a tensor depends on, and what every tensor on the same storage then does."""
    chain: list[Traced] = [v]
    while chain[-1].parent is not None:
        chain.append(chain[-1].parent)
    olds = [fresh(c).field for c in chain]
    v.field = new
    for child, parent, old in zip(chain, chain[1:], olds[1:], strict=False):
        parent.field = _written(child, parent, old)
    v.cell.version += 1
    for c in chain:
        c.version, c.const, c.pattern = v.cell.version, None, None


def write_pattern(v: Traced, new: Pattern | Tensor) -> None:
    """A large constant, or a view of one, written to: what it is now, and what those are that it is a view of."""
    if not math.prod(v.shape):
        return
    v.cell.version += 1
    _know(v, new)
    while (parent := v.parent) is not None:
        old = parent.pattern or LOST
        _know(parent, LOST if v.corner is None else overwritten(old, new, v.corner))
        v, new = parent, parent.pattern or LOST


def _know(v: Traced, numbers: Pattern | Tensor) -> None:
    """Set the numbers of a constant as of now."""
    v.version = v.cell.version
    if isinstance(numbers, Tensor):
        v.const, v.pattern = numbers, None
    else:
        v.const, v.pattern = None, numbers


def forget_numbers(v: Value) -> None:
    """Numbers that nobody knows were written to a constant: no tensor on the same storage is known any more."""
    if not isinstance(v, Traced):
        v.const = None
        return
    v.cell.version += 1
    above: Traced | None = v
    while above is not None:
        above.const, above = None, above.parent


def _written(child: Traced, parent: Traced, old: Field | None) -> Field | None:
    """What the parent of a view depends on once the view was written to."""
    if child.back is not None:
        try:
            return child.back(old, child.field)
        except TooLargeError:
            pass  # the hull below, marked
    # The inverse is not known: anywhere in the parent there may be the old or the new.
    both = [everything(f, "write through a view") for f in (old, child.field) if f is not None]
    return join(both) if both else None


def tensors_in(args: Any) -> Iterator[Tensor]:
    for a in args:
        if isinstance(a, Tensor):
            yield a
        elif isinstance(a, list | tuple):
            yield from tensors_in(a)


def map_tensors(a: Any, f: Callable[[Tensor], Any]) -> Any:
    if isinstance(a, Tensor):
        return f(a)
    if isinstance(a, list | tuple):
        return [map_tensors(i, f) for i in a]
    return a


def nbytes_of(t: Tensor) -> int:
    return t.numel() * t.element_size()


def alike(t: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
    """`t` and its data to be: what a run makes is of inference mode, weights are not, and torch mixes neither."""
    if t.is_inference() is not data.is_inference():
        with _disable_current_modes(), torch.inference_mode(t.is_inference()):
            data = data.clone()
    return t, data


def is_whole(t: Tensor) -> bool:
    """Does a tensor hold the elements of its storage in their order?"""
    return bool(t.is_contiguous() and t.storage_offset() == 0)


def shares_storage(a: Tensor, b: Tensor) -> bool:
    """Does a write to one reach the other? Layouts without one storage are taken to, as their op's schema says."""
    try:
        return bool(a.untyped_storage()._cdata == b.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return False


def values_in(items: Any) -> Iterator[Any]:
    for v in items:
        if isinstance(v, Value):
            yield v
        elif isinstance(v, list | tuple):
            yield from values_in(v)
