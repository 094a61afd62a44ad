"""What a design is judged by: the built-in budget, [tool.rfcalc] of the nearest pyproject.toml, the flags. No torch.

    [tool.rfcalc]
    max_params = 8_000          # any field of Budget; false sets no limit
    input = "1x28x28"           # for designs without an INPUT_SHAPE of their own
    paths = ["models"]          # what `rfcalc check` looks at when it is told nothing

    [[tool.rfcalc.design]]      # later entries win over earlier ones
    path = "models/big/**"      # relative to this file; * stays within a folder, ** crosses them
    reason = "the teacher"      # why these designs are judged otherwise
    max_params = 1_000_000

The whole file is checked whichever design is asked about: a slip in an override must not wait for its design.
"""

from __future__ import annotations

import difflib
import functools
import json
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from rfcalc.designs.shapes import InputShape, Shape, checked_shape, parse_shape
from rfcalc.errors import ConfigError, DesignError, InputError
from rfcalc.gate.budget import LIMITS, SWITCHES, Budget, limit_problem

_FILE = "pyproject.toml"
_DEFAULT = "default"
_SETTINGS = (*LIMITS, "input", "layout")
_TOP_KEYS = (*_SETTINGS, "paths", "design")
_DESIGN_KEYS = (*_SETTINGS, "path", "reason")


@dataclass(frozen=True)
class Settings:
    """What applies to one design. `origins` tells for every key (`max_params` ... `input`, `layout`, `reason`) where
    its value comes from: "default", "pyproject.toml [tool.rfcalc]", "--max-params" ...

    `input_wins`: the shape was given for this very design, by a flag or an override for its path, and stands above
    its own INPUT_SHAPE; else it serves only a design that says none.
    """

    budget: Budget = field(default_factory=Budget)
    input_shape: InputShape | None = None
    layout: str | None = None
    origins: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys((*_SETTINGS, "reason"), _DEFAULT))
    reason: str = ""
    input_wins: bool = False


def settings_for(
    file: Path | None, *, config: Path | None = None, flags: Mapping[str, object] | None = None
) -> Settings:
    """What applies to the design in `file` (None: an importable module, configured by the current folder).

    `config` is read in place of the nearest pyproject.toml with a [tool.rfcalc] section; `flags` (keys as in the
    file, None for a flag that was not given) win over it.
    Raises ConfigError when the file or a flag sets what cannot be set.
    """
    given = checked_flags(flags or {})
    design = None if file is None else file.resolve()
    found = _found(design.parent if design else Path.cwd(), config)
    sections = list(found.applying_to(design)) if found else []
    values: dict[str, Any] = {}
    origins = dict.fromkeys((*_SETTINGS, "reason"), _DEFAULT)
    for section in sections:
        values |= section.values
        origins |= dict.fromkeys(section.values, section.origin)
    values |= given
    origins |= {key: _flag(key) for key in given}
    return Settings(
        budget=Budget(**{key: value for key, value in values.items() if key in LIMITS}),
        input_shape=values.get("input"),
        layout=values.get("layout"),
        origins=origins,
        reason=values.get("reason", ""),
        input_wins="input" in values and origins["input"] != (sections[0].origin if sections else ""),
    )


def checked_flags(flags: Mapping[str, object]) -> dict[str, Any]:
    """The values of the flags that were given. Raises ConfigError for one that cannot be."""
    return {key: _checked(f"{_flag(key)} ", key, value) for key, value in flags.items() if value is not None}


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def rows(settings: Settings) -> list[tuple[str, str, str]]:
    """Key, value as the file would spell it, and origin of everything that applies: for `--show-config`."""
    shape = "(the design's own)" if settings.input_shape is None else _spelled(_shape_text(settings.input_shape))
    layout = "(by the number of dims)" if settings.layout is None else _spelled(settings.layout)
    found = [(key, _spelled(getattr(settings.budget, key))) for key in LIMITS]
    found += [("input", shape), ("layout", layout)]
    found += [("reason", _spelled(settings.reason))] if settings.reason else []
    return [(key, value, settings.origins[key]) for key, value in found]


def default_targets(config: Path | None = None) -> tuple[str, ...]:
    """What to judge when no target is named: `paths` of [tool.rfcalc], else the folder `models` beside it.

    Raises DesignError when there is neither, ConfigError as `settings_for` does.
    """
    found = _found(Path.cwd(), config)
    folder = found.folder if found else Path.cwd()
    paths = found.content.paths if found else ()
    if not paths and (folder / "models").is_dir():
        paths = ("models",)
    if not paths:
        raise DesignError(
            f"no target found: there is no folder {_shown(folder / 'models')}; name files or folders, "
            f'or set paths = ["..."] in [tool.rfcalc] of {_FILE}'
        )
    return tuple(os.path.relpath(folder / path) for path in paths)


# --- the file ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Section:
    """One table of the file, checked: `values` as Settings takes them. `pattern` is None in [tool.rfcalc] itself."""

    origin: str
    values: Mapping[str, Any]
    pattern: tuple[str, ...] | None


@dataclass(frozen=True)
class _Content:
    """[tool.rfcalc] first, then its design entries in their order."""

    sections: tuple[_Section, ...]
    paths: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    folder: Path
    content: _Content

    def applying_to(self, design: Path | None) -> Iterator[_Section]:
        inside = design is not None and design.is_relative_to(self.folder)
        parts = design.relative_to(self.folder).parts if design and inside else ()
        for section in self.content.sections:
            if section.pattern is None or (parts and _matches(parts, section.pattern)):
                yield section


def _found(folder: Path, config: Path | None) -> _Found | None:
    """The file named, or the nearest one with a section in `folder` or above it."""
    if config is not None:
        path = config.expanduser().resolve()
        text = _read(path)
        if text is None:
            raise ConfigError(f"{config}: no such file; expected a TOML file with a [tool.rfcalc] section")
        content = _parsed(str(config), text)
        if content is None:
            raise ConfigError(f"{config}: has no [tool.rfcalc] section")
        return _Found(path.parent, content)
    for place in (folder, *folder.parents):
        text = _read(place / _FILE)
        content = _parsed(_shown(place / _FILE), text) if text is not None else None
        if content:
            return _Found(place, content)
    return None


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"{_shown(path)}: cannot be read: {error.strerror}") from error


# By content: many designs share one file, and a file that changes in a long-lived process is read anew.
@functools.lru_cache(maxsize=64)
def _parsed(label: str, text: bytes) -> _Content | None:
    """The file's [tool.rfcalc], wholly checked; None when it has none."""
    try:
        data = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, or nested beyond reason
        raise ConfigError(f"{label}: not TOML: {' '.join(str(error).split())}") from error
    tool = data.get("tool", {})
    if not isinstance(tool, dict) or "rfcalc" not in tool:
        return None
    place = f"{label} [tool.rfcalc]"
    top = _table(tool["rfcalc"], place, _TOP_KEYS)
    entries = top.get("design", [])
    if not isinstance(entries, list):
        raise ConfigError(f"{place}: design = {_cut(entries)}: expected tables headed [[tool.rfcalc.design]]")
    sections = [_section(top, place, None)]
    for number, entry in enumerate(entries, 1):
        heading = f"{label} [[tool.rfcalc.design]]"
        table = _table(entry, f"{heading} number {number}", _DESIGN_KEYS)
        pattern = _pattern(table.get("path"), f"{heading} number {number}")
        sections.append(_section(table, f"{heading} path = {_spelled(table['path'])}", pattern))
    return _Content(tuple(sections), _paths(top.get("paths", []), place))


def _table(value: Any, place: str, known: Sequence[str]) -> dict[str, Any]:
    """The table, once every key of it is one that we know."""
    if not isinstance(value, dict):
        raise ConfigError(f"{place}: {_cut(value)}: expected a table of keys and values")
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
            raise ConfigError(f"{place}: unknown key {_cut(key)}; {hint}")
    return value


def _section(table: Mapping[str, Any], place: str, pattern: tuple[str, ...] | None) -> _Section:
    keys = [key for key in table if key in (*_SETTINGS, "reason")]
    return _Section(place, {key: _checked(f"{place}: {key} = ", key, table[key]) for key in keys}, pattern)


def _paths(value: Any, place: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(path, str) and path.strip() for path in value):
        raise ConfigError(f'{place}: paths = {_cut(value)}: expected a list of files or folders, as in ["models"]')
    return tuple(value)


def _pattern(value: Any, place: str) -> tuple[str, ...]:
    """The parts of a path pattern."""
    example = 'as in path = "models/big/*.py"'
    if value is None:
        raise ConfigError(f"{place}: has no path; expected the designs it is for, {example}")
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{place}: path = {_cut(value)}: expected a pattern of files, {example}")
    parts = PurePosixPath(value).parts
    if ".." in parts or value.startswith("/"):
        raise ConfigError(f"{place}: path = {_cut(value)}: leads out of the file's folder; expected one within it")
    # A bare folder would match no file, and so override nothing without a word.
    if not parts or not (parts[-1].endswith(".py") or any(mark in parts[-1] for mark in "*?[")):
        raise ConfigError(f"{place}: path = {_cut(value)}: no pattern of Python files; expected one, {example}")
    return parts


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path matches, part by part; `**` stands for any number of parts, none included."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or (bool(parts) and _matches(parts[1:], pattern))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


# --- values --------------------------------------------------------------------------------------------------


def _checked(place: str, key: str, value: Any) -> Any:
    """The value of one key as Settings takes it. `place` is what stands before it: `--max-params `, or the file, its
    section and `max_params = `."""
    if key in LIMITS:
        problem = limit_problem(key, value)
        if problem:
            raise ConfigError(f"{place}{_cut(value)}: {problem}")
        return None if value is False and key not in SWITCHES else value
    if key == "input":
        return _checked_input(place, value)
    if key == "layout":
        if not isinstance(value, str) or not (value.isascii() and value.isalpha()) or not value.strip("CN"):
            raise ConfigError(f'{place}{_cut(value)}: expected one letter per dim, C for channels, as in "TC"')
        return value
    if not isinstance(value, str):
        raise ConfigError(f"{place}{_cut(value)}: expected a text")
    return " ".join(value.split())


def _checked_input(place: str, value: Any) -> InputShape:
    try:
        return parse_shape(value) if isinstance(value, str) else checked_shape(value, place)
    except InputError as error:
        # parse_shape speaks of --input: only what follows its place is true here.
        reason = str(error).partition(": ")[2] if isinstance(value, str) else 'expected a shape, as in "1x28x28"'
        raise ConfigError(f"{place}{_cut(value)}: {reason}") from error


def _spelled(value: Any) -> str:
    """A value as TOML spells it. None is `false`: no limit."""
    if value is None or isinstance(value, bool):
        return "true" if value else "false"
    try:
        return str(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False, default=str)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return f"a {type(value).__name__} with a number beyond reason"


def _cut(value: Any) -> str:
    """The same for an error: what the user wrote, but one short line of it."""
    text = _spelled(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _shape_text(shape: InputShape) -> str:
    """The shape as `--input` takes it."""
    if isinstance(shape, dict):
        return ",".join(f"{name}={_joined(one)}" for name, one in shape.items())
    whole = [one for one in shape if isinstance(one, tuple)]
    return ",".join(_joined(one) for one in whole) if whole else _joined(shape)  # type: ignore[arg-type]


def _joined(shape: Shape) -> str:
    return "x".join(str(length) for length in shape)


def _shown(path: Path) -> str:
    """The path as one would write it from here: relative when it lies below the current folder."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
