"""What a proof is made of: one comparison of a box, and a finished run that boxes are measured from."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from rfcalc.errors import InputError, RfcalcError

if TYPE_CHECKING:
    from rfcalc.analysis.report import Axis, LayerRow, Report


Box = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Check:
    """One layer at one position along one input axis: what the report says and what the gradient shows.

    A row that the report itself calls approximate has to contain the measured box; any other has to equal it. `kind`:
    "exact", measured on this input, or "unclipped", measured on an enlarged one (`enlarged.py`).
    """

    layer: str
    position: tuple[int, ...]
    axis: Axis
    expected: Box | None
    measured: Box | None
    exact: bool = True
    kind: Literal["exact", "unclipped"] = "exact"

    @property
    def agrees(self) -> bool:
        if self.exact or self.expected is None or self.measured is None:
            return self.expected == self.measured or (self.measured is None and not self.exact)
        return self.expected[0] <= self.measured[0] and self.measured[1] <= self.expected[1]


@dataclass(frozen=True)
class Oracle:
    """One finished run: the inputs as leaves, and the output of every call that was asked for (None: no gradient).

    Of an input of integers or flags the leaf is the real tensor that stands for it; of one whose numbers are structure
    it has no gradient.
    `stopped`: why the forward went no further, where as much as it did was enough (`replay(partial=True)`).
    `stretched`: the calls with `align_corners`, which fit a map between its ends, however long it is.
    """

    leaves: tuple[Tensor, ...]
    outputs: Mapping[int, Tensor | None]
    seed: int = 0
    stopped: str = ""
    stretched: frozenset[int] = frozenset()

    def measure(
        self, call: int, grid: Sequence[int], position: Sequence[int], axes: Sequence[Axis]
    ) -> tuple[Box | None, ...]:
        """Per axis, the box of input indices that output `position` (an index for each dim of `grid`) depends on."""
        return tuple(_box(touched) for touched in self.touched(call, grid, position, axes))

    def touched(
        self, call: int, grid: Sequence[int], position: Sequence[int], axes: Sequence[Axis]
    ) -> tuple[Tensor | None, ...]:
        """Per axis, for each input index whether output `position` depends on a pixel there; None: on nothing."""
        out = self.outputs[call]
        if out is None:
            raise RfcalcError(f"call {call} has no gradient: its output is not made of real numbers")
        where: list[Any] = [slice(None)] * out.ndim
        for dim, index in zip(grid, position, strict=True):
            where[dim] = index
        picked = out[tuple(where)]
        generator = torch.Generator().manual_seed(self.seed)
        weights = positive(picked.shape, generator)
        if picked.is_complex():
            weights = torch.complex(weights, positive(picked.shape, generator))
        asked = [leaf for leaf in self.leaves if leaf.requires_grad]
        grads = iter(torch.autograd.grad(picked, asked, weights, retain_graph=True, allow_unused=True))
        found = [next(grads) if leaf.requires_grad else None for leaf in self.leaves]
        return tuple(_touched(found[a.input], a.dim) for a in axes)

    def depends(self, call: int, on: int) -> bool:
        """Whether the output of one call is made of that of another."""
        out, source = self.outputs[call], self.outputs[on]
        if out is None or source is None or source.grad_fn is None:
            return False
        made_by = source.grad_fn.next_functions[0][0]  # behind the copy that we keep
        seen: set[Any] = set()
        ahead: list[Any] = [out.grad_fn]
        while ahead:
            node = ahead.pop()
            if node is made_by:
                return True
            if node is not None and node not in seen:
                seen.add(node)
                ahead.extend(before for before, _ in node.next_functions)
        return False

    def check(self, report: Report, layers: Sequence[str] | None = None, positions: int = 5) -> Iterator[Check]:
        """Every measurable row of the report (or those named) at some positions, along every axis."""
        for row in rows_named(report, layers):
            if self.outputs.get(row.call) is None:
                continue
            for position in positions_of(row.n_out, positions, self.seed):
                # A flattened map prints as 1x1 and has no grid: its one position is the whole tensor.
                measured = self.measure(row.call, row.grid, position[: len(row.grid)], report.axes)
                regions = report.region(row.name, position)
                for region, box in zip(regions, measured, strict=True):
                    yield Check(row.name, position, region.axis, region.exact, box, row.exact)

    def unmeasured(self, report: Report, layers: Sequence[str] | None = None) -> dict[str, str]:
        """The rows that `check` cannot try, by name, and why."""
        found = {}
        for row in rows_named(report, layers):
            if self.outputs.get(row.call) is None:
                found[row.name] = "no gradient reaches it"  # indices, flags, and what is made of no measured input
            elif not all(row.n_out):
                found[row.name] = "its map is empty"
        return found


def positions_of(sizes: Sequence[int], count: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Distinct positions of a grid: the first corner, an edge, the centre, the last corner, another edge, then any.

    >>> positions_of([5, 7], 4)
    [(0, 0), (0, 3), (2, 3), (4, 6)]
    """
    if not all(sizes):
        return []  # an empty map has no position
    if not sizes:
        return [()]
    last = tuple(n - 1 for n in sizes)
    middle = tuple(n // 2 for n in sizes)
    rng = random.Random(seed)
    some = (tuple(rng.randrange(n) for n in sizes) for _ in range(4 * count))
    chosen = ((0,) * len(sizes), (0, *middle[1:]), middle, last, (*middle[:-1], last[-1]))
    return list(dict.fromkeys(itertools.chain(chosen, some)))[:count]


def rows_named(report: Report, layers: Sequence[str] | None) -> list[LayerRow]:
    if layers is None:
        return list(report.rows)
    known = {row.name: row for row in report.rows}
    unknown = [name for name in layers if name not in known]
    if unknown:
        raise InputError(f"no layer {unknown[0]!r} in the report; `rfcalc table --all` lists the names")
    return [known[name] for name in layers]


def misaligned(what: str) -> RfcalcError:
    return RfcalcError(f"the oracle's run does not line up with the report: {what}; is the forward deterministic?")


def _touched(grad: Tensor | None, dim: int) -> Tensor | None:
    if grad is None:
        return None
    if not bool(torch.isfinite(grad).all()):
        raise RfcalcError("the gradient overflows float64: this network is too deep for the oracle")
    return (grad != 0).any(dim=[d for d in range(grad.ndim) if d != dim]) if grad.ndim > 1 else grad != 0


def _box(touched: Tensor | None) -> Box | None:
    if touched is None or not touched.any():
        return None
    found = touched.nonzero()
    return int(found[0]), int(found[-1])


def positive(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.rand(tuple(shape), generator=generator, dtype=torch.float64) + 0.5
