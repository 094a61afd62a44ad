"""What each op does to fields. Importing this package fills the one table, `RULES`; `register` adds one's own ops."""

from rfcalc.analysis.rules import (
    backward,
    combine,
    indexing,
    loss,
    matmul,
    pointwise,
    reduce,
    resample,
    scan,
    shuffle,
    view,
    window,
)
from rfcalc.analysis.rules.registry import RULES, Call, Value, Window, named, register, rule, unknown, values
from rfcalc.analysis.rules.registry import pointwise as elementwise

__all__ = [
    "RULES", "Call", "Value", "Window", "backward", "combine", "elementwise", "indexing", "loss", "matmul", "named",
    "pointwise", "reduce", "register", "resample", "rule", "scan", "shuffle", "unknown", "values", "view", "window",
]  # fmt: skip
