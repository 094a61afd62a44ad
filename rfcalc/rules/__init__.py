"""What each op does to fields. Importing this package fills the one table, `RULES`; `register` adds one's own ops."""

from . import combine, loss, matmul, pointwise, reduce, resample, scan, view, window
from .registry import RULES, Call, Value, Window, named, register, rule, unknown, values
from .registry import pointwise as elementwise

__all__ = [
    "RULES", "Call", "Value", "Window", "combine", "elementwise", "loss", "matmul", "named", "pointwise", "reduce",
    "register", "resample", "rule", "scan", "unknown", "values", "view", "window",
]  # fmt: skip
