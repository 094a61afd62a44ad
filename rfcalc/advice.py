"""What would bring a rejected design under its budget. Every advice is tried on the design before it is given."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Advice:
    """One change to a design, and the figures the changed design has: measured by analysing it, not estimated.

    `kind` is what is done, `layer` the row (or module path) it is done to, `message` the change in one sentence;
    `fits` tells whether the changed design passes its whole budget. Fields per axis follow `Report.axes`.
    """

    limit: str
    kind: str
    layer: str
    message: str
    params: int
    macs: int
    rf_output: tuple[int, ...]
    rf_spatial: tuple[int, ...]
    fits: bool
