"""Many designs, judged in worker processes: one that hangs or dies is reported, and the others are judged all the same.

>>> judge_all([Task("models/step8.py"), Task("models/step7.py")], workers=2, timeout=60)      # doctest: +SKIP

`call_all` does the same for any function that runs designs.

A worker takes one design after another. It is killed when a design takes too long, replaced when it was killed or
has died, and ends with its parent. Where the system forks safely it starts with torch already imported: in 15 ms
instead of two seconds.
"""

from __future__ import annotations

import contextlib
import gc
import math
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Generic, TypeVar

from rfcalc.designs.imports import relocated
from rfcalc.errors import RfcalcError
from rfcalc.gate.settings import Settings
from rfcalc.gate.verdict import Verdict, judge, unjudged
from rfcalc.text import one_line

# macOS can fork, but its system libraries do not survive it.
START = "fork" if "fork" in multiprocessing.get_all_start_methods() and sys.platform != "darwin" else "spawn"
_HEAD = 8  # bytes that tell how many follow
_HINT = "look for an endless loop in the file, its constructor or forward, or allow more: --timeout"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Job(Generic[T]):
    """A function to call in a worker, and the target that it runs. Function and answer travel by pickle."""

    target: str
    function: Callable[[], T]


@dataclass(frozen=True, slots=True)
class Task:
    """One design to judge: the arguments of `judge`; and when it lies in a copy of a repository, both their roots."""

    target: str
    settings: Settings = field(default_factory=Settings)
    remarks: bool = True
    copied: tuple[Path, Path] | None = None


def judge_all(
    tasks: Sequence[Task],
    *,
    workers: int = 1,
    timeout: float = 60.0,
    debug: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[Verdict | None]:
    """The verdict of every task, in their order; None for a file that defines no design.

    The other arguments are those of `call_all`. Raises RfcalcError as it does.
    """
    calls = [Job(task.target, partial(_judged, task, debug)) for task in tasks]
    answers = call_all(calls, workers=workers, timeout=timeout, debug=debug, progress=progress)
    return [
        unjudged(task.target, task.settings, str(answer)) if isinstance(answer, RfcalcError) else answer
        for task, answer in zip(tasks, answers, strict=True)
    ]


def _judged(task: Task, debug: bool) -> Verdict | None:
    with relocated(*task.copied) if task.copied else contextlib.nullcontext():
        return judge(task.target, task.settings, remarks=task.remarks, debug=debug)


def call_all(
    calls: Sequence[Job[T]],
    *,
    workers: int = 1,
    timeout: float = 60.0,
    debug: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[T | RfcalcError]:
    """What every call returns, in their order; or the RfcalcError that it raised, or that tells how it came to an end.

    Args:
        workers: how many processes work.
        timeout: seconds that one call may take.
        debug: print the traceback of what a call raises.
        progress: is told the number of calls done, whenever that may have changed.

    Raises:
        RfcalcError: a worker process cannot be started.
    """
    answers: dict[int, T | RfcalcError] = {}
    waiting = deque(range(len(calls)))
    running: list[_Worker] = []
    if START == "fork" and calls:
        _prepare()
    try:
        while len(answers) < len(calls):
            while len(running) < min(workers, len(calls) - len(answers)):
                running.append(_Worker(timeout, debug))
                running[-1].start()
            for worker in running:
                if waiting and worker.ready and worker.at is None:
                    at = waiting.popleft()
                    worker.give(at, calls[at])
            for worker in _heard_from(running):
                number = worker.at
                if worker.hears():
                    if number is not None:
                        answers[number] = worker.answer
                elif worker.lost:
                    running.remove(worker)
                    overdue, how = worker.overdue, worker.end()
                    if not worker.ready:
                        raise RfcalcError(f"a worker could not start: {how}")
                    if number is not None and worker.done and not overdue:
                        waiting.appendleft(number)  # it may have died of an earlier design: try in a fresh one
                    elif number is not None:
                        answers[number] = _unanswered(calls[number], how)
            if progress is not None:
                progress(len(answers))
    finally:
        for worker in running:
            worker.kill()
    return [answers[number] for number in range(len(calls))]


def _unanswered(call: Job[Any], how: str) -> RfcalcError:
    """What stands for the answer of a call that came to none of its own."""
    return RfcalcError(f"{call.target}: {how}")


# --- the parent's side ---------------------------------------------------------------------------------------


class _Worker:
    """One process, the number of the call it is at, and until when.

    It answers with a length and so many bytes. The parent takes what has arrived and never waits for the rest: a
    design that finds the socket and writes to it is late or not understood, and that is all.
    """

    def __init__(self, timeout: float, debug: bool) -> None:
        context: Any = multiprocessing.get_context(START)  # the contexts' common base knows no Process
        self.channel, self._theirs = socket.socketpair()
        self.channel.setblocking(False)
        self.process = context.Process(target=_work, args=(self._theirs, debug), name="rfcalc worker")
        self.timeout = timeout
        self.at: int | None = None
        self.deadline = math.inf
        self.ready = False
        self.done = 0
        self.answer: Any = None
        self._arrived = b""
        self._closed = False

    def start(self) -> None:
        self.process.start()
        self._theirs.close()

    def give(self, number: int, call: Job[Any]) -> None:
        self.at, self.deadline = number, time.monotonic() + self.timeout
        with contextlib.suppress(OSError):  # it has died since: that will be noticed
            self.channel.sendall(pickle.dumps(call))

    def hears(self) -> bool:
        """Whether the process has said that it is ready, or an answer."""
        try:
            while piece := self.channel.recv(1 << 16):
                self._arrived += piece
            self._closed = True
        except BlockingIOError:
            pass
        except OSError:
            self._closed = True
        size = int.from_bytes(self._arrived[:_HEAD])
        if len(self._arrived) < _HEAD + size or not size:
            return False
        try:
            self.answer = pickle.loads(self._arrived[_HEAD : _HEAD + size])
        except Exception:  # not ours
            self._closed = True
            return False
        self._arrived = self._arrived[_HEAD + size :]
        self.done += self.at is not None
        self.ready, self.at, self.deadline = True, None, math.inf
        return True

    @property
    def overdue(self) -> bool:
        return time.monotonic() >= self.deadline

    @property
    def lost(self) -> bool:
        return self.overdue or self._closed or bool(wait([self.process.sentinel], 0))

    def end(self) -> str:
        """Kill a process that is lost, and tell what became of it."""
        if self.overdue:
            self.kill()
            return f"no verdict after {self.timeout:g} s; {_HINT}"
        patience = time.monotonic() + 1  # its channel may have closed a moment before it ends
        while self.process.exitcode is None and time.monotonic() < patience:
            time.sleep(0.01)
        code = self.process.exitcode
        self.kill()
        if code is None:
            return "something in it writes to or closes every file; expected a design that leaves rfcalc's alone"
        if code >= 0:
            return f"its process ended with exit code {code} before the verdict; expected a design that does not exit"
        name = next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
        return f"its process was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")

    def kill(self) -> None:
        """End the process, and all that its designs have started."""
        if self.process.pid is not None:
            if hasattr(os, "killpg"):
                with contextlib.suppress(OSError):
                    os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()
            self.process.join()
        self.channel.close()


def _heard_from(running: Sequence[_Worker]) -> list[_Worker]:
    """Those that say something, have died or are overdue; waits until one does."""
    deadline = min(worker.deadline for worker in running)
    limit = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
    ready = set(wait([end for worker in running for end in (worker.channel, worker.process.sentinel)], limit))
    return [w for w in running if w.channel in ready or w.process.sentinel in ready or w.overdue]


# --- the worker's side ---------------------------------------------------------------------------------------


def _work(channel: socket.socket, debug: bool) -> None:
    """Call what comes over the channel, until it closes or someone kills this process."""
    _settle()
    pid = os.getpid()
    calls = channel.makefile("rb")
    with contextlib.suppress(EOFError, OSError):
        _say(channel, None)
        while True:
            call: Job[Any] = pickle.load(calls)
            answer: Any
            try:
                answer = call.function()
            except BaseException as error:  # a design's KeyboardInterrupt, or an exception of its own kind
                if debug:
                    traceback.print_exception(error)
                answer = error if isinstance(error, RfcalcError) else _unanswered(call, f"raised {one_line(error)}")
            if os.getpid() != pid:  # a design has forked, and this is its child
                os._exit(0)
            _say(channel, answer)


def _say(channel: socket.socket, value: object) -> None:
    content = pickle.dumps(value)
    channel.sendall(len(content).to_bytes(_HEAD) + content)


def _settle() -> None:
    """Make this process one that runs other people's code: it cannot read the terminal or write to standard output,
    an interrupt is its parent's to handle, and it ends with its parent."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # a group of its own, to be killed with whatever a design starts
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    _prepare()
    gc.freeze()  # a million objects of torch, none of them garbage: a third of the time of judging ladders
    import torch

    # The analysis computes nothing to share out, and threads of a pool do not survive a fork.
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    if not hasattr(os, "killpg"):
        os._exit(1)
    while os.getppid() == parent.pid:  # it is still about to end, or a design has closed what we listen at
        time.sleep(0.1)
    os.killpg(0, signal.SIGKILL)


def _prepare() -> None:
    """Import what judging needs, with the collector off: it would walk a million new objects, none of them garbage."""
    gc.disable()
    from rfcalc.analysis import analyze  # noqa: F401
    from rfcalc.gate import advice, gridding  # noqa: F401
    from rfcalc.proof import oracle  # noqa: F401

    gc.enable()
