"""Cases of products and attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from programs import ATTENTIONS, Apply, attention, class_token
from torch import nn

from cases.registry import TOKENS, case, fn, weights

fn("matmul", lambda x: x @ x.transpose(2, 3))
fn("matmul vector", lambda x: (x[0] @ x[0, 0]) @ x[0, :, 0], TOKENS)
fn("mm", lambda x: torch.mm(x[0], x[0].t()), TOKENS)
fn("bmm", lambda x: torch.bmm(x, x.transpose(1, 2)), TOKENS)
fn("mv", lambda x: torch.mv(x[0], x[0, 1]), TOKENS)
fn("dot", lambda x: torch.dot(x[0, 0], x[0, 1]) + torch.vdot(x[0, 2], x[0, 1]), TOKENS)
fn("inner", lambda x: torch.inner(x[0], x[0, 1]), TOKENS)
fn("outer", lambda x: torch.outer(x[0, 0], x[0, 1]) + torch.ger(x[0, 2], x[0, 1]), TOKENS)
fn("cross", lambda x: torch.linalg.cross(x, x.flip(1)) + torch.cross(x, x.roll(1, 1), dim=2), (5, 3))
fn("kron", lambda x: torch.kron(x[0, :2], x[0, 2:4]), TOKENS)
fn("addmm", lambda x: torch.addmm(x[0, :, :1], x[0], x[0].t()), TOKENS)
fn(
    "baddbmm",
    lambda x: torch.baddbmm(x[:, :, :1], x, x.transpose(1, 2)) + torch.addbmm(x[0, :1, :1], x, x.transpose(1, 2)),
    TOKENS,
)
fn("addmv", lambda x: torch.addmv(x[0, :, 0], x[0], x[0, 1]) + torch.addr(x[0], x[0, :, 1], x[0, 2]).sum(1), TOKENS)
fn("einsum", lambda x: torch.einsum("nchw,nchv->ncwv", x, x))
fn(
    "einsum heads",
    lambda x: torch.einsum(
        "bhqk,bkhd->bqhd",
        torch.einsum("bqhd,bkhd->bhqk", *2 * [x.unflatten(2, (2, 2))]).softmax(-1),
        x.unflatten(2, (2, 2)),
    ),
    TOKENS,
)
fn("tensordot", lambda x: torch.tensordot(x, x, ([1, 3], [1, 3])))
case("linear", lambda: nn.Linear(9, 3))
fn("linear dynamic", lambda x: F.linear(x, x[0, :2]), TOKENS)
fn("attention heads share keys", lambda x: F.scaled_dot_product_attention(x[0], x[:, :1], x[:, :1], is_causal=True))
fn(
    "attention groups",
    lambda x: F.scaled_dot_product_attention(x, x[:, :2], x[:, 1:3], enable_gqa=True),
    (4, 3, 5),
)
fn("attention bias of the input", lambda x: F.scaled_dot_product_attention(x, x, x, x[:, :, :, :7]))
fn("linear of the input", lambda x: F.linear(x, x[0, :3] * 2, x[0, :3, 0]), TOKENS)
fn("linear of the input alone", lambda x: F.linear(torch.ones(1, 3, 4), x[0, :3] * 2, x[0, 1:4, 0]), TOKENS)
fn("bilinear of the input", lambda x: F.bilinear(x, x, x[0, :, :, None].expand(5, 4, 4), x[0, :, 0]), TOKENS)
fn("bilinear", lambda x, m: m(x, x.flip(1)), TOKENS, m=lambda: nn.Bilinear(4, 4, 3))
fn("fixed product", lambda x, w: w @ x, w=lambda: torch.ones(3, 7))
fn("hadamard", lambda x, w: x * w + w, w=weights(7, 1))
case("mixer", lambda: nn.Sequential(nn.Linear(9, 9), Apply(lambda x: x.transpose(2, 3)), nn.Linear(7, 4)))

# attention
for _name in ATTENTIONS:
    case(f"attention {_name}", lambda k=_name: attention((2, 7), k, False, 0), (2, 7))
    case(f"attention {_name} windows", lambda k=_name: attention((2, 4, 5), k, True, 3), (2, 4, 5))
fn("attention cross", lambda x, y: F.scaled_dot_product_attention(x, y, y), [(5, 4), (3, 4)])
fn(
    "attention memory",
    lambda x, memory: F.scaled_dot_product_attention(x, memory, memory),
    TOKENS,
    memory=weights(1, 3, 4),
)
fn("attention queries", lambda x, query: F.scaled_dot_product_attention(query, x, x), TOKENS, query=weights(1, 3, 4))
fn(
    "attention grouped",
    lambda x: F.scaled_dot_product_attention(
        *(x.unflatten(2, (h, 2)).transpose(1, 2)[:, :g] for h, g in ((2, 2), (2, 1), (2, 1))), enable_gqa=True
    ),
    TOKENS,
)
fn("attention bias", lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=x @ x.transpose(1, 2)), TOKENS)
fn("mha weights", lambda x, m: m(x, x, x)[1], TOKENS, m=lambda: nn.MultiheadAttention(4, 2, batch_first=True))
fn(
    "mha padding",
    lambda x, m: m(x, x, x, key_padding_mask=torch.tensor([[False] * 4 + [True]]))[0],
    TOKENS,
    m=lambda: nn.MultiheadAttention(4, 2, batch_first=True),
)
fn(
    "mha bias_kv",
    lambda x, m: m(x, x, x)[0],
    TOKENS,
    m=lambda: nn.MultiheadAttention(4, 2, batch_first=True, add_bias_kv=True, add_zero_attn=True),
)
fn(
    "mha memory",
    lambda x, y, m: m(x, y, y)[0],
    [(5, 4), (3, 6)],
    m=lambda: nn.MultiheadAttention(4, 2, kdim=6, vdim=6, batch_first=True),
)
case("encoder layer", lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), TOKENS)
case(
    "encoder",
    lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, norm_first=True), 2),
    TOKENS,
)
fn(
    "decoder layer",
    lambda x, m: m(x, x.flip(1)),
    TOKENS,
    m=lambda: nn.TransformerDecoderLayer(4, 2, 8, batch_first=True),
)
fn(
    "encoder causal",
    lambda x, m: m(x, torch.full((5, 5), -math.inf).triu(1), is_causal=True),
    TOKENS,
    m=lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
)
case("class token", lambda: class_token((2, 3, 4)), (2, 3, 4))
fn("embedding positions", lambda x, m: x + m(torch.arange(x.shape[1])), TOKENS, m=lambda: nn.Embedding(5, 4))
case("embedding", lambda: nn.Sequential(nn.Embedding(7, 3), nn.Conv1d(6, 2, 1)), (6,))
