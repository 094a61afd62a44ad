"""rfcalc: exact receptive fields, jumps, parameters and work of any PyTorch model, from a static walk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rfcalc.analysis.analyze import analyze
    from rfcalc.analysis.report import Axis, LayerRow, Region, Report
    from rfcalc.analysis.rules import register
    from rfcalc.designs.design import Design, load_design
    from rfcalc.errors import (
        ConfigError,
        DesignError,
        ForwardError,
        HistoryError,
        InputError,
        NoDesignError,
        RfcalcError,
    )
    from rfcalc.gate.budget import Budget, Violation, check

__all__ = [
    "Axis", "Budget", "ConfigError", "Design", "DesignError", "ForwardError", "HistoryError", "InputError", "LayerRow",
    "NoDesignError", "Region", "Report", "RfcalcError", "Violation", "analyze", "check", "load_design",
    "register",
]  # fmt: skip

_HOMES = {
    "analysis.analyze": ("analyze",),
    "analysis.report": ("Axis", "LayerRow", "Region", "Report"),
    "analysis.rules": ("register",),
    "designs.design": ("Design", "load_design"),
    "errors": (
        "ConfigError", "DesignError", "ForwardError", "HistoryError", "InputError", "NoDesignError", "RfcalcError",
    ),
    "gate.budget": ("Budget", "Violation", "check"),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: the command line must answer `--help` without importing torch."""
    import importlib

    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
