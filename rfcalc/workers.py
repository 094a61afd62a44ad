"""Many designs, judged in worker processes: one that hangs or dies is reported, and the others are judged all the same.

>>> judge_all([Task("models/step8.py"), Task("models/step7.py")], workers=2, timeout=60)      # doctest: +SKIP

A worker judges one design after another. It is killed when a design takes too long, replaced when it was killed or
has died, and ends with its parent. Where the system forks safely it starts with torch already imported: in 15 ms
instead of two seconds.
"""

from __future__ import annotations

import contextlib
import gc
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from .config import Settings
from .design import one_line
from .errors import RfcalcError
from .judge import Verdict, judge, unjudged

# macOS can fork, but its system libraries do not survive it.
START = "fork" if "fork" in multiprocessing.get_all_start_methods() and sys.platform != "darwin" else "spawn"

_HINT = "look for an endless loop in the file, its constructor or forward, or allow more: --timeout"


@dataclass(frozen=True, slots=True)
class Task:
    """One design to judge: the arguments of `judge`."""

    target: str
    settings: Settings = field(default_factory=Settings)
    remarks: bool = True


def judge_all(
    tasks: Sequence[Task],
    *,
    workers: int = 1,
    timeout: float = 60.0,
    debug: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[Verdict | None]:
    """The verdict of every task, in their order; None for a file that defines no design.

    Args:
        workers: how many processes judge.
        timeout: seconds that one design may take.
        debug: print the traceback of what kept a design from being judged.
        progress: is told the number of tasks done, whenever that may have changed.

    Raises:
        RfcalcError: a worker process cannot be started.
    """
    answers: dict[int, Verdict | None] = {}
    waiting = deque(range(len(tasks)))
    crew: list[_Worker] = []
    if START == "fork" and tasks:
        _prepare()
    try:
        while len(answers) < len(tasks):
            while len(crew) < min(workers, len(tasks) - len(answers)):
                crew.append(_Worker(debug))
                crew[-1].start()
            for worker in crew:
                if waiting and worker.free:
                    number = waiting.popleft()
                    worker.give(number, tasks[number], timeout)
            for worker in _stirring(crew):
                at = worker.number
                if worker.hears():
                    if at is not None:
                        answers[at] = worker.verdict
                    continue
                crew.remove(worker)
                if worker.overdue:
                    worker.kill()
                    how = f"no verdict after {timeout:g} s; {_HINT}"
                else:
                    how = worker.ending()
                    if not worker.greeted:
                        raise RfcalcError(f"a worker could not start: {how}")
                    if at is not None and worker.judged:
                        waiting.appendleft(at)  # it may have died of an earlier design: try in a fresh one
                        continue
                if at is not None:
                    answers[at] = _lost(tasks[at], how)
            if progress is not None:
                progress(len(answers))
    finally:
        for worker in crew:
            worker.kill()
    return [answers[number] for number in range(len(tasks))]


def _lost(task: Task, reason: str) -> Verdict:
    """The verdict on a design whose worker gave none."""
    return unjudged(task.target, task.settings, f"{task.target}: {reason}")


# --- the parent's side ---------------------------------------------------------------------------------------


class _Worker:
    """One process, which task it is at and until when."""

    def __init__(self, debug: bool) -> None:
        context: Any = multiprocessing.get_context(START)  # the contexts' common base knows no Process
        self.channel, self._theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(self._theirs, debug), name="rfcalc worker")
        self.greeted = False
        self.judged = 0
        self.number: int | None = None
        self.deadline = math.inf
        self.verdict: Verdict | None = None

    def start(self) -> None:
        self.process.start()
        self._theirs.close()

    @property
    def free(self) -> bool:
        return self.greeted and self.number is None

    @property
    def overdue(self) -> bool:
        return time.monotonic() >= self.deadline

    def give(self, number: int, task: Task, timeout: float) -> None:
        self.number, self.deadline = number, time.monotonic() + timeout
        with contextlib.suppress(OSError):  # it has died since: that will be heard
            self.channel.send(task)

    def hears(self) -> bool:
        """Take in what the process said: that it is ready, or a verdict. False when it said nothing."""
        try:
            if not self.channel.poll():
                return False
            self.verdict = self.channel.recv()
        except Exception:  # the end of the channel, or bytes of a design that wrote to it
            return False
        self.judged += self.number is not None
        self.greeted, self.number, self.deadline = True, None, math.inf
        return True

    def ending(self) -> str:
        """How the process ended by itself, which may be a moment after its channel closed."""
        patience = time.monotonic() + 1
        while self.process.exitcode is None and time.monotonic() < patience:
            time.sleep(0.01)
        code = self.process.exitcode
        self.kill()
        if code is None:
            return "its process closed the channel to rfcalc"
        if code >= 0:
            return f"its process ended with exit code {code} before the verdict; expected a design that does not exit"
        with contextlib.suppress(ValueError):
            code = signal.Signals(-code).name
        return f"its process was killed by {code}" + (" (out of memory?)" if code == "SIGKILL" else "")

    def kill(self) -> None:
        """End the process, and all that its designs have started."""
        if self.process.pid is None:
            return
        if hasattr(os, "killpg"):
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.channel.close()


def _stirring(crew: Sequence[_Worker]) -> list[_Worker]:
    """Those that say something, have died or are overdue; waits until one does."""
    deadline = min(worker.deadline for worker in crew)
    limit = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
    ready = set(wait([end for worker in crew for end in (worker.channel, worker.process.sentinel)], limit))
    return [w for w in crew if w.channel in ready or w.process.sentinel in ready or w.overdue]


# --- the worker's side ---------------------------------------------------------------------------------------


def _work(channel: Connection, debug: bool) -> None:
    """Judge what comes over the channel until it closes or someone kills this process."""
    _settle()
    pid = os.getpid()
    channel.send(None)
    with contextlib.suppress(EOFError, OSError):
        while True:
            task: Task = channel.recv()
            try:
                verdict = judge(task.target, task.settings, remarks=task.remarks, debug=debug)
            except BaseException as error:  # a design's KeyboardInterrupt, or an exception kind of its own
                verdict = _lost(task, f"raised {one_line(error)}")
            if os.getpid() != pid:  # a design has forked, and this is its child
                os._exit(0)
            channel.send(verdict)


def _settle() -> None:
    """Make this process one that runs other people's code: it cannot read the terminal or write to standard output,
    an interrupt is its parent's to handle, and it ends with its parent."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # a group of its own, to be killed with whatever a design starts
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    _prepare()
    import torch

    # The analysis computes nothing to share out, and threads of a pool do not survive a fork.
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    if not hasattr(os, "killpg"):
        os._exit(1)
    if os.getppid() != parent.pid:  # else a design has closed what we listen at
        os.killpg(0, signal.SIGKILL)


def _prepare() -> None:
    """Import what judging needs, with the collector off: it would walk a million new objects, none of them garbage."""
    gc.disable()
    from . import advice, gate, oracle, report  # noqa: F401

    gc.enable()
