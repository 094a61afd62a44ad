"""A forward with threads of its own is refused in one line where they compute, and else left alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from programs import Apply
from torch import nn

import rfcalc

both_levels = pytest.mark.parametrize("level", [1, 2])


def pooled(x, m):
    with ThreadPoolExecutor(2) as pool:
        return sum(f.result() for f in [pool.submit(m, x), pool.submit(m, x)])


def plain(x, m):
    found = []
    thread = threading.Thread(target=lambda: found.append(m(x)))
    thread.start()
    thread.join()
    return found[0] + x[:, :, 1:-1, 1:-1]


@both_levels
@pytest.mark.parametrize("forward", [pooled, plain])
def test_threads_that_compute(forward, level):
    start = threading.Thread.start
    with pytest.raises(rfcalc.ForwardError, match="calls `conv2d` of torch in a thread that it starts"):
        rfcalc.analyze(Apply(forward, m=nn.Conv2d(1, 1, 3)), (1, 8, 8), level=level)
    assert threading.Thread.start is start


@both_levels
def test_threads_that_do_not(level):
    def forward(x, m):
        thread = threading.Thread(target=lambda: x.shape)
        thread.start()
        thread.join()
        return m(x)

    assert rfcalc.analyze(Apply(forward, m=nn.Conv2d(1, 1, 3)), (1, 8, 8), level=level).rf_output == (3, 3)
