"""rfcalc: exact receptive fields, jumps, parameters and work of any PyTorch model, from a static walk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import rules as rules
    from .design import Design, load_design
    from .errors import (
        ConfigError,
        DesignError,
        ForwardError,
        HistoryError,
        InputError,
        NoDesignError,
        RfcalcError,
    )
    from .gate import Budget, Violation, check
    from .inputs import Axis
    from .report import LayerRow, Region, Report, analyze

__all__ = [
    "Axis", "Budget", "ConfigError", "Design", "DesignError", "ForwardError", "HistoryError", "InputError", "LayerRow",
    "NoDesignError", "Region", "Report", "RfcalcError", "Violation", "analyze", "check", "load_design",
]  # fmt: skip

_HOMES = {
    "design": ("Design", "load_design"),
    "errors": (
        "ConfigError", "DesignError", "ForwardError", "HistoryError", "InputError", "NoDesignError", "RfcalcError",
    ),
    "gate": ("Budget", "Violation", "check"),
    "inputs": ("Axis",),
    "report": ("LayerRow", "Region", "Report", "analyze"),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: the command line must answer `--help` without importing torch."""
    import importlib

    if name == "rules":
        return importlib.import_module(".rules", __name__)
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f".{home}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
