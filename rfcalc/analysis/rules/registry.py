"""The one table: op -> rule. A rule is shape and index arithmetic over fields.

An op is known by its namespace and name as torch writes them, `torchvision::nms`; an ATen op by its name alone, as no
other op can be: one of the same name in a user's own library is another op. A rule is called as
`rule(call, *args, **kwargs)` with the arguments of the op, every tensor replaced by a `Value`. It returns the `Field`
of the output (None: depends on no input), or a tuple of them for several outputs.
In-place and `out=` forms share the rule of the plain op: `relu_` is looked up as `relu`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from rfcalc.analysis.field import Field, broadcast, everything, join, mix
from rfcalc.analysis.parts import Shape
from rfcalc.analysis.pattern import Pattern

Result = Field | None | tuple[Field | None, ...]
Rule = Callable[..., Result]
WriteBack = Callable[[Field | None, Field | None], Field | None]


class Value:
    """What a rule may know of a tensor: its shape, its dependence, and its numbers where they are structure.

    `const` is a CPU tensor for masks and index tables (arange, tril, buffers), None where unknown; of a constant too
    large to be built there is the `pattern`.
    """

    __slots__ = ("const", "field", "pattern", "shape")

    def __init__(self, shape: Shape, field: Field | None = None, const: Any = None) -> None:
        self.shape, self.field, self.const = shape, field, const
        self.pattern: Pattern | None = None


class Window(NamedTuple):
    """The geometry a table prints for an op: one entry per spatial dim. `padding` is (before, after)."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1


class Call:
    """One op being interpreted: its name, the shapes of its outputs, and what the rule has to say beside the field."""

    __slots__ = ("op", "out", "window", "write_back", "write_backs", "writes")

    def __init__(self, op: str, out: tuple[Shape, ...]) -> None:
        self.op, self.out = op, out
        self.window: Window | None = None
        # For views: (parent's old field, the view's new field) -> parent's new field.
        self.write_back: WriteBack | None = None
        self.write_backs: list[WriteBack | None] = []  # the same, one per output, for views in several pieces
        self.writes: tuple[tuple[Value, Field | None], ...] = ()  # what it writes to though its schema says nothing


RULES: dict[str, Rule] = {}


def register(op: str, rule: Rule) -> None:
    """Give an op its rule. Ops of one's own have a namespace; a second rule for the same op is refused.

    The rule gets a `Call` (the op and its output shapes) and the op's arguments, every tensor as a `Value`, and says
    what the output depends on. In-place forms (`name_`) share the rule of the plain op. For an op that works element by
    element it is there already:

    >>> import torch
    >>> import rfcalc
    >>> from rfcalc import register
    >>> from rfcalc.analysis.rules import elementwise
    >>> library = torch.library.Library("rfcalc_example", "DEF")
    >>> library.define("twice(Tensor x) -> Tensor")
    'twice'
    >>> library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
    >>> class Net(torch.nn.Module):
    ...     def forward(self, x):
    ...         return torch.ops.rfcalc_example.twice(x)
    >>> rfcalc.analyze(Net(), (1, 8, 8)).approximate_ops
    ('rfcalc_example::twice',)
    >>> register("rfcalc_example::twice", elementwise)
    >>> rfcalc.analyze(Net(), (1, 8, 8)).approximate_ops
    ()
    """
    op = op.removeprefix("aten::")
    if op in RULES:
        raise ValueError(f"{op} has a rule already")
    RULES[op] = rule


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """`register` as a decorator, for one or more ops."""

    def decorate(fn: Rule) -> Rule:
        for op in ops:
            register(op, fn)
        return fn

    return decorate


def named(func: Any) -> str:
    """The name of a torch op in the table."""
    name: str = func._schema.name
    return name.removeprefix("aten::")


def values(args: Iterable[Any]) -> Iterator[Value]:
    """Every Value among arguments, also inside lists and tuples."""
    for a in args:
        if type(a) is Value or isinstance(a, Value):
            yield a
        elif isinstance(a, list | tuple):
            yield from values(a)


def unknown(call: Call, *args: Any, **kwargs: Any) -> Result:
    """An op without a rule: never guessed, never dropped. Everything joins, and the op is named."""
    whole = _whole(args, kwargs, call.op)
    return tuple(whole for _ in call.out) if len(call.out) != 1 else whole


def everywhere(call: Call, *args: Any, **kwargs: Any) -> Result:
    """An op that truly may look anywhere (its positions depend on data): global, and no approximation."""
    whole = _whole(args, kwargs, None)
    return tuple(whole for _ in call.out) if len(call.out) != 1 else whole


def _whole(args: tuple[Any, ...], kwargs: dict[str, Any], op: str | None) -> Field | None:
    fields = [everything(v.field, op) for v in values((*args, *kwargs.values())) if v.field is not None]
    return mix(join(fields)) if fields else None


def pointwise(call: Call, *args: Any, **kwargs: Any) -> Result:
    """Element by element, with broadcasting: the hull of all operands."""
    out = call.out[0]
    fields = [broadcast(v.field, v.shape, out) for v in values((*args, *kwargs.values())) if v.field is not None]
    field = (fields[0].unmasked() if len(fields) == 1 else join(fields)) if fields else None
    return field if len(call.out) == 1 else tuple(field for _ in call.out)


def dim_of(dim: int, ndim: int) -> int:
    return dim % max(ndim, 1)


def dims_of(dim: int | Iterable[int] | None, ndim: int) -> tuple[int, ...]:
    """Normalise a `dim` argument; None and () mean all dims."""
    if dim is None:
        return tuple(range(ndim))
    if isinstance(dim, int):
        return (dim_of(dim, ndim),)
    dims = tuple(dim_of(d, ndim) for d in dim)
    return dims or tuple(range(ndim))


def spatial(value: int | Iterable[int] | None, n: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
    """`2`, `[2]` or `[2, 3]` as one entry per spatial dim."""
    if value is None:
        return default
    if isinstance(value, int):
        return (value,) * n
    out = tuple(value)
    return default if not out else out * n if len(out) == 1 else out
