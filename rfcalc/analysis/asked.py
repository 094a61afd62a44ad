"""Calls of which only torch's CPU kernels know whether they are refused: they are asked, on small tensors of ones.

Kernels for storage-less tensors accept dtypes that no other kernel takes, above all whole numbers, and leave some
checks to the kernel that would compute. A refusal of the CPU counts where nothing but the dtype can be the reason: the
same call with fractions alone passes. Of the ops in `_CHECKED` every refusal counts, as it cannot be for the numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from rfcalc.analysis.values import map_tensors

# Their kernels refuse shapes and numbers given as arguments that those for storage-less tensors accept.
_CHECKED = frozenset("bucketize searchsorted complex polar uniform multinomial index_add masked_scatter".split())
_LOW = frozenset((torch.float16, torch.bfloat16))  # which kernels take these is a matter of the machine
_LARGE, _SHRUNK = 1 << 14, 16  # beyond so many elements every dim is cut to this size
_ANSWERS: dict[Any, str] = {}
_MOST = 4096


def refused_by_cpu(
    func: Any, op: str, args: Sequence[Any], kwargs: dict[str, Any], tensors: Sequence[Tensor], integers: bool
) -> str:
    """Why the CPU refuses this call of an op, in its own words; "" where it does not or none can tell.

    `integers`: the run itself chose whole numbers for its input, so that they are no reason to refuse anything.
    """
    dtypes = {t.dtype for t in tensors}
    kinds = dtypes - {torch.int64} if integers else dtypes
    whole = {d for d in kinds if not d.is_floating_point}
    checked = op in _CHECKED
    if not (whole or len(kinds) > 1 or checked) or dtypes & _LOW or any(t.layout is not torch.strided for t in tensors):
        return ""
    large = sum([t.numel() for t in tensors]) > _LARGE
    if checked and (large or (integers and torch.int64 in dtypes)):
        return ""
    twins = [_Twin(t, large, checked) for t in tensors]
    rest = repr(map_tensors([list(args), list(kwargs.items())], lambda t: ...))
    key = (func, rest, tuple([(t.dtype, t.shape) for t in twins]), checked)
    if key not in _ANSWERS:
        if len(_ANSWERS) > _MOST:
            _ANSWERS.clear()
        _ANSWERS[key] = _ask(func, args, kwargs, twins, checked)
    return _ANSWERS[key]


class _Twin:
    """What is made in the place of a tensor."""

    __slots__ = ("dtype", "fill", "shape")

    def __init__(self, t: Tensor, large: bool, checked: bool) -> None:
        self.shape = tuple([min(n, _SHRUNK) for n in t.shape]) if large else tuple(t.shape)
        self.dtype = t.dtype
        self.fill = 0 if checked and t.dtype in (torch.int64, torch.bool) else 1  # an index, a mask; a divisor

    def made(self, dtype: torch.dtype | None) -> Tensor:
        return torch.full(self.shape, self.fill, dtype=dtype or self.dtype)


def _ask(func: Any, args: Any, kwargs: Any, twins: Sequence[_Twin], checked: bool) -> str:
    with torch._C.DisableTorchFunction(), _disable_current_modes(), torch.random.fork_rng(devices=[]):
        why = _says(func, args, kwargs, [t.made(None) for t in twins])
        if why and (checked or not _says(func, args, kwargs, [t.made(torch.float32) for t in twins])):
            return why
    return ""


def _says(func: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor]) -> str:
    made = iter(tensors)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            func(*map_tensors(list(args), lambda _: next(made)), **_mapped(kwargs, made))
        except Exception as error:  # whatever a kernel raises is its answer
            return " ".join(str(error).split()) or type(error).__name__
    return ""


def _mapped(kwargs: dict[str, Any], made: Any) -> dict[str, Any]:
    device = {"device": torch.device("cpu")} if kwargs.get("device") is not None else {}
    return {k: map_tensors(v, lambda _: next(made)) for k, v in kwargs.items()} | device
