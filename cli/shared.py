"""What every command needs: its common options, a loaded design, and a way to print that survives a closed pipe."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from rfcalc.errors import RfcalcError
from rfcalc.files import write_whole

if TYPE_CHECKING:
    from rfcalc.analysis.report import Report
    from rfcalc.designs.design import Design
    from rfcalc.gate.settings import Settings

Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        show_default=False,
        help="file.py, file.py:Name or package.module:callable, each optionally followed by #sub.module.path.",
    ),
]
Input = Annotated[
    str | None,
    typer.Option(
        "--input",
        metavar="SHAPE",
        show_default=False,
        help="Input shape without the batch: 1x28x28, or 3x64x64,3x64x64 for two inputs, or x=3x64x64,y=10 by name.",
    ),
]
Layout = Annotated[
    str | None,
    typer.Option(
        "--layout",
        metavar="LETTERS",
        show_default=False,
        help="One letter per dim of the input, C for channels: TC for tokens of features. N marks a batch that is not "
        "first, as in TNC. Default: T, CL, CHW or CDHW.",
    ),
]
Level = Annotated[
    int,
    typer.Option("--level", min=1, max=2, help="2: fast. 1: every op through torch's dispatcher; the same answers."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

PLAIN_WIDTH = 100


@dataclass(frozen=True)
class Screen:
    """What the text will be read on."""

    width: int
    color: bool
    ascii_only: bool


FILE = Screen(PLAIN_WIDTH, color=False, ascii_only=False)


def screen(stream: TextIO) -> Screen:
    """Width, colour and character set of the terminal or pipe that `stream` writes to."""
    terminal = stream.isatty()
    width = shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns if terminal else PLAIN_WIDTH
    color = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    try:
        "…─".encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return Screen(width, color, ascii_only=True)
    return Screen(width, color, ascii_only=False)


def import_torch() -> None:
    """Import torch with the collector off: it would walk a million new objects, none of them garbage."""
    gc.disable()
    import torch  # noqa: F401

    gc.enable()


@contextlib.contextmanager
def own_stdout() -> Iterator[None]:
    """Within, what a design prints goes to stderr: stdout carries the answer, maybe as JSON."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def load(target: str, input_text: str | None) -> Design:
    """The design that a command line names.

    Raises DesignError, or InputError when its input shape is malformed or not known.
    """
    from rfcalc.designs.shapes import parse_shape
    from rfcalc.gate.settings import Settings

    shape = None if input_text is None else parse_shape(input_text)
    return load_with(target, Settings(input_shape=shape, input_wins=True))


def load_with(target: str, settings: Settings) -> Design:
    """The design that a target names, with the input shape that its settings give it. Raises as `load` does."""
    from rfcalc.gate.verdict import configured

    import_torch()
    with own_stdout():
        return configured(target, settings)


def analyzed(design: Design, layout: str | None, level: int) -> Report:
    """The report of a design. Raises the RfcalcErrors of `Design.build` and `analyze`."""
    from rfcalc.gate.verdict import reported

    with own_stdout():
        return reported(design, layout=layout, level=level)


def complain(message: str) -> None:
    """One line on stderr, as every error is told."""
    print(f"rfcalc: {' '.join(message.split())}", file=sys.stderr)


def emit(text: str) -> None:
    """Print to stdout. Leaves with 141 when the reader has gone, as a program killed by SIGPIPE would.

    Raises RfcalcError when stdout cannot be written for another reason, such as a full disk.
    """
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding) + "\n")
        sys.stdout.flush()
    except OSError as error:
        # What is still buffered would raise again when the interpreter closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise typer.Exit(141) from None
        raise RfcalcError(f"stdout: cannot be written: {error.strerror}") from error


def write_file(path: Path, text: str) -> None:
    """Write the whole text and a final newline, or nothing. Raises RfcalcError when the path cannot be written."""
    write_bytes(path, f"{text}\n".encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write all of it or nothing; a file that exists keeps its permissions. Raises RfcalcError as `write_file` does."""
    place = path.expanduser()
    try:
        if place.is_dir():
            raise RfcalcError(f"{path}: a folder; expected a file to write to")
        if place.exists() and not place.is_file():  # a device or a pipe: there is nothing to replace
            place.write_bytes(content)
            return
        write_whole(place.resolve(), content)
    except OSError as error:
        raise RfcalcError(f"{path}: cannot be written: {error.strerror}") from error
