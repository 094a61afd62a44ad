"""The one table: torch function -> surrogate, and the call that a surrogate stands in for."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from rfcalc.analysis.calls import call_name
from rfcalc.errors import InputError

NEGLIGIBLE = 1e-6  # an interpolation weight below this is rounding noise, not a tap


def map_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """Apply to every leaf of nested tuples, lists and dicts."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_leaves(v, change) for v in value))
    if type(value) in (tuple, list):
        return type(value)(map_leaves(v, change) for v in value)
    if type(value) is dict:
        return {k: map_leaves(v, change) for k, v in value.items()}
    return change(value)


_DOUBLE = {torch.float16: torch.float64, torch.bfloat16: torch.float64, torch.float32: torch.float64}
_DOUBLE |= {torch.complex32: torch.complex128, torch.complex64: torch.complex128}


def doubled(value: Any) -> Any:
    return _DOUBLE.get(value, value) if type(value) is torch.dtype else value


def tensors_in(*values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from tensors_in(*value)
        elif isinstance(value, dict):
            yield from tensors_in(*value.values())


@lru_cache(maxsize=512)
def signature_of(func: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(func) if isinstance(func, types.FunctionType) else None
    except ValueError:  # it wraps a function of C's: `x ** 2`
        return None


def is_torchs_own(func: Any) -> bool:
    """Not an op of a library of the user's that bears a known name."""
    name = str(getattr(func, "_qualified_op_name", None) or getattr(func, "_name", "aten::"))
    return name.startswith(("aten::", "torchvision::"))


IN_PLACE_OPERATORS = frozenset(
    "iadd isub imul itruediv ifloordiv imod ipow imatmul iand ior ixor ilshift irshift idiv".split()
)
# Names of conversions that would leave float64.
_TO_DOUBLE = frozenset(("float", "half", "bfloat16"))


@dataclass
class Call:
    """One call in progress. `base` is its name without the underscore of the in-place form."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shadows: dict[int, tuple[Tensor, Tensor]]
    curved: bool = False  # the forward differentiates
    base: str = field(init=False)
    in_place: bool = field(init=False)

    def __post_init__(self) -> None:
        raw = getattr(self.func, "__name__", "")
        name = call_name(self.func).split(".")[0]
        self.in_place = raw.strip("_") in IN_PLACE_OPERATORS or (name.endswith("_") and not name.endswith("__"))
        self.base = name.rstrip("_") or name
        signature = signature_of(self.func)
        if signature is not None and "inplace" in signature.parameters:
            bound = signature.bind(*self.args, **self.kwargs).arguments
            self.in_place = self.in_place or bool(bound.get("inplace"))
        first = next((k for k in ("input", "self") if k in self.kwargs), None)
        if first is not None and not self.args:
            rest = {k: v for k, v in self.kwargs.items() if k != first}
            self.args, self.kwargs = (self.kwargs[first],), rest

    def run(self) -> Any:
        """The result, with a surrogate's dependence where there is one."""
        every = list(tensors_in(self.args, self.kwargs))
        if self.base in _TO_DOUBLE and every:
            shadow = self._shadow(every[0])
            return every[0].double() if shadow is None else shadow
        shadowed = any(id(t) in self.shadows for t in every)
        if not shadowed and not any(t.requires_grad for t in every):
            return self.real()
        self._refuse_real_indices()
        surrogate = SURROGATES.get(self.base) if is_torchs_own(self.func) else None
        if surrogate is None:
            result = self.real()
            return self.follow(result) if shadowed else result
        target = self.kwargs.pop("out", None)
        result = surrogate(self, *self.args, **self.kwargs)
        if self.curved and self.base in CURVES and isinstance(result, Tensor):
            result = bent(result)
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
        return next(tensors_in(self.values())).shape

    def values(self) -> Any:
        """The real result, without a gradient and without touching the arguments."""
        with torch.no_grad():
            if self.in_place:
                copies = map_leaves((self.args, self.kwargs), lambda v: v.clone() if isinstance(v, Tensor) else v)
                return self.func(*copies[0], **copies[1])
            return self.real()

    def operands(self) -> list[Tensor]:
        """The tensors among the arguments that depend on the input, shadows in place of what they stand for."""
        found = (self._shadow(t) if id(t) in self.shadows else t for t in tensors_in(self.args, self.kwargs))
        return [t for t in found if t is not None and t.requires_grad]

    def cast_shadow(self, result: Tensor, shadow: Tensor) -> Tensor:
        """Remember what a boolean or integer result depends on."""
        self.shadows[id(result)] = (result, shadow)
        return result

    def whole(self, total: Tensor) -> Tensor:
        """Arithmetic on integers that depend on the input gives integers, which go on as indices."""
        if all(t.is_floating_point() or t.is_complex() for t in tensors_in(self.args, self.kwargs)):
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
        args, kwargs = map_leaves((self.args, self.kwargs), lambda v: self.shadow_of(v) if id(v) in self.shadows else v)
        shadow = self.func(*args, **kwargs)
        if isinstance(shadow, Tensor) and shadow.requires_grad and shadow.shape == result.shape:
            if result.is_floating_point():
                return shadow
            return self.cast_shadow(result, shadow)
        return result

    def _refuse_real_indices(self) -> None:
        if self.base in INDEXING:
            places = self.args[1:2] if self.base == "setitem" else (*self.args[1:], *self.kwargs.values())
            if any(
                t.requires_grad for t in tensors_in(places) if self.base in ("getitem", "setitem") or t is places[-1]
            ):
                raise InputError(
                    f"`{self.base}` takes an input as index; the oracle differentiates and cannot feed integers"
                )


INDEXING = frozenset("getitem setitem index_select gather take take_along_dim".split())


# ----------------------------------------------------------------------------------------------------- surrogates

SURROGATES: dict[str, Callable[..., Any]] = {}
CURVES: set[str] = set()  # those whose derivative depends on where it is taken; `backward.py` fills it


def bent(x: Tensor) -> Tensor:
    """The same dependence, curved upwards: the derivative depends on x too. Its values stay in range."""
    finite = x.detach().isfinite()
    held = torch.where(finite, x, 0)
    scale = held.detach().abs().max().clamp(min=1e-30) if x.numel() else 1.0
    return torch.where(finite, held * (1 + held / scale) / 2, x)


PRODUCTS = frozenset("mul multiply div divide true_divide truediv".split())


def multiplied(call: Call, a: Any, b: Any) -> Tensor:
    """A product or quotient as it is: its derivative by the one is the other, and nothing here is negative."""
    if getattr(call.func, "__name__", "") in ("__rdiv__", "__rtruediv__"):
        a, b = b, a
    a = a.clone() if call.in_place else a
    if call.base in ("mul", "multiply"):
        return torch.mul(a, b)
    return torch.mul(a, bent(b) if isinstance(b, Tensor) and b.requires_grad else 1.0)


def surrogate(names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a stand-in, called with the `Call` and the arguments of the call; a second one is refused."""

    def register(fn: Callable[..., Any]) -> Callable[..., Any]:
        for name in names.split():
            if name in SURROGATES:
                raise ValueError(f"{name} has a surrogate already")
        SURROGATES.update(dict.fromkeys(names.split(), fn))
        return fn

    return register


def summed(parts: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """The sum, broadcast, in memory of its own."""
    total = parts[0]
    for part in parts[1:]:
        total = torch.add(total, part)
    return total.expand(tuple(shape)).clone()


def with_parameters(total: Tensor, given: Sequence[Any], after: int = 0) -> Tensor:
    """A result, and of its weights, biases and statistics those that depend on the input: each lies along the dims that
    stand before the last `after`."""
    for p in given:
        if isinstance(p, Tensor) and p.requires_grad:
            total = total + p.reshape(*p.shape, *[1] * after)
    return total


def ones_like(x: Tensor) -> Tensor:
    """The same dependence at value 1 (0 where it is 0: masked), so that products stay positive and in range."""
    held = x.detach()
    return torch.where(held == 0, x, at_value(x, torch.ones_like(held)))


def at_value(x: Tensor, value: Tensor) -> Tensor:
    """The dependence of x at another value; an infinite x depends on nothing."""
    held = x.detach()
    return torch.where(held.isfinite(), x - held.nan_to_num(), 0) + value


def mean_over(x: Tensor, dims: Sequence[int]) -> Tensor:
    """The mean over dims that stay as size 1; entries of -inf are masked and take no part."""
    if x.ndim == 0:
        return x
    if x.is_complex() or not bool(x.detach().isneginf().any()):
        return x.mean(tuple(dims), keepdim=True)
    seen = ~x.detach().isneginf()
    count = seen.sum(tuple(dims), keepdim=True).clamp(min=1)
    return torch.where(seen, x, 0).sum(tuple(dims), keepdim=True) / count


def dims_of(x: Tensor, dim: Any) -> tuple[int, ...]:
    """A `dim` argument; anything that is none means all dims."""
    if isinstance(dim, int) and not isinstance(dim, bool):
        return (dim,)
    if isinstance(dim, tuple | list) and dim and all(isinstance(d, int) for d in dim):
        return tuple(dim)
    return tuple(range(x.ndim))


def lifted(x: Tensor) -> Tensor:
    return x + (x.detach() == 0)
