"""One design, judged: its figures, what it violates, what would mend it. Values that travel between processes.

>>> judge("models/step8.py").outcome                  # doctest: +SKIP
'pass'

The design's own code runs in this process: `workers.py` judges where a design that hangs or crashes does no harm.
torch is imported when the first design is judged.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from rfcalc.designs.design import Design, is_file, load_design, split_target
from rfcalc.errors import DesignError, ForwardError, InputError, NoDesignError, RfcalcError
from rfcalc.gate.advice import Advice
from rfcalc.gate.budget import Budget, Violation, depth
from rfcalc.gate.cautions import Caution, suspects
from rfcalc.gate.settings import Settings
from rfcalc.text import one_line

if TYPE_CHECKING:
    from rfcalc.analysis.report import Report

Outcome = Literal["pass", "fail", "error"]


@dataclass(frozen=True, slots=True)
class Figures:
    """What is compared of a design. `layers` counts rows that multiply (MACs > 0): the depth people speak of."""

    params: int
    trainable_params: int
    macs: int
    peak_activation_bytes: int
    rf_output: tuple[int, ...]
    rf_spatial: tuple[int, ...]
    layers: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of one target.

    `design` is `file.py:Name`, `file` and `line` where its class stands (None for an importable module). An "error"
    could not be judged: `error` is the one line why, and there are no figures. `before` holds the figures at the
    revision of `--base`, None where the design did not exist (or could not be judged) there.
    `suits` gives per axis the input sizes, smallest and largest, that the design's depth fits (Richter et al. 2021).
    """

    target: str
    design: str
    file: str | None
    line: int | None
    outcome: Outcome
    budget: Budget
    figures: Figures | None = None
    violations: tuple[Violation, ...] = ()
    advice: tuple[Advice, ...] = ()
    cautions: tuple[Caution, ...] = ()
    suits: tuple[tuple[int, int] | None, ...] = ()
    error: str = ""
    before: Figures | None = None


def judge(
    target: str, settings: Settings | None = None, *, remarks: bool = True, debug: bool = False
) -> Verdict | None:
    """The verdict on the design that `target` names (as `load_design` takes it); None for a file that defines none.

    Raises nothing that the design does: what keeps it from being judged, `sys.exit` included, is the verdict's error.
    What the design prints goes to stderr.

    Args:
        settings: budget, input shape and layout; by default the built-in budget and the design's own shape.
        remarks: also what would mend a rejected design, what to be cautious of, and the input sizes it suits.
        debug: print the traceback of what kept it from being judged.
    """
    settings = settings or Settings()
    line = None
    try:
        with kept_apart():
            design = configured(target, settings)
            line = design.line
            return _judged(design, settings, remarks)
    except NoDesignError:
        return None
    except (Exception, SystemExit) as error:
        if debug:
            traceback.print_exception(error)
        return replace(unjudged(target, settings, _reason(error, target)), line=line)


def _reason(error: BaseException, target: str) -> str:
    """Why a design could not be judged: ours to say in one line, unless it is nothing that we foresaw."""
    if isinstance(error, RfcalcError):
        return str(error)
    at = traceback.extract_tb(error.__traceback__)[-1]
    what = f"{target}: {one_line(error)} ({at.filename}:{at.lineno})"
    return f"{what}; this may be a bug in rfcalc: run again with --debug and report it"


def unjudged(target: str, settings: Settings, reason: str) -> Verdict:
    """The verdict on a design that could not be judged."""
    return Verdict(
        target=target,
        design=target,
        file=_file_of(target),
        line=None,
        outcome="error",
        budget=settings.budget,
        error=" ".join(reason.split()),
    )


def configured(target: str, settings: Settings) -> Design:
    """The design that a target names, with the input shape that its settings give it.

    Raises DesignError, or InputError when its input shape is malformed or not known.
    """
    design = load_design(target, settings.input_shape if settings.input_wins else None)
    if design.input_shape is None and not design.submodule:
        design = replace(design, input_shape=settings.input_shape)
    if design.input_shape is None:
        defined = "" if design.path is None or design.submodule else "define INPUT_SHAPE = (3, 224, 224) in it or "
        raise InputError(f"{design.name}: its input shape is not known; {defined}pass one: --input 3x224x224")
    return design


def figures(report: Report) -> Figures:
    """What is compared of a design, out of its report."""
    return Figures(
        params=report.params,
        trainable_params=report.trainable_params,
        macs=report.macs,
        peak_activation_bytes=report.peak_activation_bytes,
        rf_output=report.rf_output,
        rf_spatial=report.rf_spatial,
        layers=depth(report),
    )


def _judged(design: Design, settings: Settings, remarks: bool) -> Verdict:
    """The verdict on a design that can be judged. Raises what keeps it from being judged."""
    from rfcalc.gate.advice import advise
    from rfcalc.gate.budget import check
    from rfcalc.gate.cautions import cautions, suited

    report = reported(design, layout=settings.layout)
    violations = check(report, settings.budget)
    verdict = Verdict(
        target=design.target,
        design=design.name,
        file=_file_of(design.target),
        line=design.line,
        outcome="fail" if violations else "pass",
        budget=settings.budget,
        figures=figures(report),
        violations=tuple(violations),
    )
    if not remarks:
        return verdict
    advice = (
        advise(design.build, design.input_shape, report, settings.budget, violations, layout=settings.layout)
        if violations
        else ()
    )
    return replace(
        verdict,
        advice=tuple(advice),
        cautions=tuple(cautions(report, _holes(design, report, settings.layout))),
        suits=tuple(suited(report)),
    )


def _holes(design: Design, report: Report, layout: str | None) -> dict[str, tuple[int, ...]] | None:
    """What the dilations of a design leave out; None where no gradient tells."""
    from rfcalc.analysis.inputs import Inputs
    from rfcalc.gate.gridding import holes

    if not suspects(report):
        return {}
    try:
        return holes(design.build_real(), Inputs.of(design.input_shape, layout), report)
    except RfcalcError:
        return None


def reported(design: Design, *, layout: str | None = None, level: int = 2) -> Report:
    """The report of a design. Raises the RfcalcErrors of `Design.build` and `analyze`; a forward that exits has failed,
    too."""
    from rfcalc.analysis.analyze import analyze

    model = design.build()
    try:
        return analyze(
            model, design.input_shape, level=level, layout=layout, name=design.name, rebuild=design.build_real
        )
    except SystemExit as error:
        raise ForwardError(f"{design.name}: forward failed: {one_line(error)}") from error


def _file_of(target: str) -> str | None:
    """The file that a target names; None for an importable module."""
    try:
        place = split_target(target)[0]
    except DesignError:
        return None
    return os.path.expanduser(place) if is_file(place) else None


@contextlib.contextmanager
def kept_apart() -> Iterator[None]:
    """What a design may do to this process and the next design would suffer from: standard output belongs to the
    answer; the current folder, the environment, torch's default dtype and device, whether it keeps gradients, and
    torch's own names are put back."""
    import torch

    folder, dtype, device = os.getcwd(), torch.get_default_dtype(), torch.get_default_device()
    environment, gradients = dict(os.environ), torch.is_grad_enabled()
    names = [(owner, dict(vars(owner))) for owner in _patchable()]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.chdir(folder)
        if os.environ != environment:
            os.environ.clear()
            os.environ.update(environment)
        torch.set_grad_enabled(gradients)
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)
        for owner, before in names:
            if not before.items() <= vars(owner).items():
                _put_back(owner, before)


@functools.cache
def _patchable() -> list[Any]:
    """Modules and classes whose names a design may set to something else, on purpose or not: `nn.Conv2d = Mine`."""
    import torch
    from torch.nn import functional, init

    layers = [kind for kind in vars(torch.nn).values() if isinstance(kind, type)]
    return [builtins, torch, torch.nn, functional, init, torch.Tensor, *layers]


def _put_back(owner: Any, before: Mapping[str, Any]) -> None:
    for name, value in before.items():
        if vars(owner).get(name) is not value and (isinstance(owner, type) or not name.startswith("_")):
            setattr(owner, name, value)
