"""Who may import whom, what starts without torch, and what lies at the top level of the repository."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rfcalc

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "rfcalc"

# Downward only: a module's own row lists everything it may know of this library.
DOMAIN = {"errors", "field", "pattern"}
RULES = DOMAIN | {"rules"}
REPORT = RULES | {"inputs", "trace", "shortcut", "report"}
ALLOWED = {
    "errors": set(),
    "files": set(),
    "calls": set(),
    "refusals": set(),
    "field": {"errors"},
    "pattern": {"field"},
    "rules": RULES,
    "layout": set(),
    "trace": RULES | {"calls", "layout", "refusals"},
    "inputs": {"errors", "field"},
    "shortcut": RULES | {"trace", "refusals"},
    "report": REPORT - {"report"},
    "gate": REPORT,
    "advice": REPORT | {"gate"},
    "enlarged": REPORT | {"oracle"},
    "gridding": REPORT | {"gate", "oracle"},
    "config": {"errors", "gate", "design"},
    "find": {"errors", "design"},
    "judge": REPORT | {"gridding", "gate", "advice", "config", "design", "oracle"},
    "workers": REPORT | {"gate", "advice", "config", "design", "oracle", "judge"},
    "history": {"errors", "design"},
    "annotate": REPORT | {"calls", "design", "render"},
    "oracle": REPORT | {"calls"},
    "render": REPORT | {"render", "gate", "advice", "judge", "train"},
    "blueprint": {"errors"},
    "design": {"errors", "blueprint"},
    "train": {"errors", "files", "blueprint", "design", "train"},
    "cli": None,  # may know all
    "__init__": None,
}
SOURCES = sorted([*LIBRARY.rglob("*.py"), *(ROOT / "cli").rglob("*.py")])


def part_of(file):
    """The name in the table above that a file belongs to."""
    if (ROOT / "cli") in file.parents:
        return "cli"
    return file.relative_to(LIBRARY).with_suffix("").parts[0]


def imports(file):
    """Every module a file imports anywhere in it, as absolute dotted names."""
    package = file.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_go_downward(file):
    part = part_of(file)
    assert part in ALLOWED, f"{part} has no place in the house: give it one in architecture.md and here"
    names = imports(file)
    if part != "cli":
        assert not [n for n in names if n.split(".")[0] in ("rfcalc_cli", "cli")]
    inside = {n.split(".")[1] for n in names if n.startswith("rfcalc.")}
    if ALLOWED[part] is not None:
        assert inside <= ALLOWED[part], f"{part} may not import {sorted(inside - ALLOWED[part])}"


@pytest.mark.parametrize("part", ["errors", "files", "field", "calls"])
def test_the_domain_knows_no_torch(part):
    assert not [n for n in imports(LIBRARY / f"{part}.py") if n.split(".")[0] == "torch"]


@pytest.mark.parametrize(
    "statement",
    [
        "import rfcalc",
        "import rfcalc.field",
        "import rfcalc.config, rfcalc.find, rfcalc.history",
        "import rfcalc_cli.main",
    ],
)
def test_starts_without_torch(statement):
    heavy = "sorted({'torch', 'torchvision', 'matplotlib', 'torchinfo'} & set(sys.modules))"
    code = f"import sys; {statement}; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_top_level_folders():
    made_by_tools = ("build", "dist", "__pycache__")
    folders = {
        p.name
        for p in ROOT.iterdir()
        if p.is_dir() and p.name[0] != "." and p.name not in made_by_tools and not p.name.endswith(".egg-info")
    }
    assert folders - {"shared"} == {"rfcalc", "cli", "docs", "models", "tests"}


def test_public_names_resolve():
    assert sorted(rfcalc.__all__, key=str.lower) == sorted(set(rfcalc.__all__), key=str.lower)
    for name in rfcalc.__all__:
        found = getattr(rfcalc, name)
        assert found.__name__ == name
        assert found.__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rfcalc.nothing
