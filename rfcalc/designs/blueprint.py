"""Construction without storage: a model's modules and shapes, with no weight allocated and nothing initialised.

`blueprint(Net)` runs the constructor as it is, but what would become a weight lives on the meta device. Small
tensors that carry values (masks, index tables, running statistics) stay real on the CPU: they are structure, and
the analysis reads them. The caller's random state is left as it was.
"""

from __future__ import annotations

import copy
import gc
import math
import random
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import RLock, get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter
from torch.overrides import TorchFunctionMode

META = torch.device("meta")

# A constant of so many elements stays real, a square one up to a mask of 2048 x 2048. A larger one is a weight.
LARGEST_TABLE, LARGEST_MASK = 2**16, 2**22

_WHOLE_NUMBERS = frozenset((torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64))

Kwargs = Mapping[str, Any]
Handler = Callable[[Callable[..., Any], tuple[Any, ...], Kwargs], Any]


def _weight(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Kwargs) -> Any:
    """A factory whose values nobody reads: random, or whatever was in memory."""
    return func(*args, **{**kwargs, "device": META})


def _normal(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Kwargs) -> Any:
    """torch.normal takes a device only in the form that names a size."""
    if "size" in kwargs or len(args) >= 3:
        return func(*args, **{**kwargs, "device": META})
    return func(*args, **kwargs)


def _is_table(size: Sequence[int]) -> bool:
    """Whether someone may read the values of a constant of that size."""
    square = len(size) > 1 and size[-1] == size[-2]
    return math.prod(size) <= (LARGEST_MASK if square else LARGEST_TABLE)


def _constant(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Kwargs) -> Any:
    """zeros, ones, full, eye: real, unless larger than any table one would read."""
    if len(args) == 1 and type(args[0]) is int and args[0] <= 2**11:  # a norm's statistics: thousands
        return func(*args, **kwargs)
    size = kwargs.get("size", args[0] if args and isinstance(args[0], list | tuple) else args)
    if func is torch.eye:
        size = (*args, *args)[:2]
    whole_numbers = kwargs.get("dtype") in _WHOLE_NUMBERS
    if not whole_numbers and all(isinstance(n, int) for n in size) and not _is_table(size):
        kwargs = {**kwargs, "device": META}
    return func(*args, **kwargs)


def _write(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Kwargs) -> Any:
    """An in-place change of values: nothing to do on a tensor that has none."""
    target: Tensor = args[0]
    return target if target.is_meta else func(*args, **kwargs)


def _fill(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Kwargs) -> Any:
    """`fill_`, `zero_`: every value is known now, so a table becomes real: many masks start as
    torch.empty(n, n).fill_(-inf).triu_(1)."""
    target: Tensor = args[0]
    if not target.is_meta:
        return func(*args, **kwargs)
    if type(target) is Tensor and not target._is_view() and _is_table(target.shape):
        real = func(torch.empty_like(target, device="cpu"), *args[1:], **kwargs)
        torch.utils.swap_tensors(target, real)  # type: ignore[no-untyped-call]
    return target


def _initialise(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Kwargs) -> Any:
    """A function of torch.nn.init that arrives here whole."""
    target: Tensor = args[0] if args else kwargs["tensor"]
    return target if target.is_meta else func(*args, **kwargs)


def _move(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Kwargs) -> Any:
    """`to`, `cpu`, `cuda` of a storage-less tensor: it stays where it is and takes the new dtype."""
    target: Tensor = args[0]
    if not target.is_meta:
        return func(*args, **kwargs)
    wanted = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, torch.dtype)]
    return target.to(wanted[0]) if wanted else target


_WRITES = (
    "normal_ uniform_ exponential_ cauchy_ log_normal_ geometric_ bernoulli_ random_ copy_ erfinv_ "
    "clamp_ clamp_min_ clamp_max_ mul_ add_ sub_ div_ neg_ sqrt_ rsqrt_ exp_ log_ pow_ abs_ sign_ reciprocal_ "
    "masked_fill_ fill_diagonal_ tril_ triu_ index_fill_ __imul__ __iadd__ __isub__ __itruediv__"
).split()

_HANDLERS: dict[Callable[..., Any], Handler] = {
    **dict.fromkeys((torch.empty, torch.rand, torch.randn, torch.empty_strided), _weight),
    **dict.fromkeys((torch.empty_like, torch.rand_like, torch.randn_like), _weight),
    torch.normal: _normal,
    **dict.fromkeys((torch.zeros, torch.ones, torch.full, torch.eye), _constant),
    **{getattr(Tensor, name): _write for name in _WRITES},
    **dict.fromkeys((Tensor.fill_, Tensor.zero_), _fill),
    **{getattr(nn.init, name): _initialise for name in ("uniform_", "normal_", "constant_", "kaiming_uniform_")},
    **dict.fromkeys((Tensor.to, Tensor.cpu, Tensor.cuda), _move),
}

_NO_KWARGS: dict[str, Any] = {}


class Blueprint(TorchFunctionMode):
    """The mode under which torch makes weights without storage. See the module's docstring."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Kwargs | None = None
    ) -> Any:
        handler = _HANDLERS.get(func)
        if handler is not None:
            return handler(func, args, kwargs or _NO_KWARGS)
        try:
            return func(*args, **(kwargs or _NO_KWARGS))
        except RuntimeError:
            moved = _on_meta(func, args, kwargs or _NO_KWARGS)
            if moved is None:
                raise
            return func(*moved[0], **moved[1])


def _on_meta(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Kwargs
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The arguments with every real tensor made storage-less; None when the two kinds were not mixed.

    Also None when a real tensor would have been written: its values would be lost behind the caller's back.
    """
    tensors = list(_tensors((args, dict(kwargs))))
    mixed = any(t.is_meta for t in tensors) and not all(t.is_meta for t in tensors)
    name = getattr(func, "__name__", "")
    writes = name in ("__setitem__", "__set__") or (name.endswith("_") and not name.endswith("__"))
    if not mixed or "out" in kwargs or (writes and not tensors[0].is_meta):
        return None
    return _mapped(args), _mapped(dict(kwargs))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _mapped(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(META)
    if type(value) in (list, tuple):
        return type(value)(_mapped(item) for item in value)
    if type(value) is dict:
        return {key: _mapped(item) for key, item in value.items()}
    return value


def _empty_parameter(param: Parameter) -> Parameter:
    """The parameter without its storage: same shape, dtype, `requires_grad` and attributes."""
    twin = Parameter(torch.empty_like(param, device=META), requires_grad=param.requires_grad)
    twin.__dict__.update(param.__dict__)
    return twin


def _is_weight(param: Any) -> bool:
    """A plain floating-point parameter that still has storage. An integer one is an index table: structure."""
    return type(param) is Parameter and not param.is_meta and (param.is_floating_point() or param.is_complex())


class _Twins:
    """Real parameter -> its storage-less twin, so that a parameter registered twice stays one parameter."""

    def __init__(self) -> None:
        self._twins: dict[int, tuple[weakref.ref[Parameter], Parameter]] = {}

    def of(self, param: Parameter) -> Parameter:
        if not _is_weight(param):
            return param
        known = self._twins.get(id(param))
        # An id is reused once its tensor is gone: the weak reference tells.
        if known is not None and known[0]() is param:
            return known[1]
        twin = _empty_parameter(param)
        self._twins[id(param)] = (weakref.ref(param), twin)
        return twin


# Beyond the mode: nn.Module's own bookkeeping and nn.init's preludes take most of a construction without storage. Each
# replacement below does what the original does, in its common case first; together they halve DenseNet-121's time.
_INITIALISERS = (
    "uniform_ normal_ trunc_normal_ constant_ ones_ zeros_ eye_ dirac_ xavier_uniform_ xavier_normal_ "
    "kaiming_uniform_ kaiming_normal_ orthogonal_ sparse_"
).split()
_RESETTING = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.Embedding)
_PARTS = ("parameter", "buffer", "module")
_PLAIN = frozenset({bool, int, float, str, tuple, type(None)})


def _skip_init(original: Callable[..., Any], builder: int) -> Callable[..., Any]:
    def initialise(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if type(tensor) is Parameter and get_ident() == builder:
            return tensor
        return original(tensor, *args, **kwargs)

    return initialise


def _skip_reset(original: Callable[..., Any], builder: int) -> Callable[..., Any]:
    def reset_parameters(self: nn.Module) -> None:
        if get_ident() != builder:
            original(self)

    return reset_parameters


def _quick_register(original: Callable[..., Any], builder: int, twins: _Twins) -> Callable[..., Any]:
    """nn.Module.register_parameter; a parameter loses its storage on the way in."""

    def register_parameter(self: nn.Module, name: str, param: Parameter | None) -> None:
        original(self, name, twins.of(param) if param is not None and get_ident() == builder else param)

    return register_parameter


def _quick_setattr(
    original: Callable[..., Any], register: Callable[..., Any], builder: int, twins: _Twins
) -> Callable[..., Any]:
    """nn.Module.__setattr__; `register` is what a class that has no register_parameter of its own has now."""
    plain_set = object.__setattr__

    def __setattr__(self: nn.Module, name: str, value: Any) -> None:  # noqa: N807
        state = self.__dict__
        modules = state.get("_modules")
        if type(modules) is dict:
            parameters, buffers = state["_parameters"], state["_buffers"]
            kind = type(value)
            if kind is Parameter:
                owner = type(self)
                free = name not in state and name not in modules and name not in buffers
                stock = owner.register_parameter is register and not hasattr(owner, name)
                if free and stock and get_ident() == builder:
                    parameters[name] = twins.of(value)
                    return
            elif name not in parameters and name not in buffers:
                if kind in _PLAIN and name not in modules:
                    plain_set(self, name, value)
                    return
                if isinstance(value, nn.Module) and name not in state:
                    modules[name] = value
                    return
        original(self, name, value)

    return __setattr__


def _quick_init(original: Callable[..., Any]) -> Callable[..., Any]:
    """nn.Module.__init__ without its eighteen calls: the same attributes in the same order."""
    blank = vars(nn.Module())
    parts = [(name, None if value is None or value is True else type(value), value) for name, value in blank.items()]

    def __init__(self: nn.Module, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        if args or kwargs or self.call_super_init:
            original(self, *args, **kwargs)
            return
        state = self.__dict__
        for name, container, value in parts:
            state[name] = value if container is None else container()

    return __init__


def _quick_buffer(original: Callable[..., Any]) -> Callable[..., Any]:
    """nn.Module.register_buffer with the common case first: a tensor under a name that nothing else has."""

    def register_buffer(self: nn.Module, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        state = self.__dict__
        if type(tensor) is Tensor and persistent and "_buffers" in state and type(name) is str and name.isidentifier():
            others = name in state or name in state["_parameters"] or name in state["_modules"]
            if not others and not hasattr(type(self), name):
                state["_buffers"][name] = tensor
                return
        original(self, name, tensor, persistent)

    return register_buffer


def _registration_is_watched() -> bool:
    """Whether someone wants to hear of every new part of a module; the quick ways would not tell him."""
    return any(getattr(nn.modules.module, f"_global_{part}_registration_hooks") for part in _PARTS)


_building = RLock()


def _replacements(builder: int) -> list[tuple[Any, str, Callable[..., Any]]]:
    """Owner, name and what stands there during a construction in the thread `builder`."""
    twins = _Twins()
    register = _quick_register(nn.Module.register_parameter, builder, twins)
    found: list[tuple[Any, str, Callable[..., Any]]] = [
        *((nn.init, name, _skip_init(getattr(nn.init, name), builder)) for name in _INITIALISERS),
        *((kind, "reset_parameters", _skip_reset(kind.reset_parameters, builder)) for kind in _RESETTING),
        (nn.Module, "register_parameter", register),
        (nn.Module, "__init__", _quick_init(nn.Module.__init__)),
    ]
    if _registration_is_watched():
        return found
    return [
        *found,
        (nn.Module, "register_buffer", _quick_buffer(nn.Module.register_buffer)),
        (nn.Module, "__setattr__", _quick_setattr(nn.Module.__setattr__, register, builder, twins)),
    ]


@contextmanager
def _initialisation_skipped() -> Iterator[None]:
    """Within, this thread's modules register storage-less parameters and do not initialise them.

    Other threads see the replacements too, and find the originals behind them; a second construction waits.
    """
    with _building:
        replacements = _replacements(get_ident())
        originals = [(owner, name, getattr(owner, name)) for owner, name, _ in replacements]
        try:
            for owner, name, replacement in replacements:
                setattr(owner, name, replacement)
            yield
        finally:
            for owner, name, original in originals:
                setattr(owner, name, original)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    numpy_random = sys.modules.get("numpy.random")
    numpy_state = numpy_random.get_state() if numpy_random is not None else None
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        if numpy_random is not None:
            numpy_random.set_state(numpy_state)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Thousands of new objects, none of them garbage: the collector would walk them a dozen times."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


@contextmanager
def initialisation_warnings_hidden() -> Iterator[None]:
    """Hide what a constructor says about initial weights alone: torchvision's GoogLeNet and Inception v3 announce
    another default, and loading into storage-less parameters is a no-op on purpose."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The default weight initialization of", FutureWarning)
        warnings.filterwarnings("ignore", ".*copying from a non-meta parameter in the checkpoint", UserWarning)
        yield


def blueprint(make: Callable[[], Any]) -> Any:
    """What `make()` returns, built without allocating or initialising weights.

    Raises whatever `make` raises; a constructor that reads the values of its weights cannot be built this way.
    """
    with (
        _random_state_kept(),
        _collector_paused(),
        initialisation_warnings_hidden(),
        _initialisation_skipped(),
        Blueprint(),
    ):
        return make()


def emptied(model: nn.Module) -> nn.Module:
    """A deep copy of the model whose weights have no storage; ties and buffers are kept."""
    memo: dict[int, Any] = {id(p): _empty_parameter(p) for p in model.parameters() if _is_weight(p)}
    return copy.deepcopy(model, memo)
