"""Numbers that leave torch and come back: `y * x.mean().item()`, `torch.from_numpy(y.numpy())`.

No rule sees the way they take. A run on real values is therefore made twice, on other inputs: an op that was given
other plain numbers, or another tensor from outside, the second time was given numbers that follow from the input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rfcalc.analysis.field import Field
from rfcalc.analysis.parts import EMPTY, Shape
from rfcalc.analysis.values import KEY

_LARGEST = 1 << 22  # a tensor from outside that has more elements is taken to be a constant
_Record = tuple[str, tuple[Shape, ...], tuple[Any, ...]]


class Numbers:
    """What the ops of one run were given, to be compared with those of the run before, if there was one."""

    def __init__(self, before: Numbers | None = None) -> None:
        self.records: list[_Record] = []
        self._before = iter(before.records) if before is not None else iter(())

    def follow_the_input(self, op: str, args: Any, outs: Sequence[Tensor], weights: Any) -> bool:
        """Was this op, the next one, given other numbers in the run before?

        Where a branch or a length follows the input the two cannot be compared; the report says that values were used.
        """
        record = (op, tuple(tuple(t.shape) for t in outs), tuple(_numbers(args, weights)))
        self.records.append(record)
        was = next(self._before, None)
        if was is not None and was[0] != op:
            self._before = iter(())
        return was is not None and was[:2] == record[:2] and was[2] != record[2]


def _numbers(given: Any, weights: Any) -> Iterator[Any]:
    for v in given:
        if isinstance(v, int | float | complex):
            yield repr(v)
        elif isinstance(v, list | tuple):
            yield from _numbers(v, weights)
        elif isinstance(v, Tensor) and KEY not in v.__dict__ and id(v) not in weights:
            yield _bytes_of(v)


def _bytes_of(t: Tensor) -> bytes:
    if t.device.type != "cpu" or not 0 < t.numel() <= _LARGEST:
        return b""
    t = t.detach() if t.layout is torch.strided else t.to_dense()
    t = t.dequantize() if t.is_quantized else t.resolve_conj().resolve_neg()
    return t.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def sees_no_less(field: Field, whole: Field) -> bool:
    """Does a tensor depend at every position on all that `whole` names, which is the same everywhere?"""
    for a, w in zip(field.axes, whole.axes, strict=True):
        least = [p.bounds.reshape(len(p.bounds), -1).max(1, initial=-EMPTY) for p in a.parts if p.span is None]
        if not all(any((b <= q.bounds).all() for b in least) for q in w.parts):
            return False
    return True
