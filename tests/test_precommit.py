"""The hooks, end to end: real commits in a temporary repository, refused and let through by the real pre-commit."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytest.importorskip("pre_commit", reason="pre-commit is not installed")
import yaml  # which pre-commit brings along

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")

DESIGN = """\
import torch.nn as nn

INPUT_SHAPE = (1, 28, 28)
model = nn.Sequential(
    nn.Conv2d(1, 16, 3, bias=False),  # N 28->26  J 1  R 3
    nn.ReLU(),
    nn.MaxPool2d(2),  # N 26->13  J 2  R 4
    nn.Conv2d(16, {width}, 3, bias=False),  # N 13->11  J 2  R 8
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(1),  # N 11->1  J 2  R 28
    nn.Conv2d({width}, 10, 1, bias=False),  # N 1->1  J 2  R 28
    nn.Flatten(),
)
"""
TOO_LARGE, FITTING = DESIGN.format(width=64), DESIGN.format(width=32)
STALE = FITTING.replace("nn.Conv2d(1, 16, 3,", "nn.Conv2d(1, 16, 5,")


@pytest.fixture
def git(tmp_path, monkeypatch):
    """`git(folder, *arguments)` in a world of its own: no settings of the user's, no network, rfcalc on the PATH."""
    for name in [name for name in os.environ if name.startswith(("GIT_", "PRE_COMMIT"))]:
        monkeypatch.delenv(name)  # the tests themselves may run in a hook
    people = {f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    world = {"HOME": str(tmp_path), "PRE_COMMIT_HOME": str(tmp_path / "cache"), "GIT_CONFIG_NOSYSTEM": "1"}
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    for name, value in {**people, **world, **nowhere}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", sysconfig.get_path("scripts"), prepend=os.pathsep)

    def call(folder, *arguments):
        done = subprocess.run(
            ["git", *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        return done.returncode, done.stdout

    return call


def new_repository(git, folder):
    """An empty repository whose commits go through pre-commit."""
    folder.mkdir(parents=True)
    assert git(folder, "init", "--quiet")[0] == 0
    return folder


def install(folder):
    subprocess.run([sys.executable, "-m", "pre_commit", "install"], cwd=folder, check=True, capture_output=True)


def test_commits_are_refused_and_let_through(git, tmp_path):
    hooks = new_repository(git, tmp_path / "hooks")
    shutil.copy(ROOT / ".pre-commit-hooks.yaml", hooks)
    git(hooks, "add", ".")
    git(hooks, "commit", "--quiet", "--message", "hooks")

    work = new_repository(git, tmp_path / "work")
    chosen = [{"id": "rfcalc-check-system"}, {"id": "rfcalc-annotate-system"}]
    config = {"repos": [{"repo": str(hooks), "rev": git(hooks, "rev-parse", "HEAD")[1].strip(), "hooks": chosen}]}
    (work / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))
    design = work / "src/models/net.py"
    design.parent.mkdir(parents=True)
    (work / "src/models/__init__.py").write_text("import math\n")  # no design: passed over
    (work / "src/other.py").write_text("1 / 0\n")  # not in a folder named models: not looked at
    install(work)

    def commit(source=None):
        if source is not None:
            design.write_text(source)
        git(work, "add", ".")
        return git(work, "commit", "--message", "a design")

    code, said = commit(TOO_LARGE)
    assert code == 1
    assert "rfcalc check" in said
    assert "src/models/net.py" in said
    assert "10,000" in said  # what it has: 144 + 9,216 + 640
    assert "8,000" in said  # what it may have
    assert git(work, "rev-parse", "HEAD")[0] != 0

    code, said = commit(FITTING)
    assert code == 0, said
    assert git(work, "rev-list", "--count", "HEAD")[1].strip() == "1"

    code, said = commit(STALE)
    assert code == 1
    assert "files were modified by this hook" in said
    assert "src/models/net.py: 5 comments, 4 corrected" in said
    assert "  # N 28->24  J 1  R 5\n" in design.read_text()

    code, said = commit()  # as the hook left it
    assert code == 0, said
    assert git(work, "status", "--porcelain")[1] == ""
    assert git(work, "rev-list", "--count", "HEAD")[1].strip() == "2"


def test_this_repository_goes_through_its_own_gate(git, tmp_path):
    """Every design in models/, under the budgets and overrides of our pyproject.toml, with our own configuration."""
    work = new_repository(git, tmp_path / "work")
    for name in (".pre-commit-config.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, work)
    shutil.copytree(ROOT / "models", work / "models", ignore=shutil.ignore_patterns("__pycache__"))
    install(work)
    git(work, "add", ".")
    code, said = git(work, "commit", "--message", "designs")
    assert code == 0, said
    assert said.count("Passed") == 4


def hooks_of(name):
    found = yaml.safe_load((ROOT / name).read_text())
    listed = found if isinstance(found, list) else [hook for repo in found["repos"] for hook in repo["hooks"]]
    return {hook["id"]: hook for hook in listed}


def test_the_hooks_we_use_are_the_hooks_we_offer():
    offered, used = hooks_of(".pre-commit-hooks.yaml"), hooks_of(".pre-commit-config.yaml")
    for name in ("rfcalc-check-system", "rfcalc-annotate-system"):
        assert used[name] == {key: value for key, value in offered[name].items() if key != "description"}
        alone = offered[name.removesuffix("-system")]
        assert alone == {**offered[name], "id": alone["id"], "language": "python"}


@pytest.mark.parametrize(
    ("command", "file"),
    [("validate-manifest", ".pre-commit-hooks.yaml"), ("validate-config", ".pre-commit-config.yaml")],
)
def test_the_files_are_valid(command, file):
    done = subprocess.run(
        [sys.executable, "-m", "pre_commit", command, str(ROOT / file)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
