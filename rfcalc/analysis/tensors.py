"""What is known of every tensor of a run: fields, numbers and views of each other; and what of the user's was changed.

A `Tensors` is one run's memory. It knows the one way to apply a rule, because a view is read again by its rule when
what it is a view of was written to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rfcalc.analysis.events import Event
from rfcalc.analysis.field import Field, join
from rfcalc.analysis.rules import RULES, Call, Value, unknown
from rfcalc.analysis.rules.registry import Result
from rfcalc.analysis.schemas import (
    SET_DATA,
    Schema,
    schema_of,
)
from rfcalc.analysis.values import (
    KEY,
    Cell,
    Ledger,
    NeedsValuesError,
    RuleError,
    Traced,
    UnseenOpError,
    alike,
    fresh,
    map_tensors,
    nbytes_of,
    tensors_in,
)

is_wrapped, unwrapped = torch._C._functorch.is_functorch_wrapped_tensor, torch._C._functorch.get_unwrapped


class Tensors:
    """The values of a run's tensors, and of the user's what has to be put back."""

    def __init__(self, params: dict[int, Any], buffers: set[int], exhaustive: bool) -> None:
        self.params, self.buffers = params, buffers
        self.exhaustive = exhaustive  # level 1: the dispatch mode is on all the time
        self.ledger = Ledger()
        self.op: Event | None = None
        self.used: set[int] = set()
        self.known: dict[int, tuple[Value, Tensor]] = {}
        self.pristine = buffers.union(params)  # weights and buffers that nothing has asked for or written to
        self.stand_ins: dict[int, tuple[Tensor, Tensor]] = {}
        self.saved: list[tuple[Tensor, Tensor]] = []
        self.moved: dict[int, tuple[Tensor, Tensor]] = {}  # of the user's, with an alias as they were
        self.flags: dict[int, tuple[Tensor, bool, Tensor | None]] = {}
        self.marked: list[Tensor] = []
        self.made: list[Cell] = []  # within one call of a torch function that its shortcut left to torch

    @staticmethod
    def interpret(rule: Callable[..., Result], call: Call, *args: Any, **kwargs: Any) -> Result:
        """The one way to apply a rule, at both levels. Raises RuleError where it gives up or fails."""
        try:
            return rule(call, *args, **kwargs)
        except Exception as error:
            raise RuleError(f"{type(error).__name__}: {error}") from error

    def value(self, t: Tensor) -> Value:
        """What is known of a tensor; weights and buffers get an entry when first seen."""
        hit = self.known.get(id(t))
        if hit is not None:
            if id(t) in self.params:
                self._use(id(t))
            return hit[0]
        v = t.__dict__.get(KEY)
        if v is not None:
            return fresh(v)
        if is_wrapped(t):
            return self.value(unwrapped(t))
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
        self.pristine.discard(id(t))
        return v

    def values(self, tensors: Sequence[Tensor]) -> list[Value]:
        """`value` of each plain tensor. Most were made in the run, and nothing has written to them since."""
        return [
            v if (v := t.__dict__.get(KEY)) is not None and v.version == v.cell.version else self.value(t)
            for t in tensors
        ]

    def _use(self, ident: int) -> None:
        self.used.add(ident)
        if self.op is not None:
            self.op.params.append(ident)

    def attach(self, t: Tensor, v: Traced) -> None:
        t.__dict__[KEY] = v
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
        v.replay = replay_of(rule, call, vargs, vkwargs or {}, parent, i)
        v.back = (call.write_backs[i] if call.write_backs else call.write_back) or identity_back(rule)
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
        kept = {id(v.cell) for t in seen if (v := t.__dict__.get(KEY)) is not None}
        for cell in self.made:
            if id(cell) not in kept:
                cell.release()
        self.made = []

    # -- the world outside

    def placed(self, func: Any, args: Any, kwargs: Any, every: Sequence[Tensor]) -> tuple[Any, Any]:
        """Where storage-less tensors meet weights that have storage, storage-less stand-ins take the weights' place."""
        if not any(t.is_meta for t in every) or all(t.is_meta for t in every):
            return args, kwargs
        if schema_of(func).op == "tensor_split":  # where to split is read off a tensor on the CPU
            return args, kwargs
        if schema_of(func).op in ("copy", "_to_copy", "to") and not every[0].is_meta:
            raise NeedsValuesError("a copy from the traced input into a tensor with storage")
        return map_tensors(list(args), self.stand_in), {k: map_tensors(v, self.stand_in) for k, v in kwargs.items()}

    def unbuilt(self, schema: Schema, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The same op, storage-less: for a constant of which only the pattern is kept."""
        margs, mkwargs = (
            map_tensors(list(args), self.stand_in),
            {k: map_tensors(v, self.stand_in) for k, v in kwargs.items()},
        )
        if "device" in schema.names:
            mkwargs["device"] = torch.device("meta")
        return margs, mkwargs

    def stand_in(self, t: Tensor) -> Tensor:
        if t.is_meta:
            return t
        hit = self.stand_ins.get(id(t))
        if hit is None:
            compressed = t.layout not in (torch.strided, torch.sparse_coo)
            strides = torch.empty(t.shape, device="meta").stride() if compressed else t.stride()
            empty = torch.empty_strided(t.shape, strides, dtype=t.dtype, device="meta")
            if id(t) not in self.known:  # an intermediate: holding on to it would count it as live memory
                empty.__dict__[KEY] = self.value(t)
                return empty
            hit = self.stand_ins[id(t)] = (empty, t)
            self.known[id(empty)] = (self.value(t), empty)
        return hit[0]

    def changed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """`t.data = y`, `t.requires_grad = False`, `t.grad = None`: a tensor of the user's is noted as it was."""
        t = args[0]
        if KEY not in t.__dict__ or id(t) in self.known:
            if func == SET_DATA:
                self.moved.setdefault(id(t), (t, t.detach()))
            elif not t.is_inference():
                self.flags.setdefault(id(t), (t, t.requires_grad, t.grad))
        result = func(*alike(*args), **kwargs) if func == SET_DATA else func(*args, **kwargs)
        if func == SET_DATA:
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
            for t in tensors_in([target]):
                if KEY in t.__dict__:
                    continue
                if schema.reshapes and id(t) not in self.moved:
                    self.moved[id(t)] = (t, t.detach())
                if not t.is_meta and not any(s is t for s, _ in self.saved):
                    self.saved.append((t, t.detach().clone()))

    def restore(self) -> None:
        """Put back what the run changed outside of itself."""
        for t, old in self.moved.values():
            t.data = old
        for t, wanted, grad in self.flags.values():
            t.requires_grad_(wanted).grad = grad
        for t, old in self.saved:
            if t.shape == old.shape:
                t.data.copy_(old)
            else:  # resized by a kernel whose schema does not tell
                t.data = old
        for t in self.marked:
            t.__dict__.pop(KEY, None)


def replay_of(rule: Any, call: Call, vargs: Any, vkwargs: Any, parent: Traced, i: int) -> Any:
    """How to read a view off its parent again."""

    def replay(field: Field | None) -> Field | None:
        if field is None:
            return None
        value = Value(parent.shape, field)
        args = [value if a is parent else a for a in vargs]
        try:
            out = Tensors.interpret(rule or unknown, Call(call.op, call.out), *args, **vkwargs)
        except RuleError:
            out = unknown(Call(call.op, call.out), *args, **vkwargs)
        result: Field | None = out[i] if isinstance(out, tuple) else out
        return result

    return replay


def identity_back(rule: Any) -> Any:
    """detach, alias, contiguous: the view is the whole parent. Real and imaginary parts: half of every element."""
    if rule is RULES["alias"]:
        return lambda old, new: new
    return _either if rule is RULES["real"] else None


def _either(old: Field | None, new: Field | None) -> Field | None:
    both = [f for f in (old, new) if f is not None]
    return join(both) if both else None
