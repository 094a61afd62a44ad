"""Cases of element-wise ops."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases.registry import LINE, TOKENS, case, fn

for _name in (
    "CELU ELU GELU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid Mish PReLU RReLU ReLU ReLU6 SELU "
    "SiLU Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink Dropout Dropout2d AlphaDropout FeatureAlphaDropout "
    "Identity"
).split():
    case(_name, lambda n=_name: nn.Sequential(nn.Conv1d(2, 2, 3), getattr(nn, n)()), LINE)
for _name in (
    "abs ceil cos erf exp expm1 floor frac isfinite isnan log log1p neg reciprocal relu round rsqrt sigmoid sign sin "
    "sqrt square tan tanh trunc clone contiguous detach relu_ sigmoid_ tanh_ abs_ neg_ exp_ sqrt_ isinf isreal "
    "positive nan_to_num logical_not bernoulli lgamma digamma erfinv asinh atan conj resolve_conj resolve_neg"
).split():
    fn(_name, lambda x, n=_name: getattr(x[..., 1:] * 0.5, n)(), LINE)
for _name in (
    "add sub mul div true_divide floor_divide remainder fmod pow float_power maximum minimum fmax fmin atan2 hypot "
    "xlogy eq ne lt le gt ge logical_and logical_or logical_xor copysign isclose heaviside logaddexp divide multiply "
    "subtract max min add_ sub_ mul_ div_ ldexp nextafter"
).split():
    fn(f"{_name} two", lambda x, n=_name: getattr(torch.Tensor, n)(x[..., 2:] * 1, x[..., :-2]), LINE)
fn("operators", lambda x: (3 - x) / 2 + 2**x * (x // 0.1) - x % 2 + 1 / x - abs(-x), LINE)
fn("bitwise", lambda x: ((x > 0) & (x.flip(2) < 1) | ~(x > 2) ^ (x < 3)).to(x.dtype), LINE)
fn(
    "bitwise_named",
    lambda x: torch.bitwise_xor(torch.bitwise_or(torch.bitwise_and(x > 0, x > 1), x > 2), torch.bitwise_not(x > 3)) * x,
    LINE,
)
fn("addcmul", lambda x: torch.addcmul(x, x.flip(2), x.roll(1, 2)) + torch.addcdiv(x, x.roll(2, 2), x), LINE)
fn("lerp", lambda x: torch.lerp(x, x.flip(2), 0.3), LINE)
fn("rsub", lambda x: torch.rsub(x, x.flip(2), alpha=2) + torch.add(x, x.roll(1, 2), alpha=-1), LINE)
fn("clamp", lambda x: x.clamp(0, 1) + x.clamp_min(0.1) + x.clamp_max(2.0) + torch.clip(x, x.flip(2), x + 1), LINE)
fn(
    "threshold",
    lambda x: F.threshold(x, 0.1, 2.0) + F.hardtanh(x) + F.logsigmoid(x) + F.rrelu(x) + F.prelu(x, torch.ones(2)),
    LINE,
)
fn("normal", lambda x: torch.normal(x, x[..., :1]) + torch.normal(0.0, x.flip(2)), LINE)
fn("normal_", lambda x: x + torch.empty_like(x).normal_(), LINE)
fn("prelu of the input", lambda x: F.prelu(x, x[0, :, 0]) + F.prelu(x, x[0, 0, 8:]), LINE)
fn("embedding of the input", lambda x: F.embedding(torch.tensor([[2, 0], [1, 1]]), x[0, 0]))
fn("embedding by and of the input", lambda x: F.embedding((x[0, 0, 0] > 1).long(), x[0, 0]))
fn("glu", lambda x: F.glu(x, 1) + F.glu(x[..., :8], 3).sum(3, keepdim=True))
fn("complex", lambda x: torch.complex(x, x.flip(3)).abs() + torch.polar(x, x.roll(1, 3)).real + torch.angle(x))
fn(
    "view_as_complex",
    lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(3, (-1, 2)).contiguous()) * 2).flatten(3),
    (2, 3, 8),
)
fn("imag", lambda x: torch.complex(x, x.flip(2)).imag + torch.complex(x, x.roll(1, 2)).conj().real, LINE)
fn("rotary", lambda x: x * x.cos() + torch.cat((-x[..., 2:], x[..., :2]), -1) * x.sin(), TOKENS)
fn("casts", lambda x: x.to(torch.float64).half().float().type_as(x) + x.double().to(x), LINE)
fn("type", lambda x: x.type(torch.float64) + x.bfloat16(), LINE)
fn("where data", lambda x: torch.where(x > x.flip(2), x, 0.0), LINE)
fn("where three", lambda x: torch.where(x.roll(1, 2) > 0, x, x.roll(3, 2)), LINE)
fn("masked_fill data", lambda x: x.masked_fill(x.roll(1, 2) > 0.5, 0.0), LINE)
fn(
    "bucketize",
    lambda x, edges: torch.bucketize(x.flip(2), edges).to(x.dtype) + x,
    LINE,
    edges=lambda: torch.arange(4.0),
)
fn("tril", lambda x: x.tril() + x.triu(1))
fn("fake quantize", lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, 0, 255), LINE)
fn(
    "fill",
    lambda x: (
        x.flip(2)
        + torch.zeros_like(x)
        + torch.ones_like(x) * x.new_ones(1)
        + torch.full_like(x, 2.0)
        + x.new_full((9,), 1.0)
    ),
    LINE,
)
fn("out", lambda x: torch.add(x, x.flip(2), out=torch.empty_like(x)), LINE)
fn("no_grad", lambda x: _without_gradient(x) + x, LINE)


def _without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x.flip(2) * 2
