"""torchvision's transforms, as a notebook lists them, read into our augmentation stages."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rfcalc.errors import RecipeError
from rfcalc.train.augment import Augmentation, checked_numbers


def stages(transforms: Iterable[Mapping[str, Any]]) -> tuple[Augmentation, ...]:
    """The stages of a reference recipe: one per transform, given as torchvision's name and arguments.

    >>> stages([{"name": "RandomRotation", "degrees": [-7.0, 6.0], "fill": [1]}])[0].rotate
    (-6.0, 7.0)

    Raises RecipeError for a transform or an argument that we do not have.
    """
    return tuple(_stage(transform) for transform in transforms)


def _stage(transform: Mapping[str, Any]) -> Augmentation:
    name = transform.get("name") if isinstance(transform, Mapping) else None
    if not isinstance(name, str):
        raise RecipeError(f"augmentation {transform!r}: expected a dict of torchvision's 'name' and arguments")
    if name not in _CONVERSIONS:
        raise RecipeError(f"augmentation {name}: unknown; expected one of {', '.join(_CONVERSIONS)}")
    convert = _CONVERSIONS[name]
    arguments = {key: value for key, value in transform.items() if key != "name"}
    parameters = inspect.signature(convert).parameters
    unknown = [key for key in arguments if key not in parameters]
    if unknown:
        raise RecipeError(f"augmentation {name}: no argument {unknown[0]!r}; expected {', '.join(parameters)}")
    missing = [key for key, one in parameters.items() if one.default is one.empty and key not in arguments]
    if missing:
        raise RecipeError(f"augmentation {name}: argument {missing[0]!r} is missing")
    try:
        return convert(**arguments)
    except RecipeError as error:
        raise RecipeError(f"augmentation {name}: {error}") from error


# Each takes the arguments that torchvision's class of its name takes, with the same defaults.


def _rotation(
    degrees: Any, interpolation: Any = "nearest", expand: Any = False, center: Any = None, fill: Any = 0
) -> Augmentation:
    _require_default(expand=expand, center=center)
    low, high = checked_numbers("degrees", _around("degrees", degrees), (2,), -math.inf, math.inf)
    # RandomRotation turns counter-clockwise.
    return Augmentation(rotate=(-high, -low), interpolation=_mode(interpolation), fill=_grey(fill))


def _affine(
    degrees: Any,
    translate: Any = None,
    scale: Any = None,
    shear: Any = None,
    interpolation: Any = "nearest",
    fill: Any = 0,
    center: Any = None,
) -> Augmentation:
    _require_default(center=center)
    return Augmentation(
        rotate=_around("degrees", degrees),
        translate=(0, 0) if translate is None else translate,
        scale=(1, 1) if scale is None else scale,
        shear=(0, 0) if shear is None else _around("shear", shear),
        interpolation=_mode(interpolation),
        fill=_grey(fill),
    )


def _color_jitter(brightness: Any = 0, contrast: Any = 0, saturation: Any = 0, hue: Any = 0) -> Augmentation:
    return Augmentation(
        brightness=_around("brightness", brightness, 1, least=0),
        contrast=_around("contrast", contrast, 1, least=0),
        saturation=_around("saturation", saturation, 1, least=0),
        hue=_around("hue", hue),
    )


def _erasing(
    p: Any = 0.5, scale: Any = (0.02, 0.33), ratio: Any = (0.3, 3.3), value: Any = 0, inplace: Any = False
) -> Augmentation:
    # torchvision erases a tensor of 0..1, and so do we.
    (value,) = checked_numbers("value", value, (1,), 0, 1)
    return Augmentation(erase=p, erase_scale=scale, erase_ratio=ratio, fill=255 * value)


def _resize(size: Any, interpolation: Any = None, max_size: Any = None, antialias: Any = True) -> Augmentation:
    _require_default(max_size=max_size)
    return Augmentation(resize=size)


_CONVERSIONS: dict[str, Callable[..., Augmentation]] = {
    "RandomRotation": _rotation,
    "RandomAffine": _affine,
    "ColorJitter": _color_jitter,
    "RandomErasing": _erasing,
    "Resize": _resize,
}


def _around(name: str, value: Any, centre: float = 0, least: float = -math.inf) -> Any:
    """One number d as (centre - d, centre + d), cut at `least`; anything else as it is."""
    if isinstance(value, list | tuple):
        return value
    (reach,) = checked_numbers(name, value, (1,), 0, math.inf)
    return (max(least, centre - reach), centre + reach)


def _grey(fill: Any) -> float:
    """torchvision's `fill` of an 8-bit image: a number, or one per channel that are all the same."""
    channels = list(fill) if isinstance(fill, list | tuple) else [fill or 0]
    if any(grey != channels[0] for grey in channels):
        raise RecipeError(f"fill: {fill!r}; expected the same for every channel")
    (grey,) = checked_numbers("fill", channels[:1], (1,), 0, 255)
    return float(int(grey))  # torchvision cuts it to a whole number: 0.1307 is black


def _mode(interpolation: Any) -> str:
    """The name of an InterpolationMode, given as such, as its value or as Pillow's number."""
    if isinstance(interpolation, int):
        return {0: "nearest", 2: "bilinear"}.get(interpolation, str(interpolation))
    return str(getattr(interpolation, "value", interpolation))


def _require_default(**arguments: Any) -> None:
    for name, value in arguments.items():
        if value:
            raise RecipeError(f"{name}: {value!r}; expected {name} left out: it is not supported")
