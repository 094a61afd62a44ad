"""`rfcalc check`: what is judged by what, exit codes, and every way it can go wrong. How verdicts look:
tests/render/test_verdicts.py; workers that hang or die: tests/test_workers.py."""

import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
import warnings
from pathlib import Path

import jsonschema
import pytest
import torch

import rfcalc as library
from rfcalc.gate.budget import LIMITS

ROOT = Path(__file__).parents[2]
LADDERS = json.loads((ROOT / "tests/golden/ladders.json").read_text())["designs"]
SCHEMA = json.loads((Path(library.__file__).parent / "schemas/verdict-1.json").read_text())
RFCALC = [sys.executable, "-c", "from rfcalc_cli.main import main; main()"]

NET = """
    from torch import nn
    INPUT_SHAPE = (1, 12, 12)
    print("a design may talk")

    class Net(nn.Module):
        def __init__(self, width=4):
            super().__init__()
            self.first = nn.Conv2d(1, width, 3)
            self.last = nn.Conv2d(width, 2, 3)

        def forward(self, x):
            return self.last(self.first(x))
"""
CONFIG = """
    [tool.rfcalc]
    max_params = 150
    min_rf = 5
"""
EXITING = NET.replace("return", "raise SystemExit(0); return")


@pytest.fixture
def nets(write_design):
    """Two designs that pass, one too wide, one that exits, one that is not Python, and a file without a design."""
    write_design(CONFIG, "pyproject.toml")
    write_design(NET, "models/a.py")
    write_design(NET.replace("width=4", "width=8"), "models/wide.py")
    write_design(NET.replace("width=4", "width=2"), "models/z.py")
    write_design("WIDTH = 8", "models/constants.py")
    write_design(EXITING, "broken/exiting.py")
    write_design("class Net(:", "broken/syntax.py")


def judged(found) -> dict[str, dict]:
    """The verdicts of `--format json` by target, once they fit their schema."""
    data = json.loads(found.out)
    jsonschema.validate(data, SCHEMA)
    return {verdict["target"]: verdict for verdict in data["verdicts"]}


def outcomes(found) -> dict[str, str]:
    return {target: verdict["outcome"] for target, verdict in judged(found).items()}


# --- exit codes ----------------------------------------------------------------------------------------------

GOOD, WIDE, EXIT, SYNTAX = "models/a.py", "models/wide.py", "broken/exiting.py", "broken/syntax.py"


@pytest.mark.parametrize(
    ("targets", "code", "expected"),
    [
        ([GOOD], 0, {GOOD: "pass"}),
        (["models/constants.py"], 0, {}),
        ([WIDE], 1, {WIDE: "fail"}),
        ([EXIT], 2, {EXIT: "error"}),
        ([WIDE, SYNTAX, GOOD], 2, {WIDE: "fail", SYNTAX: "error", GOOD: "pass"}),
        (["models"], 1, {GOOD: "pass", WIDE: "fail", "models/z.py": "pass"}),
        (["models/[az].py"], 0, {GOOD: "pass", "models/z.py": "pass"}),
        ([], 1, {GOOD: "pass", WIDE: "fail", "models/z.py": "pass"}),
        (["broken", "nowhere.py", "models/z.py:Net"], 2, {
            EXIT: "error", SYNTAX: "error", "nowhere.py": "error", "models/z.py:Net": "pass",
        }),
    ],
)  # fmt: skip
def test_exit_codes(rfcalc, nets, targets, code, expected):
    found = rfcalc("check", *targets, "--format", "json")
    assert found.code == code
    assert list(outcomes(found).items()) == list(expected.items())
    lines = [line for line in found.err.splitlines() if line != "a design may talk"]
    assert len(lines) == list(expected.values()).count("error")
    assert all(line.startswith("rfcalc: ") for line in lines)


@pytest.mark.parametrize("jobs", ["1", "2", "9"])
def test_the_order_does_not_depend_on_the_number_of_jobs(rfcalc, nets, jobs):
    found = rfcalc("check", "models", "broken", "models/wide.py:Net", "-j", jobs, "--format", "json")
    assert list(outcomes(found)) == [GOOD, WIDE, "models/z.py", EXIT, SYNTAX, "models/wide.py:Net"]


def test_the_text_gives_a_line_per_design_and_what_would_mend_it(rfcalc, nets):
    found = rfcalc("check", "models", "broken")
    heading, _, *lines = found.out.split("\n\n")[0].splitlines()
    assert heading.split()[:6] == "verdict design params RF spatial RF".split()
    assert [line.split()[:2] for line in lines] == [
        ["PASS", "models/a.py:Net"],
        ["FAIL", "models/wide.py:Net"],
        ["PASS", "models/z.py:Net"],
        ["ERROR", "broken/exiting.py"],
        ["ERROR", "broken/syntax.py"],
    ]
    assert re.search(r"missed +226 parameters", found.out)
    assert re.search(r"fix +.* then it passes", " ".join(found.out.split()))
    assert found.out.endswith("2 passed, 1 rejected, 2 could not be judged, 1 file without a design\n")
    assert "not valid Python" not in found.out
    assert "rfcalc: broken/syntax.py:1: not valid Python" in found.err


def test_quiet_is_silent_of_what_passes(rfcalc, nets):
    assert rfcalc("check", GOOD, "-q").out == ""
    found = rfcalc("check", "models", "--quiet")
    assert "wide.py" in found.out
    assert "a.py" not in found.out


@pytest.mark.parametrize("fmt", ["json", "github", "sarif", "junit"])
def test_other_formats_reach_the_renderer_and_the_file(rfcalc, nets, fmt):
    found = rfcalc("check", "models", "--format", fmt)
    assert found.code == 1
    assert found.out.startswith(
        {"json": "{", "sarif": "{", "junit": "<?xml", "github": "::error file=models/wide"}[fmt]
    )
    written = rfcalc("check", "models", "--format", fmt, "--output", "found.txt")
    assert (written.code, written.out) == (1, "")
    assert Path("found.txt").read_text() == found.out


def test_an_interrupt_is_silent_and_ends_the_workers(write_design):
    write_design("import os, time\nos.mkdir(f'pid{os.getpid()}')\ntime.sleep(99)\nmodel = 1")
    process = subprocess.Popen([*RFCALC, "check", "net.py"], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(Path().glob("pid*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int(next(Path().glob("pid*")).name.removeprefix("pid")), 0)


def test_a_terminal_shows_how_far_it_is(nets):
    main, side = pty.openpty()
    process = subprocess.Popen([*RFCALC, "check", "models"], stderr=side, stdout=subprocess.DEVNULL)
    os.close(side)
    text = b""
    while b"3 of 3 judged" not in text and (piece := os.read(main, 4096)):
        text += piece
    assert process.wait(60) == 1


# --- settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--max-params", "200"], 1),
        (["--max-params", "226"], 0),
        (["--max-params", "1_000"], 0),
        (["--max-params", "false"], 0),
        (["--max-params", "226", "--min-rf", "6"], 1),
        (["--max-params", "226", "--min-rf-spatial", "6"], 1),
        (["--max-params", "226", "--max-macs", "1000"], 1),
        (["--max-params", "226", "--max-activation-bytes", "100"], 1),
        (["--max-params", "226", "--max-layers", "1"], 1),
        (["--max-params", "226", "--require-exact", "--require-aligned"], 0),
        (["--max-params", "226", "--input", "1x40x40"], 0),
        (["--max-params", "226", "--input", "1x4x4"], 2),
        (["--max-params", "226", "--layout", "TC"], 2),
    ],
)
def test_flags_win_over_the_file(rfcalc, nets, flags, code):
    assert rfcalc("check", WIDE, *flags).code == code


def test_a_config_in_place_of_the_nearest(rfcalc, nets, write_design):
    write_design("[tool.rfcalc]\nmax_params = 300\nmin_rf = 5", "other.toml")
    assert rfcalc("check", WIDE, "--config", "other.toml").code == 0


def test_show_config_tells_where_each_value_comes_from(rfcalc, nets):
    found = rfcalc("check", "--show-config", GOOD, WIDE, "--min-rf", "3")
    assert (found.code, found.err) == (0, "")
    first, second = found.out.rstrip().split("\n\n")
    assert first.splitlines()[0] == GOOD
    assert second.splitlines()[0] == WIDE
    rows = [re.split("  +", line.strip()) for line in first.splitlines()[1:]]
    assert ["max_params", "150", "pyproject.toml [tool.rfcalc]"] in rows
    assert ["min_rf", "3", "--min-rf"] in rows
    assert ["max_macs", "false", "default"] in rows
    assert [row[0] for row in rows[: len(LIMITS)]] == [*LIMITS]


def test_help_and_show_config_import_no_torch(nets):
    source = "import sys; from rfcalc_cli.main import run; run(['check', '--help']); run(['check', '--show-config'])"
    code = f"{source}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.endswith(
        "False\n"
    )


def test_help_has_examples(rfcalc):
    text = rfcalc("check", "--help").out
    assert "rfcalc check models/step8.py --max-params 6000" in text
    assert "2 a design could not be judged" in " ".join(text.split())


# --- the ladders ---------------------------------------------------------------------------------------------


def test_the_ladders_get_the_verdicts_of_their_true_numbers(rfcalc, tmp_path):
    """By the built-in budget, 8,000 parameters and RF 28, without this repository's own exceptions."""
    config = tmp_path / "plain.toml"
    config.write_text("[tool.rfcalc]\n")
    found = rfcalc("check", str(ROOT / "models"), "--config", str(config), "--format", "json", "--jobs", "2")
    assert found.code == 1
    verdicts = judged(found)
    assert set(verdicts) == {str(file) for file in (ROOT / "models").rglob("*.py")}
    for known in LADDERS:
        verdict = verdicts[str(ROOT / known["file"])]
        missed = ["max_params"] * (known["params"] > 8_000) + ["min_rf"] * (known["rf_final"] < 28)
        assert [violation["limit"] for violation in verdict["violations"]] == missed
        assert verdict["outcome"] == ("fail" if missed else "pass")
        assert verdict["figures"]["params"] == known["params"]
        assert verdict["figures"]["rf_output"] == [known["rf_final"]] * 2


def test_the_ladders_pass_under_this_repository_s_exceptions(rfcalc, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = rfcalc("check", "-q")
    assert (found.code, found.out, found.err) == (0, "", "")


# --- against a revision --------------------------------------------------------------------------------------


def git(*arguments):
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    environment = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    subprocess.run(["git", *identity, *arguments], check=True, env=environment, stdout=subprocess.DEVNULL)


@pytest.fixture
def repository(nets):
    """The same designs, committed."""
    git("init", "--quiet", "--initial-branch=main")
    git("add", "--all")
    git("commit", "--quiet", "-m", "designs")


def change(path, old, new):
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))


def test_only_what_changed_is_judged_with_the_change_of_each_figure(rfcalc, repository, write_design):
    change(GOOD, "width=4", "width=5")
    Path("models/z.py").rename("models/y.py")
    change("models/y.py", "width=2", "width=3")
    write_design("from torch import nn\nINPUT_SHAPE = (1, 9, 9)\nmodel = nn.Conv2d(1, 4, 5)", "models/new.py")
    change("broken/syntax.py", ":", "::")
    found = rfcalc("check", ".", "--base", "main", "--format", "json")
    assert found.code == 2
    verdicts = judged(found)
    assert {target: verdict["outcome"] for target, verdict in verdicts.items()} == {
        "broken/syntax.py": "error",
        "models/a.py": "pass",
        "models/new.py": "pass",
        "models/y.py": "pass",
    }
    before = {target: v["before"] and v["before"]["params"] for target, v in verdicts.items()}
    assert before == {"broken/syntax.py": None, "models/a.py": 114, "models/new.py": None, "models/y.py": 58}
    text = " ".join(rfcalc("check", "models", "--base", "main").out.split())
    assert "since main: params 114 -> 142, +28" in text
    assert "since main: new" in text


def test_a_name_and_a_part_are_followed(rfcalc, repository):
    change(GOOD, "width=4", "width=5")
    found = judged(rfcalc("check", f"{GOOD}:Net", f"{GOOD}#first", "--input", "1x12x12", "--base", "HEAD",
                          "--format", "json"))  # fmt: skip
    assert [verdict["before"]["params"] for verdict in found.values()] == [114, 40]


def test_nothing_changed(rfcalc, repository):
    found = rfcalc("check", "--base", "main")
    assert (found.code, found.out, found.err) == (0, "no design has changed since main\n", "")
    assert rfcalc("check", "--base", "main", "-q").out == ""
    assert judged(rfcalc("check", "--base", "main", "--format", "json")) == {}


def test_a_design_that_could_not_be_judged_before_is_told(rfcalc, repository):
    change(GOOD, "width=4", "width=(")
    git("commit", "--quiet", "-am", "broken")
    change(GOOD, "width=(", "width=4")
    found = rfcalc("check", GOOD, "--base", "main")
    assert found.code == 0
    assert "since main: new, or not judged there" in " ".join(found.out.split())
    assert f"rfcalc: {GOOD}: not compared with main: main:models/a.py:7: not valid Python" in found.err


def test_what_a_design_imports_by_the_path_is_compared_as_it_was(rfcalc, repository, write_design, monkeypatch):
    write_design("WIDTH = 4", "found_by_path/width.py")
    change(GOOD, "width=4", "width=__import__('found_by_path.width').width.WIDTH")
    git("add", "--all")
    git("commit", "--quiet", "-m", "a width of its own")
    change("found_by_path/width.py", "4", "5")
    change(GOOD, "talk", "speak")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    assert "params 114 -> 142, +28" in " ".join(rfcalc("check", GOOD, "--base", "main").out.split())


def test_a_missing_file_is_not_taken_for_unchanged(rfcalc, repository):
    found = rfcalc("check", "models/nowhere.py", "--base", "main")
    assert found.code == 2
    assert found.err.startswith("rfcalc: models/nowhere.py: no such file")


# --- bad input -----------------------------------------------------------------------------------------------

# what is wrong: arguments, what the line says
REFUSED = {
    "no target": (["check"], "no target found: there is no folder models"),
    "an empty folder": (["check", "empty"], "empty: no target found: a folder without any Python file"),
    "a folder without designs": (["check", "words"], "words: no target found: none of 1 Python files defines a design"),
    "a glob of nothing": (["check", "nets/*.py"], "nets/*.py: no target found: matches no Python file"),
    "a config that is not TOML": (["check", "net.py", "--config", "net.py"], "net.py: not TOML"),
    "a config without a section": (["check", "net.py", "--config", "empty.toml"], "has no [tool.rfcalc] section"),
    "a missing config": (["check", "net.py", "--config", "no.toml"], "no.toml: no such file"),
    "a config that is a folder": (["check", "net.py", "--config", "empty"], "empty: cannot be read: Is a directory"),
    "an unknown key": (["check", "net.py", "--config", "typo.toml"], "did you mean max_params?"),
    "a limit of words": (["check", "net.py", "--max-params", "many"], '--max-params "many": expected a whole number'),
    "a limit of zero": (["check", "net.py", "--min-rf", "0"], "--min-rf 0: expected a whole number above 0, or false"),
    "a negative limit": (["check", "net.py", "--max-macs", "-5"], '--max-macs "-5": expected a whole number above 0'),
    "a huge limit": (["check", "net.py", "--max-macs", "9" * 5000], "expected a whole number above 0"),
    "a malformed shape": (["check", "net.py", "--input", "28,,28"], "as in 1x28x28"),
    "a malformed layout": (["check", "net.py", "--layout", "C"], "--layout \"C\": expected one letter per dim"),
    "an unknown format": (["check", "net.py", "--format", "sarfi"], "format 'sarfi': unknown; did you mean sarif?"),
    "no jobs": (["check", "net.py", "--jobs", "0"], "--jobs"),
    "no time": (["check", "net.py", "--timeout", "0"], "--timeout"),
    "not a repository": (["check", "net.py", "--base", "main"], "not in a git repository"),
    "a module against a revision": (["check", "torch.nn:ReLU", "--base", "main"], "nn:ReLU: an importable module"),
    "output in no folder": (["check", "net.py", "--output", "no/out.txt"], "no/out.txt: cannot be written"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_one_line_and_exit_code_2(rfcalc, write_design, monkeypatch, arguments, says):
    write_design(NET.replace('print("a design may talk")', ""))
    write_design("", "empty.toml")
    write_design("[tool.rfcalc]\nmax_parms = 3", "typo.toml")
    write_design("WIDTH = 3", "words/width.py")
    Path("empty").mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(Path.cwd().parent))
    found = rfcalc(*arguments)
    assert (found.code, found.out) == (2, "")
    assert found.err.startswith("rfcalc: ")
    assert found.err.count("\n") == 1
    assert says in found.err


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("empty", "rfcalc: empty: no target found: a folder without any Python file"),
        ("no/*.py", "rfcalc: no/*.py: no target found: matches no Python file"),
        ("odd/net.py", "rfcalc: odd/pyproject.toml: not TOML"),
    ],
)
def test_what_cannot_be_judged_hides_no_verdict(rfcalc, write_design, bad, says):
    write_design(NET)
    write_design(NET, "odd/net.py")
    write_design("[tool.rfcalc", "odd/pyproject.toml")
    Path("empty").mkdir()
    found = rfcalc("check", "net.py", bad, "--min-rf", "5", "--format", "json")
    assert found.code == 2
    assert {target: verdict["outcome"] for target, verdict in judged(found).items()} == {"net.py": "pass", bad: "error"}
    assert says in found.err
    assert rfcalc("check", bad, "net.py", "--show-config").code == 2


def test_no_settings_of_a_file_that_is_not_there(rfcalc, write_design):
    found = rfcalc("check", "--show-config", "nothere.py")
    assert (found.code, found.out) == (2, "")
    assert found.err.startswith("rfcalc: nothere.py: no such file")


def test_a_failed_forward_is_told_at_its_class(rfcalc, write_design):
    write_design(NET.replace("return", "raise ValueError('odd'); return").replace('print("a design may talk")', ""))
    assert "file=net.py,line=6," in rfcalc("check", "net.py", "--format", "github").out


def test_a_revision_that_does_not_exist(rfcalc, repository):
    found = rfcalc("check", "models", "--base", "nowhere")
    assert (found.code, found.out, found.err.count("\n")) == (2, "", 1)
    assert "'nowhere': no such revision" in found.err


def test_debug_shows_the_traceback_of_a_worker(rfcalc, nets):
    found = rfcalc("check", SYNTAX, "--debug")
    assert "Traceback" in found.err
    assert found.err.splitlines()[-1].startswith("rfcalc: broken/syntax.py:1: not valid Python")


# --- mutations -----------------------------------------------------------------------------------------------

PLAIN = textwrap.dedent(NET.replace('print("a design may talk")', ""))
SETTINGS = textwrap.dedent("""
    [tool.rfcalc]
    max_params = 150
    min_rf = 5
    require_exact = true
    input = "1x12x12"
    layout = "CHW"
    paths = ["models"]

    [[tool.rfcalc.design]]
    path = "big/**/*.py"
    reason = "the teacher"
    max_params = false
""")


def mutated(text: str, rng: random.Random) -> bytes:
    """The text with some of its bytes, words or lines lost, doubled, swapped or turned into others."""
    parts = {"line": text.splitlines(keepends=True), "word": re.findall(r"\w+|\s+|.", text), "byte": list(text)}
    unit = rng.choice(list(parts))
    items = parts[unit]
    for _ in range(rng.randint(1, 3)):
        i, j = rng.randrange(len(items)), rng.randrange(len(items))
        match rng.choice(["cut", "double", "swap", "noise", "end"]):
            case "cut":
                items[i] = ""
            case "double":
                items[i] *= 2
            case "swap":
                items[i], items[j] = items[j], items[i]
            case "noise":
                items[i] = rng.choice("\0\x07\x1b)]}('\"\\#=:;,.-\n\t9é\udcff")
            case "end":
                items[i] = ""
                del items[len(items) - rng.randrange(len(items) // 3) :]
    return "".join(items).encode(errors="surrogateescape")


def fails_without_us(source: bytes) -> bool:
    """Whether Python and torch alone refuse the design."""
    torch_names = dict(vars(torch.nn))
    names: dict[str, object] = {"__name__": "mutated"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(source, "mutated.py", "exec"), names)
        names["Net"]()(torch.zeros(1, *names["INPUT_SHAPE"]))
    except (Exception, SystemExit):
        return True
    finally:
        vars(torch.nn).update(torch_names)  # one sets nn.Conv2d
    return False


def test_mutated_designs_get_an_error_of_one_line_each(rfcalc, write_design):
    rng = random.Random(0)
    sources = {f"net{n:03}.py": mutated(PLAIN, rng) for n in range(200)}
    for name, source in sources.items():
        write_design(source, name)
    found = rfcalc("check", ".", "--max-params", "150", "--min-rf", "5", "--jobs", "2", "--format", "json")
    verdicts = judged(found)
    errors = [target for target, verdict in verdicts.items() if verdict["outcome"] == "error"]
    lines = found.err.splitlines()
    assert found.code == 2
    assert [line.removeprefix("rfcalc: ") for line in lines] == [verdicts[target]["error"] for target in errors]
    assert all(line.startswith(f"rfcalc: {target}") for line, target in zip(lines, errors, strict=True))
    refused = {name for name, source in sources.items() if fails_without_us(source)}
    # What cannot run is an error, unless nothing in it makes a design.
    assert {name for name in refused if name in verdicts} <= set(errors)
    assert all(b"class Net(nn.Module)" not in sources[name] for name in refused - set(errors))
    assert all(b"class Net(nn.Module)" not in sources[name] for name in set(errors) - refused)
    assert len(errors) > 150


def test_mutated_settings_are_refused_in_one_line_each(rfcalc, write_design):
    write_design(PLAIN)
    rng = random.Random(1)
    refused = 0
    for _ in range(120):
        content = mutated(SETTINGS, rng)
        write_design(content, "config.toml")
        found = rfcalc("check", "net.py", "--config", "config.toml", "--format", "json")
        try:
            tomllib.loads(content.decode())
        except ValueError:
            assert found.code == 2
        if found.code == 2:
            refused += 1
            assert re.fullmatch("rfcalc: [^\n]+\n", found.err)
        else:
            assert list(outcomes(found)) == ["net.py"]
    assert refused > 80


def test_mutated_shapes_are_refused_in_one_line_each(rfcalc, write_design):
    write_design(PLAIN)
    rng = random.Random(2)
    shapes = set()
    while len(shapes) < 60:
        shape = list("1x12x12")
        shape[rng.randrange(len(shape))] = rng.choice(
            ["", "xx", "-1", "0", "nan", "inf", "1e9", " ", ".5", ",", "\x1b"]
        )
        shapes.add("".join(shape))
    for shape in shapes - {"1x12x12"}:
        found = rfcalc("check", "net.py", "--input", shape, "--format", "json")
        if re.fullmatch("[1-9][0-9]*(x[1-9][0-9]*)*", shape) and found.code < 2:
            assert list(outcomes(found)) == ["net.py"]
        else:
            assert found.code == 2
            assert re.fullmatch("rfcalc: [^\n]+\n", found.err)
