"""SparseDropout drops what nn.Dropout would: as much, anywhere as likely, and the gradient where the value went.

FusedSequential computes what its modules one by one do, forward and backward, and where a dropout draws, on the same
elements.
"""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from rfcalc.train.fused import FusedSequential, SparseDropout, _stretch, fuse


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
    fuse(model)
    assert [type(layer) for layer in model] == [SparseDropout, nn.Dropout2d, Own, nn.Dropout]
    assert model[0].p == 0.1


# --- around a norm ---

PARTS = {
    "conv": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "norm": lambda: nn.BatchNorm2d(4),
    "dropout": lambda: nn.Dropout(0.2),
    "much dropout": lambda: nn.Dropout(0.5),
    "pool": lambda: nn.MaxPool2d(2),
}
SEQUENCES = [
    ["conv", *(["relu"] * before), "norm", *(["relu"] * after), *(["dropout"] * dropout), *last]
    for before, after, dropout in itertools.product((0, 1), repeat=3)
    for last in ([], ["conv"], ["pool"], ["relu in place"])
    if dropout or not after or last != ["relu in place"]  # torch refuses to overwrite what a ReLU's gradient needs
] + [
    ["relu", "norm"],
    ["norm", "dropout"],
    ["relu in place", "norm", "relu in place"],
    ["conv", "relu in place", "norm", "relu in place", "dropout", "pool"],
    ["conv", "relu", "norm", "much dropout"],
    ["norm", "norm", "relu", "norm", "dropout", "dropout"],
    ["conv", "relu", "norm", "dropout", "conv", "norm", "relu", "dropout", "pool", "norm", "relu"],
]


def one_by_one(sequence, x):
    for module in sequence:
        x = module(x)
    return x


def results(sequence, forward, x, weigh):
    """Output, gradients of input and weights, and buffers after a step in training."""
    torch.manual_seed(3)
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = forward(x * 1)  # as a leaf would refuse a ReLU in place
    (y * weigh[:, :, : y.shape[2], : y.shape[3]]).sum().backward()
    return [y, x.grad, *(weight.grad for weight in sequence.parameters()), *sequence.buffers()]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("names", SEQUENCES, ids=", ".join)
def test_a_fused_sequence_computes_what_its_modules_do(names, layout):
    torch.manual_seed(1)
    plain = nn.Sequential(*(PARTS[name]() for name in names)).double().to(memory_format=layout)
    for norm in (module for module in plain if isinstance(module, nn.BatchNorm2d)):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    fuse(plain)
    fused = copy.deepcopy(plain)
    assert type(fused) is FusedSequential
    x, weigh = torch.randn(5, 4, 8, 8).double().contiguous(memory_format=layout), torch.randn(5, 4, 8, 8).double()
    for _ in range(2):
        found = results(fused, fused, x, weigh)
        wanted = results(plain, lambda x: one_by_one(plain, x), x, weigh)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other)
    plain.load_state_dict(fused.state_dict())
    assert torch.equal(fused.eval()(x), one_by_one(plain.eval(), x))


def stretches(*modules):
    fuse(sequence := nn.Sequential(*modules))
    return [found for at in range(len(modules)) if (found := _stretch(list(sequence), at))]


def test_what_goes_together():
    conv, relu, norm, dropout = nn.Conv2d(4, 4, 1), nn.ReLU(), nn.BatchNorm2d(4), nn.Dropout(0.1)
    (found,) = stretches(conv, relu, norm, relu, dropout, conv)[:1]
    assert (found.before, found.after, found.p, found.length) == (True, True, 0.1, 4)
    # Behind the sequence somebody may add in place to what the ReLU's gradient needs.
    assert stretches(conv, norm, relu, dropout)[0].length == 2
    assert stretches(conv, norm, dropout)[0].length == 2
    # The input of the sequence is somebody else's.
    assert stretches(relu, norm) == []
    assert stretches(relu, norm, conv) == []


class _Own(nn.ReLU):
    pass


def _hooked():
    norm = nn.BatchNorm2d(4)
    norm.register_forward_hook(lambda *_: None)
    return norm


def _without(part):
    setattr(norm := nn.BatchNorm2d(4), part, None)
    return norm


def _with_own_forward():
    norm = nn.BatchNorm2d(4)
    norm.forward = lambda x: x
    return norm


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.BatchNorm2d(4, momentum=None),
        nn.BatchNorm2d(4).eval(),
        nn.InstanceNorm2d(4, affine=True),
        _hooked(),
        _without("bias"),
        _without("num_batches_tracked"),
        _with_own_forward(),
    ],
    ids=repr,
)
def test_other_norms_are_left_alone(norm):
    assert stretches(nn.Conv2d(4, 4, 1), nn.ReLU(), norm, nn.ReLU()) == []


def test_own_classes_are_left_alone():
    class Own(nn.Sequential):
        pass

    assert stretches(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), _Own()) == []
    fuse(own := Own(nn.Conv2d(4, 4, 1)))
    assert type(own) is Own


def test_a_gradient_that_others_hold_stays_as_it_is():
    fuse(sequence := nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.2)))
    x = torch.randn(5, 4, 8, 8, requires_grad=True)
    given = torch.randn(5, 4, 8, 8)
    before, version = given.clone(), given._version
    sequence(x).backward(given)
    assert torch.equal(given, before)
    assert given._version == version


def test_a_residual_that_adds_in_place():
    fuse(sequence := nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2)))
    y = sequence(x := torch.randn(5, 4, 8, 8))
    y += x
    y.sum().backward()
    assert all(weight.grad is not None for weight in sequence.parameters())


def test_a_norm_says_itself_what_it_cannot_take():
    fuse(sequence := nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        sequence(torch.ones(1, 4, 1, 1))
    with pytest.raises(ValueError, match="expected 4D input"):
        sequence(torch.ones(2, 4))
    for channels in (2, 8):
        with pytest.raises(RuntimeError, match=f"running_mean should contain {channels} elements not 4"):
            sequence(torch.ones(2, channels, 5, 5))


def test_the_input_by_its_name():
    fuse(sequence := nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()))
    assert sequence(input=torch.ones(2, 4, 3, 3)).shape == (2, 4, 3, 3)


def test_second_derivatives_are_refused():
    fuse(sequence := nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad((sequence(x) ** 2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (gradient**2).sum().backward()


def test_mixed_precision():
    fuse(sequence := nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Dropout(0.2)))
    x = torch.randn(5, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(1)
        found = sequence(x)
        torch.manual_seed(1)
        wanted = one_by_one(sequence, x)
    torch.testing.assert_close(found, wanted, atol=0.03, rtol=0.03)
    found.float().sum().backward()
    assert sequence[2].weight.grad.dtype == torch.float32
