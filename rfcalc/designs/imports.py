"""Where a design file finds what it imports: its neighbours, kept apart from everybody else's."""

from __future__ import annotations

import functools
import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

DESIGN_PREFIX = "_rfcalc_design_"
_neighbours: dict[Path, dict[str, ModuleType]] = {}
_added: dict[Path, list[str]] = {}  # to the path, by the files of a folder: their constructors may import from there


@contextmanager
def on_path(*folders: Path | str) -> Iterator[None]:
    """Look in these folders first; what the block does to the path itself is undone, too."""
    before = sys.path[:]
    sys.path[:0] = map(str, folders)
    try:
        yield
    finally:
        sys.path[:] = before


@contextmanager
def siblings(folder: Path) -> Iterator[None]:
    """Let the files of `folder` import each other, and by its full name the package it lies in. Their modules are kept
    apart from everybody else's: two repositories may each have a `blocks.py`."""
    known = _neighbours.setdefault(folder, {})
    covered = {name: sys.modules[name] for name in known if name in sys.modules}
    before = set(sys.modules).difference(known)
    path = sys.path[:]
    sys.modules.update(known)
    try:
        with on_path(*_added.get(folder, ()), *import_folders(folder)):
            own = set(sys.path)
            try:
                yield
            finally:
                _added[folder] = [entry for entry in sys.path if entry not in own] + _added.get(folder, [])
    finally:
        for name in set(sys.modules) - before:
            if not name.startswith(DESIGN_PREFIX) and not _is_for_all(name, path):
                known[name] = sys.modules.pop(name)
        sys.modules.update(covered)


def import_folders(folder: Path) -> list[Path]:
    """Where a file of `folder` finds what it imports: beside it, and where the package lies that the folder is in."""
    depth = len(package_of(folder))
    return [folder, folder.parents[depth - 1]] if depth else [folder]


def package_of(folder: Path) -> list[str]:
    """The names of the packages that a folder is in, the outermost first: none without an `__init__.py`."""
    names: list[str] = []
    while (folder / "__init__.py").is_file() and folder.name.isidentifier():
        names.insert(0, folder.name)
        folder = folder.parent
    return names


def _is_for_all(name: str, path: Iterable[str]) -> bool:
    """Whether any program would find that module in that place, looking along `path`."""
    file = file_of_module(name)
    if file is None or is_installed(file):
        return True
    tail = name.replace(".", os.sep)
    stems = [os.path.join(os.path.abspath(entry), tail) for entry in path]
    return any(file == stem or file.startswith((f"{stem}.", os.path.join(stem, "__init__."))) for stem in stems)


def file_of_module(name: str) -> str | None:
    """The file of a module, or the folder of a package without one; None for a module that is made of nothing."""
    known = getattr(sys.modules[name], "__dict__", {})  # asking the module itself may make a lazy one load
    file = known.get("__file__") or next(iter(known.get("__path__") or ()), None)
    return file if isinstance(file, str) and os.path.isabs(file) else None


def is_installed(file: str) -> bool:
    return file.startswith(_installed())


@functools.cache
def _installed() -> tuple[str, ...]:
    """Folders of Python's own library, of installed packages and of this one."""
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = [sysconfig.get_path(kind) for kind in kinds] + [*site.getsitepackages(), site.getusersitepackages()]
    return tuple(os.path.join(folder, "") for folder in [*folders, os.path.dirname(os.path.dirname(__file__))])


@contextmanager
def relocated(root: Path, copy: Path) -> Iterator[None]:
    """Inside, what would be imported from the repository `root` comes from its `copy`, and is forgotten afterwards."""
    path, before = sys.path[:], dict(sys.modules)
    for name in before:
        file = file_of_module(name)
        if file and not name.startswith(DESIGN_PREFIX) and not is_installed(file) and Path(file).is_relative_to(root):
            del sys.modules[name]
    sys.path[:] = [_moved(entry, root, copy) for entry in path]
    try:
        yield
    finally:
        for name in set(sys.modules).difference(before):
            if (file := file_of_module(name)) and Path(file).is_relative_to(copy):
                del sys.modules[name]
        sys.modules.update(before)
        sys.path[:] = path


def _moved(entry: str, root: Path, copy: Path) -> str:
    place = Path(os.path.realpath(entry))
    inside = place.is_relative_to(root) and not is_installed(os.path.join(place, ""))
    return str(copy / place.relative_to(root)) if inside else entry
