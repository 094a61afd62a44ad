"""The flags of the limits: one for every field of Budget, so that a new limit needs none written."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

from rfcalc.gate.budget import LIMITS, SWITCHES


def with_limits(command: Callable[..., int]) -> Callable[..., int]:
    """The command with a flag for every limit in the place of its parameter `limits`.

    `limits` is then what the flags say, by the limits' names: None for a flag that was not given.
    """
    hints = get_type_hints(command, include_extras=True)
    taken = [one.replace(annotation=hints[one.name]) for one in inspect.signature(command).parameters.values()]
    place = [one.name for one in taken].index("limits")
    parameters = [*taken[:place], *map(_parameter, LIMITS), *taken[place + 1 :]]

    @functools.wraps(command)
    def flagged(**given: Any) -> int:
        limits = {name: _value(given.pop(name)) for name in LIMITS}
        return command(limits=limits, **given)

    # typer reads both.
    flagged.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": int}
    flagged.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
    return flagged


def _parameter(name: str) -> inspect.Parameter:
    flag = name.replace("_", "-")
    kind: Any
    if name in SWITCHES:
        option = typer.Option(f"--{flag}/--no-{flag}", show_default=False, help=LIMITS[name].help)
        kind = Annotated[bool | None, option]
    else:
        option = typer.Option(f"--{flag}", metavar="N", show_default=False, help=LIMITS[name].help)
        kind = Annotated[str | None, option]
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=kind)


def _value(given: str | bool | None) -> object:
    """What a flag says; what is neither a number nor `false` stays a text, for the settings to refuse."""
    if not isinstance(given, str):
        return given
    if given == "false":
        return False
    digits = given.replace("_", "")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 20 else given
