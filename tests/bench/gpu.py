"""Training on a GPU: one seed cold and warm, many seeds side by side, and their accuracy beside that of a CPU.

    python tests/bench/gpu.py [--design models/step8.py] [--data-dir DIR] [--device cuda] [--seeds 32] [--epochs 15]

Cold is the first run of a process, with what torch loads and tries out then; warm is the third. Both are whole runs,
building the network and testing after every epoch included; reading the data is not. The seeds' time is that of
everything after reading the data, starting their processes included.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path

import torch
from tabulate import tabulate

from rfcalc.designs.design import Design, load_design
from rfcalc.train.data import DataSet, load
from rfcalc.train.loop import train
from rfcalc.train.recipe import OURS, Recipe
from rfcalc.train.seeds import THREADS, train_seeds

ROOT = Path(__file__).parents[2]


def one_seed(design: Design, data: DataSet, recipe: Recipe, device: str) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    for _ in train(design.build_real, data, recipe, seed=1, device=device):
        pass
    return time.perf_counter() - start


def many_seeds(
    design: Design, data: DataSet, recipe: Recipe, device: str, count: int, workers: int | None
) -> tuple[float, list[float]]:
    """Seconds of all, and each seed's accuracy in percent after the last epoch, by averaged weights."""
    start = time.perf_counter()
    seeds = range(1, count + 1)
    found = {}
    for seed, epoch, _ in train_seeds(design, data, recipe, seeds=seeds, device=device, workers=workers):
        assert epoch.ema_correct is not None  # our recipe keeps an average
        found[seed] = 100 * epoch.ema_correct / epoch.test_total
    return time.perf_counter() - start, list(found.values())


def spread(accuracies: list[float]) -> list[str]:
    sd = f"{statistics.stdev(accuracies):.3f}" if len(accuracies) > 1 else ""
    return [f"{len(accuracies)}", f"{statistics.mean(accuracies):.3f}", sd, f"{min(accuracies):.2f}"]


def on_a_cpu(design: Path) -> list[float]:
    """The same figures of the runs of docs/ladder.json."""
    figures = json.loads((ROOT / "docs/ladder.json").read_text("utf-8"))
    run = figures[design.resolve().relative_to(ROOT / "models").with_suffix("").as_posix()]["ours"]
    return [100 * correct[-1] / run["test_images"] for correct in run["ema_correct"].values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--design", type=Path, default=ROOT / "models/step8.py")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--epochs", type=int, default=OURS.epochs)
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    design, recipe = load_design(str(given.design)), dataclasses.replace(OURS, epochs=given.epochs)
    data = load("mnist", data_dir=given.data_dir, input_shape=(1, 28, 28))
    name = torch.cuda.get_device_name() if given.device == "cuda" else given.device
    print(f"torch {torch.__version__} on {name}; {given.design.name}, {given.epochs} epochs of {recipe.batch_size}\n")
    cold, _, warm = (one_seed(design, data, recipe, given.device) for _ in range(3))
    print(tabulate([["cold", f"{cold:.2f}"], ["warm", f"{warm:.2f}"]], ["one seed", "seconds"], disable_numparse=True))
    seconds, accuracies = many_seeds(design, data, recipe, given.device, given.seeds, given.jobs)
    rows = [[given.device, *spread(accuracies)], ["docs/ladder.json", *spread(on_a_cpu(given.design))]]
    print(f"\n{given.seeds} seeds: {seconds:.1f} seconds\n")
    print(tabulate(rows, ["last epoch, EMA", "seeds", "mean %", "sd", "lowest"], disable_numparse=True))


if __name__ == "__main__":
    main()
