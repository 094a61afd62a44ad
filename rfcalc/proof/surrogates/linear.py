"""Functions that need no stand-in: their own gradient shows every dependence.

Sums with positive weights, and movements of elements; and those that take of their tensor the shape alone. A test holds
that every op with a rule is either here or in `SURROGATES`, so that none is left out by oversight.
"""

from __future__ import annotations

LINEAR = frozenset((
    # sums
    "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d avg_pool1d "
    "avg_pool2d avg_pool3d cumsum index_add mean scatter_add sum trace nll_loss2d_forward nll_loss_forward "
    "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_bilinear2d "
    "upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d "
    # the same elements elsewhere, or as another type
    "_conj _pack_padded_sequence _pad_circular _pad_packed_sequence _reshape_alias _to_copy _unsafe_view adjoint alias "
    "as_strided block_diag broadcast_to cat channel_shuffle clone concat concatenate contiguous copy diag diag_embed "
    "diagonal expand flatten flip fliplr flipud im2col lift_fresh mH mT matrix_H meshgrid moveaxis movedim narrow "
    "numpy_T permute pixel_shuffle pixel_unshuffle ravel reflection_pad1d reflection_pad2d reflection_pad3d repeat "
    "repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape resolve_neg roll rot90 select "
    "slice split_with_sizes squeeze stack swapaxes swapdims t tile transpose tril triu unflatten unfold "
    "unsafe_split_with_sizes unsqueeze view view_as_real "
    # written into
    "diagonal_scatter fill index_fill select_scatter slice_scatter zero "
    # of the shape alone
    "_new_zeros_with_same_feature_meta empty_like exponential new_empty new_empty_strided normal_ rand_like "
    "randint_like randn_like random uniform"
).split())  # fmt: skip
