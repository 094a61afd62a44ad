"""A training that is killed again and again, beside one that is left alone: do both end with the same figures?

    python tests/bench/kill.py [--kills 20] [--design models/compact.py] [--epochs 30] [--batch-size 32] [--seed 0]

Trains on `digits` by `rfcalc train`. The second run gets kill -9 at moments drawn at random, each after its process has
shown that it trains, and goes on with --resume. While it runs, and after each kill, every file of its folder is read.
Prints what happened and exits 1 unless figures, weights and state are equal bit by bit in the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from rfcalc.train import description, run_folder

ROOT = Path(__file__).parents[2]
RFCALC = [sys.executable, "-c", "import sys; from rfcalc_cli.main import run; sys.exit(run(sys.argv[1:]))"]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--design", default=str(ROOT / "models" / "compact.py"))
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    options = [
        "train", given.design, "--dataset", "digits", "--epochs", str(given.epochs), "--max-epochs", str(given.epochs),
        "--batch-size", str(given.batch_size), "--target", "95", "--device", "cpu", "--json",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        alone, killed = Path(place, "alone"), Path(place, "killed")
        begun = time.perf_counter()
        finish([*options, "--out", str(alone)])
        left_alone = only_run(alone)
        trained = sum(epoch.seconds for epoch in left_alone.epochs[1])
        took = time.perf_counter() - begun
        print(f"left alone: {given.epochs} epochs, {trained:.1f} s of training, {took:.1f} s in all")
        reads = kill_often([*options, "--out", str(killed)], killed, given.kills, random.Random(given.seed), trained)
        finish(["train", "--resume", str(only_run(killed).folder), "--json"])
        print(f"{reads:,} readings of the folder while it was written, every one whole")
        return compare(left_alone, only_run(killed))


def kill_often(start: list[str], out: Path, kills: int, chance: random.Random, trained: float) -> int:
    """Start the run, then kill it and go on so many times. How often the folder was read meanwhile."""
    reads, arguments = 0, start
    for number in range(1, kills + 1):
        # So that the epochs last for about as many kills.
        moment = chance.random() * 2 * trained / kills
        with subprocess.Popen(
            [*RFCALC, *arguments], stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}
        ) as process:
            first = process.stdout.readline()
            assert json.loads(first)["event"] == "begin", first
            reader = Reader(out)
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
            process.wait()
            reads += reader.stop()
        run = only_run(out)
        read_everything(run.folder)
        ended = "" if process.returncode == -signal.SIGKILL else ", which had ended by itself"
        print(f"kill {number:2}: {moment:5.2f} s after it began to train{ended}; epochs kept: {len(run.epochs[1])}")
        arguments = ["train", "--resume", str(run.folder), "--json"]
    return reads


class Reader:
    """Reads every file of the run over and over, in a thread, until it is stopped."""

    def __init__(self, out: Path) -> None:
        self.out, self.reads, self.error, self.going = out, 0, None, True
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        try:
            while self.going:
                read_everything(only_run(self.out).folder)
                self.reads += 1
        except Exception as error:
            self.error = error

    def stop(self) -> int:
        self.going = False
        self.thread.join()
        if self.error:
            raise self.error
        return self.reads


def read_everything(folder: Path) -> None:
    """Raises when a file of the run is not whole."""
    run = run_folder.read(folder)
    for seed in run.config.seeds:
        run_folder.read_state(folder, seed)
    for file in folder.glob("*.safetensors"):
        run_folder.read_weights(file)


def finish(arguments: list[str]) -> None:
    done = subprocess.run(
        [*RFCALC, *arguments], stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode in (0, 1), done


def only_run(out: Path) -> description.Run:
    (config,) = out.glob("*/*/config.json")
    return run_folder.read(config.parent)


def compare(one: description.Run, other: description.Run) -> int:
    """Print whether two runs are the same, and where they are not."""
    timed = {"seconds": 0.0, "images_per_second": 0.0}
    differing = [
        f"epoch {a.epoch}"
        for a, b in zip(one.epochs[1], other.epochs[1], strict=True)
        if dataclasses.replace(a, **timed) != dataclasses.replace(b, **timed)
    ]
    first, second = (run_folder.read_state(run.folder, 1) for run in (one, other))
    differing += [f"state: {name}" for name in first.to_dict() if not same(getattr(first, name), getattr(second, name))]
    for file in sorted(one.folder.glob("*.safetensors")):
        if not same(run_folder.read_weights(file)[0], run_folder.read_weights(other.folder / file.name)[0]):
            differing.append(file.name)
    last = other.epochs[1][-1]
    print(f"in the end: test loss {last.test_loss!r}, EMA {last.ema_correct} of {last.test_total}")
    print(f"DIFFERENT: {', '.join(differing)}" if differing else "figures, weights and state are equal bit by bit")
    return 1 if differing else 0


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


if __name__ == "__main__":
    sys.exit(main())
