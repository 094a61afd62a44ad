"""Many designs in worker processes: order, and that one that hangs or dies takes no other along."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from rfcalc.designs.design import load_design
from rfcalc.errors import DesignError, RfcalcError
from rfcalc.gate import workers
from rfcalc.gate.budget import Budget
from rfcalc.gate.settings import Settings
from rfcalc.gate.verdict import judge
from rfcalc.gate.workers import Job, Task, call_all, judge_all

NET = """
    from torch import nn
    INPUT_SHAPE = (1, 12, 12)

    class Net(nn.Module):
        def __init__(self, width=4):
            super().__init__()
            self.first = nn.Conv2d(1, width, 3)
        def forward(self, x):
            return self.first(x)
"""
LOOSE = Settings(Budget(max_params=None, min_rf=None))


def task(target: str) -> Task:
    return Task(target, LOOSE)


@pytest.fixture
def nets(write_design):
    """Seven designs of 1 to 7 channels, and a file without one."""
    names = [write_design(NET.replace("width=4", f"width={n}"), f"net{n}.py") for n in range(1, 8)]
    return [*names[:3], write_design("WIDTH = 3", "none.py"), *names[3:]]


@pytest.mark.parametrize("count", [1, 2, 20])
def test_verdicts_come_in_the_order_of_the_tasks(nets, count):
    found = judge_all([task(name) for name in nets], workers=count)
    assert [v and v.figures.params for v in found] == [10, 20, 30, None, 40, 50, 60, 70]


def test_a_worker_judges_as_this_process_does(nets):
    tasks = [Task(nets[0]), Task(nets[1], Settings(Budget(max_params=5, min_rf=5))), Task(nets[2], remarks=False)]
    assert judge_all(tasks) == [judge(t.target, t.settings, remarks=t.remarks) for t in tasks]


def test_nothing_to_judge():
    assert judge_all([]) == []


def test_any_function_is_called():
    functions = [
        partial(pow, 2, 5),
        partial(load_design, "nat.py"),
        partial(divmod, 1, 0),
        partial(os._exit, 3),
        partial(time.sleep, 600),
        partial(pow, 2, 6),
    ]
    answers = call_all([Job("it", function) for function in functions], timeout=3)
    assert [answers[0], answers[-1]] == [32, 64]
    assert [type(answer) for answer in answers[1:-1]] == [DesignError, RfcalcError, RfcalcError, RfcalcError]
    beginnings = ["nat.py: no such file", "it: raised ZeroDivisionError: ", "it: its process ended with exit code 3"]
    for answer, beginning in zip(answers[1:-1], [*beginnings, "it: no verdict after 3 s"], strict=True):
        assert str(answer).startswith(beginning)


@pytest.mark.parametrize("debug", [False, True])
def test_the_traceback_of_what_a_call_raises(capfd, debug):
    call_all([Job("it", partial(divmod, 1, 0))], debug=debug)
    assert ("Traceback" in capfd.readouterr().err) == debug


def test_progress_is_told(nets):
    told = []
    judge_all([task(name) for name in nets], workers=2, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == len(nets)


# what a design does as it is loaded: what its verdict says
DEADLY = {
    "hangs": ("while True: pass", "no verdict after 3 s; look for an endless loop"),
    "is deaf to signals": (
        "import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))\ntime.sleep(1e6)",
        "no verdict after 3 s",
    ),
    "waits for the terminal": ("input()", ":1: raised at import: EOFError"),
    "exits": ("import os\nos._exit(3)", "its process ended with exit code 3 before the verdict"),
    "exits as if all were well": ("import os\nos._exit(0)", "its process ended with exit code 0 before the verdict"),
    "leaves": ("import sys\nsys.exit()", ":2: raised at import: SystemExit"),
    "crashes": (
        "import ctypes, faulthandler\nfaulthandler.disable()\nctypes.string_at(0)",
        "its process was killed by SIGSEGV",
    ),
    "is killed": ("import os\nos.kill(os.getpid(), 9)", "its process was killed by SIGKILL (out of memory?)"),
    "runs out of memory": (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 20,) * 2)\n[0] * (1 << 30)",
        "MemoryError",
    ),
    "interrupts": ("raise KeyboardInterrupt", "raised KeyboardInterrupt"),
    "kills its group": ("import os\nos.killpg(0, 15)", "its process was killed by SIGTERM"),
    "closes its sockets": ("SOCKETS: os.close(fd)\nimport sys; sys.exit()", "before the verdict"),
    "writes to its sockets": ("SOCKETS: os.write(fd, b'12345678' * 9)\nimport sys; sys.exit()", ""),
}
SOCKETS = """
import os, stat
for fd in range(3, 256):
    if os.path.exists(f"/dev/fd/{fd}") and stat.S_ISSOCK(os.fstat(fd).st_mode)"""
# What makes it a design, so that the file is executed at all.
CLASS = "\nfrom torch import nn\nINPUT_SHAPE = (1, 4, 4)\nclass Net(nn.Flatten): pass\n"


@pytest.fixture(scope="module")
def deaths(tmp_path_factory):
    """What becomes of each of the deadly, a good design behind every one, in two processes."""
    folder = tmp_path_factory.mktemp("designs")
    targets = []
    for name, (source, _) in DEADLY.items():
        for part, text in ((name, source.replace("SOCKETS", SOCKETS) + CLASS), (f"{name}, then", CLASS)):
            targets.append(folder / f"{part}.py")
            targets[-1].write_text(text)
    found = judge_all([task(str(target)) for target in targets], workers=2, timeout=3)
    return {target.stem: verdict for target, verdict in zip(targets, found, strict=True)}


@pytest.mark.parametrize(("name", "says"), [(name, says) for name, (_, says) in DEADLY.items()], ids=DEADLY)
def test_a_design_that_takes_its_process_down(deaths, name, says):
    verdict = deaths[name]
    assert (verdict.outcome, verdict.figures) == ("error", None)
    assert verdict.error.startswith(verdict.target)
    assert says in verdict.error
    assert deaths[f"{name}, then"].outcome == "pass"


def test_a_death_is_not_blamed_on_the_next_design(nets, write_design):
    bomb = "import os, threading\nthreading.Timer(0.2, os._exit, [4]).start()"
    slow = "import time\ntime.sleep(1)"
    names = [write_design(bomb + CLASS, "bomb.py"), write_design(slow + CLASS, "slow.py"), nets[0]]
    assert [v.outcome for v in judge_all([task(name) for name in names])] == ["pass"] * 3


def test_a_design_that_forks_is_judged_once(write_design):
    name = write_design("import os\nos.fork()" + CLASS)
    assert [v.outcome for v in judge_all([task(name)] * 3)] == ["pass"] * 3


def test_what_a_design_prints_does_not_reach_standard_output(write_design, capfd):
    name = write_design("import os\nprint('noise')\nos.write(1, b'raw')\nos.system('echo shell')" + CLASS)
    assert judge_all([task(name)])[0].outcome == "pass"
    found = capfd.readouterr()
    assert found.out == ""
    assert all(word in found.err for word in ("noise", "raw", "shell"))


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition, seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


NOTING = """
import os, subprocess, time
child = subprocess.Popen(["sleep", "600"])
with open("pids.part", "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
os.rename("pids.part", "pids")
"""
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


def pids() -> list[int]:
    assert until(Path("pids").exists)
    return [int(pid) for pid in Path("pids").read_text().split()]


@needs_proc
@pytest.mark.parametrize("then", ["os._exit(1)", ""])
def test_nothing_that_a_design_starts_stays_behind(write_design, then):
    judge_all([task(write_design(NOTING + then + CLASS))])
    assert until(lambda: not any(map(alive, pids())), 5)


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(write_design, number):
    name = write_design(NOTING + "time.sleep(600)" + CLASS)
    source = f"from rfcalc.gate.workers import Task, judge_all; judge_all([Task({name!r})] * 2, workers=2)"
    parent = subprocess.Popen([sys.executable, "-c", source], stderr=subprocess.DEVNULL)
    started = pids()
    parent.send_signal(number)
    parent.wait(60)
    assert until(lambda: not any(map(alive, started)), 5)


def test_a_fresh_interpreter_where_forking_is_not_safe(nets, monkeypatch):
    monkeypatch.setattr(workers, "START", "spawn")
    found = judge_all([task(name) for name in nets[:2]])
    assert [v.figures.params for v in found] == [10, 20]


def test_a_worker_that_cannot_start(nets, monkeypatch):
    monkeypatch.setattr(workers, "_settle", lambda: os._exit(7))
    with pytest.raises(RfcalcError, match="a worker could not start: its process ended with exit code 7"):
        judge_all([task(nets[0])])
