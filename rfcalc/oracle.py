"""The gradient proof: which input positions does one output position of the real network depend on?

It shares nothing with the analysis but the report's rows: no rule and no field is used here. The model is copied, its
weights are made positive, and its own forward runs once in float64 under a function mode which replaces every
function with vanishing or sparse gradients by a positive *surrogate* of the same dependence: an activation by the
identity, a maximum by a mean. All that is left is sums and products of positive numbers, where gradients cannot
cancel, so the bounding box of the non-zero input gradient of one output position is exactly what it depends on.

Calls are numbered as in `calls.py`, which is how a row of the report finds its tensor here.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import random
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.parameter import UninitializedBuffer, is_lazy
from torch.overrides import TorchFunctionMode

from .calls import call_name, is_query
from .errors import ForwardError, InputError, RfcalcError
from .inputs import READS_INDICES, Inputs, Leaf, checked_model

if TYPE_CHECKING:
    from .inputs import Axis
    from .report import LayerRow, Report

Box = tuple[int, int]
_NEGLIGIBLE = 1e-6  # an interpolation weight below this is rounding noise, not a tap


# ------------------------------------------------------------------------------------------------- what is proved


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
        weights = _positive(picked.shape, generator)
        if picked.is_complex():
            weights = torch.complex(weights, _positive(picked.shape, generator))
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
        for row in _rows(report, layers):
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
        for row in _rows(report, layers):
            if self.outputs.get(row.call) is None:
                found[row.name] = "no gradient reaches it"  # indices, flags, and what is made of no measured input
            elif not all(row.n_out):
                found[row.name] = "its map is empty"
        return found


def verify(
    model: nn.Module,
    input_shape: Any,
    report: Report,
    *,
    layers: Sequence[str] | None = None,
    positions: int = 5,
    seed: int = 0,
    layout: str | None = None,
) -> Iterator[Check]:
    """Compare a report with gradients of the model itself; see `prepare` for the rows that cannot be compared."""
    oracle = prepare(model, input_shape, report, layers=layers, seed=seed, layout=layout)
    return oracle.check(report, layers, positions)


def prepare(
    model: nn.Module,
    input_shape: Any,
    report: Report,
    *,
    layers: Sequence[str] | None = None,
    seed: int = 0,
    layout: str | None = None,
) -> Oracle:
    """Run the model once and keep the tensors of the report's rows.

    `input_shape` and `layout` are what the report was made with, or its `Inputs`.
    """
    inputs = Inputs.of(input_shape, layout)
    if [(a.input, a.dim) for a in inputs.axes] != [(a.input, a.dim) for a in report.axes]:
        raise InputError(f"the report was made of another input or layout than {inputs.shapes}")
    rows = _rows(report, layers)
    wanted = _wanted(rows, type(model).__name__)
    oracle = replay(model, inputs, wanted, seed=seed, indices=READS_INDICES in report.notes)
    for row in rows:
        out = oracle.outputs.get(row.call)
        if out is not None and tuple(out.shape) != tuple(row.shape_out):
            raise _misaligned(f"{row.name}: the report says shape {tuple(row.shape_out)}, found {tuple(out.shape)}")
    return oracle


def replay(
    model: nn.Module,
    input_shape: Any,
    calls: Mapping[int, str | None],
    *,
    seed: int = 0,
    indices: bool = False,
    partial: bool = False,
) -> Oracle:
    """Run a positive float64 copy of the model once. `calls`: numbers of calls to keep, with their names if known.

    `indices`: inputs of which only the shape is given hold integers. `partial`: a forward that fails is worth what it
    did. The model itself and the random state are left as they were.
    """
    inputs, model = Inputs.of(input_shape), checked_model(model)
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.get_default_dtype()
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    run = _Run(calls)
    try:
        torch.set_default_dtype(torch.float64)
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        twin = _double_copy(model)
        args, kwargs, leaves = _inputs(inputs, generator, indices, run.shadows)
        # Gradients are off around the forward, as in the analysis, so that it takes the same turns; each call of the
        # mode switches them on for itself.
        with torch.no_grad():
            if any(is_lazy(t) for t in (*twin.parameters(), *twin.buffers())):  # as the analysis does, before the run
                twin(*_map(args, torch.clone), **_map(kwargs, torch.clone))
            _make_positive(twin, generator)
            with _open_functions(), run:
                twin(*args, **kwargs)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if partial and run.number:
            return Oracle(leaves, run.kept, seed, reason, frozenset(run.stretched))
        if isinstance(error, RfcalcError):
            raise
        raise ForwardError(
            f"the model did not run on the CPU in float64, call {run.number - 1} ({run.name}): {reason}"
        ) from error
    finally:
        torch.set_default_dtype(dtype)
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
    missing = [n for n in calls if n not in run.kept]
    if missing:
        raise _misaligned(f"call {min(missing)} was not reached, the forward made {run.number} calls")
    return Oracle(leaves, run.kept, seed, "", frozenset(run.stretched))


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


def _rows(report: Report, layers: Sequence[str] | None) -> list[LayerRow]:
    if layers is None:
        return list(report.rows)
    known = {row.name: row for row in report.rows}
    unknown = [name for name in layers if name not in known]
    if unknown:
        raise InputError(f"no layer {unknown[0]!r} in the report; `rfcalc table --all` lists the names")
    return [known[name] for name in layers]


def _wanted(rows: Iterable[LayerRow], root: str) -> dict[int, str | None]:
    """Call numbers, with the function's name where the row is a functional call (a module's row is named after it)."""
    names: dict[int, str | None] = {}
    for row in rows:
        of_module = row.name.split("#")[0] == row.path or (not row.path and row.op == root.removeprefix("Parametrized"))
        names[row.call] = names.get(row.call) if of_module else row.op
    return {n: name for n, name in names.items() if n >= 0}


def _misaligned(what: str) -> RfcalcError:
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


# ----------------------------------------------------------------------------------------------- model and inputs


def _positive(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.rand(tuple(shape), generator=generator, dtype=torch.float64) + 0.5


def _double_copy(model: nn.Module) -> nn.Module:
    """A copy on the CPU in float64 and evaluation mode."""
    twin = copy.deepcopy(model, _uncopied(model))
    for name, buffer in twin.named_buffers():
        if buffer.is_meta and not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            raise InputError(f"buffer {name} has no values (device meta); build the model on the CPU for the oracle")
    if any(t.is_meta for t in itertools.chain(twin.parameters(), twin.buffers())):
        twin = twin.to_empty(device="cpu")
    for module in twin.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                setattr(module, name, value.detach().cpu().double())
    return twin.cpu().double().eval()


def _make_positive(model: nn.Module, generator: torch.Generator) -> None:
    """Positive weights, scaled by their fan-in, that are constants; neutral running statistics."""
    for name, p in model.named_parameters():
        p.requires_grad = False
        if not p.is_floating_point():
            continue
        values = _positive(p.shape, generator)
        if p.ndim >= 2 and p.numel():
            values /= p[0].numel()
        p.copy_(values * (0.1 if name.endswith("bias") else 1.0))
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.fill_(name.endswith("running_var"))


def _uncopied(model: nn.Module) -> dict[int, Any]:
    """Copies of what `deepcopy` refuses: results of a computation, as the old `weight_norm` keeps, and lazy buffers."""
    held = [v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor) and not v.is_leaf]
    lazy = [b for b in model.buffers() if is_lazy(b)]
    return {id(v): v.detach().clone() for v in held} | {id(b): UninitializedBuffer() for b in lazy}


def _inputs(
    inputs: Inputs, generator: torch.Generator, indices: bool, shadows: dict[int, tuple[Tensor, Tensor]]
) -> tuple[list[Any], dict[str, Any], tuple[Tensor, ...]]:
    """Positional and keyword arguments, and the leaves behind them, in the order of the report's inputs.

    Integers and flags have no gradient: they are fed as they are, and their leaf is a real tensor that is their shadow.
    """
    leaves: list[Tensor] = []

    def make(leaf: Leaf) -> Tensor:
        given = leaf.value
        dtype = given.dtype if given is not None else torch.int64 if indices else torch.float64
        if leaf.fixed or not leaf.letters:
            numbers = leaf.numbers(dtype, "cpu")
            leaves.append(numbers.double() if dtype.is_floating_point else numbers)
            return leaves[-1].clone()
        stand_in = _positive(leaf.shape, generator)
        if dtype.is_complex:
            stand_in = torch.complex(stand_in, _positive(leaf.shape, generator))
        leaves.append(stand_in.requires_grad_())
        fed = stand_in * 1  # a leaf must not be written to in place
        if dtype.is_floating_point or dtype.is_complex:
            return fed
        numbers = leaf.numbers(dtype, "cpu")
        shadows[id(numbers)] = (numbers, fed)
        return numbers

    args, kwargs = inputs.build(make)
    return args, kwargs, tuple(leaves)


@contextmanager
def _open_functions() -> Iterator[None]:
    """Custom `autograd.Function`s run their forward in the open, so that what it calls is seen and differentiated.

    This includes reentrant `torch.utils.checkpoint`.
    """
    function = torch.autograd.Function
    original = function.__dict__["apply"]
    plain = function.setup_context

    def apply(cls: Any, *args: Any) -> Any:
        ctx: Any = FunctionCtx()
        ctx.needs_input_grad = (False,) * len(args)
        if cls.setup_context is plain:
            return cls.forward(ctx, *args)
        out = cls.forward(*args)
        cls.setup_context(ctx, args, out)
        return out

    function.apply = classmethod(apply)
    try:
        yield
    finally:
        function.apply = original


# -------------------------------------------------------------------------------------------------------- the run


class _Run(TorchFunctionMode):
    """Numbers the calls, replaces what needs a surrogate, keeps the outputs that were asked for."""

    def __init__(self, calls: Mapping[int, str | None]) -> None:
        super().__init__()
        self.calls = calls
        self.kept: dict[int, Tensor | None] = {}
        self.number = 0
        self.name = ""
        self.stretched: set[int] = set()
        # A comparison or an index that depends on the input has no gradient. Beside such a result we keep a real tensor
        # of the same dependence (and the result itself, so that its id stays taken), for `where(x > 0, a, b)`.
        self.shadows: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = _map(args, _double), _map(kwargs or {}, _double)
        if is_query(func):
            return func(*args, **kwargs)
        number, self.number = self.number, self.number + 1
        if kwargs.get("align_corners"):
            self.stretched.add(number)
        self.name = call_name(func)
        expected = self.calls.get(number)
        if expected is not None and expected.strip("_") != self.name.strip("_"):
            raise _misaligned(f"call {number} is `{self.name}`, the report says `{expected}`")
        with torch.inference_mode(False), torch.enable_grad():
            result = _Call(func, args, kwargs, self.shadows).run()
            if number in self.calls:
                self.kept[number] = self._dependence(args[0] if result is None and args else result)
        return result

    def _dependence(self, result: Any) -> Tensor | None:
        """The first tensor of a result that depends on the input, safe from later writes in place."""
        found = (self.shadows[id(t)][1] if id(t) in self.shadows else t for t in _tensors(result))
        out = next((t for t in found if t.requires_grad), None)
        return None if out is None else out.clone()


def _map(value: Any, change: Callable[[Any], Any]) -> Any:
    """Apply to every leaf of nested tuples, lists and dicts."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(v, change) for v in value))
    if type(value) in (tuple, list):
        return type(value)(_map(v, change) for v in value)
    if type(value) is dict:
        return {k: _map(v, change) for k, v in value.items()}
    return change(value)


_DOUBLE = {torch.float16: torch.float64, torch.bfloat16: torch.float64, torch.float32: torch.float64}
_DOUBLE |= {torch.complex32: torch.complex128, torch.complex64: torch.complex128}


def _double(value: Any) -> Any:
    return _DOUBLE.get(value, value) if type(value) is torch.dtype else value


def _tensors(*values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(*value)
        elif isinstance(value, dict):
            yield from _tensors(*value.values())


@lru_cache(maxsize=512)
def _signature(func: Any) -> inspect.Signature | None:
    return inspect.signature(func) if isinstance(func, types.FunctionType) else None


def _is_torchs_own(func: Any) -> bool:
    """Not an op of a library of the user's that bears a known name."""
    name = str(getattr(func, "_qualified_op_name", None) or getattr(func, "_name", "aten::"))
    return name.startswith(("aten::", "torchvision::"))


_IN_PLACE_OPERATORS = frozenset(
    "iadd isub imul itruediv ifloordiv imod ipow imatmul iand ior ixor ilshift irshift idiv".split()
)
# Names of conversions that would leave float64.
_TO_DOUBLE = frozenset(("float", "half", "bfloat16"))


@dataclass
class _Call:
    """One call in progress. `base` is its name without the underscore of the in-place form."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shadows: dict[int, tuple[Tensor, Tensor]]
    base: str = field(init=False)
    in_place: bool = field(init=False)

    def __post_init__(self) -> None:
        raw = getattr(self.func, "__name__", "")
        name = call_name(self.func).split(".")[0]
        self.in_place = raw.strip("_") in _IN_PLACE_OPERATORS or (name.endswith("_") and not name.endswith("__"))
        self.base = name.rstrip("_") or name
        signature = _signature(self.func)
        if signature is not None and "inplace" in signature.parameters:
            bound = signature.bind(*self.args, **self.kwargs).arguments
            self.in_place = self.in_place or bool(bound.get("inplace"))
        first = next((k for k in ("input", "self") if k in self.kwargs), None)
        if first is not None and not self.args:
            rest = {k: v for k, v in self.kwargs.items() if k != first}
            self.args, self.kwargs = (self.kwargs[first],), rest

    def run(self) -> Any:
        """The result, with a surrogate's dependence where there is one."""
        every = list(_tensors(self.args, self.kwargs))
        if self.base in _TO_DOUBLE and every:
            shadow = self._shadow(every[0])
            return every[0].double() if shadow is None else shadow
        shadowed = any(id(t) in self.shadows for t in every)
        if not shadowed and not any(t.requires_grad for t in every):
            return self.real()
        self._refuse_real_indices()
        surrogate = _SURROGATES.get(self.base) if _is_torchs_own(self.func) else None
        if surrogate is None:
            result = self.real()
            return self.follow(result) if shadowed else result
        target = self.kwargs.pop("out", None)
        result = surrogate(self, *self.args, **self.kwargs)
        if target is not None:
            target.resize_(result.shape).copy_(result)
            return target
        if self.in_place and isinstance(self.args[0], Tensor) and result is not self.args[0]:
            return self.args[0].copy_(result)
        return result

    def real(self) -> Any:
        return self.func(*self.args, **self.kwargs)

    def shape(self) -> torch.Size:
        """The shape of the (first) real result."""
        return next(_tensors(self.values())).shape

    def values(self) -> Any:
        """The real result, without a gradient and without touching the arguments."""
        with torch.no_grad():
            if self.in_place:
                copies = _map((self.args, self.kwargs), lambda v: v.clone() if isinstance(v, Tensor) else v)
                return self.func(*copies[0], **copies[1])
            return self.real()

    def operands(self) -> list[Tensor]:
        """The tensors among the arguments that depend on the input, shadows in place of what they stand for."""
        found = (self._shadow(t) if id(t) in self.shadows else t for t in _tensors(self.args, self.kwargs))
        return [t for t in found if t is not None and t.requires_grad]

    def cast_shadow(self, result: Tensor, shadow: Tensor) -> Tensor:
        """Remember what a boolean or integer result depends on."""
        self.shadows[id(result)] = (result, shadow)
        return result

    def whole(self, total: Tensor) -> Tensor:
        """Arithmetic on integers that depend on the input gives integers, which go on as indices."""
        if all(t.is_floating_point() or t.is_complex() for t in _tensors(self.args, self.kwargs)):
            return total
        real: Tensor = self.values()
        return total if real.is_floating_point() or real.is_complex() else self.cast_shadow(real, total)

    def shadow_of(self, value: Any) -> Tensor | None:
        return self._shadow(value) if isinstance(value, Tensor) else None

    def seen_of(self, value: Any) -> Tensor | None:
        """What a tensor depends on the input by: itself, or its shadow; None for a constant."""
        shadow = self.shadow_of(value)
        return value if shadow is None and isinstance(value, Tensor) and value.requires_grad else shadow

    def _shadow(self, t: Tensor) -> Tensor | None:
        hit = self.shadows.get(id(t))
        return hit[1] if hit is not None else None

    def follow(self, result: Any) -> Any:
        """A view, copy or conversion of a boolean: its shadow goes through the same call."""
        if not isinstance(result, Tensor) or result.requires_grad:
            return result
        args, kwargs = _map((self.args, self.kwargs), lambda v: self.shadow_of(v) if id(v) in self.shadows else v)
        shadow = self.func(*args, **kwargs)
        if isinstance(shadow, Tensor) and shadow.requires_grad and shadow.shape == result.shape:
            if result.is_floating_point():
                return shadow
            return self.cast_shadow(result, shadow)
        return result

    def _refuse_real_indices(self) -> None:
        if self.base in _INDEXING:
            places = self.args[1:2] if self.base == "setitem" else (*self.args[1:], *self.kwargs.values())
            if any(t.requires_grad for t in _tensors(places) if self.base in ("getitem", "setitem") or t is places[-1]):
                raise InputError(
                    f"`{self.base}` takes an input as index; the oracle differentiates and cannot feed integers"
                )


_INDEXING = frozenset("getitem setitem index_select gather take take_along_dim".split())


# ----------------------------------------------------------------------------------------------------- surrogates

_SURROGATES: dict[str, Callable[..., Any]] = {}


def _surrogate(names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a stand-in, called with the `_Call` and the arguments of the call."""

    def register(fn: Callable[..., Any]) -> Callable[..., Any]:
        for name in names.split():
            assert name not in _SURROGATES, name
            _SURROGATES[name] = fn
        return fn

    return register


def _sum(parts: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """The sum, broadcast, in memory of its own."""
    total = parts[0]
    for part in parts[1:]:
        total = torch.add(total, part)
    return total.expand(tuple(shape)).clone()


def _ones(x: Tensor) -> Tensor:
    """The same dependence at value 1 (0 where it is 0: masked), so that products stay positive and in range."""
    held = x.detach()
    return torch.where(held == 0, x, _at(x, torch.ones_like(held)))


def _at(x: Tensor, value: Tensor) -> Tensor:
    """The dependence of x at another value; an infinite x depends on nothing."""
    held = x.detach()
    return torch.where(held.isfinite(), x - held.nan_to_num(), 0) + value


def _mean(x: Tensor, dims: Sequence[int]) -> Tensor:
    """The mean over dims that stay as size 1; entries of -inf are masked and take no part."""
    if x.ndim == 0:
        return x
    if x.is_complex() or not bool(x.detach().isneginf().any()):
        return x.mean(tuple(dims), keepdim=True)
    seen = ~x.detach().isneginf()
    count = seen.sum(tuple(dims), keepdim=True).clamp(min=1)
    return torch.where(seen, x, 0).sum(tuple(dims), keepdim=True) / count


def _dims(x: Tensor, dim: Any) -> tuple[int, ...]:
    """A `dim` argument; anything that is none means all dims."""
    if isinstance(dim, int) and not isinstance(dim, bool):
        return (dim,)
    if isinstance(dim, tuple | list) and dim and all(isinstance(d, int) for d in dim):
        return tuple(dim)
    return tuple(range(x.ndim))


@_surrogate(
    "relu relu6 leaky_relu elu selu celu gelu silu mish hardtanh hardswish hardsigmoid sigmoid tanh softplus softsign "
    "logsigmoid log_sigmoid threshold clamp clamp_min clamp_max clip rrelu hardshrink softshrink tanhshrink "
    "floor ceil round trunc fix frac sign sgn neg negative positive exp2 expm1 log log2 log10 log1p sqrt "
    "rsqrt square reciprocal sin cos tan asin acos atan arcsin arccos arctan sinh cosh asinh acosh atanh sinc erf erfc "
    "erfinv logit lgamma digamma i0 deg2rad rad2deg nan_to_num pow float_power xlogy ldexp heaviside copysign sub rsub "
    "subtract mul multiply div divide true_divide floordiv truediv floor_divide mod fmod remainder maximum "
    "minimum fmax fmin atan2 arctan2 hypot logaddexp logaddexp2 lerp addcmul addcdiv nextafter special_expit "
    "special_erf special_log1p special_expm1 special_logit special_entr special_xlogy bernoulli conj conj_physical "
    "resolve_conj"
)
def _pointwise(call: _Call, x: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Element by element: the sum of all operands that depend on the input. In place, a sole operand stays as it is."""
    operands = call.operands()
    alone = len(operands) == 1 and operands[0] is x
    if call.in_place and alone:
        return operands[0]
    total = _sum(operands, np.broadcast_shapes(*(t.shape for t in _tensors(call.args, call.kwargs))))
    return total if call.in_place else call.whole(total)


@_surrogate("prelu")
def _prelu(call: _Call, x: Tensor, weight: Tensor) -> Tensor:
    return x.clone()


@_surrogate("native_channel_shuffle")
def _channel_shuffle(call: _Call, x: Tensor, groups: int) -> Tensor:
    """Its own derivative is missing in torch."""
    return F.channel_shuffle(x, groups)


@_surrogate("exp")
def _exp(call: _Call, x: Tensor) -> Tensor:
    """What is masked with -inf is 0 from here on."""
    return torch.where(x.detach().isneginf(), 0, x)


@_surrogate("add radd")
def _add(call: _Call, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Real, for the sake of masks of -inf, but never a difference or with what is only compared."""
    shadowed = any(id(t) in call.shadows for t in _tensors(call.args))
    return _pointwise(call, x, *args) if kwargs.get("alpha") is not None or shadowed else call.real()


@_surrogate(
    "eq ne lt le gt ge greater greater_equal less less_equal not_equal isnan isinf isfinite isreal isneginf "
    "logical_and logical_or logical_not logical_xor and or xor invert bitwise_and bitwise_or bitwise_not bitwise_xor "
    "isclose signbit bool long int bucketize searchsorted"
)
def _compared(call: _Call, *args: Any, **kwargs: Any) -> Any:
    """The real booleans or integers, which remember in secret what they depend on."""
    result = call.real()
    if not isinstance(result, Tensor) or result.requires_grad:
        return result
    shadow = _sum(call.operands(), result.shape) if call.operands() else None
    if shadow is None or result.is_floating_point():
        return shadow if shadow is not None else result
    return call.cast_shadow(result, shadow)


@_surrogate("to type_as")
def _cast(call: _Call, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The dependence of the first tensor alone, also where the type has no gradient; the second says which type."""
    result: Tensor = call.real()
    shadow = call.shadow_of(x)
    source = x if shadow is None else shadow
    if result.requires_grad or not source.requires_grad:
        return result
    return source.clone() if result.is_floating_point() else call.cast_shadow(result, source.clone())


@_surrogate("where")
def _where(call: _Call, condition: Tensor, *branches: Any, **kwargs: Any) -> Any:
    """A known condition chooses; of one that compares the input, both branches and the condition count."""
    if call.shadow_of(condition) is None:
        return call.real()
    return _pointwise(call, condition, *branches) if branches else call.values()


@_surrogate("masked_fill")
def _masked_fill(call: _Call, x: Tensor, mask: Tensor, value: Any) -> Tensor:
    """A known mask cuts the dependence; one that compares the input adds its own."""
    shadow = call.shadow_of(mask)
    return x.masked_fill(mask, value) if shadow is None else _sum([x, shadow], x.shape)


@_surrogate("dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout")
def _dropout(call: _Call, x: Tensor, p: float = 0.5, training: bool = True, *args: Any, **kwargs: Any) -> Tensor:
    """Out of training it gives back the tensor itself."""
    return x.clone() if (kwargs.get("train", training) and not call.in_place) else x


@_surrogate("detach data")
def _detach(call: _Call, x: Tensor) -> Tensor:
    """A view of the same storage whose dependence goes on."""
    return x if call.in_place else x.view_as(x)


@_surrogate("numpy tolist")
def _leave(call: _Call, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    return call.func(x.detach(), *args, **kwargs)


@_surrogate("real imag angle abs absolute")
def _part(call: _Call, x: Tensor) -> Tensor:
    """Both parts, of a complex tensor; a real one is its own part."""
    if x.is_complex():
        return torch.view_as_real(x.resolve_conj()).sum(-1)
    return x if call.in_place or call.base == "real" else x.clone()


@_surrogate("polar complex")
def _complex(call: _Call, a: Tensor, b: Tensor) -> Tensor:
    """A complex number is one value: both parts depend on all that either does."""
    both = _sum(call.operands(), call.shape())
    return torch.complex(both, both)


@_surrogate("view_as_complex")
def _view_as_complex(call: _Call, x: Tensor) -> Tensor:
    both = x.sum(-1)
    return torch.complex(both, both)


@_surrogate("split chunk unbind tensor_split hsplit vsplit dsplit unsafe_split unsafe_chunk")
def _pieces(call: _Call, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    """Views one by one: autograd lets none of several views of one call be written to."""
    by_name = {"hsplit": 1 if x.ndim > 1 else 0, "vsplit": 0, "dsplit": 2}
    given = args[0] if call.base == "unbind" and args else args[1] if len(args) > 1 else 0
    dim = kwargs.get("dim", by_name.get(call.base, given))
    if call.base == "unbind":
        return tuple(x.select(dim, i) for i in range(x.shape[dim]))
    step = x.stride(dim) or 1
    real = call.values()
    return tuple(x.narrow(dim, (t.storage_offset() - x.storage_offset()) // step, t.shape[dim]) for t in real)


# reductions and running ops


@_surrogate(
    "max min amax amin aminmax median nanmedian mode var std var_mean std_mean prod nanmean nansum logsumexp sort "
    "msort argsort argmax argmin all any count_nonzero topk kthvalue quantile nanquantile norm linalg_norm "
    "linalg_vector_norm frobenius_norm _is_all_true _is_any_true"
)
def _reduction(call: _Call, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The mean over the same dims, in the shape of each real output; indices stay as they are, with a shadow."""
    if args and isinstance(args[0], Tensor) and call.base in ("max", "min"):
        return _pointwise(call, x, *args)
    # The dim comes second, after another number in some.
    second = call.base in ("topk", "kthvalue", "quantile", "nanquantile") or "norm" in call.base
    given = args[1:] if second else args
    dim = kwargs.get("dim", kwargs.get("axis", given[0] if given else None))
    if dim is None and call.base in ("sort", "argsort", "topk", "kthvalue", "mode"):
        dim = -1
    if dim is None and call.base in ("median", "nanmedian") and not given:
        dim = tuple(range(x.ndim))
    source = call.operands()[0]
    mean = _mean(source, (0,) if call.base == "msort" else _dims(x, dim))

    def shaped(value: Tensor) -> Tensor:
        there = mean.reshape(value.shape) if mean.numel() == value.numel() else mean.expand(value.shape).clone()
        return there if value.is_floating_point() else call.cast_shadow(value, there)

    real = call.values()
    if isinstance(real, Tensor):
        return shaped(real)
    return type(real)([shaped(v) for v in real])


@_surrogate("cumprod logcumsumexp cummax cummin")
def _running(call: _Call, x: Tensor, dim: int, **kwargs: Any) -> Any:
    total = x.cumsum(dim)
    real = call.values()
    return total if isinstance(real, Tensor) else type(real)((total, real[1]))


@_surrogate("diff")
def _diff(call: _Call, x: Tensor, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Tensor:
    x = torch.cat([t for t in (prepend, x, append) if t is not None], dim)
    for _ in range(n):
        x = x.narrow(dim, 1, x.shape[dim] - 1) + x.narrow(dim, 0, x.shape[dim] - 1)
    return x


@_surrogate("softmax log_softmax softmin gumbel_softmax")
def _softmax(call: _Call, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Each element with the mean of all along the dim, at value 1; what is masked with -inf becomes 0."""
    given = args[0] if args and call.base != "gumbel_softmax" else args[3] if len(args) > 3 else None
    dim = kwargs.get("dim", given)
    if dim is None:
        dim = -1 if call.base == "gumbel_softmax" else 0 if x.ndim in (0, 1, 3) else 1
    if x.ndim == 0:
        return x.clone()
    seen = ~x.detach().isneginf()
    both = torch.where(seen, x, 0) + _mean(x, (dim,))
    return torch.where(seen, _at(both, torch.ones_like(both)), 0)


# indices


@_surrogate("index_select")
def _index_select(call: _Call, x: Tensor, dim: int, index: Tensor) -> Tensor:
    """An index made of the input may pick any position."""
    shadow = call.shadow_of(index)
    if shadow is None:
        return x.index_select(dim, index)
    across = shadow.reshape([-1 if d == dim % x.ndim else 1 for d in range(x.ndim)])
    return (_mean(x, (dim,)) if x.requires_grad else 0) + across.expand(call.shape())


@_surrogate("gather")
def _gather(call: _Call, x: Tensor, dim: int, index: Tensor, **kwargs: Any) -> Tensor:
    shadow = call.shadow_of(index)
    if shadow is None:
        return x.gather(dim, index)
    return _mean(x, (dim,)).expand(index.shape) + shadow if x.requires_grad else shadow


@_surrogate("take_along_dim")
def _take_along_dim(call: _Call, x: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    if call.shadow_of(indices) is None:
        return x.take_along_dim(indices, dim)
    parts = [t for t in (call.shadow_of(indices), _mean(x, _dims(x, dim))) if t is not None and t.requires_grad]
    return _sum(parts, call.shape())


@_surrogate("getitem")
def _getitem(call: _Call, x: Tensor, index: Any) -> Any:
    result: Tensor = call.real()
    shadows = [s for s in map(call.shadow_of, _tensors(index)) if s is not None]
    if not shadows:
        return call.follow(result)
    operands = [*shadows, x] if x.requires_grad else shadows
    return _sum([t.mean() for t in operands], result.shape)


@_surrogate("setitem")
def _setitem(call: _Call, x: Tensor, index: Any, value: Any) -> Any:
    """After `x[x < 0] = y` both the old and the new may be anywhere, and so may the reason."""
    shadow = call.shadow_of(index)
    if shadow is None:
        if not isinstance(value, Tensor) or not any(t.dtype is torch.long for t in _tensors(index)):
            return call.real()
        source = torch.arange(1.0, x.numel() + 1).view(x.shape)
        source[index] = torch.arange(x.numel() + 1.0, x.numel() + 1 + value.numel()).view(value.shape)
        x.copy_(_by_number(source, x, value))
        return None
    x += shadow.reshape(*shadow.shape, *[1] * (x.ndim - shadow.ndim))
    if isinstance(value, Tensor) and value.requires_grad:
        x += value.mean()
    return None


# normalisation


@_surrogate("layer_norm rms_norm")
def _layer_norm(call: _Call, x: Tensor, shape: Sequence[int], *args: Any, **kwargs: Any) -> Tensor:
    return x + _mean(x, range(-len(shape), 0))


@_surrogate("group_norm")
def _group_norm(call: _Call, x: Tensor, groups: int, *args: Any, **kwargs: Any) -> Tensor:
    split = x.reshape(x.shape[0], groups, -1, *x.shape[2:])
    return (split + _mean(split, range(2, split.ndim))).flatten(1, 2)


@_surrogate("instance_norm")
def _instance_norm(
    call: _Call, x: Tensor, running_mean: Any = None, running_var: Any = None, weight: Any = None, bias: Any = None,
    use_input_stats: bool = True, *args: Any, **kwargs: Any,
) -> Tensor:  # fmt: skip
    return x + _mean(x, range(2, x.ndim)) if use_input_stats else x.clone()


@_surrogate("batch_norm")
def _batch_norm(
    call: _Call, x: Tensor, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
    training: bool = False, *args: Any, **kwargs: Any,
) -> Tensor:  # fmt: skip
    # torch.batch_norm, which is not a Python function, orders them weight, bias, mean, var.
    mean = running_mean if isinstance(call.func, types.FunctionType) else weight
    own = training or mean is None
    return x + _mean(x, [d for d in range(x.ndim) if d != 1]) if own else x.clone()


@_surrogate("local_response_norm")
def _local_response_norm(call: _Call, x: Tensor, size: int, *args: Any, **kwargs: Any) -> Tensor:
    """Each channel with the mean of its neighbours."""
    across = F.pad(x.movedim(1, -1), (size // 2, (size - 1) // 2)).unfold(-1, size, 1).mean(-1)
    return x + across.movedim(-1, 1)


@_surrogate("normalize")
def _normalize(call: _Call, x: Tensor, p: float = 2.0, dim: Any = 1, *args: Any, **kwargs: Any) -> Tensor:
    return x + _mean(x, _dims(x, dim))


@_surrogate("cosine_similarity pairwise_distance")
def _similarity(call: _Call, *args: Any, **kwargs: Any) -> Tensor:
    default = 1 if call.base == "cosine_similarity" else -1
    given = args[2] if len(args) > 2 and call.base == "cosine_similarity" else default
    both = reduce(torch.add, call.operands())
    return both.mean(kwargs.get("dim", given)).expand(call.shape()).clone()


@_surrogate("cdist")
def _cdist(call: _Call, a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return a.mean(-1).unsqueeze(-1) + b.mean(-1).unsqueeze(-2)


@_surrogate("cross linalg_cross")
def _cross(call: _Call, *args: Any, **kwargs: Any) -> Tensor:
    both = reduce(torch.add, call.operands())
    dim = kwargs.get("dim", args[2] if len(args) > 2 else -1)
    return _mean(both, (dim if dim is not None else -1,)).expand(call.shape()).clone()


# windows and resampling, one dim at a time


def _apply_per_dim(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Multiply the last dims by one `(n_out, n_in)` matrix each."""
    first = x.ndim - len(matrices)
    for i, matrix in enumerate(matrices):
        x = (x.transpose(first + i, -1) @ matrix.T).transpose(first + i, -1)
    return x


def _each(value: Any, n: int, default: Sequence[Any]) -> list[Any]:
    """`2`, `[2]` or `[2, 3]` as one entry per dim."""
    if value is None or (isinstance(value, tuple | list) and not value):
        return list(default)
    if not isinstance(value, tuple | list):
        return [value] * n
    return list(value) * n if len(value) == 1 else list(value)


@lru_cache(maxsize=512)
def _max_windows(n: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool) -> Tensor:
    """Which inputs each window of a max pool sees, asked of torch: the maximum of a one-hot row is 1 inside."""
    hit = F.max_pool1d(torch.eye(n)[:, None], kernel, stride, padding, dilation, ceil)
    return (hit[:, 0].T > 0.5).double()


@_surrogate("max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices")
def _max_pool(
    call: _Call, x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Any:  # fmt: skip
    """The sum over exactly the same windows."""
    n = int(call.base[8])
    kernel = _each(kernel_size, n, ())
    geometry = zip(
        x.shape[-n:], kernel, _each(stride, n, kernel), _each(padding, n, ()), _each(dilation, n, ()), strict=True
    )
    y = _apply_per_dim(x, [_max_windows(*g, ceil_mode) for g in geometry])
    return (y, call.values()[1]) if return_indices or "indices" in call.base else y


@_surrogate(
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d adaptive_max_pool1d_with_indices "
    "adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices"
)
def _adaptive_max_pool(call: _Call, x: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    pools = {"1": F.adaptive_avg_pool1d, "2": F.adaptive_avg_pool2d, "3": F.adaptive_avg_pool3d}
    y = pools[call.base[17]](x, output_size)
    return (y, call.values()[1]) if return_indices or "indices" in call.base else y


@_surrogate("lp_pool1d lp_pool2d lp_pool3d")
def _lp_pool(
    call: _Call, x: Tensor, norm_type: Any, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
) -> Tensor:
    pool: Callable[..., Tensor] = {"1": F.avg_pool1d, "2": F.avg_pool2d, "3": F.avg_pool3d}[call.base[7]]
    return pool(x, kernel_size, stride, 0, ceil_mode)


@_surrogate(
    "max_unpool1d max_unpool2d max_unpool3d fractional_max_pool2d fractional_max_pool3d "
    "fractional_max_pool2d_with_indices fractional_max_pool3d_with_indices"
)
def _scattered(call: _Call, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The data, or chance, decides where each value goes: any may go anywhere in its channel."""
    n = int(next(c for c in call.base if c.isdigit()))
    real = call.values()
    mean = _mean(x, range(-n, 0))
    if isinstance(real, Tensor):
        return mean.expand(real.shape).clone()
    return (mean.expand(real[0].shape).clone(), real[1])


@lru_cache(maxsize=512)
def _resampling(
    n: int, size: int | None, scale: float | None, dim: int, ndim: int, mode: str, options: tuple[Any, ...]
) -> Tensor:
    """The weight of each input in each output along one dim, asked of torch with one-hot rows."""
    # The other dims are 2 wide and stay so: torch's antialiasing goes astray in maps of width 1.
    probe = torch.eye(n, dtype=torch.float64).reshape(n, 1, *(n if d == dim else 1 for d in range(ndim)))
    probe = probe.repeat(1, 1, *(1 if d == dim else 2 for d in range(ndim)))
    sizes = None if size is None else [size if d == dim else 2 for d in range(ndim)]
    scales = None if scale is None else [scale if d == dim else 1.0 for d in range(ndim)]
    align, recompute, antialias = options
    out = F.interpolate(probe, sizes, scales, mode, align, recompute, antialias)
    weights = out.movedim(dim + 2, 1).reshape(n, out.shape[dim + 2], -1)[:, :, 0].T.abs()
    return torch.where(weights < _NEGLIGIBLE, 0, weights)


@_surrogate("interpolate")
def _interpolate(
    call: _Call, x: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
    align_corners: bool | None = None, recompute_scale_factor: bool | None = None, antialias: bool = False,
) -> Tensor:  # fmt: skip
    n = x.ndim - 2
    none = [None] * n
    matrices = [
        _resampling(x.shape[2 + d], length, scale, d, n, mode, (align_corners, recompute_scale_factor, antialias))
        for d, (length, scale) in enumerate(zip(_each(size, n, none), _each(scale_factor, n, none), strict=True))
    ]
    return _apply_per_dim(x, matrices)


@_surrogate("grid_sample")
def _grid_sample(call: _Call, x: Tensor, grid: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Where it reads is data: anywhere in the map, and the coordinates of this position."""
    return (_mean(x, range(2, x.ndim)) + grid.mean(-1).unsqueeze(1)).expand(call.shape()).clone()


@_surrogate("affine_grid")
def _affine_grid(call: _Call, theta: Tensor, size: Any, *args: Any, **kwargs: Any) -> Tensor:
    return _mean(theta, range(theta.ndim)).expand(call.shape()).clone()


@_surrogate("deform_conv2d roi_align roi_pool ps_roi_align ps_roi_pool")
def _anywhere(call: _Call, *args: Any, **kwargs: Any) -> Tensor:
    return reduce(torch.add, [t.mean() for t in call.operands()]).expand(call.shape()).clone()


@_surrogate("scatter index_copy index_put _unsafe_index_put put")
def _written(call: _Call, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Where several values go to one place the last one stays; torch's derivative gives to all of them."""
    accumulate = kwargs.get("accumulate", args[2] if call.base in ("index_put", "put") and len(args) > 2 else False)
    reduce_by = kwargs.get("reduce")
    values = [t for t in _tensors(args, kwargs) if t.is_floating_point()]
    if reduce_by is not None:
        return torch.scatter_add(x, args[0], args[1], values[0]) if values else x.clone()
    if accumulate or not values:
        return call.real()
    first = torch.arange(1.0, x.numel() + 1).view(x.shape)
    second = torch.arange(x.numel() + 1.0, x.numel() + 1 + values[0].numel()).view(values[0].shape)
    given, named = _map((args, kwargs), lambda v: second if v is values[0] else v)
    return _by_number(call.func(first, *given, **named), x, values[0])


def _by_number(source: Tensor, *items: Tensor) -> Tensor:
    """The elements of the items, which are numbered from 1, in the order of `source`."""
    return torch.cat([t.flatten() for t in items])[source.long() - 1]


@_surrogate("scatter_reduce index_reduce")
def _joined(call: _Call, x: Tensor, dim: int, index: Tensor, source: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The sum stands for whatever joins them."""
    kept = kwargs.get("include_self", True)
    if call.base == "scatter_reduce":
        return torch.scatter_add(x if kept else x.scatter(dim, index, 0.0), dim, index, source)
    return torch.index_add(x if kept else x.index_fill(dim, index, 0.0), dim, index, source)


@_surrogate(
    "mse_loss l1_loss smooth_l1_loss huber_loss soft_margin_loss binary_cross_entropy binary_cross_entropy_with_logits"
)
def _loss(call: _Call, *args: Any, reduction: str = "mean", **kwargs: Any) -> Tensor:
    every = _sum(call.operands(), np.broadcast_shapes(*(t.shape for t in _tensors(args, kwargs))))
    return every if reduction == "none" else every.mean()


@_surrogate("multi_margin_loss multilabel_margin_loss")
def _margin_loss(call: _Call, x: Tensor, target: Tensor, *args: Any, reduction: str = "mean", **kwargs: Any) -> Tensor:
    return x.mean(-1) if reduction == "none" else x.mean()


@_surrogate("pad fold")
def _filled(call: _Call, *args: Any, **kwargs: Any) -> Tensor:
    """Padding and gaps between strides are constants; at 0 they would cut later products."""
    return _lifted(call.real())


def _lifted(x: Tensor) -> Tensor:
    return x + (x.detach() == 0)


@_surrogate("glu")
def _glu(call: _Call, x: Tensor, dim: int = -1) -> Tensor:
    return _sum(x.chunk(2, dim), call.shape())


@_surrogate(
    "fft_fft fft_fft2 fft_fftn fft_ifft fft_ifft2 fft_ifftn fft_rfft fft_rfft2 fft_rfftn fft_irfft fft_irfft2 "
    "fft_irfftn fft_hfft fft_hfft2 fft_hfftn fft_ihfft fft_ihfft2 fft_ihfftn"
)
def _fourier(call: _Call, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Every frequency sees every position along the transformed dims."""
    size = kwargs.get("n", kwargs.get("s", args[0] if args else None))
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if dim is None and call.base.endswith("n") and size is not None:
        dim = tuple(range(-len(size), 0))
    if dim is None:
        dim = {"2": (-2, -1), "n": tuple(range(x.ndim))}.get(call.base[-1], -1)
    real = call.values()
    seen = x
    if call.base.startswith(("fft_fft", "fft_ifft", "fft_rfft")) and size is not None:
        for d, length in zip(_dims(x, dim), _each(size, 1, ()), strict=True):
            seen = seen.narrow(d, 0, min(length, x.shape[d]))  # a shorter transform crops first
    parts = torch.view_as_real(seen).sum(-1) if seen.is_complex() else seen
    mean = _mean(parts, _dims(x, dim)).expand(real.shape).clone()
    return torch.complex(mean, mean) if real.is_complex() else mean


# products and attention


def _positive_weights(call: _Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with constant weights made positive: a fixed filter may hold zeros and both signs."""

    def change(v: Any) -> Any:
        if not isinstance(v, Tensor) or v.requires_grad or not v.is_floating_point():
            return v
        return v.abs() + (v == 0)

    x, *rest = call.args
    return (x, *_map(rest, change)), _map(call.kwargs, change)


@_surrogate("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d conv_tbc linear bilinear")
def _weighted(call: _Call, *args: Any, **kwargs: Any) -> Tensor:
    call.args, call.kwargs = _positive_weights(call)
    return _lifted(_product(call))


@_surrogate(
    "matmul mm bmm mv dot vdot inner outer ger einsum tensordot kron addmm addmv addbmm baddbmm addr chain_matmul "
    "linalg_multi_dot linalg_matmul linalg_vecdot"
)
def _product(call: _Call, *args: Any, **kwargs: Any) -> Tensor:
    """The product of factors at value 1, or of one factor and a constant of no sign."""
    many = len(call.operands()) > 1

    def factor(v: Any) -> Any:
        if not isinstance(v, Tensor) or v.is_complex() or not v.is_floating_point():
            return v
        return (_ones(v) if many else v) if v.requires_grad else v.abs()

    args, kwargs = _map((call.args, call.kwargs), factor)
    result: Tensor = call.func(*args, **kwargs)
    return result


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """softmax(q k^T) v and its weights, all factors at value 1. `mask`: true where a query may look."""
    q, k, v = (_at(t, torch.ones_like(t)) for t in (q, k, v))
    scores = q @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + torch.where(bias.isneginf(), 0, bias)
    seen = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.expand(scores.shape)
    held = torch.where(seen, scores, -math.inf)
    both = torch.where(seen, scores, 0) + _mean(held, (-1,))
    weights = torch.where(seen, _at(both, torch.ones_like(both)), 0)
    return weights @ v, weights


def _allowed(mask: Tensor) -> Tensor:
    """A boolean mask as it is, an additive one where it is not -inf."""
    return mask if mask.dtype == torch.bool else ~mask.detach().isneginf()


@_surrogate("scaled_dot_product_attention")
def _sdpa(
    call: _Call, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    if enable_gqa:
        copies = query.shape[-3] // key.shape[-3]
        key, value = (t.repeat_interleave(copies, -3) for t in (key, value))
    mask = None if attn_mask is None else _allowed(attn_mask)
    if is_causal:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    shadow = call.shadow_of(attn_mask)
    if shadow is not None:  # flags that are an input hide nothing for sure
        return _attend(query, key, value, None, None)[0] + _mean(shadow, (-1,))
    bias = attn_mask if attn_mask is not None and attn_mask.requires_grad else None
    return _attend(query, key, value, mask, bias)[0]


@_surrogate("multi_head_attention_forward")
def _multi_head_attention(call: _Call, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """torch's own function does this in one call, so its inner softmax has to be replaced here."""
    signature = _signature(call.func)
    assert signature is not None
    bound = signature.bind(*call.args, **call.kwargs)
    bound.apply_defaults()
    a = types.SimpleNamespace(**bound.arguments)
    batched = a.query.ndim == 3
    inputs = [t if batched else t.unsqueeze(1) for t in (a.query, a.key, a.value)]
    if a.use_separate_proj_weight:
        weights = [a.q_proj_weight, a.k_proj_weight, a.v_proj_weight]
    else:
        weights = a.in_proj_weight.chunk(3)
    q, k, v = (F.linear(x, w.abs()) for x, w in zip(inputs, weights, strict=True))
    if a.bias_k is not None:
        k, v = (torch.cat([x, b.abs().expand(1, x.shape[1], -1)]) for x, b in ((k, a.bias_k), (v, a.bias_v)))
    if a.add_zero_attn:
        k, v = (torch.cat([x, torch.zeros_like(x[:1])]) for x in (k, v))
    extra = int(a.bias_k is not None) + int(a.add_zero_attn)
    # (length, batch, heads * features) -> (batch, heads, length, features)
    q, k, v = (x.reshape(*x.shape[:2], a.num_heads, -1).permute(1, 2, 0, 3) for x in (q, k, v))
    # A mask that is made of the input hides nothing for sure, and each query depends on that of all keys.
    flags, pads = call.seen_of(a.attn_mask), call.seen_of(a.key_padding_mask)
    mask = None
    if a.attn_mask is not None and flags is None:
        mask = ~a.attn_mask if a.attn_mask.dtype == torch.bool else _allowed(a.attn_mask)
        mask = F.pad(mask, (0, extra), value=True)
        if mask.ndim == 3:
            mask = mask.reshape(-1, a.num_heads, *mask.shape[1:])
    if a.key_padding_mask is not None and pads is None:
        keys = a.key_padding_mask
        keys = ~keys if keys.dtype == torch.bool else _allowed(keys)
        keys = F.pad(keys, (0, extra), value=True).reshape(-1, 1, 1, k.shape[-2])
        mask = keys if mask is None else mask & keys
    out, shares = _attend(q, k, v, mask, None)
    out = F.linear(out.permute(2, 0, 1, 3).flatten(2), a.out_proj_weight.abs())
    if flags is not None:
        queries = _mean(flags, (-1,)).squeeze(-1)
        queries = queries.reshape(-1, a.num_heads, queries.shape[-1]).mean(1) if flags.ndim == 3 else queries[None]
        out = out + queries.T.unsqueeze(-1)
    if pads is not None:
        out = out + _mean(pads.reshape(-1, pads.shape[-1]), (-1,))
    if a.average_attn_weights:
        shares = shares.mean(1)
    if not batched:
        out, shares = out.squeeze(1), shares.squeeze(0)
    return out, shares if a.need_weights else None


@_surrogate("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell")
def _recurrent(call: _Call, *args: Any, **kwargs: Any) -> Any:
    """The real layer, fed with ones so that no gate saturates."""

    def fresh(v: Any) -> Any:
        return _at(v, torch.ones_like(v)) if isinstance(v, Tensor) and v.requires_grad else v

    return call.func(*_map(args, fresh), **_map(kwargs, fresh))


@_surrogate("embedding_bag")
def _embedding_bag(call: _Call, indices: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The mean of a bag; where offsets say where each begins, of all of them."""
    stand_in = call.shadow_of(indices)
    seen = indices if stand_in is None else stand_in
    return (_mean(seen, (1,)) if seen.ndim == 2 else seen.mean()).expand(call.shape()).clone()


@_surrogate("embedding one_hot")
def _embedding(call: _Call, indices: Tensor, weight: Any = None, *args: Any, **kwargs: Any) -> Tensor:
    """One row per index, and each number of the row is the index."""
    features = weight.shape[-1] if isinstance(weight, Tensor) else kwargs.get("num_classes", weight) or -1
    stand_in = call.shadow_of(indices)
    if features < 1 and stand_in is None:
        raise InputError("`one_hot` without `num_classes` needs the numbers of its input")
    if features < 1:
        features = call.shape()[-1]
    rows = (indices if stand_in is None else stand_in).unsqueeze(-1).expand(*indices.shape, features).clone()
    return call.cast_shadow(call.values(), rows) if call.base == "one_hot" and stand_in is not None else rows
