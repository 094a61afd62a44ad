"""Designs against an older revision of their git repository: which of them changed, and the files as they were.

The working tree counts, committed or not: a design is judged as it lies on the disk. Everything is asked of the `git`
program; the repository is only read (its index is copied before anything is noted in it).

>>> changed_designs("main", [Path("models/step8.py")])               # doctest: +SKIP
{PosixPath('models/step8.py'): PosixPath('models/step7.py')}
>>> with snapshot("main", Path("models")) as folder:                 # doctest: +SKIP
...     load_design(str(folder / "models/step7.py"))
"""

from __future__ import annotations

import ast
import functools
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rfcalc.designs.imports import import_folders
from rfcalc.errors import HistoryError


def changed_designs(rev: str, paths: Sequence[Path]) -> dict[Path, Path | None]:
    """Those of the design files that differ from revision `rev`, each with its path there, relative to the root of the
    repository and followed through renames; None where it did not exist.

    A design also counts as changed when a file of the repository that it imports did, directly or through others.
    Imports are read off the syntax, and looked up beside the design and from the root: one that is made of text at
    run time (`importlib.import_module`) is not seen.
    Raises HistoryError when git, the repository, the revision or a path in it is missing, or a path is of another one.
    """
    if not paths:
        return {}
    files = {path: path.resolve() for path in paths}
    root = repository(files[paths[0]].parent)
    home = functools.cache(repository)
    for path, file in files.items():
        if not file.is_relative_to(root) or home(file.parent) != root:
            raise HistoryError(f"{path}: not in the git repository {root}; expected the designs of one repository")
    changes = _changes(root, _commit(root, rev), files.values())
    imports = _Imports(root)
    return {
        path: changes.before(file)
        for path, file in files.items()
        if file in changes.files or not changes.files.isdisjoint(imports.behind(file))
    }


@contextmanager
def snapshot(rev: str, place: Path = Path()) -> Iterator[Path]:
    """A temporary folder that holds the tree of revision `rev` of the repository around `place`, until the block ends.

    Raises HistoryError as `changed_designs` does.
    """
    root = repository(place.resolve() if place.is_dir() else place.resolve().parent)
    commit = _commit(root, rev)
    with tempfile.TemporaryDirectory(prefix="rfcalc-") as folder:
        index, tree = Path(folder, "index"), Path(folder, "tree").resolve()
        tree.mkdir()
        # Not `git archive`: it leaves out what .gitattributes marks export-ignore, often tests and models.
        _git(root, "read-tree", commit, index=index)
        _git(root, "checkout-index", "--all", "--quiet", f"--prefix={tree}/", index=index)
        yield tree


# --- git -----------------------------------------------------------------------------------------------------

# A hook runs with these set to its own repository, some relative to a folder that is not ours.
_FOREIGN = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY")


@dataclass(frozen=True)
class _Changes:
    """The Python files that differ, deleted ones included, and the former path of each that is new or has moved."""

    root: Path
    files: frozenset[Path]
    former: Mapping[Path, Path | None]

    def before(self, file: Path) -> Path | None:
        """The path of a file at the old revision, relative to the root."""
        return self.former[file] if file in self.former else file.relative_to(self.root)


def _changes(root: Path, commit: str, asked: Iterable[Path]) -> _Changes:
    """What differs from a commit; of the files that git is told to ignore those that are asked for."""
    with tempfile.TemporaryDirectory(prefix="rfcalc-") as folder:
        index = Path(folder, "index")
        real = root / os.fsdecode(_git(root, "rev-parse", "--git-path", "index")).strip("\n")
        if real.exists():
            shutil.copy2(real, index)  # with its time: by it git knows which files it must read again
        # Untracked files enter the copy by name only: thus the diff has them, and sees where they were moved from.
        others = ("ls-files", "-z", "--others")
        new = _git(root, *others, "--exclude-standard", "--", "*.py", index=index)
        new += _git(root, *others, "--", *(f":(literal){file.relative_to(root)}" for file in asked), index=index)
        if new:
            listed = ("--pathspec-from-file=-", "--pathspec-file-nul")
            _git(root, "add", "--force", "--intent-to-add", *listed, index=index, given=new)
        options = ("--name-status", "-z", "--find-renames", "--no-relative", "--no-ext-diff", "--ignore-submodules")
        words = os.fsdecode(_git(root, "diff", *options, commit, "--", "*.py", index=index)).split("\0")
    files: set[Path] = set()
    former: dict[Path, Path | None] = {}
    status = iter(words[:-1])
    for letter in status:
        file = root / next(status)
        files.add(file)
        if letter[0] in "RC":
            old, file = file, root / next(status)
            files.add(file)
            former[file] = old.relative_to(root)
        elif letter[0] == "A":
            former[file] = None
    return _Changes(root, frozenset(files), former)


def repository(folder: Path) -> Path:
    """The top folder of the working tree around `folder`. Raises HistoryError when there is none."""
    return Path(os.fsdecode(_git(folder, "rev-parse", "--show-toplevel")).strip("\n")).resolve()


def _commit(root: Path, rev: str) -> str:
    """The hash that a revision stands for."""
    try:
        if not rev or rev.startswith("-"):
            raise HistoryError("not a revision")
        return _git(root, "rev-parse", "--verify", "--quiet", f"{rev}^{{commit}}").decode().strip()
    except HistoryError as error:
        shallow = _git(root, "rev-parse", "--is-shallow-repository").strip() == b"true"
        hint = "this clone is shallow: git fetch --unshallow" if shallow else "expected a commit, branch or tag"
        raise HistoryError(f"{rev!r}: no such revision in the git repository {root}; {hint}") from error


def _git(folder: Path, *arguments: str, index: Path | None = None, given: bytes = b"") -> bytes:
    """What a git command prints. Raises HistoryError with the first line of its complaint."""
    environment = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
    environment |= {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}
    if index is not None:
        environment["GIT_INDEX_FILE"] = str(index)
    if given:
        environment["GIT_LITERAL_PATHSPECS"] = "1"  # they are names of files, not patterns
    settings = ("-c", "core.sparseCheckout=false", "-c", "core.fsmonitor=false")
    try:
        done = subprocess.run(
            ["git", *settings, *arguments], cwd=folder, env=environment, input=given, capture_output=True, check=False
        )
    except FileNotFoundError as error:
        missing = "git is not installed" if folder.is_dir() else f"{folder}: no such folder"
        raise HistoryError(f"{missing}; it is needed to compare with a revision") from error
    except OSError as error:
        raise HistoryError(f"git cannot be run in {folder}: {error.strerror}") from error
    if done.returncode:
        complaint = done.stderr.decode(errors="replace").strip()
        if "not a git repository" in complaint:
            raise HistoryError(f"{folder}: not in a git repository; a revision to compare with needs one")
        first = complaint.splitlines()[0] if complaint else f"exit code {done.returncode}"
        raise HistoryError(f"git {arguments[0]} failed in {folder}: {first}")
    return done.stdout


# --- imports -------------------------------------------------------------------------------------------------


class _Imports:
    """Which files of a repository stand behind a design. Each file is parsed once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._parsed: dict[Path, list[tuple[int, tuple[str, ...]]]] = {}

    def behind(self, design: Path) -> set[Path]:
        """Every file that the design's imports may name, existing or not: a deleted one is a change, too."""
        seen: set[Path] = set()
        waiting = [design]
        while waiting:
            file = waiting.pop()
            for level, name in self._names(file):
                folders = [file.parents[level - 1]] if level else [*import_folders(design.parent), self.root]
                fresh = {path for folder in folders for path in _candidates(folder, name)} - seen
                seen |= fresh
                waiting += [path for path in fresh if path.is_relative_to(self.root) and path.is_file()]
        return seen

    def _names(self, file: Path) -> list[tuple[int, tuple[str, ...]]]:
        """The imports of a file: how many dots lead, and the parts of the name."""
        if file not in self._parsed:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    tree = ast.parse(file.read_bytes())
            except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
                tree = ast.Module([], [])  # loading it says why
            self._parsed[file] = [name for node in ast.walk(tree) for name in _imported(node, file)]
        return self._parsed[file]


def _imported(node: ast.AST, file: Path) -> Iterable[tuple[int, tuple[str, ...]]]:
    if isinstance(node, ast.Import):
        return [(0, tuple(alias.name.split("."))) for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level <= len(file.parents):
        module = tuple(node.module.split(".")) if node.module else ()
        # `from a import b`: b may be a file of the package a, or a name in it.
        return [(node.level, (*module, alias.name)) for alias in node.names]
    return []


def _candidates(folder: Path, name: Sequence[str]) -> Iterator[Path]:
    """The files that importing a.b.c from `folder` may run: a.py, a/__init__.py, a/b.py ..."""
    for part in name:
        yield folder / f"{part}.py"
        folder = folder / part
        yield folder / "__init__.py"
