"""Who may import whom, what starts without torch, what no room may be, and what lies at the top of the repository."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import rfcalc

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "rfcalc"

# Downward only. A room may import from itself, from every room in an earlier line, and from nothing in its own line.
ANALYSIS = (
    ("memo",),
    ("parts",),
    ("grids",),
    ("moves",),
    ("windows",),
    ("stretches",),
    ("field",),
    ("beside", "writes", "reading"),
    ("report",),
    ("pattern",),
    ("pattern_ops",),
    ("rules",),
    ("calls", "layout", "refusals", "tree", "inputs", "outside"),
    ("values",),
    ("schemas", "untouched", "events", "asked", "numbers", "threads"),
    ("tensors",),
    ("ops",),
    ("run",),
    ("modules", "derivatives"),
    ("fast",),
    ("attempt",),
    ("rows",),
    ("analyze",),
)
FOUNDATION = {"errors", "files", "text", "version"}
DOMAIN = ("memo", "parts", "grids", "windows", "moves", "stretches", "field", "beside", "writes", "reading")
# The other rooms, and which of each other they may know beside the foundation and themselves.
WINGS = {
    "analysis": set(),
    "proof": {"analysis"},
    "designs": set(),
    "gate": {"analysis", "proof", "designs"},
    "render": {"analysis", "designs", "gate", "train"},
    "train": {"designs"},
}
MOST_LINES = 450
SOURCES = sorted([*LIBRARY.rglob("*.py"), *(ROOT / "cli").rglob("*.py")])


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


def inside(file):
    """The parts below `rfcalc` of every module of the library that a file imports."""
    return {tuple(name.split(".")[1:]) for name in imports(file) if name.startswith("rfcalc.")}


def room_of(file):
    return file.relative_to(LIBRARY).with_suffix("").parts[0]


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_go_downward(file):
    if (ROOT / "cli") in file.parents:
        return  # may know all
    assert not [name for name in imports(file) if name.split(".")[0] in ("rfcalc_cli", "cli")]
    room = room_of(file)
    if room == "__init__":
        return
    assert room in WINGS.keys() | FOUNDATION, f"{room} has no place in the house: docs/ARCHITECTURE.md and here"
    known = {parts[0] for parts in inside(file)}
    allowed = {"errors"} if room in FOUNDATION else FOUNDATION | WINGS[room] | {room}
    assert known <= allowed, f"{room} may not import {sorted(known - allowed)}"


@pytest.mark.parametrize("file", sorted((LIBRARY / "analysis").rglob("*.py")), ids=lambda f: f.stem)
def test_the_analysis_is_built_in_layers(file):
    order = {name: level for level, names in enumerate(ANALYSIS) for name in names}
    part = file.relative_to(LIBRARY / "analysis").with_suffix("").parts[0]
    if part == "__init__":
        return
    assert part in order, f"{part} has no layer: docs/ARCHITECTURE.md and here"
    above = {
        parts[1]
        for parts in inside(file)
        if parts[0] == "analysis" and len(parts) > 1 and parts[1] != part and order[parts[1]] >= order[part]
    }
    assert not above, f"{part} may not import {sorted(above)}"


@pytest.mark.parametrize("file", [p for p in SOURCES if LIBRARY in p.parents], ids=lambda f: str(f.relative_to(ROOT)))
def test_a_room_has_one_job_and_says_so(file):
    """A file opens with a sentence, and a long one with its reason ("in one file because ...")."""
    text = file.read_text()
    doc = ast.get_docstring(ast.parse(text)) or ""
    assert doc or not text.strip()
    assert len(text.splitlines()) <= MOST_LINES or "in one file because" in doc.replace("\n", " ").lower()


@pytest.mark.parametrize("part", [*(f"analysis/{name}" for name in (*DOMAIN, "calls", "report")), "errors", "files"])
def test_the_domain_and_its_values_know_no_torch(part):
    assert not [name for name in imports(LIBRARY / f"{part}.py") if name.split(".")[0] == "torch"]


@pytest.mark.parametrize(
    "statement",
    [
        "import rfcalc",
        "import rfcalc.analysis.field, rfcalc.analysis.report",
        "import rfcalc.gate.settings, rfcalc.designs.targets, rfcalc.designs.revisions",
        "import rfcalc_cli.main",
    ],
)
def test_starts_without_torch(statement):
    heavy = "sorted({'torch', 'torchvision', 'matplotlib', 'torchinfo'} & set(sys.modules))"
    code = f"import sys; {statement}; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_package_is_shipped():
    """The wheel holds what pyproject.toml names, so a new folder that is not named there would be left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {p.parent.relative_to(ROOT).as_posix().replace("/", ".") for p in LIBRARY.rglob("__init__.py")}
    assert set(project["tool"]["setuptools"]["packages"]) == folders | {"rfcalc_cli"}
    shipped = {p for glob in project["tool"]["setuptools"]["package-data"]["rfcalc"] for p in LIBRARY.glob(glob)}
    data = {p for p in LIBRARY.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert shipped == data


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
    assert set(rfcalc.__all__) <= set(dir(rfcalc))
    for name in rfcalc.__all__:
        found = getattr(rfcalc, name)
        assert found.__name__ == name
        assert found.__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rfcalc.nothing
