"""The run folder: what was trained and how, the figures of every epoch, the weights, and a state to go on from.

    runs/models-step8-Net/2026-11-21T07-05-14/
        config.json                    design, data, recipe, seeds, claim, environment: all that the figures depend on
        metrics.jsonl                  a line per epoch and seed
        state-1.pt                     seed 1 after its last epoch
        weights-1-raw.safetensors      seed 1's weights, once it is through or was stopped
        weights-1-ema.safetensors      and their average

Every file is written beside its place, brought to the disk and then renamed: whoever reads, and whenever a writer is
killed, sees the file as it was before or as it is after. An epoch counts once its state is there; a line of
metrics.jsonl that is ahead of it is dropped by `resume`. Nothing pickled is loaded: states are read with
weights_only=True.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import io
import json
import os
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rfcalc.design import Design, one_line, split_target
from rfcalc.errors import RfcalcError, RunError, extra
from rfcalc.files import write_whole
from rfcalc.train.data import DataSet
from rfcalc.train.loop import Epoch, State
from rfcalc.train.recipe import Recipe, from_dict
from rfcalc.train.verdict import Claim, Verdict, Weights, judge

if TYPE_CHECKING:
    from filelock import FileLock

SCHEMA = "rfcalc.run/1"
_MADE_WITH = {"python", "torch", "platform", "processor", "cores", "threads"}


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
        version=version("rfcalc"),
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


# --- writing -------------------------------------------------------------------------------------------------


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
        write(_state_file(self.folder, epoch.seed), buffer.getvalue())
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
    _require_folder(folder)
    lock = _locked(folder)
    try:
        recorder = _reopened(folder, lock)
    except BaseException:
        lock.release()
        raise
    return recorder


def _reopened(folder: Path, lock: FileLock) -> Recorder:
    run = read(folder)
    if run.config.version != version("rfcalc"):
        raise RunError(
            f"{folder}: written by rfcalc {run.config.version}, and this is {version('rfcalc')}: figures may differ; "
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


# --- reading -------------------------------------------------------------------------------------------------


def read(folder: Path) -> Run:
    """A run folder, finished or not. Raises RunError when it is none or a file of it is damaged."""
    _require_folder(folder)
    config = _config(folder / "config.json")
    return Run(folder, config, _metrics(folder / "metrics.jsonl", config))


def _require_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        found = "no config.json in it" if folder.exists() else "no such folder"
        raise RunError(f"{folder}: {found}; expected a run's folder, as in runs/models-step8-Net/2026-11-21T07-05-14")


def read_state(folder: Path, seed: int) -> State | None:
    """The state of a seed; None when it has not finished an epoch. Raises RunError when the file is damaged."""
    file = _state_file(folder, seed)
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


def _state_file(folder: Path, seed: int) -> Path:
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
    if not isinstance(values["environment"], dict) or _MADE_WITH - set(values["environment"]):
        raise RunError(f"{file}: environment lacks one of {', '.join(sorted(_MADE_WITH))}; it is damaged")
    if not isinstance(later := values["environment"].get("later_torch", []), list):
        raise RunError(f"{file}: later_torch is {later!r}; it is damaged")
    # Lists of JSON were tuples.
    given: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in values.items()}
    return Config(**given)


def _metrics(file: Path, config: Config) -> dict[int, tuple[Epoch, ...]]:
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
