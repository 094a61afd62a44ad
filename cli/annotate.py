"""`rfcalc annotate`: true comments behind the layers of design files."""

from __future__ import annotations

import difflib
import io
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rfcalc.designs.design import split_target
from rfcalc.errors import DesignError, NoDesignError, RfcalcError

from .shared import Debug, Input, Layout, complain, emit, write_bytes

if TYPE_CHECKING:
    from rfcalc.designs.targets import Target
    from rfcalc.gate.settings import Settings
    from rfcalc.render.comments import Annotation

Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE...",
        show_default=False,
        help="Design files, folders, globs; file.py:Name where a file holds several designs, once for each of them.",
    ),
]


def command(
    files: Files,
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit 1 when a comment is stale or missing.")
    ] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Change nothing; print what would change.")] = False,
    input_shape: Input = None,
    layout: Layout = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", show_default=False, help="Settings, in place of the nearest pyproject.toml."
        ),
    ] = None,
    timeout: Annotated[
        int, typer.Option("--timeout", metavar="SECONDS", min=1, max=86_400, help="What one file may take.")
    ] = 60,
    debug: Debug = False,
) -> int:
    """Write the true `# N 28->26  J 1  R 3` behind every layer: map size before and after, jump and receptive field.

    Corrects and removes only comments of that very form; one of another stays, and ours goes behind it. A line that
    makes several layers (a loop, a helper function), or one with several numbers, gets none, and is named on stderr.
    Files without a design are skipped.

    \b
    Examples:
      rfcalc annotate models/step8.py
      rfcalc annotate --check --diff models
    """
    flags: dict[str, object] = {"input": input_shape, "layout": layout}
    stale = 0
    failed: list[RfcalcError] = []
    targets, without = _by_file(files)
    annotations = _annotations(targets, flags, config, timeout, debug)
    for named, annotation in zip(targets.values(), annotations, strict=True):
        place = split_target(named[0].target)[0]
        try:
            if isinstance(annotation, RfcalcError):
                raise annotation
            if annotation is not None and annotation.changes and not check and not diff:
                write_bytes(Path(place), annotation.after)
        except RfcalcError as failure:  # the other files are still to be done
            failed.append(failure)
            continue
        if annotation is None:
            without += 1
            continue
        stale += len(annotation.changes)
        for line in _doubts(place, annotation):
            print(line, file=sys.stderr)
        if not check and not diff:
            emit(_done(place, annotation))
        for line in [*(_found(place, annotation) if check else ()), *(_diff(place, annotation) if diff else ())]:
            emit(line)
    if without:
        print(f"{without} {'file' if without == 1 else 'files'} without a design skipped", file=sys.stderr)
    for error in failed[:-1]:
        complain(str(error))
    if failed:
        raise failed[-1]
    return int(check and stale > 0)


def _by_file(files: Sequence[str]) -> tuple[dict[Path, list[Target]], int]:
    """The designs of each file, and how many files surely hold none."""
    from rfcalc.designs.targets import find_targets

    found = find_targets(files)
    targets: dict[Path, list[Target]] = {}
    for target in found.targets:
        if target.file is None or split_target(target.target)[2]:
            raise DesignError(f"{target.target}: expected a design file, as in models/step8.py or models/step8.py:Net")
        targets.setdefault(target.file, []).append(target)
    return targets, len(found.skipped)


def _annotations(
    targets: Mapping[Path, Sequence[Target]], flags: dict[str, object], config: Path | None, timeout: int, debug: bool
) -> list[Annotation | RfcalcError | None]:
    """What annotating does to each file, or why that cannot be told. Their code runs in a process of its own."""
    from rfcalc.gate.settings import settings_for
    from rfcalc.gate.workers import Job, call_all

    answers: dict[Path, Annotation | RfcalcError | None] = {}
    calls: dict[Path, Job[Annotation | None]] = {}
    for file, named in targets.items():
        names = [target.target for target in named]
        try:
            settings = settings_for(file, config=config, flags=flags)
            calls[file] = Job(", ".join(names), partial(_annotation, file, names, settings))
        except RfcalcError as error:
            answers[file] = error
    computed = call_all(list(calls.values()), timeout=timeout, debug=debug)
    answers |= zip(calls, computed, strict=True)
    return [answers[file] for file in targets]


def _annotation(file: Path, targets: Sequence[str], settings: Settings) -> Annotation | None:
    """What annotating does to one file; None when it defines no design. Runs its code in this process."""
    from rfcalc.gate.verdict import configured, kept_apart
    from rfcalc.render.comments import Makers, annotated, comments_on

    designs = []
    try:
        for target in targets:
            makers = Makers(str(file))
            with kept_apart():
                with makers.watching():
                    design = configured(target, settings)
                designs.append(comments_on(design, makers, settings.layout))
    except NoDesignError:
        return None
    try:
        source = file.read_bytes()
    except OSError as error:
        raise DesignError(f"{targets[0]}: cannot be read: {error.strerror}") from error
    return annotated(source, designs)


# --- what is said ----------------------------------------------------------------------------------------------


def _done(place: str, annotation: Annotation) -> str:
    """`models/step8.py: 10 comments, 3 added, 1 corrected, 1 removed`."""
    kinds = Counter(
        "added" if change.found is None else "removed" if change.expected is None else "corrected"
        for change in annotation.changes
    )
    counts = [f"{kinds[kind]} {kind}" for kind in ("added", "corrected", "removed") if kinds[kind]]
    comments = f"{annotation.comments} {'comment' if annotation.comments == 1 else 'comments'}"
    return f"{place}: {', '.join([comments, *counts]) if counts else f'{comments}, all true'}"


def _found(place: str, annotation: Annotation) -> Iterator[str]:
    """A line for each comment that is not as it should be."""
    for change in annotation.changes:
        yield f"{place}:{change.line}: found {change.found or 'no comment'}, expected {change.expected or 'none'}"


def _diff(place: str, annotation: Annotation) -> Iterator[str]:
    """A unified diff, as `patch` reads it."""
    texts = (content.decode(annotation.encoding) for content in (annotation.before, annotation.after))
    before, after = (list(io.StringIO(text, newline="")) for text in texts)
    for line in difflib.unified_diff(before, after, f"a/{place}", f"b/{place}"):
        yield line[:-1] if line.endswith("\n") else f"{line}\n\\ No newline at end of file"


def _doubts(place: str, annotation: Annotation) -> Iterator[str]:
    """What was left without a comment, and why."""
    for refusal in annotation.refused:
        names = _listed(refusal.names)
        reasons = {
            "layers": f"makes {len(refusal.names)} layers, {names}",
            "calls": f"its layer is called with different numbers ({names})",
            "designs": f"its layer has different numbers in different designs ({names})",
        }
        yield f"{place}:{refusal.line}: {reasons[refusal.why]}: left without a comment"
    if annotation.elsewhere:
        yield f"{place}: no line of this file makes {_listed(annotation.elsewhere)}: left without a comment"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{', '.join(names[:4])}{more}"
