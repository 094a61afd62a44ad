"""Recipes: every design's RECIPE is one, what cannot be trained with is refused, and JSON keeps them."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from rfcalc.designs.design import load_design
from rfcalc.errors import RecipeError
from rfcalc.train.augment import Augmentation
from rfcalc.train.data import DataSet, Split
from rfcalc.train.optim import Choice
from rfcalc.train.recipe import FAST, OURS, Recipe, from_dict, from_reference, to_dict

ROOT = Path(__file__).resolve().parents[2]
DESIGNS = sorted(str(file.relative_to(ROOT)) for file in (ROOT / "models").rglob("*.py"))
WITH_RECIPE = [name for name in DESIGNS if "RECIPE" in (ROOT / name).read_text()]
STEP8 = load_design(str(ROOT / "models/step8.py")).recipe


def small(count=10, channels=1):
    split = Split(torch.zeros(count, channels, 4, 4, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64))
    return DataSet("small", split, split, ("a", "b"), (0.5,) * channels, (0.5,) * channels)


def test_the_ladders_have_30_recipes():
    assert len(WITH_RECIPE) == 30


@pytest.mark.parametrize("name", WITH_RECIPE)
def test_every_designs_recipe_is_one(name):
    given = load_design(str(ROOT / name)).recipe
    recipe = from_reference(given, name)
    assert (recipe.epochs, recipe.batch_size) == (given["epochs"], given["batch_size"])
    assert (recipe.mean, recipe.std) == ((0.1307,), (0.3081,))
    assert recipe.optimizer.options["lr"] == given["optimizer"]["lr"]
    assert (recipe.schedule and recipe.schedule.name) == (given["scheduler"] and given["scheduler"]["name"])
    assert len(recipe.augmentation) == len(given["train_augmentation"])
    assert recipe.ema == 0


def test_the_reference_of_step8():
    recipe = from_reference(STEP8, "step8")
    assert recipe.optimizer == Choice("SGD", {"lr": 0.015, "momentum": 0.7, "weight_decay": 0.0, "nesterov": False})
    assert recipe.schedule == Choice("OneCycleLR", {"max_lr": 0.015})
    rotation, affine, jitter = recipe.augmentation
    assert rotation.rotate == (-6, 6)
    assert (affine.translate, affine.scale, affine.shear) == ((0.1, 0.1), (0.8, 1.2), (-10, 10))
    assert jitter.brightness == pytest.approx((0.6, 1.4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": 3}, "unknown key 'epoch'; did you mean epochs?"),
        ({"scheduler": {"name": "StepLR", "step_size": 6, "gama": 0.1}}, "no option 'gama'; did you mean gamma?"),
        ({"scheduler": {"name": "StepLR", "step": "every batch", "step_size": 6}}, "expected 'every epoch'"),
        ({"scheduler": {"name": "CosineLR"}}, "scheduler 'CosineLR': unknown"),
        ({"scheduler": "OneCycleLR"}, "expected a dict of torch's 'name' and arguments"),
        ({"epochs": 16}, "15 epochs of 469 steps, 7035 in all; expected the recipe's 16 epochs"),
        ({"optimizer": {"lr": 0.1}}, "expected a dict of torch's 'name' and arguments"),
        ({"optimizer": {"name": "Muon"}}, "rest: expected an optimizer of what Muon does not take"),
        ({"loss": "mse"}, "loss is 'mse'; expected 'nll_loss"),
        ({"normalize": {"mean": [0.1], "sdt": [0.3]}}, "unknown key 'sdt'; did you mean std?"),
        ({"normalize": {"mean": [0.1], "std": []}}, "expected as many of both"),
        ({"normalize": {"mean": [0.1], "std": [0.0]}}, "every std above 0"),
        ({"normalize": {"mean": "0.1", "std": [0.3]}}, "mean is '0.1'; expected a list of finite numbers"),
        ({"train_augmentation": [{"name": "RandomRotate"}]}, "augmentation RandomRotate: unknown"),
        ({"train_augmentation": "none"}, "train_augmentation is 'none'; expected a list"),
    ],
    ids=str,
)
def test_a_reference_that_cannot_be(change, message):
    with pytest.raises(RecipeError) as caught:
        from_reference({**STEP8, **change}, "net.py")
    assert str(caught.value).startswith("net.py: RECIPE: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["optimizer", "epochs", "batch_size"])
def test_a_reference_that_lacks_something(key):
    with pytest.raises(RecipeError, match=f"net.py: RECIPE: it: '{key}' is missing"):
        from_reference({name: value for name, value in STEP8.items() if name != key}, "net.py")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs is 0; expected a whole number, 1 or more"),
        ({"epochs": 1.5}, "epochs is 1.5"),
        ({"epochs": True}, "epochs is True"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"ema": 1.0}, "ema is 1.0; expected a number, 0 or more and less than 1"),
        ({"ema": float("nan")}, "ema is nan"),
        ({"label_smoothing": "0.1"}, "label_smoothing is '0.1'"),
        ({"mean": (0.1,)}, "expected as many of both"),
        ({"rest": None}, "rest: expected an optimizer"),
        ({"optimizer": Choice("SGD", {"lr": 0.1})}, "rest: expected an optimizer"),
        ({"rest": Choice("AdamW", {"lr": -1.0})}, "optimizer AdamW: ValueError: Invalid learning rate"),
        ({"schedule": Choice("StepLR", {})}, "scheduler StepLR: 'step_size' is missing"),
        # What torch looks at only when it takes a step.
        ({"schedule": Choice("StepLR", {"step_size": 0})}, "scheduler StepLR: ZeroDivisionError"),
        ({"schedule": Choice("StepLR", {"step_size": 5, "gamma": "a"})}, "scheduler StepLR: TypeError"),
        ({"schedule": Choice("ReduceLROnPlateau", {"patience": "x"})}, "scheduler ReduceLROnPlateau: TypeError"),
        ({"schedule": Choice("ReduceLROnPlateau", {"mode": "max"})}, "mode is 'max'; expected 'min', of losses"),
    ],
    ids=str,
)
def test_a_recipe_that_cannot_be(change, message):
    with pytest.raises(RecipeError) as caught:
        dataclasses.replace(OURS, **change)
    assert message in str(caught.value)


@pytest.mark.parametrize("recipe", [OURS, FAST, from_reference(STEP8, "step8")], ids=lambda recipe: recipe.name)
def test_json_keeps_a_recipe(recipe):
    assert from_dict(json.loads(json.dumps(to_dict(recipe)))) == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epocs": 3}, "recipe: unknown key 'epocs'; did you mean epochs?"),
        ({"optimizer": {"nome": "SGD"}}, "optimizer: unknown key 'nome'; did you mean name?"),
        ({"optimizer": "SGD"}, "optimizer: 'SGD'; expected a dict"),
        ({"optimizer": {"name": "SGD", "options": [1]}}, "optimizer: options are [1]; expected a dict"),
        ({"augmentation": [{"rotat": 3}]}, "augmentation: unknown key 'rotat'; did you mean rotate?"),
    ],
    ids=str,
)
def test_values_that_are_no_recipe(change, message):
    with pytest.raises(RecipeError) as caught:
        from_dict({**to_dict(OURS), **change})
    assert str(caught.value).startswith(message)


def test_a_recipe_lacks_something():
    with pytest.raises(RecipeError, match="recipe: 'epochs' is missing"):
        from_dict({name: value for name, value in to_dict(OURS).items() if name != "epochs"})


def test_the_recipes_of_this_package():
    assert (OURS.epochs, FAST.epochs, OURS.batch_size, OURS.ema) == (15, 8, 128, 0.998)
    assert OURS.augmentation == (Augmentation(rotate=(-10, 10), shear=(-5, 5), scale=(0.9, 1.1), shift=2, warp=0.6),)
    assert OURS.rest == Choice("AdamW", {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.0})
    assert OURS.schedule == Choice("WarmUpLinear", {"warm_up": 0.2})


def test_a_batch_larger_than_the_data():
    with pytest.raises(RecipeError, match=r"batch_size is 128; small has 10 images to train on: expected no more"):
        OURS.fitted(small())


def test_the_recipes_mean_wins_and_must_fit():
    recipe = Recipe("r", 1, 2, Choice("SGD", {"lr": 0.1}), mean=(0.25,), std=(2.0,))
    fitted = recipe.fitted(small())
    assert (fitted.mean, fitted.std) == ((0.25,), (2.0,))
    assert dataclasses.replace(recipe, mean=(), std=()).fitted(small()).mean == (0.5,)
    with pytest.raises(RecipeError, match="mean has 1 numbers; expected 3, one per channel of small"):
        recipe.fitted(small(channels=3))


@pytest.mark.parametrize("ground", [0, 255, 30])
def test_what_moves_in_is_like_the_ground(ground):
    images = torch.full((4, 1, 6, 6), ground, dtype=torch.uint8)
    images[:, :, 2:4, 2:4] = 99
    split = Split(images, torch.zeros(4, dtype=torch.int64))
    recipe = OURS.on(DataSet("noise", split, split, ("a",), (0.5,), (0.3,)))
    assert [stage.fill for stage in recipe.augmentation] == [float(ground)]
    assert (recipe == OURS) == (ground == 0)  # MNIST lies on black
