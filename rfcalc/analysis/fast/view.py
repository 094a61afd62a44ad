"""Level 2, views and concatenation. Views are cheap in torch: it makes the view, the rule moves the field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rfcalc.analysis.fast.registry import Shortcut, is_taken_for_channels_last, meta_empty, named, shortcut, sizes_of
from rfcalc.analysis.rules import RULES, Call
from rfcalc.analysis.run import Run
from rfcalc.analysis.values import Traced, execute

# A view's arguments in order, for a call that names some; `view(dtype)` and named dims are level 1's.
VIEW_ARGUMENTS: dict[str, Callable[..., tuple[Any, ...]]] = {
    "flatten": lambda start_dim=0, end_dim=-1: (start_dim, end_dim),
    "view": lambda size: (size,),
    "reshape": lambda shape: (shape,),
    "permute": lambda dims: (dims,),
    "transpose": lambda dim0, dim1: (dim0, dim1),
    "unsqueeze": lambda dim: (dim,),
    "squeeze": lambda dim: (dim,),
}


def _native_view(rule_name: str) -> Shortcut:
    """Views are cheap in torch: it makes the view, the rule moves the field."""
    rule, ordered = RULES[rule_name], VIEW_ARGUMENTS[rule_name]

    def run_view(run: Run, op: Any, /, input: Any, *args: Any, **kwargs: Any) -> Any:
        x = input
        if type(x) is not Tensor:
            return NotImplemented
        v = run.value(x)
        if v.field is None or type(v) is not Traced:
            return NotImplemented
        if kwargs:
            try:
                args = ordered(*args, **kwargs)
            except TypeError:
                return NotImplemented
        args = tuple([sizes_of(a) for a in args])
        if None in args:
            return NotImplemented
        out = execute(_NATIVE[rule_name], (x, *args), _NO_KEYWORDS)
        if out is x:
            op.ins.append((v.shape, v.field))
            return x
        if not out._is_view() and out.untyped_storage()._cdata != x.untyped_storage()._cdata:
            return NotImplemented  # a reshape that had to copy
        call = Call(rule_name, (tuple(out.shape),))
        field = run.interpret(rule, call, v, *args)
        op.ins.append((v.shape, v.field))
        run.view(out, v, rule, call, (v, *args), field)  # type: ignore[arg-type]
        return out

    return run_view


_NO_KEYWORDS: dict[str, Any] = {}
_NATIVE: dict[str, Any] = {
    "flatten": torch.flatten, "view": Tensor.view, "reshape": Tensor.reshape, "permute": Tensor.permute,
    "transpose": Tensor.transpose, "unsqueeze": Tensor.unsqueeze, "squeeze": Tensor.squeeze,
}  # fmt: skip
for _name in _NATIVE:
    shortcut(*named(_name))(_native_view(_name))


@shortcut(torch.cat, torch.concat, torch.concatenate)
def cat(run: Run, op: Any, /, tensors: Any, dim: Any = 0) -> Any:
    if not isinstance(tensors, list | tuple) or not tensors or type(tensors[0]) is not Tensor:
        return NotImplemented
    first = tensors[0]
    n, dtype = first.dim(), first.dtype
    dim = sizes_of(dim)
    if type(dim) is not int or not -n <= dim < n:
        return NotImplemented
    at = dim % n
    usual = tuple(first.shape)
    before, after = usual[:at], usual[at + 1 :]
    for t in tensors:
        if type(t) is not Tensor or t.dtype is not dtype or not t.is_contiguous():
            return NotImplemented
    items = run.values(tensors)
    for v in items:
        shape = v.shape
        if shape != usual:  # most are like the one before
            if len(shape) != n or shape[:at] != before or shape[at + 1 :] != after:
                return NotImplemented
            usual = shape
    ins = [(v.shape, v.field) for v in items if v.field is not None]
    if not ins:
        return NotImplemented
    narrow = n > 3 and (usual[-1] == 1 or 1 in [v.shape[1] for v in items])
    if narrow and any(is_taken_for_channels_last(t, v.shape) for t, v in zip(tensors, items, strict=True)):
        return NotImplemented
    call = Call("cat", ((*before, sum([v.shape[at] for v in items]), *after),))
    field = run.interpret(RULES["cat"], call, items, at)
    op.ins += ins
    out = meta_empty(call.out[0], first)
    run.new(out, field)  # type: ignore[arg-type]
    return out
