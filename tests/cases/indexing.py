"""Cases of writes into a tensor."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from programs import WRITES, write
from torch import Tensor, nn

from cases.registry import LINE, MAP, TOKENS, case, fn, weights, written

for _name in WRITES:
    case(f"write {_name}", lambda k=_name: write((7, 7, 9), 2, k), (7, 7, 9))
    case(f"write {_name} last", lambda k=_name: write((2, 4, 5), 3, k), (2, 4, 5))
fn("slice_scatter", lambda x: x.slice_scatter(x[:, :, :2], 2, 3, 5) + x.select_scatter(x[:, :, 0], 2, 1))
fn("diagonal_scatter", lambda x: x.diagonal_scatter(x[:, :, :, 0], 0, 2, 3))
fn("index_put", lambda x: x.index_put((torch.tensor([0]), torch.tensor([1])), x[0, 0]))
fn("index_fill", lambda x: x.index_fill(2, torch.tensor([1]), 0.5) + x.index_copy(2, torch.tensor([1]), x[:, :, :1]))
fn(
    "index_add",
    lambda x: (
        x.index_add(2, torch.tensor([1]), x[:, :, :1]) + x.index_reduce(3, torch.tensor([0]), x[..., 1:2], "mean")
    ),
)
fn(
    "scatter",
    lambda x: (
        x.scatter(3, torch.zeros(1, 2, 7, 1, dtype=torch.long), x[..., 2:3])
        + x.scatter_add(3, torch.ones(1, 2, 7, 1, dtype=torch.long), x[..., :1])
    ),
)
fn("scatter_reduce", lambda x: x.scatter_reduce(3, torch.zeros(1, 2, 7, 2, dtype=torch.long), x[..., 1:3], "sum"))
fn("masked_scatter", lambda x: x.masked_scatter(torch.arange(9) < 2, x[..., 3:5]))
fn("put", lambda x: x.put(torch.tensor([1]), x[0, 0, 0, 5:6]))
fn("mask write", lambda x: written(x, lambda y: y.__setitem__((slice(None), slice(None), torch.arange(7) > 3), 0.5)))
fn("mask write data", lambda x: written(x, lambda y: y.__setitem__(y.flip(2) > 1, 0.5)))
fn("fill_", lambda x: written(x, lambda y: (y[:, :, :2].fill_(1.0), y[:, :, -1].zero_(), y[:, 0].copy_(x[:, 1]))))
fn(
    "add_ views",
    lambda x: written(
        x, lambda y: (y.permute(0, 1, 3, 2)[..., 0].add_(x[:, :, 1]), y.view(-1)[5:7].add_(x[0, 0, 0, :2]))
    ),
)
fn("split write", lambda x: written(x, lambda y: [p.add_(x[:, :, i : i + 1]) for i, p in enumerate(y.split(1, 2))]))
fn("unbind write", lambda x: written(x, lambda y: y.unbind(2)[1].add_(x[:, :, 4])))
fn("squeeze write", lambda x: written(x, lambda y: y.unsqueeze(0)[0, :, :, 1].mul_(x[:, :, 3])))
fn("expand write", lambda x: written(x, lambda y: y.unflatten(3, (3, 3))[..., 1].add_(x[..., ::3])))
fn("masked_fill_", lambda x: written(x, lambda y: y[:, :, 1:].masked_fill_(torch.arange(9) > 5, 0.5)))


# several sources for one place: the last stays, unless they are joined
_TWICE, _ROWS, _FIRST = torch.tensor([4, 0, 4]), torch.tensor([[0], [1]]), torch.tensor([0])
_PLACES = torch.tensor([4, 0, 4, 1, 1, 2]).repeat(7).view(1, 1, 7, 6).expand(1, 2, 7, 6)[..., :5]
_EVERY = torch.arange(8, -1, -1).expand(1, 2, 7, 9)
for _name, _change in (
    ("columns", lambda y, x: y.__setitem__((..., _TWICE), x[..., 5:8])),
    ("columns repeated", lambda y, x: y.__setitem__((..., _TWICE), x[..., 5:6])),
    ("columns by number", lambda y, x: y.__setitem__((..., _TWICE), 0.5)),
    ("channels and columns", lambda y, x: y.__setitem__((slice(None), _ROWS, 2, _TWICE), x[:, :, 5, 5:8])),
    (
        "apart",
        lambda y, x: y.__setitem__((_FIRST, slice(None), slice(1, 3), _TWICE), x[0, :, 3:5, 5:8].permute(2, 0, 1)),
    ),
    ("mask", lambda y, x: y.__setitem__((..., torch.arange(9) > 5), x[..., 1:4])),
    ("mask of elements", lambda y, x: y.__setitem__(torch.arange(126).view(1, 2, 7, 9) > 100, x.flatten()[:25])),
    ("mask by mean", lambda y, x: y.__setitem__(torch.arange(126).view(1, 2, 7, 9) > 100, x[..., :3].mean())),
    ("index_put_", lambda y, x: y.index_put_((_FIRST, _ROWS, _FIRST, _TWICE), x[0, :, 5, 5:8])),
    ("index_put_ add", lambda y, x: y.index_put_((_FIRST, _ROWS, _FIRST, _TWICE), x[0, :, 5, 5:8], True)),
    ("index_copy_", lambda y, x: y.index_copy_(3, _TWICE, x[..., 5:8])),
    ("scatter_", lambda y, x: y.scatter_(3, _PLACES, x)),
    ("scatter_ all", lambda y, x: y.scatter_(3, _EVERY, x)),
    ("scatter_ number", lambda y, x: y.scatter_(2, _PLACES, 0.5)),
    ("put_", lambda y, x: y.put_(_TWICE, x[0, 1, 0, 1:4])),
):
    fn(f"write {_name}", lambda x, change=_change: written(x, lambda y: change(y, x)))
for _name, _join in (
    ("index_put", lambda x: x.index_put((_FIRST, _ROWS, _FIRST, _TWICE), x[0, :, :3, 5], accumulate=True)),
    ("index_put mask", lambda x: x.index_put((torch.arange(126).view(1, 2, 7, 9) > 123,), x[0, 0, 0, :2], True)),
    ("_unsafe_index_put", lambda x: torch.ops.aten._unsafe_index_put(x, [None, None, None, _TWICE], x[..., 5:8])),
    ("put", lambda x: x.put(_TWICE, x[0, 1, 0, 1:4], accumulate=True)),
    ("scatter add", lambda x: x.scatter(3, _PLACES, x[..., 4:], reduce="add")),
    ("scatter multiply", lambda x: x.scatter(3, _PLACES, 2.0, reduce="multiply")),
    ("scatter_add", lambda x: x.scatter_add(3, _PLACES, x[..., 4:])),
    *(
        (f"{n} {how} {kept}", lambda x, n=n, how=how, kept=kept: _reduced_into(x, n, how, kept))
        for n in ("scatter_reduce", "index_reduce")
        for how in ("amax", "mean")
        for kept in (True, False)
    ),
):
    fn(f"join {_name}", _join)


def _reduced_into(x: Tensor, name: str, how: str, kept: bool) -> Tensor:
    if name == "scatter_reduce":
        return x.scatter_reduce(3, _PLACES, x[..., 4:], how, include_self=kept)
    return x.index_reduce(3, _TWICE, x[..., 5:8], how, include_self=kept)


# packed sequences
def _packed(x: Tensor, layer: nn.Module) -> Tensor:
    steps = nn.utils.rnn.pack_padded_sequence(x.mT, torch.tensor([7]), batch_first=True)
    return nn.utils.rnn.pad_packed_sequence(layer(steps)[0], batch_first=True)[0]


for _kind in (nn.LSTM, nn.GRU, nn.RNN):
    for _both in (False, True):
        fn(
            f"packed {_kind.__name__} {_both}",
            _packed,
            LINE,
            layer=lambda k=_kind, b=_both: k(2, 3, batch_first=True, bidirectional=b),
        )


# losses
_CLASSES = torch.tensor([[0, 1, -100, 1, 0, 0, 1, 1, 0]])
for _how in ("none", "mean", "sum"):
    for _name in (
        "mse_loss l1_loss smooth_l1_loss huber_loss soft_margin_loss kl_div poisson_nll_loss "
        "binary_cross_entropy binary_cross_entropy_with_logits"
    ).split():
        fn(
            f"{_name} {_how}",
            lambda x, n=_name, how=_how: getattr(F, n)(x[..., 1:], x[..., :-1].detach() * 1, reduction=how),
            LINE,
        )
    fn(f"mse_loss constant {_how}", lambda x, how=_how: F.mse_loss(torch.ones(2, 9), x[0], reduction=how), LINE)
    fn(f"weighted {_how}", lambda x, how=_how: F.binary_cross_entropy(x, x.flip(2), x.roll(1, 2), reduction=how), LINE)
    fn(f"nll_loss {_how}", lambda x, how=_how: F.nll_loss(x, _CLASSES, reduction=how), LINE)
    fn(f"nll_loss over tokens {_how}", lambda x, how=_how: F.nll_loss(x[0], torch.tensor([5, 8]), reduction=how), LINE)
    fn(f"cross_entropy {_how}", lambda x, how=_how: F.cross_entropy(x, _CLASSES, reduction=how), LINE)
    fn(
        f"cross_entropy smooth {_how}",
        lambda x, how=_how: F.cross_entropy(x[..., None], _CLASSES[..., None], reduction=how, label_smoothing=0.1),
        LINE,
    )
    fn(f"cross_entropy soft {_how}", lambda x, how=_how: F.cross_entropy(x, x.flip(2).softmax(1), reduction=how), LINE)
    fn(
        f"cosine_embedding_loss {_how}",
        lambda x, how=_how: F.cosine_embedding_loss(x[0].mT, x[0].mT.flip(0), torch.ones(9), reduction=how),
        LINE,
    )
    fn(
        f"triplet_margin_loss {_how}",
        lambda x, how=_how: F.triplet_margin_loss(x[0].mT, x[0].mT.flip(0), x[0].mT.roll(1, 0), 50.0, reduction=how),
        LINE,
    )
    fn(
        f"multi_margin_loss {_how}",
        lambda x, how=_how: F.multi_margin_loss(x[0].mT, torch.zeros(9, dtype=torch.long), reduction=how),
        LINE,
    )
    fn(
        f"multilabel_margin_loss {_how}",
        lambda x, how=_how: F.multilabel_margin_loss(x[0].mT, torch.zeros(9, 2, dtype=torch.long), reduction=how),
        LINE,
    )
    fn(
        f"ctc_loss {_how}",
        lambda x, how=_how: F.ctc_loss(
            x.permute(2, 0, 1).log_softmax(2), torch.ones(1, 3, dtype=torch.long), (9,), (3,), reduction=how
        ),
        LINE,
    )
fn("_is_all_true", lambda x: torch._is_all_true(x > 1) * x[..., 1:], LINE)
fn("_is_any_true", lambda x: torch._is_any_true(x > 1) * x[..., 1:], LINE)


# only the shape or the type of the second tensor counts
_CENTRE = {"held": lambda: torch.rand(1, 2, 1, 1)}
for _name in ("type_as", "to"):
    fn(f"{_name} buffer", lambda x, held, n=_name: getattr(x[:, :, 1:], n)(held), **_CENTRE)
    fn(f"{_name} of a buffer", lambda x, held, n=_name: F.avg_pool2d(x - getattr(held, n)(x), 3), **_CENTRE)
    fn(
        f"{_name} of a count",
        lambda x, n=_name: torch.where(getattr(torch.arange(9), n)(x.flip(3)) > 3, x[:, :, 1:], x[:, :, :-1]),
    )
    fn(f"{_name} of another size", lambda x, n=_name: getattr(x[:, :, 1:], n)(x.mean(2)))
fn("view_as flipped", lambda x: F.avg_pool1d(x.mean(0).view_as(x.flip(3).flatten(2).view(2, 9, 7)), 2), MAP)
fn("reshape_as flipped", lambda x: x.permute(0, 1, 3, 2).reshape_as(x.flip(2)), MAP)
fn("expand_as flipped", lambda x: x.mean(2, keepdim=True).expand_as(x.flip(3)), MAP)
for _name, _make in (
    ("new_ones", lambda x: x.new_ones(5, 5)),
    ("ones_like", lambda x: torch.ones_like(x[0] @ x[0].transpose(0, 1))),
    ("new_full", lambda x: x.new_full((5, 5), 2.0)),
    ("full_like", lambda x: torch.full_like(x[0] @ x[0].transpose(0, 1), 1)),
):
    fn(
        f"causal by {_name}",
        lambda x, make=_make: (x @ x.mT).masked_fill(make(x).triu(1) > 0, -math.inf).softmax(-1) @ x,
        TOKENS,
    )


def small(x: Tensor) -> Tensor:
    """Whole numbers made of the input that are indices of anything."""
    return (x > 1).long()


fn("table by the input", lambda x, t: t[small(x)], LINE, t=weights(3, 2))
fn("index by the input", lambda x: x[..., small(x[0, 0, 0])])
fn("index by the input apart", lambda x: x[0, small(x[0, 0, :, 0]), :, small(x[0, 1, :, 1])])
fn("index by the input beside", lambda x: x[:, :, small(x[0, 0, 2:3]), small(x[0, 1, :, :1])])
fn("index_select of a table", lambda x, t: t.index_select(1, small(x[0, 0, 0])), t=weights(3, 2))
fn("gather of a table", lambda x, t: t.gather(1, small(x[0, 0])), t=weights(7, 2))
fn("take by the input", lambda x, t: t.take(small(x)) + x.take(small(x.flip(3))), t=weights(7, 2))
fn("bucketize by the input", lambda x: torch.bucketize(x[0, 0], x[0, 1, 2]).float())
fn("searchsorted rows", lambda x: torch.searchsorted(x[0, 0], x[0, 1].flip(1)).float())
fn(
    "embedding_bag offsets",
    lambda x, t: F.embedding_bag(small(x[0, 0]), t, torch.tensor([0, 2, 2, 5]), mode="sum"),
    LINE,
    t=weights(3, 2),
)
fn(
    "embedding_bag of the input",
    lambda x: F.embedding_bag(
        torch.tensor([1, 0, 2, 3]), x[0, 0], torch.tensor([0, 3]), mode="sum", per_sample_weights=x[0, 1, 0, :4]
    ),
)
