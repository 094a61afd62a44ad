"""What a forward is fed: shapes, tensors and plain arguments, as given -> one `Inputs`, and tensors made of it.

The analysis, the gradient proof and the command line all start here, so that they mean the same by the same input.

>>> inputs = Inputs.of({"image": (3, 8, 8), "step": torch.tensor(5), "scale": 2.0})
>>> [leaf.shape for leaf in inputs.leaves], [axis.name for axis in inputs.axes]
([(1, 3, 8, 8), ()], ['0.H', '0.W'])
>>> [leaf.shape for leaf in Inputs.of((7, 16), "TNC").leaves]
[(7, 1, 16)]"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rfcalc.analysis.field import NOTHING, Field, identity
from rfcalc.analysis.parts import Shape
from rfcalc.analysis.report import Axis
from rfcalc.errors import InputError

_LAYOUTS = {0: "", 1: "T", 2: "CL", 3: "CHW", 4: "CDHW"}
_BATCH, _CHANNELS = "N", "C"
READS_INDICES = "the design reads indices: traced with int64 input"  # a note of the report
Make = Callable[["Leaf"], Tensor]


@dataclass(frozen=True, slots=True)
class Leaf:
    """One tensor among the inputs: what stands for its dims, one letter each (N: the batch), and its given value.

    `letters` is empty for a tensor that nothing is measured along: a step, a length, a label.
    """

    index: int
    shape: Shape
    letters: str
    value: Tensor | None = None

    @property
    def without_batch(self) -> Shape:
        """The shape as people give it."""
        if not self.letters:
            return self.shape
        return tuple(n for n, letter in zip(self.shape, self.letters, strict=True) if letter.upper() != _BATCH)

    @property
    def fixed(self) -> bool:
        """Are its numbers structure? A step or lengths decide what is computed, and are passed on as they are."""
        v = self.value
        return v is not None and not self.letters and not v.is_meta and not (v.ndim and v.is_floating_point())

    def numbers(self, dtype: torch.dtype, device: str) -> Tensor:
        """A new tensor: the given numbers where they count or are asked for (not on "meta"), else some.

        `dtype` is that of a leaf of which only the shape was given.
        """
        if self.value is not None:
            if self.fixed or (device != "meta" and not self.value.is_meta):
                return self.value.detach().clone().to("cpu")
            dtype = self.value.dtype
        if device == "meta":
            return torch.empty(self.shape, dtype=dtype, device="meta")
        noise = torch.rand(self.shape, generator=torch.Generator().manual_seed(0))
        real = dtype.is_floating_point or dtype.is_complex
        return noise.to(dtype) if real else noise.mul(2).long().to(dtype)

    def axes(self, prefix: str) -> Iterator[Axis]:
        """What is measured along it."""
        for dim, letter in enumerate(self.letters):
            if letter.upper() not in (_BATCH, _CHANNELS):
                yield Axis(self.index, dim, prefix + letter, self.shape[dim])


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs as the user gave them, the tensors among them, and the axes to measure along.

    `layout` has one letter per dim without the batch, of the input that is measured (the first, if there are several).
    """

    given: Any
    leaves: tuple[Leaf, ...]
    axes: tuple[Axis, ...]
    layout: str

    @staticmethod
    def of(given: Any, layout: str | None = None) -> Inputs:
        """The inputs that `analyze` takes, in any of its forms; an `Inputs` is passed through.

        Raises InputError for a malformed shape or layout, or where there is nothing to measure along.
        """
        if isinstance(given, Inputs):
            return given
        found = list(_leaves(given))
        if isinstance(given, Mapping) and not all(isinstance(key, str) for key in given):
            raise InputError(f"inputs: the keys {list(given)!r} are no names of arguments; expected strings")
        if not found:
            raise InputError(f"input shape {_shown(given)}: no shape found, expected one such as (1, 28, 28)")
        read = _read_layout(layout)
        leaves = tuple(_leaf(i, v, read, len(found) == 1) for i, v in enumerate(found))
        if read and not any(_without_batch(leaf.letters) == _without_batch(read) for leaf in leaves):
            shapes = ", ".join(str(leaf.without_batch) for leaf in leaves)
            raise InputError(f"layout {layout!r}: {len(read)} letters, which fits none of the inputs {shapes}")
        axes = tuple(a for leaf in leaves for a in leaf.axes(f"{leaf.index}." if len(leaves) > 1 else ""))
        if not axes:
            what = f"layout {layout!r}" if layout else f"input {_shown(given)}"
            hint = "" if layout else "; name the dims of a tensor by a layout: T for a signal of one dim"
            raise InputError(f"{what}: no axis to measure along, expected a letter other than C and N{hint}")
        measured = _without_batch(read or leaves[axes[0].input].letters)
        return Inputs(given, leaves, axes, measured)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Of every leaf, without the batch."""
        return tuple(leaf.without_batch for leaf in self.leaves)

    @property
    def batched(self) -> bool:
        """Has the input that is measured a dim for the batch?"""
        return _BATCH in self.leaves[self.axes[0].input].letters.upper()

    def build(self, make: Make) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments of the forward, with a tensor made for every leaf."""
        leaves = iter(self.leaves)
        given = self.given

        def one(_: Any) -> Tensor:
            return make(next(leaves))

        if isinstance(given, Mapping):
            return [], {k: _built(v, one) for k, v in given.items()}
        if isinstance(given, list | tuple) and not _is_leaf(given):
            return [_built(v, one) for v in given], {}
        return [_built(given, one)], {}

    def tensors(self, dtype: torch.dtype, device: str) -> tuple[list[Any], dict[str, Any], list[tuple[Tensor, Field]]]:
        """The arguments for a run of the analysis on `device`, and the tensors whose dependence is followed.

        `dtype` is that of an input of which only the shape was given.
        """
        seeds: list[tuple[Tensor, Field]] = []

        def make(leaf: Leaf) -> Tensor:
            t = leaf.numbers(dtype, device)
            if not leaf.fixed:
                axes = tuple(identity(a.size, a.dim) if a.input == leaf.index else NOTHING for a in self.axes)
                seeds.append((t, Field(axes)))
            return t

        args, kwargs = self.build(make)
        return args, kwargs, seeds


def checked_model(model: Any) -> nn.Module:
    """The model. Raises InputError that says what to pass instead of a class, a function, a name or nothing."""
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, type):
        raise InputError(f"model: {model.__name__} is a class; pass an instance: {model.__name__}()")
    if isinstance(model, str):
        raise InputError(f"model: {model!r} is a string; pass the module, or load_design({model!r}).build()")
    if callable(model):
        name = getattr(model, "__name__", "")
        call = f": {name}()" if name.isidentifier() else ""
        raise InputError(f"model: {_shown(model)} is a function; pass the module that it makes{call}")
    raise InputError(f"model: {_shown(model)} is no module; expected an instance of torch.nn.Module")


# ------------------------------------------------------------------------------------------------ what was given


def _is_number(v: Any) -> bool:
    return isinstance(v, int | float | np.integer | np.floating | np.bool_)


def _is_leaf(v: Any) -> bool:
    """A tensor, or a shape: a list or tuple of nothing but numbers."""
    return isinstance(v, Tensor | torch.Size) or (isinstance(v, list | tuple) and bool(v) and all(map(_is_number, v)))


def _parts(v: Any) -> Mapping[Any, Any] | None:
    """What a container holds, by key or index; None for what is none."""
    if isinstance(v, Mapping):
        return v
    if isinstance(v, list | tuple):
        return dict(enumerate(v))
    if dataclasses.is_dataclass(v) and not isinstance(v, type):
        return {f.name: getattr(v, f.name) for f in dataclasses.fields(v)}
    return None


def _leaves(v: Any) -> Iterator[Any]:
    if _is_leaf(v):
        yield v
    else:
        for part in (_parts(v) or {}).values():
            yield from _leaves(part)


def _built(v: Any, make: Callable[[Any], Tensor]) -> Any:
    """The same with tensors for leaves. Plain arguments (numbers, flags, text, None) stay what they are."""
    if _is_leaf(v):
        return make(v)
    if isinstance(v, Mapping):
        return {k: _built(i, make) for k, i in v.items()}
    if isinstance(v, list | tuple):
        items = [_built(i, make) for i in v]
        return type(v)(*items) if hasattr(v, "_fields") else type(v)(items)
    parts = _parts(v)
    if parts is None:
        return v
    return dataclasses.replace(v, **{k: _built(i, make) for k, i in parts.items() if any(True for _ in _leaves(i))})


def _leaf(index: int, v: Any, layout: str, alone: bool) -> Leaf:
    if isinstance(v, Tensor):
        return Leaf(index, tuple(v.shape), _letters_of_tensor(tuple(v.shape), layout, alone), v)
    shape = _checked(v)
    plain = _without_batch(layout)
    if layout != plain and len(layout) == len(shape):  # given with the batch
        return Leaf(index, shape, layout)
    letters = plain if len(plain) == len(shape) else _default(len(shape))
    if plain and alone and len(plain) != len(shape):
        raise _unfit(layout, shape)
    at = layout.upper().find(_BATCH) if layout and letters is plain else 0
    at = max(at, 0)
    return Leaf(index, (*shape[:at], 1, *shape[at:]), letters[:at] + _BATCH + letters[at:])


def _letters_of_tensor(shape: Shape, layout: str, alone: bool) -> str:
    """Dims of a tensor are matched as they are; a layout that names no batch leaves room for one."""
    n = len(shape)
    with_batch = _BATCH in layout.upper()
    if layout and len(layout) == n and (with_batch or alone):
        return layout
    if layout and not with_batch and len(layout) == n - 1:
        at = _batch_dim(shape, layout)
        return layout[:at] + _BATCH + layout[at:]
    if layout and alone:
        raise _unfit(layout, shape)
    return "" if n < 2 else _BATCH + _default(n - 1)


def _batch_dim(shape: Shape, layout: str) -> int:
    """The first dim; unless the only one of size 1 is another, and would leave an axis of one position otherwise."""

    def flat(at: int) -> bool:
        rest = shape[:at] + shape[at + 1 :]
        return any(n == 1 and letter.upper() != _CHANNELS for n, letter in zip(rest, layout, strict=True))

    ones = [at for at, n in enumerate(shape) if n == 1]
    return ones[0] if len(ones) == 1 and flat(0) and not flat(ones[0]) else 0


def _default(dims: int) -> str:
    return _LAYOUTS.get(dims, _CHANNELS + "XYZUVW"[: dims - 1])


def _without_batch(letters: str) -> str:
    return "".join(letter for letter in letters if letter.upper() != _BATCH)


def _read_layout(layout: str | None) -> str:
    """Raises InputError for a layout that names a dim twice."""
    if layout is None or layout == "":
        return ""
    if not isinstance(layout, str) or not layout.isalpha():
        raise InputError(f"layout {layout!r}: expected one letter per dim, as in TC, CHW or TNC")
    named = [letter for letter in layout.upper() if letter != _CHANNELS]
    twice = next((letter for letter in named if named.count(letter) > 1), None)
    if twice is not None:
        raise InputError(f"layout {layout!r}: {twice} names two dims; expected each letter but C once")
    return layout


def _unfit(layout: str, shape: Shape) -> InputError:
    dims = f"the input has {len(shape)} dims {shape}"
    return InputError(f"layout {layout!r}: {len(layout)} letters, but {dims}; N stands for the batch, C for channels")


def _checked(shape: Any) -> Shape:
    for n in shape:
        whole = isinstance(n, int | np.integer) and not isinstance(n, bool | np.bool_)
        if not whole or n < 1:
            found = f"input shape {tuple(shape)}: {n!r} is not a positive whole number"
            raise InputError(f"{found}, expected one such as (1, 28, 28)")
    return tuple(operator.index(n) for n in shape)


def _shown(value: Any) -> str:
    """In one line, not too long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
