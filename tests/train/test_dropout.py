"""SparseDropout drops what nn.Dropout would: as much, anywhere as likely, and the gradient where the value went."""

import math

import pytest
import torch
from torch import nn

from rfcalc.train.dropout import SparseDropout, quicken


def dropped(p, x, seed=0):
    torch.manual_seed(seed)
    return SparseDropout(p)(x)


@pytest.mark.parametrize("p", [0.001, 0.03, 0.1, 0.2, 0.5])
def test_the_share_and_the_scale(p):
    found = dropped(p, torch.ones(400, 1000))
    share = (found == 0).double().mean().item()
    assert share == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / 400_000))
    assert found.max().item() == pytest.approx(1 / (1 - p))
    assert set(found.unique().tolist()) <= {0.0, found.max().item()}


@pytest.mark.parametrize("p", [0.03, 0.2])
def test_every_place_and_every_neighbour_is_as_likely(p):
    zeros = torch.stack([dropped(p, torch.ones(50), seed) == 0 for seed in range(4000)]).double()
    sd = math.sqrt(p * (1 - p) / 4000)
    assert (zeros.mean(0) - p).abs().max() < 5 * sd
    both = (zeros[:, :-1] * zeros[:, 1:]).mean()
    assert both.item() == pytest.approx(p * p, abs=5 * p / math.sqrt(4000 * 49))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("other", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_passes_where_the_value_did(layout, other):
    x = torch.ones(4, 3, 8, 8).contiguous(memory_format=layout).requires_grad_()
    found = dropped(0.2, x)
    found.backward(torch.ones(4, 3, 8, 8).contiguous(memory_format=other))
    assert torch.equal(x.grad, found.detach())
    assert (found == 0).any()


def test_a_part_of_a_tensor_and_a_broadcast_one():
    base = torch.ones(6, 8)
    for x in (base[:, ::2], base[:1].expand(5, 8), base.t()):
        found = dropped(0.2, x)
        assert found.shape == x.shape
        assert set(found.unique().tolist()) <= {0.0, 1.25}
    assert torch.equal(base, torch.ones(6, 8))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_elements(count):
    assert dropped(0.1, torch.ones(count)).shape == (count,)


@pytest.mark.parametrize("p", [1e-7, 1e-12, 1e-19, 5e-324])
def test_a_probability_that_drops_next_to_nothing(p):
    assert (dropped(p, torch.ones(1000)) == 0).sum() == 0


def test_evaluation_and_p_0_change_nothing():
    x = torch.ones(100)
    assert SparseDropout(0.2).eval()(x) is x
    assert SparseDropout(0.0)(x) is x
    assert torch.equal(SparseDropout(1.0)(x), torch.zeros(100))


def test_the_same_seed_drops_the_same():
    x = torch.ones(1000)
    assert torch.equal(dropped(0.1, x, 3), dropped(0.1, x, 3))
    assert not torch.equal(dropped(0.1, x, 3), dropped(0.1, x, 4))


def test_only_plain_dropout_is_quickened():
    class Own(nn.Dropout):
        pass

    model = nn.Sequential(nn.Dropout(0.1), nn.Dropout2d(0.1), Own(0.1), nn.Dropout(0.1, inplace=True))
    quicken(model)
    assert [type(layer) for layer in model] == [SparseDropout, nn.Dropout2d, Own, nn.Dropout]
    assert model[0].p == 0.1
