"""What stands in for functions with vanishing or sparse gradients: one file per family, named as in `analysis/rules/`.

Importing this package fills the one table, `SURROGATES`.
"""

from rfcalc.proof.surrogates import indexing, loss, matmul, pointwise, reduce, resample, scan, view, window
from rfcalc.proof.surrogates.registry import SURROGATES

__all__ = ["SURROGATES", "indexing", "loss", "matmul", "pointwise", "reduce", "resample", "scan", "view", "window"]
