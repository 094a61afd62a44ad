"""A run that keeps torch's graph, for a forward which differentiates: score and force models, forward-mode tangents.

Other runs are in inference mode, where torch keeps no graph. Here it does, and what it computes backwards are ATen ops
that level 1 sees below the one torch function that asked for them. The graph hands back what it saved as other tensor
objects on the same storage: that is how they are known again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from rfcalc.analysis.events import Event
from rfcalc.analysis.field import everything
from rfcalc.analysis.rules import Value
from rfcalc.analysis.run import Run
from rfcalc.analysis.schemas import DIFFERENTIATING
from rfcalc.analysis.tensors import is_wrapped
from rfcalc.analysis.tree import Tree
from rfcalc.analysis.values import KEY, Traced, fresh

Place = tuple[int, tuple[int, ...], tuple[int, ...]]


class DerivativesRun(Run):
    """A run at level 1 that knows every living storage, and what of it was seen."""

    keeps_graph = True

    def __init__(self, tree: Tree, buffers: set[int]) -> None:
        super().__init__(tree.paths, tree.params, buffers, None)
        self.storages: dict[int, tuple[StorageWeakRef, dict[Place, Traced]]] = {}
        for _, t in tree.params.values():
            self.flags[id(t)] = (t, t.requires_grad, t.grad)  # `backward` adds to the gradients of the weights

    def differentiate(self) -> None:
        """Here it may."""

    def attach(self, t: Tensor, v: Traced) -> None:
        super().attach(t, v)
        storage = _storage_of(t)
        if storage is not None:
            held = self._held(storage)
            if held is None:
                held = {}
                self.storages[storage._cdata] = (StorageWeakRef(storage), held)  # type: ignore[no-untyped-call]
            held[_place(t)] = v

    def _held(self, storage: torch.UntypedStorage) -> dict[Place, Traced] | None:
        """What was seen of a storage; one that has died may have left its address to another."""
        known = self.storages.get(storage._cdata)
        return known[1] if known is not None and not _is_dead(known[0]) else None

    def value(self, t: Tensor) -> Value:
        if id(t) not in self.known and KEY not in t.__dict__ and not is_wrapped(t):
            v = self._seen(t)
            if v is not None:
                t.__dict__[KEY] = v
                return fresh(v)
        return super().value(t)

    def _seen(self, t: Tensor) -> Traced | None:
        """What was known of this storage, read in the same way; of another way of reading it, all that is there."""
        storage = _storage_of(t)
        held = None if storage is None else self._held(storage)
        if held is None:
            return None
        v = held.get(_place(t))
        if v is None:
            whole = next(iter(held.values()))
            while whole.parent is not None:
                whole = whole.parent
            field = fresh(whole).field
            v = Traced(tuple(t.shape), field and everything(field, "a view in torch's graph"), whole.cell)
            held[_place(t)] = v
        return v

    def record(self, func: Any, op: Event, result: Any) -> None:
        """What neither the forward nor the graph holds any more is not live, although it was noted here."""
        for key, (storage, _) in list(self.storages.items()):
            if _is_dead(storage):
                del self.storages[key]
        if func in DIFFERENTIATING:
            op.windows.clear()  # those of its steps are not its own
        super().record(func, op, result)


def _storage_of(t: Tensor) -> torch.UntypedStorage | None:
    try:
        return t.untyped_storage()
    except (NotImplementedError, RuntimeError):  # layouts without one storage
        return None


def _is_dead(storage: StorageWeakRef) -> bool:
    return bool(storage.expired())  # type: ignore[no-untyped-call]


def _place(t: Tensor) -> Place:
    return int(t.storage_offset()), tuple(t.shape), tuple(t.stride())
