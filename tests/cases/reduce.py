"""Cases of statistics along dims."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from cases.registry import TOKENS, case, first_of, fn

for _name in (
    "sum mean amax amin prod std var logsumexp norm nansum nanmean median mode max min nanmedian argmax argmin".split()
):
    fn(_name, lambda x, n=_name: first_of(getattr(x, n)(dim=2)))
    if _name not in ("amax", "amin", "logsumexp", "mode"):
        fn(f"{_name} whole", lambda x, n=_name: first_of(getattr(x[:, :, 1:, 1:], n)()))
for _name in "sum mean amax amin std var logsumexp nansum".split():
    fn(f"{_name} dims", lambda x, n=_name: getattr(x, n)(dim=(1, 3), keepdim=True) + x)
for _name in "all any count_nonzero".split():
    fn(_name, lambda x, n=_name: getattr(x > 1, n)(2).to(x.dtype))


fn("var_mean", lambda x: torch.var_mean(x, 3)[1] + torch.std_mean(x, 3)[0])
fn("aminmax", lambda x: x.aminmax(dim=2).max)
fn("vector_norm", lambda x: torch.linalg.vector_norm(x, 2, 2) + torch.linalg.vector_norm(x, float("inf"), (2,)))
fn("frobenius", lambda x: torch.norm(x, dim=(2, 3), keepdim=True) + torch.linalg.norm(x[..., 1:], dim=3, keepdim=True))
fn("quantile", lambda x: x.quantile(0.3, 2) + x.nanquantile(0.5, 2))
fn("kthvalue", lambda x: x.kthvalue(2, 3).values)
fn("topk", lambda x: x.topk(2, 2).values)
fn("topk indices", lambda x: x.gather(2, x.topk(2, 2).indices))
fn("sort", lambda x: x.sort(2, descending=True).values + x.msort() + torch.sort(x, stable=True, dim=2)[0])
fn("argsort", lambda x: x.argsort(3).float())
fn("softmax", lambda x: x.softmax(2))
fn("log_softmax", lambda x: x.log_softmax(3))
fn("softmin", lambda x: F.softmin(x, 2))
case("softmax2d", nn.Softmax2d)
fn("gumbel_softmax", lambda x: F.gumbel_softmax(x, dim=3))
fn("masked softmax", lambda x: x.masked_fill(torch.ones(9, 9).triu(1).bool(), -math.inf).softmax(-1) @ x, (9, 9))
fn("masked by what is like it", lambda x: x.masked_fill(torch.ones_like(x).triu(1) > 0, -1e9).softmax(-1) @ x, (9, 9))
fn("masked with zeros", lambda x: x.masked_fill(torch.ones(9, 9).triu(1).bool(), 0) @ x, (9, 9))
fn("masked twice", lambda x: (x.tril() + torch.full((9, 9), -math.inf).triu(1)).softmax(-1).softmax(-1) @ x, (9, 9))
fn("masked, of empty", lambda x: (x + torch.empty(9, 9).fill_(-math.inf).triu(1)).softmax(-1).mean(1) @ x[0], (9, 9))
case("layer_norm", lambda: nn.LayerNorm((7, 9)))
case("layer_norm last", lambda: nn.LayerNorm(9))
case("rms_norm", lambda: nn.RMSNorm(9))
case("group_norm", lambda: nn.GroupNorm(2, 4), (4, 5, 6))
fn(
    "group_norm mixed",
    lambda x, norm: norm(torch.cat([x, F.pad(x, (2, -2))], 1)),
    (2, 5, 6),
    norm=lambda: nn.GroupNorm(2, 4),
)
fn("layer_norm of the input", lambda x: F.layer_norm(x, (9,), x[0, 0, 0], x[0, 1, 1]))
fn("rms_norm of the input", lambda x: F.rms_norm(x, (9,), x[0, 0, 3]))
fn("group_norm of the input", lambda x: F.group_norm(x, 1, x[0, :, 0, 0], x[0, :, 3, 1]))
fn("instance_norm of the input", lambda x: F.instance_norm(x, weight=x[0, :, 0, 0], bias=x[0, :, 3, 1]))
fn(
    "batch_norm of the input",
    lambda x: (
        F.batch_norm(x, x[0, :, 0, 0], x[0, :, 3, 1], x[0, :, 4, 8], x[0, :, 6, 2])
        + F.batch_norm(x, None, None, x[0, :, 0, 0], x[0, :, 3, 1], training=True)
    ),
)
case("local_response_norm", lambda: nn.LocalResponseNorm(3), (4, 5))
fn("normalize", lambda x: F.normalize(x, dim=3))
fn("cosine_similarity", lambda x: F.cosine_similarity(x, x.flip(3), 2))
fn("cdist", lambda x: torch.cdist(x[:, :3], x[:, 1:]), TOKENS)
fn("fft", lambda x: torch.fft.fft(x).abs())
fn("fft2", lambda x: torch.fft.fft2(x).real)
fn("fftn", lambda x: torch.fft.ifftn(torch.fft.fftn(x, dim=(3,)), dim=(2,)).imag)
fn("rfft", lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=2), n=7, dim=2))
fn("rfft2", lambda x: torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[2:]))
fn("rfftn", lambda x: torch.fft.irfftn(torch.fft.rfftn(x, dim=(2, 3))))
fn("hfft", lambda x: torch.fft.hfft(torch.fft.ihfft(x, dim=3), dim=3))
fn("ifft", lambda x: torch.fft.ifft2(torch.fft.ifft(x, dim=2)).abs())
fn("fftshift", lambda x: torch.fft.ifftshift(torch.fft.fftshift(x, dim=2), dim=3))
fn("renorm", lambda x: F.avg_pool2d(x, 2).renorm(2, 2, 1.0))
