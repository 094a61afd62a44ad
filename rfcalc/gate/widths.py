"""A design's modules seen as widths: who feeds whom, and giving a layer another number of channels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from rfcalc.analysis.report import LayerRow, Report


class UnfitError(Exception):
    """A change that this module cannot take."""


class Changeable:
    """A model beside its report: which row is the call of which module, in the order of the forward.

    `layers` holds the modules called once, `all_layers` also those called more often, at their first call."""

    def __init__(self, model: nn.Module, report: Report) -> None:
        self.model, self.report = model, report
        modules = dict(model.named_modules())
        calls: dict[str, int] = {}
        for row in report.rows:
            calls[row.path] = calls.get(row.path, 0) + 1
        owners: dict[int, int] = {}
        for module in modules.values():
            for parameter in module._parameters.values():
                owners[id(parameter)] = owners.get(id(parameter), 0) + (parameter is not None)
        first = {row.path: row for row in reversed(report.rows)}
        self.all_layers = [
            (row, module)
            for row in report.rows
            if row is first[row.path]
            and (module := modules.get(row.path)) is not None
            and type(module).__name__ == row.op
            # a weight that two layers share cannot change in one of them
            and all(owners[id(p)] < 2 for p in module._parameters.values())
        ]
        self.layers = [(row, module) for row, module in self.all_layers if calls[row.path] == 1]

    def parent(self, path: str) -> tuple[nn.Module, str]:
        """The module that holds the one at `path`, and the name it has there."""
        outer, _, name = path.rpartition(".")
        return self.model.get_submodule(outer), name


def followers_of(layers: Sequence[tuple[LayerRow, nn.Module]], at: int) -> tuple[list[nn.Module], nn.Module | None]:
    """What a layer's channels pass through, and the layer that takes them in: by order, a trial shows if truly."""
    through: list[nn.Module] = []
    width = width_of(layers[at][1])
    for _, module in layers[at + 1 :]:
        if multiplies(module) and not is_depthwise(module):
            return through, module
        if channels_of(module) == width:
            through.append(module)
    return through, None


def multiplies(module: nn.Module) -> bool:
    from torch import nn

    return isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    from torch import nn

    return isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)


def is_depthwise(module: Any) -> bool:
    return getattr(module, "groups", 1) > 1 and module.groups == module.in_channels == module.out_channels


def channels_of(module: Any) -> int | None:
    """How many channels a layer owns numbers for, each by itself; None for one that mixes them or owns none."""
    from torch import nn

    batch = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
    instance = nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d
    found: int | None = None
    if isinstance(module, batch | instance):
        found = module.num_features
    elif isinstance(module, nn.GroupNorm):
        found = module.num_channels
    elif isinstance(module, nn.LayerNorm):
        found = module.normalized_shape[0]  # of the channels alone, or of (C, H, W)
    elif isinstance(module, nn.PReLU):
        found = module.num_parameters if module.num_parameters > 1 else None
    elif is_depthwise(module):
        found = module.out_channels
    return found


def groups_of(module: Any) -> int:
    """Its channels come in that many equal groups. One group for each channel is no constraint: they go along."""
    if multiplies(module):
        return 1 if is_depthwise(module) else getattr(module, "groups", 1)
    groups = getattr(module, "num_groups", 1)
    return 1 if groups == channels_of(module) else groups


def step_of(modules: Iterable[nn.Module]) -> int:
    """The widths that fit all of these layers are the multiples of it."""
    return math.lcm(*map(groups_of, modules))


def width_of(module: Any) -> int:
    return int(module.out_features if hasattr(module, "out_features") else module.out_channels)


def reshape(module: nn.Module, name: str, shape: Sequence[int]) -> None:
    """Give a parameter or buffer another shape; its values do not matter."""
    import torch
    from torch import nn

    tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
    for table in tables:
        old = table.get(name)
        if old is not None:
            new = torch.zeros(tuple(shape), dtype=old.dtype, device=old.device)
            table[name] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new


def resize(module: Any, *, out: int | None = None, into: int | None = None) -> None:
    """Another number of output or input channels. Raises UnfitError where the layer's groups do not allow it."""
    from torch import nn

    width = out or into or 0
    if is_depthwise(module):
        module.in_channels = module.out_channels = module.groups = width
        reshape(module, "weight", (width, 1, *module.weight.shape[2:]))
        reshape(module, "bias", (width,))
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = out or module.out_features, into or module.in_features
        reshape(module, "weight", (module.out_features, module.in_features))
        reshape(module, "bias", (module.out_features,))
    elif multiplies(module):
        module.out_channels, module.in_channels = out or module.out_channels, into or module.in_channels
        if module.in_channels % module.groups or module.out_channels % module.groups:
            raise UnfitError
        ends = (module.in_channels, module.out_channels)
        outer, inner = ends if is_transposed(module) else ends[::-1]
        reshape(module, "weight", (outer, inner // module.groups, *module.weight.shape[2:]))
        reshape(module, "bias", (module.out_channels,))
    else:
        resize_per_channel(module, width)


def resize_per_channel(module: Any, width: int) -> None:
    from torch import nn

    shape: tuple[int, ...] = (width,)
    if isinstance(module, nn.GroupNorm):
        if width % groups_of(module):
            raise UnfitError
        single = module.num_groups == module.num_channels
        module.num_channels, module.num_groups = width, width if single else module.num_groups
    elif isinstance(module, nn.LayerNorm):
        shape = module.normalized_shape = (width, *module.normalized_shape[1:])
    elif isinstance(module, nn.PReLU):
        module.num_parameters = width
    else:
        module.num_features = width
    for name in ("weight", "bias", "running_mean", "running_var"):
        reshape(module, name, shape)


def numel(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters(recurse=False))
