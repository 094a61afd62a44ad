"""rfcalc export: a file that onnxruntime runs as torch does, or no file."""

import json
import math
import sys

import onnx
import onnxruntime
import pytest
import torch
from runs import NET, digits, trained_run
from safetensors.torch import load_file

from rfcalc.designs.design import load_design
from rfcalc.train import run_folder
from rfcalc.train.data import normalise


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with net.py, a run of it in runs/, and its weights as a state dict."""
    home = tmp_path_factory.mktemp("home")
    run = trained_run(home, seeds=(1, 2))
    torch.save(load_file(run / "weights-1-ema.safetensors"), home / "net.pt")
    return home


@pytest.fixture
def run(home, monkeypatch):
    monkeypatch.chdir(home)
    return run_folder.read(next(home.glob("runs/*/*")))


def test_it_answers_as_the_design_does(rfcalc, run, tmp_path):
    file = tmp_path / "net.onnx"
    done = rfcalc("export", "net.py", str(run.folder), "--output", str(file), "--seed", "2")
    assert (done.code, done.err) == (0, "")
    about, random, real, written = done.out.splitlines()
    assert about.startswith(
        "net.py:Net, seed 2, epoch 3, EMA weights; images: float32 [batch, 1, 8, 8], normalised as in training: mean "
    )
    assert random.startswith("64 random inputs: greatest absolute difference between onnxruntime and torch ")
    assert real.startswith("256 test images of digits: greatest absolute difference between onnxruntime and torch ")
    assert written == f"{file}: written, {file.stat().st_size:,} bytes; tolerance 0.0001"

    model = load_design("net.py").build_real()
    model.load_state_dict(load_file(run.folder / "weights-2-ema.safetensors"))
    data = digits()
    images = normalise(data.test.batch(torch.arange(100))[0], data)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (scores,) = session.run(["scores"], {"images": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(scores), model.eval()(images), atol=1e-4, rtol=0)

    told = {one.key: one.value for one in onnx.load(file).metadata_props}
    config = run.config
    assert (told["design"], told["seed"], told["weights"], told["data"]) == (config.design, "2", "ema", "digits")
    assert json.loads(told["mean"]) == list(config.mean)
    assert json.loads(told["classes"]) == list(config.classes)


def test_for_machines(rfcalc, run, tmp_path):
    file = tmp_path / "net.onnx"
    done = rfcalc("export", "net.py", str(run.folder / "weights-1-raw.safetensors"), "-o", str(file), "--json")
    found = json.loads(done.out)
    assert (found["written"], found["bytes"], found["file"]) == (True, file.stat().st_size, str(file))
    assert (found["seed"], found["weights"], found["input"]) == (1, "raw", ["batch", 1, 8, 8])
    assert [(one["what"], one["images"]) for one in found["checks"]] == [
        ("random inputs", 64), ("test images of digits", 256),
    ]  # fmt: skip
    assert all(0 <= one["difference"] <= 1e-4 for one in found["checks"])


def test_weights_of_unknown_origin(rfcalc, run, tmp_path):
    """There are no images to compare, and no normalisation to tell."""
    done = rfcalc("export", "net.py", "net.pt", "--output", str(tmp_path / "net.onnx"), "--json")
    assert done.code == 0
    found = json.loads(done.out)
    assert [one["what"] for one in found["checks"]] == ["random inputs"]
    assert found["normalised"] is None
    assert "mean" not in {one.key for one in onnx.load(tmp_path / "net.onnx").metadata_props}


def test_signals_too(rfcalc, write_design, tmp_path):
    write_design("from torch import nn\nINPUT_SHAPE = (2, 30)\nmodel = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU())")
    torch.save(load_design("net.py").build_real().state_dict(), "net.pt")
    done = rfcalc("export", "net.py", "net.pt", "--output", "net.onnx")
    assert done.code == 0
    assert "float32 [batch, 2, 30]" in done.out


def test_data_that_are_gone_are_told_of(rfcalc, run, tmp_path):
    for file in run.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"data": "folder:/nowhere"}))
    done = rfcalc("export", "net.py", str(tmp_path), "--output", str(tmp_path / "net.onnx"))
    assert done.code == 0
    assert done.err.startswith("rfcalc: caution: not compared on test images: folder:/nowhere: no folder")
    assert "test images" not in done.out


@pytest.mark.parametrize(("found", "shown"), [(0.25, 0.25), (math.inf, None)])
def test_an_answer_that_differs_writes_nothing(rfcalc, run, tmp_path, monkeypatch, found, shown):
    monkeypatch.setattr("rfcalc.train.export.exported", lambda *_: b"a model")
    monkeypatch.setattr("rfcalc.train.export.difference", lambda *_: found)
    file = tmp_path / "net.onnx"
    file.write_text("what was there")
    done = rfcalc("export", "net.py", "net.pt", "--output", str(file))
    assert (done.code, done.err) == (1, "")
    assert f"torch {found}" in done.out
    assert done.out.endswith(f"{file}: not written: more than the tolerance of 0.0001\n")
    found_json = json.loads(rfcalc("export", "net.py", "net.pt", "--output", str(file), "--json").out)
    assert (found_json["written"], found_json["checks"][0]["difference"]) == (False, shown)
    assert file.read_text() == "what was there"
    assert rfcalc("export", "net.py", "net.pt", "--output", str(file), "--tolerance", "0.3").code == (shown is None)


def test_a_difference_that_is_real(rfcalc, run, home, tmp_path):
    """A forward whose dropout never stops answers otherwise each time."""
    restless = NET + (
        "    def forward(self, x):\n"
        "        import torch\n"
        "        return torch.nn.functional.dropout(super().forward(x))\n"
    )
    (home / "restless.py").write_text(restless)
    done = rfcalc("export", "restless.py", "net.pt", "--output", str(tmp_path / "net.onnx"))
    assert done.code == 1
    assert not (tmp_path / "net.onnx").exists()


BAD = {
    "no output": (["net.py", "net.pt"], "Missing option '--output'"),
    "no weights": (["net.py"], "Missing argument 'WEIGHTS'"),
    "weights that are gone": (["net.py", "no.pt", "-o", "OUT"], "no.pt: no such file"),
    "another design": (["wide.py", "net.pt", "-o", "OUT"], "net.pt: does not fit wide.py:Net: 0.weight is 8x1x3x3, in"),
    "a fixed number": (["fixed.py", "net.pt", "-o", "OUT"], "for exactly 2 inputs at once: its forward fixes"),
    "two inputs": (["net.py", "net.pt", "-o", "OUT", "--input", "1x8x8,3"], "expected that of one input, as in"),
    "a wrong shape": (["net.py", "net.pt", "-o", "OUT", "--input", "1x9x9"], "the design's forward raised Runtime"),
    "no shape": (["shapeless.py", "net.pt", "-o", "OUT"], "shapeless.py:Net: its input shape is not known"),
    "no tolerance": (["net.py", "net.pt", "-o", "OUT", "--tolerance", "-1"], "--tolerance -1.0: expected a number"),
    "nan": (["net.py", "net.pt", "-o", "OUT", "--tolerance", "nan"], "--tolerance nan: expected a number, 0 or more"),
    "a folder": (["net.py", "net.pt", "-o", "."], ".: a folder; expected a file to write to"),
    "no folder": (["net.py", "net.pt", "-o", "no/net.onnx"], "no/net.onnx: cannot be written: No such file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(rfcalc, run, home, tmp_path, name):
    arguments, message = BAD[name]
    (home / "wide.py").write_text(NET.replace("Conv2d(1, 8, 3)", "Conv2d(1, 9, 3)"))
    (home / "shapeless.py").write_text(NET.replace("INPUT_SHAPE", "SHAPE"))
    (home / "fixed.py").write_text(
        NET + "    def forward(self, x):\n        return super().forward(x).reshape(2, 10)\n"
    )
    file = tmp_path / "net.onnx"
    file.write_text("what was there")
    before = sorted(home.iterdir())
    done = rfcalc("export", *(str(file) if one == "OUT" else one for one in arguments))
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.startswith("rfcalc: ")
    assert done.err.count("\n") == 1
    assert file.read_text() == "what was there"
    assert sorted(home.iterdir()) == before


@pytest.mark.parametrize("library", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_library_is_told(rfcalc, run, tmp_path, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    if library == "onnxruntime":
        monkeypatch.setattr("rfcalc.train.export.exported", lambda *_: b"")
    done = rfcalc("export", "net.py", "net.pt", "--output", str(tmp_path / "net.onnx"))
    assert (done.code, done.out) == (2, "")
    assert done.err == f"rfcalc: {library} is not installed; get it by pip install 'rfcalc-torch[export]'\n"
    assert not (tmp_path / "net.onnx").exists()
