"""Seeds in processes of their own give what they give alone, and none that fails is waited for."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rfcalc.designs.design import load_design
from rfcalc.errors import ForwardError, NotFiniteError, RfcalcError
from rfcalc.train import seeds as module
from rfcalc.train.data import DataSet, Split
from rfcalc.train.optim import Choice
from rfcalc.train.recipe import OURS
from rfcalc.train.seeds import train_seeds

RECIPE = dataclasses.replace(OURS, epochs=2, batch_size=16, augmentation=())
NET = """
    import os, sys
    from torch import nn

    INPUT_SHAPE = (1, 6, 6)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.1), nn.Flatten(),
                                        nn.Linear(64, 3))

        def forward(self, x):
            {forward}
            return self.layers(x)
"""


def design(write_design, forward="pass"):
    return load_design(write_design(NET.format(forward=forward)))


def split(count, seed):
    source = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 1, 6, 6), generator=source, dtype=torch.uint8)
    return Split(images, torch.randint(3, (count,), generator=source))


@pytest.fixture(scope="module")
def data():
    return DataSet("noise", split(64, 1), split(20, 2), ("a", "b", "c"), (0.5,), (0.3,))


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def by_seed(results):
    found = {}
    for seed, epoch, state in results:
        assert seed == epoch.seed == state.seed
        found.setdefault(seed, []).append((epoch, state))
    return found


def same(one, other):
    for seed in one:
        for (a, s), (b, t) in zip(one[seed], other[seed], strict=True):
            assert (a.train_loss, a.test_loss, a.ema_loss) == (b.train_loss, b.test_loss, b.ema_loss)
            torch.testing.assert_close(s.model, t.model, atol=0, rtol=0)
    return one.keys() == other.keys()


def test_processes_give_what_one_process_gives(write_design, data):
    net, told = design(write_design), []
    alone = by_seed(train_seeds(net, data, RECIPE, seeds=(1, 2, 3), workers=1))
    beside = by_seed(train_seeds(net, data, RECIPE, seeds=(1, 2, 3), workers=2, on_batch=told.append))
    assert same(alone, beside)
    assert {one.seed for one in told} == {1, 2, 3}
    resumed = by_seed(
        train_seeds(net, data, RECIPE, seeds=(1, 2), workers=2, states={1: alone[1][0][1], 2: alone[2][1][1]})
    )
    # Seed 1 had its first epoch behind it, seed 2 both.
    assert resumed.keys() == {1}
    assert resumed[1][0][0].test_loss == alone[1][1][0].test_loss


GIB = 2**30


@pytest.mark.parametrize(
    ("device", "cores", "free", "expected"),
    [
        ("cpu", 6, 0, 6),
        ("mps", 6, 0, 1),
        ("cuda", 6, 100 * GIB, 6),
        ("cuda", 6, 4 * GIB - 1, 3),
        ("cuda", 6, 1, 1),
    ],
)  # fmt: skip
def test_how_many_at_once(monkeypatch, device, cores, free, expected):
    monkeypatch.setattr(module, "_cores", lambda: cores)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 200 * GIB))
    assert module._side_by_side(device) == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_seeds_beside_each_other_on_a_gpu(write_design, data):
    net = design(write_design)
    alone = by_seed(train_seeds(net, data, RECIPE, seeds=(1, 2), device="cuda", workers=1))
    beside = by_seed(train_seeds(net, data, RECIPE, seeds=(1, 2), device="cuda"))
    assert same(alone, beside)


def test_a_process_trains_on_the_device_it_is_told(write_design, data):
    with pytest.raises(RuntimeError, match=r"seed [12]:\nTraceback(.|\n)*Expected one of cpu, cuda"):
        list(train_seeds(design(write_design), data, RECIPE, seeds=(1, 2), device="abacus", workers=2))


def test_a_seed_that_fails_stops_all(write_design, data):
    net = design(write_design)
    bad = dataclasses.replace(RECIPE, optimizer=Choice("SGD", {"lr": 1e38}), rest=None, schedule=None)
    with pytest.raises(NotFiniteError, match=r"seed [12]: the loss is"):
        list(train_seeds(net, data, bad, seeds=(1, 2), workers=2))


def test_a_design_that_raises_shows_where(write_design, data):
    net = design(write_design, "assert not self.training, 'odd'")
    with pytest.raises(ForwardError, match=r"seed [12]: training the design raised AssertionError: odd on") as caught:
        list(train_seeds(net, data, RECIPE, seeds=(1, 2), workers=2))
    assert "net.py" in caught.value.__notes__[0]  # for --debug: the line in the design


def test_an_error_of_our_own_shows_where(write_design, data):
    broken = dataclasses.replace(data, classes=None)
    with pytest.raises(RuntimeError, match=r"seed [12]:\nTraceback(.|\n)*TypeError"):
        list(train_seeds(design(write_design), broken, RECIPE, seeds=(1, 2), workers=2))


def test_a_process_that_dies_is_told(write_design, data):
    net = design(write_design, "self.training and os.kill(os.getpid(), 9)")
    with pytest.raises(RfcalcError, match=r"seed [12]: its process ended with code -9; was it out of memory\?"):
        list(train_seeds(net, data, RECIPE, seeds=(1, 2), workers=2))


def test_a_process_that_dies_in_the_middle_of_a_word_is_told(write_design, data):
    """What it says is cut short, which is no end of file."""
    net = design(write_design, "self.training and speak_and_die()").target
    Path(net.partition(":")[0]).write_text(SPEAKS_AND_DIES + Path(net.partition(":")[0]).read_text())
    with pytest.raises(RfcalcError, match=r"seed [12]: its process ended with code -9; was it out of memory\?"):
        list(train_seeds(load_design(net), data, RECIPE, seeds=(1, 2), workers=2))


SPEAKS_AND_DIES = """
import multiprocessing.connection as connection
import gc, os, struct

def speak_and_die():
    for line in gc.get_objects():
        if type(line) is connection.Connection and not line.closed and line.writable:
            os.write(line.fileno(), struct.pack("!i", 1000) + b"a few bytes")
    os.kill(os.getpid(), 9)
"""


CTRL_C = """
import sys
from rfcalc_cli.main import run
if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
@pytest.mark.parametrize("seconds", [0.0, 1.5])
def test_ctrl_c_while_processes_start(write_design, seconds):
    """Every process of the terminal gets it; only the first may answer, and none may be left."""
    net = write_design(NET.format(forward="pass").replace("(1, 6, 6)", "(1, 8, 8)").replace("64, 3", "144, 10"))
    Path("main.py").write_text(CTRL_C)
    command = [sys.executable, "main.py", "train", net, "--dataset", "digits", "--seeds", "2", "--epochs", "999"]
    with subprocess.Popen(
        [*command, "--max-epochs", "999"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        process.stdout.readline()
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate()  # until the last process has let go of stderr
    assert process.returncode == 130
    assert err.startswith("rfcalc: stopped; go on with: ")
    assert err.count("\n") == 1


def test_processes_end_when_nobody_listens(write_design, data, monkeypatch):
    started, start = [], module._start

    def spy(seed, running):
        line = start(seed, running)
        started.append(running[line][1])
        return line

    monkeypatch.setattr(module, "_start", spy)
    results = train_seeds(design(write_design), data, dataclasses.replace(RECIPE, epochs=99), seeds=(1, 2), workers=2)
    next(results)
    assert started[0].is_alive()
    results.close()
    assert not any(process.is_alive() for process in started)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_processes_end_with_a_parent_that_was_killed(write_design, data, monkeypatch):
    net, told = design(write_design), Path("workers").absolute()
    child = os.fork()
    if not child:
        start = module._start

        def spy(seed, running):
            line = start(seed, running)
            told.write_text(" ".join(str(process.pid) for _, process in running.values()))
            return line

        monkeypatch.setattr(module, "_start", spy)
        for _ in train_seeds(net, data, dataclasses.replace(RECIPE, epochs=10**6), seeds=(1, 2), workers=2):
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    workers = [int(pid) for pid in told.read_text().split()]
    assert len(workers) == 2
    for pid in workers:
        assert ended_within(pid, 60)


def ended_within(pid, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False
