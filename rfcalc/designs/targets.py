"""What the command line names -> the designs to judge.

A target is a file, a folder, a glob, `file.py:Name` or `package.module:callable`. Nothing is imported or executed here,
torch neither: a folder is searched by reading, and a file that surely defines no design is left out before its code
runs.
"""

from __future__ import annotations

import ast
import glob
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rfcalc.designs.design import is_file, real_path, split_target
from rfcalc.errors import DesignError


@dataclass(frozen=True, slots=True)
class Target:
    """One target to judge, as `load_design` takes it; `file` is where it stands (None for an importable module).

    `searched`: found in a folder or by a glob, not named itself.
    """

    target: str
    searched: bool
    file: Path | None


@dataclass(frozen=True, slots=True)
class Found:
    """The targets in the order they were named, each once, and the files left out: they define no design."""

    targets: tuple[Target, ...]
    skipped: tuple[str, ...]


def find_targets(targets: Sequence[str]) -> Found:
    """Everything the targets stand for. A target that names nothing is kept: loading it says what is wrong.

    Raises DesignError for no target at all, a folder without any Python file, a glob that matches none.
    """
    if not targets:
        raise DesignError("no target found: name files, folders, file.py:Name or package.module:callable")
    found: dict[tuple[object, ...], Target] = {}
    skipped: dict[Path, str] = {}
    for given in targets:
        for target in _expanded(given):
            place, name, submodule = _split(target.target)
            file = target.file
            if file and file.suffix == ".py" and not name and not submodule and not may_hold_design(file):
                skipped.setdefault(file, target.target)
                continue
            key = (file or place, name, submodule)
            if key not in found or (found[key].searched and not target.searched):
                found[key] = target
    return Found(tuple(found.values()), tuple(skipped.values()))


def may_hold_design(path: Path) -> bool:
    """False only where the syntax tells that loading the file would find no design: it makes no class with a base (or
    a decorator, which may put anything in its place) and its top level binds no `model`.

    True for a file that cannot be read or parsed: that error is to be reported, not skipped.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes: they are reported when the file is loaded
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return True
    return any(map(_makes_class, ast.walk(tree))) or any(map(_binds_model, _top_level(tree)))


# --- expansion -----------------------------------------------------------------------------------------------

_MAGIC = "*?["


def _expanded(given: str) -> Iterator[Target]:
    path = real_path(given)
    if os.path.isdir(path):
        yield from _required(_python_files(given), f"{given}: no target found: a folder without any Python file")
    elif any(mark in given for mark in _MAGIC) and not os.path.exists(path) and ":" not in Path(given).name:
        yield from _required(_globbed(given), f"{given}: no target found: matches no Python file")
    else:
        place = _split(given)[0]
        yield Target(given, False, real_path(place) if is_file(place) else None)


def _required(files: Iterator[str], otherwise: str) -> Iterator[Target]:
    """The files as targets; raises DesignError when there are none."""
    file = None
    for file in files:
        yield Target(file, True, real_path(file))
    if file is None:
        raise DesignError(otherwise)


def _python_files(folder: str) -> Iterator[str]:
    """Every Python file in and below a folder, in alphabetical order, a folder's own files first."""

    def refused(error: OSError) -> None:
        raise DesignError(f"{error.filename}: cannot be read: {error.strerror}") from error

    for place, folders, files in os.walk(os.path.expanduser(folder), onerror=refused):
        folders[:] = sorted(name for name in folders if not _is_foreign(Path(place, name)))
        yield from (str(Path(place, name)) for name in sorted(files) if _is_python(name))


def _globbed(pattern: str) -> Iterator[str]:
    """The Python files that a pattern matches; a folder that it matches is searched."""
    parts = Path(os.path.expanduser(pattern)).parts
    named = next(number for number, part in enumerate(parts) if any(mark in part for mark in _MAGIC))
    searched: set[Path] = set()
    for path in sorted(map(Path, glob.glob(os.path.join(*parts), recursive=True))):
        # What the pattern spells out is wanted; what its wildcards run into is searched like any folder.
        run_into = [Path(*path.parts[:end]) for end in range(named + 1, len(path.parts))]
        if any(map(_is_foreign, run_into)) or not searched.isdisjoint(path.parents):
            continue
        if path.is_dir() and not _is_foreign(path):
            searched.add(path)
            yield from _python_files(str(path))
        elif path.is_file() and _is_python(path.name):
            yield str(path)


def _is_python(name: str) -> bool:
    return name.endswith(".py") and not name.startswith(".")


def _is_foreign(folder: Path) -> bool:
    """Whether a search stays out of a folder: hidden, a cache, a virtual environment, installed packages."""
    name = folder.name
    return name.startswith(".") or name in ("__pycache__", "site-packages") or (folder / "pyvenv.cfg").exists()


def _split(target: str) -> tuple[str, str, str]:
    try:
        return split_target(target)
    except DesignError:  # loading it raises the same, and then it is this target's verdict
        return target, "", ""


# --- reading a file without running it -----------------------------------------------------------------------


def _makes_class(node: ast.AST) -> bool:
    if isinstance(node, ast.ClassDef):
        return bool(node.bases or node.keywords or node.decorator_list)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        # type("Net", (nn.Module,), {...}), and names that are bound by text
        return (node.func.id == "type" and len(node.args) == 3) or node.func.id in ("exec", "globals")
    return False


def _binds_model(node: ast.AST) -> bool:
    match node:
        case ast.Name(id="model", ctx=ast.Store()) | ast.FunctionDef(name="model") | ast.ClassDef(name="model"):
            return True
        case ast.ImportFrom(names=aliases):
            return any((alias.asname or alias.name) in ("model", "*") for alias in aliases)
        case ast.Global(names=names):
            return "model" in names
    return False


def _top_level(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run as the file is loaded, and `global` statements wherever they stand."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            yield from (part for part in ast.walk(node) if isinstance(part, ast.Global))
        else:
            waiting += ast.iter_child_nodes(node)
