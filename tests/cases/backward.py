"""Cases of a forward that differentiates: gradients of an energy, of its own gradient, and along a tangent."""

from __future__ import annotations

import torch
import torch.autograd.forward_ad as forward_mode
import torch.nn.functional as F
from torch import nn

from cases.registry import LINE, TOKENS, VOLUME, fn


def score(x, energy, again=False):
    """The gradient of an energy by the input, or of that gradient's length."""
    with torch.enable_grad():
        x = x if x.requires_grad else x.requires_grad_(True)
        (found,) = torch.autograd.grad(energy(x), x, create_graph=True)
        return torch.autograd.grad((found**2).sum(), x)[0] if again else found


def conv(*args, **kwargs):
    return lambda: nn.Conv2d(2, 3, 3, *args, **kwargs)


ENERGIES = {
    "tanh": lambda y: torch.tanh(y).sum(),
    "relu": lambda y: F.relu(y).sum(),
    "leaky relu": lambda y: (F.leaky_relu(y) ** 2).sum(),
    "gelu": lambda y: F.gelu(y).sum(),
    "silu": lambda y: F.silu(y).sum(),
    "elu": lambda y: F.elu(y).sum(),
    "softplus": lambda y: F.softplus(y).sum(),
    "sigmoid": lambda y: torch.sigmoid(y).sum(),
    "hardswish": lambda y: F.hardswish(y).sum(),
    "square": lambda y: (y**2).sum(),
    "product": lambda y: (y * y.roll(1, 3)).sum(),
    "quotient": lambda y: (1 / (1 + y**2)).sum(),
    "softmax": lambda y: (torch.softmax(y, 1) ** 2).sum(),
    "log softmax": lambda y: torch.log_softmax(y, 1).sum(),
    "glu": lambda y: F.glu(torch.cat([y, y], 1), 1).sum(),
    "max pool": lambda y: F.max_pool2d(y, 2).sum(),
    "max pool overlapping": lambda y: F.max_pool2d(y, 3, 2, 1).sum(),
    "average pool": lambda y: torch.tanh(F.avg_pool2d(y, 3, 1, 1)).sum(),
    "adaptive pool": lambda y: torch.tanh(F.adaptive_avg_pool2d(y, 3)).sum(),
    "adaptive max pool": lambda y: torch.tanh(F.adaptive_max_pool2d(y, 3)).sum(),
    "bilinear": lambda y: torch.tanh(F.interpolate(y, scale_factor=2, mode="bilinear")).sum(),
    "nearest": lambda y: torch.tanh(F.interpolate(y, scale_factor=2)).sum(),
    "reflect": lambda y: torch.tanh(F.pad(y, (1, 2, 2, 1), mode="reflect").unfold(3, 3, 1).sum(-1)).sum(),
    "replicate": lambda y: torch.tanh(F.avg_pool2d(F.pad(y, (1, 2, 2, 1), mode="replicate"), 3, 1)).sum(),
    "crop": lambda y: torch.tanh(y[:, :, 1:4:2, 1]).sum(),
    "cat": lambda y: torch.tanh(torch.cat([y, y.flip(3)], 1)).sum(),
    "mean": lambda y: (y.mean((2, 3)) ** 2).sum(),
}
for _name, _energy in ENERGIES.items():
    fn(f"gradient {_name}", lambda x, m, e=_energy: score(x, lambda x: e(m(x))), m=conv())
for _name in "hardshrink softshrink hardsigmoid hardtanh logsigmoid mish".split():
    fn(f"gradient {_name}", lambda x, m, n=_name: score(x, lambda x: (getattr(F, n)(m(x)) ** 2).sum()), m=conv())
fn("gradient prelu", lambda x, m, p: score(x, lambda x: (p(m(x)) ** 2).sum()), m=conv(), p=nn.PReLU)
for _name, _f in {"silu": F.silu, "logit": lambda y: torch.logit(y / 99, 1e-6)}.items():
    fn(f"gradient once {_name}", lambda x, m, f=_f: torch.autograd.grad(f(m(x.requires_grad_())).sum(), x)[0], m=conv())
fn("gradient logit", lambda x, m: score(x, lambda x: torch.logit(m(x) / 99, 1e-6).sum()), m=conv())
for _name in "mse_loss smooth_l1_loss huber_loss soft_margin_loss binary_cross_entropy".split():
    fn(f"gradient {_name}", lambda x, m, n=_name: score(
        x, lambda x: getattr(F, n)(y := torch.sigmoid(m(x)), torch.ones_like(y))), m=conv())  # fmt: skip
for _name, _pool in {
    "max": lambda y: F.max_pool3d(y, 2),
    "average": lambda y: F.avg_pool3d(y, 2, 1),
    "adaptive": lambda y: F.adaptive_avg_pool3d(y, 2),
    "adaptive max": lambda y: F.adaptive_max_pool3d(y, 2),
    "nearest": lambda y: F.interpolate(y, scale_factor=2),
    "nearest exact": lambda y: F.interpolate(y, scale_factor=2, mode="nearest-exact"),
    "trilinear": lambda y: F.interpolate(y, scale_factor=2, mode="trilinear"),
    "replicate": lambda y: F.avg_pool3d(F.pad(y, (1,) * 6, mode="replicate"), 2),
    "reflect": lambda y: F.avg_pool3d(F.pad(y, (1,) * 6, mode="reflect"), 2),
}.items():
    fn(f"gradient in a volume {_name}", lambda x, m, p=_pool: score(x, lambda x: torch.tanh(p(m(x))).sum()), VOLUME,
       m=lambda: nn.Conv3d(2, 2, 2))  # fmt: skip
for _name, _change in {
    "nearest": lambda y: F.interpolate(y, scale_factor=2),
    "nearest exact": lambda y: F.interpolate(y, scale_factor=2, mode="nearest-exact"),
    "linear": lambda y: F.interpolate(y, scale_factor=2, mode="linear"),
    "replicate": lambda y: F.avg_pool1d(F.pad(y, (2, 1), mode="replicate"), 2),
    "reflect": lambda y: F.avg_pool1d(F.pad(y, (2, 1), mode="reflect"), 2),
}.items():
    fn(f"gradient in a line {_name}", lambda x, m, p=_change: score(x, lambda x: torch.tanh(p(m(x))).sum()), LINE,
       m=lambda: nn.Conv1d(2, 2, 2))  # fmt: skip
fn("gradient nearest exact", lambda x, m: score(
    x, lambda x: torch.tanh(F.interpolate(m(x), scale_factor=2, mode="nearest-exact")).sum()), m=conv())  # fmt: skip
for _name, _layer in {
    "strided": conv(2, 1),
    "dilated": conv(1, 2, 2),
    "grouped": lambda: nn.Conv2d(2, 4, 3, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(2, 3, 3, 2, 1),
    "two layers": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.SiLU(), nn.Conv2d(3, 2, 3, padding=1)),
    "batch norm": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)),
    "group norm": lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)),
}.items():
    fn(f"gradient {_name}", lambda x, m: score(x, lambda x: torch.tanh(m(x)).sum()), m=_layer)
    fn(f"gradient again {_name}", lambda x, m: score(x, lambda x: torch.tanh(m(x)).sum(), True), m=_layer)
fn("gradient layer norm", lambda x, m: score(x, lambda x: (m(x) ** 2).sum()), TOKENS, m=lambda: nn.LayerNorm(4))
fn("gradient linear", lambda x, m: score(x, lambda x: (m(x) ** 2).sum()), TOKENS, m=lambda: nn.Linear(4, 3))
fn("gradient of a line", lambda x, m: score(x, lambda x: (m(x) ** 2).sum()), LINE, m=lambda: nn.Conv1d(2, 3, 3))
fn("gradient constant", lambda x, m: score(x, lambda x: m(x).sum()) + x, m=conv())


def by_weight(x, m):
    return torch.autograd.grad((m(x.requires_grad_()) ** 2).sum(), m.weight)[0]


def by_intermediate(x, m, last):
    with torch.enable_grad():
        y = m(x)
        y = y if y.requires_grad else y.requires_grad_(True)
        return torch.autograd.grad(torch.tanh(last(y)).sum(), y)[0]


def by_leaf(x, m):
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_(True)
        torch.tanh(m(leaf)).sum().backward()
        return leaf.grad * 2


def along_tangent(x, m):
    with forward_mode.dual_level():
        return forward_mode.unpack_dual(torch.tanh(m(forward_mode.make_dual(x, x.flip(2))))).tangent


def written_tangent(x, m):
    with forward_mode.dual_level():
        y = torch.zeros_like(m(x))
        y[:, :, 1:] = m(forward_mode.make_dual(x, x.flip(2)))[:, :, 1:]
        return forward_mode.unpack_dual(y).tangent


fn("tangent written", written_tangent, m=conv())
fn("gradient by weight", by_weight, m=conv())
fn("gradient by weight strided", by_weight, m=conv(2, 1))
fn("gradient by intermediate", by_intermediate, m=conv(), last=lambda: nn.Conv2d(3, 1, 3))
fn("gradient of a leaf", by_leaf, m=conv())
fn("tangent", along_tangent, m=conv())
fn("functional vjp", lambda x, m: torch.autograd.functional.vjp(lambda y: torch.tanh(m(y)).sum(), x)[1], m=conv())
fn("functional jvp", lambda x, m: torch.autograd.functional.jvp(
    lambda y: torch.tanh(m(y)), x, torch.ones_like(x))[1], m=conv())  # fmt: skip
fn("func grad", lambda x, m: torch.func.grad(lambda y: torch.tanh(m(y)).sum())(x) * 2, m=conv())
