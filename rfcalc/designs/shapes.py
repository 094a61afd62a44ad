"""Input shapes as a command line or a design file gives them."""

from __future__ import annotations

import operator
from dataclasses import is_dataclass
from numbers import Number
from typing import Any

from rfcalc.errors import InputError

Shape = tuple[int, ...]
InputShape = Shape | tuple[Shape, ...] | dict[str, Shape]


_EXAMPLES = "1x28x28, or 3x64x64,3x64x64 for two inputs, or image=3x64x64,tokens=10 by name"


def parse_shape(text: str) -> InputShape:
    """The value of `--input`.

    >>> parse_shape("1x28x28")
    (1, 28, 28)
    >>> parse_shape("3x64x64,3x64x64")
    ((3, 64, 64), (3, 64, 64))
    >>> parse_shape("x=3x64x64,y=10")
    {'x': (3, 64, 64), 'y': (10,)}

    Raises InputError for anything else.
    """
    parts = [part.strip() for part in text.split(",")]
    named = [part.partition("=") for part in parts]
    if not any(mark for _, mark, _ in named):
        shapes = tuple(_parse_one(part, text) for part in parts)
        return shapes[0] if len(shapes) == 1 else shapes
    names = [name.strip() for name, _, _ in named]
    if not all(mark for _, mark, _ in named) or not all(name.isidentifier() for name in names):
        raise InputError(f"--input {text!r}: expected a name before every shape or before none, as in {_EXAMPLES}")
    if len(set(names)) < len(names):
        raise InputError(f"--input {text!r}: an input is named twice; expected each name once")
    return {name: _parse_one(value, text) for name, (_, _, value) in zip(names, named, strict=True)}


def _parse_one(part: str, text: str) -> Shape:
    lengths = [length.strip() for length in part.lower().replace("×", "x").split("x")]
    # Nine digits hold any real length, and int() need not meet a number of ten thousand.
    if not all(length.isascii() and length.isdigit() and len(length) < 10 and int(length) > 0 for length in lengths):
        raise InputError(f"--input {text!r}: expected whole numbers above 0 joined by x, as in {_EXAMPLES}")
    return tuple(int(length) for length in lengths)


def checked_input(value: Any, place: str) -> InputShape:
    """What `analyze` takes: shapes as plain tuples of ints, in nested lists, tuples and dicts; tensors and plain
    arguments beside them as they are.

    Raises InputError that names `place`. torch need not be imported for it.
    """
    named = not isinstance(value, dict) or all(isinstance(name, str) for name in value)
    if not named or not _holds_a_tensor(value):
        raise _malformed(value, place)
    checked = _checked_part(value, value, place)
    return tuple(checked) if isinstance(checked, list) else checked


def _is_shape(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(n, Number) for n in value)


def _holds_a_tensor(value: Any) -> bool:
    if isinstance(value, dict | list | tuple) and not _is_shape(value):
        return any(map(_holds_a_tensor, value.values() if isinstance(value, dict) else value))
    return _is_shape(value) or hasattr(value, "dtype") or is_dataclass(value)


def _checked_part(value: Any, whole: Any, place: str) -> Any:
    if _is_shape(value):
        return _checked_one(value, whole, place)
    if isinstance(value, dict):
        return {name: _checked_part(part, whole, place) for name, part in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(_checked_part(part, whole, place) for part in value)
    return value


def checked_shape(value: Any, place: str) -> InputShape:
    """A shape, a sequence of shapes or a dict of shapes, as plain tuples of ints.

    Raises InputError that names `place`.
    """
    if isinstance(value, dict):
        if value and all(isinstance(name, str) for name in value):
            return {name: _checked_one(shape, value, place) for name, shape in value.items()}
    elif isinstance(value, list | tuple) and value:
        if any(isinstance(item, list | tuple) for item in value):
            return tuple(_checked_one(shape, value, place) for shape in value)
        return _checked_one(value, value, place)
    raise _malformed(value, place)


def _checked_one(shape: Any, whole: Any, place: str) -> Shape:
    if not isinstance(shape, list | tuple) or not shape:
        raise _malformed(whole, place)
    if any(isinstance(length, bool) or not hasattr(length, "__index__") for length in shape):
        raise _malformed(whole, place)
    lengths = tuple(operator.index(length) for length in shape)
    if min(lengths) < 1:
        raise _malformed(whole, place)
    return lengths


def _malformed(value: Any, place: str) -> InputError:
    shown = " ".join(repr(value).split())
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return InputError(f"{place} is {shown}; expected whole numbers above 0 without the batch, as in (1, 28, 28)")
