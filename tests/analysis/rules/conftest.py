"""What the tables of the rule files share: build an argument, call a rule, read its answer as intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch

from rfcalc.analysis.field import Field, identity, written_out
from rfcalc.analysis.memo import forget
from rfcalc.analysis.parts import EMPTY, dense
from rfcalc.analysis.rules import RULES, Call, Value


class Answer(NamedTuple):
    """Per input axis, at every output position in row-major order: exact and unclipped interval (None: empty)."""

    exact: tuple[list[Any], ...]
    free: tuple[list[Any], ...]
    jumps: tuple[Fraction, ...]
    window: Any
    approx: frozenset[str]


class Rules:
    @staticmethod
    def image(*shape: int, axes: Sequence[int] | None = None) -> Value:
        """An input of that shape: axis i of the analysis runs along tensor dim `axes[i]` (all from the third on)."""
        dims = range(2, len(shape)) if axes is None else axes
        return Value(shape, Field(tuple(identity(shape[d], d) for d in dims)))

    @staticmethod
    def weight(*shape: int) -> Value:
        return Value(shape)

    @staticmethod
    def const(data: Any) -> Value:
        t = torch.as_tensor(data)
        return Value(tuple(t.shape), None, t)

    @staticmethod
    def run(op: str, out: Any, *args: Any, **kwargs: Any) -> Any:
        """The answer (or answers, when `out` lists several shapes)."""
        shapes = (out,) if not out or isinstance(out[0], int) else tuple(out)
        call = Call(op, shapes)
        found = RULES[op](call, *args, **kwargs)
        many = found if isinstance(found, tuple) else (found,)
        answers = [None if f is None else read(f, s, call.window) for f, s in zip(many, shapes, strict=True)]
        return answers if len(shapes) > 1 else answers[0]

    read = staticmethod(lambda field, shape: read(field, shape, None))


def read(field: Field, shape: tuple[int, ...], window: Any) -> Answer:
    exact, free = [], []
    for axis in written_out(field).axes:
        bounds, dims = dense(axis.parts, shape)
        positions = list(product(*(range(n) for n in shape)))
        cells = [bounds[(slice(None), *(p[d] for d in dims))] for p in positions]
        exact.append([None if c[0] >= EMPTY // 2 else (int(c[0]), int(-c[1])) for c in cells])
        free.append([None if c[2] >= EMPTY // 2 else (int(c[2]), int(-c[3])) for c in cells])
    return Answer(tuple(exact), tuple(free), tuple(a.jump for a in field.axes), window, field.approx)


@pytest.fixture
def rules() -> Iterator[type[Rules]]:
    yield Rules
    forget()
