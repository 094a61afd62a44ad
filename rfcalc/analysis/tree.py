"""A model taken apart once: modules with their paths, parameters with their owners."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Tree:
    """A model taken apart: every module once with the path it is first found under, every parameter with its owner."""

    model: nn.Module
    paths: dict[int, str]
    modules: list[nn.Module]
    params: dict[int, tuple[str, Tensor]]


@lru_cache(maxsize=4096)
def is_scripted(kind: type) -> bool:
    """Is this the class of compiled code, whose attributes and calls live in C++?"""
    return issubclass(kind, torch.jit.ScriptModule)


def survey(model: nn.Module) -> Tree:
    """Walk the module tree once, in the order of registration."""
    paths: dict[int, str] = {id(model): ""}
    modules = [model]
    params: dict[int, tuple[str, Tensor]] = {}
    stack = [model]
    while stack:
        module = stack.pop()
        path = paths[id(module)]
        tables = module.__dict__
        if "_modules" not in tables:  # a traced module, which keeps them elsewhere
            tables = {name: getattr(module, name) for name in ("_parameters", "_modules")}
        for p in tables["_parameters"].values():
            if p is not None and id(p) not in params:
                params[id(p)] = (path, p)
        below = []
        for name, child in tables["_modules"].items():
            if child is not None and id(child) not in paths:
                paths[id(child)] = f"{path}.{name}" if path else name
                modules.append(child)
                below.append(child)
        stack += reversed(below)
    return Tree(model, paths, modules, params)
