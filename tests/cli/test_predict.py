"""rfcalc predict: image files of every kind, in any company, and what cannot be answered."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from runs import NET, digits, trained_run
from safetensors.torch import load_file

from rfcalc.designs.design import load_design
from rfcalc.train import run_folder
from rfcalc.train.analysis import probabilities

LINE = re.compile(r"(\S+): (\d) ([\d.]+) %, then (\d) ([\d.]+) %, (\d) ([\d.]+) %")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with net.py, a run of it in runs/, its weights as a state dict, and digits as image files."""
    home = tmp_path_factory.mktemp("home")
    run = trained_run(home, seeds=(1, 2))
    torch.save(load_file(run / "weights-1-ema.safetensors"), home / "net.pt")
    for index, image in enumerate(digits().test.images[:8, 0]):
        picture = Image.fromarray(image.numpy())
        picture.save(home / f"{index}.png")
        Image.fromarray(255 - image.numpy()).convert("RGB").save(home / f"paper-{index}.bmp")
    (home / "broken.png").write_bytes((home / "0.png").read_bytes()[:60])
    (home / "words.png").write_text("no image")
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(home / "deep.png")
    Image.new("L", (8, 8), 0).save(home / "empty.png")
    return home


@pytest.fixture
def run(home, monkeypatch):
    monkeypatch.chdir(home)
    return run_folder.read(next(home.glob("runs/*/*")))


FILES = [f"{index}.png" for index in range(8)]


def wanted(run, kind="ema", seed=1):
    """What the network itself gives to the first test images."""
    data = digits()
    model = load_design(run.config.target).build_real()
    model.load_state_dict(load_file(run_folder.weights_file(run.folder, seed, kind)))
    return probabilities(model.eval(), data.test, data)[:8]


def test_a_line_per_image(rfcalc, run):
    done = rfcalc("predict", "net.py", str(run.folder), *FILES)
    assert (done.code, done.err) == (0, "")
    first, *lines = done.out.splitlines()
    mean, std = run.config.mean[0], run.config.std[0]
    assert first == (
        f"net.py:Net, seed 1, epoch 3, EMA weights, normalised as in training: mean {mean:.4g}, std {std:.4g}"
    )
    assert len(lines) == 8
    for line, file, row in zip(lines, FILES, wanted(run), strict=True):
        name, *found = LINE.fullmatch(line).groups()
        values, indices = row.topk(3)
        assert name == file
        assert [int(index) for index in found[::2]] == indices.tolist()
        assert [float(share) for share in found[1::2]] == pytest.approx((100 * values).tolist(), abs=0.02)


def test_nothing_is_sure(rfcalc, run):
    """Of probabilities that round to 1 the text says less."""
    found = json.loads(rfcalc("predict", "net.py", str(run.folder), *FILES, "--json").out)["images"]
    text = rfcalc("predict", "net.py", str(run.folder), *FILES).out.splitlines()[1:]
    for one, line in zip(found, text, strict=True):
        assert float(LINE.fullmatch(line)[3]) <= 100 * one["guesses"][0]["probability"]


def test_for_machines(rfcalc, run):
    done = rfcalc("predict", "net.py", str(run.folder), *FILES, "--json", "--weights", "raw", "--seed", "2")
    found = json.loads(done.out)
    assert (found["seed"], found["weights"], found["epoch"]) == (2, "raw", 3)
    for one, file, row in zip(found["images"], FILES, wanted(run, "raw", 2), strict=True):
        values, indices = row.topk(3)
        assert (one["file"], one["error"], one["caution"]) == (file, None, None)
        assert [guess["index"] for guess in one["guesses"]] == indices.tolist()
        assert [guess["name"] for guess in one["guesses"]] == [str(index) for index in indices.tolist()]
        assert [guess["probability"] for guess in one["guesses"]] == pytest.approx(values.tolist(), abs=1e-5)


@pytest.mark.parametrize("file", ["weights-1-ema.safetensors", "state-1.pt"])
def test_weights_of_a_run_know_their_normalisation(rfcalc, run, file):
    whole = rfcalc("predict", "net.py", str(run.folder), *FILES)
    assert rfcalc("predict", "net.py", str(run.folder / file), *FILES).out == whole.out


def test_weights_away_from_their_run(rfcalc, run, tmp_path):
    name = "weights-1-ema.safetensors"
    (tmp_path / name).write_bytes((run.folder / name).read_bytes())
    whole = rfcalc("predict", "net.py", str(run.folder), *FILES)
    assert rfcalc("predict", "net.py", str(tmp_path / name), *FILES).out == whole.out


def test_weights_of_unknown_origin_need_a_normalisation(rfcalc, run):
    done = rfcalc("predict", "net.py", "net.pt", *FILES)
    assert (done.code, done.out) == (2, "")
    assert "net.pt: does not tell how its training images were normalised; give --mean and --std" in done.err
    options = ("--mean", str(run.config.mean[0]), "--std", str(run.config.std[0]))
    done = rfcalc("predict", "net.py", "net.pt", *FILES, *options)
    assert done.code == 0
    assert done.out.splitlines()[0].startswith("net.py:Net, net.pt, normalised as given: mean ")
    assert done.out.splitlines()[1:] == rfcalc("predict", "net.py", str(run.folder), *FILES).out.splitlines()[1:]


def test_the_shape_of_the_training_serves_a_design_without_one(rfcalc, run, home):
    (home / "shapeless.py").write_text(NET.replace("INPUT_SHAPE", "SHAPE"))
    done = rfcalc("predict", "shapeless.py", str(run.folder), "0.png")
    assert done.code == 0
    assert "caution: " in done.err  # the file is not the one that was trained


# --- ink on paper --------------------------------------------------------------------------------------------


def test_ink_on_paper_is_told_and_can_be_inverted(rfcalc, run):
    files = [f"paper-{index}.bmp" for index in range(8)]
    done = rfcalc("predict", "net.py", str(run.folder), *files, "--json")
    assert done.code == 0
    assert done.err.count("\n") == 8
    assert all("if it is ink on paper, try --invert" in one["caution"] for one in json.loads(done.out)["images"])
    done = rfcalc("predict", "net.py", str(run.folder), *files, "--invert", "--json")
    assert (done.code, done.err) == (0, "")
    found = [one["guesses"][0]["index"] for one in json.loads(done.out)["images"]]
    assert found == wanted(run).argmax(1).tolist()


def test_an_empty_image_is_told(rfcalc, run):
    done = rfcalc("predict", "net.py", str(run.folder), "empty.png")
    assert done.code == 0
    assert LINE.fullmatch(done.out.splitlines()[1])
    assert done.err == (
        "rfcalc: caution: empty.png: it is of one colour (what is transparent counts as its colour); "
        "expected something on it\n"
    )


# --- what cannot be read -------------------------------------------------------------------------------------


def test_a_broken_image_does_not_hide_the_others(rfcalc, run):
    files = ["0.png", "broken.png", "1.png", "nowhere.png", "words.png", "deep.png", ".", "2.png"]
    done = rfcalc("predict", "net.py", str(run.folder), *files)
    assert done.code == 2
    whole = rfcalc("predict", "net.py", str(run.folder), "0.png", "1.png", "2.png")
    assert done.out == whole.out
    lines = done.err.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["broken.png", "nowhere.png", "words.png", "deep.png", "."]
    assert "pixels of more than 8 bits" in lines[3]


def test_broken_images_for_machines(rfcalc, run):
    done = rfcalc("predict", "net.py", str(run.folder), "0.png", "words.png", "1.png", "--json")
    assert done.code == 2
    good, bad, also = json.loads(done.out)["images"]
    assert (bad["file"], bad["guesses"]) == ("words.png", [])
    assert bad["error"].startswith("words.png: not an image that can be read: ")
    assert (good["file"], also["file"], good["error"]) == ("0.png", "1.png", None)


def test_no_image_at_all(rfcalc, run):
    done = rfcalc("predict", "net.py", str(run.folder), "words.png")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)


BAD = {
    "no image": (["net.py", "RUN"], "Missing argument 'IMAGE"),
    "no weights": (["net.py"], "Missing argument 'WEIGHTS'"),
    "swapped": (["RUN", "net.py", "0.png"], "net.py: not weights; expected a run's folder, a .safetensors file or"),
    "weights that are gone": (["net.py", "nowhere.pt", "0.png"], "nowhere.pt: no such file"),
    "no such design": (["nat.py", "RUN", "0.png"], "nat.py: no such file"),
    "another design": (["wide.py", "RUN", "0.png"], "does not fit wide.py:Net: 0.weight is 8x1x3x3, in the design 9"),
    "no such seed": (["net.py", "RUN", "0.png", "--seed", "7"], "no weights of seed 7; it has weights of seed 1, 2"),
    "no answer": (["flat.py", "flat.pt", "0.png", "--mean", "0", "--std", "1"], "the design's output is (1, 10, 6, 6)"),
    "a shape": (["net.py", "RUN", "0.png", "--input", "1x9x9"], "the design's forward raised RuntimeError"),
    "a kind": (["net.py", "net.pt", "0.png", "--weights", "raw"], "net.pt: no raw weights; it has weights of a kind"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(rfcalc, run, home, name):
    arguments, message = BAD[name]
    (home / "wide.py").write_text(NET.replace("Conv2d(1, 8, 3)", "Conv2d(1, 9, 3)"))
    (home / "flat.py").write_text("from torch import nn\nINPUT_SHAPE = (1, 8, 8)\nmodel = nn.Conv2d(1, 10, 3)\n")
    torch.save(torch.nn.Conv2d(1, 10, 3).state_dict(), home / "flat.pt")
    done = rfcalc("predict", *(str(run.folder) if one == "RUN" else one for one in arguments))
    assert (done.code, done.out) == (2, "")
    assert message in next(line for line in done.err.splitlines() if "caution" not in line)
    assert done.err.startswith("rfcalc: ")
    assert "Traceback" not in done.err
