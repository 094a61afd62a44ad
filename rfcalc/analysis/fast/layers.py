"""Level 2, whole layers: what calling a plain layer of torch comes to, without the way through torch's Python."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from rfcalc.analysis.events import Layer, Shortcuts
from rfcalc.analysis.fast.registry import SHORTCUTS
from rfcalc.analysis.values import PLAIN


def _plain(table: dict[str, Any], *names: str) -> tuple[Any, ...] | None:
    """The tensors of these names, if all stand there: one kept elsewhere, or of a class of its own, is its owner's."""
    found = []
    for name in names:
        t = table.get(name, table)
        if t is not None and type(t) not in PLAIN:
            return None
        found.append(t)
    return tuple(found)


def _conv_arguments(d: dict[str, Any]) -> tuple[Any, ...] | None:
    own = _plain(d["_parameters"], "weight", "bias")
    if own is None or own[0] is None or d["padding_mode"] != "zeros":  # padded by an op of its own
        return None
    return *own, d["stride"], d["padding"], d["dilation"], d["groups"]


def _norm_arguments(d: dict[str, Any]) -> tuple[Any, ...] | None:
    statistics, own = _plain(d["_buffers"], "running_mean", "running_var"), _plain(d["_parameters"], "weight", "bias")
    if statistics is None or own is None or d["training"]:
        return None
    return *statistics, *own, False, 0.0, d["eps"]


def _linear_arguments(d: dict[str, Any]) -> tuple[Any, ...] | None:
    own = _plain(d["_parameters"], "weight", "bias")
    return None if own is None or own[0] is None else own


def _layer_norm_arguments(d: dict[str, Any]) -> tuple[Any, ...] | None:
    own = _plain(d["_parameters"], "weight", "bias")
    return None if own is None else (d["normalized_shape"], *own, d["eps"])


def _dropout_arguments(d: dict[str, Any]) -> tuple[Any, ...] | None:
    return None if d["training"] else (d["p"], False)


def _unary_arguments(d: dict[str, Any]) -> tuple[Any, ...]:
    return (True,) if d.get("inplace") else ()


LAYERS: dict[type[nn.Module], Layer] = {
    nn.Conv1d: Layer(torch.conv1d, _conv_arguments),
    nn.Conv2d: Layer(torch.conv2d, _conv_arguments),
    nn.Conv3d: Layer(torch.conv3d, _conv_arguments),
    nn.BatchNorm1d: Layer(F.batch_norm, _norm_arguments, frozenset((2, 3))),
    nn.BatchNorm2d: Layer(F.batch_norm, _norm_arguments, frozenset((4,))),
    nn.BatchNorm3d: Layer(F.batch_norm, _norm_arguments, frozenset((5,))),
    nn.Linear: Layer(F.linear, _linear_arguments),
    nn.LayerNorm: Layer(F.layer_norm, _layer_norm_arguments),
    nn.Dropout: Layer(F.dropout, _dropout_arguments),
    nn.ReLU: Layer(F.relu, _unary_arguments),
    nn.ReLU6: Layer(F.relu6, _unary_arguments),
    nn.SiLU: Layer(F.silu, _unary_arguments),
    nn.Hardswish: Layer(F.hardswish, _unary_arguments),
    nn.GELU: Layer(F.gelu, _unary_arguments),
}
LEVEL_2 = Shortcuts(SHORTCUTS, LAYERS)
