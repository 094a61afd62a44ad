"""Muon against torch's own, schedules against torch's own, and what a choice of either may not be."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau, StepLR

from rfcalc.designs.design import load_design
from rfcalc.errors import RecipeError
from rfcalc.train.optim import (
    COEFFICIENTS,
    OPTIMIZERS,
    SCHEDULES,
    Choice,
    Muon,
    build,
    build_schedule,
    orthogonalised,
    scale_free,
    shares,
    warm_up_then_linear,
)

SHAPES = [(8, 1, 3, 3), (16, 8, 3, 3), (16, 8, 3, 3), (40, 2, 1, 1), (10, 16, 3, 3), (33, 64, 3, 3), (33, 64, 3, 3)]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- Muon ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon exists from torch 2.9")
@pytest.mark.parametrize(
    "options",
    [{}, {"nesterov": False}, {"momentum": 0.6, "weight_decay": 0.3}, {"ns_steps": 3}],
    ids=str,
)
def test_muon_is_torchs_on_flattened_weights(options):
    ours = [nn.Parameter(noise(*shape, seed=seed)) for seed, shape in enumerate(SHAPES)]
    theirs = [nn.Parameter(weight.detach().flatten(1).clone()) for weight in ours]
    start = [weight.detach().flatten(1).clone() for weight in theirs]
    first, second = (
        Muon(ours, lr=0.05, **options),
        torch.optim.Muon(theirs, lr=0.05, **{"weight_decay": 0.0, **options}),
    )
    for step in range(4):
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            one.grad = noise(*one.shape, seed=100 * step + index)
            other.grad = one.grad.flatten(1)
        first.step()
        second.step()
    for one, other, before in zip(ours, theirs, start, strict=True):
        # torch's rounds are in bfloat16, of three digits; ours in float32.
        moved = (other - before).norm()
        assert (one.flatten(1) - other).norm() < 0.02 * moved
        assert moved > 0.1


@pytest.mark.parametrize("rounds", [1, 5])
def test_orthogonalised_is_the_polynomial_of_the_singular_values(rounds):
    a, b, c = COEFFICIENTS
    matrices = [noise(*shape, seed=seed).flatten(1) for seed, shape in enumerate(SHAPES)]
    for matrix, found in zip(matrices, orthogonalised(matrices, rounds), strict=True):
        u, s, v = torch.linalg.svd(matrix.double() / matrix.double().norm(), full_matrices=False)
        for _ in range(rounds):
            s = a * s + b * s**3 + c * s**5
        torch.testing.assert_close(found, (u * s @ v).float(), atol=1e-4, rtol=1e-4)


def test_a_matrix_of_zeros_stays_one():
    (found,) = orthogonalised([torch.zeros(3, 5)])
    assert torch.equal(found, torch.zeros(3, 5))


def test_muon_goes_on_from_its_state():
    def steps(optimizer, weight, gradients):
        for gradient in gradients:
            weight.grad = gradient
            optimizer.step()

    gradients = [noise(4, 3, 3, 3, seed=seed) for seed in range(4)]
    straight = nn.Parameter(noise(4, 3, 3, 3, seed=9))
    halved = nn.Parameter(straight.detach().clone())
    steps(Muon([straight]), straight, gradients)
    first = Muon([halved])
    steps(first, halved, gradients[:2])
    second = Muon([halved])
    second.load_state_dict(first.state_dict())
    steps(second, halved, gradients[2:])
    assert torch.equal(straight, halved)


def test_weights_without_a_gradient_stay():
    used, unused = nn.Parameter(noise(3, 3)), nn.Parameter(noise(3, 3))
    used.grad = noise(3, 3, seed=1)
    Muon([used, unused]).step()
    assert torch.equal(unused, noise(3, 3))
    assert not torch.equal(used, noise(3, 3))


def names(model, parameters):
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    return [own[id(parameter)] for parameter in parameters]


def digits(count=16):
    """Images [N, 1, 28, 28] of different brightness."""
    return noise(count, 1, 28, 28) + noise(count, 1, 1, 1, seed=1)


def design(name):
    return load_design(str(Path(__file__).parents[2] / f"models/{name}.py")).build_real()


def convolutions(model):
    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]


@pytest.mark.parametrize("name", ["step8", "compact", "era/model6", "s7/step3_code6"])
def test_muon_takes_the_matrices_but_the_last(name):
    model = design(name)
    (muon, matrices), (adamw, rest) = shares(model, Choice("Muon"), Choice("AdamW"), digits())
    assert (muon.name, adamw.name) == ("Muon", "AdamW")
    assert names(model, matrices) == [f"{name}.weight" for name in convolutions(model)[:-1]]
    assert sorted(names(model, [*matrices, *rest])) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("name", ["step2", "era/model2", "s7/step1_model1"])
def test_a_network_without_norms_has_nothing_for_muon(name):
    model = design(name)
    ((choice, parameters),) = shares(model, Choice("Muon"), Choice("AdamW"), digits())
    assert (choice.name, len(parameters)) == ("AdamW", len(list(model.parameters())))


def test_convolutions_in_groups_and_frozen_weights_are_not_muons():
    convolutions = [nn.Conv2d(4, 4, 1, groups=groups, bias=False) for groups in (4, 1, 1)]
    convolutions[2].weight.requires_grad_(False)
    norms = [nn.BatchNorm2d(4, affine=False) for _ in convolutions]
    model = nn.Sequential(*(part for pair in zip(convolutions, norms, strict=True) for part in pair), nn.Flatten())
    model.append(nn.Linear(16, 2))
    (_, matrices), (_, rest) = shares(model, Choice("Muon"), Choice("AdamW"), noise(8, 4, 2, 2))
    assert names(model, matrices) == ["2.weight"]
    assert names(model, rest) == ["0.weight", "7.weight", "7.bias"]


def test_a_network_with_one_layer_has_nothing_for_muon():
    model = nn.Linear(4, 2)
    ((choice, parameters),) = shares(model, Choice("Muon"), Choice("AdamW"), noise(8, 4))
    assert (choice.name, len(parameters)) == ("AdamW", 2)


class Residual(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.first, self.branch = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.last = norm, nn.Linear(4, 3)

    def forward(self, x):
        x = self.first(x)
        return self.last(self.norm(x + self.branch(x)).relu().mean((2, 3)))


def block(*layers):
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (block(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), ["0"]),
        (block(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), ["0"]),
        (block(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU()), ["0"]),
        (block(nn.Conv2d(1, 4, 3), nn.Dropout(0.5), nn.BatchNorm2d(4)), ["0"]),
        (block(nn.Conv2d(1, 4, 3, bias=False), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), ["0", "2"]),
        (block(nn.Conv2d(1, 4, 3), nn.ReLU()), []),
        # What comes before the norm is free of scale, what comes after is not.
        (block(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)), ["0"]),
        (Residual(nn.BatchNorm2d(4)), ["first", "branch"]),
        (Residual(nn.Identity()), []),
    ],
)  # fmt: skip
def test_layers_whose_length_a_norm_takes_out(model, expected):
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    found = scale_free(model.eval(), digits(32))
    assert [name for name, layer in model.named_modules() if layer in found] == expected
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- torch's own ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
        ("Adam", {"lr": 0.1, "betas": [0.8, 0.9]}),
        ("AdamW", {"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.1}),
    ],
)
def test_the_others_are_torchs(name, options):
    ours, theirs = nn.Parameter(noise(4, 4)), nn.Parameter(noise(4, 4))
    plain = OPTIMIZERS[name]([theirs], **{**options, **({"betas": (0.8, 0.9)} if "betas" in options else {})})
    optimizer = build(Choice(name, options), [ours])
    for seed in range(5):
        ours.grad = theirs.grad = noise(4, 4, seed=seed)
        optimizer.step()
        plain.step()
    torch.testing.assert_close(ours, theirs)
    assert not torch.equal(theirs, noise(4, 4))


def rates(schedule, optimizer, steps, *told):
    used = []
    for _ in range(steps):
        group = optimizer.param_groups[0]
        used.append([group["lr"], group["momentum"]])
        optimizer.step()
        schedule.step(*told)
    return torch.tensor(used, dtype=torch.float64)


def sgd():
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5, momentum=0.7)


@pytest.mark.parametrize(
    ("choice", "theirs", "told"),
    [
        (Choice("StepLR", {"step_size": 6, "gamma": 0.1}), lambda one: StepLR(one, 6, 0.1), ()),
        (
            Choice("OneCycleLR", {"max_lr": 0.5, "pct_start": 0.2}),
            lambda one: OneCycleLR(one, 0.5, total_steps=20, pct_start=0.2),
            (),
        ),
        (Choice("ReduceLROnPlateau", {"patience": 2}), lambda one: ReduceLROnPlateau(one, patience=2), (1.0,)),
        (
            Choice("WarmUpLinear", {"warm_up": 0.25}),
            lambda one: LambdaLR(one, lambda step: (step + 1) / 5 if step < 5 else (20 - step) / 15),
            (),
        ),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_schedules_are_torchs(choice, theirs, told):
    ours, plain = sgd(), sgd()
    found = rates(build_schedule(choice, ours, 20), ours, 20, *told)
    expected = rates(theirs(plain), plain, 20, *told)
    torch.testing.assert_close(found, expected)
    assert len(found[:, 0].unique()) > 1


def test_every_schedule_is_tested():
    assert set(SCHEDULES) == {"WarmUpLinear", "OneCycleLR", "StepLR", "ReduceLROnPlateau"}


@pytest.mark.parametrize("warm_up", [0.0, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("steps", [1, 7, 100])
def test_the_rate_goes_up_and_then_down_to_0(steps, warm_up):
    factors = [warm_up_then_linear(step, steps=steps, warm_up=warm_up) for step in range(steps)]
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert all(0 < factor <= 1 for factor in factors)
    assert warm_up_then_linear(steps, steps=steps, warm_up=warm_up) == 0


# --- what they may not be ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice("SDG", {"lr": 0.1}), "optimizer 'SDG': unknown; did you mean SGD?"),
        (Choice("Lion", {}), "optimizer 'Lion': unknown; expected one of Muon, AdamW, Adam, SGD"),
        (Choice("SGD", {"lr": 0.1, "momentun": 0.9}), "optimizer SGD: no option 'momentun'; did you mean momentum?"),
        (Choice("SGD", {"lr": 0.1, "fused": True}), "optimizer SGD: no option 'fused'"),
        (Choice("SGD", {"lr": -0.1}), "optimizer SGD: ValueError: Invalid learning rate: -0.1"),
        (Choice("SGD", {"lr": math.nan}), "optimizer SGD: lr is nan; expected a finite number"),
        (Choice("SGD", {"lr": "fast"}), "optimizer SGD: TypeError"),
        (Choice("AdamW", {"lr": 0.1, "betas": (0.9, math.inf)}), "optimizer AdamW: betas is inf"),
        (Choice("AdamW", {"lr": 0.1, "betas": (0.9, 1.5)}), "optimizer AdamW: ValueError: Invalid beta"),
        (Choice("Muon", {"lr": -1.0}), "optimizer Muon: ValueError: lr is -1.0; expected a finite number, 0 or more"),
        (Choice("Muon", {"momentum": 1.0}), "optimizer Muon: ValueError: momentum is 1.0"),
        (Choice("Muon", {"ns_steps": 0}), "optimizer Muon: ValueError: ns_steps is 0"),
    ],
    ids=str,
)
def test_impossible_optimizers(choice, message):
    with pytest.raises(RecipeError) as caught:
        build(choice, [torch.zeros(2, 2)])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_muon_refuses_vectors():
    with pytest.raises(ValueError, match="2 dimensions or more; one has 1"):
        Muon([torch.zeros(3)])


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice("OneCycle", {"max_lr": 0.1}), "scheduler 'OneCycle': unknown; did you mean OneCycleLR?"),
        (Choice("OneCycleLR", {}), "scheduler OneCycleLR: 'max_lr' is missing"),
        (Choice("StepLR", {"step_sise": 3}), "scheduler StepLR: no option 'step_sise'; did you mean step_size?"),
        (Choice("OneCycleLR", {"max_lr": 0.1, "pct_start": 2.0}), "scheduler OneCycleLR: ValueError"),
        (Choice("ReduceLROnPlateau", {"factor": 1.5}), "scheduler ReduceLROnPlateau: ValueError"),
        (Choice("WarmUpLinear", {"warm_up": 1.0}), "scheduler WarmUpLinear: ValueError: warm_up is 1.0"),
    ],
    ids=str,
)
def test_impossible_schedules(choice, message):
    with pytest.raises(RecipeError) as caught:
        build_schedule(choice, sgd(), 20)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
