"""Which settings apply to a design, where each comes from, and what a broken configuration says."""

import json
import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from rfcalc.errors import ConfigError, DesignError, RfcalcError
from rfcalc.gate.budget import LIMITS, Budget
from rfcalc.gate.settings import Settings, default_targets, rows, settings_for

ROOT = Path(__file__).parents[2]
LADDERS = json.loads((Path(__file__).parents[1] / "golden" / "ladders.json").read_text())["designs"]

TOP = "pyproject.toml [tool.rfcalc]"
ENTRY = "pyproject.toml [[tool.rfcalc.design]] path = "
SECTION = """
    [tool.rfcalc]
    max_params = 9000
    input = "3x32x32"
"""
OVERRIDES = """
    [tool.rfcalc]
    max_params = 9000

    [[tool.rfcalc.design]]
    path = "models/**/*.py"
    max_params = 500_000
    min_rf = 40
    reason = "they teach"

    [[tool.rfcalc.design]]
    path = "models/big/*.py"
    max_params = false
    require_exact = true
"""

# name: files, design, flags, what differs from the defaults: key -> (value, origin)
APPLIES = {
    "nothing anywhere": ({}, "net.py", {}, {}),
    "the file beside the design": (
        {"pyproject.toml": SECTION},
        "net.py",
        {},
        {"max_params": (9000, TOP), "input": ((3, 32, 32), TOP)},
    ),
    "a file two folders up": ({"pyproject.toml": SECTION}, "a/b/net.py", {}, {"max_params": (9000, TOP)}),
    "the nearest of two": (
        {"pyproject.toml": SECTION, "a/pyproject.toml": "[tool.rfcalc]\nmin_rf = 5"},
        "a/net.py",
        {},
        {"min_rf": (5, "a/pyproject.toml [tool.rfcalc]")},
    ),
    "a nearer one without a section": (
        {"pyproject.toml": SECTION, "a/pyproject.toml": "[tool.ruff]\nline-length = 90"},
        "a/net.py",
        {},
        {"max_params": (9000, TOP)},
    ),
    "an empty section nearer": ({"pyproject.toml": SECTION, "a/pyproject.toml": "[tool.rfcalc]"}, "a/net.py", {}, {}),
    "no limit": (
        {"pyproject.toml": "[tool.rfcalc]\nmax_params = false\nmin_rf = false"},
        "net.py",
        {},
        {"max_params": (None, TOP), "min_rf": (None, TOP)},
    ),
    "every key": (
        {
            "pyproject.toml": """
                [tool.rfcalc]
                max_params = 1
                min_rf = 2
                min_rf_spatial = 3
                max_macs = 4
                max_activation_bytes = 5
                max_layers = 6
                require_exact = true
                require_aligned = false
                input = [2, 8]
                layout = "TC"
            """
        },
        "net.py",
        {},
        {
            "max_params": (1, TOP),
            "min_rf": (2, TOP),
            "min_rf_spatial": (3, TOP),
            "max_macs": (4, TOP),
            "max_activation_bytes": (5, TOP),
            "max_layers": (6, TOP),
            "require_exact": (True, TOP),
            "require_aligned": (False, TOP),
            "input": ((2, 8), TOP),
            "layout": ("TC", TOP),
        },
    ),
    "a design that no entry matches": ({"pyproject.toml": OVERRIDES}, "net.py", {}, {"max_params": (9000, TOP)}),
    "** stands for no folder, too": (
        {"pyproject.toml": OVERRIDES},
        "models/net.py",
        {},
        {"max_params": (500_000, ENTRY + '"models/**/*.py"'), "min_rf": (40, ENTRY + '"models/**/*.py"')},
    ),
    "the later entry wins, key by key": (
        {"pyproject.toml": OVERRIDES},
        "models/big/net.py",
        {},
        {
            "max_params": (None, ENTRY + '"models/big/*.py"'),
            "min_rf": (40, ENTRY + '"models/**/*.py"'),
            "require_exact": (True, ENTRY + '"models/big/*.py"'),
            "reason": ("they teach", ENTRY + '"models/**/*.py"'),
        },
    ),
    "* stays within a folder": (
        {"pyproject.toml": OVERRIDES},
        "models/big/deep/net.py",
        {},
        {"max_params": (500_000, ENTRY + '"models/**/*.py"')},
    ),
    "flags win over entries": (
        {"pyproject.toml": OVERRIDES},
        "models/big/net.py",
        {"max_params": 7, "min_rf": None, "input": "1x8x8", "layout": "CHW"},
        {
            "max_params": (7, "--max-params"),
            "min_rf": (40, ENTRY + '"models/**/*.py"'),
            "input": ((1, 8, 8), "--input"),
            "layout": ("CHW", "--layout"),
        },
    ),
    "flags alone": ({}, "net.py", {"require_exact": True}, {"require_exact": (True, "--require-exact")}),
    "an importable module": ({"pyproject.toml": SECTION}, None, {}, {"max_params": (9000, TOP)}),
    "no entry is for a module": ({"pyproject.toml": OVERRIDES}, None, {}, {"max_params": (9000, TOP)}),
    "inputs by name": (
        {"pyproject.toml": "[tool.rfcalc]\ninput = { x = [3, 8], y = [4] }"},
        "net.py",
        {},
        {"input": ({"x": (3, 8), "y": (4,)}, TOP)},
    ),
}


@pytest.fixture
def tree(write_design):
    """`tree(files)` writes a folder of texts into the empty current folder."""
    return lambda files: [write_design(text, name) for name, text in files.items()]


def held(settings, key):
    if key in ("input", "layout", "reason"):
        return getattr(settings, {"input": "input_shape"}.get(key, key))
    return getattr(settings.budget, key)


@pytest.mark.parametrize(("files", "design", "flags", "expected"), APPLIES.values(), ids=APPLIES)
def test_what_applies_and_where_it_comes_from(tree, files, design, flags, expected):
    tree(files)
    settings = settings_for(None if design is None else Path(design), flags=flags)
    default = Settings()
    for key in default.origins:
        value, origin = expected.get(key, (None, None))
        if key not in expected and settings.origins[key] != "default":
            continue  # a table row names what it is about
        assert held(settings, key) == (value if key in expected else held(default, key))
        assert settings.origins[key] == (origin or "default")
    assert set(settings.origins) == {*(f.name for f in fields(Budget)), "input", "layout", "reason"}


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("net.py", "net.py", True),
        ("net.py", "a/net.py", False),
        ("./net.py", "net.py", True),
        ("*.py", "net.py", True),
        ("*.py", "a/net.py", False),
        ("a/*", "a/net.py", True),
        ("a/*", "a/b/net.py", False),
        ("**", "a/b/net.py", True),
        ("**/net.py", "net.py", True),
        ("**/net.py", "a/b/net.py", True),
        ("a/**", "a/b/net.py", True),
        ("a/**", "ab/net.py", False),
        ("a/**/b/*.py", "a/b/net.py", True),
        ("a/**/b/*.py", "a/x/y/b/net.py", True),
        ("a/**/b/*.py", "a/x/y/c/net.py", False),
        ("**/b/**/*.py", "a/b/c/b/net.py", True),
        ("a/n[ae]t.py", "a/net.py", True),
        ("a/n[!e]t.py", "a/net.py", False),
        ("a/???.py", "a/net.py", True),
        ("a.b/*.py", "axb/net.py", False),
        ("A/*.py", "a/net.py", False),
    ],
)
def test_path_patterns(tree, pattern, path, matches):
    tree({"pyproject.toml": f'[tool.rfcalc]\n[[tool.rfcalc.design]]\npath = "{pattern}"\nmax_params = 5'})
    assert (settings_for(Path(path)).budget.max_params == 5) is matches


def test_a_named_config_is_read_in_place_of_the_nearest(tree, tmp_path):
    tree(
        {
            "pyproject.toml": SECTION,
            "ci/strict.toml": "[tool.rfcalc]\nmin_rf = 99",
        }
    )
    settings = settings_for(Path("net.py"), config=Path("ci/strict.toml"))
    assert settings.budget == Budget(min_rf=99)
    assert settings.origins["min_rf"] == "ci/strict.toml [tool.rfcalc]"


def test_patterns_are_relative_to_the_named_config(tree):
    entry = '[tool.rfcalc]\n[[tool.rfcalc.design]]\npath = "*.py"\nmax_layers = 3'
    tree({"ci/strict.toml": entry})
    config = Path("ci/strict.toml")
    assert settings_for(Path("ci/net.py"), config=config).budget.max_layers == 3
    assert settings_for(Path("net.py"), config=config).budget.max_layers is None


@pytest.mark.parametrize(
    ("files", "flags", "wins"),
    [
        ({}, {}, False),
        ({"pyproject.toml": SECTION}, {}, False),
        ({"pyproject.toml": SECTION}, {"input": "1x8x8"}, True),
        ({}, {"input": "1x8x8"}, True),
        ({"pyproject.toml": SECTION + '[[tool.rfcalc.design]]\npath = "*.py"\ninput = "1x9x9"'}, {}, True),
        ({"pyproject.toml": SECTION + '[[tool.rfcalc.design]]\npath = "*.py"\nmin_rf = 3'}, {}, False),
    ],
)
def test_only_a_shape_for_this_very_design_wins_over_its_own(tree, files, flags, wins):
    tree(files)
    assert settings_for(Path("net.py"), flags=flags).input_wins is wins


def test_a_file_that_changes_is_read_anew(tree):
    tree({"pyproject.toml": "[tool.rfcalc]\nmin_rf = 10"})
    assert settings_for(Path("net.py")).budget.min_rf == 10
    tree({"pyproject.toml": "[tool.rfcalc]\nmin_rf = 20"})
    assert settings_for(Path("net.py")).budget.min_rf == 20


def test_a_config_outside_the_current_folder_is_named_in_full(tree, tmp_path, monkeypatch):
    tree({"pyproject.toml": SECTION, "a/net.py": ""})
    monkeypatch.chdir(tmp_path / "a")
    assert settings_for(Path("net.py")).origins["max_params"] == f"{tmp_path}/{TOP}"


def test_rows_say_what_applies_as_the_file_would(tree):
    tree({"pyproject.toml": OVERRIDES})
    found = rows(settings_for(Path("models/big/net.py"), flags={"input": "x=3x8,y=4"}))
    big, models = ENTRY + '"models/big/*.py"', ENTRY + '"models/**/*.py"'
    assert [key for key, _, _ in found] == [*LIMITS, "input", "layout", "reason"]
    assert [row for row in found if row[2] != "default"] == [
        ("max_params", "false", big),
        ("min_rf", "40", models),
        ("require_exact", "true", big),
        ("input", '"x=3x8,y=4"', "--input"),
        ("reason", '"they teach"', models),
    ]
    assert {("max_macs", "false", "default"), ("layout", "(by the number of dims)", "default")} < set(found)


@pytest.mark.parametrize("shape", ["1x28x28", "10", "3x64x64,1x4", "image=3x64x64,tokens=10"])
def test_rows_that_a_file_could_hold_read_back_the_same(tree, shape):
    given = settings_for(Path("net.py"), flags={"input": shape, "layout": "CHW", "max_macs": 10**12, "min_rf": False})
    lines = [f"{key} = {value}" for key, value, _ in rows(given)]
    tree({"pyproject.toml": "\n".join(["[tool.rfcalc]", *lines])})
    read = settings_for(Path("net.py"))
    assert (read.budget, read.input_shape, read.layout) == (given.budget, given.input_shape, given.layout)
    assert [row[:2] for row in rows(read)] == [row[:2] for row in rows(given)]


# --- what is wrong -------------------------------------------------------------------------------------------


def top(line):
    return f"[tool.rfcalc]\n{line}"


def entry(line):
    return f'[tool.rfcalc]\n[[tool.rfcalc.design]]\npath = "no/such/*.py"\n{line}'


E = 'pyproject.toml [[tool.rfcalc.design]] path = "no/such/*.py": '
T = "pyproject.toml [tool.rfcalc]: "
BROKEN = {
    "not TOML": ("[tool.rfcalc", "pyproject.toml: not TOML: Expected ']' at the end of a table declaration"),
    "not text": (b"\xff\xfe", "pyproject.toml: not TOML: 'utf-8' codec can't decode"),
    "nested beyond reason": ("x = " + "[" * 5000, "pyproject.toml: not TOML: "),
    "a number beyond reason": (top("max_params = " + "9" * 5000), "pyproject.toml: not TOML: Exceeds the limit"),
    "a hexadecimal number beyond reason": (top("min_rf = [0x" + "f" * 9000 + "]"), T + "min_rf = a list with a number"),
    "set twice": (top("min_rf = 1\nmin_rf = 2"), "pyproject.toml: not TOML: Cannot overwrite a value"),
    "no table": ("[tool]\nrfcalc = 3", "pyproject.toml [tool.rfcalc]: 3: expected a table"),
    "unknown key": (top("max_parms = 3"), T + 'unknown key "max_parms"; did you mean max_params?'),
    "a key in capitals": (top("MAX_PARAMS = 3"), T + 'unknown key "MAX_PARAMS"; did you mean max_params?'),
    "a key with a dash": (top("min-rf-spatial = 3"), T + 'unknown key "min-rf-spatial"; did you mean min_rf_spatial?'),
    "a key unlike any": (top("zzz = 3"), T + 'unknown key "zzz"; expected one of max_params, min_rf, '),
    "a key of two lines": (top('"a\\nb" = 3'), T + 'unknown key "a\\nb"; expected one of '),
    "a text": (top('max_params = "8000"'), T + 'max_params = "8000": expected a whole number above 0'),
    "a fraction": (top("max_params = 8e3"), T + "max_params = 8000.0: expected a whole number above 0"),
    "nan": (top("min_rf = nan"), T + "min_rf = nan: expected a whole number above 0"),
    "infinity": (top("min_rf = inf"), T + "min_rf = inf: expected a whole number above 0"),
    "zero": (top("max_params = 0"), T + "max_params = 0: expected a whole number above 0"),
    "negative": (top("max_macs = -1"), T + "max_macs = -1: expected a whole number above 0"),
    "a limit that is true": (top("max_params = true"), T + "max_params = true: expected a whole number above 0"),
    "a date": (top("max_layers = 2020-01-01"), T + 'max_layers = "2020-01-01": expected a whole number above 0'),
    "a table": (top("max_params = { a = 1 }"), T + 'max_params = {"a": 1}: expected a whole number above 0'),
    "a long list": (top(f"max_params = {list(range(99))}"), T + "max_params = [0, 1, 2, 3, 4, "),
    "a number for a flag": (top("require_exact = 1"), T + "require_exact = 1: expected true or false"),
    "a shape of words": (
        top('input = "big"'),
        T + 'input = "big": expected whole numbers above 0 joined by x, as in 1x28',
    ),
    "an empty shape": (top('input = ""'), T + 'input = "": expected whole numbers above 0'),
    "a shape of zero": (top('input = "1x0x28"'), T + 'input = "1x0x28": expected whole numbers above 0'),
    "a name twice": (top('input = "x=1,x=2"'), T + 'input = "x=1,x=2": an input is named twice'),
    "a shape list of words": (top('input = ["1x28x28"]'), T + 'input = ["1x28x28"]: expected a shape, as in "1x28x28"'),
    "a shape of one number": (top("input = 28"), T + 'input = 28: expected a shape, as in "1x28x28"'),
    "no shape": (top("input = false"), T + 'input = false: expected a shape, as in "1x28x28"'),
    "a layout of numbers": (top('layout = "12"'), T + 'layout = "12": expected one letter per dim'),
    "a layout without an axis": (top('layout = "C"'), T + 'layout = "C": expected one letter per dim'),
    "an empty layout": (top('layout = ""'), T + 'layout = "": expected one letter per dim'),
    "a layout of no text": (top("layout = 3"), T + "layout = 3: expected one letter per dim"),
    "a path for all": (top('path = "a.py"'), T + 'unknown key "path"; did you mean paths?'),
    "one path": (top('paths = "models"'), T + 'paths = "models": expected a list of files or folders'),
    "an empty path": (top('paths = [""]'), T + 'paths = [""]: expected a list of files or folders'),
    "design as a table": ("[tool.rfcalc.design]\nmax_params = 3", "expected tables headed [[tool.rfcalc.design]]"),
    "design as a number": (top("design = 3"), T + "design = 3: expected tables headed [[tool.rfcalc.design]]"),
    "design as a list of numbers": (top("design = [3]"), "[[tool.rfcalc.design]] number 1: 3: expected a table"),
    "no path": (
        top("[[tool.rfcalc.design]]\nmax_params = 3"),
        "pyproject.toml [[tool.rfcalc.design]] number 1: has no path; expected the designs it is for, as in path = ",
    ),
    "a path that is a number": (
        top("[[tool.rfcalc.design]]\npath = 3"),
        "number 1: path = 3: expected a pattern of files",
    ),
    "a blank path": (top('[[tool.rfcalc.design]]\npath = " "'), 'number 1: path = " ": expected a pattern of files'),
    "a path from the root": (top('[[tool.rfcalc.design]]\npath = "/a/*.py"'), 'path = "/a/*.py": leads out of'),
    "a path upward": (top('[[tool.rfcalc.design]]\npath = "a/../*.py"'), 'path = "a/../*.py": leads out of'),
    "a bare folder": (top('[[tool.rfcalc.design]]\npath = "models/"'), 'path = "models/": no pattern of Python files'),
    "this folder": (top('[[tool.rfcalc.design]]\npath = "."'), 'path = ".": no pattern of Python files'),
    "an unknown key for other designs": (entry("max_param = 3"), 'unknown key "max_param"; did you mean max_params?'),
    "a wrong type for other designs": (entry("min_rf = []"), E + "min_rf = []: expected a whole number above 0"),
    "a wrong shape for other designs": (entry('input = "a"'), E + 'input = "a": expected whole numbers above 0'),
    "a reason that is none": (entry("reason = 3"), E + "reason = 3: expected a text"),
}


@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_one_line_with_file_and_key(tree, text, message):
    tree({"pyproject.toml": text})
    for ask in (lambda: settings_for(Path("net.py")), lambda: settings_for(None), default_targets):
        with pytest.raises(ConfigError, match=re.escape(message)) as caught:
            ask()
        assert str(caught.value).startswith("pyproject.toml")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"max_params": 0}, "--max-params 0: expected a whole number above 0"),
        ({"min_rf_spatial": -3}, "--min-rf-spatial -3: expected a whole number above 0"),
        ({"input": "1xbx3"}, '--input "1xbx3": expected whole numbers above 0 joined by x'),
        ({"layout": "1"}, '--layout "1": expected one letter per dim'),
    ],
)
def test_a_broken_flag_is_named(tree, flags, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        settings_for(Path("net.py"), flags=flags)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.toml", None, "none.toml: no such file; expected a TOML file with a [tool.rfcalc] section"),
        ("net.py/x.toml", None, "net.py/x.toml: no such file"),
        (".", None, "cannot be read: Is a directory"),
        ("other.toml", "[tool.ruff]", "other.toml: has no [tool.rfcalc] section"),
        ("other.toml", "[rfcalc]\nmin_rf = 3", "other.toml: has no [tool.rfcalc] section"),
        ("other.toml", "tool = 3", "other.toml: has no [tool.rfcalc] section"),
        ("other.toml", top("max_parms = 3"), "other.toml [tool.rfcalc]: unknown key"),
    ],
)
def test_a_named_config_that_does_not_do(tree, name, text, message):
    tree({"net.py": "", **({name: text} if text else {})})
    with pytest.raises(ConfigError, match=re.escape(message)):
        settings_for(Path("net.py"), config=Path(name))


# --- no targets ----------------------------------------------------------------------------------------------

TARGETLESS = {
    "models beside the file": ({"pyproject.toml": "[tool.rfcalc]", "models/a.py": ""}, ".", ("models",)),
    "models without any file": ({"models/a.py": ""}, ".", ("models",)),
    "paths win over models": (
        {"pyproject.toml": top('paths = ["a", "b/*.py"]'), "models/a.py": ""},
        ".",
        ("a", "b/*.py"),
    ),
    "from a folder below": ({"pyproject.toml": "[tool.rfcalc]", "models/a.py": "", "x/y": ""}, "x", ("../models",)),
}


@pytest.mark.parametrize(("files", "here", "expected"), TARGETLESS.values(), ids=TARGETLESS)
def test_what_is_judged_when_nothing_is_named(tree, tmp_path, monkeypatch, files, here, expected):
    tree(files)
    monkeypatch.chdir(tmp_path / here)
    assert default_targets() == expected


@pytest.mark.parametrize("files", [{}, {"pyproject.toml": "[tool.rfcalc]"}, {"models": "a file"}])
def test_nothing_to_judge(tree, tmp_path, monkeypatch, files):
    monkeypatch.chdir(tmp_path)
    tree(files)
    with pytest.raises(
        DesignError, match=r"^no target found: there is no folder models; name files or folders, or set"
    ):
        default_targets()


def test_paths_of_a_named_config(tree):
    tree({"ci/x.toml": top('paths = ["nets"]')})
    assert default_targets(Path("ci/x.toml")) == ("ci/nets",)


# --- this repository's own -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ladder", LADDERS, ids=lambda ladder: ladder["id"])
def test_the_ladders_pass_with_limits_as_tight_as_they_can_be(ladder):
    settings = settings_for(ROOT / ladder["file"])
    over = ladder["params"] > Budget().max_params
    assert settings.budget == (Budget(max_params=ladder["params"]) if over else Budget())
    assert bool(settings.reason) is over
    assert ladder["rf_final"] >= settings.budget.min_rf


def test_every_override_of_this_repository_is_for_designs_that_are_there():
    entries = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["rfcalc"]["design"]
    assert all(list(ROOT.glob(one["path"])) for one in entries)


def test_a_broken_configuration_is_a_users_error():
    assert issubclass(ConfigError, RfcalcError)
