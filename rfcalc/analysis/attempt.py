"""Attempts at running a forward: without storage, then with integers, then with values; and why one failed."""

from __future__ import annotations

import copy
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import GeneratorType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from rfcalc.analysis.derivatives import DerivativesRun
from rfcalc.analysis.events import Shortcuts, Trace
from rfcalc.analysis.field import Field
from rfcalc.analysis.inputs import Inputs
from rfcalc.analysis.modules import attribute, blame
from rfcalc.analysis.numbers import Numbers
from rfcalc.analysis.refusals import RefusedError
from rfcalc.analysis.run import Run
from rfcalc.analysis.tensors import is_wrapped
from rfcalc.analysis.threads import UNSEEN, watched
from rfcalc.analysis.tree import Tree, survey
from rfcalc.analysis.untouched import untouched
from rfcalc.analysis.values import NeedsGraphError, NeedsValuesError, UnseenOpError, execute
from rfcalc.errors import ForwardError, RfcalcError

_LIBRARIES = frozenset((*sys.stdlib_module_names, "torch", "numpy"))


def is_our_fault(error: BaseException) -> bool:
    """Did an error arise in code of this package while a forward ran, and not in the forward or in torch?"""
    if isinstance(error, RefusedError | NeedsValuesError | NeedsGraphError | UnseenOpError | RecursionError):
        return False
    running = ours = False
    for frame, _ in traceback.walk_tb(error.__traceback__):
        running = running or frame.f_code is run_forward.__code__
        home = frame.f_globals.get("__name__", "").partition(".")[0]
        if home == "rfcalc":
            ours = frame.f_code is not execute.__code__
        elif home not in _LIBRARIES:  # the user's; what a library raises is its caller's
            ours = False
    return running and ours


def run_forward(
    tree: Tree,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    seeds: Sequence[tuple[Tensor, Field]],
    shortcuts: Shortcuts | None,
    integers: bool = False,
    numbers: Numbers | None = None,
    graph: bool | None = None,
) -> Trace:
    """Run the forward once and return what was seen. `seeds` are the input tensors with their fields.

    `integers`: the inputs are whole numbers because the design failed with others, not because they were given so.
    `graph`: keep torch's graph where the forward asks for it (False) or throughout (True).

    Raises whatever the forward raises, with `failed_at` (the module's path) and `failed_module` set on the exception.
    """
    modules = tree.modules
    buffers = {id(b) for m in modules for b in m._buffers.values()}
    run = Run(tree.paths, tree.params, buffers, shortcuts) if graph is None else DerivativesRun(tree, buffers)
    run.integers = integers
    run.numbers, run.seeds = numbers, [f for _, f in seeds]
    without = torch.inference_mode() if graph is None else torch.set_grad_enabled(graph)
    with untouched(modules) as outside, without, room_for_frames():
        try:
            if not run.exhaustive and "set_" in outside.names:
                raise UnseenOpError("`set_` is no torch function, and may leave a tensor its shape")
            for t, f in seeds:
                run.new(t, f)
                run.storageless = run.storageless and t.is_meta
            attribute(run, modules)
            level_1 = run.dispatch if run.exhaustive else nullcontext()
            with _uncompiled(), watched() as elsewhere, level_1, _modes_taken_off(), run:
                result = drained(execute(tree.model, args, kwargs))
            if elsewhere:
                raise RefusedError(UNSEEN.format(elsewhere[0]))
            if numbers is not None:
                run.returned(flatten(result))
            if run.wants_graph:
                raise NeedsGraphError("the forward differentiates")
            outs = [(run.value(t), t) for t in flatten(result)]
            if any(v.shape != t.shape and not is_wrapped(t) for v, t in outs):
                raise UnseenOpError("a tensor was given another shape by what torch functions do not see")
            events = run.events
        except BaseException as error:
            blame(error, run.frame)
            raise
        finally:
            run.restore()

    number = next((e.number for e in reversed(events) if outs and e.field is outs[0][0].field), -1)
    outputs = [(v.shape, v.field) for v, _ in outs]
    return Trace(events, outputs, number, run.macs, run.ledger.peak, run.used, run.failed)


@contextmanager
def _modes_taken_off() -> Iterator[None]:
    """What a forward that failed has left on the stack of modes would be popped in the place of the run."""
    before = torch._C._len_torch_function_stack()
    try:
        yield
    finally:
        while torch._C._len_torch_function_stack() > before:
            torch._C._pop_torch_function_stack()


@contextmanager
def room_for_frames() -> Iterator[None]:
    """The run's own frames lie between those of the model, which may be nested as deep as torch can call."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(2 * limit)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def _uncompiled() -> AbstractContextManager[Any]:
    """What torch.compile has wrapped runs as it was written. Before torch has loaded its compiler there is none."""
    loaded = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if loaded else nullcontext()


_LAZY = (GeneratorType, map, filter, zip)


def drained(result: Any) -> Any:
    """A result whose parts are made one by one, with all of them made."""
    if isinstance(result, _LAZY):
        return [drained(v) for v in result]
    if type(result) in (tuple, list):
        return type(result)(drained(v) for v in result)
    return {k: drained(v) for k, v in result.items()} if type(result) is dict else result


def flatten(result: Any) -> list[Tensor]:
    """All tensors in a nested result: tuples, lists, dicts, dataclasses, objects that hold tensors."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, dict):
        return [t for v in result.values() for t in flatten(v)]
    if isinstance(result, list | tuple | set):
        return [t for v in result for t in flatten(v)]
    if hasattr(result, "__dict__") and not isinstance(result, type | nn.Module):
        return [t for v in vars(result).values() for t in flatten(v)]
    return []


VALUES_NOTE = "run on CPU tensors, because the forward needs values ({})"


def with_values(
    tree: Tree, spec: Inputs, shortcuts: Any, dtype: Any, rebuild: Any, name: str
) -> tuple[Trace, Tree, list[str]]:  # fmt: skip
    """A second run: with integers if that is what was missing, else (or then) on CPU tensors."""
    notes: list[str] = []
    try:
        if dtype == torch.int64:
            try:
                return run_once(tree, spec, shortcuts, dtype, "meta"), tree, notes
            except (Exception, NeedsValuesError) as error:
                again = second_try(error, tree)
                if again in (None, "integers"):
                    raise
                notes.append(VALUES_NOTE.format(again))
        real = survey(_with_weights(tree.model, rebuild))
        return _run_with_values(real, spec, dtype), real, notes
    except Exception as error:
        raise forward_error(error, name) from error


# What torch says of a tensor without storage that something wanted to read. `f"{x:.3f}"` does not say so.
_SAYS_NO_STORAGE = re.compile(
    r"\bmeta\b|fake impl|data is not allocated|storage_device\.is_cpu|Tensor\.__format__", re.IGNORECASE
)


def second_try(error: BaseException, tree: Tree) -> str | None:
    """What a failed run without storage lacks: 'integers', a reason to run with values, or None (the user's error)."""
    text = str(error)
    if isinstance(error, NeedsValuesError):
        return text
    lacking = _SAYS_NO_STORAGE.search(text)
    if "TorchScript interpreter" in text and (lacking or text.rstrip().endswith("RuntimeError:")):
        return "scripted code asks for numbers"  # the interpreter quotes an Exception, and of ours not a word
    if "argument #1 'indices'" in text or ("Long, Int" in text and "embedding" in text) or "used as indices" in text:
        return "integers"
    if "expected device" in text and "meta" in text:
        return "gradients of its weights"
    if isinstance(error, NotImplementedError) or lacking:
        return text.splitlines()[0][:100] if text else type(error).__name__
    if any("quantized" in type(m).__module__ for m in tree.modules):
        return "quantized modules"
    return None


def _run_with_values(tree: Tree, spec: Inputs, dtype: Any) -> Trace:
    """On CPU tensors. A run on others before tells which of the numbers that ops are given follow from the input."""
    numbers = Numbers()
    args, kwargs, seeds = spec.tensors(dtype, "cpu")
    generator = torch.Generator().manual_seed(1)
    for t, _ in seeds:
        order = torch.randperm(t.numel(), generator=generator)
        t.copy_(t.flatten()[order].view(t.shape))
        if t.is_floating_point() or t.is_complex():
            t.mul_(torch.rand(t.shape, generator=generator).div_(2).add_(0.5))  # no larger than it was
    with suppress(Exception):  # a forward that refuses these numbers is asked about those below alone
        run_forward(tree, args, kwargs, seeds, None, numbers=numbers)
    return run_once(tree, spec, None, dtype, "cpu", numbers)


def run_once(
    tree: Tree, spec: Inputs, shortcuts: Any, dtype: Any, device: str, known: Numbers | None = None
) -> Trace:  # fmt: skip
    """In level 2 where that sees all of the forward, and with torch's graph where the forward needs it.

    `known`: of a run with values, what a run on other values has shown of the numbers that ops are given.
    """
    integers = dtype is torch.int64 and any(leaf.value is None for leaf in spec.leaves)
    ways: list[tuple[Any, bool | None]] = [(shortcuts, None), (None, None), (None, False), (None, True)]
    at = 0
    while True:
        try:
            numbers = None if known is None else Numbers(known)
            return run_forward(tree, *spec.tensors(dtype, device), ways[at][0], integers, numbers, ways[at][1])
        except Exception as error:
            at = _next_way(error, at)
            if at == len(ways) or ways[at] == (shortcuts, None):
                raise


def _next_way(error: Exception, at: int) -> int:
    """Which of the ways to run comes after one that failed; beyond them all where no other would help."""
    text = f"{type(error).__name__}: {error}"  # the script interpreter turns any error into one that quotes it
    if at == 0 and UnseenOpError.__name__ in text:
        return 1
    if at < 2 and (NeedsGraphError.__name__ in text or "inference tensor" in text.lower()):
        return 2
    return 3 if at == 2 and "does not require grad" in text else 4


def materialised(model: nn.Module, spec: Inputs) -> nn.Module:
    """A copy of a model whose lazy modules have seen one input."""
    twin = _storageless_copy(model)
    args, kwargs, _ = spec.tensors(torch.float32, "meta")
    with torch.no_grad():
        try:
            twin.eval()(*args, **kwargs)
        except Exception as error:
            raise forward_error(error, type(model).__name__) from error
    return twin


def _storageless_copy(model: nn.Module) -> nn.Module:
    """A deep copy whose parameters and buffers are on the meta device; those not yet shaped stay so."""
    twins: dict[int, Any] = {}
    for t in [*model.parameters(), *model.buffers()]:
        if isinstance(t, UninitializedTensorMixin):
            twins[id(t)] = type(t)(device="meta", dtype=t.dtype)
        else:
            empty = torch.empty_like(t, device="meta")
            twins[id(t)] = nn.Parameter(empty, t.requires_grad) if isinstance(t, nn.Parameter) else empty
    return copy.deepcopy(model, twins)


def _with_weights(model: nn.Module, rebuild: Callable[[], nn.Module] | None) -> nn.Module:
    """The model with storage: itself, made again, or a copy with its modules' own initialisation."""
    tensors = [*model.parameters(), *model.buffers()]
    if not any(t.is_meta for t in tensors):
        return model
    if rebuild is not None:
        return rebuild()
    twin = copy.deepcopy(model).to_empty(device="cpu")
    with torch.no_grad():
        for t in [*twin.parameters(), *twin.buffers()]:
            t.zero_()
    for m in twin.modules():
        reset = getattr(m, "reset_parameters", None)
        if callable(reset):
            reset()
    return twin


def lacks_channels(error: BaseException, tree: Tree, spec: Inputs) -> str:
    """What to say of a convolution that failed because the input has one dim too few."""
    at = getattr(error, "failed_at", "")
    failed: Any = next((m for m in tree.modules if tree.paths[id(m)] == at), None)
    if not isinstance(failed, nn.modules.conv._ConvNd) or len(spec.shapes) > 1:
        return ""
    shape = spec.shapes[0]
    if len(shape) != len(failed.kernel_size):
        return ""
    given, likely = "x".join(map(str, shape)), "x".join(map(str, (failed.in_channels, *shape)))
    return f"; the input {given} has one dim too few, {likely} is likely meant"


def forward_error(error: BaseException, name: str, hint: str = "") -> RfcalcError:
    """One line: the layer, the place in the user's source, the reason in torch's words, and what may mend it.

    Raises the error itself where it is a fault of ours: the design is not to blame.
    """
    if isinstance(error, RfcalcError):
        return error
    if is_our_fault(error):
        raise error
    path, cls = getattr(error, "failed_at", ""), getattr(error, "failed_module", "")
    here = Path(__file__).parents[1]
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        file = Path(frame.filename)
        if here not in file.parents and "torch" not in file.parts and "_lib" not in frame.filename:
            place = f" at {_short(file)}:{frame.lineno}"
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, TypeError | AttributeError | KeyError | IndexError | ZeroDivisionError | NameError):
        reason = f"{type(error).__name__}: {reason}"
    path = path if len(path) <= 100 else f"...{path[-97:]}"
    layer = f"{path} ({cls})" if path else cls or name
    return ForwardError(f"{name}: {layer}{place}: forward failed: {reason[:400]}{hint}")


def _short(file: Path) -> str:
    try:
        return str(file.relative_to(Path.cwd()))
    except ValueError:
        return str(file)
