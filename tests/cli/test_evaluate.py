"""rfcalc evaluate: every seed of a run, files of all kinds, other data, and what cannot be evaluated."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from runs import NET, trained_run
from safetensors.torch import load_file, save_file

from rfcalc.train import run_folder

ROOT = Path(__file__).resolve().parents[2]
OTHER = NET.replace("nn.ReLU()", "nn.GELU()")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with net.py, a run of it in runs/, and its weights as a state dict; not to be written to."""
    home = tmp_path_factory.mktemp("home")
    run = trained_run(home, seeds=(1, 2))
    torch.save(load_file(run / "weights-1-raw.safetensors"), home / "net.pt")
    return home


@pytest.fixture
def run(home, monkeypatch):
    monkeypatch.chdir(home)
    return run_folder.read(next(home.glob("runs/*/*")))


def test_every_seed_raw_and_averaged(rfcalc, run):
    done = rfcalc("evaluate", str(run.folder))
    assert (done.code, done.err) == (0, "")
    first, *lines = done.out.splitlines()
    mean, std = run.config.mean[0], run.config.std[0]
    assert first == (
        f"{run.config.design} on the 360 test images of digits, normalised as in training: "
        f"mean {mean:.4g}, std {std:.4g}"
    )
    expected = []
    for seed, epochs in run.epochs.items():
        e = epochs[-1]
        for kind, name, loss, correct in (
            ("raw", "", e.test_loss, e.test_correct), ("EMA", " (EMA)", e.ema_loss, e.ema_correct),
        ):  # fmt: skip
            share = f"{10_000 * correct // 360 / 100:.2f}"
            expected += [
                f"seed {seed}, epoch 3, {kind} weights:",
                f"Test set{name}: Average loss: {loss:.4f}, Accuracy: {correct}/360 ({share}%)",
            ]
    assert [line for line in lines if not line.startswith("Of all such images ")] == expected
    intervals = [
        re.fullmatch(r"Of all such images ([\d.]+) % to ([\d.]+) % at 95 % confidence", x) for x in lines[2::3]
    ]
    assert len(intervals) == 4
    assert all(intervals)


def test_for_machines(rfcalc, run):
    found = json.loads(rfcalc("evaluate", str(run.folder), "--weights", "ema", "--seed", "2", "--json").out)
    (score,) = found["scores"]
    epoch = run.epochs[2][-1]
    assert (score["seed"], score["weights"], score["epoch"]) == (2, "ema", 3)
    assert score["correct"] == score["recorded"] == epoch.ema_correct
    assert score["loss"] == pytest.approx(epoch.ema_loss, rel=1e-5)
    assert score["interval"]["low"] < score["correct"] / 360 < score["interval"]["high"]
    assert found["normalised"] == {
        "mean": list(run.config.mean),
        "std": list(run.config.std),
        "origin": "as in training",
    }
    assert found["dataset"] == "digits"


@pytest.mark.parametrize(("weights", "kinds"), [("raw", ["raw"]), ("ema", ["ema"]), ("both", ["raw", "ema"])])
def test_one_kind_or_both(rfcalc, run, weights, kinds):
    done = rfcalc("evaluate", str(run.folder), "--weights", weights, "--seed", "1", "--json")
    assert [score["weights"] for score in json.loads(done.out)["scores"]] == kinds


@pytest.mark.parametrize("file", ["weights-2-ema.safetensors", "state-2.pt"])
def test_a_file_of_a_run(rfcalc, run, file):
    """The data, their normalisation and the seed are known from it, or from the run it lies in."""
    done = rfcalc("evaluate", str(run.folder / file), "net.py", "--json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["dataset"] == "digits"
    score = json.loads(done.out)["scores"][-1]
    assert (score["seed"], score["weights"], score["correct"]) == (2, "ema", run.epochs[2][-1].ema_correct)


def test_a_state_dict_of_unknown_origin(rfcalc, run):
    done = rfcalc("evaluate", "net.pt", "net.py", "--dataset", "digits")
    assert done.code == 0
    assert "normalised by the training images of digits: mean" in done.out
    assert "\nnet.pt:\nTest set: Average loss: " in done.out
    assert f"Accuracy: {run.epochs[1][-1].test_correct}/360" in done.out


def test_another_normalisation(rfcalc, run):
    options = ("--dataset", "digits", "--mean", "0.9", "--std", "0.01")
    done = rfcalc("evaluate", "net.pt", "net.py", *options)
    assert "normalised as given: mean 0.9, std 0.01" in done.out
    assert f"Accuracy: {run.epochs[1][-1].test_correct}/360" not in done.out
    found = json.loads(rfcalc("evaluate", str(run.folder), *options[2:], "--json").out)
    assert {score["recorded"] for score in found["scores"]} == {None}  # it was trained with another


def test_another_count_than_in_training_is_told(rfcalc, run, tmp_path):
    for file in run.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    lines[-1]["test_correct"] = 17
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    done = rfcalc("evaluate", str(tmp_path), "--seed", "2", "--weights", "raw")
    right = run.epochs[2][-1].test_correct
    assert (
        f"; in training 17 were right, here {right}: another device or number of threads rounds otherwise" in done.out
    )


def test_own_images_in_folders(rfcalc, run, tmp_path):
    from PIL import Image
    from runs import digits

    data = digits()
    for part in ("train", "test"):
        for index in range(40):
            folder = tmp_path / part / str(int(data.test.labels[index]))
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(data.test.images[index, 0].numpy()).save(folder / f"{index}.png")
    done = rfcalc("evaluate", str(run.folder), "--dataset", f"folder:{tmp_path}", "--seed", "1", "--json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert found["normalised"]["origin"] == "as in training"
    assert found["scores"][0]["total"] == 40
    assert found["scores"][0]["correct"] >= 34
    (tmp_path / "test" / "0").rename(tmp_path / "test" / "zero")
    (tmp_path / "train" / "0").rename(tmp_path / "train" / "zero")
    done = rfcalc("evaluate", str(run.folder), "--dataset", f"folder:{tmp_path}")
    assert done.code == 0
    assert "caution: " in done.err
    assert "trained to tell 0, 1, 2, 3 ... (10) apart; the classes of folder:" in done.err


def test_a_design_that_is_not_as_it_was_trained(rfcalc, run, tmp_path):
    """Of a run it is refused, for its figures would be taken for the run's; beside a file it was asked for."""
    (tmp_path / "other.py").write_text(OTHER)
    done = rfcalc("evaluate", str(run.folder), str(tmp_path / "other.py"))
    assert (done.code, done.out) == (2, "")
    assert "whose source or layers are not those of" in done.err
    done = rfcalc("evaluate", str(run.folder / "weights-1-ema.safetensors"), str(tmp_path / "other.py"))
    assert done.code == 0
    assert (
        f"caution: {run.folder}/weights-1-ema.safetensors: of {run.config.design}, whose source or layers" in done.err
    )
    assert done.err.count("\n") == 1


def test_a_design_that_moved(rfcalc, run, tmp_path):
    (tmp_path / "moved.py").write_text(NET)
    done = rfcalc("evaluate", str(run.folder), str(tmp_path / "moved.py"))
    assert (done.code, done.err) == (0, "")


def test_what_the_design_prints_is_not_among_the_answers(rfcalc, run, tmp_path):
    (tmp_path / "loud.py").write_text(
        NET
        + "        print('built')\n    def forward(self, x):\n        print('run')\n        return super().forward(x)\n"
    )
    done = rfcalc("evaluate", "net.pt", str(tmp_path / "loud.py"), "--dataset", "digits", "--json")
    assert json.loads(done.out)["scores"]
    assert "built" in done.err
    assert "run" in done.err


BAD = {
    "nothing there": (["nowhere"], "nowhere: no such file; expected weights or a run's folder"),
    "no run": (["."], ".: no config.json in it"),
    "a design first": (["net.py", "net.pt"], "net.py: not weights; expected a run's folder, a .safetensors file or"),
    "weights alone": (["net.pt"], "net.pt: weights alone; expected their design after them, as in models/step8.py"),
    "no such design": (["net.pt", "nat.py"], "nat.py: no such file"),
    "another design": (
        ["net.pt", "wide.py"],
        "net.pt: does not fit wide.py:Net: 0.weight is 8x1x3x3, in the design 9x",
    ),
    "another shape": (
        ["net.pt", "net.py", "--dataset", "mnist"],
        "mnist: the images are 1x28x28, the design takes 1x8x8",
    ),
    "unknown data": (["net.pt", "net.py", "--dataset", "mnits"], "data set 'mnits': unknown"),
    "no such folder": (["net.pt", "net.py", "--dataset", "folder:no"], "folder:no: no folder no/train; expected"),
    "no such seed": (["RUN", "--seed", "9"], ": no weights of seed 9; it has weights of seed 1, 2"),
    "a seed of a file": (["net.pt", "net.py", "--seed", "1"], "net.pt: no weights of seed 1; it has weights of a seed"),
    "a kind of a file": (["net.pt", "net.py", "--weights", "ema"], "net.pt: no ema weights; it has weights of a kind"),
    "unknown kind": (["RUN", "--weights", "best"], "--weights"),
    "half a normalisation": (["RUN", "--mean", "0.1"], "one of --mean and --std; expected both"),
    "words": (["RUN", "--mean", "a", "--std", "1"], "--mean 'a': expected numbers joined by commas, one per channel"),
    "not a number": (["RUN", "--mean", "nan", "--std", "1"], "--mean 'nan': expected numbers joined by commas"),
    "of nothing": (["RUN", "--mean", "", "--std", "1"], "--mean '': expected numbers joined by commas"),
    "of three channels": (
        ["RUN", "--mean", "0,0,0", "--std", "1,1,1"],
        "mean as given: 3 numbers; expected 1, one per",
    ),
    "divided by nothing": (["RUN", "--mean", "0", "--std", "0"], "std as given: 0; expected numbers above 0"),
    "no CUDA": (["RUN", "--device", "cuda"], "device 'cuda': torch "),
    "no weights": ([], "Missing argument"),
    "a shape": (["net.pt", "net.py", "--dataset", "digits", "--input", "1x9x9"], "the design's forward raised"),
    "two inputs": (["net.pt", "net.py", "--input", "1x8x8,3"], "expected that of one image, as in (1, 28, 28)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(rfcalc, run, home, name):
    arguments, message = BAD[name]
    if name == "no CUDA" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    (home / "wide.py").write_text(NET.replace("Conv2d(1, 8, 3)", "Conv2d(1, 9, 3)"))
    done = rfcalc("evaluate", *(str(run.folder) if one == "RUN" else one for one in arguments))
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.startswith("rfcalc: ")
    assert done.err.count("\n") == 1


def test_weights_that_overflow(rfcalc, run, tmp_path):
    tensors = {name: one.clone() for name, one in load_file(run.folder / "weights-1-raw.safetensors").items()}
    for name in ("0.weight", "5.weight"):
        tensors[name] *= 1 / tensors[name].abs().max()
        tensors[name] *= 1e38
    save_file(tensors, tmp_path / "net.safetensors")
    done = rfcalc("evaluate", str(tmp_path / "net.safetensors"), "net.py", "--dataset", "digits")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "net.safetensors: the test loss is nan; expected a finite one" in done.err


def test_real_mnist(rfcalc, tmp_path, monkeypatch):
    """The state dict of an untrained step 8 is right about one time in ten."""
    folder = Path(os.environ.get("RFCALC_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "MNIST").is_dir():
        pytest.skip("no MNIST: name its folder by RFCALC_DATA")
    from rfcalc.designs.design import load_design

    monkeypatch.chdir(tmp_path)
    design = load_design(str(ROOT / "models" / "step8.py"))
    torch.manual_seed(1)
    torch.save(design.build_real().state_dict(), "step8.pt")
    done = rfcalc("evaluate", "step8.pt", design.name, "--data-dir", str(folder))
    assert done.code == 0
    assert "normalised by the training images of mnist: mean 0.1307, std 0.3081" in done.out
    correct = int(re.search(r"Accuracy: (\d+)/10000", done.out)[1])
    assert 200 < correct < 3_000
