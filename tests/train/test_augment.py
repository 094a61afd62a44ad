"""Augmentation means what torchvision's transforms mean: exact cases against its functions, what is drawn against
the definitions of its arguments."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from rfcalc.errors import RecipeError
from rfcalc.train.augment import Augmentation, apply, augment, draw
from rfcalc.train.transforms import _CONVERSIONS, stages

SHAPE = (1, 28, 28)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=generator(seed))


def smooth(*shape):
    """Images whose border is black and whose greys change slowly, as drawn digits do."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, length) for length in shape[-2:]), indexing="ij")
    pattern = ((1 - x**2) * (1 - y**2)) ** 2 * (0.6 + 0.4 * torch.sin(3 * x + 5 * y))
    return pattern.clamp(0).expand(shape).clone()


def only(**fixed):
    """A stage that always draws these values."""
    return Augmentation(**{k: v if isinstance(v, tuple) else (v, v) for k, v in fixed.items()})


# --- exact cases ---------------------------------------------------------------------------------------------

AFFINE = [
    {"rotate": 30.0},
    {"rotate": -171.0},
    {"scale": 0.8},
    {"scale": 1.27},  # of 1.3 every tenth position lies midway between two pixels
    {"shear": 12.0},
    {"shear": (9.0, 9.0, -7.0, -7.0)},
    {"rotate": 13.0, "scale": 1.1, "shear": (-8.0, -8.0, 5.0, 5.0)},
]


def torchvision_affine(image, rotate=0.0, scale=1.0, shear=(0.0, 0.0), translate=(0, 0), **options):
    shear = (shear, 0.0) if isinstance(shear, float) else (*shear[::2], 0.0)[:2]
    return tv.affine(image, angle=rotate, translate=list(translate), scale=scale, shear=list(shear), **options)


@pytest.mark.parametrize("size", [(28, 28), (20, 31)])
@pytest.mark.parametrize("case", AFFINE, ids=str)
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_warp_is_torchvisions_affine(case, mode, size):
    images = noise(3, 2, *size)
    ours = augment(images, [replace(only(**case), interpolation=mode)], generator())
    theirs = torchvision_affine(images, **case, interpolation=InterpolationMode(mode))
    # Both compute positions in single precision: near the middle between two pixels `nearest` may choose either.
    differ = (ours - theirs).abs() > 2e-5
    assert differ.float().mean() <= (0.005 if mode == "nearest" else 0)


@pytest.mark.parametrize("case", AFFINE, ids=str)
def test_warp_is_what_pillow_does(case):
    image = (smooth(28, 28) * 255).byte()
    ours = augment(image[None, None] / 255, [replace(only(**case), interpolation="nearest", fill=200)], generator())
    theirs = np.asarray(torchvision_affine(Image.fromarray(image.numpy()), **case, fill=200))
    assert np.mean((ours[0, 0] * 255).round().numpy() != theirs) <= 0.01


def test_rotation_of_a_reference_recipe_turns_counter_clockwise():
    images = noise(2, 1, 28, 28)
    (stage,) = stages([{"name": "RandomRotation", "degrees": [25, 25], "interpolation": "bilinear"}])
    expected = tv.rotate(images, 25, InterpolationMode.BILINEAR)
    torch.testing.assert_close(augment(images, [stage], generator()), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_shifts_are_whole_pixels_and_show_the_background(mode):
    images = noise(200, 1, 9, 9)
    stage = Augmentation(shift=2, fill=51, interpolation=mode)
    changed = augment(images, [stage], generator())
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), value=0.2)
    seen = set()
    for image, around in zip(changed, padded, strict=True):
        fits = [
            (down, right)
            for down in range(5)
            for right in range(5)
            if torch.allclose(image, around[:, down : down + 9, right : right + 9], atol=1e-5)
        ]
        assert len(fits) == 1
        seen.update(fits)
    assert len(seen) == 25


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_a_background_stays_the_background(mode):
    images = torch.full((16, 1, 28, 28), 77 / 255)
    stage = Augmentation(rotate=(-180, 180), scale=(0.5, 2), shear=(-20, 20), fill=77, interpolation=mode)
    torch.testing.assert_close(augment(images, [stage], generator()), images, atol=1e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("brightness", "contrast"), [(0.3, 1.0), (1.0, 0.3), (1.0, 1.9), (1.7, 1.0)])
def test_one_factor_is_torchvisions(channels, brightness, contrast):
    images = noise(4, channels, 12, 12)
    ours = augment(images, [only(brightness=brightness, contrast=contrast)], generator())
    theirs = tv.adjust_contrast(tv.adjust_brightness(images, brightness), contrast)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_brightness_and_contrast_come_in_both_orders():
    images = noise(1, 1, 12, 12).expand(1000, -1, -1, -1)
    ours = augment(images, [only(brightness=1.6, contrast=1.7)], generator())
    first = tv.adjust_contrast(tv.adjust_brightness(images[0], 1.6), 1.7)
    last = tv.adjust_brightness(tv.adjust_contrast(images[0], 1.7), 1.6)
    is_first, is_last = ((ours - one).abs().amax((1, 2, 3)) < 1e-6 for one in (first, last))
    assert torch.all(is_first ^ is_last)
    assert 430 < is_first.sum() < 570  # 500 and 4 standard deviations


def test_the_erased_box_has_the_area_and_the_ratio_asked_for():
    shape, scale, ratio = (1, 60, 40), (0.1, 0.2), (0.5, 2.0)
    stage = Augmentation(erase=0.5, erase_scale=scale, erase_ratio=ratio, fill=255)
    changed = augment(torch.zeros(4000, *shape), [stage], generator())[:, 0] == 1
    tall, wide = changed.any(2).sum(1), changed.any(1).sum(1)
    assert torch.equal(tall * wide, changed.sum((1, 2)))  # a full box
    erased = tall > 0
    assert 1870 < erased.sum() < 2130
    tall, wide = tall[erased].double(), wide[erased].double()
    assert torch.all((tall * wide / 2400 > scale[0] * 0.93) & (tall * wide / 2400 < scale[1] * 1.07))  # rounded sides
    assert torch.all((tall / wide > ratio[0] * 0.93) & (tall / wide < ratio[1] * 1.07))
    theirs = boxes_of_torchvision(shape, scale, ratio, 2000)
    assert abs(float(tall.mean()) - theirs[:, 0].mean()) < 5 * theirs[:, 0].std() / math.sqrt(len(theirs))
    assert abs(float(wide.mean()) - theirs[:, 1].mean()) < 5 * theirs[:, 1].std() / math.sqrt(len(theirs))
    assert changed.any(0).all()  # every pixel is in some box


def boxes_of_torchvision(shape, scale, ratio, count):
    torch.manual_seed(0)
    drawn = [transforms.RandomErasing.get_params(torch.zeros(shape), scale, ratio, [0.0]) for _ in range(count)]
    return np.array([(tall, wide) for _, _, tall, wide, _ in drawn], dtype=float)


def test_a_box_that_can_never_fit_erases_nothing():
    images = noise(50, 1, 8, 8)
    stage = Augmentation(erase=1, erase_scale=(1, 1), erase_ratio=(1, 1))
    assert torch.equal(augment(images, [stage], generator()), images)


# --- what is drawn -------------------------------------------------------------------------------------------


def drawn_affine(stage, count=20_000, shape=SHAPE):
    """Angle, scale, shear and translation that the drawn inverse maps stand for."""
    inverse = draw([stage], count, shape, generator())[:, 0, :6].double().view(-1, 2, 3)
    forward = torch.linalg.inv(inverse[:, :, :2])
    (p, q), (r, s) = forward.permute(1, 2, 0)
    scale = (p * s - q * r).sqrt()
    angle = torch.atan2(r, p)
    shear = torch.atan(-(p * q + r * s) / scale**2)
    shift = -(forward @ inverse[:, :, 2:])[..., 0]
    return {"angle": angle.rad2deg(), "scale": scale, "shear": shear.rad2deg(), "x": shift[:, 0], "y": shift[:, 1]}


def drawn_by_torchvision(affine, count=4000):
    torch.manual_seed(0)
    rows = [
        affine.get_params(affine.degrees, affine.translate, affine.scale, affine.shear, [SHAPE[2], SHAPE[1]])
        for _ in range(count)
    ]
    angle, shift, scale, shear = zip(*rows, strict=True)
    columns = {"angle": angle, "scale": scale, "shear": np.array(shear)[:, 0]}
    return columns | {"x": np.array(shift)[:, 0], "y": np.array(shift)[:, 1]}


def test_affine_draws_from_torchvisions_distributions():
    arguments = {"degrees": (-20, 5), "translate": (0.1, 0.3), "scale": (0.8, 1.3), "shear": (-4, 15)}
    (stage,) = stages([{"name": "RandomAffine", **arguments}])
    ours, theirs = drawn_affine(stage), drawn_by_torchvision(transforms.RandomAffine(**arguments))
    from scipy.stats import ks_2samp

    for name, values in theirs.items():
        found = ours[name].numpy().round(3)
        assert ks_2samp(found, np.asarray(values, dtype=float).round(3)).pvalue > 1e-4, name
        assert found.min() >= min(values) - abs(min(values)) * 0.05 - 0.02, name
        assert found.max() <= max(values) + abs(max(values)) * 0.05 + 0.02, name
    assert torch.equal(ours["x"].round(decimals=3).unique(), torch.arange(-3.0, 4.0).double())


def test_what_one_step_draws_does_not_depend_on_another():
    plain = Augmentation(rotate=(-10, 10))
    busy = replace(plain, brightness=(0.5, 1.5), erase=0.5)
    assert torch.equal(draw([plain], 9, SHAPE, generator())[..., :6], draw([busy], 9, SHAPE, generator())[..., :6])


# --- generator, order, device --------------------------------------------------------------------------------

ALL = Augmentation(rotate=(-9, 9), translate=(0.1, 0.1), shift=1, brightness=(0.6, 1.4), contrast=(0.6, 1.4), erase=0.5)


def test_the_generators_state_is_all_there_is():
    images, source = noise(8, 1, 28, 28), generator(3)
    state = source.get_state()
    torch.manual_seed(0)
    once = augment(images, [ALL, ALL], source)
    torch.manual_seed(1)
    following = augment(images, [ALL, ALL], source)
    again = generator()
    again.set_state(state)
    assert torch.equal(augment(images, [ALL, ALL], again), once)
    assert torch.equal(augment(images, [ALL, ALL], again), following)
    assert not torch.equal(once, following)


def test_some_images_keep_their_sharp_pixels():
    images = torch.rand(4000, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for warp in (0.0, 0.3, 1.0):
        stage = Augmentation(rotate=(5, 10), brightness=(0.5, 0.5), warp=warp)
        found = augment(images, (stage,), torch.Generator().manual_seed(2))
        sharp = torch.isclose(found, images / 2, atol=1e-5).flatten(1).all(1)
        assert abs(sharp.float().mean().item() - (1 - warp)) < 0.03 * (0 < warp < 1) + 1e-9


def test_images_stay_as_they_were_and_differ_among_themselves():
    image = noise(1, 1, 28, 28)
    images = image.expand(8, -1, -1, -1).clone()
    changed = augment(images, [ALL], generator())
    assert torch.equal(images, image.expand(8, -1, -1, -1))
    assert len({tuple(one.flatten().tolist()) for one in changed}) == 8


def test_an_epoch_drawn_at_once_is_indexed_like_the_images():
    images, stages = noise(10, 1, 28, 28), [ALL, Augmentation(shear=(-5, 5))]
    table = draw(stages, 10, SHAPE, generator())
    order = torch.randperm(10, generator=generator(1))
    assert torch.equal(apply(images[order], stages, table[order]), apply(images, stages, table)[order])
    assert torch.equal(apply(images, stages, table), augment(images, stages, generator()))


def test_no_stage_changes_nothing():
    images = noise(3, 1, 28, 28)
    assert augment(images, [], generator()) is images
    assert augment(images, [Augmentation()], generator()) is images


def test_stages_are_applied_in_their_order():
    images = smooth(1, 1, 28, 28)
    turn, push = only(rotate=90.0), replace(only(scale=1.0), translate=(0, 0), shear=(20, 20))
    there, back = (augment(images, order, generator()) for order in ([turn, push], [push, turn]))
    step = augment(augment(images, [turn], generator()), [push], generator())
    torch.testing.assert_close(there, step)
    assert (there - back).abs().max() > 0.1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_same_on_a_gpu():
    images = noise(64, 1, 28, 28)
    ours = augment(images.cuda(), [ALL], generator()).cpu()
    assert ((ours - augment(images, [ALL], generator())).abs() > 1e-4).float().mean() < 1e-3


# --- from torchvision's names, and what is refused -----------------------------------------------------------


@pytest.mark.parametrize(
    ("transform", "stage"),
    [
        (
            {"name": "RandomRotation", "degrees": [-7.0, 6.0], "fill": [1]},
            Augmentation(rotate=(-6, 7), fill=1, interpolation="nearest"),
        ),
        (
            {"name": "RandomRotation", "degrees": 5, "fill": [0.1307]},
            Augmentation(rotate=(-5, 5), fill=0, interpolation="nearest"),
        ),
        (
            {"name": "RandomAffine", "degrees": 7, "translate": [0.1, 0.2], "scale": [0.8, 1.2], "shear": 10},
            Augmentation(
                rotate=(-7, 7), translate=(0.1, 0.2), scale=(0.8, 1.2), shear=(-10, 10), interpolation="nearest"
            ),
        ),
        (
            {"name": "RandomAffine", "degrees": 0, "shear": [1, 2, 3, 4], "interpolation": InterpolationMode.BILINEAR},
            Augmentation(shear=(1, 2, 3, 4)),
        ),
        (
            {"name": "ColorJitter", "brightness": 0.4, "contrast": [0.5, 2], "saturation": 1.5, "hue": 0.1},
            Augmentation(brightness=(0.6, 1.4), contrast=(0.5, 2), saturation=(0, 2.5), hue=(-0.1, 0.1)),
        ),
        ({"name": "RandomErasing", "p": 0.3, "value": 1}, Augmentation(erase=0.3, fill=255)),
        ({"name": "Resize", "size": [28, 28]}, Augmentation(resize=(28, 28))),
        ({"name": "Resize", "size": 28}, Augmentation(resize=(28,))),
    ],
    ids=str,
)
def test_stages_from_torchvisions_transforms(transform, stage):
    assert stages([transform]) == (stage,)


def test_a_stage_survives_json():
    import json

    assert Augmentation(**json.loads(json.dumps(asdict(ALL)))) == ALL


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ({"degrees": 5}, "augmentation {'degrees': 5}: expected a dict of torchvision's 'name' and arguments"),
        ("RandomRotation", "augmentation 'RandomRotation': expected a dict of torchvision's 'name' and arguments"),
        (
            {"name": "RandomFlop"},
            f"augmentation RandomFlop: unknown; expected one of {', '.join(_CONVERSIONS)}",
        ),
        (
            {"name": "ColorJitter", "gamma": 1},
            "augmentation ColorJitter: no argument 'gamma'; expected brightness, contrast, saturation, hue",
        ),
        ({"name": "RandomAffine", "shear": 1}, "augmentation RandomAffine: argument 'degrees' is missing"),
        (
            {"name": "RandomRotation", "degrees": -5},
            "augmentation RandomRotation: degrees: -5; expected 1 finite number >= 0",
        ),
        (
            {"name": "RandomRotation", "degrees": [5, -5]},
            "augmentation RandomRotation: rotate: (5.0, -5.0); expected the least before the most",
        ),
        (
            {"name": "RandomRotation", "degrees": 5, "expand": True},
            "augmentation RandomRotation: expand: True; expected expand left out: it is not supported",
        ),
        (
            {"name": "RandomAffine", "degrees": 5, "translate": [0.1, 1.5]},
            "augmentation RandomAffine: translate: [0.1, 1.5]; expected 2 finite numbers from 0 to 1",
        ),
        (
            {"name": "RandomAffine", "degrees": 5, "scale": [0, 1]},
            "augmentation RandomAffine: scale: [0, 1]; expected 2 finite numbers >= 0.001",
        ),
        (
            {"name": "RandomAffine", "degrees": float("nan")},
            "augmentation RandomAffine: degrees: nan; expected 1 finite number >= 0",
        ),
        (
            {"name": "RandomRotation", "degrees": 5, "fill": [1, 2, 3]},
            "augmentation RandomRotation: fill: [1, 2, 3]; expected the same for every channel",
        ),
        (
            {"name": "RandomRotation", "degrees": 5, "interpolation": "bicubic"},
            "augmentation RandomRotation: interpolation: 'bicubic'; expected nearest or bilinear",
        ),
        (
            {"name": "RandomErasing", "value": "random"},
            "augmentation RandomErasing: value: 'random'; expected 1 finite number from 0 to 1",
        ),
        (
            {"name": "Resize", "size": [28, 28, 3]},
            "augmentation Resize: resize: [28, 28, 3]; expected one or two whole numbers above 0",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_a_stage(transform, message):
    with pytest.raises(RecipeError) as caught:
        stages([transform])
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("stage", "shape", "message"),
    [
        (Augmentation(resize=(32, 32)), SHAPE, "Resize to 32x32: the images are 28x28; "),
        (Augmentation(hue=(-0.1, 0.1)), (3, 28, 28), "ColorJitter: saturation and hue of colour images "),
        (Augmentation(contrast=(0.5, 1)), (4, 28, 28), "ColorJitter: the images have 4 channels; "),
    ],
)
def test_images_that_a_stage_does_not_fit(stage, shape, message):
    with pytest.raises(RecipeError, match=message):
        augment(torch.zeros(2, *shape), [stage], generator())


def test_hue_does_nothing_to_grey_images():
    images = noise(3, 1, 28, 28)
    assert augment(images, [Augmentation(hue=(-0.1, 0.1), saturation=(0, 2))], generator()) is images


@pytest.mark.parametrize("value", [-1, 1.5, True, "2"])
def test_a_shift_is_a_whole_number(value):
    with pytest.raises(RecipeError, match=r"shift: .*; expected a whole number of pixels, 0 or more"):
        Augmentation(shift=value)
