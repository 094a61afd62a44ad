"""What each ATen op does to fields. Importing this package fills the one table, `RULES`."""

from . import combine, loss, matmul, pointwise, reduce, resample, scan, view, window
from .registry import RULES, Call, Value, Window, unknown, values
from .registry import pointwise as elementwise

__all__ = [
    "RULES", "Call", "Value", "Window", "combine", "elementwise", "loss", "matmul", "pointwise", "reduce", "resample",
    "scan", "unknown", "values", "view", "window",
]  # fmt: skip
