"""Weights from runs and files of every kind, what does not fit them, and what they answer."""

import dataclasses
import json
import pickle
from pathlib import Path

import pytest
import torch
from runs import digits, trained_run
from safetensors.torch import load_file, save_file
from torch import nn

from rfcalc.designs.design import load_design
from rfcalc.errors import ForwardError, InputError, NotFiniteError, RunError
from rfcalc.train import description, run_folder, weights
from rfcalc.train import inference as use
from rfcalc.train.inference import Normal
from rfcalc.train.weights import About, Trained

PLAIN = Normal((0.0,), (1.0,), "as given")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two seeds, raw and averaged weights; not to be written to."""
    return trained_run(tmp_path_factory.mktemp("run"), seeds=(3, 4))


@pytest.fixture(scope="module")
def design(run):
    return load_design(run_folder.read(run).config.target)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- finding weights -----------------------------------------------------------------------------------------


def test_a_run_has_every_seed_raw_and_averaged(run):
    found = weights.find(run)
    assert [(one.about.seed, one.about.weights, one.about.epoch) for one in found] == [
        (3, "raw", 3), (3, "ema", 3), (4, "raw", 3), (4, "ema", 3),
    ]  # fmt: skip
    for one in found:
        file = run_folder.weights_file(run, one.about.seed, one.about.weights)
        assert same(one.tensors, load_file(file))
    about, config = found[0].about, run_folder.read(run).config
    assert (about.mean, about.std, about.classes, about.input_shape, about.source) == (
        config.mean, config.std, config.classes, (1, 8, 8), config.source,
    )  # fmt: skip


def test_a_run_whose_states_are_gone_has_its_weights(run, tmp_path):
    before = weights.find(run)
    for file in run.iterdir():
        if file.suffix != ".pt":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    after = weights.find(tmp_path)
    assert [one.about for one in after] == [one.about for one in before]
    assert all(same(one.tensors, other.tensors) for one, other in zip(before, after, strict=True))


def test_a_file_knows_all_that_its_run_knows(run):
    (alone,) = weights.find(run / "weights-4-ema.safetensors")
    assert alone.about == weights.find(run)[3].about


def test_a_state_has_both_kinds_and_its_run_tells_the_rest(run, tmp_path):
    both = weights.find(run / "state-3.pt")
    assert [one.about for one in both] == [one.about for one in weights.find(run)[:2]]
    (tmp_path / "state.pt").write_bytes((run / "state-3.pt").read_bytes())
    away = weights.find(tmp_path / "state.pt")
    assert away[1].about == About(seed=3, epoch=3, weights="ema")


@pytest.mark.parametrize("nest", [None, "state_dict", "model_state_dict", "model"])
def test_files_of_other_programs(tmp_path, nest):
    tensors = nn.Linear(2, 3).state_dict()
    torch.save(tensors if nest is None else {"epoch": 3, nest: tensors, "lr": 0.1}, tmp_path / "net.pth")
    (found,) = weights.find(tmp_path / "net.pth")
    assert same(found.tensors, tensors)
    assert found.about == About()


def test_safetensors_of_other_programs(tmp_path):
    tensors = nn.Linear(2, 3).state_dict()
    save_file(tensors, tmp_path / "net.safetensors", {"format": "pt", "mean": "nothing of ours"})
    (tmp_path / "config.json").write_text('{"architectures": ["Net"]}')
    (found,) = weights.find(tmp_path / "net.safetensors")
    assert same(found.tensors, tensors)
    assert found.about == About()


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("way", [torch.save, lambda value, file: file.write_bytes(pickle.dumps(value))])
@pytest.mark.parametrize("name", ["net.pt", "net.pth"])
def test_nothing_pickled_is_loaded(tmp_path, way, name):
    way({"state_dict": nn.Linear(2, 2).state_dict(), "more": Bomb(tmp_path / "gone-off")}, tmp_path / name)
    with pytest.raises(RunError, match=r"pickled objects in it, which are never loaded\); save model.state_dict"):
        weights.find(tmp_path / name)
    assert not (tmp_path / "gone-off").exists()


def written(value, name="net.pt"):
    return lambda home: torch.save(value, home / name)


BAD = {
    "nothing": ("net.pt", lambda home: None, "no such file; expected weights or a run's folder"),
    "a folder": (".", lambda home: None, "no config.json in it; expected a run's folder"),
    "another suffix": ("net.bin", lambda home: (home / "net.bin").touch(), "not weights; expected a run's folder"),
    "an empty file": ("net.pt", lambda home: (home / "net.pt").touch(), "not a dict of tensors saved by torch"),
    "noise": ("net.pt", lambda home: (home / "net.pt").write_bytes(b"\x80\x02noise"), "not a dict of tensors"),
    "a whole module": ("net.pt", written(nn.Linear(2, 2)), "pickled objects in it, which are never loaded"),
    "a tensor": ("net.pt", written(torch.ones(2)), "Tensor; expected tensors by name"),
    "numbers": ("net.pt", written({"a": 1, "b": 2}), "a dict of a, b; expected tensors by name"),
    "an empty dict": ("net.pt", written({}), "a dict of nothing; expected tensors by name"),
    "not finite": ("net.pt", written({"w": torch.tensor([1, float("nan")])}), "w has values that are not finite"),
    "noise as safetensors": (
        "n.safetensors", lambda home: (home / "n.safetensors").write_bytes(b"x" * 99), "not a safetensors file",
    ),
    "damaged metadata": (
        "n.safetensors",
        lambda home: save_file(
            {"w": torch.ones(1)}, home / "n.safetensors", {"schema": description.SCHEMA, "mean": "[["}
        ),
        "what it says of its weights is damaged",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read(tmp_path, name):
    place, make, message = BAD[name]
    make(tmp_path)
    with pytest.raises(RunError) as raised:
        weights.find(tmp_path / place)
    assert message in str(raised.value)
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_run_without_an_epoch(run, tmp_path):
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    with pytest.raises(RunError, match="no seed has finished an epoch; there are no weights yet"):
        weights.find(tmp_path)


def one(weights=None, seed=None):
    return Trained("here", {}, About(weights=weights, seed=seed))


def test_picking():
    found = [one("raw", 3), one("ema", 3), one("raw", 4), one("ema", 4)]
    assert weights.pick(found) == found
    assert weights.pick(found, weights="ema") == [found[1], found[3]]
    assert weights.pick(found, weights="raw", seed=4) == [found[2]]
    assert weights.best_known(found) is found[1]
    assert weights.best_known(found[2:]) is found[3]
    assert weights.best_known([found[0], found[3]]) is found[0]
    with pytest.raises(RunError, match="no weights of seed 5; it has weights of seed 3, 4"):
        weights.pick(found, seed=5)
    with pytest.raises(RunError, match="no ema weights; it has raw"):
        weights.pick(found[:1], weights="ema")
    with pytest.raises(RunError, match="no raw weights; it has weights of a kind it does not tell"):
        weights.pick([one()], weights="raw")
    with pytest.raises(RunError, match="no weights of seed 1; it has weights of a seed it does not tell"):
        weights.pick([one()], seed=1)


# --- the network ---------------------------------------------------------------------------------------------


def test_a_network_that_fits_reaches_what_was_recorded(run, design):
    data = digits()
    read = run_folder.read(run)
    for trained in weights.find(run):
        model = use.fit(design, trained)
        assert not model.training
        known = use.recorded(read, trained.about)
        found = use.score(trained, model.to(memory_format=torch.channels_last), data, known)
        epoch = read.epochs[trained.about.seed][-1]
        kept = (epoch.ema_loss, epoch.ema_correct) if trained.about.weights == "ema" else (
            epoch.test_loss, epoch.test_correct,
        )  # fmt: skip
        assert (found.loss, found.correct) == pytest.approx(kept, rel=1e-5)
        assert found.recorded == kept[1]
        assert found.likely.low < found.correct / 360 < found.likely.high


def test_what_was_recorded_is_of_that_epoch(run):
    read = run_folder.read(run)
    assert use.recorded(read, About(seed=3, epoch=2, weights="raw")) == read.epochs[3][1].test_correct
    for about in (About(), About(seed=9, epoch=1, weights="raw"), About(seed=3, epoch=4, weights="raw")):
        assert use.recorded(read, about) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {"more": torch.ones(2, 3), **t}, "it has more 2x3, which the design has not"),
        (
            lambda t: {f"module.{n}": v for n, v in t.items()},
            "it has no 0.weight 8x1x3x3, but module.0.weight 8x1x3x3",
        ),
        (lambda t: t | {"5.weight": torch.ones(10, 200)}, "5.weight is 10x200, in the design 10x288"),
        (lambda t: t | {"2.num_batches_tracked": torch.ones(2)}, "2.num_batches_tracked is 2, in the design a number"),
        (lambda t: {n: v for n, v in t.items() if n != "2.bias"}, "it has no 2.bias 8"),
    ],
)
def test_what_does_not_fit(run, design, change, message):
    found = weights.find(run)[0]
    odd = dataclasses.replace(found, tensors=change(dict(found.tensors)))
    with pytest.raises(RunError) as raised:
        use.fit(design, odd)
    assert str(raised.value) == f"{run}: does not fit {design.name}: {message}"


KNOWN = Trained("net.pt", {}, About(mean=(0.1,), std=(0.3,)))
UNKNOWN = Trained("net.pt", {}, About())


def test_the_normalisation_of_the_training_unless_another_is_given():
    assert use.normalisation(KNOWN, channels=1) == Normal((0.1,), (0.3,), "as in training")
    assert use.normalisation(KNOWN, channels=1, given=((0.5,), (0.5,))) == Normal((0.5,), (0.5,), "as given")
    data = digits()
    assert use.normalisation(KNOWN, channels=1, data=data).mean == (0.1,)
    found = use.normalisation(UNKNOWN, channels=1, data=data)
    assert found == Normal(data.mean, data.std, "by the training images of digits")


@pytest.mark.parametrize(
    ("trained", "channels", "given", "message"),
    [
        (UNKNOWN, 1, (None, None), "net.pt: does not tell how its training images were normalised; give --mean and"),
        (KNOWN, 1, ((0.1,), None), "one of --mean and --std; expected both"),
        (KNOWN, 3, (None, None), "mean as in training: 1 number; expected 3, one per channel"),
        (KNOWN, 1, ((0.1,), (0.1, 0.2)), "std as given: 2 numbers; expected 1"),
        (KNOWN, 1, ((0.1,), (0.0,)), "std as given: 0; expected numbers above 0"),
        (KNOWN, 1, ((float("nan"),), (1.0,)), "mean as given: nan; expected finite numbers"),
    ],
)
def test_normalisations_that_cannot_be(trained, channels, given, message):
    with pytest.raises(InputError) as raised:
        use.normalisation(trained, channels=channels, given=given)
    assert message in str(raised.value)


# --- what it makes of images ---------------------------------------------------------------------------------

SCORES = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]])


class Says(nn.Module):
    """Gives the same scores whatever the images; the first rows of them."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def forward(self, x):
        return self.scores[: len(x)]


@pytest.mark.parametrize("scores", [SCORES, SCORES.log(), SCORES.log() + 5], ids=["softmax", "log-softmax", "logits"])
def test_answers_by_probability_whatever_the_scores_are(scores):
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    first, second = use.answers(Says(scores), images, PLAIN, classes=("a", "b", "c"), most=2)
    assert [(guess.index, guess.name) for guess in first] == [(1, "b"), (2, "c")]
    assert [guess.name for guess in second] == ["a", "c"]
    assert [guess.probability for guess in (*first, *second)] == pytest.approx([0.7, 0.2, 0.5, 0.3], abs=1e-6)


def test_classes_without_names_and_fewer_than_asked_for():
    (found,) = use.answers(Says(SCORES), torch.zeros(1, 1, 4, 4, dtype=torch.uint8), PLAIN, most=9)
    assert [guess.name for guess in found] == ["1", "2", "0"]


def test_images_are_normalised_as_told():
    class Mean(nn.Module):
        def forward(self, x):
            return torch.stack([x.mean((1, 2, 3)), torch.zeros(len(x))], 1).log()

    images = torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
    (found,) = use.answers(Mean(), images, Normal((0.25,), (0.25,), "as given"))
    assert found[0].probability == 1  # 3 against nothing


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (Says(torch.ones(2, 3, 1)), InputError, "the design's output is (2, 3, 1) for 2 images; expected one row"),
        (Says(torch.ones(1, 3)), InputError, "the design's output is (1, 3) for 2 images"),
        (Says([1, 2]), InputError, "the design's output is list for 2 images"),
        (Says(torch.ones(2, 1)), InputError, "the design's output is (2, 1) for 2 images"),
        (Says(torch.ones(2, 4)), InputError, "the design tells 4 classes apart; expected 3, as its weights"),
        (Says(torch.tensor([[1, float("inf"), 0]] * 2)), NotFiniteError, "the design's output is not finite"),
        (nn.Linear(7, 3), ForwardError, "the design's forward raised RuntimeError: "),
    ],
)
def test_designs_that_do_not_answer(model, error, message):
    with pytest.raises(error) as raised:
        use.answers(model, torch.zeros(2, 1, 4, 4, dtype=torch.uint8), PLAIN, classes=("a", "b", "c"))
    assert message in str(raised.value)


def picture(ground, ink, channels=1):
    image = torch.full((channels, 8, 8), ground, dtype=torch.uint8)
    image[:, 2:6, 3:5] = ink
    return image


INVERT = "if it is ink on paper, try --invert"


@pytest.mark.parametrize(
    ("image", "mean", "message"),
    [
        (picture(0, 255), 0.13, None),
        (picture(255, 0), 0.13, f"(1.00 of 1) is brighter than the training images on average (0.13); {INVERT}"),
        (picture(80, 255), 0.13, "(0.31 of 1) is brighter than the training images on average (0.13); raise its"),
        (picture(20, 255), 0.13, None),
        (picture(255, 0), 0.8, None),
        (picture(0, 255), 0.8, "its border (0.00 of 1) is darker than the training images on average (0.80)"),
        (picture(255, 0), 0.5, None),
        (picture(0, 0), 0.13, "it is of one colour (what is transparent counts as its colour)"),
        (picture(200, 200), 0.5, "it is of one colour"),
    ],
)  # fmt: skip
def test_images_unlike_those_of_the_training(image, mean, message):
    found = use.oddity(image, Normal((mean,), (0.3,), "as in training"))
    assert (found is None) if message is None else (message in found)


def test_the_ground_of_colours_is_not_judged():
    assert use.oddity(picture(255, 0, channels=3), Normal((0.1,) * 3, (0.3,) * 3, "as in training")) is None


def test_no_digit_of_the_set_is_odd():
    data = digits()
    normal = Normal(data.mean, data.std, "as in training")
    odd = sum(use.oddity(image, normal) is not None for image in data.test.images)
    assert odd <= 4  # of 360; those of 8x8 fill their frame
    assert all("--invert" in use.oddity(255 - image, normal) for image in data.test.images[:50])


def test_the_border_is_the_outermost_ring():
    image = torch.full((1, 3, 4), 7, dtype=torch.uint8)
    image[0, 1, 1:3] = 200
    assert use.border(image) == pytest.approx(7 / 255)


def test_the_shape_of_an_image(design):
    assert use.image_shape(design) == (1, 8, 8)
    for shape in ((8, 8), ((1, 8, 8), (1, 8, 8)), {"x": (1, 8, 8)}, None):
        with pytest.raises(InputError, match="expected that of one image"):
            use.image_shape(dataclasses.replace(design, input_shape=shape))


def test_what_is_written_beside_weights_is_what_is_read(run):
    _, metadata = run_folder.read_weights(run / "weights-3-raw.safetensors")
    assert set(weights._LISTS) <= set(metadata)
    assert json.loads(metadata["classes"]) == list("0123456789")
