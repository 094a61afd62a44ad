"""Cases of ops that a forward reaches only by naming them, or torch by itself further down."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases.registry import LINE, MAP, TOKENS, VOLUME, aten, fn, weights, written


def _channels(value: float) -> Callable[[], Tensor]:
    return lambda: torch.full((2,), value)


fn("_adaptive_avg_pool2d", lambda x: torch._adaptive_avg_pool2d(x, (3, 2)))
fn("_adaptive_avg_pool3d", lambda x: torch._adaptive_avg_pool3d(x, (3, 2, 2)), VOLUME)
fn(
    "_batch_norm_impl_index",
    lambda x, m, v: torch._batch_norm_impl_index(x, None, None, m, v, False, 0.1, 1e-5, False)[0],
    m=_channels(0.0),
    v=_channels(1.0),
)
fn(
    "native_batch_norm",
    lambda x, m, v: torch.native_batch_norm(x, None, None, m, v, False, 0.1, 1e-5)[0],
    m=_channels(0.0),
    v=_channels(1.0),
)
fn("native_batch_norm own", lambda x: torch.native_batch_norm(x, None, None, None, None, True, 0.1, 1e-5)[0])
fn(
    "_native_batch_norm_legit_no_training",
    lambda x, m, v: aten._native_batch_norm_legit_no_training(x, None, None, m, v, 0.1, 1e-5)[0],
    m=_channels(0.0),
    v=_channels(1.0),
)
fn("native_layer_norm", lambda x: torch.native_layer_norm(x, [9], None, None, 1e-5)[0])
fn("native_group_norm", lambda x: torch.native_group_norm(x, None, None, 1, 4, 30, 2, 1e-5)[0], (4, 5, 6))
if hasattr(torch, "_fused_rms_norm"):
    fn("_fused_rms_norm", lambda x: torch._fused_rms_norm(x, [9], None, 1e-5)[0])
fn(
    "_convolution",
    lambda x, w: torch._convolution(x, w, None, [2, 1], [1, 0], [1, 1], False, [0, 0], 1, False, False, False, False),
    w=weights(3, 2, 3, 3),
)
fn("_fft_r2c", lambda x: torch._fft_r2c(x, [3], 0, False).real)
fn("_fft_c2c", lambda x: torch._fft_c2c(torch.complex(x, x.flip(3)), [2], 0, True).abs())
fn("_fft_c2r", lambda x: torch._fft_c2r(torch.complex(x, x), [3], 0, 17))  # a length whose angles cancel nowhere
fn("hfft2", lambda x: torch.fft.hfft2(torch.fft.ihfft2(x)))
fn("hfftn", lambda x: torch.fft.hfftn(torch.fft.ihfftn(x, dim=(3,)), dim=(3,)))
fn("_softmax", lambda x: torch._softmax(x, 2, False))
fn("_safe_softmax", lambda x: torch._safe_softmax(x, 2))
fn("_log_softmax", lambda x: torch._log_softmax(x, 2, False))
fn("_cdist_forward", lambda x: aten._cdist_forward(x[:, :3], x[:, 1:], 2.0, None), TOKENS)
fn("pdist", lambda x: torch.pdist(x[0]), TOKENS)
fn("frobenius_norm", lambda x: aten.frobenius_norm(x, dim=[2], keepdim=True))
fn("norm overload", lambda x: aten.norm(x, 2, [2]))
fn(
    "_scaled_dot_product_attention_math",
    lambda x: torch._scaled_dot_product_attention_math(x, x, x, None, 0.0, True)[0],
    TOKENS,
)
fn(
    "_scaled_dot_product_flash_attention_for_cpu",
    lambda x: aten._scaled_dot_product_flash_attention_for_cpu(x[None], x[None], x[None])[0],
    TOKENS,
)
fn("_trilinear", lambda x: torch._trilinear(x[0], x[0], x[0], [], [], [], [0, 1]), TOKENS)
fn(
    "attention causal cross",
    lambda x: F.scaled_dot_product_attention(x[:, :, :3], x, x, is_causal=True),
)
fn("attention causal cross wide", lambda x: F.scaled_dot_product_attention(x, x[:, :, :4], x[:, :, :4], is_causal=True))
fn("alias", lambda x: aten.alias(x) + x)
fn("_to_copy", lambda x: aten._to_copy(x, dtype=torch.float64) + x)
fn("_reshape_alias", lambda x: aten._reshape_alias(x, [1, 2, 9, 7], [126, 63, 7, 1]))
fn("_unsafe_view", lambda x: aten._unsafe_view(x, [1, 2, 63]))
fn("_unsafe_index", lambda x: aten._unsafe_index(x, [None, None, torch.tensor([4, 1, 1])]))
fn("unsafe_split_with_sizes", lambda x: torch.unsafe_split_with_sizes(x, [2, 7], 3)[1])
fn("swapaxes", lambda x: x.swapaxes(1, 3))
fn("constant_pad_nd", lambda x: torch.constant_pad_nd(x, (1, -1, 0, 2)))
fn("_pad_circular", lambda x: torch._C._nn._pad_circular(x, (1, 2, 0, 1)))
for _n, _shape in ((1, LINE), (2, MAP), (3, VOLUME)):
    for _name in ("reflection", "replication"):
        _pad = getattr(torch._C._nn, f"{_name}_pad{_n}d")
        fn(f"torch {_name}_pad{_n}d", lambda x, f=_pad, n=_n: f(x, (1, 2) * n), _shape)
fn("_prelu_kernel", torch._prelu_kernel, w=weights(1, 2, 1, 1))
fn("relu6", lambda x: aten.relu6(x) + x.flip(2), LINE)
fn("log_sigmoid_forward", lambda x: aten.log_sigmoid_forward(x)[0] + x.flip(2), LINE)
fn("rrelu_with_noise", lambda x: torch._C._nn.rrelu_with_noise(x, torch.ones(1, 2, 9)) + x.flip(2), LINE)
fn("sgn", lambda x: x.sgn() + x.flip(2), LINE)
fn("aten conj", lambda x: aten.conj(x) + x.flip(2), LINE)
fn("native_dropout", lambda x: torch.native_dropout(x, 0.5, False)[0] + x.flip(2), LINE)
fn(
    "random like",
    lambda x: (
        x.flip(2)
        + torch.rand_like(x)
        + torch.randn_like(x)
        + torch.randint_like(x, 3)
        + x.new_zeros(9)
        + x.new_empty(9).fill_(1.0)
        + x.new_empty_strided((9,), (1,)).fill_(1.0)
    ),
    LINE,
)
fn(
    "random writes",
    lambda x: written(
        x, lambda y: (y[:, :, 0].normal_(), y[:, :, 1].uniform_(), y[:, :, 4].random_(), y[:, :, 5].exponential_())
    ),
)
fn("one_hot", lambda x, m: m(x) + F.one_hot(x, 7), (6,), m=lambda: nn.Embedding(7, 7))
fn("_embedding_bag", lambda x: torch._embedding_bag(x[0, 0], torch.tensor([1, 0, 2, 3]), torch.tensor([0, 3]))[0])
