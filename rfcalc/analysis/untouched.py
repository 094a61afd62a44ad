"""A model inside is in evaluation mode; afterwards everything about it is what it was."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from operator import itemgetter
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rfcalc.analysis.outside import Outside, holds_tensor
from rfcalc.analysis.tree import is_scripted

_CONTAINERS = frozenset((dict, list, set))
_tables_of = itemgetter("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")
_OF_EVERY_MODULE = tuple(nn.Module().__dict__)  # set by nn.Module itself, first and in this order


@contextmanager
def untouched(modules: Sequence[nn.Module]) -> Iterator[Outside]:  # noqa: PLR0915, one list of what to put back
    """Evaluation mode inside; afterwards every attribute, buffer, hook and random state is what it was.

    Gives what the functions of the model name.
    """
    snapshots: list[tuple[dict[str, Any], dict[str, Any]]] = []
    tables: list[tuple[Any, Any]] = []
    seen: set[int] = set()
    empty: list[dict[str, Any]] = []
    scripted = [(m, getattr(m, "training", None)) for m in modules if is_scripted(type(m))]  # type: ignore[arg-type]
    for script, training in scripted:
        if training:
            script.eval()
    functions: list[FunctionType] = []
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
        # Attributes may come before torch's, and a module that an older torch has pickled lacks some of these: then
        # the last of torch's own stands at another place.
        usual = next(islice(d, len(_OF_EVERY_MODULE) - 1, None), None) == _OF_EVERY_MODULE[-1]
        for v in islice(d.values(), len(_OF_EVERY_MODULE), None) if usual else d.values():
            if type(v) not in _ATOMS:  # a list, a table or a helper that the module's author keeps
                if type(v) is list and _ATOMS.issuperset(map(type, v)):
                    tables.append((v, v.copy()))
                elif type(v) is FunctionType:
                    functions.append(v)
                else:
                    _remember(v, tables, seen)
        d["training"] = False
    outside = Outside(set(map(type, modules)), functions)
    beyond: list[tuple[Any, Any]] = []
    for v in filter(lambda v: type(v) not in _ATOMS, outside.values):
        _remember(v, beyond, seen)
    torch_state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    cuda_state = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        yield outside
    finally:
        outside.restore()
        _put_back([(table, was) for table, was in beyond if holds_tensor(table)])  # what else is noted there is its own
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
_HELPERS_DEEP = 5


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
