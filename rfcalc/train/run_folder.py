"""Reading a run's folder, with suspicion: every file is checked, nothing pickled is loaded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rfcalc.errors import RfcalcError, RunError, extra
from rfcalc.text import one_line
from rfcalc.train.description import MADE_WITH, SCHEMA, Config, Run
from rfcalc.train.loop import Epoch, State
from rfcalc.train.recipe import from_dict
from rfcalc.train.verdict import Claim, Weights


def read(folder: Path) -> Run:
    """A run folder, finished or not. Raises RunError when it is none or a file of it is damaged."""
    require_folder(folder)
    config = _config(folder / "config.json")
    return Run(folder, config, metrics_of(folder / "metrics.jsonl", config))


def require_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        found = "no config.json in it" if folder.exists() else "no such folder"
        raise RunError(f"{folder}: {found}; expected a run's folder, as in runs/models-step8-Net/2026-11-21T07-05-14")


def read_state(folder: Path, seed: int) -> State | None:
    """The state of a seed; None when it has not finished an epoch. Raises RunError when the file is damaged."""
    file = state_file(folder, seed)
    if not file.exists():
        return None
    try:
        state = State.from_dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # torch.load raises whatever it meets in a damaged file
        raise RunError(f"{file}: not a state that can be read ({one_line(error)}); start a new run") from error
    if state.seed != seed:
        raise RunError(f"{file}: the state of seed {state.seed}; expected that of seed {seed}: start a new run")
    return state


def read_weights(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A network's tensors by name, and what is known of them. Raises RunError when it is no safetensors file."""
    with extra("train"):
        from safetensors import SafetensorError, safe_open
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RunError(f"{file}: not a safetensors file that can be read ({one_line(error)})") from error


def weights_of(run: Run, seed: int, weights: Weights) -> tuple[int, dict[str, Tensor]]:
    """The newest weights of a seed, its state's, else those written when it was through; and the epoch they are after.

    Raises RunError when there are none.
    """
    if (state := read_state(run.folder, seed)) is not None:
        tensors = state.model if weights == "raw" else state.ema
        if tensors is None:
            raise RunError(f"{run.folder}: its recipe keeps no averaged weights; expected raw ones to be asked for")
        return state.epoch, tensors
    file = weights_file(run.folder, seed, weights)
    if not file.exists():
        raise RunError(f"{run.folder}: no {weights} weights of seed {seed}; expected a seed that has finished an epoch")
    tensors, about = read_weights(file)
    if not about.get("epoch", "").isdecimal():
        raise RunError(f"{file}: does not say after which epoch; expected a file that rfcalc train has written")
    return int(about["epoch"]), tensors


def weights_file(folder: Path, seed: int, weights: Weights) -> Path:
    """Where the weights of a seed are kept."""
    return folder / f"weights-{seed}-{weights}.safetensors"


def newest(runs: Path) -> tuple[dict[str, Run], list[RunError]]:
    """Of every design, by its `fingerprint`, the newest finished run under a folder; and what could not be read."""
    found: dict[str, Run] = {}
    damaged = []
    for file in sorted(runs.glob("*/*/config.json")):
        try:
            run = read(file.parent)
        except RunError as error:
            damaged.append(error)
            continue
        before = found.get(run.config.source)
        if run.finished and (before is None or before.config.created < run.config.created):
            found[run.config.source] = run
    return found, damaged


def state_file(folder: Path, seed: int) -> Path:
    return folder / f"state-{seed}.pt"


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: cannot be read as JSON ({one_line(error)})") from error
    if not isinstance(found, dict):
        raise RunError(f"{file}: {type(found).__name__}; expected a JSON object")
    return found


def _config(file: Path) -> Config:
    values = _json(file)
    if values.pop("schema", None) != SCHEMA:
        raise RunError(f"{file}: not of schema {SCHEMA}; it is another version's, start a new run")
    _require_fields(Config, values, file)
    try:
        values["recipe"] = from_dict(values["recipe"])
        _require_fields(Claim, values["claim"], file)
        values["claim"] = Claim(**values["claim"])
    except (RfcalcError, TypeError) as error:
        raise RunError(f"{file}: {error}") from error
    for name, kind in (("seeds", int), ("classes", str), ("mean", float), ("std", float), ("input_shape", int)):
        if not isinstance(values[name], list) or not all(type(one) is kind for one in values[name]):
            raise RunError(f"{file}: {name} is {values[name]!r}; it is damaged")
    if not isinstance(values["environment"], dict) or MADE_WITH - set(values["environment"]):
        raise RunError(f"{file}: environment lacks one of {', '.join(sorted(MADE_WITH))}; it is damaged")
    if not isinstance(later := values["environment"].get("later_torch", []), list):
        raise RunError(f"{file}: later_torch is {later!r}; it is damaged")
    # Lists of JSON were tuples.
    given: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in values.items()}
    return Config(**given)


def metrics_of(file: Path, config: Config) -> dict[int, tuple[Epoch, ...]]:
    epochs: dict[int, list[Epoch]] = {seed: [] for seed in config.seeds}
    try:
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: cannot be read ({one_line(error)})") from error
    for number, line in enumerate(lines, 1):
        place = f"{file}:{number}"
        try:
            values = json.loads(line)
        except ValueError as error:
            raise RunError(f"{place}: not a line of JSON ({one_line(error)})") from error
        _require_fields(Epoch, values, place)
        if not all(isinstance(one, int | float) or (one is None and "ema" in name) for name, one in values.items()):
            raise RunError(f"{place}: a figure is no number; it is damaged")
        epoch = Epoch(**values)
        if epoch.test_total < 1 or epoch.train_total < 1:
            raise RunError(f"{place}: figures of no image; it is damaged")
        if epoch.seed not in epochs or epoch.epoch != len(epochs[epoch.seed]) + 1:
            raise RunError(f"{place}: seed {epoch.seed}, epoch {epoch.epoch}; expected each epoch of each seed in turn")
        epochs[epoch.seed].append(epoch)
    return {seed: tuple(found) for seed, found in epochs.items()}


def _require_fields(kind: type[Any], values: Any, place: object) -> None:
    """Raises RunError unless `values` has exactly the fields of a dataclass."""
    names = {one.name for one in dataclasses.fields(kind)}
    if not isinstance(values, dict) or set(values) != names:
        odd = sorted(set(values) ^ names) if isinstance(values, dict) else [type(values).__name__]
        raise RunError(f"{place}: {odd[0]!r} is missing or unknown; it is damaged or another version's")
