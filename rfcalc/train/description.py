"""What was trained and how: all that a run's figures depend on, and the fingerprint that says whether two are alike."""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from rfcalc.designs.design import Design, split_target
from rfcalc.train.data import DataSet
from rfcalc.train.loop import Epoch
from rfcalc.train.recipe import Recipe
from rfcalc.train.verdict import Claim, Verdict, judge
from rfcalc.version import VERSION

SCHEMA = "rfcalc.run/1"
MADE_WITH = {"python", "torch", "platform", "processor", "cores", "threads"}


@dataclass(frozen=True)
class Config:
    """All that a run's figures depend on."""

    design: str
    target: str
    """What loads the design again, from any folder."""
    source: str
    """`fingerprint` of the design."""
    input_shape: tuple[int, int, int]
    params: int
    data: str
    data_dir: str | None
    data_sha256: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    recipe: Recipe
    seeds: tuple[int, ...]
    device: str
    amp: bool
    claim: Claim
    environment: Mapping[str, Any]
    created: str
    version: str

    @property
    def torches(self) -> list[str]:
        """The version of torch that began the run, and those that went on with it."""
        return [self.environment["torch"], *self.environment.get("later_torch", ())]


@dataclass(frozen=True)
class Run:
    """A run folder as it was read: its epochs per seed, from the first on."""

    folder: Path
    config: Config
    epochs: Mapping[int, tuple[Epoch, ...]]

    @property
    def finished(self) -> bool:
        """Whether every seed is through."""
        return all(len(run) == self.config.recipe.epochs for run in self.epochs.values())

    def verdict(self) -> Verdict:
        """What became of its claim. Raises RfcalcError as `judge` does."""
        config = self.config
        return judge(self.epochs, params=config.params, claim=config.claim, epochs=config.recipe.epochs)


# --- what a run is of ----------------------------------------------------------------------------------------


def describe(
    design: Design,
    data: DataSet,
    recipe: Recipe,
    *,
    seeds: Iterable[int],
    device: str,
    amp: bool,
    claim: Claim,
    data_dir: Path | None = None,
) -> Config:
    """The configuration of a run that starts now. Raises RfcalcError as building the design does."""
    place, name, submodule = split_target(design.name)
    absolute = f"{design.path or place}:{name}" + (f"#{submodule}" if submodule else "")
    _, channels, height, width = data.train.images.shape
    fitted = recipe.fitted(data)
    return Config(
        design=design.name,
        target=absolute,
        source=fingerprint(design),
        input_shape=(channels, height, width),
        params=sum(parameter.numel() for parameter in design.build().parameters()),
        data=data.name,
        data_dir=None if data_dir is None else str(data_dir.expanduser().absolute()),
        data_sha256=data_fingerprint(data),
        mean=fitted.mean,
        std=fitted.std,
        classes=data.classes,
        recipe=recipe,
        seeds=tuple(seeds),
        device=device,
        amp=amp,
        claim=claim,
        environment=environment(device),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        version=VERSION,
    )


_SETTINGS = (
    "kernel_size", "stride", "padding", "output_padding", "padding_mode", "dilation", "groups", "ceil_mode",
    "output_size", "size", "scale_factor", "mode", "start_dim", "end_dim", "normalized_shape", "num_groups", "eps",
    "momentum", "p", "inplace", "negative_slope", "approximate", "num_heads", "batch_first",
)  # fmt: skip
"""What a layer does besides its class and its weights' shapes, by the names that torch's layers have had for long."""

_PLAIN = (bool, int, float, str, tuple)


def fingerprint(design: Design) -> str:
    """A hash of what the design's file says and of the network it builds, which also tells of parts from other files.

    Comments and layout do not count, nor how a version of torch prints its layers.
    """
    path = design.path or _source_file(design.source)
    model = design.build()
    found = hashlib.sha256()
    if path is not None:
        found.update(ast.unparse(ast.parse(path.read_bytes())).encode())
    for name, layer in model.named_modules():
        settings = {key: value for key in _SETTINGS if isinstance(value := getattr(layer, key, None), _PLAIN)}
        found.update(repr((name, type(layer).__name__, settings)).encode())
    for name, tensor in model.state_dict().items():
        found.update(repr((name, tuple(tensor.shape))).encode())
    return found.hexdigest()


def _source_file(source: Any) -> Path | None:
    """The file of a class, function, partial or instance; None for what was not written in Python."""
    source = getattr(source, "func", source)
    kind = source if inspect.isclass(source) or inspect.isfunction(source) else type(source)
    try:
        found = inspect.getsourcefile(kind)
    except TypeError:
        return None
    return Path(found) if found else None


def data_fingerprint(data: DataSet) -> str:
    """A hash of every image and label."""
    found = hashlib.sha256()
    for split in (data.train, data.test):
        for part in (split.images, split.labels):
            found.update(part.cpu().contiguous().numpy().data)
    return found.hexdigest()


def environment(device: str) -> dict[str, Any]:
    """What else figures may depend on: versions, machine, threads."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": platform.platform(),
        "processor": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
