"""One run of the real network with positive weights, in float64, whose gradients cannot cancel.

The model is copied, its weights are made positive, and its own forward runs once under a function mode which replaces
every function with vanishing or sparse gradients by a positive *surrogate* of the same dependence. All that is left is
sums and products of positive numbers, so the bounding box of the non-zero input gradient of one output position is
exactly what it depends on. Calls are numbered as in `analysis/calls.py`: that is how a row finds its tensor."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.parameter import UninitializedBuffer, is_lazy
from torch.overrides import TorchFunctionMode

from rfcalc.analysis.calls import call_name, is_query
from rfcalc.analysis.inputs import Inputs, Leaf, checked_model
from rfcalc.errors import ForwardError, InputError, RfcalcError
from rfcalc.proof import surrogates  # noqa: F401
from rfcalc.proof.boxes import Oracle, misaligned, positive
from rfcalc.proof.surrogates.backward import differentiates
from rfcalc.proof.surrogates.registry import Call, doubled, map_leaves, tensors_in

_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def replay(
    model: nn.Module,
    input_shape: Any,
    calls: Mapping[int, str | None],
    *,
    seed: int = 0,
    indices: bool = False,
    partial: bool = False,
    curved: bool = False,
) -> Oracle:
    """Run a positive float64 copy of the model once. `calls`: numbers of calls to keep, with their names if known.

    `indices`: inputs of which only the shape is given hold integers. `partial`: a forward that fails is worth what it
    did. `curved`: with stand-ins to differentiate twice, for a forward that turns out to differentiate. The model
    itself and the random state are left as they were.
    """
    inputs, model = Inputs.of(input_shape), checked_model(model)
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.get_default_dtype()
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    run = OracleRun(calls, curved)
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
                twin(*map_leaves(args, torch.clone), **map_leaves(kwargs, torch.clone))
            _make_positive(twin, generator, curved)
            with _open_functions(), run:
                twin(*args, **kwargs)
    except _DifferentiatesError:
        return replay(model, inputs, calls, seed=seed, indices=indices, partial=partial, curved=True)
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
        raise misaligned(f"call {min(missing)} was not reached, the forward made {run.number} calls")
    return Oracle(leaves, run.kept, seed, "", frozenset(run.stretched))


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


def _make_positive(model: nn.Module, generator: torch.Generator, differentiated: bool) -> None:
    """Positive weights, scaled by their fan-in, that are constants; neutral running statistics."""
    for name, p in model.named_parameters():
        p.requires_grad = p.requires_grad and differentiated
        if not p.is_floating_point():
            continue
        values = positive(p.shape, generator)
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
        stand_in = positive(leaf.shape, generator)
        if dtype.is_complex:
            stand_in = torch.complex(stand_in, positive(leaf.shape, generator))
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


_READ_OUT = frozenset(("numpy", "array", "dlpack", "from_dlpack"))


class _DifferentiatesError(BaseException):
    """The forward takes a derivative, which that of a stand-in must depend on what it reads for."""


class OracleRun(TorchFunctionMode):
    """Numbers the calls, replaces what needs a surrogate, keeps the outputs that were asked for."""

    def __init__(self, calls: Mapping[int, str | None], curved: bool = False) -> None:
        super().__init__()
        self.curved = curved
        self.calls = calls
        self.kept: dict[int, Tensor | None] = {}
        self.number = 0
        self.name = ""
        self.stretched: set[int] = set()
        # A comparison or an index that depends on the input has no gradient. Beside such a result we keep a real tensor
        # of the same dependence (and the result itself, so that its id stays taken), for `where(x > 0, a, b)`.
        self.shadows: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = map_leaves(args, doubled), map_leaves(kwargs or {}, doubled)
        if is_query(func):
            result = func(*args, **kwargs)
            if func is Tensor.requires_grad_ and result.requires_grad and not result.is_leaf:
                result.retain_grad()  # in the model's own run it is a leaf
            return result
        if differentiates(func) and not self.curved:
            raise _DifferentiatesError
        number, self.number = self.number, self.number + 1
        if kwargs.get("align_corners"):
            self.stretched.add(number)
        self.name = call_name(func)
        if self.name in _READ_OUT:  # torch gives no numbers of what has a gradient
            args = (args[0].detach(), *args[1:])
        expected = self.calls.get(number)
        if expected is not None and expected.strip("_") != self.name.strip("_"):
            raise misaligned(f"call {number} is `{self.name}`, the report says `{expected}`")
        with torch.inference_mode(False), torch.enable_grad():
            result = Call(func, args, kwargs, self.shadows, self.curved).run()
            if number in self.calls:
                self.kept[number] = self._dependence(args[0] if result is None and args else result, args)
        return result

    def _dependence(self, result: Any, args: Any) -> Tensor | None:
        """The first tensor of a result that depends on the input, safe from later writes in place.

        Of a value and its tangent it is the latter. What a transform of `torch.func` wraps has no gradient
        outside of it.
        """
        if self.name == "_unpack_dual":
            result = result[::-1]
        if any(map(_is_wrapped, tensors_in(result, args))):
            return None
        found = (self.shadows[id(t)][1] if id(t) in self.shadows else t for t in tensors_in(result))
        out = next((t for t in found if t.requires_grad), None)
        return None if out is None else out.clone()
