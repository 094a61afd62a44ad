"""Level 2: common torch functions and plain layers answered before torch does, by the same rules as level 1.

torch computes the shape of an element-wise op on the meta device in hundreds of microseconds; here it takes a few.
Files are named after the families of `rules/`. Importing this package fills the one table, `SHORTCUTS`.
"""

from rfcalc.analysis.fast import matmul, pointwise, reduce, view, window
from rfcalc.analysis.fast.layers import LEVEL_2
from rfcalc.analysis.fast.registry import SHORTCUTS

__all__ = ["LEVEL_2", "SHORTCUTS", "matmul", "pointwise", "reduce", "view", "window"]
