"""What one ATen op does, once torch has executed it: its work, its rule, and what its results share storage with.

Also the numbers of what no input reaches: masks and index tables are structure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from rfcalc.analysis.field import Field, everything, join
from rfcalc.analysis.layout import elements_of
from rfcalc.analysis.numbers import Numbers, sees_no_less
from rfcalc.analysis.pattern import LARGE, LOST, Pattern
from rfcalc.analysis.pattern_ops import FACTORIES, followed
from rfcalc.analysis.rules import RULES, Call, Value, unknown
from rfcalc.analysis.rules.registry import everywhere
from rfcalc.analysis.rules.work import WORK
from rfcalc.analysis.schemas import (
    INDEXED,
    Schema,
    corner,
)
from rfcalc.analysis.tensors import Tensors
from rfcalc.analysis.values import (
    KEY,
    PLAIN,
    NeedsValuesError,
    RuleError,
    Traced,
    execute,
    forget_numbers,
    is_whole,
    map_tensors,
    nbytes_of,
    root_of,
    shares_storage,
    tensors_in,
    values_in,
    write,
    write_pattern,
)


class Ops(Tensors):
    """A run's memory that takes in ATen ops."""

    def __init__(self, params: dict[int, Any], buffers: set[int], exhaustive: bool) -> None:
        super().__init__(params, buffers, exhaustive)
        self.storageless = True  # False: run again on real values, where constants are needed in full
        self.numbers: Numbers | None = None  # of a run on real values
        self.seeds: list[Field] = []
        self.macs = 0
        self.failed: dict[str, str] = {}

    def settle(
        self, func: Any, schema: Schema, rule: Any, args: Any, kwargs: Any, vals: Any, touched: bool, result: Any
    ) -> None:  # fmt: skip
        """Write down what the results of an op depend on, and what they are views of."""
        if self.numbers is None:
            self._settle(func, schema, rule, args, kwargs, vals, touched, result)
            return
        outs = list(tensors_in([result])) if result is not None else []
        strange = self._is_given_strange(schema.op, (*args, *kwargs.values()), outs)
        self._settle(func, schema, rule, args, kwargs, vals, touched, result)
        if strange:
            written = [self._argument(schema, name, args, kwargs) for name in schema.written]
            self._widen(schema.op, outs, list(tensors_in(written)))

    def returned(self, outs: Sequence[Tensor]) -> None:
        """What a forward on real values gives back may have come from outside of torch by no op at all."""
        for t in outs:
            if self._is_given_strange("output", (t,), (t,)):
                self._widen("output", (t,), ())

    def _is_given_strange(self, op: str, given: Any, outs: Sequence[Tensor]) -> bool:
        with _disable_current_modes():
            assert self.numbers is not None
            return self.numbers.follow_the_input(op, given, outs, self.params.keys() | self.buffers)

    def _widen(self, op: str, outs: Sequence[Tensor], written: Sequence[Tensor]) -> None:
        """An op was given numbers that follow from the input's, by ways that no rule sees."""
        whole = join([everything(f, op) for f in self.seeds])

        def wider(field: Field | None) -> Field:
            if field is not None and sees_no_less(field, whole):
                return field
            self.failed.setdefault(op, "it was given numbers that follow from the input's")
            return whole if field is None else join([field, whole])

        for t in {id(t): t for t in (*outs, *written)}.values():
            v = self.value(t)
            if (
                isinstance(v, Traced)
                and v.parent is not None
                and v.replay is not None
                and all(t is not w for w in written)
            ):
                replay = v.replay  # which part of its parent this is follows from the input
                v.field, v.replay, v.back = wider(v.field), lambda field, replay=replay: wider(replay(field)), None
            elif isinstance(v, Traced):
                write(v, wider(v.field))

    def _settle(
        self, func: Any, schema: Schema, rule: Any, args: Any, kwargs: Any, vals: Any, touched: bool, result: Any
    ) -> None:  # fmt: skip
        it = iter(vals)
        vargs = map_tensors(list(args), lambda _: next(it))
        vkwargs = {k: map_tensors(v, lambda _: next(it)) for k, v in kwargs.items()}
        for name in schema.outs:
            vkwargs.pop(name, None)
            for t in tensors_in([kwargs.get(name)]):
                self.resized(t)
        outs = list(tensors_in([result])) if result is not None else []
        work = WORK.get(schema.op)
        if work is not None and outs and touched:
            self.count(work(tuple(outs[0].shape), *vargs, **vkwargs))
        if not touched:
            self._constant(func, schema, rule, args, kwargs, vals, vkwargs, vargs, outs)
            return
        written = [self._argument(schema, name, args, kwargs) for name in schema.written]
        written = [map_tensors(w, self.value) for w in written]
        shapes = tuple(tuple(t.shape) for t in outs) or tuple(v.shape for v in values_in(written))
        if schema.op == "as_strided" and not is_whole(args[0]):
            vkwargs["held"] = (root_of(vargs[0]), elements_of(*args, **kwargs))
        call = Call(schema.op, shapes)
        fields = self.fields(rule, call, vargs, vkwargs)
        for v, f in call.writes:
            if isinstance(v, Traced):
                write(v, f)
        if call.window is not None and self.op is not None:
            self.op.windows.append(call.window)
        self._bind(schema, rule, call, args, kwargs, vargs, vkwargs, outs, fields, written)
        if schema.op in FACTORIES and not schema.written:  # of the input only the shape is used
            self._label(schema, args, outs, self._known(func, schema, args, kwargs, vals, outs))

    def fields(self, rule: Any, call: Call, vargs: Any, vkwargs: Any) -> tuple[Field | None, ...]:
        """One field per output. A rule that fails on its arguments is treated as no rule, and named."""
        try:
            out = self.interpret(rule or unknown, call, *vargs, **vkwargs)
        except RuleError as error:
            self.failed.setdefault(call.op, str(error))
            out = unknown(call, *vargs, **vkwargs)
        return out if isinstance(out, tuple) else (out,) * max(len(call.out), 1)

    def count(self, macs: int) -> None:
        self.macs += macs
        if self.op is not None:
            self.op.macs += macs

    def reshaped(self, func: Any, schema: Schema, rule: Any, args: Any, kwargs: Any) -> Any:
        """An op that gives the tensor itself another shape: it is from now on a view of what it was."""
        t = args[0]
        was, whole, size = self.value(t), is_whole(t), t.numel()
        vkwargs = dict(kwargs)
        if schema.op == "as_strided" and not whole:
            vkwargs["held"] = (root_of(was), elements_of(*args, **kwargs))
        result = execute(func, args, kwargs)
        source = next(tensors_in(args[1:]), None) if schema.op == "set" else None
        if source is not None:
            was, rule = self.value(source), RULES["alias"]
        elif schema.op in ("resize", "resize_as"):  # the elements stay in their order, more or fewer of them
            rule = RULES["reshape"] if whole and size == t.numel() else None
        vargs = [was, *map_tensors(list(args[1:]), self.value)]
        call = Call(schema.op, (tuple(t.shape),))
        field = self.fields(rule, call, vargs, vkwargs)[0]
        if not isinstance(was, Traced):
            self.make(t, field)
            return result
        const = was.const
        self.view(t, was, rule, call, vargs, field, vkwargs)
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

    def _argument(self, schema: Schema, name: str, vargs: Any, vkwargs: Any) -> Any:
        i = schema.names.index(name)
        return vargs[i] if i < len(vargs) else vkwargs.get(name)

    def _bind(
        self, schema: Schema, rule: Any, call: Call, args: Any, kwargs: Any, vargs: Any, vkwargs: Any, outs: Any,
        fields: Any, written: Any,
    ) -> None:  # fmt: skip
        for v, f in zip(values_in(written), _cycled(fields), strict=False):
            if f is not v.field:  # relu_ and the like leave the dependence as it is
                write(v, f)
        many = len(schema.aliases) == 1  # a list of pieces has one entry in the schema
        for i, t in enumerate(outs):
            alias = schema.aliases[0 if many else i] if i < len(schema.aliases) or many else None
            if alias is not None and alias[1]:
                continue  # the written argument itself
            if KEY in t.__dict__ or id(t) in self.known:
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
            every = tensors_in((*args, *kwargs.values()))
            return next((a for a in every if type(t) in PLAIN and shares_storage(a, t)), None)
        source: Tensor = self._argument(schema, alias[0], args, kwargs)
        if type(t) not in PLAIN or t.layout is not torch.strided or source.is_meta is not t.is_meta:
            return source
        return source if shares_storage(source, t) else None

    # -- numbers

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
            result = execute(func, map_tensors(list(args), lambda _: next(consts)), kwargs)
            for t in tensors_in([result]):
                self.make(t, None, t.detach())
            return result
        if any(t.is_meta for t in every):
            raise NeedsValuesError(f"`{schema.op}` asks for numbers")
        result = execute(func, args, kwargs)
        touched = any(v.field is not None for v in vals)
        rule = everywhere if schema.op in INDEXED else RULES.get(schema.op)  # what flags made of the input pick
        self.settle(func, schema, rule, args, kwargs, vals, touched, result)
        return result

    def _constant(
        self, func: Any, schema: Schema, rule: Any, args: Any, kwargs: Any, vals: Any, vkwargs: Any, vargs: Any,
        outs: Any,
    ) -> None:  # fmt: skip
        """An op that no input reaches. What its numbers are is worked out, because masks are structure."""
        consts = self._known(func, schema, args, kwargs, vals, outs)
        for name in schema.written:
            for v in values_in([map_tensors(self._argument(schema, name, args, kwargs), self.value)]):
                above = v.parent is not None and v.parent.pattern is not None
                if above or v.pattern is not None or (consts and not isinstance(consts[0], Tensor)):
                    write_pattern(v, consts[0] if consts else LOST)
                elif not consts:
                    forget_numbers(v)
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
            v = t.__dict__.get(KEY)
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
        cargs = map_tensors(list(args), lambda _: next(it))
        ckwargs = {k: map_tensors(v, lambda _: next(it)) for k, v in kwargs.items()}
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
        return list(tensors_in([execute(func, cargs, ckwargs)]))


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


def _cycled(fields: tuple[Field | None, ...]) -> Iterator[Field | None]:
    while fields:
        yield from fields
