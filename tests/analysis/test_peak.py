"""The peak of live activations, worked out by hand: the same at both levels, in a new process and after any other.

The docstring of `Report` says what is counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from programs import Apply
from torch import nn
from torch.utils.checkpoint import checkpoint

import rfcalc

X = 4 * 8 * 8  # bytes of one (1, 8, 8) map; of k channels it is k of these


def conv(cin, cout, k=1, padding=0):
    return lambda: nn.Conv2d(cin, cout, k, padding=padding)


class Keeps(nn.Module):
    def forward(self, x):
        self.kept = x * 2
        return x * 3


def generated(x, a):
    def steps(y):
        for _ in range(3):
            y = a(y)
            yield y

    last = x
    for y in steps(x):
        last = y
    return last


def recurrent(x, a):
    for _ in range(50):
        x = a(x)
    return x


def chunked(x, a):
    first, second = a(x).chunk(2, 1)
    return first + second


def reused(x, a):
    y = a(x)
    y = y * 2  # the first dies when the name goes to the second
    y = y * 2
    return y * 2


def cycled(x, a):
    """A function that names itself is a cycle, and what it holds stays as long as nobody collects it."""
    y = a(x)

    def again(n):
        return y if n == 0 else again(n - 1)

    return again(1)


# What is alive at the peak, in maps of one channel.
NETS = {
    # x while the caller holds it; what a layer is given and what it gives
    "sequential": (lambda x, a, b: b(a(x)), {"a": conv(1, 4), "b": conv(4, 2)}, 1 + 4 + 2),
    "sequential module": (lambda x, m: m(x), {"m": lambda: nn.Sequential(conv(1, 4)(), conv(4, 2)())}, 1 + 4 + 2),
    "residual": (lambda x, a: a(x) + x, {"a": conv(1, 1)}, 1 + 1 + 1),
    "relu": (lambda x, a: F.relu(a(x)), {"a": conv(1, 4)}, 1 + 4 + 4),
    "relu in place": (lambda x, a: F.relu(a(x), inplace=True), {"a": conv(1, 4)}, 1 + 4),
    "relu module in place": (lambda x, a, r: r(a(x)), {"a": conv(1, 4), "r": lambda: nn.ReLU(True)}, 1 + 4),
    "dropout": (lambda x, a, d: d(a(x)), {"a": conv(1, 4), "d": nn.Dropout}, 1 + 4),
    "identity": (lambda x, a, d: d(a(x)), {"a": conv(1, 4), "d": nn.Identity}, 1 + 4),
    "view": (lambda x, a: a(x).flatten(2).transpose(1, 2).unsqueeze(0), {"a": conv(1, 4)}, 1 + 4),
    "view keeps all of it": (lambda x, a: a(a(x)[:, :1])[:, :1] + x, {"a": conv(1, 4)}, 1 + 4 + 4),
    "cat": (lambda x, a: torch.cat([x, a(x)], 1), {"a": conv(1, 2)}, 1 + 2 + 3),
    "stack": (lambda x, a: torch.stack([a(x), a(x)]), {"a": conv(1, 2)}, 1 + 2 + 2 + 4),
    "global pool": (lambda x, a: F.adaptive_avg_pool2d(a(x), 1), {"a": conv(1, 4)}, 1 + 4 + 4 / 64),
    "mean": (lambda x, a: a(x).mean((2, 3)), {"a": conv(1, 4)}, 1 + 4 + 4 / 64),
    "chunk": (chunked, {"a": conv(1, 4)}, 1 + 4 + 2),
    "split": (lambda x, a: a(x).split(2, 1)[0] * 2, {"a": conv(1, 4)}, 1 + 4 + 2),
    "a product and a sum": (lambda x, a: a(x) * a(x) + a(x), {"a": conv(1, 2)}, 1 + 2 + 2 + 2),
    "a sum of products": (lambda x, a: a(x) * 2 + a(x) * 3, {"a": conv(1, 2)}, 1 + 2 + 2 + 2),
    "pad": (lambda x, a: F.pad(a(x), (4, 4, 4, 4)), {"a": conv(1, 1)}, 1 + 1 + 4),
    "pad and add": (lambda x, a, b: F.pad(a(x), (4,) * 4) + b(x), {"a": conv(1, 1), "b": conv(1, 1, 1, 4)}, 1 + 12),
    "pad reflecting": (lambda x, a: F.pad(a(x), (4,) * 4, mode="reflect"), {"a": conv(1, 1)}, 1 + 1 + 4),
    "pad around": (lambda x, a: F.pad(a(x), (4,) * 4, mode="circular"), {"a": conv(1, 1)}, 1 + 1 + 4),
    "kept in self": (lambda x, k: k(x) * 4, {"k": Keeps}, 1 + 1 + 1 + 1),
    "kept by a name": (lambda x, a: [y := a(x), y * 2, y * 2][-1], {"a": conv(1, 4)}, 1 + 4 + 4 + 4),
    "reused name": (reused, {"a": conv(1, 4)}, 1 + 4 + 4),
    "recurrent": (recurrent, {"a": conv(1, 1)}, 1 + 1 + 1),
    "generator": (generated, {"a": conv(1, 1)}, 1 + 1 + 1),
    "checkpoint": (lambda x, a: checkpoint(lambda y: a(a(y)), x, use_reentrant=False), {"a": conv(1, 1)}, 1 + 1 + 1),
    "cumsum": (lambda x, a: a(x).cumsum(2) + x, {"a": conv(1, 1)}, 1 + 1 + 1),
    "softmax": (lambda x, a: a(x).softmax(1), {"a": conv(1, 2)}, 1 + 2 + 2),
    "log sigmoid": (lambda x, a: F.logsigmoid(a(x)), {"a": conv(1, 2)}, 1 + 2 + 2),
    "unfold": (lambda x: F.unfold(x, 3, padding=1), {}, 1 + 9),
    "interpolate": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), {}, 1 + 4),
    "written": (lambda x, a: a(x).mul_(2).add_(x), {"a": conv(1, 1)}, 1 + 1),
    "a cycle of its own": (cycled, {"a": conv(1, 2)}, 1 + 2),
}


def net(name):
    function, held, _ = NETS[name]
    return Apply(function, **{k: make() for k, make in held.items()})


def peaks(names, levels):
    return {
        name: [rfcalc.analyze(net(name), (1, 8, 8), level=n).peak_activation_bytes for n in levels] for name in names
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETS)
def test_by_hand(name):
    assert peaks([name], (2, 1, 2, 1))[name] == [NETS[name][2] * X] * 4


IN_NEW = "import sys, json, warnings; warnings.simplefilter('ignore'); sys.path[:0] = {path!r}; import test_peak as t; "


@pytest.mark.parametrize("levels", [(1, 2), (2, 1)])
@pytest.mark.parametrize("backwards", [False, True])
def test_in_a_new_process_and_in_any_order(levels, backwards):
    names = sorted(NETS, reverse=backwards)
    here = Path(__file__).parent
    start = IN_NEW.format(path=[str(here), str(here.parent)])
    code = f"{start}print(json.dumps(t.peaks({names!r}, {levels!r})))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(out.splitlines()[-1]) == {name: [NETS[name][2] * X] * 2 for name in names}
