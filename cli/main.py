"""The `rfcalc` command. Exit codes: 0 done, 1 a check failed, 2 the user's to mend, 3 a bug here, 130 interrupted.

Nothing here imports torch: `rfcalc --help` answers at once.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from rfcalc.errors import RfcalcError
from rfcalc.version import VERSION

from . import annotate, check, compare, evaluate, export, predict, region, report, summary, table, train, verify
from .shared import complain

# Newer typers carry a click of their own, older ones import it: the class is found through what both export.
_ClickError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

app = typer.Typer(
    name="rfcalc",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for name, module in (
    ("table", table),
    ("check", check),
    ("compare", compare),
    ("annotate", annotate),
    ("region", region),
    ("verify", verify),
    ("summary", summary),
    ("train", train),
    ("report", report),
    ("evaluate", evaluate),
    ("predict", predict),
    ("export", export),
):
    app.command(name)(module.command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rfcalc {VERSION}")
        raise typer.Exit


@app.callback(epilog="Example: rfcalc table models/step8.py")
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Exact receptive fields, jumps, parameters and MACs of any PyTorch model, from a static walk."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; an error is one line on stderr."""
    debug = "--debug" in arguments
    try:
        return app(list(arguments) or ["--help"], prog_name="rfcalc", standalone_mode=False) or 0
    except RfcalcError as error:
        return _complain(str(error), 2, debug)
    except _ClickError as error:
        return _complain(_usage(error), 2, debug)
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except SystemExit as error:
        if "_RFCALC_COMPLETE" in os.environ:  # a shell asks what could be written here
            raise
        return _complain(f"a design called sys.exit({error.code!r}); expected one that does not exit", 2, debug)
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error} ({at.filename}:{at.lineno})"
        return _complain(f"{what}; this is a bug in rfcalc: run again with --debug and report it", 3, debug)


def _usage(error: Any) -> str:
    """What is wrong with the command line, and whose help says how it should be."""
    context = getattr(error, "ctx", None)
    return f"{error.format_message()} (see {context.command_path if context else 'rfcalc'} --help)"


def _complain(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    complain(message)
    return code


def main() -> None:
    """The entry point."""
    sys.exit(run(sys.argv[1:]))
