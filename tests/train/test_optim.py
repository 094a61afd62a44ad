"""Muon against torch's own, schedules against torch's own, and what a choice of either may not be."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau, StepLR

from rfcalc.design import load_design
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


def test_muon_takes_the_matrices_but_the_last():
    model = load_design(str(Path(__file__).parents[2] / "models/step8.py")).build_real()
    (muon, matrices), (adamw, rest) = shares(model, Choice("Muon"), Choice("AdamW"))
    assert (muon.name, adamw.name) == ("Muon", "AdamW")
    convolutions = [f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    assert names(model, matrices) == convolutions[:-1]
    assert sorted(names(model, [*matrices, *rest])) == sorted(name for name, _ in model.named_parameters())


def test_convolutions_in_groups_and_frozen_weights_are_not_muons():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 2))
    model[2].weight.requires_grad_(False)
    (_, matrices), (_, rest) = shares(model, Choice("Muon"), Choice("AdamW"))
    assert names(model, matrices) == ["1.weight"]
    assert names(model, rest) == ["0.weight", "0.bias", "1.bias", "2.bias", "3.weight", "3.bias"]


def test_a_network_with_one_layer_has_nothing_for_muon():
    model = nn.Linear(4, 2)
    ((choice, parameters),) = shares(model, Choice("Muon"), Choice("AdamW"))
    assert (choice.name, len(parameters)) == ("AdamW", 2)


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
