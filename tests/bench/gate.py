"""How long `rfcalc check` takes over 100 designs, beyond `import torch`. Prints the README's table.

    python tests/bench/gate.py

Whole commands in turn with `python -c "import torch"`, so that drift of the machine hits both; medians of seven pairs.
The 30 designs of the ladders are copied under several names to make 100 distinct files. Run it on a quiet machine.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import torch
from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[2]
RFCALC = Path(sys.executable).with_name("rfcalc")
COUNT, PAIRS = 100, 7


def filled(folder: Path, designs: Sequence[str]) -> Path:
    """A folder with COUNT copies of the designs, under the built-in budget."""
    folder.mkdir()
    (folder / "pyproject.toml").write_text("[tool.rfcalc]\n")
    for number, design in enumerate(islice(cycle(designs), COUNT)):
        shutil.copy(ROOT / design, folder / f"design{number:02}.py")
    return folder


def seconds(*command: object) -> float:
    start = time.perf_counter()
    found = subprocess.run([*map(str, command)], stdout=subprocess.DEVNULL, check=False)
    assert found.returncode in (0, 1), command
    return time.perf_counter() - start


def rejected(*arguments: object) -> int:
    found = subprocess.run(
        [str(RFCALC), "check", *map(str, arguments), "--format", "json"], capture_output=True, text=True, check=False
    )
    summary: dict[str, int] = json.loads(found.stdout)["summary"]
    assert summary["passed"] + summary["rejected"] == COUNT, summary
    return summary["rejected"]


def table() -> str:
    ladders = json.loads((ROOT / "tests/golden/ladders.json").read_text())["designs"]
    passing = [known["file"] for known in ladders if known["params"] <= 8_000 and known["rf_final"] >= 28]
    rows = []
    with tempfile.TemporaryDirectory() as place:
        mixed = filled(Path(place, "mixed"), [known["file"] for known in ladders])
        good = filled(Path(place, "good"), passing)
        strict = ("--max-params", 4_000, "--min-rf", 40)
        for name, arguments in (
            ("the ladders' passing ones", [good]),
            ("the ladders", [mixed]),
            ("the ladders, stricter limits", [mixed, *strict]),
            ("the ladders, --jobs 2", [mixed, "--jobs", 2]),
        ):
            pairs = [
                (seconds(RFCALC, "check", *arguments), seconds(sys.executable, "-c", "import torch"))
                for _ in range(PAIRS)
            ]
            whole = statistics.median(a for a, _ in pairs)
            beyond = statistics.median(a - b for a, b in pairs)
            rows.append([name, rejected(*arguments), f"{whole:.2f}", f"{beyond:.2f}"])
    head = [f"{COUNT} designs", "rejected, each with advice", "rfcalc check, s", "beyond import torch, s"]
    return tabulate(rows, head, "github", disable_numparse=True)


if __name__ == "__main__":
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}, {os.cpu_count()} cores\n")
    print(table())
