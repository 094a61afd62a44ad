"""The run folder: what was trained and how, the figures of every epoch, the weights, and a state to go on from.

    runs/models-step8-Net/2026-11-21T07-05-14/
        config.json                    design, data, recipe, seeds, claim, environment: all that the figures depend on
        metrics.jsonl                  a line per epoch and seed
        state-1.pt                     seed 1 after its last epoch
        weights-1-raw.safetensors      seed 1's weights, once it is through or was stopped
        weights-1-ema.safetensors      and their average

Every file is written beside its place, brought to the disk and then renamed: whoever reads, and whenever a writer is
killed, sees the file as it was before or as it is after. An epoch counts once its state is there; a line of
metrics.jsonl that is ahead of it is dropped by `resume`."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rfcalc.errors import RunError, extra
from rfcalc.files import write_whole
from rfcalc.train.description import SCHEMA, Config, Run
from rfcalc.train.loop import Epoch, State
from rfcalc.train.run_folder import read, read_state, require_folder, state_file, weights_file
from rfcalc.train.verdict import Weights
from rfcalc.version import VERSION

if TYPE_CHECKING:
    from filelock import FileLock


class Recorder:
    """A run folder that is being written to, by one process at a time. Use it as a context.

    Raises RunError where it cannot write; what was written before stays as it was.
    """

    def __init__(self, run: Run, states: Mapping[int, State], lock: FileLock) -> None:
        self.folder, self.config, self._lock = run.folder, run.config, lock
        self.states = dict(states)
        self._epochs = {seed: list(epochs) for seed, epochs in run.epochs.items()}

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    @property
    def run(self) -> Run:
        """What there is by now."""
        return Run(self.folder, self.config, {seed: tuple(epochs) for seed, epochs in self._epochs.items()})

    def add(self, epoch: Epoch, state: State) -> None:
        """Keep an epoch and the state after it, and the weights when it was the seed's last."""
        if (this := str(torch.__version__)) != self.config.torches[-1]:
            later = [*self.config.torches[1:], this]
            environment = {**self.config.environment, "later_torch": later}
            self.config = dataclasses.replace(self.config, environment=environment)
            _write_config(self.folder, self.config)
        self._epochs[epoch.seed].append(epoch)
        self._write_metrics()
        buffer = io.BytesIO()
        torch.save(state.to_dict(), buffer)
        write(state_file(self.folder, epoch.seed), buffer.getvalue())
        self.states[epoch.seed] = state
        if epoch.epoch == self.config.recipe.epochs:
            self._write_weights(state)

    def keep_weights(self) -> None:
        """Write the weights of every seed, as far as it is."""
        for state in self.states.values():
            self._write_weights(state)

    def _write_metrics(self) -> None:
        every = (epoch for epochs in self._epochs.values() for epoch in epochs)
        lines = [json.dumps(dataclasses.asdict(epoch)) for epoch in sorted(every, key=lambda e: (e.epoch, e.seed))]
        write(self.folder / "metrics.jsonl", "".join(f"{line}\n" for line in lines).encode())

    def _write_weights(self, state: State) -> None:
        with extra("train"):
            from safetensors.torch import save
        kinds: dict[Weights, dict[str, Tensor] | None] = {"raw": state.model, "ema": state.ema}
        for weights, tensors in kinds.items():
            if tensors is not None:
                about = _about(self.config, state, weights)
                whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
                write(weights_file(self.folder, state.seed, weights), save(whole, about))


def create(config: Config, runs: Path) -> Recorder:
    """A new folder under `runs`, named after the design and the time. Raises RunError where it cannot be made."""
    home = runs / _folder_name(config.design)
    stem = datetime.fromisoformat(config.created).astimezone().strftime("%Y-%m-%dT%H-%M-%S")
    names = (stem if again == 1 else f"{stem}-{again}" for again in range(1, 1_000))
    try:
        home.mkdir(parents=True, exist_ok=True)
        folder = next(home / name for name in names if _made(home / name))
    except OSError as error:
        raise _unwritten(home, error) from error
    _write_config(folder, config)
    return Recorder(Run(folder, config, dict.fromkeys(config.seeds, ())), {}, _locked(folder))


def _write_config(folder: Path, config: Config) -> None:
    values = {"schema": SCHEMA, **dataclasses.asdict(config)}
    write(folder / "config.json", (json.dumps(values, indent=1) + "\n").encode())


def resume(folder: Path) -> Recorder:
    """A run folder to go on in, as its states have it.

    Raises RunError: it is none, is damaged, is another version's, or another process trains in it.
    """
    require_folder(folder)
    lock = _locked(folder)
    try:
        recorder = _reopened(folder, lock)
    except BaseException:
        lock.release()
        raise
    return recorder


def _reopened(folder: Path, lock: FileLock) -> Recorder:
    run = read(folder)
    if run.config.version != VERSION:
        raise RunError(
            f"{folder}: written by rfcalc {run.config.version}, and this is {VERSION}: figures may differ; "
            "start a new run"
        )
    states = {seed: state for seed in run.epochs if (state := read_state(folder, seed)) is not None}
    through = {seed: states[seed].epoch if seed in states else 0 for seed in run.epochs}
    for seed, epochs in run.epochs.items():
        if through[seed] > len(epochs):
            raise RunError(
                f"{folder / 'metrics.jsonl'}: {len(epochs)} epochs of seed {seed}, whose state is of epoch "
                f"{through[seed]}; expected them all: the folder is damaged, start a new run"
            )
    for left in folder.glob(".*.part"):
        left.unlink()
    kept = {seed: epochs[: through[seed]] for seed, epochs in run.epochs.items()}
    recorder = Recorder(Run(folder, run.config, kept), states, lock)
    if kept != run.epochs:
        recorder._write_metrics()
    for state in states.values():
        if state.epoch == run.config.recipe.epochs:
            recorder._write_weights(state)  # the writer may have been killed just before it did
    return recorder


def _locked(folder: Path) -> FileLock:
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(f"{folder}: another process is training in it; wait for it or stop it") from None
    except OSError as error:
        raise _unwritten(folder, error) from error
    return lock


def write(path: Path, content: bytes) -> None:
    """All of it, on the disk, or the file stays as it was. Raises RunError."""
    try:
        write_whole(path, content)
    except OSError as error:
        raise _unwritten(path, error) from error


def _made(folder: Path) -> bool:
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def _folder_name(design: str) -> str:
    """`models-step8-Net` of `models/step8.py:Net`: the last folder, the file and the name."""
    place, _, name = design.rpartition(":")
    parts = [*Path(place.removesuffix(".py")).parts[-2:], name]
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "-", part).strip("-.") for part in parts).strip("-") or "design"


def _unwritten(path: Path, error: OSError) -> RunError:
    return RunError(f"{path}: cannot be written: {error.strerror or error}; what was there before is kept")


def _about(config: Config, state: State, weights: Weights) -> dict[str, str]:
    """What one needs to know of weights to use them; safetensors keeps text only."""
    return {
        "schema": SCHEMA,
        "design": config.design,
        "source": config.source,
        "weights": weights,
        "seed": str(state.seed),
        "epoch": str(state.epoch),
        "data": config.data,
        "input_shape": json.dumps(config.input_shape),
        "mean": json.dumps(config.mean),
        "std": json.dumps(config.std),
        "classes": json.dumps(config.classes),
    }
