"""Several seeds of one design: on a CPU each in a process of its own, on a GPU one after the other in this one.

>>> for seed, epoch, state in train_seeds(design, data, recipe, seeds=range(1, 4)):        # doctest: +SKIP
...     print(seed, epoch.epoch, epoch.ema_correct)
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from rfcalc.design import Design, InputShape, load_design
from rfcalc.errors import RfcalcError
from rfcalc.train.data import DataSet, Split
from rfcalc.train.loop import Epoch, Progress, State, train
from rfcalc.train.recipe import Recipe


def train_seeds(
    design: Design,
    data: DataSet,
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    device: str = "cpu",
    amp: bool = False,
    states: Mapping[int, State] | None = None,
    workers: int | None = None,
    threads: int = 1,
    on_batch: Callable[[Progress], None] | None = None,
) -> Iterator[tuple[int, Epoch, State]]:
    """Train every seed; what each epoch gave comes as it is done, epochs of different seeds in any order.

    Args:
        states: where seeds go on that have been trained before; a seed that is through gives nothing.
        workers: processes at once on a CPU, by default one per core. Where one is enough, seeds are trained in this
            process one after the other.
        threads: of a seed on a CPU; part of what makes its numbers. Threads that share a core with anything else
            wait for each other: 2 on 2 busy cores were 30 times slower than 1.
        on_batch: is told of every seed how far its epoch is. Called in this process.

    Raises:
        RfcalcError: as `train`, or a seed's process has died. The other seeds are stopped.
    """
    states = states or {}
    workers = min(workers or _cores(), len(seeds))
    if device != "cpu" or workers < 2:
        for seed in seeds:
            torch.set_num_threads(threads)
            epochs = train(
                design.build_real, data, recipe, seed=seed, device=device, amp=amp, state=states.get(seed),
                on_batch=on_batch,
            )  # fmt: skip
            for epoch, state in epochs:
                yield seed, epoch, state
        return
    waiting = [
        _Job(
            design.target,
            design.input_shape,
            _plain(data),
            recipe,
            seed,
            amp,
            _packed(states[seed]) if seed in states else None,
            threads,
        )
        for seed in seeds
    ]
    crew: dict[Connection, tuple[int, BaseProcess]] = {}
    try:
        while waiting or crew:
            while waiting and len(crew) < workers:
                _hire(waiting.pop(0), crew)
            for line in wait(list(crew)):
                assert isinstance(line, Connection)
                seed, process = crew[line]
                try:
                    news = line.recv()
                except EOFError:
                    process.join()
                    raise RfcalcError(
                        f"seed {seed}: its process ended with code {process.exitcode}; was it out of memory?"
                    ) from None
                if news is None:
                    process.join()
                    line.close()
                    del crew[line]
                elif isinstance(news, Progress):
                    if on_batch:
                        on_batch(news)
                elif isinstance(news, BaseException):
                    raise news
                else:
                    epoch, packed = news
                    yield seed, epoch, _unpacked(packed)
    finally:
        for line, (_, process) in crew.items():
            process.kill()
            process.join()
            line.close()


@dataclass(frozen=True)
class _Job:
    """What a process needs to know; all of it can be pickled and none of it shares memory."""

    target: str
    input_shape: InputShape | None
    data: dict[str, Any]
    recipe: Recipe
    seed: int
    amp: bool
    state: bytes | None
    threads: int


def _hire(job: _Job, crew: dict[Connection, tuple[int, BaseProcess]]) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(job, theirs), daemon=True)
    process.start()
    theirs.close()  # else the line would never end
    crew[ours] = (job.seed, process)


def _work(job: _Job, line: Connection) -> None:
    """In the process of one seed: everything it has to tell goes over the line, None at last."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    sys.stdout = sys.stderr  # stdout carries the parent's answer, whatever a design prints
    torch.set_num_threads(job.threads)
    try:
        design = load_design(job.target, job.input_shape)
        state = None if job.state is None else _unpacked(job.state)
        # Telling of every few batches also ends this process soon after a parent that was killed.
        epochs = train(
            design.build_real, _data_set(job.data), job.recipe, seed=job.seed, amp=job.amp, state=state,
            on_batch=line.send,
        )  # fmt: skip
        for epoch, state in epochs:
            line.send((epoch, _packed(state)))
        line.send(None)
    except BrokenPipeError:
        return
    except RfcalcError as error:
        line.send(error)
    except Exception:
        line.send(RuntimeError(f"seed {job.seed}:\n{traceback.format_exc()}"))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _packed(state: State) -> bytes:
    buffer = io.BytesIO()
    torch.save(state.to_dict(), buffer)
    return buffer.getvalue()


def _unpacked(packed: bytes) -> State:
    return State.from_dict(torch.load(io.BytesIO(packed), weights_only=True))


def _plain(data: DataSet) -> dict[str, Any]:
    """With arrays: tensors would go through shared memory, of which a container has little."""
    parts = {name: (split.images.numpy(), split.labels.numpy()) for name, split in _splits(data)}
    return {"name": data.name, "classes": data.classes, "mean": data.mean, "std": data.std, **parts}


def _splits(data: DataSet) -> list[tuple[str, Split]]:
    return [("train", data.train), ("test", data.test)]


def _data_set(plain: dict[str, Any]) -> DataSet:
    parts = {name: Split(*map(torch.from_numpy, plain[name])) for name in ("train", "test")}
    return DataSet(**{**plain, **parts})
