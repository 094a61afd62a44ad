"""`analyze(model, input_shape)`: the one way to make a report."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Sequence
from functools import lru_cache
from threading import RLock
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from rfcalc.analysis.attempt import (
    VALUES_NOTE,
    forward_error,
    lacks_channels,
    materialised,
    run_once,
    second_try,
    with_values,
)
from rfcalc.analysis.events import Trace
from rfcalc.analysis.fast import LEVEL_2
from rfcalc.analysis.field import Field
from rfcalc.analysis.inputs import READS_INDICES, Inputs, checked_model
from rfcalc.analysis.memo import forget
from rfcalc.analysis.parts import EMPTY, Shape
from rfcalc.analysis.reading import NO_EXTENT, read_out
from rfcalc.analysis.report import Axis, Report
from rfcalc.analysis.rows import NO_DIMS, Draft, Reader, drafts_of, owners_of
from rfcalc.analysis.tree import survey
from rfcalc.analysis.values import NeedsValuesError


def analyze(
    model: nn.Module,
    input_shape: Any,
    *,
    level: int = 2,
    layout: str | None = None,
    name: str = "",
    rebuild: Callable[[], nn.Module] | None = None,
) -> Report:
    """Run the forward once without storage and report every layer's geometry, parameters and work.

    Args:
        model: any module, on any device (also meta); it is left exactly as it was.
        input_shape: `(C, H, W)` without the batch; a tuple or list of shapes for several inputs; a dict of shapes for
            keyword inputs. A leaf may also be a tensor (its shape, with batch, and dtype are used), and shapes may sit
            in nested lists, tuples, dicts and dataclasses. Tensors of 0 or 1 dims (a step, lengths, labels) go in as
            they are, and so do plain numbers, flags, text and None beside other inputs.
        level: 2 (fast) or 1 (every op through torch's dispatcher); the reports are identical.
        layout: one letter per dim of an input without the batch, C for channels: `TC` for tokens of features. N marks
            the batch where it is not the first dim: `TNC` for a module that takes the sequence first.
        name: what the report calls the model.
        rebuild: makes the same model with real weights; used when the forward needs values.

    Raises:
        InputError: a malformed shape or layout, or no module. ForwardError: the model's forward raised; the message
        says where.

    >>> import torch
    >>> report = analyze(torch.nn.Conv2d(1, 8, 3), (1, 28, 28))
    >>> report.rows[0].n_out, report.rows[0].r_out, report.params
    ((26, 26), (3, 3), 80)
    """
    model = checked_model(model)
    with _ONE_AT_A_TIME:
        # A walk makes many small objects and no cycles; the collector would look through all of torch time and again.
        collecting = gc.isenabled()
        gc.disable()
        try:
            return _analyze(model, Inputs.of(input_shape, layout), level, name or type(model).__name__, rebuild)
        finally:
            forget()
            if collecting:
                gc.enable()


_ONE_AT_A_TIME = RLock()  # a run wraps the calls of the model's modules, and threads may share them


def _analyze(
    model: nn.Module, spec: Inputs, level: int, name: str, rebuild: Callable[[], nn.Module] | None
) -> Report:  # fmt: skip
    notes: list[str] = []
    tree = survey(model)
    if any(isinstance(t, UninitializedTensorMixin) for _, t in tree.params.values()):
        tree = survey(materialised(model, spec))
        notes.append("lazy modules were initialised in a copy")
    shortcuts = LEVEL_2 if level == 2 else None
    dtype = next((t.dtype for _, t in tree.params.values() if t.is_floating_point()), torch.float32)
    try:
        trace = run_once(tree, spec, shortcuts, dtype, "meta")
    except (Exception, NeedsValuesError) as error:
        again = second_try(error, tree)
        if again is None:
            raise forward_error(error, name, lacks_channels(error, tree, spec)) from error
        if again == "integers":
            notes.append(READS_INDICES)
            dtype = torch.int64
        else:
            notes.append(VALUES_NOTE.format(again))
        trace, tree, more = with_values(tree, spec, shortcuts, dtype, rebuild, name)
        notes += more
    return _report(spec, trace, tree.params, name, notes)


def _report(spec: Inputs, trace: Trace, params: Any, name: str, notes: list[str]) -> Report:
    drafts = drafts_of(trace.events)
    owned, unreached = owners_of(drafts, params, trace.used)
    reader = Reader(spec.axes, spec.layout, spec.batched)
    rows = tuple(reader.row(d, owned.get(i, ())) for i, d in enumerate(drafts))
    fields = {d.name: d.events[-1].field for d in drafts}
    fed = {d.name: d.events[0].ins[0] for d in drafts}
    out_shape, out_field = next(((s, f) for s, f in trace.outputs if f is not None), ((), None))
    if out_field is None:
        notes.append("the output does not depend on the input")
    out = reader.extents(out_field, out_shape) if out_field else [NO_EXTENT] * len(spec.axes)
    approx = sorted({op for s, f in trace.outputs if f is not None for op in f.approx} | _approximate(trace))
    for op, why in trace.failed.items():
        notes.append(f"the rule of {op} did not apply ({why}); its output is taken to depend on everything")
    late = _sequence_first(drafts, reader, spec)
    if late is not None:
        notes.append(late)
    tensors = [t for _, t in params.values()]
    report = Report(
        name=name,
        input_shapes=spec.shapes,
        axes=spec.axes,
        rows=rows,
        params=sum(t.numel() for t in tensors),
        trainable_params=sum(t.numel() for t in tensors if t.requires_grad),
        macs=trace.macs,
        peak_activation_bytes=trace.peak,
        output_shapes=tuple(s for s, _ in trace.outputs),
        rf_output=tuple(e.r for e in out),
        rf_spatial=_spatial(trace, reader, spec.axes),
        coverage=_coverage(out_field, out_shape, spec.axes),
        approximate_ops=tuple(approx),
        unreached=tuple(unreached),
        notes=tuple(notes),
        output_global=tuple(e.is_global for e in out),
        fields=fields,
        fed=fed,
    )
    lacking = report.without_channels()
    return report if lacking is None else dataclasses.replace(report, notes=(*notes, lacking[1]))


@lru_cache(maxsize=4096)
def _reads_a_sequence(kind: type) -> bool:
    return issubclass(kind, nn.MultiheadAttention | nn.RNNBase)


def _sequence_first(drafts: Sequence[Draft], reader: Reader, spec: Inputs) -> str | None:
    """What to say where a module that takes the sequence first is given the batch first, and reads one as the other."""
    modules: set[type] = {type(d.events[0].frame.module) for d in drafts}
    kinds = set(filter(_reads_a_sequence, modules))
    shapes_only = all(leaf.value is None for leaf in spec.leaves)
    found = []
    for d in drafts if kinds else ():
        module: Any = d.events[0].frame.module
        shape, field = d.events[0].ins[0]
        if type(module) not in kinds or module.batch_first or len(shape) != 3:
            continue
        dims = NO_DIMS.union(*map(reader.along, field.axes))
        batch_of_one = shapes_only and shape[0] == 1 < shape[1]
        if 0 not in dims and (1 in dims or batch_of_one):
            found.append((d.name, shape[1]))
    if not found:
        return None
    (name, n), more = found[0], f" and {len(found) - 1} more" if len(found) > 1 else ""
    return (
        f"{name}{more}: reads dim 0 as the sequence and dim 1 as the batch (batch_first=False), but the batch comes "
        f"first, so that its {n} positions do not see each other; set batch_first=True or pass layout TNC"
    )


def _approximate(trace: Trace) -> set[str]:
    return {op for e in trace.events for op in e.field.approx}


def _spatial(trace: Trace, reader: Reader, axes: Sequence[Axis]) -> tuple[int, ...]:
    """Per axis: the local field of the last map on the way to the first output that still has a grid."""
    found = []
    events = [e for e in trace.events if e.number <= trace.output_number] if trace.output_number >= 0 else trace.events
    for i in range(len(axes)):
        last = next((e for e in reversed(events) if any(p.local and p.dims for p in e.field.axes[i].parts)), None)
        found.append(reader.extents(last.field, last.shape)[i].r_local if last else 1)
    return tuple(found)


def _coverage(f: Field | None, shape: Shape, axes: Sequence[Axis]) -> tuple[float, ...]:
    if f is None:
        return (0.0,) * len(axes)
    f = read_out(f, shape)[0] if f.mask is not None and f.mask.pending else f
    out = []
    for axis, a in zip(axes, f.axes, strict=True):
        parts = [p for p in a.parts if p.bounds.size]  # of a result without elements there is nothing
        low = min((int(p.bounds[0].min()) for p in parts), default=EMPTY)
        high = max((-int(p.bounds[1].min()) for p in parts), default=-EMPTY)
        out.append(max(0, high - low + 1) / axis.size)
    return tuple(out)
