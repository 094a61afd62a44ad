"""What a run folder keeps, what a killed or failing writer leaves of it, and what it refuses to go on with."""

import contextlib
import dataclasses
import json
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rfcalc.designs.design import load_design
from rfcalc.errors import RunError
from rfcalc.train import description, record, run_folder
from rfcalc.train.data import DataSet, Split
from rfcalc.train.loop import train
from rfcalc.train.recipe import OURS
from rfcalc.train.verdict import Claim

RECIPE = dataclasses.replace(OURS, epochs=3, batch_size=16, augmentation=())
NET = """
    from torch import nn

    INPUT_SHAPE = (1, 6, 6)

    class Net(nn.Sequential):
        def __init__(self, width=4):
            super().__init__(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(16 * width, 3))
"""


def split(count, seed):
    source = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 1, 6, 6), generator=source, dtype=torch.uint8)
    return Split(images, torch.randint(3, (count,), generator=source))


@pytest.fixture(scope="module")
def data():
    return DataSet("noise", split(64, 1), split(20, 2), ("a", "b", "c"), (0.5,), (0.3,))


@pytest.fixture
def design(write_design):
    return load_design(write_design(NET))


@pytest.fixture
def config(design, data):
    return description.describe(
        design, data, RECIPE, seeds=(1, 2), device="cpu", amp=False, claim=Claim(last=2), data_dir=Path("here")
    )


def trained(design, data, seed, state=None):
    return train(design.build_real, data, RECIPE, seed=seed, state=state)


def filled(recorder, design, data, epochs=3):
    """The folder after so many epochs of both seeds."""
    with recorder:
        for seed in (1, 2):
            for _, (epoch, state) in zip(range(epochs), trained(design, data, seed), strict=False):
                recorder.add(epoch, state)
    return recorder.folder


def figures(run):
    """All that must be equal from run to run."""
    timed = {"seconds": 0, "images_per_second": 0}
    return {seed: [dataclasses.replace(epoch, **timed) for epoch in epochs] for seed, epochs in run.epochs.items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- what is kept --------------------------------------------------------------------------------------------


def test_the_folder(design, data, config, tmp_path):
    folder = filled(record.create(config, tmp_path / "runs"), design, data)
    assert folder.parent == tmp_path / "runs" / "net-Net"
    assert sorted(file.name for file in folder.iterdir() if file.name != ".lock") == [
        "config.json",
        "metrics.jsonl",
        "state-1.pt",
        "state-2.pt",
        "weights-1-ema.safetensors",
        "weights-1-raw.safetensors",
        "weights-2-ema.safetensors",
        "weights-2-raw.safetensors",
    ]
    run = run_folder.read(folder)
    assert run.config == config
    assert run.finished
    assert figures(run) == {
        seed: [dataclasses.replace(epoch, seconds=0, images_per_second=0) for epoch, _ in trained(design, data, seed)]
        for seed in (1, 2)
    }
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["seed"]) for line in lines] == [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)]


def test_the_configuration(design, data, config):
    assert (config.design, config.target) == ("net.py:Net", f"{design.path}:Net")
    assert (config.params, config.input_shape, config.data, config.seeds) == (
        4 * 9 + 4 + 8 + 195,
        (1, 6, 6),
        "noise",
        (1, 2),
    )
    assert Path(config.data_dir).is_absolute()
    assert (config.mean, config.std, config.classes) == ((0.5,), (0.3,), ("a", "b", "c"))
    assert config.environment["torch"] == str(torch.__version__)
    assert config.environment["threads"] == torch.get_num_threads()


def test_a_recipes_own_normalisation_is_kept(design, data):
    recipe = dataclasses.replace(RECIPE, mean=(0.1,), std=(0.2,))
    config = description.describe(design, data, recipe, seeds=(1,), device="cpu", amp=False, claim=Claim())
    assert (config.mean, config.std) == ((0.1,), (0.2,))


def test_weights_are_a_state_dict_anyone_loads(design, data, config, tmp_path):
    folder = filled(record.create(config, tmp_path / "runs"), design, data)
    *_, (_, state) = trained(design, data, 2)
    for weights, expected in (("raw", state.model), ("ema", state.ema)):
        file = run_folder.weights_file(folder, 2, weights)
        design.build_real().load_state_dict(load_file(file))
        tensors, about = run_folder.read_weights(file)
        assert same(tensors, expected)
        assert (about["weights"], about["seed"], about["epoch"], about["design"]) == (weights, "2", "3", "net.py:Net")
        assert (json.loads(about["mean"]), json.loads(about["classes"])) == ([0.5], ["a", "b", "c"])


def test_weights_of_a_seed_are_its_newest(design, data, config, tmp_path):
    folder = filled(record.create(config, tmp_path / "runs"), design, data, epochs=2)
    run = run_folder.read(folder)
    assert not list(folder.glob("*.safetensors"))
    assert same(run_folder.weights_of(run, 1, "ema")[1], run_folder.read_state(folder, 1).ema)
    with record.resume(folder) as recorder:
        recorder.keep_weights()
    (folder / "state-1.pt").unlink()
    *_, (_, state) = zip(range(2), trained(design, data, 1), strict=False)
    assert same(run_folder.weights_of(run, 1, "raw")[1], state[1].model)
    run_folder.weights_file(folder, 1, "raw").unlink()
    with pytest.raises(RunError, match="no raw weights of seed 1"):
        run_folder.weights_of(run, 1, "raw")


def test_two_runs_within_a_second(config, tmp_path):
    with record.create(config, tmp_path) as one, record.create(config, tmp_path) as other:
        assert other.folder.name == f"{one.folder.name}-2"


@pytest.mark.parametrize(
    ("named", "folder"),
    [
        ("models/step8.py:Net", "models-step8-Net"),
        ("/far/away/models/njam/step3.py:Net", "njam-step3-Net"),
        ("torchvision.models:resnet18", "torchvision.models-resnet18"),
        ("net.py:Net#body.0", "net-Net-body.0"),
        ("../x y/net.py:A.B", "x-y-net-A.B"),
        ("../net.py:Net", "net-Net"),
    ],
)
def test_folder_names(config, tmp_path, named, folder):
    with record.create(dataclasses.replace(config, design=named), tmp_path) as recorder:
        assert recorder.folder.parent == tmp_path / folder


def test_the_verdict_of_a_folder(design, data, config, tmp_path):
    folder = filled(record.create(config, tmp_path / "runs"), design, data)
    easy = json.loads((folder / "config.json").read_text())
    easy["claim"] |= {"target": 1.0}
    (folder / "config.json").write_text(json.dumps(easy))
    assert run_folder.read(folder).verdict().verified


# --- one design is not another -------------------------------------------------------------------------------


def test_a_fingerprint_tells_designs_apart(write_design):
    first = description.fingerprint(load_design(write_design(NET)))
    assert first == description.fingerprint(load_design(write_design(NET)))
    assert first == description.fingerprint(load_design(write_design(NET, "elsewhere/other.py")))
    assert first != description.fingerprint(load_design(write_design(NET + "    extra = 1")))


def test_a_fingerprint_does_not_mind_comments_and_layout(write_design):
    first = description.fingerprint(load_design(write_design(NET)))
    assert first == description.fingerprint(load_design(write_design(NET + "\n\n    # N 6->4  J 1  R 3")))


def test_a_fingerprint_does_not_mind_how_torch_prints(write_design, monkeypatch):
    net = write_design("from torch import nn\nmodel = lambda: nn.Sequential(nn.BatchNorm2d(1), nn.Flatten())")
    first = description.fingerprint(load_design(net))
    monkeypatch.setattr(torch.nn.BatchNorm2d, "extra_repr", lambda self: "in other words")
    assert first == description.fingerprint(load_design(net))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("nn.Linear(36, 3)", "nn.Linear(36, 4)"),
        ("nn.Conv2d(1, 3, 3)", "nn.Conv2d(1, 3, 3, stride=2)"),
        ("nn.Dropout(0.1)", "nn.Dropout(0.2)"),
        ("nn.ReLU()", "nn.SiLU()"),
        ("nn.AdaptiveAvgPool2d(1)", "nn.AdaptiveAvgPool2d(2)"),
    ],
)
def test_a_fingerprint_sees_what_the_file_imports(write_design, one, other):
    write_design(f"from torch import nn\ndef head(): return {one}", "a/head.py")
    write_design(f"from torch import nn\ndef head(): return {other}", "b/head.py")
    source = "from torch import nn\nimport head\nmodel = lambda: nn.Sequential(nn.Flatten(), head.head())"
    one, other = (load_design(write_design(source, f"{folder}/net.py")) for folder in "ab")
    assert description.fingerprint(one) != description.fingerprint(other)


@pytest.mark.parametrize("target", ["torchvision.models:resnet18", "torch.nn:Identity"])
def test_a_fingerprint_of_an_installed_design(target):
    assert description.fingerprint(load_design(target)) == description.fingerprint(load_design(target))


def test_the_data_have_one_too(data):
    changed = data.test.images.clone()
    changed[0, 0, 0, 0] += 1
    other = dataclasses.replace(data, test=Split(changed, data.test.labels))
    assert description.data_fingerprint(data) != description.data_fingerprint(other)


def test_the_newest_finished_runs(design, data, config, tmp_path):
    runs = tmp_path / "runs"
    assert run_folder.newest(runs) == ({}, [])
    old = filled(record.create(dataclasses.replace(config, created="2020-01-01T00:00:00+00:00"), runs), design, data)
    new = filled(record.create(config, runs), design, data)
    filled(record.create(dataclasses.replace(config, created="2099-01-01T00:00:00+00:00"), runs), design, data, 1)
    other = filled(record.create(dataclasses.replace(config, source="another"), runs), design, data)
    found, damaged = run_folder.newest(runs)
    assert ({source: run.folder for source, run in found.items()}, damaged) == (
        {config.source: new, "another": other},
        [],
    )
    (new / "metrics.jsonl").write_text("{")
    found, damaged = run_folder.newest(runs)
    assert found[config.source].folder == old
    assert [str(error).partition(":")[0] for error in damaged] == [str(new / "metrics.jsonl")]


# --- going on ------------------------------------------------------------------------------------------------


def test_going_on_ends_as_going_through(design, data, config, tmp_path):
    through = run_folder.read(filled(record.create(config, tmp_path / "a"), design, data))
    folder = filled(record.create(config, tmp_path / "b"), design, data, epochs=1)
    with record.resume(folder) as recorder:
        assert {seed: state.epoch for seed, state in recorder.states.items()} == {1: 1, 2: 1}
        for seed in (1, 2):
            for epoch, state in trained(design, data, seed, recorder.states[seed]):
                recorder.add(epoch, state)
    assert figures(run_folder.read(folder)) == figures(through)
    for file in through.folder.glob("*.safetensors"):
        assert same(load_file(file), load_file(folder / file.name))


def test_figures_ahead_of_the_state_are_dropped(design, data, config, tmp_path):
    folder = filled(record.create(config, tmp_path), design, data, epochs=2)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    ahead = json.dumps(json.loads(lines[2]) | {"epoch": 3}) + "\n"
    (folder / "metrics.jsonl").write_text("".join(lines) + ahead)
    (folder / ".state-1.pt.123.part").write_bytes(b"half of a sta")
    assert len(run_folder.read(folder).epochs[1]) == 3
    with record.resume(folder) as recorder:
        assert {seed: len(epochs) for seed, epochs in recorder.run.epochs.items()} == {1: 2, 2: 2}
    assert (folder / "metrics.jsonl").read_text() == "".join(lines)
    assert not (folder / ".state-1.pt.123.part").exists()


def test_a_run_that_was_killed_before_its_first_epoch(config, tmp_path):
    with record.create(config, tmp_path) as recorder:
        folder = recorder.folder
    with record.resume(folder) as recorder:
        assert (recorder.states, recorder.run.epochs) == ({}, {1: (), 2: ()})


def test_one_process_at_a_time(config, tmp_path):
    with record.create(config, tmp_path) as recorder:
        with pytest.raises(RunError, match="another process is training in it"):
            record.resume(recorder.folder)
        code = (
            f"from rfcalc.train import record; from pathlib import Path; record.resume(Path({str(recorder.folder)!r}))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "another process is training in it" in done.stderr
    record.resume(recorder.folder).__exit__(None, None, None)


# --- what cannot be written ----------------------------------------------------------------------------------


def test_a_full_disk_destroys_nothing(design, data, config, tmp_path):
    """The kernel refuses to write beyond a size in the middle of a file, as it does where a disk is full."""
    folder = filled(record.create(config, tmp_path), design, data, epochs=1)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in (1, 500, 4096):
        with record.resume(folder) as recorder:
            epoch, state = next(trained(design, data, 1, recorder.states[1]))
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
            try:
                with pytest.raises(RunError, match=r"cannot be written: .*; what was there before is kept") as caught:
                    recorder.add(epoch, state)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "\n" not in str(caught.value)
        after = {file.name: file.read_bytes() for file in folder.iterdir()}
        # The figures may be ahead of the state, and are dropped by the next `resume`.
        assert {**after, "metrics.jsonl": b""} == {**before, "metrics.jsonl": b""}
        assert [len(epochs) for epochs in run_folder.read(folder).epochs.values()] in ([1, 1], [2, 1])
    with record.resume(folder) as recorder:
        assert [len(epochs) for epochs in recorder.run.epochs.values()] == [1, 1]


def test_a_place_that_cannot_be_written(config, tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(RunError, match=r"runs/net-Net: cannot be written: "):
        record.create(config, tmp_path / "runs")


# --- what is refused -----------------------------------------------------------------------------------------


def edit(name):
    def change(folder, **values):
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


in_config = edit("config.json")

DAMAGE = {
    "another version": (lambda f: in_config(f, version="0.0.1"), "written by rfcalc 0.0.1, and this is "),
    "another schema": (lambda f: in_config(f, schema="rfcalc.run/99"), "not of schema rfcalc.run/1"),
    "an unknown key": (lambda f: in_config(f, colour="red"), "config.json: 'colour' is missing or unknown"),
    "an unknown claim": (lambda f: in_config(f, claim={"target": 99}), "config.json: 'last' is missing or unknown"),
    "an impossible claim": (
        lambda f: in_config(f, claim={**dataclasses.asdict(Claim()), "target": 200}),
        "config.json: target 200: expected percent",
    ),
    "an impossible recipe": (lambda f: in_config(f, recipe={"name": "x"}), "config.json: recipe: 'epochs' is missing"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json: cannot be read as JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "config.json: list; expected a JSON object"),
    "bytes": (lambda f: (f / "metrics.jsonl").write_bytes(b"\xff\xfe"), "metrics.jsonl: cannot be read"),
    "half a line": (lambda f: (f / "metrics.jsonl").write_text('{"seed": 1'), "metrics.jsonl:1: not a line of JSON"),
    "a line of another kind": (lambda f: (f / "metrics.jsonl").write_text("7\n"), "metrics.jsonl:1: 'int' is missing"),
    "figures that are none": (
        lambda f: (f / "metrics.jsonl").write_text((f / "metrics.jsonl").read_text().replace(": 64,", ': "64",')),
        "metrics.jsonl:1: a figure is no number",
    ),
    "a line lost": (
        lambda f: (f / "metrics.jsonl").write_text("".join((f / "metrics.jsonl").read_text().splitlines(True)[2:])),
        "metrics.jsonl:1: seed 1, epoch 2; expected each epoch of each seed in turn",
    ),
    "figures lost": (lambda f: (f / "metrics.jsonl").unlink(), "metrics.jsonl: 0 epochs of seed 1, whose state is of"),
    "half a state": (
        lambda f: (f / "state-1.pt").write_bytes((f / "state-1.pt").read_bytes()[:999]),
        "state-1.pt: not a state that can be read",
    ),
    "another state": (lambda f: torch.save({"a": 1}, f / "state-1.pt"), "state-1.pt: not a state that can be read"),
    "the state of another seed": (
        lambda f: (f / "state-1.pt").write_bytes((f / "state-2.pt").read_bytes()),
        "state-1.pt: the state of seed 2; expected that of seed 1",
    ),
    "seeds that are none": (lambda f: in_config(f, seeds=5), "config.json: seeds is 5; it is damaged"),
    "classes that are none": (lambda f: in_config(f, classes=[1]), "config.json: classes is [1]; it is damaged"),
    "an environment of nothing": (lambda f: in_config(f, environment={}), "config.json: environment lacks one of"),
    "figures of no image": (
        lambda f: (f / "metrics.jsonl").write_text(
            (f / "metrics.jsonl").read_text().replace('"test_total": 2', '"test_total": -2')
        ),
        "metrics.jsonl:1: figures of no image",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_cannot_be_gone_on_with(design, data, config, tmp_path, name):
    damage, message = DAMAGE[name]
    folder = filled(record.create(config, tmp_path), design, data, epochs=2)
    damage(folder)
    with pytest.raises(RunError) as caught:
        record.resume(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    record._locked(folder).release()  # and it is left unlocked


@pytest.mark.parametrize(("place", "found"), [("nowhere", "no such folder"), (".", "no config.json in it")])
def test_no_run(tmp_path, place, found):
    for ask in (run_folder.read, record.resume):
        with pytest.raises(RunError, match=f"{found}; expected a run's folder"):
            ask(tmp_path / place)
    assert not (tmp_path / ".lock").exists()


class Surprise:
    def __reduce__(self):
        return os.system, ("touch surprise",)


def test_nothing_pickled_is_loaded(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with record.create(config, tmp_path) as recorder:
        folder = recorder.folder
    torch.save({"model": Surprise()}, folder / "state-1.pt")
    (folder / "weights-1-raw.safetensors").write_bytes(pickle.dumps(Surprise()))
    with pytest.raises(RunError, match=r"state-1\.pt: not a state"):
        record.resume(folder)
    with pytest.raises(RunError, match="not a safetensors file"):
        run_folder.read_weights(folder / "weights-1-raw.safetensors")
    assert not (tmp_path / "surprise").exists()


# --- killed --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def writing(place):
    """A process that writes the file again and again, each time all of it another number; killed in the end."""
    child = os.fork()
    if child == 0:
        for count in range(1_000_000):
            record.write(place, (b"%07d" % count) * 20_000)
        os._exit(1)
    yield
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


def test_a_writer_that_is_killed_leaves_a_whole_file(tmp_path):
    place, chance = tmp_path / "file", random.Random(1)
    place.write_bytes(b"0000000" * 20_000)
    for _ in range(10):
        seen = set()
        with writing(place):
            begun = time.monotonic()
            least, most = begun + 0.02 + chance.random() / 10, begun + 60
            while (now := time.monotonic()) < least or (len(seen) < 3 and now < most):
                content = place.read_bytes()
                seen.add(content[:7])
                assert content == content[:7] * 20_000
        content = place.read_bytes()
        assert content == content[:7] * 20_000
        assert len(seen) >= 3


def test_a_writer_killed_between_the_last_state_and_its_weights(design, data, config, tmp_path, monkeypatch):
    """Weights of an epoch before, as Ctrl-C leaves them, must not pass for the last."""
    with record.create(config, tmp_path / "runs") as recorder:
        epochs = iter(trained(design, data, 1))
        recorder.add(*next(epochs))
        recorder.keep_weights()
        monkeypatch.setattr(recorder, "_write_weights", lambda _: None)
        for epoch, state in epochs:
            recorder.add(epoch, state)
    file = run_folder.weights_file(recorder.folder, 1, "ema")
    assert run_folder.read_weights(file)[1]["epoch"] == "1"
    with record.resume(recorder.folder):
        tensors, about = run_folder.read_weights(file)
    assert about["epoch"] == "3"
    assert same(tensors, state.ema)
