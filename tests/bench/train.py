"""An epoch of training as notebooks write it beside rfcalc's, in turns on one machine, on real MNIST.

    python tests/bench/train.py [--design models/step8.py] [--data-dir DIR] [--rounds 3] [--images 60000]

Prints tables: seconds of an epoch's training, seconds of its data path alone, and where the time of a step goes in
either loop. Each loop lives in a process of its own, for rfcalc's tells the C library how to keep memory; the
processes take turns, one runs at a time, with one thread. "the design's recipe" is its own RECIPE in rfcalc's loop:
there the loops alone differ. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from tabulate import tabulate
from torch import nn
from torch.nn.functional import nll_loss
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from rfcalc.designs.design import load_design
from rfcalc.train import loop
from rfcalc.train.augment import apply, draw
from rfcalc.train.data import DataSet, Split, folder, load, normalise
from rfcalc.train.recipe import OURS, Recipe, from_reference

ROOT = Path(__file__).parents[2]
PROFILED = 40


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    design: str
    data_dir: Path
    images: int

    def data(self, images: int | None = None) -> DataSet:
        data = load("mnist", data_dir=self.data_dir, input_shape=(1, 28, 28))
        few = slice(images or self.images)
        return dataclasses.replace(data, train=Split(data.train.images[few], data.train.labels[few]))

    def recipe(self) -> Recipe:
        return from_reference(load_design(self.design).recipe, self.design)

    def loader(self, images: int | None = None) -> DataLoader:
        """The notebooks' data path: PIL transforms of one image after the other."""
        recipe = load_design(self.design).recipe
        chosen = [
            getattr(transforms, one["name"])(**{key: value for key, value in one.items() if key != "name"})
            for one in recipe["train_augmentation"]
        ]
        steps = transforms.Compose([*chosen, transforms.ToTensor(), transforms.Normalize(**recipe["normalize"])])
        mnist = datasets.MNIST(self.data_dir, transform=steps)
        return DataLoader(Subset(mnist, range(images or self.images)), batch_size=recipe["batch_size"], shuffle=True)


class Notebook:
    """Training as the notebooks do it; `epoch` is their `train(model, device, train_loader, optimizer, epoch)`."""

    def __init__(self, setting: Setting) -> None:
        self.model: nn.Module = load_design(setting.design).build_real()
        self.optimizer = torch.optim.SGD(self.model.parameters(), **setting.recipe().optimizer.options)

    def epoch(self, batches: DataLoader) -> None:
        self.model.train()
        losses, correct, processed = [], 0, 0
        for data, target in batches:
            self.optimizer.zero_grad()
            output = self.model(data)
            loss = nll_loss(output, target)
            losses.append(loss.item())
            loss.backward()
            self.optimizer.step()
            prediction = output.argmax(dim=1, keepdim=True)
            correct += prediction.eq(target.view_as(prediction)).sum().item()
            processed += len(data)


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


# Each makes what it needs and gives a function: seconds of one more epoch.


def notebook(setting: Setting) -> Callable[[], float]:
    training, batches = Notebook(setting), setting.loader()
    return lambda: timed(lambda: training.epoch(batches))


def notebook_data(setting: Setting) -> Callable[[], float]:
    batches = setting.loader()
    return lambda: timed(lambda: [None for _ in batches])


def rfcalc(setting: Setting, recipe: Recipe) -> Callable[[], float]:
    design = load_design(setting.design)
    endless = dataclasses.replace(recipe, epochs=1000)
    training = loop.train(design.build_real, setting.data(), endless, seed=1)
    return lambda: next(training)[0].seconds


def rfcalc_data(setting: Setting, recipe: Recipe) -> Callable[[], float]:
    data, source = setting.data(), torch.Generator().manual_seed(1)
    stages, size = recipe.augmentation, recipe.batch_size

    def epoch() -> None:
        order = torch.randperm(setting.images, generator=source)
        table = draw(stages, setting.images, (1, 28, 28), source)
        for rows, drawn in zip(order.split(size), table.split(size), strict=True):
            normalise(apply(data.train.batch(rows)[0], stages, drawn), data)

    return lambda: timed(epoch)


def reference(setting: Setting, which: Callable[[Setting, Recipe], Callable[[], float]]) -> Callable[[], float]:
    return which(setting, setting.recipe())


def ours(setting: Setting, which: Callable[[Setting, Recipe], Callable[[], float]]) -> Callable[[], float]:
    return which(setting, OURS)


LOOPS = {"notebook": (notebook,), "rfcalc, the design's recipe": (reference, rfcalc), "rfcalc": (ours, rfcalc)}
DATA = {
    "notebook": (notebook_data,),
    "rfcalc, the design's recipe": (reference, rfcalc_data),
    "rfcalc": (ours, rfcalc_data),
}


def answer(line: Connection, setting: Setting, make: Callable[..., Callable[[], float]], rest: tuple) -> None:
    """In a process: one epoch for every word that comes."""
    torch.set_num_threads(1)
    run = make(setting, *rest)
    line.send(None)
    while line.recv():
        line.send(run())


def compared(setting: Setting, entries: dict[str, tuple], rounds: int) -> str:
    """Medians of the loops over rounds in which each has its turn, and how many times as fast as the first each is."""
    context = multiprocessing.get_context("spawn")
    lines: dict[str, Connection] = {}
    for name, (make, *rest) in entries.items():
        lines[name], theirs = context.Pipe()
        context.Process(target=answer, args=(theirs, setting, make, tuple(rest)), daemon=True).start()
        lines[name].recv()  # ready
    times: dict[str, list[float]] = {name: [] for name in entries}
    for _ in range(rounds):
        for name, line in lines.items():
            line.send(True)
            times[name].append(line.recv())
    for line in lines.values():
        line.send(False)
    first = times["notebook"]
    rows = []
    for name, seconds in times.items():
        ratio = statistics.median(one / other for one, other in zip(first, seconds, strict=True))
        each = " ".join(f"{one:.2f}" for one in seconds)
        rows.append([name, f"{statistics.median(seconds):.2f}", f"{ratio:.1f}", each])
    return tabulate(rows, ["loop", "seconds", "times as fast, round by round", "rounds"], disable_numparse=True)


def profiled(name: str, run: Callable[[], object], steps: int) -> str:
    with profile(activities=[ProfilerActivity.CPU]) as taken:
        seconds = timed(run)
    averages = sorted(taken.key_averages(), key=lambda one: -one.self_cpu_time_total)
    rows = [
        [one.key[:48], f"{one.self_cpu_time_total / steps / 1e3:.2f}", f"{one.self_cpu_time_total / seconds / 1e6:.0%}"]
        for one in averages[:12]
    ]
    inside = sum(one.self_cpu_time_total for one in averages) / steps / 1e3
    rows.append(["outside of torch's ops", f"{seconds / steps * 1e3 - inside:.2f}", ""])
    head = ["op", "ms a step", "share"]
    return f"{name}: {seconds / steps * 1e3:.1f} ms a step\n{tabulate(rows, head, disable_numparse=True)}"


def profiles(setting: Setting) -> list[str]:
    """Of either loop; the notebook's first, before rfcalc's has told the C library how to keep memory."""
    images = PROFILED * OURS.batch_size
    theirs, batches = Notebook(setting), setting.loader(images)
    theirs.epoch(batches)
    first = profiled("notebook", lambda: theirs.epoch(batches), PROFILED)
    run = loop._Run(load_design(setting.design).build_real, setting.data(images), OURS, 1, "cpu", amp=False)
    run.train_epoch(None)
    return [first, profiled("rfcalc", lambda: run._pass(None), PROFILED)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--design", default=str(ROOT / "models/step8.py"))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=60_000)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    setting = Setting(chosen.design, folder(chosen.data_dir), chosen.images)
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}, {torch.backends.cpu.get_cpu_capability()}")
    print(f"{Path(chosen.design).name}, {chosen.images:,} images, batch {setting.recipe().batch_size}, one thread\n")
    print("Training, one epoch\n" + compared(setting, LOOPS, chosen.rounds), "\n", flush=True)
    print("Its data path alone\n" + compared(setting, DATA, chosen.rounds), "\n", flush=True)
    print(*profiles(setting), sep="\n\n")


if __name__ == "__main__":
    main()
