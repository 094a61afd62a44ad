"""One run of a model's forward on storage-less tensors, carrying a Field beside every tensor.

Level 1: a dispatch mode sees every ATen op, lets torch compute the output's shape on the meta device, and applies the
rule of that op. Level 2 (`fast/`) answers common torch functions before torch does. Both write the same `Event`s, one
per torch-function call (see `calls.py`). This file knows no tables and prints nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from sys import _getframe, getrefcount
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from rfcalc.analysis.asked import refused_by_cpu
from rfcalc.analysis.calls import call_name, is_query
from rfcalc.analysis.events import Event, Frame, Shortcuts
from rfcalc.analysis.field import everything, join
from rfcalc.analysis.layout import as_on_cpu
from rfcalc.analysis.ops import Ops
from rfcalc.analysis.refusals import RANGES, REFUSALS, RefusedError
from rfcalc.analysis.rules import RULES, Value, elementwise, unknown
from rfcalc.analysis.rules.work import WORK
from rfcalc.analysis.schemas import (
    DIFFERENTIATING,
    INDEXED,
    INDEXING,
    LOOKS_AT_FIRST_ONLY,
    MADE_LIKE,
    REQUIRING,
    SETTERS,
    UNPACK_DUAL,
    WITHOUT_OTHER,
    Schema,
    by_flags,
    cast_like,
    fills_by_flags,
    is_large,
    kept_index,
    returned_by,
    schema_of,
)
from rfcalc.analysis.tensors import is_wrapped
from rfcalc.analysis.values import (
    KEY,
    PLAIN,
    NeedsGraphError,
    RuleError,
    Traced,
    UnseenOpError,
    execute,
    map_tensors,
    nbytes_of,
    tensors_in,
)

_KERNELS = ("torch._meta_registrations", "torch._refs", "torch._prims", "torch._decomp")  # Python below the dispatcher


def _held() -> int:
    return getrefcount(_getframe())


def _is_meta(place: Any) -> bool:
    return place == "meta" or (isinstance(place, torch.device) and place.type == "meta")


_HELD = _held()  # references to a running frame that nothing else holds


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
        plainer = WITHOUT_OTHER.get(func)
        if plainer is not None:
            func, *args = plainer(*args, **kwargs)
            kwargs = {}
        schema = schema_of(func)
        if schema.op in INDEXED and by_flags(args):
            args = run.counted(args)
        filled = fills_by_flags(args) if schema.op == "index_put" else None
        if filled is not None:  # how older torch spells `x[mask] = 0.5`
            flags, rest = filled
            if rest:
                with self:
                    flags = flags.view(*flags.shape, *(1,) * rest)
            fill = torch.ops.aten.masked_fill_.Tensor if schema.written else torch.ops.aten.masked_fill.Tensor
            return self.__torch_dispatch__(fill, types, (args[0], flags, args[2]))
        every = list(tensors_in((*args, *kwargs.values())))
        vals = [run.value(t) for t in every]
        made_like = schema.op in MADE_LIKE
        touched = not made_like and any(v.field is not None for v in vals)
        rule = RULES.get(schema.op) or (elementwise if schema.pointwise else None)
        if schema.op == "tensor_split" and vals[-1].field is not None and len(vals) > 1:
            rule = unknown  # where it splits is read off the input
        if rule is None and not made_like and (touched or schema.op not in WORK):
            margs, mkwargs = run.placed(func, args, kwargs, every)  # composite ops look at devices too
            with self:
                result = execute(func.decompose, margs, mkwargs)
            if result is not NotImplemented:
                return result
        if schema.needs_values and not (schema.op in INDEXED and not by_flags(args)):
            return run.read(func, schema, args, kwargs, every, vals)
        run.guard(schema, func, args, kwargs)
        if schema.reshapes:
            return run.reshaped(func, schema, rule, args, kwargs)
        if not touched and run.storageless and is_large(schema, args, every):
            margs, mkwargs = run.unbuilt(schema, args, kwargs)
        else:
            margs, mkwargs = run.placed(func, args, kwargs, every)
        if schema.op in REFUSALS:
            REFUSALS[schema.op](*args, **{k: v for k, v in kwargs.items() if k not in schema.outs})
        result = execute(func, margs, mkwargs)
        if not run.keeps_graph:  # there torch knows its results by the tensors themselves
            result = as_on_cpu(schema.op, margs, result, schema.pointwise and not schema.written)
        if touched and run.storageless:
            run.refuse(func, schema, args, kwargs, every, vals)
        given_back = result
        if margs is not args and result is not None and schema.written:
            given_back = returned_by(schema, args, kwargs, result)
        run.settle(func, schema, rule, args, kwargs, vals, touched, result)
        return given_back


class Run(Ops, TorchFunctionMode):
    """The state of one run: its memory, the module stack, the events. Also the function mode of both levels."""

    keeps_graph = False

    def __init__(
        self, paths: dict[int, str], params: dict[int, Any], buffers: set[int], shortcuts: Shortcuts | None
    ) -> None:
        TorchFunctionMode.__init__(self)
        Ops.__init__(self, params, buffers, shortcuts is None)
        self.paths = paths
        self.shortcuts, self.layers = shortcuts or Shortcuts({}, {})
        self.dispatch = Dispatch(self)
        self.frame = Frame(None, "", None)
        self.number = -1
        self.integers = False  # are whole numbers as input the choice of the run itself?
        self.events: list[Event] = []
        self.wants_graph = False

    def restore(self) -> None:
        """Put back what the run changed outside of itself, and let go of itself: no cycle for the collector."""
        del self.dispatch
        super().restore()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if is_query(func):
            if func in SETTERS:
                asked = func in REQUIRING and (args[1] if len(args) > 1 else kwargs.get("requires_grad", True))
                if asked and id(args[0]) not in self.params:
                    self.differentiate()
                return self.changed(func, args, kwargs)
            if self.numbers is None:
                return execute(func, args, kwargs)
            with _disable_current_modes():  # `str(x)` of real values runs ops of torch's own
                return execute(func, args, kwargs)
        self.number += 1
        op = self.op = Event(self.number, self.frame)
        if func in INDEXING and len(args) > 1:
            args = (args[0], kept_index(args[1]), *args[2:])
        elif func is Tensor.to:
            args, kwargs = self.moved_to(args, kwargs)
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
        if func in DIFFERENTIATING:
            self.differentiate()
        if not self.exhaustive and _getframe(1).f_globals.get("__name__", "").startswith(_KERNELS):
            raise UnseenOpError("a kernel of torch's runs an op that no torch function began")
        for t in tensors_in(args[:1] if func in LOOKS_AT_FIRST_ONLY else (*args, *kwargs.values())):
            v = self.value(t)
            if v.shape != t.shape and not is_wrapped(t):
                raise UnseenOpError("a tensor was given another shape by what torch functions do not see")
            if v.field is not None:
                op.ins.append((v.shape, v.field))
        if self.exhaustive:
            result = execute(func, args, kwargs)
        else:
            with self.dispatch:
                result = execute(func, args, kwargs)
        for t in tensors_in([result]):
            if type(t) not in PLAIN:
                self._adopt(func, op, t)
        if getrefcount(_getframe()) > _HELD:
            gc.collect(0)  # what holds a frame of torch's holds those that called it, down to the forward's own
        self.drop_inner(tensors_in((result, *args, *kwargs.values())))
        self.record(func, op, result if result is not None else args[0] if args else None)
        self.op = None
        return result

    def moved_to(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The arguments of a `to` that keeps apart what is storage-less and what is not: a weight stays where it is."""
        if len(args) > 1 and isinstance(args[1], Tensor):
            _, x, device, dtype, *_ = cast_like(args[0], args[1])  # else to where a weight has its storage
            return (x, device, dtype, *args[2:]), kwargs
        x = args[0]
        if x.is_meta or not (id(x) in self.params or id(x) in self.buffers):
            return args, kwargs
        here = {name: x.device if _is_meta(a) else a for name, a in kwargs.items()}
        return tuple(x.device if _is_meta(a) else a for a in args), here

    def differentiate(self) -> None:
        """A call that needs torch's graph, which this run does not keep. `wants_graph` is for who catches the error."""
        self.wants_graph = True
        raise NeedsGraphError("the forward differentiates")

    def _adopt(self, func: Any, op: Event, t: Tensor) -> None:
        """A tensor of a class of its own: torch has wrapped what an op made, and the field was lost on the way."""
        if op.ins and KEY not in t.__dict__ and id(t) not in self.known:
            name = f"{call_name(func)} of {type(t).__name__}"
            self.make(t, join([everything(field, name) for _, field in op.ins]))

    def refuse(
        self, func: Any, schema: Schema, args: Any, kwargs: Any, every: Sequence[Tensor], vals: Sequence[Value]
    ) -> None:  # fmt: skip
        """Raise where torch refuses on a CPU what it lets pass without storage."""
        if schema.op in RANGES:
            numbers = iter([t if v.const is None else v.const for t, v in zip(every, vals, strict=True)])
            RANGES[schema.op](*map_tensors(list(args), lambda _: next(numbers)))
        why = refused_by_cpu(func, schema.op, args, kwargs, every, self.integers)
        if why:
            raise RefusedError(why)

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
        op.ins = [(v.shape, v.field) for t in tensors_in(args) if (v := self.value(t)).field is not None]
        with torch._C.DisableTorchFunction(), self.dispatch:  # kernels in Python call torch functions too
            result = execute(func, args, kwargs)
        if getrefcount(_getframe()) > _HELD:
            gc.collect(0)
        self.drop_inner(tensors_in((result, *args, *kwargs.values())))
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
            found = [(self.value(t), t) for t in tensors_in([result])]
            reached = [(v, t) for v, t in found if v.field is not None]
            if not reached:
                return
            # Of a value and its tangent the latter is what was asked for.
            v, size = reached[-1 if func is UNPACK_DUAL else 0][0], sum(nbytes_of(t) for _, t in reached)
        field = v.field
        if field is None:
            return
        op.op, op.shape, op.field, op.nbytes = call_name(func), v.shape, field, size
        self.events.append(op)
