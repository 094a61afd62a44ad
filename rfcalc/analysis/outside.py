"""What a model's functions keep outside of it: globals, closures and attributes of classes, put back after a run.

Of a cache in the module of a design, tensors of the run must not be left for the design's next forward to find. Only
what the functions of the design name is looked at; those of torch and of other libraries keep no caches of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from functools import _lru_cache_wrapper, lru_cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import Tensor
from torch.nn import Module

_LIBRARIES = frozenset((*sys.stdlib_module_names, "torch", "torchvision", "numpy", "rfcalc")) - {"__main__"}
_MISSING = object()


class Outside:
    """Names of globals and classes, cells of closures and caches of functions, as they were."""

    def __init__(self, kinds: Iterable[type], functions: Iterable[FunctionType]) -> None:
        self.globals: list[tuple[dict[str, Any], str, Any]] = []
        self.attributes: list[tuple[type, dict[str, Any]]] = []
        self.cells: list[tuple[Any, Any]] = []
        self.caches: list[tuple[_lru_cache_wrapper[Any], int]] = []
        self.names: set[str] = set()  # of attributes and globals that the code reads
        self.seen: set[int] = set()
        self.values: list[Any] = []  # found there: containers and helpers have contents of their own
        for kind in kinds:
            for c in kind.__mro__:
                if not _is_library(c.__module__):
                    self._class(c)
        for f in functions:
            self._function(f)

    def _class(self, kind: type) -> None:
        if id(kind) in self.seen:
            return
        self.seen.add(id(kind))
        self.attributes.append((kind, dict(vars(kind))))
        for name, v in vars(kind).items():
            t = type(v)
            if t is FunctionType or t is _lru_cache_wrapper:
                self._function(v)
            elif t is staticmethod or t is classmethod:
                self._function(v.__func__)
            elif t is not property and not name.startswith("__"):
                self.values.append(v)

    def _function(self, f: Any) -> None:
        """The globals that its code names, its cells, and the same of what it calls."""
        while f is not None and id(f) not in self.seen:
            self.seen.add(id(f))
            if isinstance(f, _lru_cache_wrapper):
                self.caches.append((f, f.cache_info().currsize))
            elif isinstance(f, FunctionType) and not _is_library(f.__globals__.get("__name__", "")):
                names = _names_of(f.__code__)
                self.names.update(names)
                for name in names:
                    found = f.__globals__.get(name, _MISSING)
                    self.globals.append((f.__globals__, name, found))
                    if found is not _MISSING:
                        self._found(found)
                for cell in f.__closure__ or ():
                    self._cell(cell)
            f = getattr(f, "__wrapped__", None)

    def _cell(self, cell: Any) -> None:
        if id(cell) not in self.seen:
            self.seen.add(id(cell))
            found = _contents(cell)
            self.cells.append((cell, found))
            self._found(found)

    def _found(self, value: Any) -> None:
        if type(value) in (FunctionType, _lru_cache_wrapper):
            self._function(value)
        elif isinstance(value, type):
            if not _is_library(value.__module__):
                self._class(value)
        else:
            self.values.append(value)

    def restore(self) -> None:
        """What holds tensors now is again what it was; a cache of a function that has grown is emptied."""
        for table, name, was in self.globals:
            if (now := table.get(name, _MISSING)) is not was and holds_tensor(now):
                if was is _MISSING:
                    del table[name]
                else:
                    table[name] = was
        for kind, own in self.attributes:
            for name in [k for k, v in vars(kind).items() if v is not own.get(k, _MISSING) and holds_tensor(v)]:
                if name in own:
                    setattr(kind, name, own[name])
                else:
                    delattr(kind, name)
        for cell, was in self.cells:
            if (now := _contents(cell)) is not was and holds_tensor(now):
                if was is _MISSING:
                    del cell.cell_contents
                else:
                    cell.cell_contents = was
        for cache, size in self.caches:
            if cache.cache_info().currsize != size:
                cache.cache_clear()


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing in it yet
        return _MISSING


def holds_tensor(value: Any, depth: int = 3) -> bool:
    """A tensor, or a container or helper with one in it."""
    if isinstance(value, Tensor):
        return True
    if isinstance(value, type | FunctionType | ModuleType | Module) or not depth:
        return False
    inner = value if isinstance(value, dict | list | tuple | set) else getattr(value, "__dict__", ())
    return any(holds_tensor(v, depth - 1) for v in (inner.values() if isinstance(inner, dict) else inner))


@lru_cache(maxsize=4096)
def _is_library(module: str) -> bool:
    return module.partition(".")[0] in _LIBRARIES


@lru_cache(maxsize=4096)
def _names_of(code: CodeType) -> tuple[str, ...]:
    """The names in a function's code, and in the functions within it."""
    return tuple(dict.fromkeys(_all_names(code)))


def _all_names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _all_names(inner)
