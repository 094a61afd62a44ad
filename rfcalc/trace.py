"""One run of a model's forward on storage-less tensors, carrying a Field beside every tensor.

Level 1: a dispatch mode sees every ATen op, lets torch compute the output's shape on the meta device, and applies the
rule of that op. Level 2 (`shortcut.py`) answers common torch functions before torch does. Both write the same `Event`s,
one per torch-function call (see `calls.py`). This file knows no tables and prints nothing.
"""

from __future__ import annotations

import gc
import math
import random
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from operator import itemgetter
from sys import _getframe, getrefcount
from types import BuiltinFunctionType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from .calls import call_name, is_query
from .field import Field, Shape, TooLargeError, everything, join
from .layout import as_on_cpu
from .pattern import FACTORIES, LARGE, LOST, Corner, Pattern, followed, overwritten
from .refusals import REFUSALS, RefusedError
from .rules import RULES, Call, Value, Window, elementwise, named, unknown
from .rules.registry import Result
from .rules.work import WORK

_pop_mode, _push_mode = torch._C._pop_torch_function_stack, torch._C._push_on_torch_function_stack
_modes_on, _mode_count = torch._C._is_torch_function_mode_enabled, torch._C._len_torch_function_stack
_mode_at = torch._C._get_function_stack_at
_is_wrapped, _unwrapped = torch._C._functorch.is_functorch_wrapped_tensor, torch._C._functorch.get_unwrapped
_UNPACK_DUAL = torch._VF._unpack_dual
_KEY = "_rfcalc_value"
PLAIN = frozenset((Tensor, nn.Parameter))


_KERNELS = ("torch._meta_registrations", "torch._refs", "torch._prims", "torch._decomp")  # Python below the dispatcher


def _held() -> int:
    return getrefcount(_getframe())


_HELD = _held()  # references to a running frame that nothing else holds


class NeedsValuesError(Exception):
    """The forward asked for the numbers in a tensor, which a storage-less run does not have."""


class UnseenOpError(Exception):
    """Level 2 met a tensor made by an op it never saw (scripted code, say); level 1 sees every op."""


class RuleError(Exception):
    """A rule gave up or failed: level 2 leaves the call to level 1, and level 1 takes the op as one without a rule."""


def execute(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Call what is torch's or the user's: an error that arises below this line is not ours."""
    return func(*args, **kwargs)


_LIBRARIES = frozenset((*sys.stdlib_module_names, "torch", "numpy"))


def is_our_fault(error: BaseException) -> bool:
    """Did an error arise in code of this package while a forward ran, and not in the forward or in torch?"""
    if isinstance(error, RefusedError | NeedsValuesError | UnseenOpError | RecursionError):
        return False
    running = ours = False
    for frame, _ in traceback.walk_tb(error.__traceback__):
        running = running or frame.f_code is run_forward.__code__
        home = frame.f_globals.get("__name__", "").partition(".")[0]
        if home == __package__:
            ours = frame.f_code is not execute.__code__
        elif home not in _LIBRARIES:  # the user's; what a library raises is its caller's
            ours = False
    return running and ours


class Ledger:
    """Bytes of live activations. Storage is counted once, however many views share it."""

    __slots__ = ("live", "peak")

    def __init__(self) -> None:
        self.live = self.peak = 0


class Cell:
    """One storage: lives as long as any tensor on it, and counts writes so that views know when they are stale."""

    __slots__ = ("ledger", "nbytes", "version")

    def __init__(self, ledger: Ledger, nbytes: int) -> None:
        self.ledger, self.nbytes, self.version = ledger, nbytes, 0
        ledger.live += nbytes

    def __del__(self) -> None:
        self.ledger.live -= self.nbytes

    def grow(self, nbytes: int) -> None:
        """The storage was made larger, never smaller."""
        more = max(nbytes - self.nbytes, 0)
        self.nbytes += more
        self.ledger.live += more

    def release(self) -> None:
        """Count no more: the call that needed it is over, whoever still holds the tensor."""
        self.ledger.live -= self.nbytes
        self.nbytes = 0


class Traced(Value):
    """A tensor of the run. A view knows its parent, how to read itself off it, and how to write itself back."""

    __slots__ = ("back", "cell", "corner", "parent", "replay", "version")

    def __init__(self, shape: Shape, field: Field | None, cell: Cell, const: Any = None) -> None:
        super().__init__(shape, field, const)
        self.cell, self.version = cell, cell.version
        self.parent: Traced | None = None
        self.corner: Corner | None = None  # of a view of a large constant: which rectangle it is
        self.replay: Callable[[Field | None], Field | None] | None = None
        self.back: Callable[[Field | None, Field | None], Field | None] | None = None


def fresh(v: Traced) -> Traced:
    """Re-read a view whose storage was written to since."""
    if v.version != v.cell.version:
        if v.parent is not None and v.replay is not None:
            v.field = v.replay(fresh(v.parent).field)
        v.const = None
        v.pattern = v.pattern and LOST
        v.version = v.cell.version
    return v


def write(v: Traced, new: Field | None) -> None:
    """Set what a tensor depends on, and what every tensor on the same storage then does."""
    chain: list[Traced] = [v]
    while chain[-1].parent is not None:
        chain.append(chain[-1].parent)
    olds = [fresh(c).field for c in chain]
    v.field = new
    for child, parent, old in zip(chain, chain[1:], olds[1:], strict=False):
        parent.field = _written(child, parent, old)
    v.cell.version += 1
    for c in chain:
        c.version, c.const, c.pattern = v.cell.version, None, None


def write_pattern(v: Traced, new: Pattern | Tensor) -> None:
    """A large constant, or a view of one, written to: what it is now, and what those are that it is a view of."""
    if not math.prod(v.shape):
        return
    v.cell.version += 1
    _know(v, new)
    while (parent := v.parent) is not None:
        old = parent.pattern or LOST
        _know(parent, LOST if v.corner is None else overwritten(old, new, v.corner))
        v, new = parent, parent.pattern or LOST


def _know(v: Traced, numbers: Pattern | Tensor) -> None:
    """Set the numbers of a constant as of now."""
    v.version = v.cell.version
    if isinstance(numbers, Tensor):
        v.const, v.pattern = numbers, None
    else:
        v.const, v.pattern = None, numbers


def _forget_numbers(v: Value) -> None:
    """Numbers that nobody knows were written to a constant: no tensor on the same storage is known any more."""
    if not isinstance(v, Traced):
        v.const = None
        return
    v.cell.version += 1
    above: Traced | None = v
    while above is not None:
        above.const, above = None, above.parent


def _written(child: Traced, parent: Traced, old: Field | None) -> Field | None:
    """What the parent of a view depends on once the view was written to."""
    if child.back is not None:
        try:
            return child.back(old, child.field)
        except TooLargeError:
            pass  # the hull below, marked
    # The inverse is not known: anywhere in the parent there may be the old or the new.
    both = [everything(f, "write through a view") for f in (old, child.field) if f is not None]
    return join(both) if both else None


class Frame:
    """One call of one module."""

    __slots__ = ("module", "parent", "path")

    def __init__(self, module: nn.Module | None, path: str, parent: Frame | None) -> None:
        self.module, self.path, self.parent = module, path, parent


class Event:
    """One op: what came in, what went out, and the geometry and work of it.

    Made when the op begins; dispatch calls below it add to it; `record` closes those that the input reaches.
    """

    __slots__ = ("field", "frame", "ins", "macs", "nbytes", "number", "op", "params", "shape", "windows")

    op: str
    shape: Shape
    field: Field
    nbytes: int

    def __init__(self, number: int, frame: Frame) -> None:
        self.number, self.frame = number, frame
        self.ins: list[tuple[Shape, Field]] = []
        self.windows: list[Window] = []
        self.macs = 0
        self.params: list[int] = []


@dataclass(slots=True)
class Trace:
    """What a run left behind."""

    events: list[Event]
    outputs: list[tuple[Shape, Field | None]]
    output_number: int
    macs: int
    peak: int
    used: set[int]
    failed: dict[str, str]


# ------------------------------------------------------------------------------------------------ ATen schemas


@dataclass(frozen=True, slots=True)
class Schema:
    """What the trace needs of an op's schema. `aliases`: per return, the argument it aliases, and if by a write."""

    op: str
    names: tuple[str, ...]
    written: tuple[str, ...]
    aliases: tuple[tuple[str, bool] | None, ...]
    pointwise: bool
    needs_values: bool
    random: bool
    outs: tuple[str, ...]  # the `out=` arguments, which a rule does not see
    reshapes: bool  # `transpose_`, `resize_`, `set_`: the tensor itself gets another shape over its storage


_VALUE_OPS = frozenset(
    "item _local_scalar_dense is_nonzero equal allclose _pack_padded_sequence _pad_packed_sequence".split()
)
_INDEXED = frozenset(("index", "_unsafe_index"))  # of unknown length only where the index is a boolean mask
_UNINITIALISED = frozenset("empty empty_like empty_strided new_empty new_empty_strided empty_permuted".split())
# Of their tensor these take the shape and the type alone: what they make is as well known as a `torch.zeros`.
_MADE_LIKE = frozenset("zeros_like ones_like full_like new_zeros new_ones new_full".split())


@lru_cache(maxsize=4096)
def schema_of(func: Any) -> Schema:
    schema = func._schema
    op = named(func)
    written = tuple(a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write)
    if op not in RULES and op.endswith("_") and not op.endswith("__"):
        op = op[:-1]
    by_set: dict[str, str] = {}
    spread_out = ""  # the argument whose pieces a returned list is: `Tensor(a -> *) self -> Tensor(a)[]`
    for a in schema.arguments:
        if a.alias_info is not None and "*" in a.alias_info.after_set:
            spread_out = a.name
        for alias in a.alias_info.before_set if a.alias_info is not None else ():
            by_set[alias] = a.name
    aliases = []
    for r in schema.returns:
        names = [by_set[s] for s in (r.alias_info.before_set if r.alias_info is not None else ()) if s in by_set]
        if not names and spread_out and r.type.kind() == "ListType":
            names = [spread_out]
        aliases.append((names[0], names[0] in written) if names else None)
    tags = set(func.tags)
    return Schema(
        op,
        tuple(a.name for a in schema.arguments),
        written,
        tuple(aliases),
        torch.Tag.pointwise in tags,
        op in _VALUE_OPS or torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags,
        torch.Tag.nondeterministic_seeded in tags or op in _UNINITIALISED,
        tuple(a.name for a in schema.arguments if a.is_out),
        torch.Tag.inplace_view in tags,
    )


_INDEXING = frozenset((Tensor.__getitem__, Tensor.__setitem__))


def _kept_index(index: Any) -> Any:
    """Lists and arrays as CPU tensors: torch would put them on the device of the tensor, and lose their numbers."""
    if isinstance(index, tuple):
        return tuple(_kept_index(i) for i in index)
    if isinstance(index, np.ndarray) or (isinstance(index, list) and index and not any(_tensors(index))):
        return execute(torch.as_tensor, (index,), {})
    return index


def _by_flags(args: Any) -> bool:
    return any(t.dtype in (torch.bool, torch.uint8) for t in _tensors(args[1:]))


def _fills_by_flags(args: Any) -> bool:
    """One number written where a boolean mask of the tensor's own shape is true?"""
    x, indices, value, *accumulate = args
    flags = indices[0]
    if len(indices) != 1 or flags is None or flags.dtype is not torch.bool or any(accumulate):
        return False
    return bool(flags.shape == x.shape and value.dim() == 0)


def _tensors(args: Any) -> Iterator[Tensor]:
    for a in args:
        if isinstance(a, Tensor):
            yield a
        elif isinstance(a, list | tuple):
            yield from _tensors(a)


def _map(a: Any, f: Callable[[Tensor], Any]) -> Any:
    if isinstance(a, Tensor):
        return f(a)
    if isinstance(a, list | tuple):
        return [_map(i, f) for i in a]
    return a


def _cast_like(
    x: Tensor, other: Tensor, non_blocking: bool = False, copy: bool = False, memory_format: Any = None
) -> tuple[Any, ...]:  # fmt: skip
    """`x.type_as(other)` and `x.to(other)`: storage-less where one of the two is."""
    device = other.device if other.is_meta else x.device
    return torch.ops.aten.to.device, x, device, other.dtype, non_blocking, copy, memory_format


# Ops that take only the shape or the type of their second tensor, written without that tensor: (op, its arguments).
_WITHOUT_OTHER: dict[Any, Callable[..., tuple[Any, ...]]] = {
    torch.ops.aten.type_as.default: _cast_like,
    torch.ops.aten.to.other: _cast_like,
    torch.ops.aten.view_as.default: lambda x, other: (torch.ops.aten.view.default, x, list(other.shape)),
    torch.ops.aten.reshape_as.default: lambda x, other: (torch.ops.aten.reshape.default, x, list(other.shape)),
    torch.ops.aten.expand_as.default: lambda x, other: (torch.ops.aten.expand.default, x, list(other.shape)),
}
_LOOKS_AT_FIRST_ONLY = frozenset(
    (Tensor.type_as, Tensor.view_as, Tensor.reshape_as, Tensor.expand_as, Tensor.to, Tensor.resize_as_)
)


def nbytes_of(t: Tensor) -> int:
    return t.numel() * t.element_size()


# ----------------------------------------------------------------------------------------------------- level 1


class Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Level 1: every ATen op, executed by torch and interpreted by its rule."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the wrapper that skips it imports all of dynamo first

    def __init__(self, run: Run) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.run = run

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        run = self.run
        if run.op is None:
            return run.alone(func, args, kwargs)
        plainer = _WITHOUT_OTHER.get(func)
        if plainer is not None:
            func, *args = plainer(*args, **kwargs)
            kwargs = {}
        schema = schema_of(func)
        if schema.op in _INDEXED and _by_flags(args):
            args = run.counted(args)
        if schema.op == "index_put" and _fills_by_flags(args):  # how older torch spells `x[mask] = 0.5`
            fill = torch.ops.aten.masked_fill_.Tensor if schema.written else torch.ops.aten.masked_fill.Tensor
            return self.__torch_dispatch__(fill, types, (args[0], args[1][0], args[2]))
        every = list(_tensors((*args, *kwargs.values())))
        vals = [run.value(t) for t in every]
        made_like = schema.op in _MADE_LIKE
        touched = not made_like and any(v.field is not None for v in vals)
        rule = RULES.get(schema.op) or (elementwise if schema.pointwise else None)
        if rule is None and not made_like and (touched or schema.op not in WORK):
            margs, mkwargs = run.placed(func, args, kwargs, every)  # composite ops look at devices too
            with self:
                result = execute(func.decompose, margs, mkwargs)
            if result is not NotImplemented:
                return result
        if schema.needs_values and not (schema.op in _INDEXED and not _by_flags(args)):
            return run.read(func, schema, args, kwargs, every, vals)
        run.guard(schema, func, args, kwargs)
        if schema.op == "as_strided" and not _is_whole(args[0]):
            rule = unknown  # it counts from the start of the storage
        if schema.reshapes:
            return run.reshaped(func, schema, rule, args, kwargs)
        if not touched and run.storageless and is_large(schema, args, every):
            margs, mkwargs = run.unbuilt(schema, args, kwargs)
        else:
            margs, mkwargs = run.placed(func, args, kwargs, every)
        if schema.op in REFUSALS:
            REFUSALS[schema.op](*args, **kwargs)
        result = as_on_cpu(schema.op, margs, execute(func, margs, mkwargs))
        run.settle(func, schema, rule, args, kwargs, vals, touched, result)
        if margs is not args and result is not None and schema.written:
            return _returned(schema, args, kwargs, result)
        return result


_REPEATED = frozenset("clone contiguous _to_copy".split())  # these write out what `expand` repeats


def is_large(schema: Schema, args: Any, every: Sequence[Tensor]) -> bool:
    """Would torch build a constant that is too large to build, from tensors that are not?"""
    if schema.op in FACTORIES:
        if schema.op.endswith("_like"):
            return every[0].numel() > LARGE
        sizes = [a for a in args if isinstance(a, int | list | tuple)]
        size = sizes[0] if sizes and isinstance(sizes[0], list | tuple) else [a for a in sizes if isinstance(a, int)]
        return all(isinstance(n, int) for n in size) and math.prod(size if len(size) > 1 else (*size, *size)) > LARGE
    if not every or math.prod([t.numel() for t in every]) <= LARGE:
        return False
    if schema.op == "repeat":
        return bool(every[0].numel() * math.prod(args[1]) > LARGE)
    if not (schema.pointwise or schema.op in _REPEATED) or schema.written:
        return False
    n = max(t.dim() for t in every)
    shapes = [(1,) * (n - t.dim()) + tuple(t.shape) for t in every]
    held = max(t.untyped_storage().nbytes() // t.element_size() for t in every)
    return math.prod(map(max, *shapes) if len(shapes) > 1 else shapes[0]) > max(LARGE, held)


def _returned(schema: Schema, args: Any, kwargs: Any, result: Any) -> Any:
    """In-place ops give back the tensor they were given, not its stand-in."""
    alias = schema.aliases[0] if schema.aliases else None
    if alias is None or not alias[1]:
        return result
    i = schema.names.index(alias[0])
    return args[i] if i < len(args) else kwargs[alias[0]]


def _alike(t: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
    """`t` and its data to be: what a run makes is of inference mode, weights are not, and torch mixes neither."""
    if t.is_inference() is not data.is_inference():
        with _disable_current_modes(), torch.inference_mode(t.is_inference()):
            data = data.clone()
    return t, data


def _is_whole(t: Tensor) -> bool:
    """Does a tensor hold the elements of its storage in their order?"""
    return bool(t.is_contiguous() and t.storage_offset() == 0)


def shares_storage(a: Tensor, b: Tensor) -> bool:
    """Does a write to one reach the other? Layouts without one storage are taken to, as their op's schema says."""
    try:
        return bool(a.untyped_storage()._cdata == b.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return False


class Layer(NamedTuple):
    """What calling a plain layer of torch comes to: one torch function, and its arguments behind the input.

    `arguments` is given the layer's `__dict__`; None: this one is set up in a way that only its own forward knows.
    `ndims`: of the tensors it takes, where it is particular about that.
    """

    function: Callable[..., Any]
    arguments: Callable[[dict[str, Any]], tuple[Any, ...] | None]
    ndims: frozenset[int] | None = None


class Shortcuts(NamedTuple):
    """What level 2 answers itself: torch functions, and the layers that are one call of such a function."""

    functions: dict[Any, Callable[..., Any]]
    layers: dict[type[nn.Module], Layer]


_properties: Any = Tensor  # as torch's type stubs do not know them
_SET_DATA = _properties.data.__set__
_SETTERS = frozenset((
    _SET_DATA, _properties.requires_grad.__set__, Tensor.requires_grad_, _properties.grad.__set__,
    _properties.grad.__delete__,
))  # fmt: skip


class Run(TorchFunctionMode):
    """The state of one run: values of tensors, the module stack, the events. Also the function mode of both levels."""

    def __init__(
        self, paths: dict[int, str], params: dict[int, Any], buffers: set[int], shortcuts: Shortcuts | None
    ) -> None:
        super().__init__()
        self.paths, self.params, self.buffers = paths, params, buffers
        self.shortcuts, self.layers = shortcuts or Shortcuts({}, {})
        self.exhaustive = shortcuts is None  # level 1: the dispatch mode is on all the time
        self.storageless = True  # False: run again on real values, where constants are needed in full
        self.ledger = Ledger()
        self.dispatch = Dispatch(self)
        self.frame = Frame(None, "", None)
        self.number = -1
        self.op: Event | None = None
        self.events: list[Event] = []
        self.macs = 0
        self.used: set[int] = set()
        self.known: dict[int, tuple[Value, Tensor]] = {}
        self.stand_ins: dict[int, tuple[Tensor, Tensor]] = {}
        self.saved: list[tuple[Tensor, Tensor]] = []
        self.moved: dict[int, tuple[Tensor, Tensor]] = {}  # of the user's, with an alias as they were
        self.flags: dict[int, tuple[Tensor, bool, Tensor | None]] = {}
        self.marked: list[Tensor] = []
        self.failed: dict[str, str] = {}
        self.made: list[Cell] = []  # within one call of a torch function that its shortcut left to torch

    # -- values

    def value(self, t: Tensor) -> Value:
        """What is known of a tensor; weights and buffers get an entry when first seen."""
        hit = self.known.get(id(t))
        if hit is not None:
            if id(t) in self.params:
                self._use(id(t))
            return hit[0]
        v = t.__dict__.get(_KEY)
        if v is not None:
            return fresh(v)
        if _is_wrapped(t):
            return self.value(_unwrapped(t))
        if t.is_meta and not self.exhaustive and id(t) not in self.params and id(t) not in self.buffers:
            raise UnseenOpError("a tensor came from code that torch functions do not see")
        # A tensor from before the run. Parameters are weights; other tensors are structure.
        if id(t) in self.params:
            self._use(id(t))
            const = None
        else:
            const = t if not t.is_meta else None
        v = Traced(tuple(t.shape), None, Cell(self.ledger, 0), const)
        self.known[id(t)] = (v, t)
        return v

    def values(self, tensors: Sequence[Tensor]) -> list[Value]:
        """`value` of each plain tensor. Most were made in the run, and nothing has written to them since."""
        return [
            v if (v := t.__dict__.get(_KEY)) is not None and v.version == v.cell.version else self.value(t)
            for t in tensors
        ]

    def _use(self, ident: int) -> None:
        self.used.add(ident)
        if self.op is not None:
            self.op.params.append(ident)

    def attach(self, t: Tensor, v: Traced) -> None:
        t.__dict__[_KEY] = v
        hit = self.known.get(id(t))
        if hit is not None:  # an id of a weight or buffer: its entry is replaced
            self.known[id(t)] = (v, t)
            self.marked.append(t)

    def new(self, t: Tensor, field: Field | None, const: Any = None) -> Traced:
        v = Traced(tuple(t.shape), field, Cell(self.ledger, nbytes_of(t)), const)
        self.attach(t, v)
        return v

    def view(
        self, t: Tensor, parent: Traced, rule: Any, call: Call, vargs: Any, field: Field | None, vkwargs: Any = None,
        i: int = 0,
    ) -> None:  # fmt: skip
        """Attach a view of another tensor: it shares the storage and follows what is written there."""
        v = Traced(tuple(t.shape), field, parent.cell)
        v.parent = parent
        v.replay = _replay(rule, call, vargs, vkwargs or {}, parent, i)
        v.back = (call.write_backs[i] if call.write_backs else call.write_back) or _identity_back(rule)
        self.attach(t, v)

    def make(self, t: Tensor, field: Field | None, const: Any = None) -> Traced:
        """`new` for what torch made: the storage counts after this call only if its caller gets to see it."""
        v = self.new(t, field, const)
        self.made.append(v.cell)
        return v

    def drop_inner(self, seen: Iterator[Tensor]) -> None:
        """A call of a torch function is over: what it made for itself is dead, whichever frame still holds it."""
        if not self.made:
            return
        kept = {id(v.cell) for t in seen if (v := t.__dict__.get(_KEY)) is not None}
        for cell in self.made:
            if id(cell) not in kept:
                cell.release()
        self.made = []

    # -- the world outside

    def placed(self, func: Any, args: Any, kwargs: Any, every: Sequence[Tensor]) -> tuple[Any, Any]:
        """Where storage-less tensors meet weights that have storage, storage-less stand-ins take the weights' place."""
        if not any(t.is_meta for t in every) or all(t.is_meta for t in every):
            return args, kwargs
        if schema_of(func).op in ("copy", "_to_copy", "to") and not every[0].is_meta:
            raise NeedsValuesError("a copy from the traced input into a tensor with storage")
        return _map(list(args), self.stand_in), {k: _map(v, self.stand_in) for k, v in kwargs.items()}

    def unbuilt(self, schema: Schema, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The same op, storage-less: for a constant of which only the pattern is kept."""
        margs, mkwargs = _map(list(args), self.stand_in), {k: _map(v, self.stand_in) for k, v in kwargs.items()}
        if "device" in schema.names:
            mkwargs["device"] = torch.device("meta")
        return margs, mkwargs

    def stand_in(self, t: Tensor) -> Tensor:
        if t.is_meta:
            return t
        hit = self.stand_ins.get(id(t))
        if hit is None:
            empty = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")
            if id(t) not in self.known:  # an intermediate: holding on to it would count it as live memory
                empty.__dict__[_KEY] = self.value(t)
                return empty
            hit = self.stand_ins[id(t)] = (empty, t)
            self.known[id(empty)] = (self.value(t), empty)
        return hit[0]

    def changed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """`t.data = y`, `t.requires_grad = False`, `t.grad = None`: a tensor of the user's is noted as it was."""
        t = args[0]
        if _KEY not in t.__dict__ or id(t) in self.known:
            if func == _SET_DATA:
                self.moved.setdefault(id(t), (t, t.detach()))
            elif not t.is_inference():
                self.flags.setdefault(id(t), (t, t.requires_grad, t.grad))
        result = func(*_alike(*args), **kwargs) if func == _SET_DATA else func(*args, **kwargs)
        if func == _SET_DATA:
            v = self.value(args[1])
            self.value(t)  # a weight's own entry comes first, so that it is put back
            if isinstance(v, Traced):
                self.view(t, v, RULES["alias"], Call("alias", (v.shape,)), (v,), v.field)
        return result

    def guard(self, schema: Schema, func: Any, args: Any, kwargs: Any) -> None:
        """Keep a copy of any tensor of the user's before the first write to it."""
        for name in schema.written:
            i = schema.names.index(name)
            target = args[i] if i < len(args) else kwargs.get(name)
            for t in _tensors([target]):
                if _KEY in t.__dict__:
                    continue
                if schema.reshapes and id(t) not in self.moved:
                    self.moved[id(t)] = (t, t.detach())
                if not t.is_meta and not any(s is t for s, _ in self.saved):
                    self.saved.append((t, t.detach().clone()))

    def restore(self) -> None:
        """Put back what the run changed outside of itself, and let go of itself: no cycle for the collector."""
        del self.dispatch
        for t, old in self.moved.values():
            t.data = old
        for t, wanted, grad in self.flags.values():
            t.requires_grad_(wanted).grad = grad
        for t, old in self.saved:
            t.data.copy_(old)
        for t in self.marked:
            t.__dict__.pop(_KEY, None)

    def counted(self, args: Any) -> Any:
        """A constant boolean mask as an index, written as the positions where it is true."""
        x, indices = args[0], []
        for i in args[1]:
            v = None if i is None else self.value(i)
            if v is None or i.dtype not in (torch.bool, torch.uint8):
                indices.append(i)
            elif v.const is None or v.field is not None:
                return args
            else:
                indices += v.const.nonzero(as_tuple=True)
        return (x, indices, *args[2:])

    def read(self, func: Any, schema: Schema, args: Any, kwargs: Any, every: Any, vals: Any) -> Any:
        """An op whose result depends on numbers: taken from constants where they are known."""
        if all(v.const is not None and v.field is None for v in vals):
            consts = iter([v.const for v in vals])
            result = execute(func, _map(list(args), lambda _: next(consts)), kwargs)
            for t in _tensors([result]):
                self.make(t, None, t.detach())
            return result
        if any(t.is_meta for t in every):
            raise NeedsValuesError(f"`{schema.op}` asks for numbers")
        result = execute(func, args, kwargs)
        touched = any(v.field is not None for v in vals)
        self.settle(func, schema, RULES.get(schema.op), args, kwargs, vals, touched, result)
        return result

    # -- one ATen op, after torch has executed it

    def settle(
        self, func: Any, schema: Schema, rule: Any, args: Any, kwargs: Any, vals: Any, touched: bool, result: Any
    ) -> None:  # fmt: skip
        it = iter(vals)
        vargs = _map(list(args), lambda _: next(it))
        vkwargs = {k: _map(v, lambda _: next(it)) for k, v in kwargs.items()}
        for name in schema.outs:
            vkwargs.pop(name, None)
            for t in _tensors([kwargs.get(name)]):
                self.resized(t)
        outs = list(_tensors([result])) if result is not None else []
        work = WORK.get(schema.op)
        if work is not None and outs and touched:
            self.count(work(tuple(outs[0].shape), *vargs, **vkwargs))
        if not touched:
            self._constant(func, schema, rule, args, kwargs, vals, vkwargs, vargs, outs)
            return
        written = [self._argument(schema, name, args, kwargs) for name in schema.written]
        written = [_map(w, self.value) for w in written]
        shapes = tuple(tuple(t.shape) for t in outs) or tuple(v.shape for v in _values(written))
        call = Call(schema.op, shapes)
        fields = self.fields(rule, call, vargs, vkwargs)
        if call.window is not None and self.op is not None:
            self.op.windows.append(call.window)
        self._bind(schema, rule, call, args, kwargs, vargs, vkwargs, outs, fields, written)
        if schema.op in FACTORIES and not schema.written:  # of the input only the shape is used
            self._label(schema, args, outs, self._known(func, schema, args, kwargs, vals, outs))

    def reshaped(self, func: Any, schema: Schema, rule: Any, args: Any, kwargs: Any) -> Any:
        """An op that gives the tensor itself another shape: it is from now on a view of what it was."""
        t = args[0]
        was, whole, size = self.value(t), _is_whole(t), t.numel()
        result = func(*args, **kwargs)
        source = next(_tensors(args[1:]), None) if schema.op == "set" else None
        if source is not None:
            was, rule = self.value(source), RULES["alias"]
        elif schema.op in ("resize", "resize_as"):  # the elements stay in their order, more or fewer of them
            rule = RULES["reshape"] if whole and size == t.numel() else None
        vargs = [was, *_map(list(args[1:]), self.value)]
        call = Call(schema.op, (tuple(t.shape),))
        field = self.fields(rule, call, vargs, kwargs)[0]
        if not isinstance(was, Traced):
            self.make(t, field)
            return result
        const = was.const
        self.view(t, was, rule, call, vargs, field, kwargs)
        if const is not None and source is None and whole and schema.op not in ("set", "resize", "resize_as"):
            turned = const.detach()
            func(turned, *args[1:], **kwargs)
            self.value(t).const = turned
        if was.cell.nbytes:
            was.cell.grow(t.untyped_storage().nbytes())
        return result

    def resized(self, t: Tensor) -> None:
        """An `out=` of another shape than the result: torch has given it that shape, and storage enough."""
        v = self.value(t)
        if v.shape != tuple(t.shape) and isinstance(v, Traced):
            write(v, v.field and everything(v.field, "resize"))
            v.cell.grow(nbytes_of(t))
            self.attach(t, Traced(tuple(t.shape), None, v.cell))

    @staticmethod
    def interpret(rule: Callable[..., Result], call: Call, *args: Any, **kwargs: Any) -> Result:
        """The one way to apply a rule, at both levels. Raises RuleError where it gives up or fails."""
        try:
            return rule(call, *args, **kwargs)
        except Exception as error:
            raise RuleError(f"{type(error).__name__}: {error}") from error

    def fields(self, rule: Any, call: Call, vargs: Any, vkwargs: Any) -> tuple[Field | None, ...]:
        """One field per output. A rule that fails on its arguments is treated as no rule, and named."""
        try:
            out = self.interpret(rule or unknown, call, *vargs, **vkwargs)
        except RuleError as error:
            self.failed.setdefault(call.op, str(error))
            out = unknown(call, *vargs, **vkwargs)
        return out if isinstance(out, tuple) else (out,) * max(len(call.out), 1)

    def _argument(self, schema: Schema, name: str, vargs: Any, vkwargs: Any) -> Any:
        i = schema.names.index(name)
        return vargs[i] if i < len(vargs) else vkwargs.get(name)

    def _bind(
        self, schema: Schema, rule: Any, call: Call, args: Any, kwargs: Any, vargs: Any, vkwargs: Any, outs: Any,
        fields: Any, written: Any,
    ) -> None:  # fmt: skip
        for v, f in zip(_values(written), _cycled(fields), strict=False):
            if f is not v.field:  # relu_ and the like leave the dependence as it is
                write(v, f)
        many = len(schema.aliases) == 1  # a list of pieces has one entry in the schema
        for i, t in enumerate(outs):
            alias = schema.aliases[0 if many else i] if i < len(schema.aliases) or many else None
            if alias is not None and alias[1]:
                continue  # the written argument itself
            if _KEY in t.__dict__ or id(t) in self.known:
                continue  # `contiguous` and `to` may give back their argument
            source = self._source(schema, alias, args, kwargs, t)
            parent = None if source is None else self.value(source)
            if source is None or not isinstance(parent, Traced):
                self.make(t, fields[i])  # made anew: `reshape` and the like had to copy
                continue
            self.view(t, parent, rule, call, vargs, fields[i], vkwargs, i)

    def _source(self, schema: Schema, alias: Any, args: Any, kwargs: Any, t: Tensor) -> Tensor | None:
        """The argument whose storage a result shares: its schema says where it may, only torch knows if it does."""
        if alias is None:  # some composite ops do not tell: `broadcast_tensors`
            every = _tensors((*args, *kwargs.values()))
            return next((a for a in every if type(t) in PLAIN and shares_storage(a, t)), None)
        source: Tensor = self._argument(schema, alias[0], args, kwargs)
        if type(t) not in PLAIN or t.layout is not torch.strided or source.is_meta is not t.is_meta:
            return source
        return source if shares_storage(source, t) else None

    def _constant(
        self, func: Any, schema: Schema, rule: Any, args: Any, kwargs: Any, vals: Any, vkwargs: Any, vargs: Any,
        outs: Any,
    ) -> None:  # fmt: skip
        """An op that no input reaches. What its numbers are is worked out, because masks are structure."""
        consts = self._known(func, schema, args, kwargs, vals, outs)
        for name in schema.written:
            for v in _values([_map(self._argument(schema, name, args, kwargs), self.value)]):
                above = v.parent is not None and v.parent.pattern is not None
                if above or v.pattern is not None or (consts and not isinstance(consts[0], Tensor)):
                    write_pattern(v, consts[0] if consts else LOST)
                elif not consts:
                    _forget_numbers(v)
        call = Call(schema.op, tuple(tuple(t.shape) for t in outs))
        if any(a is not None and not a[1] for a in schema.aliases) and rule is not None:
            # A view of a constant may be written to later. A rule that fails here has taken nothing to be unknown.
            with suppress(RuleError):
                self.interpret(rule, call, *vargs, **vkwargs)
        self._bind(schema, rule, call, args, kwargs, vargs, vkwargs, outs, (None,) * len(outs), ())
        self._label(schema, args, outs, consts)

    def _label(self, schema: Schema, args: Any, outs: Any, consts: Sequence[Tensor | Pattern]) -> None:
        """Write on new tensors what their numbers are."""
        for t, c in zip(outs, consts, strict=False):
            v = t.__dict__.get(_KEY)
            if v is None:
                continue
            if isinstance(c, Tensor):
                v.const = c
            elif v.pattern is None:
                v.pattern = c
            if v.parent is not None and v.parent.pattern is not None:
                v.corner = corner(schema.op, args, tuple(t.shape), v.parent.shape)

    def _known(
        self, func: Any, schema: Schema, args: Any, kwargs: Any, vals: Any, outs: Any
    ) -> list[Tensor | Pattern]:  # fmt: skip
        """The numbers of each result, or the pattern of one too large to be built; nothing where they are unknown."""
        if vals and (schema.op in FACTORIES or (schema.written and schema.op in ("fill", "zero"))):
            vals = [_erased(vals[0], outs), *vals[1:]]
        size = sum([t.numel() for t in outs])
        drawn = schema.random and (schema.op not in FACTORIES or size <= LARGE)
        if drawn or any(v.const is None and v.pattern is None for v in vals):
            return []
        if all(not t.is_meta for t in outs) and all(v.pattern is None for v in vals):
            return [t.detach() for t in outs]  # not the tensor itself: it holds this value, and would never die
        it = iter([v.pattern if v.const is None else v.const for v in vals])
        cargs = _map(list(args), lambda _: next(it))
        ckwargs = {k: _map(v, lambda _: next(it)) for k, v in kwargs.items()}
        if size > LARGE or any(v.const is None for v in vals):
            if len(outs) != 1:
                return [LOST] * len(outs)
            return [followed(schema.op, func, cargs, ckwargs, outs[0], schema.pointwise)]
        if "device" in schema.names:
            at = schema.names.index("device")
            if at < len(cargs):
                cargs[at] = torch.device("cpu")
            else:
                ckwargs["device"] = torch.device("cpu")
        return list(_tensors([execute(func, cargs, ckwargs)]))

    def count(self, macs: int) -> None:
        self.macs += macs
        if self.op is not None:
            self.op.macs += macs

    # -- one torch function

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if is_query(func):
            return self.changed(func, args, kwargs) if func in _SETTERS else execute(func, args, kwargs)
        self.number += 1
        op = self.op = Event(self.number, self.frame)
        if func in _INDEXING and len(args) > 1:
            args = (args[0], _kept_index(args[1]), *args[2:])
        elif func is Tensor.to and len(args) > 1 and isinstance(args[1], Tensor):
            _, x, device, dtype, *_ = _cast_like(args[0], args[1])  # else to where a weight has its storage
            args = (x, device, dtype, *args[2:])
        short = self.shortcuts.get(func)
        if short is not None:
            try:
                result = short(self, op, *args, **kwargs)
            except RuleError:
                result = NotImplemented
            except TypeError as error:
                if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                    raise
                result = NotImplemented  # an argument that it does not take
            if result is not NotImplemented:
                self.finish(func, op, (*args, *kwargs.values()) if kwargs else args, result)
                return result
        if not self.exhaustive and _getframe(1).f_globals.get("__name__", "").startswith(_KERNELS):
            raise UnseenOpError("a kernel of torch's runs an op that no torch function began")
        for t in _tensors(args[:1] if func in _LOOKS_AT_FIRST_ONLY else (*args, *kwargs.values())):
            v = self.value(t)
            if v.shape != t.shape and not _is_wrapped(t):
                raise UnseenOpError("a tensor was given another shape by what torch functions do not see")
            if v.field is not None:
                op.ins.append((v.shape, v.field))
        if self.exhaustive:
            result = execute(func, args, kwargs)
        else:
            with self.dispatch:
                result = execute(func, args, kwargs)
        for t in _tensors([result]):
            if type(t) not in PLAIN:
                self._adopt(func, op, t)
        if getrefcount(_getframe()) > _HELD:
            gc.collect(0)  # what holds a frame of torch's holds those that called it, down to the forward's own
        self.drop_inner(_tensors((result, *args, *kwargs.values())))
        self.record(func, op, result if result is not None else args[0] if args else None)
        self.op = None
        return result

    def _adopt(self, func: Any, op: Event, t: Tensor) -> None:
        """A tensor of a class of its own: torch has wrapped what an op made, and the field was lost on the way."""
        if op.ins and _KEY not in t.__dict__ and id(t) not in self.known:
            name = f"{call_name(func)} of {type(t).__name__}"
            self.make(t, join([everything(field, name) for _, field in op.ins]))

    def finish(self, func: Any, op: Event, args: Sequence[Any], result: Any) -> None:
        """Close an op that a shortcut answered."""
        params = self.params
        for a in args:
            if id(a) in params:
                self._use(id(a))
        self.record(func, op, result)
        self.op = None

    def alone(self, func: Any, args: Any, kwargs: Any) -> Any:
        """An ATen op called by no torch function (scripted code): an event of its own."""
        op = self.op = Event(self.number, self.frame)
        op.ins = [(v.shape, v.field) for t in _tensors(args) if (v := self.value(t)).field is not None]
        with torch._C.DisableTorchFunction(), self.dispatch:  # kernels in Python call torch functions too
            result = execute(func, args, kwargs)
        if getrefcount(_getframe()) > _HELD:
            gc.collect(0)
        self.drop_inner(_tensors((result, *args, *kwargs.values())))
        self.op = None
        self.record(getattr(func, "overloadpacket", func), op, result)
        return result

    def record(self, func: Any, op: Event, result: Any) -> None:
        """Write the event of an op whose result the input reaches."""
        ledger = self.ledger
        ledger.peak = max(ledger.peak, ledger.live)
        if not op.ins:
            return
        if type(result) is Tensor:
            v = self.value(result)
            size = v.cell.nbytes if type(v) is Traced else 0
        else:
            found = [(self.value(t), t) for t in _tensors([result])]
            reached = [(v, t) for v, t in found if v.field is not None]
            if not reached:
                return
            v, size = reached[0][0], sum(nbytes_of(t) for _, t in reached)
        field = v.field
        if field is None:
            return
        if func is _UNPACK_DUAL:  # the value and its tangent, one of which goes on unseen
            both = [(w.shape, f) for w, _ in reached if (f := w.field) is not None]
            field = join([f if shape == v.shape else everything(f, call_name(func)) for shape, f in both])
        op.op, op.shape, op.field, op.nbytes = call_name(func), v.shape, field, size
        self.events.append(op)


def _erased(v: Value, outs: Sequence[Tensor]) -> Value:
    """A tensor of which only the shape is used: any numbers do."""
    if v.field is None and (v.const is not None or v.pattern is not None):
        return v
    found = Value(v.shape)
    if math.prod(v.shape) > LARGE:
        found.pattern = LOST
    else:
        found.const = torch.zeros(v.shape, dtype=outs[0].dtype)
    return found


def corner(op: str, args: Any, shape: Shape, parent: Shape) -> Corner | None:
    """Which rectangle of a large constant its view is; None where that is not one of every matrix in it."""
    lead = len(parent) - 2
    if op in ("slice", "narrow", "select") and lead >= 0:
        dim = args[1] % len(parent) if len(args) > 1 else 0
        start = (args[2] if len(args) > 2 else 0) or 0
        start = start + parent[dim] if start < 0 else start
        if dim < lead or (op == "slice" and len(args) > 4 and args[4] != 1):
            return None
        count = 1 if op == "select" else shape[dim]
        rows, columns = parent[-2:]
        return Corner(start, 0, count, columns) if dim == lead else Corner(0, start, rows, count)
    same = shape[-2:] == parent[-2:] and math.prod(shape) == math.prod(parent)
    return Corner(0, 0, *shape[-2:]) if same and op in ("view", "unsqueeze", "squeeze", "alias", "detach") else None


def _values(items: Any) -> Iterator[Any]:
    for v in items:
        if isinstance(v, Value):
            yield v
        elif isinstance(v, list | tuple):
            yield from _values(v)


def _cycled(fields: tuple[Field | None, ...]) -> Iterator[Field | None]:
    while fields:
        yield from fields


def _replay(rule: Any, call: Call, vargs: Any, vkwargs: Any, parent: Traced, i: int) -> Any:
    """How to read a view off its parent again."""

    def replay(field: Field | None) -> Field | None:
        if field is None:
            return None
        value = Value(parent.shape, field)
        args = [value if a is parent else a for a in vargs]
        try:
            out = Run.interpret(rule or unknown, Call(call.op, call.out), *args, **vkwargs)
        except RuleError:
            out = unknown(Call(call.op, call.out), *args, **vkwargs)
        result: Field | None = out[i] if isinstance(out, tuple) else out
        return result

    return replay


def _identity_back(rule: Any) -> Any:
    """detach, alias, contiguous: the view is the whole parent. Real and imaginary parts: half of every element."""
    if rule is RULES["alias"]:
        return lambda old, new: new
    return _either if rule is RULES["real"] else None


def _either(old: Field | None, new: Field | None) -> Field | None:
    both = [f for f in (old, new) if f is not None]
    return join(both) if both else None


# ------------------------------------------------------------------------------------------------ running a model


def attribute(run: Run, modules: Sequence[nn.Module]) -> None:
    """Know at every moment which module is running: each module's own call is wrapped.

    An instance attribute does it. Patching the class would empty the type caches of every module class in the process.
    `untouched` takes the attribute away again.
    """
    called = _torchs_own(nn.Module, "_call_impl")
    layers = {kind: layer for kind, layer in run.layers.items() if called and _is_pristine(kind)}
    for module in modules:
        d = module.__dict__
        layer = layers.get(type(module)) if _OVERRIDES.isdisjoint(d) else None
        inner = module._call_impl
        if isinstance(module, torch.jit.ScriptModule):
            inner = _scripted(run, inner)
        d["_call_impl"] = _framed(run, module, inner) if layer is None else _at_once(run, module, layer, inner)


_OVERRIDES = frozenset(("forward", "_conv_forward", "_call_impl"))


def _is_pristine(kind: type[nn.Module]) -> bool:
    """Nobody has patched what a call of this layer of torch runs through."""
    return all(_torchs_own(kind, name) for name in _OVERRIDES - {"_call_impl"} if hasattr(kind, name))


def _torchs_own(kind: type[nn.Module], name: str) -> bool:
    """By the globals of the function: a patch may carry the name and module of what it wraps."""
    home = getattr(getattr(kind, name), "__globals__", {}).get("__name__")
    return bool(home == kind.__module__)


def _is_on_top(run: Run) -> bool:
    """Does the run see the next torch function first? Not under a mode of the model's own, nor with all modes off."""
    return _modes_on() and _mode_at(_mode_count() - 1) is run


_global_hooks, _global_pre_hooks = nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks


def _at_once(run: Run, module: nn.Module, layer: Layer, inner: Callable[..., Any]) -> Callable[..., Any]:
    """A plain layer answered by its shortcut, without the way through torch's Python: a third of a run's time.

    What the shortcut declines, and a layer that was changed since or has hooks, goes the long way.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        rest = _arguments(run, module, layer, args, kwargs)
        result = NotImplemented if rest is None else _answer(run, module, layer.function, args[0], rest)
        return _framed(run, module, inner)(*args, **kwargs) if result is NotImplemented else result

    return call


def _arguments(run: Run, module: nn.Module, layer: Layer, args: Any, kwargs: Any) -> tuple[Any, ...] | None:
    """What the layer's function is given behind the input; None for a call that is not plain any more."""
    d = module.__dict__
    if kwargs or len(args) != 1 or d["_forward_hooks"] or d["_forward_pre_hooks"] or "forward" in d:
        return None
    if _global_hooks or _global_pre_hooks or not _is_on_top(run) or run.layers.get(type(module)) is not layer:
        return None
    if layer.ndims is not None and (type(args[0]) is not Tensor or args[0].dim() not in layer.ndims):
        return None
    try:
        return layer.arguments(d)
    except KeyError:  # an attribute that the model took away
        return None


def _answer(run: Run, module: nn.Module, function: Callable[..., Any], x: Any, rest: tuple[Any, ...]) -> Any:
    """The result of the function's shortcut, written as an event of the layer; NotImplemented where it declines.

    The mode is off meanwhile, as torch has it within `__torch_function__`.
    """
    outer = run.frame
    frame = run.frame = Frame(module, run.paths[id(module)], outer)
    run.number += 1
    op = run.op = Event(run.number, frame)
    mode = _pop_mode()
    try:
        try:
            result = run.shortcuts[function](run, op, x, *rest)
        except RuleError:
            result = NotImplemented
        if result is NotImplemented:
            run.number -= 1
        else:
            run.finish(function, op, rest, result)
        return result
    except BaseException as error:
        blame(error, frame)
        raise
    finally:
        _push_mode(mode)
        run.op = None
        run.frame = outer


def _scripted(run: Run, inner: Callable[..., Any]) -> Callable[..., Any]:
    """Scripted code calls no torch functions: its ops are seen one by one, as they were written."""

    def call(*args: Any, **kwargs: Any) -> Any:
        as_written = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
        with as_written, nullcontext() if run.exhaustive else run.dispatch:
            return inner(*args, **kwargs)

    return call


def _framed(run: Run, module: nn.Module, inner: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        outer = run.frame
        frame = run.frame = Frame(module, run.paths[id(module)], outer)
        try:
            return execute(inner, args, kwargs)
        except BaseException as error:
            blame(error, frame)
            raise
        finally:
            run.frame = outer

    return call


def blame(error: BaseException, frame: Frame) -> None:
    """Write on an error, once, in which module it arose: `failed_at` (a path) and `failed_module` (a class)."""
    if not hasattr(error, "failed_at"):
        error.failed_at = frame.path  # type: ignore[attr-defined]
        error.failed_module = type(frame.module).__name__ if frame.module else ""  # type: ignore[attr-defined]


_CONTAINERS = frozenset((dict, list, set))
_tables_of = itemgetter("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")
_OF_EVERY_MODULE = tuple(nn.Module().__dict__)  # set by nn.Module itself, first and in this order


@contextmanager
def untouched(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Evaluation mode inside; afterwards every attribute, buffer, hook and random state is what it was."""
    snapshots: list[tuple[dict[str, Any], dict[str, Any]]] = []
    tables: list[tuple[Any, Any]] = []
    seen: set[int] = set()
    empty: list[dict[str, Any]] = []
    scripted = [(m, getattr(m, "training", None)) for m in modules if isinstance(m, torch.jit.ScriptModule)]
    for script, training in scripted:
        if training:
            script.eval()
    skipped = {id(m) for m, _ in scripted}  # their attributes live in C++
    for m in modules:
        if skipped and id(m) in skipped:
            continue
        d = m.__dict__
        snapshots.append((d, d.copy()))
        for table in _tables_of(d):
            if table:
                tables.append((table, table.copy()))
            else:
                empty.append(table)
        # Attributes may come before torch's, and a module that an older torch has pickled lacks some of these.
        usual = tuple(islice(d, len(_OF_EVERY_MODULE))) == _OF_EVERY_MODULE
        for v in islice(d.values(), len(_OF_EVERY_MODULE), None) if usual else d.values():
            if type(v) not in _ATOMS:  # a list, a table or a helper that the module's author keeps
                if type(v) is list and _ATOMS.issuperset(map(type, v)):
                    tables.append((v, v.copy()))
                else:
                    _remember(v, tables, seen)
        d["training"] = False
    torch_state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    cuda_state = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        _put_back(tables)
        for table in filter(None, empty):  # not empty any more: hooks or buffers that the forward registered
            table.clear()
        for d, old in snapshots:
            if "_call_impl" not in old:
                d.pop("_call_impl", None)
            if "training" in old:  # a compiled module has none of its own
                d["training"] = old["training"]
        _put_back(snapshots)
        for script, training in scripted:
            script.__dict__.pop("_call_impl", None)
            if training is not None:
                _set_training(script, training)
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        if cuda_state:
            torch.cuda.set_rng_state_all(cuda_state)


_ATOMS = frozenset((int, bool, float, str, tuple, type(None), torch.Size, torch.dtype, torch.device, type))
_NO_HELPERS = (Tensor, nn.Module, type, FunctionType, BuiltinFunctionType, MethodType, ModuleType)
_HELPERS_DEEP = 3


def _remember(v: Any, tables: list[tuple[Any, Any]], seen: set[int], depth: int = 0) -> None:
    """Note what a container or an object that is no module holds: a cache in it would keep tensors of the run."""
    if id(v) in seen or isinstance(v, _NO_HELPERS):
        return
    table = v if type(v) in _CONTAINERS else getattr(v, "__dict__", None)
    if table is None or type(table) not in _CONTAINERS:
        return
    seen.add(id(v))
    tables.append((table, table.copy()))
    if depth < _HELPERS_DEEP:
        for inner in table.values() if type(table) is dict else table:
            if type(inner) not in _ATOMS:
                _remember(inner, tables, seen, depth + 1)


def _set_training(script: nn.Module, training: bool) -> None:
    """Of this module alone: each has its own flag. A frozen one has none to set."""
    if script.training is not training:
        script.training = training


def _put_back(pairs: Sequence[tuple[Any, Any]]) -> None:
    """Give every table the contents it had; identical values compare equal without looking inside."""
    try:
        changed = [(table, was) for table, was in pairs if table != was]
    except Exception:  # tensors that were replaced refuse to be compared
        changed = list(pairs)
    for table, was in changed:
        table.clear()
        table.extend(was) if isinstance(table, list) else table.update(was)


@dataclass(frozen=True, slots=True)
class Tree:
    """A model taken apart: every module once with the path it is first found under, every parameter with its owner."""

    model: nn.Module
    paths: dict[int, str]
    modules: list[nn.Module]
    params: dict[int, tuple[str, Tensor]]


def survey(model: nn.Module) -> Tree:
    """Walk the module tree once, in the order of registration."""
    paths: dict[int, str] = {id(model): ""}
    modules = [model]
    params: dict[int, tuple[str, Tensor]] = {}
    stack = [model]
    while stack:
        module = stack.pop()
        path = paths[id(module)]
        tables = module.__dict__
        if "_modules" not in tables:  # a traced module, which keeps them elsewhere
            tables = {name: getattr(module, name) for name in ("_parameters", "_modules")}
        for p in tables["_parameters"].values():
            if p is not None and id(p) not in params:
                params[id(p)] = (path, p)
        below = []
        for name, child in tables["_modules"].items():
            if child is not None and id(child) not in paths:
                paths[id(child)] = f"{path}.{name}" if path else name
                modules.append(child)
                below.append(child)
        stack += reversed(below)
    return Tree(model, paths, modules, params)


def run_forward(
    tree: Tree,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    seeds: Sequence[tuple[Tensor, Field]],
    shortcuts: Shortcuts | None,
) -> Trace:
    """Run the forward once and return what was seen. `seeds` are the input tensors with their fields.

    Raises whatever the forward raises, with `failed_at` (the module's path) and `failed_module` set on the exception.
    """
    modules = tree.modules
    buffers = {id(b) for m in modules for b in m._buffers.values()}
    run = Run(tree.paths, tree.params, buffers, shortcuts)
    with untouched(modules), torch.inference_mode(), _room_for_frames():
        try:
            for t, f in seeds:
                run.new(t, f)
                run.storageless = run.storageless and t.is_meta
            attribute(run, modules)
            with _uncompiled(), run.dispatch if run.exhaustive else nullcontext(), run:
                result = drained(execute(tree.model, args, kwargs))
            outs = [(run.value(t), t) for t in flatten(result)]
            if any(v.shape != t.shape and not _is_wrapped(t) for v, t in outs):
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
def _room_for_frames() -> Iterator[None]:
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
