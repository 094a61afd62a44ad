"""rfcalc train and rfcalc report: a training from end to end, stopping and going on, and what cannot be done."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tqdm import tqdm

from rfcalc.designs.design import load_design
from rfcalc.train import record, run_folder
from rfcalc.train.data import load
from rfcalc.train.evaluation import evaluate

ROOT = Path(__file__).resolve().parents[2]
NET = """
    from torch import nn

    INPUT_SHAPE = (1, 8, 8)
    RECIPE = {"optimizer": {"name": "SGD", "lr": 0.05, "momentum": 0.7}, "epochs": 2, "batch_size": 64, "seed": 7,
              "scheduler": {"name": "OneCycleLR", "max_lr": 0.1}}

    class Net(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Dropout(0.1), nn.Flatten(),
                             nn.Linear(144, 10))
"""
SHORT = ("--dataset", "digits", "--epochs", "4", "--batch-size", "32", "--last", "2", "--target", "50")


@pytest.fixture
def unreported(monkeypatch):
    """Without the report, which takes longer than such a training."""
    monkeypatch.setattr("rfcalc_cli.train.write_report", lambda run, *_: run.folder / "report.md")


def only_run(folder="runs"):
    (config,) = Path(folder).glob("*/*/config.json")
    return run_folder.read(config.parent)


def figures(run):
    timed = {"seconds": 0, "images_per_second": 0}
    return {seed: [dataclasses.replace(epoch, **timed) for epoch in epochs] for seed, epochs in run.epochs.items()}


# --- from end to end -----------------------------------------------------------------------------------------


def test_digits_are_learnt_judged_and_reported(rfcalc, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = rfcalc(
        "train", str(ROOT / "models" / "compact.py"), "--dataset", "digits", "--batch-size", "32", "--epochs", "7",
        "--last", "2", "--target", "95", "--max-params", "5000", "--seed", "3",
    )  # fmt: skip
    assert done.code == 0, done
    assert done.err == ""
    run = only_run()
    last = run.epochs[3][-1]
    assert last.ema_correct > 0.95 * 360
    assert run.config.params < 4_100
    lines = done.out.splitlines()
    about = f"{run.config.params:,} parameters, digits, recipe ours, 7 epochs of batch 32, seeds 3, cpu"
    assert lines[0] == f"{ROOT}/models/compact.py:Net: {about}"
    assert lines[1] == str(run.folder)
    assert sum(line.startswith("Test set: Average loss: ") for line in lines) == 7
    share = f"{10_000 * last.ema_correct // 360 / 100:.2f}"
    assert f"Test set (EMA): Average loss: {last.ema_loss:.4f}, Accuracy: {last.ema_correct}/360 ({share}%)" in lines
    assert any(
        line.startswith("HOLD        verified        1 of 1 seed at 95 % or more in each of the ") for line in lines
    )
    assert lines[-2:] == ["VERIFIED: HOLD decides, by EMA weights", str(run.folder / "report.md")]

    assert {file.name for file in run.folder.iterdir()} - {".lock"} == {
        "config.json", "metrics.jsonl", "state-3.pt", "weights-3-raw.safetensors", "weights-3-ema.safetensors",
        "report.md", "curves.png", "rates.png", "augmented.png", "misclassified.png", "confusion.png",
    }  # fmt: skip
    design = load_design(str(ROOT / "models" / "compact.py"))
    model = design.build_real()
    model.load_state_dict(load_file(run.folder / "weights-3-ema.safetensors"))
    digits = load("digits", input_shape=(1, 28, 28))
    assert evaluate(model, digits.test, digits)[1] == last.ema_correct

    report = (run.folder / "report.md").read_text()
    assert f"{360 - last.ema_correct} test image" in report
    assert "Counted again" not in report
    for file in run.folder.glob("*.png"):
        file.unlink()
    (run.folder / "report.md").unlink()
    again = rfcalc("report", str(run.folder))
    assert again.code == 0
    assert again.out.splitlines()[-1] == str(run.folder / "report.md")
    assert "VERIFIED: HOLD decides, by EMA weights" in again.out
    assert (run.folder / "report.md").read_text() == report
    assert len(list(run.folder.glob("*.png"))) == 5


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ((), 0),
        (("--target", "99.9"), 1),
        (("--max-params", "100"), 1),
        (("--max-epochs", "3"), 1),
        (("--require", "seeds"), 1),
        (("--require", "population"), 0),
        (("--require", "population", "--target", "92.5"), 1),
        (("--weights", "raw"), 0),
    ],
)
def test_exit_codes(rfcalc, write_design, unreported, options, code):
    done = rfcalc("train", write_design(NET), *SHORT, *options, "--quiet")
    assert done.code == code, done
    assert ("\nVERIFIED: " if code == 0 else "\nNOT VERIFIED: ") in done.out


def test_more_epochs_than_allowed_are_a_failure_and_no_error(rfcalc, write_design, unreported):
    done = rfcalc("train", write_design(NET), "--dataset", "digits", "--epochs", "16", "--target", "10", "--quiet")
    assert (done.code, done.err) == (1, "")
    assert "16 epochs of at most 15, 1 too many" in " ".join(done.out.split())


def test_quiet(rfcalc, write_design, unreported):
    lines = rfcalc("train", write_design(NET), *SHORT, "--quiet").out.splitlines()
    assert lines[0].startswith("HOLD ")
    assert "Test set" not in "".join(lines)


def test_lines_for_machines_and_nothing_else(rfcalc, write_design, unreported):
    """The design prints; two seeds have processes of their own."""
    loud = NET + "        def forward(self, x):\n            print('noise')\n            return super().forward(x)\n"
    done = rfcalc("train", write_design(loud), *SHORT, "--seeds", "2", "--json")
    begin, *epochs, verdict = map(json.loads, done.out.splitlines())
    run = only_run()
    assert begin == {"event": "begin", "run": str(run.folder), "epochs_done": 0}
    assert sorted((one["seed"], one["epoch"]) for one in epochs) == [
        (seed, epoch) for seed in (1, 2) for epoch in range(1, 5)
    ]
    assert epochs[-1] == {"event": "epoch", **dataclasses.asdict(run.epochs[epochs[-1]["seed"]][-1])}
    assert (verdict["event"], verdict["verified"], verdict["run"]) == ("verdict", True, str(run.folder))
    assert "noise" in done.err


@pytest.mark.parametrize(("jobs", "others"), [("1", 0), ("2", 2)])
def test_jobs(rfcalc, write_design, unreported, jobs, others):
    # In one piece: two processes write to the same place.
    forward = "            os.write(2, f'{os.getpid()}\\n'.encode())\n            return super().forward(x)\n"
    design = write_design(f"    import os\n{NET}        def forward(self, x):\n{forward}")
    done = rfcalc("train", design, *SHORT, "--seeds", "2", "--jobs", jobs, "--quiet")
    # This process tries the design before it begins, and with two jobs trains none itself.
    assert len(set(done.err.split()) - {str(os.getpid())}) == others
    assert [seed.seed for seed in only_run().verdict().judged[0].seeds] == [1, 2]


def test_the_reference_recipe(rfcalc, write_design, unreported):
    done = rfcalc("train", write_design(NET), "--dataset", "digits", "--recipe", "reference", "--last", "2")
    run = only_run()
    assert run.config.seeds == (7,)
    assert (run.config.recipe.name, run.config.recipe.epochs, run.config.claim.weights) == ("reference", 2, "raw")
    assert "momentum 0.95 -> 0.85 -> 0.95\n" in done.out or "momentum 0.95 -> 0.85" in done.out  # not the 0.7 it says
    assert "EMA" not in done.out


def test_fast(rfcalc, write_design, unreported):
    rfcalc("train", write_design(NET), "--dataset", "digits", "--fast", "--seed", "0")
    assert (only_run().config.recipe.name, only_run().config.recipe.epochs, only_run().config.seeds) == (
        "fast",
        8,
        (0,),
    )


def test_bars(rfcalc, write_design, unreported, monkeypatch):
    class Eager(tqdm):
        """Draws however soon after it has drawn."""

        def __init__(self, **options):
            super().__init__(**options, mininterval=0)

    monkeypatch.setattr("tqdm.tqdm", Eager)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    done = rfcalc("train", write_design(NET), *SHORT)
    drawn = [line for line in done.err.replace("\n", "\r").split("\r") if "images/s" in line]
    assert all(line.startswith("seed 1 epoch ") for line in drawn)
    begun = [line for line in drawn if "| 0/1437 " in line]
    assert [line[:14] for line in begun] == [f"seed 1 epoch {epoch}" for epoch in range(1, 5)]
    assert "loss=" not in "".join(begun)
    assert "images/s, loss=" in drawn[-1]
    assert "images/s" not in rfcalc("train", write_design(NET), *SHORT, "--json").err


# --- stopped, and going on -----------------------------------------------------------------------------------


def stop_at(monkeypatch, number, error):
    """Let keeping the epoch of that number raise."""
    add, count = record.Recorder.add, iter(range(1, 99))

    def stopping(self, epoch, state):
        if next(count) == number:
            raise error
        add(self, epoch, state)

    monkeypatch.setattr(record.Recorder, "add", stopping)


def test_ctrl_c_and_going_on(rfcalc, write_design, unreported, monkeypatch):
    net = write_design(NET)
    rfcalc("train", net, *SHORT, "--out", "through")
    with monkeypatch.context() as patched:
        stop_at(patched, 3, KeyboardInterrupt())
        stopped = rfcalc("train", net, *SHORT)
    run = only_run()
    assert (stopped.code, stopped.err) == (130, f"rfcalc: stopped; go on with: rfcalc train --resume {run.folder}\n")
    assert len(run.epochs[1]) == 2
    assert run_folder.read_weights(run_folder.weights_file(run.folder, 1, "ema"))[1]["epoch"] == "2"
    done = rfcalc("train", "--resume", str(run.folder))
    assert done.code == 0
    assert "going on after 2 epochs" in done.out
    assert figures(only_run()) == figures(only_run("through"))
    assert run_folder.read_weights(run_folder.weights_file(run.folder, 1, "ema"))[1]["epoch"] == "4"


def test_a_finished_run_is_only_judged_again(rfcalc, write_design, unreported):
    net = write_design(NET)
    rfcalc("train", net, *SHORT)
    before = figures(only_run())
    done = rfcalc("train", net, *SHORT, "--resume", str(only_run().folder), "--quiet")
    assert (done.code, figures(only_run())) == (0, before)


def test_killed_and_going_on(rfcalc, write_design, unreported):
    net = write_design(NET)
    rfcalc("train", net, *SHORT, "--out", "through")
    command = [sys.executable, "-m", "rfcalc_cli.main", "train", net, *SHORT, "--json"]
    command[1:3] = ["-c", "import sys; from rfcalc_cli.main import run; sys.exit(run(sys.argv[1:]))"]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | threads) as process:
        events = [json.loads(process.stdout.readline())["event"] for _ in range(2)]
        process.send_signal(signal.SIGKILL)
    assert events == ["begin", "epoch"]
    run = only_run()
    assert rfcalc("train", "--resume", str(run.folder)).code == 0
    assert figures(only_run()) == figures(only_run("through"))


def test_a_full_disk(rfcalc, write_design, unreported, monkeypatch):
    net = write_design(NET)
    rfcalc("train", net, *SHORT, "--out", "through")
    with monkeypatch.context() as patched:
        stop = iter([None] * 5 + [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))] * 99)

        def full(_descriptor):
            if error := next(stop):
                raise error

        patched.setattr(os, "fsync", full)
        done = rfcalc("train", net, *SHORT)
    run = only_run()
    assert done.code == 2
    assert done.err == (
        f"rfcalc: {run.folder / 'metrics.jsonl'}: cannot be written: No space left on device; what was there before is "
        f"kept; go on with: rfcalc train --resume {run.folder}\n"
    )
    assert rfcalc("train", "--resume", str(run.folder)).code == 0
    assert figures(only_run()) == figures(only_run("through"))


def test_a_loss_that_is_not_finite(rfcalc, write_design, unreported):
    breaking = NET + (
        "            self.count = 0\n"
        "        def forward(self, x):\n"
        "            self.count += self.training\n"
        "            return super().forward(x) * (float('nan') if self.training and self.count == 50 else 1)\n"
    )
    done = rfcalc("train", write_design(breaking), *SHORT)
    run = only_run()
    assert done.code == 1
    assert "seed 1: the loss is nan in epoch 2 at step 5 of 45" in done.err
    assert done.err.endswith(f"; {run.folder} keeps the state before that epoch\n")
    assert done.err.count("\n") == 1
    state = run_folder.read_state(run.folder, 1)
    assert state.epoch == len(run.epochs[1]) == 1
    assert all(tensor.isfinite().all() for tensor in load_file(run_folder.weights_file(run.folder, 1, "ema")).values())


def test_machines_are_told_that_a_run_has_stopped(rfcalc, write_design, unreported):
    done = rfcalc("train", write_design(f"{NET}        def forward(self, x):\n            return x.log().sum() * "
                                        "super().forward(x)\n"), *SHORT, "--json")  # fmt: skip
    assert done.code == 1
    last = json.loads(done.out.splitlines()[-1])
    assert (last["event"], last["run"]) == ("stopped", str(only_run().folder))
    assert "the loss is" in last["reason"]


def test_a_folder_of_images_by_another_of_its_names(rfcalc, write_design, unreported, tmp_path):
    for part in ("train", "test"):
        for label, grey in (("dark", 0), ("light", 200)):
            for number in range(20):
                file = tmp_path / "pictures" / part / label / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                image = Image.new("L", (8, 8), 255)
                image.paste(grey, (2, 2, 6, 6))
                image.putpixel((3, 3), number)
                image.save(file)
    net = write_design(NET.replace("10", "2"))
    options = ("--epochs", "1", "--last", "1", "--target", "1", "--batch-size", "8", "--quiet")
    assert rfcalc("train", net, "--dataset", "folder:pictures", *options).code == 0
    run = only_run()
    assert run.config.data == f"folder:{tmp_path / 'pictures'}"
    assert [stage.fill for stage in run.config.recipe.augmentation] == [255.0]  # what they lie on
    resumed = rfcalc("train", "--resume", str(run.folder), "--dataset", "folder:./pictures", "--quiet")
    assert resumed.code == 0


def test_a_loss_that_is_never_finite(rfcalc, write_design, unreported):
    breaking = NET + "        def forward(self, x):\n            return super().forward(x) * float('nan')\n"
    done = rfcalc("train", write_design(breaking), *SHORT)
    assert done.code == 1
    assert done.err.endswith(f"; {only_run().folder} keeps no state: there was no epoch before\n")


def test_a_design_that_raises_in_training(rfcalc, write_design, unreported):
    breaking = NET + "        def forward(self, x):\n            return super().forward(x[:, :, self.training:])\n"
    done = rfcalc("train", write_design(breaking), *SHORT)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.startswith("rfcalc: seed 1: training the design raised RuntimeError: ")


def test_the_threads_that_train_are_recorded(rfcalc, write_design, unreported):
    torch.set_num_threads(2)
    rfcalc("train", write_design(NET), *SHORT)
    run = only_run()
    assert run.config.environment["threads"] == run_folder.read_state(run.folder, 1).threads == 1


# --- what cannot be done -------------------------------------------------------------------------------------

OTHER = NET.replace("nn.ReLU()", "nn.GELU()")
BEFORE = {
    "no target": (NET, ["train"], "no TARGET; expected a design to train, or --resume RUN"),
    "no design": ("x = 1", ["train", "net.py"], "net.py: no design"),
    "data without a name": (NET, ["train", "net.py", "--dataset", ""], "data set '': unknown"),
    "too great a seed": (NET, ["train", "net.py", "--seed", "99999999999999999999"], "--seed"),
    "no seed": (
        NET.replace('"seed": 7', '"seed": "x"'), ["train", "net.py", "--recipe", "reference", "--last", "1"],
        "net.py:Net: RECIPE: seed is 'x'; expected a whole number from 0 to 4294967295",
    ),
    "nothing to train": (
        NET.replace("nn.Linear(144, 10))", "nn.Linear(144, 10))\n            self.requires_grad_(False)"),
        ["train", "net.py", "--dataset", "digits"], "digits: the design has no parameter to train",
    ),
    "unknown data": (NET, ["train", "net.py", "--dataset", "mnits"], "data set 'mnits': unknown"),
    "data of another shape": (NET, ["train", "net.py", "--dataset", "mnist"], "mnist: the images are 1x28x28"),
    "no shape": (NET.replace("INPUT_SHAPE", "SHAPE"), ["train", "net.py"], "net.py:Net: its input shape is not"),
    "two inputs": (NET, ["train", "net.py", "--input", "1x8x8,3"], "expected that of one image, as in (1, 28, 28)"),
    "tokens": (NET, ["train", "net.py", "--input", "8x8"], "the input shape is (8, 8); expected that of one image"),
    "a wrong shape": (
        NET, ["train", "net.py", "--input", "1x9x9", "--dataset", "digits"], "digits: the design's forward raised",
    ),
    "too few classes": (
        NET.replace("144, 10", "144, 7"), ["train", "net.py", "--dataset", "digits"], "output is (2, 7) for images",
    ),
    "more last epochs than epochs": (
        NET, ["train", "net.py", "--epochs", "3"], "--last 5: the recipe has 3 epochs; expected no more than these",
    ),
    "no average to decide": (
        NET, ["train", "net.py", "--recipe", "reference", "--last", "1", "--weights", "ema"],
        "--weights ema: the recipe 'reference' keeps no averaged weights; expected --weights raw",
    ),
    "no reference": (
        NET.replace("RECIPE", "OTHER"), ["train", "net.py", "--recipe", "reference"], "net.py:Net: has no RECIPE",
    ),
    "a broken reference": (
        NET.replace('"epochs"', '"epoch"'), ["train", "net.py", "--recipe", "reference"],
        "RECIPE: it: unknown key 'epoch'",
    ),
    "two recipes": (NET, ["train", "net.py", "--fast", "--recipe", "ours"], "--fast and --recipe ours exclude"),
    "no CUDA": (NET, ["train", "net.py", "--device", "cuda"], "device 'cuda': torch "),
    "a batch of all": (
        NET, ["train", "net.py", "--dataset", "digits", "--batch-size", "5000"], "batch_size is 5,000; digits has",
    ),
    "no such target": (NET, ["train", "net.py", "--target", "101"], "target 101.0: expected percent"),
    "no epochs": (NET, ["train", "net.py", "--epochs", "0"], "--epochs"),
    "unknown recipe": (NET, ["train", "net.py", "--recipe", "best"], "--recipe"),
    "a file to write to": (
        NET, ["train", "net.py", "--dataset", "digits", "--out", "net.py"], "net.py/net-Net: cannot be written",
    ),
    "no run": (NET, ["train", "--resume", "nowhere"], "nowhere: no such folder; expected a run's folder"),
    "a run that is none": (NET, ["report", "."], ".: no config.json in it; expected a run's folder"),
}  # fmt: skip


@pytest.mark.parametrize("name", BEFORE)
def test_errors_before_any_training(rfcalc, write_design, name):
    source, arguments, message = BEFORE[name]
    if name == "no CUDA" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    write_design(source)
    done = rfcalc(*arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not Path("runs").exists()


def test_a_missing_library_is_told_at_once(rfcalc, write_design, monkeypatch):
    monkeypatch.setattr("rfcalc_cli.train._NEEDED", ("scipy", "nothing_of_the_kind"))
    done = rfcalc("train", write_design(NET))
    assert (done.code, done.err) == (
        2,
        "rfcalc: nothing_of_the_kind is not installed; get it by pip install 'rfcalc-torch[train]'\n",
    )


@pytest.fixture
def begun(rfcalc, write_design, unreported):
    """The folder of a run of net.py."""
    rfcalc("train", write_design(NET), *SHORT)
    return only_run().folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--epochs", "5"), "begun with epochs 4; leave out --epochs 5, or start a new run"),
        (("--seeds", "2"), "begun with seeds 1; leave out --seeds 2"),
        (("--seed", "0"), "begun with seed 1; leave out --seed 0"),
        (("--batch-size", "64"), "begun with batch-size 32; leave out --batch-size 64"),
        (("--fast",), "begun with recipe ours; leave out --recipe fast"),
        (("--dataset", "mnist"), "begun with dataset digits; leave out --dataset mnist"),
        (("--target", "51"), "begun with target 50.0; leave out --target 51.0"),
        (("--amp",), "begun with amp False; leave out --amp True"),
        (("--input", "1x9x9"), "begun with input 1x8x8; leave out --input 1x9x9"),
        (("--out", "elsewhere"), "begun with out runs; leave out --out elsewhere"),
    ],
)
def test_what_contradicts_the_run(rfcalc, begun, options, message):
    done = rfcalc("train", "--resume", str(begun), *options)
    assert done.code == 2
    assert message in done.err
    assert rfcalc("train", "--resume", str(begun), "--quiet").code == 0  # and it is not left locked


@pytest.mark.parametrize("command", [["train", "--resume"], ["report"]])
def test_another_design(rfcalc, begun, write_design, command):
    write_design(OTHER, "other.py")
    more = ["other.py"] if command[0] == "train" else ["--design", "other.py"]
    done = rfcalc(*command, str(begun), *more)
    assert done.code == 2
    assert "trained net.py:Net, whose source or layers are not those of other.py:Net now" in done.err
    write_design(OTHER)
    done = rfcalc(*command, str(begun))
    assert done.code == 2
    assert "whose source or layers are not those of" in done.err


def test_a_design_that_moved(rfcalc, begun, write_design):
    write_design(NET, "elsewhere/moved.py")
    Path("net.py").unlink()
    assert "no such file" in rfcalc("train", "--resume", str(begun)).err
    assert rfcalc("train", "elsewhere/moved.py", "--resume", str(begun)).code == 0


def test_from_another_folder(rfcalc, begun, monkeypatch, tmp_path):
    folder = begun.absolute()
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    assert rfcalc("train", "--resume", str(folder)).code == 0


def test_another_version(rfcalc, begun):
    file = begun / "config.json"
    file.write_text(file.read_text().replace('"version": "', '"version": "9.'))
    done = rfcalc("train", "--resume", str(begun))
    assert done.code == 2
    assert "written by rfcalc 9." in done.err
    assert "start a new run" in done.err


def test_other_data(rfcalc, begun):
    file = begun / "config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"data_sha256": "0"}))
    done = rfcalc("train", "--resume", str(begun))
    assert done.code == 2
    assert "trained on other images or labels than digits has now" in done.err


def test_another_torch_is_told(rfcalc, write_design, unreported, monkeypatch):
    with monkeypatch.context() as patched:
        stop_at(patched, 3, KeyboardInterrupt())
        rfcalc("train", write_design(NET), *SHORT)
    folder, file = only_run().folder, only_run().folder / "config.json"
    values = json.loads(file.read_text())
    values["environment"]["torch"] = "1.0"
    file.write_text(json.dumps(values))
    assert rfcalc("train", "--resume", str(folder), "--epochs", "9").code == 2
    assert "later_torch" not in only_run().config.environment
    done = rfcalc("train", "--resume", str(folder))
    assert done.code == 0
    assert f"trained with torch 1.0, this is {torch.__version__}: figures may differ from here on" in done.err
    assert only_run().config.environment["later_torch"] == [torch.__version__]
    assert rfcalc("train", "--resume", str(folder)).err == ""


def test_a_report_of_a_run_without_an_epoch(rfcalc, begun):
    for file in begun.iterdir():
        if file.name != "config.json":
            file.unlink()
    done = rfcalc("report", str(begun))
    assert (done.code, done.out) == (2, "")
    assert "no seed has finished an epoch; there is nothing to report yet" in done.err
