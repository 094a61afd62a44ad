"""What stands in for functions with vanishing or sparse gradients: one file per family, named as in `analysis/rules/`.

Importing this package fills the one table, `SURROGATES`; `LINEAR` names the functions that need none.
"""

from rfcalc.proof.surrogates import backward, indexing, loss, matmul, pointwise, reduce, resample, scan, view, window
from rfcalc.proof.surrogates.linear import LINEAR
from rfcalc.proof.surrogates.registry import SURROGATES

__all__ = [
    "LINEAR", "SURROGATES", "backward", "indexing", "loss", "matmul", "pointwise", "reduce", "resample", "scan", "view",
    "window",
]  # fmt: skip
