"""`rfcalc train`: train a design, keep what happened in a run folder, and judge what is claimed of it."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import sys
import traceback
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rfcalc.errors import InputError, NotFiniteError, RfcalcError, RunError, extra

from .report import parts_of, write_report
from .shared import Debug, Input, complain, emit, import_torch, load, own_stdout

if TYPE_CHECKING:
    from tqdm import tqdm

    from rfcalc.designs.design import Design
    from rfcalc.train.data import DataSet
    from rfcalc.train.loop import Epoch, Progress, State
    from rfcalc.train.recipe import Recipe
    from rfcalc.train.record import Recorder
    from rfcalc.train.verdict import Claim

_NEEDED = ("torchvision", "sklearn", "scipy", "tqdm", "matplotlib", "safetensors", "filelock", "platformdirs")

_SEEDS = 2**32


class _Recipe(StrEnum):
    OURS = "ours"
    FAST = "fast"
    REFERENCE = "reference"


class _Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"


class _Weights(StrEnum):
    EMA = "ema"
    RAW = "raw"


class _Require(StrEnum):
    HOLD = "hold"
    SEEDS = "seeds"
    POPULATION = "population"


def _option(name: str, text: str, **more: Any) -> Any:
    return typer.Option(name, show_default=False, help=text, **more)


# Options that are not given are None, so that a resumed run can tell them from those that contradict it.
def command(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="TARGET",
            show_default=False,
            help="file.py, file.py:Name or package.module:callable. Not needed with --resume.",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        _option(
            "--dataset",
            "mnist (default), fashion-mnist, kmnist, emnist, qmnist, cifar10, digits (no download) or folder:PATH.",
            metavar="NAME",
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, _option("--data-dir", "Folder of the data. Default: RFCALC_DATA, else a cache.", metavar="DIR")
    ] = None,
    recipe: Annotated[
        _Recipe | None, _option("--recipe", "ours (default), fast (8 epochs), or reference: the design's own RECIPE.")
    ] = None,
    fast: Annotated[bool, _option("--fast", "The same as --recipe fast.")] = False,
    epochs: Annotated[int | None, _option("--epochs", "In place of the recipe's.", min=1)] = None,
    batch_size: Annotated[int | None, _option("--batch-size", "In place of the recipe's.", min=1)] = None,
    seeds: Annotated[int | None, _option("--seeds", "How many seeds to train. Default 1.", min=1)] = None,
    seed: Annotated[
        int | None,
        _option("--seed", "The first seed. Default 1, or the one of the reference recipe.", min=0, max=_SEEDS - 1),
    ] = None,
    jobs: Annotated[
        int | None,
        _option("--jobs", "Seeds trained at once. Default: one per core, on a GPU as many as its memory lets.", min=1),
    ] = None,
    device: Annotated[_Device | None, _option("--device", "auto (default), cpu, cuda or mps.")] = None,
    amp: Annotated[bool, _option("--amp", "Train in bfloat16 where torch does; evaluation stays in float32.")] = False,
    target_percent: Annotated[
        float | None, _option("--target", "Accuracy that must be held. Default 99.4.", metavar="PERCENT")
    ] = None,
    last: Annotated[int | None, _option("--last", "In so many last epochs. Default 5.", min=1)] = None,
    max_params: Annotated[int | None, _option("--max-params", "With at most so many. Default 8000.", min=1)] = None,
    max_epochs: Annotated[int | None, _option("--max-epochs", "In at most so many. Default 15.", min=1)] = None,
    weights: Annotated[
        _Weights | None, _option("--weights", "Which decide. Default: ema, or raw where the recipe keeps no average.")
    ] = None,
    require: Annotated[
        _Require | None,
        _option(
            "--require",
            "What decides the exit code: hold (default, every seed), seeds (of all seeds more than half, at 95 % "
            "confidence) or population (of all such images, at 95 % confidence).",
        ),
    ] = None,
    resume: Annotated[
        Path | None, _option("--resume", "Go on with a run that was stopped or killed.", metavar="RUN")
    ] = None,
    out: Annotated[
        Path | None, _option("--out", "Where run folders are made, by design and time. Default: runs.", metavar="DIR")
    ] = None,
    quiet: Annotated[bool, _option("--quiet", "Only the verdict.")] = False,
    as_json: Annotated[bool, _option("--json", "A line of JSON per epoch, and one of the verdict.")] = False,
    input_shape: Input = None,
    debug: Debug = False,
) -> int:
    """Train a design and judge: does it hold the target in its last epochs, within epochs and parameters?

    Exit code 0: verified, 1: not (or the loss became infinite), 2: could not run, 130: stopped, to be resumed.

    \b
    Examples:
      rfcalc train models/step8.py --seeds 3
      rfcalc train models/step8.py --recipe reference
      rfcalc train --resume runs/models-step8-Net/2026-11-21T07-05-14
    """
    _require_libraries()
    given = _Given(
        dataset=dataset,
        recipe=_chosen_recipe(recipe, fast),
        epochs=epochs,
        batch_size=batch_size,
        seeds=seeds,
        seed=seed,
        device=device and device.value,
        amp=amp or None,
        target=target_percent,
        last=last,
        max_params=max_params,
        max_epochs=max_epochs,
        weights=weights and weights.value,
        require=require and require.value,
        input=input_shape,
        out=out,
    )
    if target is None and resume is None:
        raise InputError("no TARGET; expected a design to train, or --resume RUN")
    import_torch()
    if resume is None:
        assert target is not None
        recorder, design, data = _started(target, given, data_dir)
    else:
        recorder, design, data = _resumed(resume, target, given, data_dir)
    with recorder:
        show = _Show("json" if as_json else "quiet" if quiet else "text", recorder, len(data.train))
        return _trained(recorder, design, data, show, jobs, debug)


@dataclasses.dataclass(frozen=True)
class _Given:
    """What the command line says of a run; None: nothing."""

    dataset: str | None
    recipe: str | None
    epochs: int | None
    batch_size: int | None
    seeds: int | None
    seed: int | None
    device: str | None
    amp: bool | None
    target: float | None
    last: int | None
    max_params: int | None
    max_epochs: int | None
    weights: str | None
    require: str | None
    input: str | None
    out: Path | None


def _require_libraries() -> None:
    """Raises MissingError now, rather than when hours of training are to be judged or drawn."""
    with extra("train"):
        for name in _NEEDED:
            if importlib.util.find_spec(name) is None:
                raise ModuleNotFoundError(name=name)


def _chosen_recipe(recipe: _Recipe | None, fast: bool) -> str | None:
    if fast and recipe not in (None, _Recipe.FAST):
        raise InputError(f"--fast and --recipe {recipe} exclude each other; expected one of them")
    return "fast" if fast else recipe and recipe.value


# --- a new run -----------------------------------------------------------------------------------------------


def _started(target: str, given: _Given, data_dir: Path | None) -> tuple[Recorder, Design, DataSet]:
    import torch

    from rfcalc.train.data import load as load_data
    from rfcalc.train.description import describe
    from rfcalc.train.evaluation import require_trainable
    from rfcalc.train.inference import image_shape
    from rfcalc.train.loop import pick_device
    from rfcalc.train.record import create
    from rfcalc.train.seeds import THREADS

    device = pick_device(given.device or "auto")
    design = load(target, given.input)
    recipe = _recipe(design, given)
    claim = _claim(recipe, given)
    first = _first_seed(design, given)
    with own_stdout():
        data = load_data(
            "mnist" if given.dataset is None else given.dataset, data_dir=data_dir, input_shape=image_shape(design)
        )
        require_trainable(design.build_real(), recipe.fitted(data))
    torch.set_num_threads(THREADS)
    config = describe(
        design,
        data,
        recipe if given.recipe == "reference" else recipe.on(data),
        seeds=range(first, first + (given.seeds or 1)),
        device=device,
        amp=bool(given.amp),
        claim=claim,
        data_dir=data_dir,
    )
    return create(config, given.out or Path("runs")), design, data


def _first_seed(design: Design, given: _Given) -> int:
    """The one asked for, else the reference recipe's, else 1. Raises InputError for one that is no seed."""
    if given.seed is not None:
        return given.seed
    if given.recipe != "reference":
        return 1
    seed = (design.recipe or {}).get("seed", 1)
    if type(seed) is not int or not 0 <= seed < _SEEDS:
        raise InputError(f"{design.name}: RECIPE: seed is {seed!r}; expected a whole number from 0 to {_SEEDS - 1}")
    return seed


def _recipe(design: Design, given: _Given) -> Recipe:
    from rfcalc.train.recipe import FAST, OURS, from_reference

    if given.recipe == "reference":
        if design.recipe is None:
            raise InputError(f"{design.name}: has no RECIPE; expected one, or another --recipe")
        recipe = from_reference(design.recipe, design.name)
    else:
        recipe = FAST if given.recipe == "fast" else OURS
    changes: dict[str, Any] = {"epochs": given.epochs, "batch_size": given.batch_size}
    return dataclasses.replace(recipe, **{name: value for name, value in changes.items() if value is not None})


def _claim(recipe: Recipe, given: _Given) -> Claim:
    from rfcalc.train.verdict import Claim

    asked: dict[str, Any] = {
        "target": given.target,
        "last": given.last,
        "max_params": given.max_params,
        "max_epochs": given.max_epochs,
        "weights": given.weights or ("ema" if recipe.ema else "raw"),
        "require": given.require,
    }
    claim = Claim(**{name: value for name, value in asked.items() if value is not None})
    if claim.last > recipe.epochs:
        raise InputError(f"--last {claim.last}: the recipe has {recipe.epochs} epochs; expected no more than these")
    if claim.weights == "ema" and not recipe.ema:
        raise InputError(f"--weights ema: the recipe {recipe.name!r} keeps no averaged weights; expected --weights raw")
    return claim


# --- a run to go on with -------------------------------------------------------------------------------------


def _resumed(
    folder: Path, target: str | None, given: _Given, data_dir: Path | None
) -> tuple[Recorder, Design, DataSet]:
    import torch

    from rfcalc.train.loop import pick_device
    from rfcalc.train.record import resume
    from rfcalc.train.seeds import THREADS

    recorder = resume(folder)
    try:
        _require_same(recorder, given)
        pick_device(recorder.config.device)
        design, data = parts_of(recorder.run, target, data_dir)
    except BaseException:
        recorder.__exit__(None, None, None)
        raise
    if (before := recorder.config.torches[-1]) != str(torch.__version__) and not recorder.run.finished:
        complain(f"trained with torch {before}, this is {torch.__version__}: figures may differ from here on")
    torch.set_num_threads(THREADS)
    return recorder, design, data


def _require_same(recorder: Recorder, given: _Given) -> None:
    """Raises RunError for an option that contradicts the run: it goes on as it began."""
    from rfcalc.train.data import full_name

    config = recorder.config
    begun: Mapping[str, Any] = {
        **dataclasses.asdict(config.claim),
        "dataset": config.data,
        "recipe": config.recipe.name,
        "epochs": config.recipe.epochs,
        "batch_size": config.recipe.batch_size,
        "seeds": len(config.seeds),
        "seed": config.seeds[0],
        "device": config.device,
        "amp": config.amp,
        "input": "x".join(map(str, config.input_shape)),
        "out": recorder.folder.parent.parent,
    }
    named = dataclasses.replace(given, dataset=given.dataset and full_name(given.dataset))
    for name, value in dataclasses.asdict(named).items():
        if value not in (None, begun[name]) and (name, value) != ("device", "auto"):
            raise RunError(
                f"{recorder.folder}: begun with {name.replace('_', '-')} {begun[name]}; leave out "
                f"--{name.replace('_', '-')} {value}, or start a new run"
            )


# --- training ------------------------------------------------------------------------------------------------


def _trained(recorder: Recorder, design: Design, data: DataSet, show: _Show, jobs: int | None, debug: bool) -> int:
    """Train what is left, judge, report. Returns the exit code."""
    go_on = f"rfcalc train --resume {recorder.folder}"
    try:
        show.begin()
        if not recorder.run.finished:
            for epoch, state in _epochs(recorder, design, data, show, jobs):
                recorder.add(epoch, state)
                show.epoch(epoch)
    except KeyboardInterrupt:
        show.end()
        recorder.keep_weights()
        show.stopped("interrupted")
        complain(f"stopped; go on with: {go_on}")
        return 130
    except NotFiniteError as error:
        show.end()
        recorder.keep_weights()
        if debug:
            traceback.print_exc()
        show.stopped(str(error))
        kept = "the state before that epoch" if recorder.states else "no state: there was no epoch before"
        complain(f"{error}; {recorder.folder} keeps {kept}")
        return 1
    except RfcalcError as error:
        show.end()
        raise RunError(f"{error}; go on with: {go_on}") from error
    show.end()
    verdict = recorder.run.verdict()
    show.verdict(verdict)
    show.reported(write_report(recorder.run, design, data))
    return 0 if verdict.verified else 1


def _epochs(
    recorder: Recorder, design: Design, data: DataSet, show: _Show, jobs: int | None
) -> Iterator[tuple[Epoch, State]]:
    """Every epoch that is still to come; what the design prints meanwhile goes to stderr."""
    from rfcalc.train.seeds import train_seeds

    config = recorder.config
    training = train_seeds(
        design,
        data,
        config.recipe,
        seeds=config.seeds,
        device=config.device,
        amp=config.amp,
        states=recorder.states,
        workers=jobs,
        on_batch=show.progress,
    )
    with contextlib.closing(training):  # type: ignore[type-var]
        while True:
            with own_stdout():
                found = next(training, None)
            if found is None:
                return
            _, epoch, state = found
            yield epoch, state


# --- what is shown -------------------------------------------------------------------------------------------


class _Show:
    """Bars on stderr where it is a terminal; epochs and verdict on stdout, as text or lines of JSON."""

    def __init__(self, mode: str, recorder: Recorder, images: int) -> None:
        self.mode, self.recorder, self.images = mode, recorder, images
        self.bars: dict[int, tqdm[None]] = {}
        self.drawn = mode == "text" and sys.stderr.isatty()

    def begin(self) -> None:
        """Where the run is kept, and how far it is."""
        run = self.recorder.run
        done = sum(map(len, run.epochs.values()))
        if self.mode == "json":
            emit(json.dumps({"event": "begin", "run": str(run.folder), "epochs_done": done}))
        elif self.mode == "text":
            config = run.config
            emit(
                f"{config.design}: {config.params:,} parameters, {config.data}, recipe {config.recipe.name}, "
                f"{config.recipe.epochs} epochs of batch {config.recipe.batch_size}, seeds "
                f"{', '.join(map(str, config.seeds))}, {config.device}\n{run.folder}"
                + (f", going on after {done} epochs" if done else "")
            )

    def progress(self, now: Progress) -> None:
        """Move a seed's bar."""
        if not self.drawn:
            return
        title = f"seed {now.seed} epoch {now.epoch}/{self.recorder.config.recipe.epochs}: "
        if now.seed not in self.bars:
            self.bars[now.seed] = self._bar(title)
        bar = self.bars[now.seed]
        if bar.desc != title:
            # Before the reset, which draws: an epoch that begins has no loss yet.
            bar.set_description_str(title, refresh=False)
            bar.set_postfix_str("", refresh=False)
            bar.reset(self.images)
        bar.set_postfix_str(f"loss={now.loss:.4f}, acc={100 * now.correct / now.images:.2f}%", refresh=False)
        bar.update(now.images - bar.n)

    def _bar(self, title: str) -> tqdm[None]:
        from tqdm import tqdm

        return tqdm(desc=title, total=self.images, unit=" images", leave=False, dynamic_ncols=True, file=sys.stderr)

    def epoch(self, epoch: Epoch) -> None:
        """An epoch's lines; the seed's bar ends with its last epoch."""
        from rfcalc.render.training import epoch_json, epoch_text

        epochs = self.recorder.config.recipe.epochs
        if epoch.epoch == epochs and (bar := self.bars.pop(epoch.seed, None)):
            bar.close()
        if self.mode == "json":
            emit(epoch_json(epoch))
        elif self.mode == "text":
            from tqdm import tqdm

            with tqdm.external_write_mode(sys.stdout):
                emit(epoch_text(epoch, epochs))

    def end(self) -> None:
        """No more bars."""
        for bar in self.bars.values():
            bar.close()
        self.bars.clear()

    def stopped(self, reason: str) -> None:
        """There will be no verdict."""
        if self.mode == "json":
            emit(json.dumps({"event": "stopped", "run": str(self.recorder.folder), "reason": reason}))

    def verdict(self, verdict: Any) -> None:
        """The verdict."""
        from rfcalc.render.training import verdict_json, verdict_text

        if self.mode == "json":
            emit(verdict_json(verdict, str(self.recorder.folder)))
        else:
            emit(("" if self.mode == "quiet" else "\n") + verdict_text(verdict))

    def reported(self, file: Path) -> None:
        """Where report.md is."""
        if self.mode != "json":
            emit(str(file))
