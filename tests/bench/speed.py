"""How fast rfcalc is, beside torchinfo and a bare forward on the meta device. Prints the README's tables.

    python tests/bench/speed.py [--only models,layers,build,command,memory]

Medians of back-to-back runs in one process; every section says what it measured. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torchinfo
import torchvision
from tabulate import tabulate
from torch import Tensor, nn

import rfcalc

ROOT = Path(__file__).parents[2]
MODELS = ("resnet50", "resnet152", "densenet121", "vit_b_16")


def median_ms(run: Callable[[], object], runs: int = 9) -> float:
    for _ in range(3):  # the first runs fill caches, on either side
        run()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def models() -> str:
    rows = []
    for name in MODELS:
        with torch.device("meta"):
            model = torchvision.models.get_model(name).eval()
        x = torch.empty(1, 3, 224, 224, device="meta")

        def forward(model: nn.Module = model, x: Tensor = x) -> None:
            with torch.inference_mode():
                model(x)

        ours = median_ms(lambda model=model: rfcalc.analyze(model, (3, 224, 224)))
        bare = median_ms(forward, 5)
        info = median_ms(
            lambda model=model: torchinfo.summary(model, (1, 3, 224, 224), device="meta", verbose=0), 5
        )  # fmt: skip
        rows.append([name, f"{ours:.1f}", f"{bare:.1f}", f"{info:.1f}", f"{info / ours:.1f}", f"{bare / ours:.1f}"])
    design = rfcalc.load_design(str(ROOT / "models/step8.py"))
    with torch.device("meta"):
        net = design.build_real()
    step = median_ms(lambda: rfcalc.analyze(net, design.input_shape), 51)
    info = median_ms(lambda: torchinfo.summary(net, (1, 1, 28, 28), device="meta", verbose=0), 9)
    rows.append(["models/step8.py", f"{step:.2f}", "", f"{info:.1f}", f"{info / step:.1f}", ""])
    head = ["ms", "rfcalc.analyze", "meta forward", "torchinfo", "torchinfo / rfcalc", "forward / rfcalc"]
    return tabulate(rows, head, "github", disable_numparse=True)


def layers() -> str:
    rows = []
    for n in (10, 100, 1_000, 10_000):
        with torch.device("meta"):
            net = nn.Sequential(*[nn.Conv2d(4, 4, 3, padding=1) for _ in range(n)])
        t = median_ms(lambda net=net: rfcalc.analyze(net, (4, 32, 32)), 5 if n < 10_000 else 3)
        rows.append([f"{n:,}", f"{t:.1f}", f"{t / n * 1e3:.0f}"])
    return tabulate(rows, ["layers", "ms", "us per layer"], "github", disable_numparse=True)


def build() -> str:
    rows = []
    for name in (*MODELS, "swin_t"):
        make = getattr(torchvision.models, name)
        design = rfcalc.load_design(f"torchvision.models:{name}")
        plain, ours = median_ms(make, 5), median_ms(design.build, 9)
        rows.append([name, f"{plain:.0f}", f"{ours:.1f}", f"{plain / ours:.0f}"])
    return tabulate(rows, ["construction, ms", "plain", "rfcalc", "times faster"], "github", disable_numparse=True)


def command() -> str:
    """Whole processes, in turn, so that drift of the machine hits both."""
    table = [str(Path(sys.executable).with_name("rfcalc")), "table", str(ROOT / "models/step8.py")]
    bare = [sys.executable, "-c", "import torch"]
    times: dict[str, list[float]] = {"table": [], "torch": []}
    for i in range(8):
        for key, cmd in (("table", table), ("torch", bare)):
            start = time.perf_counter()
            subprocess.run(cmd, check=True, stdout=subprocess.DEVNULL)
            if i:
                times[key].append(time.perf_counter() - start)
    a, b = statistics.median(times["table"]), statistics.median(times["torch"])
    ratio = statistics.median(x / y for x, y in zip(times["table"], times["torch"], strict=True))
    rows = [["rfcalc table models/step8.py", f"{a:.2f}", f"{ratio:.2f}"], ['python -c "import torch"', f"{b:.2f}", ""]]
    return tabulate(rows, ["command", "s", "ratio, pair by pair"], "github", disable_numparse=True)


class Block(nn.Module):
    """A transformer layer with grouped queries and a gated feed-forward part, at the sizes of a 70B model."""

    def __init__(self, d: int = 8192, heads: int = 64, kv: int = 8, hidden: int = 28672) -> None:
        super().__init__()
        self.heads, self.kv = heads, kv
        self.q, self.o = nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False)
        self.k, self.v = (nn.Linear(d, d // heads * kv, bias=False) for _ in range(2))
        self.norm1, self.norm2 = nn.RMSNorm(d), nn.RMSNorm(d)
        self.gate, self.up = nn.Linear(d, hidden, bias=False), nn.Linear(d, hidden, bias=False)
        self.down = nn.Linear(hidden, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        y = self.norm1(x)
        q = self.q(y).view(b, t, self.heads, -1).transpose(1, 2)
        k, v = (p(y).view(b, t, self.kv, -1).transpose(1, 2) for p in (self.k, self.v))
        k, v = (z.repeat_interleave(self.heads // self.kv, 1) for z in (k, v))
        a = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(a.transpose(1, 2).reshape(b, t, d))
        y = self.norm2(x)
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


def memory() -> str:
    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    small = nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 8))
    rfcalc.analyze(small, (8,))
    before = peak()
    start = time.perf_counter()
    with torch.device("meta"):
        model = nn.Sequential(
            nn.Embedding(128256, 8192),
            *[Block() for _ in range(80)],
            nn.RMSNorm(8192),
            nn.Linear(8192, 128256, bias=False),
        )
    report = rfcalc.analyze(model, (2048,))
    seconds = time.perf_counter() - start
    rows = [[f"{report.params / 1e9:.1f}", f"{seconds:.1f}", f"{peak() - before:.0f}"]]
    head = ["10^9 parameters, 2,048 tokens", "built and analysed, s", "growth of peak memory, MB"]
    return tabulate(rows, head, "github", disable_numparse=True)


SECTIONS = {"models": models, "layers": layers, "build": build, "command": command, "memory": memory}


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}\n")
    # The memory section comes first: a peak that others have raised would hide its own.
    for name in sorted(parser.parse_args().only.split(","), key=lambda s: s != "memory"):
        print(SECTIONS[name](), "\n", flush=True)


if __name__ == "__main__":
    main()
