"""`rfcalc check`: the design gate."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from rfcalc.designs.design import split_target
from rfcalc.errors import ConfigError, DesignError, RfcalcError

from .limits import with_limits
from .shared import FILE, Debug, Input, Layout, complain, emit, screen, write_file

if TYPE_CHECKING:
    from rfcalc.designs.targets import Found, Target
    from rfcalc.gate.settings import Settings


def _complete_format(incomplete: str) -> list[str]:
    from rfcalc.render.verdicts import formats

    return [name for name in formats() if name.startswith(incomplete)]


@with_limits
def command(
    limits: Mapping[str, object],
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TARGET",
            show_default=False,
            help="Files, folders (searched for designs), globs, file.py:Name or package.module:callable. "
            "Default: paths of [tool.rfcalc], else the folder models.",
        ),
    ] = None,
    input_shape: Input = None,
    layout: Layout = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", show_default=False, help="Settings, in place of the nearest pyproject.toml."
        ),
    ] = None,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="Judge nothing; print what applies to each design, and from where.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="REV",
            show_default=False,
            help="Only designs changed since this git revision, with the change of each figure.",
        ),
    ] = None,
    fmt: Annotated[
        str,
        typer.Option(
            "--format", metavar="FORMAT", autocompletion=_complete_format, help="text, json, github, sarif or junit."
        ),
    ] = "text",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing of designs that pass.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", show_default=False, help="Write there instead of stdout.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", metavar="N", min=1, help="Processes that judge.")] = 1,
    timeout: Annotated[
        int, typer.Option("--timeout", metavar="SECONDS", min=1, max=86_400, help="What one design may take.")
    ] = 60,
    debug: Debug = False,
) -> int:
    """Judge designs by a budget: parameters, receptive field, work, memory; and say what would mend those that fail.

    The budget comes from [tool.rfcalc] in the nearest pyproject.toml above each design; flags win over it. A limit
    takes a whole number, or false for no limit. Without either, a design may have 8,000 parameters and must see 28
    pixels.

    Exit codes: 0 all pass; 1 a design is rejected; 2 a design could not be judged (even where others are rejected:
    each still gets its verdict), or the command line, a setting or the git revision is wrong.

    \b
    Examples:
      rfcalc check
      rfcalc check models/step8.py --max-params 6000 --min-rf-spatial 18
      rfcalc check models --base main --format github
      rfcalc check --show-config models/step1.py
    """
    from rfcalc.gate.settings import checked_flags, default_targets, rows
    from rfcalc.render.verdicts import checked_format, verdicts

    checked_format(fmt)
    flags = {**limits, "input": input_shape, "layout": layout}
    checked_flags(flags)
    found, refused = _found(targets or default_targets(config))
    settings = _settings(found.targets, config, flags, refused)
    if show_config:
        if refused:
            raise next(iter(refused.values()))
        for target in settings:
            if target.file is not None and not target.file.exists():
                raise DesignError(f"{target.target}: no such file; expected a design whose settings are to be shown")
        _write("\n\n".join(_config_text(target, rows(applies)) for target, applies in settings.items()), output)
        return 0
    with _since(base, list(settings)) as (chosen, former, copied):
        from rfcalc.gate.settings import Settings
        from rfcalc.gate.verdict import unjudged
        from rfcalc.gate.workers import Task, judge_all

        tasks = [Task(target.target, settings[target]) for target in chosen]
        tasks += [Task(old, settings[target], remarks=False, copied=copied) for target, old in former.items()]
        with _progress(len(tasks)) as progress:
            answers = judge_all(tasks, workers=jobs, timeout=timeout, debug=debug, progress=progress)
    before = dict(zip(former, answers[len(chosen) :], strict=True))
    judged = [
        replace(verdict, before=old.figures) if (old := before.get(target)) else verdict
        for target, verdict in zip(chosen, answers, strict=False)
        if verdict is not None
    ]
    judged += [unjudged(target, Settings(), str(error)) for target, error in refused.items()]
    skipped = len(found.skipped) + answers[: len(chosen)].count(None)
    if not judged and base is not None and fmt == "text":
        _write("" if quiet else f"no design has changed since {base}", output)
        return 0
    if not judged and base is None:
        _require_files(targets or default_targets(config), skipped)
    page = screen(sys.stdout) if output is None else FILE
    _write(
        verdicts(
            judged,
            skipped=skipped,
            fmt=fmt,
            quiet=quiet,
            width=page.width,
            color=page.color,
            ascii_only=page.ascii_only,
            base=base,
            reasons=False,
        ),
        output,
    )
    for target, old in before.items():
        if old is not None and old.error:
            error = old.error.replace(f"{copied[1]}/", f"{base}:") if copied else old.error
            complain(f"{target.target}: not compared with {base}: {error}")
    errors = [verdict.error for verdict in judged if verdict.outcome == "error"]
    for error in errors:
        complain(error)
    return 2 if errors else int(any(verdict.outcome == "fail" for verdict in judged))


def _found(targets: Sequence[str]) -> tuple[Found, dict[str, RfcalcError]]:
    """What there is to judge, and what names nothing, which hides nobody else's verdict.

    Raises DesignError where nothing is left.
    """
    from rfcalc.designs.targets import find_targets

    try:
        return find_targets(targets), {}
    except DesignError:
        refused: dict[str, RfcalcError] = {}
        for given in targets:
            try:
                find_targets([given])
            except DesignError as error:
                refused[given] = error
        named = [given for given in targets if given not in refused]
        if not named:
            raise
        return find_targets(named), refused


def _settings(
    targets: Sequence[Target], config: Path | None, flags: dict[str, object], refused: dict[str, RfcalcError]
) -> dict[Target, Settings]:
    """What applies to each target; those whose pyproject.toml is wrong are added to `refused`.

    Raises ConfigError when `config` is, or every target's.
    """
    from rfcalc.gate.settings import settings_for

    settings = {}
    for target in targets:
        try:
            settings[target] = settings_for(target.file, config=config, flags=flags)
        except ConfigError as error:
            if config is not None:
                raise
            refused[target.target] = error
    if refused and not settings:
        raise next(iter(refused.values()))
    return settings


def _require_files(targets: Sequence[str], skipped: int) -> None:
    """A hook names whatever files a commit touches; but who names a folder means the designs in it.

    Raises DesignError for anything but files.
    """
    if not all(Path(target).is_file() for target in targets):
        raise DesignError(f"{', '.join(targets)}: no target found: none of {skipped} Python files defines a design")


def _write(text: str, output: Path | None) -> None:
    if output is not None:
        write_file(output, text)
    elif text:
        emit(text)


def _config_text(target: Target, rows: Sequence[tuple[str, str, str]]) -> str:
    """What applies to one design: key, value and where the value comes from."""
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"  {key:<{widths[0]}}  {value:<{widths[1]}}  {origin}" for key, value, origin in rows]
    return "\n".join([target.target, *lines])


class _Chosen(NamedTuple):
    """The targets to judge; of those that existed at the revision, what names them as they were; and the repository
    and the copy of it that these lie in."""

    targets: list[Target]
    former: dict[Target, str]
    copied: tuple[Path, Path] | None


@contextlib.contextmanager
def _since(base: str | None, targets: list[Target]) -> Iterator[_Chosen]:
    """All targets, or those that changed since revision `base`."""
    if base is None:
        yield _Chosen(targets, {}, None)
        return
    from rfcalc.designs.revisions import changed_designs, repository, snapshot

    files: dict[Target, Path] = {}
    for target in targets:
        if target.file is None:
            raise DesignError(f"{target.target}: an importable module; --base {base} compares files")
        files[target] = target.file
    changed = changed_designs(base, [file for file in files.values() if file.exists()])
    # A file that does not exist is to be complained of, not to be taken for unchanged.
    chosen = [target for target, file in files.items() if file in changed or not file.exists()]
    places = {target: old for target in chosen if (old := changed.get(files[target]))}
    if not places:
        yield _Chosen(chosen, {}, None)
        return
    place = files[next(iter(places))].resolve()
    with snapshot(base, place) as folder:
        former = {target: _moved(target.target, folder / old) for target, old in places.items()}
        yield _Chosen(chosen, former, (repository(place.parent), folder))


def _moved(target: str, file: Path) -> str:
    """The same name and submodule of another file."""
    _, name, submodule = split_target(target)
    return str(file) + (f":{name}" if name else "") + (f"#{submodule}" if submodule else "")


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None] | None]:
    """Something to tell how many are done, which shows it; None where nobody watches."""
    if not sys.stderr.isatty():
        yield None
        return

    def show(done: int) -> None:
        sys.stderr.write(f"\r\033[K{done} of {total} judged")
        sys.stderr.flush()

    try:
        yield show
    finally:
        sys.stderr.write("\r\033[K")
