"""The five ladders, trained: what their authors report beside what their designs reach here.

    python tests/bench/ladder.py train --recipe reference [--runs runs/ladder] [DESIGN...]
    python tests/bench/ladder.py train --recipe ours
    python tests/bench/ladder.py table

`train` calls `rfcalc train` for every design that has no finished run in --runs yet, on MNIST from RFCALC_DATA or the
cache, on one core: 1 seed, 3 for the last of each ladder and for compact. Designs of more than a million parameters are
left out unless they are named. `table` takes the figures of finished runs into docs/ladder.json, beside those that are
there, and writes docs/ladder.md from it and docs/ladder-claims.json (what the READMEs and their notebooks' logs say).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import rfcalc
from rfcalc.designs.design import load_design
from rfcalc.train import description, run_folder
from rfcalc.train.verdict import reaches

ROOT = Path(__file__).parents[2]
RFCALC = [sys.executable, "-c", "import sys; from rfcalc_cli.main import run; sys.exit(run(sys.argv[1:]))"]
FIGURES, CLAIMS, PAGE = (ROOT / "docs" / name for name in ("ladder.json", "ladder-claims.json", "ladder.md"))
THREE_SEEDS = ("step8", "njam/step3", "s7/step3_code6", "era/model6", "compact")
HEAVY = 1_000_000
LAST = 5
TARGET = 99.4

HEAD = f"""# The ladders, trained

Every design of `models/` on MNIST: what its README claims and its notebook's log shows, and what it reached here with
the recipe of that notebook (`reference`) and with rfcalc's own (`ours`: by the averaged weights). Test accuracy in
percent. Of runs the lowest and highest of the last {LAST} epochs of all seeds are given, never the best epoch; *holds*
counts the seeds that stay at {TARGET} or above through these epochs. Logs are of one run on a GPU, with the loader's
own augmentation.

"""
COLUMNS = [
    "design", "parameters", "RF", "README", "log, best", f"log, last {LAST}",
    "reference", "holds", "ours", "holds",
]  # fmt: skip


def name_of(file: Path) -> str:
    return file.relative_to(ROOT / "models").with_suffix("").as_posix()


def designs() -> list[Path]:
    return sorted((ROOT / "models").rglob("*.py"), key=lambda file: (file.parent != ROOT / "models", file))


# --- training ------------------------------------------------------------------------------------------------


def train(names: Iterable[str], recipe: str, runs: Path) -> None:
    chosen = set(names)
    finished, _ = run_folder.newest(runs / recipe)
    for file in designs():
        name, design = name_of(file), load_design(str(file))
        params = sum(p.numel() for p in design.build().parameters())
        if (chosen and name not in chosen) or (not chosen and params > HEAVY):
            continue
        if recipe == "reference" and design.recipe is None:
            continue
        if description.fingerprint(design) in finished:
            print(f"{name}, {recipe}: there is a finished run", flush=True)
            continue
        seeds = "3" if name in THREE_SEEDS else "1"
        options = ["--recipe", recipe, "--seeds", seeds, "--max-epochs", "20", "--out", str(runs / recipe), "--quiet"]
        print(f"{name}, {recipe}, {seeds} seeds", flush=True)
        if subprocess.run([*RFCALC, "train", str(file), *options], check=False).returncode > 1:
            sys.exit(f"{name}: could not be trained")


# --- the table -----------------------------------------------------------------------------------------------


def figures_of(run: description.Run) -> dict[str, Any]:
    """What the table needs of a run, and what it depends on."""
    config = run.config
    last = {seed: epochs[-LAST:] for seed, epochs in run.epochs.items()}
    return {
        "recipe": config.recipe.name,
        "source": config.source,
        "data_sha256": config.data_sha256,
        "epochs": config.recipe.epochs,
        "test_images": next(iter(last.values()))[0].test_total,
        "raw_correct": {str(seed): [epoch.test_correct for epoch in epochs] for seed, epochs in last.items()},
        "ema_correct": {
            str(seed): [epoch.ema_correct for epoch in epochs]
            for seed, epochs in last.items()
            if epochs[0].ema_correct is not None
        },
        "device": config.device,
        "environment": {key: config.environment[key] for key in ("python", "torch", "threads")},
        "created": config.created,
        "command": f"python tests/bench/ladder.py train --recipe {config.recipe.name}",
    }


def collect(runs: Path) -> dict[str, dict[str, Any]]:
    """The figures by design and recipe: those in the repository, and over them those of finished runs."""
    found: dict[str, dict[str, Any]] = json.loads(FIGURES.read_text("utf-8")) if FIGURES.exists() else {}
    names = {description.fingerprint(load_design(str(file))): name_of(file) for file in designs()}
    for recipe in ("reference", "ours"):
        finished, damaged = run_folder.newest(runs / recipe)
        for error in damaged:
            sys.exit(str(error))
        for source, run in finished.items():
            if source in names:
                found.setdefault(names[source], {})[recipe] = figures_of(run)
    return found


def reached(figures: dict[str, Any] | None) -> tuple[str, str]:
    """Lowest and highest of the last epochs, and how many seeds hold."""
    if figures is None:
        return "not run", ""
    total, seeds = figures["test_images"], figures["ema_correct"] or figures["raw_correct"]
    every = [correct for last in seeds.values() for correct in last]
    holding = sum(all(reaches(correct, total, TARGET) for correct in last) for last in seeds.values())
    return f"{min(every) / total:.2%} – {max(every) / total:.2%}".replace("%", ""), f"{holding}/{len(seeds)}"


def line(file: Path, claim: dict[str, Any], figures: dict[str, dict[str, Any]]) -> list[str]:
    report = rfcalc.analyze(load_design(str(file)).build(), (1, 28, 28))
    log = claim.get("log_last_five")
    last = f"{min(log):.2f} – {max(log):.2f}" if log else ""
    stated = [f"{claim[key]:.2f}" if claim.get(key) is not None else "" for key in ("readme_best_test", "log_best")]
    reference = ("", "") if not claim else reached(figures.get("reference"))
    rf = str(report.rf_output[0])
    return [name_of(file), f"{report.params:,}", rf, *stated, last, *reference, *reached(figures.get("ours"))]


def table(runs: Path) -> None:
    figures = collect(runs)
    claims = {claim["design"]: claim for claim in json.loads(CLAIMS.read_text("utf-8"))}
    rows = [
        line(file, claims.get(file.relative_to(ROOT).as_posix(), {}), figures.get(name_of(file), {}))
        for file in designs()
    ]
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    body = "\n".join(f"| {' | '.join(row)} |" for row in [COLUMNS, ["---"] * len(COLUMNS), *rows])
    PAGE.write_text(HEAD + body + "\n\n" + foot(figures), "utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(rows)} designs")


def foot(figures: dict[str, dict[str, Any]]) -> str:
    runs = [run for by_recipe in figures.values() for run in by_recipe.values()]
    commands = sorted({run["command"] for run in runs}, reverse=True)
    used = sorted({f"torch {run['environment']['torch']} on {run['device']}" for run in runs})
    return (
        f"{sum(len(run['raw_correct']) for run in runs)} trainings, {', '.join(used)}, by\n\n"
        + "".join(f"    {command}\n" for command in [*commands, "python tests/bench/ladder.py table"])
        + "\nThe figures of each run are in [ladder.json](ladder.json). *not run*: the three of 6.4 million\n"
        + "parameters want a GPU, and none was at hand.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "table"))
    parser.add_argument("designs", nargs="*", help="step8, njam/step3, ...; all where none is named")
    parser.add_argument("--recipe", choices=("reference", "ours"), default="ours")
    parser.add_argument("--runs", type=Path, default=Path("runs/ladder"))
    given = parser.parse_intermixed_args()
    if given.what == "train":
        train(given.designs, given.recipe, given.runs)
    else:
        table(given.runs)


if __name__ == "__main__":
    main()
