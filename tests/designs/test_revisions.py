"""Designs against an older revision, in repositories made by the real git."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from rfcalc.designs.design import load_design
from rfcalc.designs.revisions import changed_designs, snapshot
from rfcalc.errors import HistoryError

NET = """
from torch import nn
INPUT_SHAPE = (1, 28, 28)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear({width}, 1)
"""
LONG = NET + "\n".join(f"# line {number} of a file long enough to be recognised" for number in range(20))
FILES = {
    "models/alone.py": LONG.format(width=3),
    "models/other.py": "from torch import nn\nmodel = nn.Identity",
    "models/user.py": "from blocks import Block\nmodel = Block",
    "models/blocks.py": "from parts.conv import Block",
    "models/parts/__init__.py": "",
    "models/parts/conv.py": "from .base import Base as Block",
    "models/parts/base.py": "from torch.nn import Identity as Base",
    "models/inside.py": "def model():\n    import parts\n    return parts.make()",
    "models/rooted.py": "from common.layers import Layer as model",
    "common/layers.py": "from torch.nn import Identity as Layer",
    "README.md": "words",
}
DESIGNS = ["alone", "other", "user", "inside", "rooted"]


def git(*arguments, at=None):
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    environment = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    done = subprocess.run(
        ["git", *identity, *arguments], capture_output=True, text=True, cwd=at, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def commit(message="a change"):
    git("add", "--all")
    git("commit", "--quiet", "--allow-empty", "-m", message)


@pytest.fixture
def repository(write_design):
    """The current folder: a repository whose tag `base` holds FILES."""
    for name, text in FILES.items():
        write_design(text, name)
    git("init", "--quiet", "--initial-branch=main")
    commit()
    git("tag", "base")


def move(old, new):
    Path(new).parent.mkdir(exist_ok=True)
    Path(old).rename(new)


def changed(*names, rev="base"):
    """The changed ones of the designs in models/, each with its old path."""
    paths = [Path("models", f"{name}.py") for name in names or DESIGNS]
    found = changed_designs(rev, paths)
    return {path.stem: old and old.as_posix() for path, old in found.items()}


def same(*names):
    return {name: f"models/{name}.py" for name in names}


# name: what is done in the working tree, the designs that changed by it
EDITS = {
    "nothing": (lambda write: None, {}),
    "a design": (lambda write: write(NET.format(width=4), "models/alone.py"), same("alone")),
    "no design": (lambda write: write("more words", "README.md"), {}),
    "a file that no design imports": (lambda write: write("x = 1", "models/unused.py"), {}),
    "a sibling": (lambda write: write("from parts.conv import Block; x = 1", "models/blocks.py"), same("user")),
    "a sibling of a sibling": (lambda write: write("x = 1", "models/parts/base.py"), same("user")),
    "the file of a package": (lambda write: write("x = 1", "models/parts/__init__.py"), same("user", "inside")),
    "a module from the root": (lambda write: write("x = 1", "common/layers.py"), same("rooted")),
    "a module that is gone": (lambda write: Path("common/layers.py").unlink(), same("rooted")),
    "a module that is new": (lambda write: write("x = 1", "common/__init__.py"), same("rooted")),
    "a sibling that hides another module": (
        lambda write: write("x = 1", "models/torch.py"),
        same("alone", "other", "user", "rooted"),  # all that import torch, or import what imports it
    ),
}


@pytest.mark.parametrize(
    "keep", [lambda: None, lambda: git("add", "--all"), commit], ids=["edited", "staged", "committed"]
)
@pytest.mark.parametrize(("edit", "expected"), EDITS.values(), ids=EDITS)
def test_what_changed_since_a_revision(repository, write_design, edit, expected, keep):
    edit(write_design)
    keep()
    assert changed() == expected


@pytest.mark.parametrize(
    "keep", [lambda: None, lambda: git("add", "--all"), commit], ids=["edited", "staged", "committed"]
)
def test_new_and_moved_designs_and_their_old_paths(repository, write_design, keep):
    write_design("x = 1", "models/fresh.py")
    move("models/alone.py", "models/moved.py")
    move("models/other.py", "models/new_folder/other [1].py")
    keep()
    assert changed("fresh", "moved", "new_folder/other [1]", "user") == {
        "fresh": None,
        "moved": "models/alone.py",
        "other [1]": "models/other.py",
    }


def test_a_design_that_moved_and_changed_a_little(repository, write_design):
    move("models/alone.py", "models/moved.py")
    write_design(LONG.format(width=44), "models/moved.py")
    assert changed("moved") == {"moved": "models/alone.py"}


def test_an_ignored_file_is_new_unless_git_holds_it(repository, write_design):
    write_design("models/secret.py\nmodels/alone.py", ".gitignore")
    write_design("x = 1", "models/secret.py")
    write_design("x = 1", "models/alone.py")
    assert changed("secret", "alone") == {"secret": None, **same("alone")}


def test_a_change_of_the_same_size_within_the_second_of_the_commit_is_seen(repository, write_design):
    """Git tells by the age of its index which files it must read again."""
    design, moment = Path("models/alone.py"), (1e9, 1e9)
    git("config", "core.trustctime", "false")
    os.utime(design, moment)
    git("update-index", "--refresh")
    design.write_text(design.read_text().replace("(3, 1)", "(4, 1)"))
    for file in (design, Path(".git/index")):
        os.utime(file, moment)
    assert list(changed_designs("HEAD", [design])) == [design]


def test_the_repository_is_left_as_it_was(repository, write_design):
    write_design("x = 1", "models/fresh.py")
    write_design("x = 1", "models/other.py")
    git("add", "models/other.py")
    before = git("status", "--porcelain"), Path(".git/index").read_bytes(), sorted(Path(".git").rglob("*"))
    changed("fresh", "other")
    with snapshot("base"):
        pass
    assert (git("status", "--porcelain"), Path(".git/index").read_bytes(), sorted(Path(".git").rglob("*"))) == before


def test_from_a_folder_below_and_from_a_hook(repository, write_design, tmp_path, monkeypatch):
    write_design("x = 1", "models/alone.py")
    monkeypatch.chdir(tmp_path / "models")
    monkeypatch.setenv("GIT_DIR", ".git")
    monkeypatch.setenv("GIT_INDEX_FILE", ".git/index")
    assert changed_designs("HEAD", [Path("alone.py"), Path("other.py")]) == {Path("alone.py"): Path("models/alone.py")}
    with snapshot("HEAD") as folder:
        assert (folder / "models/alone.py").read_text() == FILES["models/alone.py"]


def test_settings_of_the_user_change_nothing(repository, write_design, monkeypatch):
    for name, value in (("diff.renames", "false"), ("diff.relative", "true"), ("core.quotePath", "true")):
        git("config", name, value)
    move("models/alone.py", "models/größe.py")
    assert changed("größe") == {"größe": "models/alone.py"}


def test_imports_in_a_circle_and_files_that_are_not_python(repository, write_design):
    write_design("import circle_b", "models/circle_a.py")
    write_design("import circle_a", "models/circle_b.py")
    write_design("def (", "models/broken.py")
    write_design("from ......................... import x", "models/far.py")
    commit()
    assert changed("circle_a", "circle_b", "broken", "far", rev="HEAD") == {}
    write_design("import circle_a, broken", "models/circle_b.py")
    assert changed("circle_a", "circle_b", "broken", "far", rev="HEAD") == same("circle_a", "circle_b")


def test_no_designs_ask_no_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert changed_designs("main", []) == {}


# --- the old files -------------------------------------------------------------------------------------------


def test_a_snapshot_builds_the_old_designs_with_their_old_siblings(repository, write_design):
    write_design(NET.format(width=4), "models/alone.py")
    write_design("from torch.nn import Flatten as Base", "models/parts/base.py")
    commit()
    with snapshot("base") as folder:
        old = [load_design(str(folder / "models" / name), (3,)).build() for name in ("alone.py", "user.py")]
        assert sorted(
            p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc"
        ) == sorted(FILES)
    new = [load_design(f"models/{name}", (3,)).build() for name in ("alone.py", "user.py")]
    assert [old[0].fc.in_features, new[0].fc.in_features] == [3, 4]
    assert [type(old[1]).__name__, type(new[1]).__name__] == ["Identity", "Flatten"]
    assert not folder.exists()


def test_a_snapshot_is_whole_and_takes_links_as_they_are(repository, write_design):
    write_design("models export-ignore\n", ".gitattributes")
    Path("models/link.py").symlink_to("alone.py")
    Path("models/away").symlink_to("/nowhere/at/all")
    commit()
    with snapshot("HEAD", Path("models/alone.py")) as folder:
        assert (folder / "models/link.py").read_text() == FILES["models/alone.py"]
        assert os.readlink(folder / "models/away") == "/nowhere/at/all"


def test_a_snapshot_goes_even_when_its_block_fails(repository):
    with pytest.raises(ZeroDivisionError), snapshot("base") as folder:
        _ = 1 / 0
    assert not folder.exists()


# --- what is wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rev", ["nope", "", "--help", "-h", "HEAD~99", "HEAD:models", "a b", "0" * 40, "main..base", "x\ny"]
)
def test_no_such_revision(repository, tmp_path, rev):
    message = f"{rev!r}: no such revision in the git repository {tmp_path}; expected a commit, branch or tag"
    with pytest.raises(HistoryError, match=f"^{re.escape(message)}$"):
        changed_designs(rev, [Path("models/alone.py")])
    with pytest.raises(HistoryError, match=f"^{re.escape(message)}$"), snapshot(rev):
        pass


def test_a_revision_without_commits(write_design, tmp_path):
    write_design("x = 1")
    git("init", "--quiet")
    with pytest.raises(HistoryError, match="'HEAD': no such revision"):
        changed_designs("HEAD", [Path("net.py")])


def test_a_shallow_clone_says_so(repository, tmp_path):
    commit("another")
    git("clone", "--quiet", "--depth=1", f"file://{tmp_path}", str(tmp_path / "clone"))
    with pytest.raises(HistoryError, match=r"'HEAD~1': no such .*; this clone is shallow: git fetch --unshallow$"):
        changed_designs("HEAD~1", [tmp_path / "clone/models/alone.py"])


def test_not_a_repository(write_design, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    path = Path(write_design("x = 1"))
    message = f"^{re.escape(str(tmp_path))}: not in a git repository; a revision to compare with needs one$"
    with pytest.raises(HistoryError, match=message):
        changed_designs("HEAD", [path])
    with pytest.raises(HistoryError, match=message), snapshot("HEAD"):
        pass


def test_a_bare_repository(tmp_path):
    git("init", "--quiet", "--bare", str(tmp_path))
    with pytest.raises(HistoryError, match=r"^git rev-parse failed in .*: fatal: this operation must be run in a work"):
        changed_designs("HEAD", [tmp_path / "net.py"])


def test_designs_of_two_repositories(repository, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "net.py"
    other.write_text("x = 1")
    with pytest.raises(HistoryError, match=r"net\.py: not in the git repository .*; expected the designs of one"):
        changed_designs("base", [Path("models/alone.py"), other])


def test_a_repository_within_the_repository(repository, write_design):
    """Git's comparison of the outer one does not look into it."""
    write_design("x = 1", "models/inner/net.py")
    git("init", "-q", "models/inner")
    with pytest.raises(HistoryError, match=r"inner/net\.py: not in the git repository .*; expected the designs of one"):
        changed_designs("base", [Path("models/alone.py"), Path("models/inner/net.py")])


def test_git_is_not_installed(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HistoryError, match=r"^git is not installed; it is needed to compare with a revision$"):
        changed_designs("base", [Path("models/alone.py")])


def test_a_folder_that_is_not_there(repository):
    with pytest.raises(HistoryError, match=r"nowhere: no such folder; it is needed to compare"):
        changed_designs("base", [Path("nowhere/net.py")])
