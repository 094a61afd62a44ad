"""Random changes to a batch of images as tensor code: the same on CPU and GPU, no PIL, no loader workers.

An `Augmentation` is one stage: a warp (rotation, shear, translation, scale and shift in one affine resampling), then
brightness and contrast, then an erased box. Every argument means what torchvision's RandomAffine, ColorJitter and
RandomErasing define. Drawing and applying are apart: `draw` makes a small table of numbers per image on the
generator's device, `apply` is a pure function of images and table. So the numbers are the same wherever the images
live, an epoch's can be drawn at once, and `apply` can be captured in a CUDA graph.

>>> stages = (Augmentation(rotate=(-10, 10), shear=(-5, 5), scale=(0.9, 1.1), shift=2),)
>>> augment(torch.rand(4, 1, 28, 28), stages, torch.Generator().manual_seed(1)).shape
torch.Size([4, 1, 28, 28])

Images are floats in 0..1 before normalisation, `fill` is a grey value 0..255: what moves in is the background."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from rfcalc.errors import RecipeError

INTERPOLATIONS = ("nearest", "bilinear")
_ERASE_TRIES = 10  # torchvision draws a box anew when it does not fit, so often at most


@dataclass(frozen=True)
class Augmentation:
    """One stage. Each default leaves the image as it is.

    Raises RecipeError for a value that no image could be changed by.
    """

    rotate: tuple[float, float] = (0.0, 0.0)
    """Degrees, least and most, clockwise as in torchvision's affine (its rotate turns the other way)."""
    shear: tuple[float, ...] = (0.0, 0.0)
    """Degrees, least and most, parallel to the x axis; two more numbers are those of the y axis."""
    translate: tuple[float, float] = (0.0, 0.0)
    """Largest fractions of width and height; the drawn shift is rounded to whole pixels, as torchvision does."""
    scale: tuple[float, float] = (1.0, 1.0)
    shift: int = 0
    """Largest shift in whole pixels, each from -shift to shift as likely, along both axes."""
    warp: float = 1.0
    """Probability that an image is rotated, sheared, moved and scaled at all; the others keep their sharp pixels."""
    brightness: tuple[float, float] = (1.0, 1.0)
    """Least and greatest factor; a factor of 0 makes the image black."""
    contrast: tuple[float, float] = (1.0, 1.0)
    """Least and greatest factor; a factor of 0 makes the image its mean grey. Before or after brightness, by chance."""
    saturation: tuple[float, float] = (1.0, 1.0)
    """Grey images have none. Colour images with another range than (1, 1) are refused."""
    hue: tuple[float, float] = (0.0, 0.0)
    """Grey images have none. Colour images with another range than (0, 0) are refused."""
    erase: float = 0.0
    """Probability that a box of the image is erased to `fill`."""
    erase_scale: tuple[float, float] = (0.02, 0.33)
    """Share of the image's area that the box has."""
    erase_ratio: tuple[float, float] = (0.3, 3.3)
    """Height of the box over its width."""
    fill: float = 0.0
    """The background, a grey value 0..255."""
    interpolation: str = "bilinear"
    resize: tuple[int, ...] = ()
    """The size the images must have already: height and width, or the shorter of the two; empty: any."""

    def __post_init__(self) -> None:
        for name, limits in _RANGES.items():
            object.__setattr__(self, name, _range(name, getattr(self, name), *limits))
        object.__setattr__(self, "translate", checked_numbers("translate", self.translate, (2,), 0, 1))
        object.__setattr__(self, "resize", _size(self.resize))
        checked_numbers("warp", (self.warp,), (1,), 0, 1)
        checked_numbers("erase", (self.erase,), (1,), 0, 1)
        checked_numbers("fill", (self.fill,), (1,), 0, 255)
        if isinstance(self.shift, bool) or not isinstance(self.shift, int) or self.shift < 0:
            raise RecipeError(f"shift: {self.shift!r}; expected a whole number of pixels, 0 or more")
        if self.interpolation not in INTERPOLATIONS:
            raise RecipeError(f"interpolation: {self.interpolation!r}; expected {' or '.join(INTERPOLATIONS)}")

    @property
    def warps(self) -> bool:
        """Whether the image is resampled."""
        fixed = not any((*self.rotate, *self.shear, *self.translate, self.shift)) and self.scale == (1, 1)
        return not fixed

    @property
    def jitters(self) -> bool:
        """Whether brightness or contrast change."""
        return (self.brightness, self.contrast) != ((1, 1), (1, 1))

    @property
    def erases(self) -> bool:
        """Whether a box may be erased."""
        return self.erase > 0


# Per range: how many numbers it may have, and between what they lie.
_RANGES: dict[str, tuple[tuple[int, ...], float, float]] = {
    "rotate": ((2,), -math.inf, math.inf),
    "shear": ((2, 4), -89, 89),
    "scale": ((2,), 1e-3, math.inf),
    "brightness": ((2,), 0, math.inf),
    "contrast": ((2,), 0, math.inf),
    "saturation": ((2,), 0, math.inf),
    "hue": ((2,), -0.5, 0.5),
    "erase_scale": ((2,), 0, 1),
    "erase_ratio": ((2,), 1e-3, math.inf),
}


def checked_numbers(name: str, value: Any, counts: tuple[int, ...], least: float, most: float) -> tuple[float, ...]:
    """Raises RecipeError unless `value` holds so many finite numbers from least to most."""
    given = tuple(value) if isinstance(value, list | tuple) else (value,)
    plain = all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in given)
    if len(given) not in counts or not plain or not all(least <= x <= most for x in given):
        many = " or ".join(str(count) for count in counts)
        bounds = "" if math.isinf(least) else f" >= {least:g}" if math.isinf(most) else f" from {least:g} to {most:g}"
        raise RecipeError(f"{name}: {value!r}; expected {many} finite number{'s' * (many != '1')}{bounds}")
    return tuple(float(x) for x in given)


def _range(name: str, value: Any, counts: tuple[int, ...], least: float, most: float) -> tuple[float, ...]:
    """Raises RecipeError unless `value` is (min, max), or two of them behind each other."""
    numbers = checked_numbers(name, value, counts, least, most)
    if any(low > high for low, high in zip(numbers[::2], numbers[1::2], strict=True)):
        raise RecipeError(f"{name}: {value!r}; expected the least before the most")
    return numbers


def _size(value: Any) -> tuple[int, ...]:
    lengths = tuple(value) if isinstance(value, list | tuple) else (value,)
    if len(lengths) > 2 or not all(type(length) is int and length > 0 for length in lengths):
        raise RecipeError(f"resize: {value!r}; expected one or two whole numbers above 0")
    return lengths


# --- drawing and applying ------------------------------------------------------------------------------------


def augment(images: Tensor, stages: Sequence[Augmentation], generator: torch.Generator) -> Tensor:
    """Images changed by every stage in turn, each image by numbers of its own.

    `images` [N, C, H, W] are floats 0..1 before normalisation and are left as they are. What is drawn depends on the
    generator alone, wherever the images live. Raises RecipeError as `draw` does.
    """
    channels, height, width = images.shape[1:]
    return apply(images, stages, draw(stages, len(images), (channels, height, width), generator).to(images.device))


def draw(stages: Sequence[Augmentation], count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """What is done to each of `count` images of `shape` (C, H, W): a table [count, stages, 13] of floats.

    The table lies on the generator's device. Row i belongs to image i: draw an epoch at once and index it like the
    images. Raises RecipeError when a stage does not fit images of that shape.
    """
    table = torch.zeros(count, len(stages), _COLUMNS, device=generator.device)
    for index, stage in enumerate(stages):
        _require_fit(stage, shape)
        uniform = torch.rand(count, _UNIFORMS, generator=generator, device=generator.device)
        if stage.warps:
            table[:, index, _WARP] = _draw_warp(stage, uniform, shape[1:])
            if stage.warp < 1:
                kept = torch.rand(count, generator=generator, device=generator.device) >= stage.warp
                table[kept, index, _WARP] = _AS_IT_IS.to(table.device)
        if stage.jitters:
            table[:, index, _JITTER] = _draw_jitter(stage, uniform)
        if stage.erases:
            table[:, index, _BOX] = _draw_box(stage, uniform, shape[1:])
    return table


def apply(images: Tensor, stages: Sequence[Augmentation], table: Tensor) -> Tensor:
    """Images [N, C, H, W] changed as the table [N, stages, 13] of `draw` says: deterministic, nothing is drawn here."""
    for index, stage in enumerate(stages):
        if stage.warps:
            images = _warp(stage, images, table[:, index, _WARP])
        if stage.jitters:
            images = _jitter(images, table[:, index, _JITTER])
        if stage.erases:
            images = _erase(stage, images, table[:, index, _BOX])
    return images


def _require_fit(stage: Augmentation, shape: tuple[int, int, int]) -> None:
    channels, height, width = shape
    if stage.resize and stage.resize not in ((height, width), (min(height, width),)):
        wanted = "x".join(str(length) for length in stage.resize)
        raise RecipeError(f"Resize to {wanted}: the images are {height}x{width}; expected their own size or no Resize")
    if channels > 1 and (stage.saturation != (1, 1) or stage.hue != (0, 0)):
        raise RecipeError("ColorJitter: saturation and hue of colour images are not supported; expected 0 for both")
    if channels not in (1, 3) and stage.jitters:
        raise RecipeError(f"ColorJitter: the images have {channels} channels; expected 1 or 3")


# Columns of the table: the inverse affine map, the factors and their order, the erased box.
_WARP, _JITTER, _BOX = slice(0, 6), slice(6, 9), slice(9, 13)
_COLUMNS = _BOX.stop
_AS_IT_IS = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0])

# Columns of the uniform numbers a stage is drawn from. It always takes them all, so that one of its steps draws the
# same whether another is on or off.
_ANGLE, _SHEAR_X, _SHEAR_Y, _TRANSLATE_X, _TRANSLATE_Y, _SCALE, _SHIFT_X, _SHIFT_Y = range(8)
_BRIGHTNESS, _CONTRAST, _ORDER, _ERASE, _TOP, _LEFT = range(8, 14)
_AREA = slice(14, 14 + _ERASE_TRIES)
_RATIO = slice(_AREA.stop, _AREA.stop + _ERASE_TRIES)
_UNIFORMS = _RATIO.stop


def _between(uniform: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * uniform


def _whole(uniform: Tensor, count: Tensor | int) -> Tensor:
    """0 to count - 1, each as likely."""
    # A uniform number just below 1 times the count can round up to the count.
    return (uniform * count).floor().clamp(max=count - 1)


# --- warp ----------------------------------------------------------------------------------------------------


def _draw_warp(stage: Augmentation, uniform: Tensor, size: tuple[int, ...]) -> Tensor:
    """The inverse affine map of each image, row by row [N, 6]."""
    height, width = size
    shears = (*stage.shear, 0.0, 0.0)[:4]
    across, down = stage.translate[0] * width, stage.translate[1] * height
    return inverse_affine(
        angle=_between(uniform[:, _ANGLE], *stage.rotate),
        right=_between(uniform[:, _TRANSLATE_X], -across, across).round()
        + _whole(uniform[:, _SHIFT_X], 2 * stage.shift + 1)
        - stage.shift,
        down=_between(uniform[:, _TRANSLATE_Y], -down, down).round()
        + _whole(uniform[:, _SHIFT_Y], 2 * stage.shift + 1)
        - stage.shift,
        scale=_between(uniform[:, _SCALE], *stage.scale),
        shear_x=_between(uniform[:, _SHEAR_X], *shears[:2]),
        shear_y=_between(uniform[:, _SHEAR_Y], *shears[2:]),
    )


def inverse_affine(
    *, angle: Tensor, right: Tensor, down: Tensor, scale: Tensor, shear_x: Tensor, shear_y: Tensor
) -> Tensor:
    """Rows [N, 6] = (a, b, c, d, e, f): output pixel (x, y) shows the input at (ax + by + c, dx + ey + f).

    Coordinates are pixels from the image's centre; the arguments [N] are those of torchvision's `affine`: degrees
    clockwise, pixels right and down, a factor.
    """
    turn, sx, sy = torch.deg2rad(angle), torch.deg2rad(shear_x), torch.deg2rad(shear_y)
    # Rotation times scale times both shears is [[p, q], [r, s]] with determinant 1 before scaling.
    p = torch.cos(turn - sy) / torch.cos(sy)
    q = -p * torch.tan(sx) - torch.sin(turn)
    r = torch.sin(turn - sy) / torch.cos(sy)
    s = -r * torch.tan(sx) + torch.cos(turn)
    a, b, d, e = s / scale, -q / scale, -r / scale, p / scale
    return torch.stack((a, b, -a * right - b * down, d, e, -d * right - e * down), 1)


def _warp(stage: Augmentation, images: Tensor, inverse: Tensor) -> Tensor:
    height, width = images.shape[2:]
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = torch.arange(height, device=images.device) - (height - 1) / 2
    # Positions as grid_sample wants them: -1 and 1 are the image's edges. Row and column parts add up by broadcasting,
    # ten times as fast as affine_grid and exact whatever precision a matmul is allowed.
    to_unit = 2 / torch.stack((torch.full_like(x[:1], width), torch.full_like(y[:1], height)))
    inverse = inverse.view(-1, 2, 3) * to_unit
    rows = inverse[:, :, 1, None] * y + inverse[:, :, 2, None]
    grid = inverse[:, :, 0, None, None] * x + rows[..., None]
    # Outside is 0, so the background is taken away before and put back after: an edge blends into it, not into black.
    background = stage.fill / 255
    shown = images - background if background else images
    shown = grid_sample(shown, grid.permute(0, 2, 3, 1), stage.interpolation, "zeros", align_corners=False)
    return shown + background if background else shown


# --- brightness and contrast ---------------------------------------------------------------------------------


def _draw_jitter(stage: Augmentation, uniform: Tensor) -> Tensor:
    """Per image [N, 3]: factor of brightness, factor of contrast, 1 when brightness goes first, else 0."""
    return torch.stack(
        (
            _between(uniform[:, _BRIGHTNESS], *stage.brightness),
            _between(uniform[:, _CONTRAST], *stage.contrast),
            (uniform[:, _ORDER] < 0.5).float(),
        ),
        1,
    )


def _jitter(images: Tensor, drawn: Tensor) -> Tensor:
    brightness, contrast, first = drawn.view(-1, 3, 1, 1, 1).unbind(1)
    # Both are x -> factor * x + offset, cut to 0..1; brightness has no offset, contrast keeps the mean grey.
    for is_brightness in (first, 1 - first):
        factor = torch.where(is_brightness > 0.5, brightness, contrast)
        offset = (1 - is_brightness) * (1 - contrast) * _mean_grey(images)
        images = torch.addcmul(offset, factor, images).clamp_(0, 1)
    return images


def _mean_grey(images: Tensor) -> Tensor:
    """[N, 1, 1, 1], with torchvision's weights of red, green and blue."""
    means = images.mean((2, 3), keepdim=True)
    if means.shape[1] == 1:
        return means
    red, green, blue = means[:, :1], means[:, 1:2], means[:, 2:]
    return 0.2989 * red + 0.587 * green + 0.114 * blue


# --- erasing -------------------------------------------------------------------------------------------------


def _draw_box(stage: Augmentation, uniform: Tensor, size: tuple[int, ...]) -> Tensor:
    """The erased box of each image [N, 4]: first and past-last row, first and past-last column; empty when spared."""
    height, width = size
    area = height * width * _between(uniform[:, _AREA], *stage.erase_scale)
    ratio = _between(uniform[:, _RATIO], *(math.log(limit) for limit in stage.erase_ratio)).exp()
    tall, wide = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (tall < height) & (wide < width)
    # The first try that fits; argmax finds the first of equal ones. No try that fits: nothing is erased.
    chosen = fits.float().argmax(1, keepdim=True)
    erased = fits.any(1) & (uniform[:, _ERASE] < stage.erase)
    tall = tall.gather(1, chosen)[:, 0] * erased
    wide = wide.gather(1, chosen)[:, 0] * erased
    top, left = _whole(uniform[:, _TOP], height - tall + 1), _whole(uniform[:, _LEFT], width - wide + 1)
    return torch.stack((top, top + tall, left, left + wide), 1)


def _erase(stage: Augmentation, images: Tensor, box: Tensor) -> Tensor:
    top, bottom, left, right = box.view(-1, 4, 1).unbind(1)
    row = torch.arange(images.shape[2], device=images.device)
    column = torch.arange(images.shape[3], device=images.device)
    rows, columns = (top <= row) & (row < bottom), (left <= column) & (column < right)
    return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], stage.fill / 255)
