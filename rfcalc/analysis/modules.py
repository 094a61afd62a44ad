"""Knowing at every moment which module is running: each module's own call is wrapped for the length of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from rfcalc.analysis.events import Event, Frame, Layer
from rfcalc.analysis.run import Run
from rfcalc.analysis.tree import is_scripted
from rfcalc.analysis.values import RuleError, execute

_pop_mode, _push_mode = torch._C._pop_torch_function_stack, torch._C._push_on_torch_function_stack
_modes_on, _mode_count = torch._C._is_torch_function_mode_enabled, torch._C._len_torch_function_stack
_mode_at = torch._C._get_function_stack_at


def attribute(run: Run, modules: Sequence[nn.Module]) -> None:
    """Know at every moment which module is running: each module's own call is wrapped.

    An instance attribute does it. Patching the class would empty the type caches of every module class in the process.
    `untouched` takes the attribute away again.
    """
    plain = run.layers.keys() & set(map(type, modules)) if _torchs_own(nn.Module, "_call_impl") else ()
    layers = {kind: run.layers[kind] for kind in plain if _is_pristine(kind)}
    for module in modules:
        d = module.__dict__
        layer = layers.get(type(module)) if _OVERRIDES.isdisjoint(d) else None
        inner = module._call_impl
        if is_scripted(type(module)):  # type: ignore[arg-type]  # mypy asks the instances for the hash
            inner = _scripted(run, inner)
        d["_call_impl"] = _framed(run, module, inner) if layer is None else _at_once(run, module, layer, inner)


_OVERRIDES = frozenset(("forward", "_conv_forward", "_call_impl"))


def _is_pristine(kind: type[nn.Module]) -> bool:
    """Nobody has patched what a call of this layer of torch runs through."""
    return all(_torchs_own(kind, name) for name in ("forward", "_conv_forward") if hasattr(kind, name))


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

    short = run.shortcuts[layer.function]

    def call(*args: Any, **kwargs: Any) -> Any:
        rest = _arguments(run, module, layer, args, kwargs)
        result = NotImplemented if rest is None else _answer(run, module, layer.function, short, args[0], rest)
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


def _answer(
    run: Run, module: nn.Module, function: Any, short: Callable[..., Any], x: Any, rest: tuple[Any, ...]
) -> Any:  # fmt: skip
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
            result = short(run, op, x, *rest)
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
