"""`rfcalc summary`: torchinfo's view of a design."""

from __future__ import annotations

import sys
from typing import Any

from rfcalc.errors import ForwardError

from .shared import Debug, Input, Target, emit, load, own_stdout, screen


def command(target: Target, input_shape: Input = None, debug: Debug = False) -> int:
    """Modules, output shapes, parameters and multiply-adds, as torchinfo counts them.

    \b
    Example:
      rfcalc summary models/step8.py
    """
    from rfcalc.text import one_line

    design = load(target, input_shape)
    import torchinfo

    rows = ("ascii_only", "depth", "var_names") if screen(sys.stdout).ascii_only else ("depth", "var_names")
    with own_stdout():
        model = design.build_real()
        try:
            view = torchinfo.summary(
                model, **inputs(design.input_shape), device="cpu", depth=99, row_settings=rows, verbose=0
            )
        except RuntimeError as error:
            reason = one_line(error.__cause__ or error)
            raise ForwardError(f"{design.name}: torchinfo could not run it: {reason}") from error
    emit(str(view))
    return 0


def inputs(given: Any) -> dict[str, Any]:
    """A design's inputs as torchinfo takes them, with a batch of one."""
    import torch

    from rfcalc.analysis.inputs import Inputs

    args, kwargs, _ = Inputs.of(given).tensors(torch.float32, "cpu")
    return {"input_data": kwargs or args}
