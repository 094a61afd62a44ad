"""Names and numbers of torch-function calls: what one "op" is, shared by the trace and the oracle.

An op is one call that reaches `__torch_function__` from the model's own code: `F.conv2d(...)`, `x.relu_()`,
`x + y`, `x[:, 1:]`, `x.T`. Pure queries (`x.shape`, `x.dim()`) are not ops. Ops are numbered from 0 in
execution order; the same forward gives the same numbers on every run, which lets a second run find them again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

# Calls that read a property of a tensor and make no tensor that carries data.
QUERIES = frozenset(
    "shape dtype device layout is_meta is_cuda is_cpu is_mps is_xpu is_xla is_hpu is_mtia is_ipu is_vulkan is_maia "
    "is_sparse is_sparse_csr is_quantized is_nested is_leaf requires_grad grad grad_fn ndim names itemsize nbytes "
    "_version output_nr _base retains_grad name "
    "size dim stride numel nelement element_size storage_offset ndimension is_contiguous is_floating_point "
    "is_complex is_signed is_conj is_neg is_inference is_pinned is_shared is_same_size is_set_to is_tensor "
    "is_storage get_device data_ptr untyped_storage storage storage_type has_names __len__ __hash__ "
    "__repr__ __format__ _is_view _is_zerotensor is_nonzero_meta result_type promote_types can_cast "
    "requires_grad_ _set_grad_enabled is_grad_enabled is_inference_mode_enabled is_autocast_enabled get_default_dtype "
    "_has_compatible_shallow_copy_type _conj_physical_meta "
    "_fused_sdp_choice".split()
)


@lru_cache(maxsize=4096)
def call_name(func: Callable[..., Any]) -> str:
    """The user's name of a torch function: `conv2d`, `add`, `getitem`, `T` (for the property `x.T`)."""
    name = getattr(func, "__name__", type(func).__name__)
    if name in ("__get__", "__set__", "__delete__"):
        owner = getattr(func, "__self__", None)
        name = getattr(owner, "__name__", name)
    if name.startswith("__") and name.endswith("__"):
        name = name.strip("_")
        # `3 - x` and `x - 3`, `x -= 3` are the same op to a reader of the table.
        if name[:1] in "ri" and name[1:] in _ARITHMETIC:
            name = name[1:]
    return name


_ARITHMETIC = frozenset("add sub mul truediv floordiv mod pow matmul and or xor lshift rshift div".split())


@lru_cache(maxsize=4096)
def is_query(func: Callable[..., Any]) -> bool:
    """True when the call is not an op: it reads metadata and gets no number."""
    if getattr(func, "__module__", None) == "torch.autograd":  # `grad` differentiates; the property `x.grad` reads
        return False
    return call_name(func) in QUERIES or getattr(func, "__name__", "") in ("__set__", "__delete__", *QUERIES)
