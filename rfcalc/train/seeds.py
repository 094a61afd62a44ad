"""Several seeds of one design side by side, each in a process of its own.

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
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from rfcalc.designs.design import Design, load_design
from rfcalc.designs.shapes import InputShape
from rfcalc.errors import RfcalcError
from rfcalc.train.data import DataSet, Split
from rfcalc.train.loop import Epoch, Progress, State, train
from rfcalc.train.recipe import Recipe

THREADS = 1
"""Of a seed on a CPU; part of what makes its numbers. Threads that share a core with anything else wait for each other:
2 on 2 busy cores were 30 times slower than 1."""

_GPU_MEMORY = 2**30
"""Bytes a seed is taken to need on a GPU: half of it is torch's own. Of a large network train fewer seeds at once."""


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
    threads: int = THREADS,
    on_batch: Callable[[Progress], None] | None = None,
) -> Iterator[tuple[int, Epoch, State]]:
    """Train every seed; what each epoch gave comes as it is done, epochs of different seeds in any order.

    Args:
        states: where seeds go on that have been trained before; a seed that is through gives nothing.
        workers: processes at once, by default one per core, and on a CUDA device no more than its free memory lets.
            Where one is enough, and on other devices, seeds are trained in this process one after the other.
        threads: of a seed on a CPU.
        on_batch: is told of every seed how far its epoch is. Called in this process.

    Raises:
        RfcalcError: as `train`, or a seed's process has died. The other seeds are stopped.
    """
    states = states or {}
    workers = min(workers or _side_by_side(device), len(seeds))
    if workers < 2:
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
            device,
            amp,
            _packed(states[seed]) if seed in states else None,
            threads,
        )
        for seed in seeds
    ]
    running: dict[Connection, tuple[int, BaseProcess]] = {}
    try:
        while waiting or running:
            begun = [(_start(job.seed, running), job) for job in waiting[: workers - len(running)]]
            del waiting[: len(begun)]
            for new, job in begun:
                with _told_if_dead(*running[new]):
                    new.send(job)
            for line in wait(list(running)):
                assert isinstance(line, Connection)
                seed, process = running[line]
                with _told_if_dead(seed, process):
                    news = line.recv()
                if news is None:
                    process.join()
                    line.close()
                    del running[line]
                elif isinstance(news, Progress):
                    if on_batch:
                        on_batch(news)
                elif isinstance(news, BaseException):
                    raise news
                else:
                    epoch, packed = news
                    yield seed, epoch, _unpacked(packed)
    finally:
        for line, (_, process) in running.items():
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
    device: str
    amp: bool
    state: bytes | None
    threads: int


def _start(seed: int, running: dict[Connection, tuple[int, BaseProcess]]) -> Connection:
    """Start a process. Its job comes over the line: started with it, the process would have to be waited for, and
    could not be ended meanwhile."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), daemon=True)
    with _without_interrupts():
        process.start()
        running[ours] = (seed, process)
    theirs.close()  # else the line would never end
    return ours


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ctrl-C waits, and for ever in a process that is started within: it is this one's to answer."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # started by the first process otherwise, and lets interrupts through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _told_if_dead(seed: int, process: BaseProcess) -> Iterator[None]:
    """Around what is said to a process and heard from it. Raises RfcalcError when it has died."""
    try:
        yield
    except (EOFError, OSError):
        process.join()
        raise RfcalcError(
            f"seed {seed}: its process ended with code {process.exitcode}; was it out of memory?"
        ) from None


def _work(line: Connection) -> None:
    """In the process of one seed: a job comes over the line, and goes everything there is to tell, None at last."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for Windows, where it could not be held back before
    sys.stdout = sys.stderr  # stdout carries the parent's answer, whatever a design prints
    try:
        job: _Job = line.recv()
    except (EOFError, OSError):
        return
    torch.set_num_threads(job.threads)
    try:
        design = load_design(job.target, job.input_shape)
        state = None if job.state is None else _unpacked(job.state)
        # Telling of every few batches also ends this process soon after a parent that was killed.
        epochs = train(
            design.build_real, _data_set(job.data), job.recipe, seed=job.seed, device=job.device, amp=job.amp,
            state=state, on_batch=line.send,
        )  # fmt: skip
        for epoch, state in epochs:
            line.send((epoch, _packed(state)))
        line.send(None)
    except (BrokenPipeError, ConnectionResetError):
        return
    except RfcalcError as error:
        error.add_note(traceback.format_exc())  # what --debug shows; a cause does not come through
        line.send(error)
    except Exception:
        line.send(RuntimeError(f"seed {job.seed}:\n{traceback.format_exc()}"))


def _side_by_side(device: str) -> int:
    """How many processes a device is taken to carry at once."""
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return max(1, min(_cores(), free // _GPU_MEMORY))
    return _cores() if device == "cpu" else 1


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
