"""Which designs a command line stands for, and which files surely hold none."""

import os
import re
from pathlib import Path

import pytest

from rfcalc.designs.design import load_design
from rfcalc.designs.targets import Found, find_targets, may_hold_design
from rfcalc.errors import DesignError, NoDesignError

ROOT = Path(__file__).parents[2]
NET = "from torch import nn\nclass Net(nn.Module): ...\n"
PLAIN = "raise SystemExit('a search must not run this')\n"

TREE = {
    "models/step1.py": NET,
    "models/step2.py": NET,
    "models/__init__.py": "",
    "models/notes.md": "# none",
    "models/train.py": PLAIN,
    "models/big/wide.py": NET,
    "models/big/.hidden.py": NET,
    "models/.cache/old.py": NET,
    "models/__pycache__/step1.py": NET,
    "models/env/pyvenv.cfg": "",
    "models/env/lib/net.py": NET,
    "models/lib/site-packages/torch/nets.py": NET,
    "models/b[1].py": NET,
    "broken/net.py": "class Net(",
    "scripts/train.py": PLAIN,
    "empty/readme.txt": "",
}
ALL = ["models/b[1].py", "models/step1.py", "models/step2.py", "models/big/wide.py"]
LEFT_OUT = ["models/__init__.py", "models/train.py"]

# name: targets, those found (a leading + for named ones), files left out
FINDS = {
    "a file": (["models/step1.py"], ["+models/step1.py"], []),
    "a name in it": (["models/step1.py:Net"], ["+models/step1.py:Net"], []),
    "a part of it": (["models/step1.py#body.0"], ["+models/step1.py#body.0"], []),
    "a callable": (["torchvision.models:resnet18#layer1"], ["+torchvision.models:resnet18#layer1"], []),
    "a folder": (["models"], ALL, LEFT_OUT),
    "a folder and a slash": (["models/"], ALL, LEFT_OUT),
    "the current folder": (["."], ["broken/net.py", *ALL], [*LEFT_OUT, "scripts/train.py"]),
    "a glob": (["models/*.py"], ["models/b[1].py", "models/step1.py", "models/step2.py"], LEFT_OUT),
    "a glob of letters": (["models/step[2-9].py"], ["models/step2.py"], []),
    "a file that looks like a glob": (["models/b[1].py"], ["+models/b[1].py"], []),
    "a glob across folders": (["models/**/*.py"], sorted(ALL), LEFT_OUT),
    "a glob that ends in **": (["models/**"], ALL, LEFT_OUT),
    "a glob of folders": (["m*ls"], ALL, LEFT_OUT),
    "a glob of files and folders": (["models/b*"], ["models/b[1].py", "models/big/wide.py"], []),
    "a glob inside an environment": (["models/env/lib/*.py"], ["models/env/lib/net.py"], []),
    "a hidden folder that is named": (["models/.cache"], ["models/.cache/old.py"], []),
    "packages that are named": (["models/lib/site-packages"], ["models/lib/site-packages/torch/nets.py"], []),
    "the order of the command line": (
        ["models/step2.py", "torch.nn:Identity", "models/step1.py"],
        ["+models/step2.py", "+torch.nn:Identity", "+models/step1.py"],
        [],
    ),
    "the same file twice": (["models/step1.py", "./models/../models/step1.py"], ["+models/step1.py"], []),
    "a file, then its folder": (
        ["models/step2.py", "models"],
        ["+models/step2.py", "models/b[1].py", "models/step1.py", "models/big/wide.py"],
        LEFT_OUT,
    ),
    "a folder, then its file": (
        ["models/big", "models/step1.py", "models/big/wide.py"],
        ["+models/big/wide.py", "+models/step1.py"],
        [],
    ),
    "a file and a name in it": (
        ["models/step1.py", "models/step1.py:Net", "models/step1.py:Other"],
        ["+models/step1.py", "+models/step1.py:Net", "+models/step1.py:Other"],
        [],
    ),
    "a named file without a design": (["models/__init__.py", "models/step1.py"], ["+models/step1.py"], LEFT_OUT[:1]),
    "only files without a design": (["models/__init__.py", "models/__init__.py"], [], LEFT_OUT[:1]),
    "a name in a file without a design": (["models/__init__.py:Net"], ["+models/__init__.py:Net"], []),
    "a folder of scripts": (["scripts"], [], ["scripts/train.py"]),
    "a file that is not Python": (["broken"], ["broken/net.py"], []),
    "a file that is not there": (["models/stepp1.py"], ["+models/stepp1.py"], []),
    "another kind of file": (["models/notes.md"], ["+models/notes.md"], []),
    "malformed": (["models/step1.py#", "models/step1.py:"], ["+models/step1.py#", "+models/step1.py:"], []),
}


@pytest.fixture
def tree(write_design):
    for name, text in TREE.items():
        write_design(text, name)


@pytest.mark.parametrize(("targets", "found", "skipped"), FINDS.values(), ids=FINDS)
def test_what_targets_stand_for(tree, targets, found, skipped):
    result = find_targets(targets)
    assert [("" if one.searched else "+") + one.target for one in result.targets] == found
    assert list(result.skipped) == skipped


def test_a_target_tells_its_file(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    given = ["models/step1.py:Net#body", f"{tmp_path}/models/step2.py", "~/models/big", "torch.nn:Identity"]
    files = [one.file and one.file.relative_to(tmp_path).as_posix() for one in find_targets(given).targets]
    assert files == ["models/step1.py", "models/step2.py", "models/big/wide.py", None]


def test_links_lead_to_one_design(tree, tmp_path):
    (tmp_path / "models/alias.py").symlink_to("step1.py")
    (tmp_path / "models/loop").symlink_to(tmp_path / "models")
    (tmp_path / "models/gone.py").symlink_to("nowhere.py")
    found = [one.target for one in find_targets(["models"]).targets]
    assert found == ["models/alias.py", "models/b[1].py", "models/gone.py", "models/step2.py", "models/big/wide.py"]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([], "no target found: name files, folders, file.py:Name or package.module:callable"),
        (["empty"], "empty: no target found: a folder without any Python file"),
        (["models/step1.py", "empty/"], "empty/: no target found: a folder without any Python file"),
        (["models/*.txt"], "models/*.txt: no target found: matches no Python file"),
        (["models/*.md"], "models/*.md: no target found: matches no Python file"),
        (["nowhere/**/*.py"], "nowhere/**/*.py: no target found: matches no Python file"),
        (["models/.c*/__pycache__/*"], "no target found: matches no Python file"),
        (["models/[a"], "models/[a: no target found: matches no Python file"),
    ],
)
def test_no_target_found(tree, targets, message):
    with pytest.raises(DesignError, match=re.escape(message)) as caught:
        find_targets(targets)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read(tree, tmp_path):
    (tmp_path / "models/big").chmod(0)
    try:
        with pytest.raises(DesignError, match="models/big: cannot be read: Permission denied"):
            find_targets(["models"])
    finally:
        (tmp_path / "models/big").chmod(0o755)


def test_every_design_of_this_repository_is_found():
    found = find_targets([str(ROOT / "models")])
    assert len(found.targets) == len(list((ROOT / "models").rglob("*.py")))


# --- may a file hold a design? -------------------------------------------------------------------------------

NN = "from torch import nn\n"
HOLDS = [
    NN + "class Net(nn.Module): ...",
    NN + "if True:\n    class Net(nn.Module): ...",
    NN + "def make():\n    class Net(nn.Module): ...\n    return Net\nNet = make()",
    NN + "Net = type('Net', (nn.Module,), {})",
    NN + "exec('class Net(nn.Module): ...')",
    NN + "def module(kind): return type(nn.Module)(kind.__name__, (nn.Module,), {'__module__': __name__})\n"
    "@module\nclass Net: ...",
    NN + "model = nn.Linear(1, 1)",
    NN + "model: nn.Module = nn.Linear(1, 1)",
    NN + "for model in [nn.Linear(1, 1)]: ...",
    NN + "a, (model, b) = 1, (nn.Linear(1, 1), 2)",
    NN + "if (model := nn.Linear(1, 1)): ...",
    NN + "import contextlib\nwith contextlib.nullcontext(nn.Linear(1, 1)) as model: ...",
    NN + "def model(): return nn.Linear(1, 1)",
    NN + "def make():\n    global model\n    model = nn.Linear(1, 1)\nmake()",
    NN + "globals()['model'] = nn.Linear(1, 1)",
    "from torch.nn import Identity as model",
    "from model_of_rfcalc import model",
    "from model_of_rfcalc import *",
]
HOLDS_NONE = [
    "",
    '"""Only words."""',
    "x = 1",
    "class Config:\n    width = 3",
    NN + "nets = [nn.Linear(1, 1)]",
    NN + "def train():\n    model = nn.Linear(1, 1)\n    for model in []: ...",
    NN + "class Trainer:\n    model = nn.Linear(1, 1)",
    NN + "train = lambda: (model := nn.Linear(1, 1))",
    "from torch.nn import Linear, Module",
    "import torch.nn as model",
    "kind = type(3)",
    "import sys\nsys.model = 3",
]


@pytest.mark.parametrize("source", HOLDS)
def test_a_file_that_loads_is_never_left_out(write_design, source):
    write_design("from torch.nn import Identity as model", "model_of_rfcalc.py")
    name = write_design(source)
    load_design(name, (1,))
    assert may_hold_design(Path(name))


@pytest.mark.parametrize("source", HOLDS_NONE)
def test_a_file_that_surely_holds_none(write_design, source):
    name = write_design(source)
    assert not may_hold_design(Path(name))
    with pytest.raises(NoDesignError, match=r"^net\.py: no design; expected one nn\.Module class"):
        load_design(name, (1,))


def test_only_running_it_tells_that_a_file_has_classes_but_no_design(write_design):
    name = write_design("class Trouble(Exception): ...")
    assert may_hold_design(Path(name))
    with pytest.raises(NoDesignError):
        load_design(name, (1,))


@pytest.mark.parametrize(
    "source",
    [b"class Net(", b"\x00\x01", b"\xff\xfe", b"x = " + b"-" * 100_000 + b"1", b"x = " + b"(" * 1000, b"x\n  y"],
)
def test_a_file_that_is_not_python_is_not_left_out(write_design, source):
    name = write_design(source)
    assert may_hold_design(Path(name))
    with pytest.raises(DesignError) as caught:
        load_design(name, (1,))
    assert not isinstance(caught.value, NoDesignError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("states", "is_design"), [("INPUT_SHAPE = (1, 28, 28)\n", True), ("", False)])
def test_a_file_of_parts_is_left_out_unless_it_says_its_input_shape(write_design, states, is_design):
    name = write_design(NN + states + "class Net(nn.Module):\n    def __init__(self, width): ...")
    with pytest.raises(DesignError, match="Net needs argument width") as caught:
        load_design(name)
    assert isinstance(caught.value, NoDesignError) != is_design


def test_reading_a_file_does_not_warn(write_design, recwarn):
    assert not may_hold_design(Path(write_design(r'x = "\d"; y = 1 is 1')))
    assert not recwarn.list


def test_a_search_runs_nothing(tree):
    assert isinstance(find_targets(["."]), Found)  # scripts/train.py would leave with SystemExit
