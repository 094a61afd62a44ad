"""Data sets, whole and in memory: uint8 tensors read once, checked, and small enough to live on the device.

>>> data = load("mnist", input_shape=(1, 28, 28))          # doctest: +SKIP
>>> images, labels = data.train.batch(torch.arange(128))          # doctest: +SKIP
>>> images = normalise(augment(images, stages, generator), data)  # doctest: +SKIP

Where files are looked for: `data_dir`, else the folder in RFCALC_DATA, else the user's cache. Files, downloads and
their checksums are torchvision's; what was read is checked again here, for torchvision looks only at downloads.
"""

from __future__ import annotations

import hashlib
import math
import os
import socket
import struct
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from rfcalc.errors import DataError, extra
from rfcalc.text import one_line

DIGITS = tuple("0123456789")
_AGAIN = "delete what is damaged, and it is downloaded again"


@dataclass(frozen=True, eq=False)
class Split:
    """Images [N, C, H, W] as uint8, and their classes [N] as int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The images of these rows [B] as floats 0..1, as torchvision's ToTensor gives them, and their classes."""
        # index_select and then a division take a quarter of the time of indexing with [].
        return self.images.index_select(0, rows).div(255), self.labels.index_select(0, rows)

    def to(self, device: torch.device | str) -> Split:
        """The split on a device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class DataSet:
    """What is trained on and what is tested on. `mean` and `std` are the training split's, per channel, in 0..1.

    The `std` of a channel that never changes is 1."""

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def background(self) -> float:
        """What the training images lie on, 0..255: the median of their outermost pixels."""
        return float(ring(self.train.images).median())

    def to(self, device: torch.device | str) -> DataSet:
        """The set on a device."""
        return DataSet(self.name, self.train.to(device), self.test.to(device), self.classes, self.mean, self.std)


def ring(images: Tensor) -> Tensor:
    """The outermost pixels of images [..., H, W], in a row: [..., N]."""
    sides = (images[..., 0, :], images[..., -1, :], images[..., 1:-1, 0], images[..., 1:-1, -1])
    return torch.cat(sides, dim=-1)


def normalise(images: Tensor, data: DataSet) -> Tensor:
    """Float images 0..1 [N, C, H, W] less the mean of the training split, over its standard deviation."""
    normal = images.clone()
    # Plain numbers, no tensors of them: those could not be copied to a GPU while a CUDA graph is captured.
    for channel, mean, std in zip(normal.unbind(1), data.mean, data.std, strict=True):
        channel.sub_(mean).div_(std)
    return normal


def load(
    name: str, *, data_dir: Path | None = None, input_shape: tuple[int, int, int], download: bool = True
) -> DataSet:
    """The data set of that name for a design that takes `input_shape` (C, H, W): one of `names()` or `folder:PATH`.

    Only `digits` and `folder:PATH` are scaled to the design's input; the others must have its shape. Raises DataError
    for an unknown name, images of another shape, and files that are missing, damaged or not what they should be.
    """
    if name.startswith("folder:"):
        return _folder(Path(name.removeprefix("folder:")).expanduser(), input_shape)
    if name == "digits":
        return _digits(input_shape)
    if name not in _SOURCES:
        raise DataError(f"data set {name!r}: unknown; expected one of {', '.join(names())} or folder:PATH")
    source = _SOURCES[name]
    if source.shape != input_shape:
        raise DataError(
            f"{name}: the images are {_by(source.shape)}, the design takes {_by(input_shape)}; expected a design for "
            "such images, or a data set that is scaled to it: digits or folder:PATH"
        )
    return _from_torchvision(name, source, folder(data_dir), download)


def names() -> tuple[str, ...]:
    """The data sets that have a name of their own."""
    return (*_SOURCES, "digits")


def full_name(name: str) -> str:
    """The same data set by a name that holds from everywhere."""
    if not name.startswith("folder:"):
        return name
    return "folder:" + os.path.abspath(os.path.expanduser(name.removeprefix("folder:")))


def folder(data_dir: Path | None = None) -> Path:
    """Where the files of data sets are looked for: `data_dir`, else RFCALC_DATA, else the user's cache."""
    chosen = data_dir or os.environ.get("RFCALC_DATA")
    if chosen:
        return Path(chosen).expanduser()
    with extra("train"):
        import platformdirs
    return platformdirs.user_cache_path("rfcalc")


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(str(length) for length in shape)


def _data_set(name: str, train: Split, test: Split, classes: tuple[str, ...]) -> DataSet:
    """With the statistics of the training split. Raises DataError when its images are all alike and plain."""
    mean, std = _statistics(train.images)
    if not any(std):
        raise DataError(f"{name}: every training image is of one colour; expected images with something on them")
    # A channel that never changes becomes 0 whatever it is divided by.
    return DataSet(name, train, test, classes, mean, tuple(deviation or 1.0 for deviation in std))


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images, in 0..1, from whole numbers: exact on any machine."""
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)])
    share = counts / counts.sum(1, keepdim=True, dtype=torch.float64)
    mean = share @ values
    std = (share * (values - mean[:, None]) ** 2).sum(1).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())


# --- torchvision's sets --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """One of torchvision's data sets, and what is known of it beforehand."""

    kind: str
    """Its class in torchvision.datasets."""
    train: int
    test: int
    files: Mapping[str, tuple[int, ...]]
    """What each IDX file under the data folder holds: images and labels for training, then those of the test."""
    classes: tuple[str, ...] | None = None
    """None: those that torchvision names."""
    shape: tuple[int, int, int] = (1, 28, 28)
    options: Mapping[str, str] = field(default_factory=dict)
    transposed: bool = False
    md5: tuple[str, ...] = ()
    """Of the same four without their headers. torchvision has none for the files as unpacked, so only what we read
    ourselves is known; the others are held to sizes, headers and labels."""


def _idx(
    home: str, train: str, test: str, counts: tuple[int, int], labels: str = "labels-idx1-ubyte"
) -> dict[str, tuple[int, ...]]:
    """Images of 28x28 bytes; of labels a byte each, or of QMNIST's eight whole numbers."""
    files: dict[str, tuple[int, ...]] = {}
    for split, count in zip((train, test), counts, strict=True):
        files[f"{home}/raw/{split}-images-idx3-ubyte"] = (count, 28, 28)
        files[f"{home}/raw/{split}-{labels}"] = (count,) if labels.endswith("ubyte") else (count, 8)
    return files


def _like_mnist(kind: str, classes: tuple[str, ...] | None = None, md5: tuple[str, ...] = ()) -> _Source:
    counts = (60_000, 10_000)
    return _Source(kind, *counts, _idx(kind, "train", "t10k", counts), classes, md5=md5)


_SOURCES = {
    "mnist": _like_mnist(
        "MNIST",
        DIGITS,
        md5=(
            "6510e85a72c3e9475c492d559d3770d2",
            "e86ee40d66677c011a9abda399ec8c4d",
            "240610fa99e73bfa49df8e7fc24d3206",
            "073c3904dfbd3e141ff8aa01cfde6b15",
        ),
    ),
    "fashion-mnist": _like_mnist("FashionMNIST"),
    "kmnist": _like_mnist("KMNIST"),
    # The split of ten digits, 280,000 of them, that a design for MNIST fits. Its files hold the images transposed.
    "emnist": _Source(
        "EMNIST",
        240_000,
        40_000,
        _idx("EMNIST", "emnist-digits-train", "emnist-digits-test", (240_000, 40_000)),
        DIGITS,
        options={"split": "digits"},
        transposed=True,
    ),
    # MNIST with all 60,000 images of its test set.
    "qmnist": _Source(
        "QMNIST",
        60_000,
        60_000,
        _idx("QMNIST", "qmnist-train", "qmnist-test", (60_000, 60_000), "labels-idx2-int"),
        DIGITS,
    ),
    "cifar10": _Source("CIFAR10", 50_000, 10_000, {}, shape=(3, 32, 32)),
}


def _from_torchvision(name: str, source: _Source, root: Path, download: bool) -> DataSet:
    with extra("train"):
        from torchvision import datasets
    kind = getattr(datasets, source.kind)
    _require_whole(name, source, root)
    try:
        with _patience():
            train_part = kind(root, train=True, download=download, **source.options)
            test_part = kind(root, train=False, download=download, **source.options)
    except Exception as error:  # torchvision raises what the network, the archive or the reader did
        _require_whole(name, source, root)
        _require_checksums(name, kind, root)
        raise _unreadable(name, source, kind, root, error, download) from error
    classes = source.classes or tuple(str(one) for one in train_part.classes)
    train, test = _split(train_part), _split(test_part)
    _require_sound(f"{name} in {root}: training split", train, (source.train, *source.shape), len(classes))
    _require_sound(f"{name} in {root}: test split", test, (source.test, *source.shape), len(classes))
    if source.md5:
        _require_content(name, source, root, (train.images, train.labels, test.images, test.labels))
    if source.transposed:
        train, test = (Split(split.images.mT.contiguous(), split.labels) for split in (train, test))
    return _data_set(name, train, test, classes)


def _split(part: Any) -> Split:
    """What a data set of torchvision holds, as tensors."""
    images = torch.as_tensor(part.data)
    images = images.permute(0, 3, 1, 2).contiguous() if images.ndim == 4 else images[:, None]
    labels = torch.as_tensor(part.targets, dtype=torch.int64)
    return Split(images, labels[:, 0] if labels.ndim == 2 else labels)  # QMNIST's class stands before its history


@contextmanager
def _patience() -> Iterator[None]:
    """A server that does not answer is given up, and stdout is left to the results."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        socket.setdefaulttimeout(before)


def _unreadable(name: str, source: _Source, kind: Any, root: Path, error: Exception, download: bool) -> DataError:
    files = [*source.files, *(f"{kind.base_folder}/{file}" for file, _ in _listed(kind))]
    absent = [file for file in files if not os.path.exists(root / file)]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if not absent:
        return DataError(f"{name}: the files in {root} cannot be read ({lines[-1]}); {_AGAIN}")
    tried = f", and the download failed ({lines[-1]})" if download else ""
    return DataError(
        f"{name}: no {absent[0]} in {root}{tried}; copy the files there, name their folder by --data-dir or "
        "RFCALC_DATA, or run once with a network; --dataset digits needs none of it"
    )


# --- what was read is what it should be ----------------------------------------------------------------------


def _require_whole(name: str, source: _Source, root: Path) -> None:
    """Raises DataError for an IDX file that is there and has another size or header than it should.

    The header (yann.lecun.com/exdb/mnist): two zeros, the type of an element, how many dims, and their lengths.
    """
    for file, shape in source.files.items():
        path = root / file
        if not os.path.exists(path):
            continue
        kind, width = (12, 4) if file.endswith("-int") else (8, 1)
        header = struct.pack(f">4B{len(shape)}I", 0, 0, kind, len(shape), *shape)
        expected = len(header) + width * math.prod(shape)
        if (found := os.path.getsize(path)) != expected:
            raise DataError(f"{name}: {path} has {found:,} bytes; expected {expected:,}; {_AGAIN}")
        try:
            with path.open("rb") as opened:
                begins = opened.read(len(header))
        except OSError as error:
            raise DataError(f"{name}: {path} cannot be read: {one_line(error)}") from error
        if begins != header:
            raise DataError(f"{name}: {path} begins with {begins.hex()}; expected {header.hex()}; {_AGAIN}")


def _listed(kind: Any) -> list[tuple[str, str]]:
    """Files and md5 that torchvision itself keeps for unpacked files: CIFAR's."""
    return [*getattr(kind, "train_list", ()), *getattr(kind, "test_list", ())]


def _require_checksums(name: str, kind: Any, root: Path) -> None:
    for file, expected in _listed(kind):
        path = root / kind.base_folder / file
        if os.path.exists(path) and (found := hashlib.md5(path.read_bytes()).hexdigest()) != expected:
            raise DataError(f"{name}: {path} has the md5 {found}; expected {expected}; {_AGAIN}")


def _require_content(name: str, source: _Source, root: Path, parts: Iterable[Tensor]) -> None:
    for part, file, expected in zip(parts, source.files, source.md5, strict=True):
        found = hashlib.md5(bytes(part.to(torch.uint8).contiguous().numpy())).hexdigest()
        if found != expected:
            raise DataError(
                f"{name}: {root / file} has the md5 {found} behind its header; expected {expected}; {_AGAIN}"
            )


def _require_sound(place: str, split: Split, shape: tuple[int, ...], classes: int) -> None:
    """Raises DataError unless there are so many images of that shape, as many labels, and each class has some."""
    if split.images.shape != shape or split.images.dtype != torch.uint8:
        found = f"{split.images.shape[0]:,} images of {_by(tuple(split.images.shape[1:]))}"
        raise DataError(f"{place} has {found}; expected {shape[0]:,} of {_by(shape[1:])}")
    if len(split.labels) != shape[0]:
        raise DataError(f"{place} has {len(split.labels):,} labels; expected {shape[0]:,}, one per image")
    low, high = int(split.labels.min()), int(split.labels.max())
    if low < 0 or high >= classes:
        raise DataError(f"{place} has labels from {low} to {high}; expected 0 to {classes - 1}")
    seen = int(torch.bincount(split.labels, minlength=classes).count_nonzero())
    if seen < classes:
        raise DataError(f"{place} has images of {seen} classes; expected all {classes}")


# --- sets that are scaled to the design's input --------------------------------------------------------------


def _digits(shape: tuple[int, int, int]) -> DataSet:
    """scikit-learn's 1,797 digits of 8x8, bundled with it: four fifths for training, by a split that never changes."""
    channels, height, width = _plain(shape, "digits")
    with extra("train"):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    bundled = load_digits()
    small = torch.from_numpy(bundled.images).float()[:, None] * (255 / 16)
    large = interpolate(small, (height, width), mode="bilinear", align_corners=False, antialias=True)
    images = large.round().clamp(0, 255).to(torch.uint8).expand(-1, channels, -1, -1).contiguous()
    labels = torch.from_numpy(bundled.target).long()
    rows = train_test_split(range(len(labels)), test_size=0.2, stratify=bundled.target, random_state=0)
    train, test = (Split(images[sorted(part)], labels[sorted(part)]) for part in rows)
    return _data_set("digits", train, test, DIGITS)


def _folder(root: Path, shape: tuple[int, int, int]) -> DataSet:
    """Images in folders named after their classes, in train/ and test/ (or val/), each decoded once."""
    _plain(shape, f"folder:{root}")
    parts = [root / "train", next((root / part for part in ("test", "val") if (root / part).is_dir()), root / "test")]
    for part in parts:
        if not part.is_dir():
            raise DataError(
                f"folder:{root}: no folder {part}; expected train/CLASS/IMAGE and test/CLASS/IMAGE (or val/)"
            )
    with extra("train"):
        from torchvision.datasets import ImageFolder
    try:
        train, test = (ImageFolder(str(part)) for part in parts)
    except FileNotFoundError as error:
        raise DataError(f"folder:{root}: {one_line(error)}") from error
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))[0]
        raise DataError(f"folder:{root}: class {odd!r} is in one of {parts[0].name}/ and {parts[1].name}/ only")
    return _data_set(full_name(f"folder:{root}"), _decoded(train, shape), _decoded(test, shape), tuple(train.classes))


def _decoded(part: Any, shape: tuple[int, int, int]) -> Split:
    return Split(torch.stack([read_image(Path(path), shape) for path, _ in part.samples]), torch.tensor(part.targets))


def read_image(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """An image file as uint8 [C, H, W] of the given shape: upright, grey or in colour, scaled bilinearly.

    Raises DataError when the file cannot be read or has more than 8 bits a channel.
    """
    channels, height, width = _plain(shape, str(path))
    with extra("train"):
        import numpy as np
        from PIL import Image, ImageOps
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # it is large, and read all the same
            image = Image.open(path)
        with image:
            if image.mode.startswith(("I", "F")):
                # Pillow would cut off what is above 255, which is most of such an image.
                raise DataError(f"{path}: pixels of more than 8 bits (mode {image.mode}); expected 8 bits per channel")
            upright = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
            scaled = upright.resize((width, height), Image.Resampling.BILINEAR)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not an image that can be read: {one_line(error)}") from error
    pixels = torch.from_numpy(np.array(scaled))
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()


def _plain(shape: tuple[int, ...], place: str) -> tuple[int, int, int]:
    """Raises DataError unless images can be brought to that shape."""
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise DataError(f"{place}: the design takes {_by(shape)}; expected 1xHxW for grey or 3xHxW for colour")
    channels, height, width = shape
    return channels, height, width
