"""A target on the command line or in Python -> a `Design`: one network that can be built.

Targets: `file.py`, `file.py:Name`, `package.module:callable`, each optionally followed by `#sub.module.path`.

>>> design = load_design("models/step8.py")           # doctest: +SKIP
>>> design.name, design.input_shape                   # doctest: +SKIP
('models/step8.py:Net', (1, 28, 28))

torch is imported only when a target is loaded, so that `rfcalc --help` does not wait for it."""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rfcalc.designs.imports import DESIGN_PREFIX, on_path, package_of, siblings
from rfcalc.designs.shapes import InputShape, checked_input
from rfcalc.errors import DesignError, NoDesignError
from rfcalc.text import nearest, one_line

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Design:
    """One network, found but not yet built. `source` is an instance or a callable that needs no arguments."""

    target: str
    name: str
    path: Path | None
    input_shape: InputShape | None
    recipe: dict[str, Any] | None
    line: int | None
    source: Any = field(repr=False, compare=False)
    submodule: str = ""

    def build(self) -> nn.Module:
        """The network without storage and without initialisation; the random state is left as it was.

        A constructor that needs the values of its weights is run plainly instead.
        Raises DesignError as `build_real` does.
        """
        from torch import nn

        from rfcalc.designs.blueprint import blueprint, emptied

        with self._importable():
            try:
                built = emptied(self.source) if isinstance(self.source, nn.Module) else blueprint(self.source)
            except (Exception, SystemExit):
                # Either the constructor reads values, or it is broken: the plain run tells which.
                return self.build_real()
        return self._part(built)

    def build_real(self) -> nn.Module:
        """The network as its author builds it, with its own initialisation.

        Raises DesignError when the constructor raises, makes no nn.Module, or has no such submodule.
        """
        import copy

        from torch import nn

        from rfcalc.designs.blueprint import initialisation_warnings_hidden

        with self._importable(), initialisation_warnings_hidden():
            try:
                built = copy.deepcopy(self.source) if isinstance(self.source, nn.Module) else self.source()
            except (Exception, SystemExit) as error:
                whole = self._whole
                place = _place(error, self.path, whole.rpartition(":")[0], whole)
                raise DesignError(f"{place}: building {whole} raised {one_line(error)}") from error
        return self._part(built)

    def _part(self, built: Any) -> nn.Module:
        """The module that the target names: the whole or the submodule after `#`."""
        from torch import nn

        whole = self._whole
        if not isinstance(built, nn.Module):
            raise DesignError(f"{whole}: returned {_kind(built)}; expected an nn.Module")
        if not self.submodule:
            return built
        parts: dict[str, nn.Module] = dict(built.named_modules(remove_duplicate=False))
        if self.submodule not in parts:
            hint = nearest(self.submodule, [name for name in parts if name])
            raise DesignError(f"{whole}: has no submodule {self.submodule!r}; {hint}")
        return parts[self.submodule]

    @property
    def _whole(self) -> str:
        """The name without `#sub.module`."""
        return self.name.removesuffix(f"#{self.submodule}")

    @contextmanager
    def _importable(self) -> Iterator[None]:
        """Let a constructor import its file's siblings, as the file itself could."""
        with siblings(self.path.parent) if self.path else on_path(Path.cwd()):
            yield


def load_design(target: str, input_shape: InputShape | None = None) -> Design:
    """Find the network that `target` names; `input_shape` wins over the file's INPUT_SHAPE.

    Raises DesignError for a target that names no network or several (NoDesignError for a file that defines none),
    InputError for a malformed shape.
    """
    shape = None if input_shape is None else checked_input(input_shape, f"input shape of {target}")
    place, name, submodule = split_target(target)
    if is_file(place):
        return _from_file(target, place, name, submodule, shape)
    return _from_module(target, place, name, submodule, shape)


# --- targets -------------------------------------------------------------------------------------------------


def real_path(place: str) -> Path:
    """The absolute path of a file or folder, `~` and links followed, whether it exists or not."""
    return Path(os.path.realpath(os.path.expanduser(place)))


def split_target(target: str) -> tuple[str, str, str]:
    """Place, name and submodule of a target; what is not given is empty.

    >>> split_target("models/step8.py:Net#body.0")
    ('models/step8.py', 'Net', 'body.0')

    Raises DesignError when `:` or `#` stand without what they announce.
    """
    base, submodule = _split_submodule(target)
    return *_split_name(base), submodule


def _split_submodule(target: str) -> tuple[str, str]:
    base, mark, submodule = target.rpartition("#")
    if not mark or os.path.exists(real_path(target)):
        return target, ""
    if not submodule:
        raise DesignError(f"{target}: nothing after '#'; expected a submodule's path, as in {base}#layer1.0")
    return base, submodule


def _split_name(base: str) -> tuple[str, str]:
    place, colon, name = base.rpartition(":")
    if not colon or os.path.exists(real_path(base)):
        return base, ""
    if not name or not place:
        raise DesignError(f"{base}: expected file.py:Name or package.module:callable")
    return place, name


def is_file(place: str) -> bool:
    """Whether the place of a target is a file (or means to be one) and not an importable module."""
    return place.endswith(".py") or "/" in place or "\\" in place or place in (".", "..", "~") or os.path.exists(place)


def _from_file(target: str, place: str, name: str, submodule: str, shape: InputShape | None) -> Design:
    path = real_path(place)
    tree = _parsed(path, place)
    with siblings(path.parent):
        module = _executed(tree, path, place)
    if name:
        source = _attribute(module, name, place)
        _require_buildable(source, f"{place}:{name}")
    else:
        name, source = _only_design(module, tree, place)
    if shape is None and hasattr(module, "INPUT_SHAPE") and not submodule:
        shape = checked_input(module.INPUT_SHAPE, f"{place}: INPUT_SHAPE")
    recipe = getattr(module, "RECIPE", None)
    if recipe is not None and not isinstance(recipe, dict):
        raise DesignError(f"{place}: RECIPE is {_kind(recipe)}; expected a dict")
    full = f"{place}:{name}" + (f"#{submodule}" if submodule else "")
    return Design(target, full, path, shape, recipe, _line_of(tree, name), source, submodule)


def _from_module(target: str, place: str, name: str, submodule: str, shape: InputShape | None) -> Design:
    if not name:
        raise DesignError(
            f"{target}: neither a file nor package.module:callable; expected e.g. models/step8.py "
            "or torchvision.models:resnet18"
        )
    with on_path(Path.cwd()):
        module = _imported(place)
    source = _attribute(module, name, place)
    _require_buildable(source, f"{place}:{name}")
    full = f"{place}:{name}" + (f"#{submodule}" if submodule else "")
    return Design(target, full, None, shape, None, None, _untrained(source), submodule)


# --- files ---------------------------------------------------------------------------------------------------


def _parsed(path: Path, place: str) -> ast.Module:
    if os.path.isdir(path):
        files = [str(Path(place) / file.name) for file in sorted(path.glob("*.py"))[:3]]
        raise DesignError(f"{place}: a folder; expected a Python file" + (f", e.g. {files[0]}" if files else ""))
    if not os.path.exists(path):
        known = [str(Path(place).parent / file.name) for file in path.parent.glob("*.py")]
        near = difflib.get_close_matches(str(Path(place)), known, n=1)
        raise DesignError(
            f"{place}: no such file" + (f"; did you mean {near[0]}?" if near else "; expected a Python file")
        )
    if path.suffix != ".py":
        raise DesignError(f"{place}: not a Python file; expected a name that ends in .py")
    try:
        return ast.parse(path.read_bytes(), str(path))
    except OSError as error:
        raise DesignError(f"{place}: cannot be read: {error.strerror}") from error
    except SyntaxError as error:
        where = f"{place}:{error.lineno}" if error.lineno else place
        raise DesignError(f"{where}: not valid Python: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes, or nested beyond what Python reads
        raise DesignError(f"{place}: not a Python file: {one_line(error)}") from error


_numbers = count()


def _executed(tree: ast.Module, path: Path, place: str) -> ModuleType:
    """The file as a module of its own. It stays in sys.modules: dataclasses and pickle look their classes up there."""
    module = ModuleType(f"{DESIGN_PREFIX}{next(_numbers)}_{path.stem}")
    module.__file__ = str(path)
    module.__package__ = ".".join(package_of(path.parent))
    sys.modules[module.__name__] = module
    try:
        exec(compile(tree, str(path), "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise DesignError(f"{_place(error, path, place, place)}: raised at import: {one_line(error)}") from error
    return module


def _only_design(module: ModuleType, tree: ast.Module, place: str) -> tuple[str, Any]:
    """The file's one network: `model` when there is one, else the one class that builds without arguments and that no
    other class of the file is made with."""
    from torch import nn

    model = getattr(module, "model", None)
    if isinstance(model, nn.Module) or callable(model):
        _require_buildable(model, f"{place}:model")
        return "model", model
    classes = {
        kind: name
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__ == module.__name__
    }
    ready = {name: kind for kind, name in classes.items() if not _required(kind)}
    # A leading underscore says "a helper of this file", unless there is nothing else.
    ready = {name: kind for name, kind in ready.items() if not name.startswith("_")} or ready
    if len(ready) > 1:
        ready = {name: kind for name, kind in ready.items() if name not in _parts(tree)} or ready
    if len(ready) > 1:
        names = ", ".join(f"{place}:{name}" for name in ready)
        raise DesignError(f"{place}: {len(ready)} designs; name one: {names}; or define model = {next(iter(ready))}")
    if not ready and classes:
        needs = "; ".join(f"{name} needs {_listed(_required(kind))}" for kind, name in classes.items())
        # Parts that other files build from are no design; a file that says its input shape means to be one.
        kind = DesignError if hasattr(module, "INPUT_SHAPE") else NoDesignError
        raise kind(f"{place}: no design that builds without arguments: {needs}; give defaults or define model")
    if not ready:
        raise NoDesignError(f"{place}: no design; expected one nn.Module class that needs no arguments, or model = ...")
    return next(iter(ready.items()))


def _parts(tree: ast.Module) -> set[str]:
    """The names that the bodies of a file's classes speak of, each class of the others."""
    return {
        node.id
        for kind in tree.body
        if isinstance(kind, ast.ClassDef)
        for statement in kind.body
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and node.id != kind.name
    }


def _line_of(tree: ast.Module, name: str) -> int | None:
    """Line of the top-level statement that binds `name` (its first part, for a dotted name)."""
    wanted = name.partition(".")[0]
    for statement in tree.body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef) and statement.name == wanted:
            return statement.lineno
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if any(isinstance(item, ast.Name) and item.id == wanted for item in targets):
            return statement.lineno
    return None


# --- modules -------------------------------------------------------------------------------------------------


def _imported(place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if place == missing or place.startswith(f"{missing}."):
            raise DesignError(
                f"{place}: no module named {missing!r}; expected a module that is installed or in this folder"
            ) from error
        raise DesignError(f"{place}: raised at import: {one_line(error)}") from error
    except (Exception, SystemExit) as error:
        raise DesignError(f"{place}: raised at import: {one_line(error)}") from error


def _untrained(source: Any) -> Any:
    """The callable as it stands, save that torchvision's is told to download no backbone: analysis needs none."""
    if not getattr(source, "__module__", "").startswith("torchvision.") or isinstance(source, type):
        return source
    names = inspect.signature(source).parameters
    return functools.partial(source, **{name: None for name in ("weights", "weights_backbone") if name in names})


# --- things both need ----------------------------------------------------------------------------------------


def _attribute(module: ModuleType, name: str, place: str) -> Any:
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            hint = nearest(part, [known for known in dir(value) if not known.startswith("_")])
            raise DesignError(f"{place}: has no {part!r}; {hint}")
        value = getattr(value, part)
    return value


def _require_buildable(source: Any, name: str) -> None:
    """Raises DesignError unless `source` is an nn.Module or can be called without arguments."""
    from torch import nn

    if isinstance(source, nn.Module):
        return
    if isinstance(source, type) and not issubclass(source, nn.Module):
        raise DesignError(f"{name}: a class that is no nn.Module; expected an nn.Module class, instance or function")
    if not callable(source):
        raise DesignError(f"{name}: {_kind(source)}; expected an nn.Module class, instance or function")
    required = _required(source)
    if required:
        raise DesignError(
            f"{name}: needs {_listed(required)}; expected none: give them defaults, or define model = ..."
        )


def _required(source: Callable[..., Any]) -> list[str]:
    """Names of the arguments one cannot leave out."""
    try:
        parameters = inspect.signature(source).parameters.values()
    except ValueError:  # a builtin that does not tell; calling it will
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind not in optional]


def _listed(required: list[str]) -> str:
    return f"{'argument' if len(required) == 1 else 'arguments'} {', '.join(required)}"


def _kind(value: Any) -> str:
    if isinstance(value, ModuleType):
        return f"the module {value.__name__}"
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _place(error: BaseException, path: Path | None, file: str, default: str) -> str:
    """`file.py:12`: the deepest line of the design's own file that the exception came through, if any."""
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == str(path)]
    return f"{file}:{lines[-1]}" if lines else default
