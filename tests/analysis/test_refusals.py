"""What torch refuses on a CPU and lets pass without storage, and what it takes and must not be refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rfcalc

MAP = (4, 6, 6)


class Net(nn.Module):
    """A convolution, then one call: `y` is a (1, 4, 6, 6) map."""

    def __init__(self, call):
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.register_buffer("table", torch.ones(6, 3))
        self.call = call

    def forward(self, x):
        return self.call(self.first(x), self)


def at(*indices):
    return torch.tensor(indices)


WHOLE = {
    "softmax": lambda y, m: F.softmax(y.long(), 1),
    "gelu": lambda y, m: F.gelu(y.int()),
    "a pool of flags": lambda y, m: F.avg_pool2d(y > 0, 2),
    "a pool of bytes, large": lambda y, m: F.adaptive_avg_pool2d(y.byte().repeat(1, 1, 40, 40), 2),
    "bilinear": lambda y, m: F.interpolate(y.long(), scale_factor=2, mode="bilinear"),
    "reflection": lambda y, m: nn.ReflectionPad2d(1)(y > 0),
    "flags minus flags": lambda y, m: (y > 0) - (y > 1),
    "ldexp_": lambda y, m: y.long().ldexp_(y.long()),
    "logit_": lambda y, m: y.long().logit_(),
    "tanh_": lambda y, m: y.long().tanh_(),
    "div_": lambda y, m: y.long().div_(2),
    "relu of complex numbers": lambda y, m: torch.relu(torch.complex(y, y)),
    "complex of two dtypes": lambda y, m: torch.complex(y, y.double()),
    "a power below 0": lambda y, m: y.long() ** -1,
}
SHAPES = {
    "bucketize": lambda y, m: torch.bucketize(y, y[0, 0]),
    "index_add": lambda y, m: y[0, 0].index_add(0, at(0, 1), y[0, 0, 0, :2]),
    "more samples than there are": lambda y, m: torch.multinomial(y[0, 0].exp(), 9),
    "no samples": lambda y, m: torch.multinomial(y[0, 0].exp(), 0),
    "uniform_": lambda y, m: y + y.clone().uniform_(3, -1),
    "as_strided": lambda y, m: y.as_strided((9, 99), (9, 9)),
    "as_strided_": lambda y, m: y.as_strided_((9, 99), (9, 9)),
    "as_strided_scatter": lambda y, m: y.as_strided_scatter(y[0, 0, :2, :2], (2, 2), (99, 999)),
    "group norm without channels": lambda y, m: F.group_norm(y[:, :0], 1),
    "group norm without positions": lambda y, m: F.group_norm(y[..., :0], 1),
    "a pool without positions": lambda y, m: F.max_pool2d(y[..., :0], 1),
}
OUTSIDE = {
    "a list": lambda y, m: y[:, [7]],
    "a tensor": lambda y, m: y[:, :, at(0, 6)],
    "from the end": lambda y, m: y[:, at(-5)],
    "written": lambda y, m: y.index_put_((at(0), at(4)), y[0, 0]),
    "index_select": lambda y, m: y.index_select(1, at(4)),
    "index_select from the end": lambda y, m: y.index_select(1, at(-1)),
    "gather": lambda y, m: y.gather(1, torch.full((1, 1, 6, 6), 4)),
    "gather from the end": lambda y, m: y.gather(1, torch.full((1, 1, 6, 6), -1)),
    "scatter": lambda y, m: y.scatter(1, torch.full((1, 1, 6, 6), 4), 1.0),
    "scatter_add": lambda y, m: y.scatter_add(1, torch.full((1, 1, 6, 6), 4), y),
    "index_add": lambda y, m: y.index_add(1, at(4), y[:, :1]),
    "index_copy": lambda y, m: y.index_copy(1, at(4), y[:, :1]),
    "index_fill": lambda y, m: y.index_fill(1, at(4), 1.0),
    "a table of no dims": lambda y, m: F.embedding(at(0), y.sum()),
    "take": lambda y, m: y.take(at(144)),
    "put": lambda y, m: y.put(at(144), y.flatten()[:1]),
    "embedding": lambda y, m: F.embedding(at(6), y[0, 0]),
    "embedding_bag": lambda y, m: F.embedding_bag(at(6), y[0, 0], at(0)),
}
REFUSED = {f"{kind}: {name}": call for kind, calls in (
    ("whole", WHOLE), ("shape", SHAPES), ("outside", OUTSIDE),
) for name, call in calls.items()}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_what_a_cpu_refuses_is_refused_at_both_levels(name):
    net = Net(REFUSED[name]).eval()
    with pytest.raises((RuntimeError, IndexError)), torch.inference_mode():
        net(torch.ones(1, *MAP))
    for level in (1, 2):
        with pytest.raises(rfcalc.ForwardError, match="forward failed"):
            rfcalc.analyze(net, MAP, level=level)


def written(call, like):
    """What an op of two results writes into buffers."""
    out = (like.new_empty(0), like.new_empty(0, dtype=torch.int64))
    call(out)
    return out[0] + 1


TAKEN = {
    "arithmetic": lambda y, m: (y.long() + 1) // 2 / 3,
    "a quotient of whole numbers": lambda y, m: torch.div(y.long(), y.long() + 9),
    "powers": lambda y, m: y.long() ** 2,
    "sums of flags": lambda y, m: (y > 0).sum(1) + (y > 0).cumsum(1)[:, 0],
    "a pool of bytes": lambda y, m: F.max_pool2d(y.byte(), 2),
    "nearest": lambda y, m: F.interpolate(y.byte(), scale_factor=2),
    "products": lambda y, m: y.long() @ y.long(),
    "flags and numbers": lambda y, m: torch.where(y > 0, y, y.double()) * (y > 1),
    "a table": lambda y, m: F.embedding(y[0, 0].clamp(0, 5).long(), m.table),
    "gather": lambda y, m: y.gather(1, y.argmax(1, keepdim=True)),
    "scatter": lambda y, m: y.scatter(1, y.argmax(1, keepdim=True), 1.0),
    "index from the end": lambda y, m: y[:, [-4, 3]],
    "index_fill from the end": lambda y, m: y.index_fill(1, at(-1), 1.0),
    "no index": lambda y, m: y[:, torch.zeros(0, dtype=torch.int64)],
    "bucketize": lambda y, m: torch.bucketize(y, torch.arange(3.0)),
    "multinomial": lambda y, m: torch.multinomial(y[0, 0].exp(), 6) + y[0, 0],
    "split at a tensor": lambda y, m: y.tensor_split(at(1, 3), 1)[1],
    "split at a tensor that is read off the input": lambda y, m: y.tensor_split(y.flatten()[:1].long() * 0 + 1, 1)[1],
    "linear, out": lambda y, m: torch._C._nn.linear(y, m.table.T, out=y.new_empty(0)),
    "out of several": lambda y, m: written(lambda out: torch.kthvalue(m.table + y[0, 0, :, :3], 2, out=out), y),
    "half": lambda y, m: F.softmax(y.half(), 1) + F.layer_norm(y.bfloat16(), (6,)),
    "nothing, padded": lambda y, m: F.pad(y, (-3, -3)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TAKEN)
def test_what_a_cpu_takes_is_taken(name):
    net = Net(TAKEN[name]).eval()
    with torch.inference_mode():
        out = net(torch.ones(1, *MAP))
    one, two = (rfcalc.analyze(net, MAP, level=level).to_dict() for level in (1, 2))
    assert one == two
    assert tuple(one["output_shapes"][0]) == tuple(out.shape)


class Tokens(nn.Module):
    """Reads its first input as indices; what the second holds is not known from that."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 4)

    def forward(self, tokens, weights):
        return self.table(tokens) * F.softmax(weights, 1)[..., None]


def test_whole_numbers_that_the_analysis_chose_are_refused_by_none():
    one, two = (rfcalc.analyze(Tokens(), [(5,), (5,)], level=level).to_dict() for level in (1, 2))
    assert one == two
    assert any("reads indices" in note for note in one["notes"])
    with pytest.raises(rfcalc.ForwardError, match="not implemented for 'Long'"):
        rfcalc.analyze(Tokens(), [torch.ones(1, 5, dtype=torch.int64)] * 2)


@pytest.mark.parametrize("level", [1, 2])
def test_asking_draws_no_random_numbers(level):
    net = Net(lambda y, m: torch.multinomial(y[0, 0].exp(), 2)).eval()
    torch.manual_seed(1)
    rfcalc.analyze(net, MAP, level=level)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
