"""A network as an ONNX model, and how far that model's answers are from the network's.

>>> content = exported(model, (1, 28, 28), {"mean": "[0.1307]"})      # doctest: +SKIP
>>> difference(model, content, images)                                # doctest: +SKIP
2.4e-07
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rfcalc.errors import ForwardError, InputError, RfcalcError, extra
from rfcalc.text import one_line
from rfcalc.train.inference import Normal
from rfcalc.train.weights import About

INPUT, OUTPUT = "images", "scores"
_SIZES = (1, 3, 60)
"""Of the random batches that are compared: one image, few and many, for the number is to be free."""
_MOST = 2**31 - 1
"""Bytes of a protobuf message."""


@dataclass(frozen=True)
class Checked:
    """How far the ONNX model's answers are from the network's at most, over so many inputs."""

    what: str
    images: int
    difference: float
    """The greatest absolute difference of any score; infinite where one of both is not a number."""

    @property
    def finite(self) -> bool:
        """Whether all scores were numbers."""
        return math.isfinite(self.difference)


@dataclass(frozen=True)
class Export:
    """An ONNX model that was made and compared."""

    file: str
    size: int
    design: str
    place: str
    about: About
    shape: tuple[int, ...]
    normal: Normal | None
    """None where it is not known."""
    checks: tuple[Checked, ...]
    tolerance: float

    @property
    def fine(self) -> bool:
        """Whether no score differs by more than the tolerance."""
        return all(check.difference <= self.tolerance for check in self.checks)


def properties(about: About, normal: Normal | None) -> dict[str, str]:
    """What a reader of the model needs to know; ONNX keeps text only, so lists are JSON."""
    values: dict[str, Any] = {
        "design": about.design,
        "weights": about.weights,
        "seed": about.seed,
        "epoch": about.epoch,
        "data": about.data,
        "classes": about.classes or None,
        "mean": normal and normal.mean,
        "std": normal and normal.std,
    }
    return {key: one if isinstance(one, str) else json.dumps(one) for key, one in values.items() if one is not None}


def exported(model: nn.Module, shape: tuple[int, ...], about: Mapping[str, str]) -> bytes:
    """The network, in evaluation mode on the CPU, as an ONNX model of float32 inputs [batch, *shape], batch free.

    Raises MissingError without onnx and onnxscript, ForwardError when the forward raises, InputError when its output is
    no tensor, RfcalcError when torch's exporter cannot.
    """
    with extra("export"):
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    example = torch.zeros(2, *shape)
    with torch.no_grad():
        try:
            output: Any = model(example)
        except Exception as error:  # the design's own forward
            raise ForwardError(f"the design's forward raised {one_line(error)} on {tuple(example.shape)}") from error
    if not isinstance(output, Tensor):
        raise InputError(f"the design's output is {type(output).__name__}; expected one tensor")
    with _quiet():
        try:
            proto = _program(model, example).model_proto
        except Exception as error:  # the exporter raises whatever it met
            raise RfcalcError(
                f"torch {torch.__version__} cannot export the design to ONNX: {_reason(error)}"
            ) from error
    number = proto.graph.input[0].type.tensor_type.shape.dim[0]
    if number.HasField("dim_value"):
        raise RfcalcError(
            f"torch {torch.__version__} exports the design for exactly {number.dim_value} inputs at once: its forward "
            "fixes their number or depends on their values; expected any number, as x.flatten(1) leaves it"
        )
    for key, value in about.items():
        proto.metadata_props.add(key=key, value=value)
    if proto.ByteSize() > _MOST:
        raise RfcalcError(f"the ONNX model has {proto.ByteSize():,} bytes; expected fewer than 2 GiB")
    content: bytes = proto.SerializeToString()
    return content


def compared(model: nn.Module, content: bytes, shape: tuple[int, ...]) -> Checked:
    """The difference on random inputs, always the same ones, in batches of several sizes."""
    source = torch.Generator().manual_seed(0)
    batches = [torch.randn(size, *shape, generator=source) for size in _SIZES]
    return Checked("random inputs", sum(_SIZES), max(difference(model, content, batch) for batch in batches))


@torch.no_grad()
def difference(model: nn.Module, content: bytes, images: Tensor) -> float:
    """The greatest absolute difference between onnxruntime's and the network's answers to normalised images.

    Raises MissingError without onnxruntime, RfcalcError when it cannot run the model.
    """
    with extra("export"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        (found,) = session.run([OUTPUT], {INPUT: images.numpy()})
    except Exception as error:  # onnxruntime raises classes of its own that it does not export
        raise RfcalcError(f"onnxruntime cannot run the model on {tuple(images.shape)}: {one_line(error)}") from error
    wanted = model(images)
    if tuple(found.shape) != tuple(wanted.shape):
        raise RfcalcError(f"onnxruntime's answer is {tuple(found.shape)}; expected {tuple(wanted.shape)}, as torch's")
    gaps = (torch.from_numpy(found) - wanted).abs()
    return float("inf") if gaps.isnan().any() else float(gaps.max())


def _program(model: nn.Module, example: Tensor) -> Any:
    """What torch's exporter makes of the network, the number of inputs free. Raises whatever the exporter does."""
    shapes = ({0: torch.export.Dim("batch")},)
    options: dict[str, Any] = {
        "dynamo": True, "input_names": [INPUT], "output_names": [OUTPUT], "optimize": True, "verbose": False,
    }  # fmt: skip
    try:
        return torch.onnx.export(model, (example,), dynamic_shapes=shapes, **options)
    except Exception:
        # The exporter of torch 2.6 cannot name the outputs of batch norm as today's onnxscript has it.
        with contextlib.suppress(Exception):
            plain = torch.export.default_decompositions()
            plain[torch.ops.aten._native_batch_norm_legit_no_training.default] = _norm
            program = torch.export.export(model, (example,), dynamic_shapes=shapes, strict=False)
            return torch.onnx.export(program.run_decompositions(plain), **options)
        raise


def _norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, _momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm in evaluation, written out; the other two outputs are of training."""
    wide = (-1, *[1] * (x.ndim - 2))
    normal = (x - mean.view(wide)) * torch.rsqrt(var + eps).view(wide)
    normal = normal if weight is None else normal * weight.view(wide)
    return normal if bias is None else normal + bias.view(wide), x.new_empty(0), x.new_empty(0)


def _reason(error: BaseException) -> str:
    """The exporter's first cause: what it raises itself is a page of advice to its developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Within, what the exporter prints, logs and warns of is dropped: its inner steps, and graphs when it fails."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    dropped = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(dropped), contextlib.redirect_stderr(dropped):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
