"""One small hand-made network per op, family by family: importing this package fills `CASES`.

A file is named after the family of `rfcalc/analysis/rules/` whose ops its cases reach; the rest is named by what it is.
"""

from . import (  # noqa: F401
    backward,
    indexing,
    low_level,
    matmul,
    networks,
    pointwise,
    quantized,
    reduce,
    resample,
    sampled,
    scan,
    view,
    window,
)  # fmt: skip
from .registry import CASES, Case

__all__ = ["CASES", "Case"]
