"""The rendering alone: verdicts made by hand, so that no judgement can change what is expected here."""

import copy
import dataclasses
import json
import re
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import jsonschema
import pytest
import xmlschema
from hypothesis import given
from hypothesis import strategies as st

import rfcalc
from rfcalc.errors import RfcalcError
from rfcalc.gate.advice import Advice
from rfcalc.gate.budget import LIMITS, Budget, Violation
from rfcalc.gate.cautions import Caution
from rfcalc.gate.verdict import Figures, Verdict
from rfcalc.render.verdicts import checked_format, formats, verdicts

SCHEMAS = Path(__file__).parents[1] / "schemas"
OWN = json.loads((Path(rfcalc.__file__).parent / "schemas/verdict-1.json").read_text())
SARIF = json.loads((SCHEMAS / "sarif-2.1.0.json").read_text())
JUNIT = xmlschema.XMLSchema(SCHEMAS / "junit-10.xsd")

GOOD = Figures(6720, 6720, 988576, 76864, (28, 28), (18, 18), 9)
WIDE = Figures(12340, 12340, 2488576, 176864, (24, 20), (18, 18), 9)
PASSED = Verdict(
    "models/step8.py", "models/step8.py:Net", "models/step8.py", 31, "pass", Budget(), GOOD, suits=((18, 28), (18, 28))
)
WARNED = dataclasses.replace(
    PASSED,
    target="package.nets:tall",
    design="package.nets:tall",
    file=None,
    line=None,
    suits=((18, 28), None),
    cautions=(
        Caution("unproductive", ("output.3", "output.5"), "output.3, output.5 see the whole image before they begin"),
        Caution("unreached", ("aux",), "aux: 1,000 parameters that the forward never reaches"),
    ),
)
FAILED = Verdict(
    "models/wide.py",
    "models/wide.py:Net",
    "models/wide.py",
    12,
    "fail",
    Budget(),
    WIDE,
    violations=(
        Violation(
            "max_params",
            8000,
            12340,
            4340,
            ("body.8", "body.4", "body.0", "input.4", "input.0"),
            "12,340 parameters: 4,340 over the limit of 8,000",
        ),
        Violation("min_rf", 28, 20, 8, (), "receptive field 20 at the output: 8 below the required 28"),
    ),
    advice=(
        Advice(
            "max_params",
            "narrow",
            "body.8",
            "Give body.8 9 channels instead of 18.",
            7900,
            900000,
            (24, 20),
            (18, 18),
            False,
        ),
        Advice("min_rf", "conv", "body.8", "Put a pool before body.8", 7950, 800000, (32, 28), (26, 26), True),
    ),
    cautions=(Caution("gridding", ("body.4",), "body.4: dilation 2 leaves holes in what it sees"),),
    suits=((14, 24), (14, 20)),
)
BROKEN = Verdict(
    "models/a, b%.py",
    "models/a, b%.py",
    "models/a, b%.py",
    None,
    "error",
    Budget(),
    error="models/a, b%.py:3: not valid Python: invalid syntax",
)
MIXED = (PASSED, WARNED, FAILED, BROKEN)
OLDER = dataclasses.replace(GOOD, params=7032, rf_output=(26, 26), macs=988575)
CHANGED = tuple(
    dataclasses.replace(verdict, before=before)
    for verdict, before in ((PASSED, OLDER), (WARNED, GOOD), (FAILED, None), (BROKEN, None))
)


@pytest.fixture(autouse=True)
def anywhere(monkeypatch):
    """GitHub's own runner tells where its repository begins; here no runner does."""
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)


@pytest.mark.parametrize(
    ("name", "found", "options"),
    [
        ("verdicts_text.txt", MIXED, {"skipped": 3}),
        ("verdicts_text_base.txt", CHANGED, {"base": "main"}),
        ("verdicts_text_quiet.txt", MIXED, {"quiet": True, "skipped": 3}),
        ("verdicts_text_color.txt", MIXED, {"color": True}),
        ("verdicts_text_narrow.txt", MIXED, {"width": 60, "ascii_only": True}),
        ("verdicts_json.txt", CHANGED, {"fmt": "json", "skipped": 1}),
        ("verdicts_github.txt", MIXED, {"fmt": "github", "skipped": 1}),
        ("verdicts_sarif.txt", MIXED, {"fmt": "sarif"}),
        ("verdicts_junit.txt", MIXED, {"fmt": "junit", "skipped": 3}),
    ],
)
def test_the_whole_text(golden, monkeypatch, name, found, options):
    monkeypatch.setattr("rfcalc.render.verdicts.VERSION", "1.2.3")
    golden(name, verdicts(found, **options))


def test_the_formats_are_checked():
    assert [checked_format(fmt) for fmt in formats()] == ["text", "json", "github", "sarif", "junit"]
    with pytest.raises(RfcalcError, match="format 'jnuit': unknown; did you mean junit"):
        verdicts([], fmt="jnuit")


# --- text ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "skipped", "last"),
    [
        ((), 0, "nothing to judge"),
        ((), 1, "1 file without a design"),
        ((PASSED,) * 1200, 0, "1,200 passed"),
        ((FAILED,), 2, "1 rejected, 2 files without a design"),
        (MIXED, 3, "2 passed, 1 rejected, 1 could not be judged, 3 files without a design"),
    ],
)
def test_the_last_line_counts(found, skipped, last):
    assert verdicts(found, skipped=skipped).splitlines()[-1] == last


def test_quiet_says_nothing_of_what_passed():
    assert verdicts([PASSED, WARNED], quiet=True, skipped=4) == ""
    text = verdicts(MIXED, quiet=True)
    assert "step8" not in text
    assert "gridding" not in text
    assert "models/wide.py:Net" in text
    assert "invalid syntax" in text


def test_no_line_is_wider_than_the_page():
    assert max(map(len, verdicts(CHANGED, skipped=3, base="main").splitlines())) <= 100
    assert max(map(len, verdicts(MIXED, width=None).splitlines())) > 100


def test_a_design_cannot_write_to_the_terminal():
    nasty = dataclasses.replace(PASSED, design="\x1b[2Jnet.py\n", cautions=(Caution("unreached", (), "\x1b[2J"),))
    assert "\x1b" not in verdicts([nasty])


def test_no_advice_is_said_so():
    """Of the violation that has none, and in every format that gives advice in words."""
    some = dataclasses.replace(FAILED, advice=FAILED.advice[1:])
    none = "none found among the changes that rfcalc tries"
    fixes = [line.split("fix ")[1].strip() for line in verdicts([some], width=None).splitlines() if "  fix " in line]
    assert fixes[0] == none
    assert [fix.startswith("Put a pool") for fix in fixes[1:]] == [True]
    for fmt in ("github", "sarif", "junit"):
        assert verdicts([some], fmt=fmt).count(f"fix: {none}") == 1
        assert none not in verdicts([FAILED], fmt=fmt)


def test_a_column_that_says_nothing_is_left_out():
    assert "suits" in verdicts([PASSED])
    assert "suits" not in verdicts([dataclasses.replace(PASSED, suits=())])


# --- JSON ----------------------------------------------------------------------------------------------------


def test_json_holds_everything():
    found = json.loads(verdicts(CHANGED, fmt="json", skipped=3))
    jsonschema.validate(found, OWN)
    assert found["schema"] == "rfcalc.verdict/1"
    assert found["summary"] == {"passed": 2, "rejected": 1, "not_judged": 1, "skipped": 3}
    assert found["verdicts"] == json.loads(json.dumps([dataclasses.asdict(verdict) for verdict in CHANGED]))


def objects(value, path=()):
    """The paths of all objects in a JSON value."""
    if isinstance(value, dict):
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from objects(item, (*path, key))


def test_the_schema_takes_nothing_more_and_nothing_less():
    jsonschema.Draft202012Validator.check_schema(OWN)
    whole = json.loads(verdicts(CHANGED, fmt="json"))
    places = list(objects(whole))
    assert len(places) > 20
    for path in places:
        changed = copy.deepcopy(whole)
        place = changed
        for key in path:
            place = place[key]
        place["colour"] = "red"
        with pytest.raises(jsonschema.ValidationError, match="colour"):
            jsonschema.validate(changed, OWN)
        del place["colour"]
        # A limit that came after the schema is in what it describes, but not required of what was written before.
        later = LIMITS.keys() - OWN["$defs"]["budget"]["required"] if path[-1:] == ("budget",) else set()
        for key in place.keys() - later:
            value = place.pop(key)
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(changed, OWN)
            place[key] = value


@pytest.mark.parametrize(
    ("number", "changes"),
    [
        (0, {"outcome": "passed"}),
        (0, {"line": 0}),
        (0, {"figures": None}),
        (0, {"error": "broken"}),
        (2, {"violations": []}),
        (2, {"outcome": "pass"}),
        (3, {"error": ""}),
        (3, {"figures": dataclasses.asdict(GOOD)}),
    ],
)
def test_the_schema_knows_what_goes_together(number, changes):
    whole = json.loads(json.dumps(json.loads(verdicts(MIXED, fmt="json"))))
    whole["verdicts"][number].update(changes)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(whole, OWN)


# --- GitHub --------------------------------------------------------------------------------------------------


def test_github_takes_paths_from_the_top_of_the_repository(monkeypatch, tmp_path):
    inside = tmp_path / "sub/models"
    inside.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "sub")
    found = [
        dataclasses.replace(BROKEN, file="models/net.py"),
        dataclasses.replace(BROKEN, file=str(inside / "net.py")),
        dataclasses.replace(BROKEN, file="/elsewhere/net.py"),
        dataclasses.replace(BROKEN, file=None),
    ]

    def files():
        lines = verdicts(found, fmt="github").splitlines()[:-1]
        return [match and match[1] for match in (re.match("::error file=([^,]*),", line) for line in lines)]

    assert files() == ["models/net.py", "models/net.py", "/elsewhere/net.py", None]
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    assert files() == ["sub/models/net.py", "sub/models/net.py", "/elsewhere/net.py", None]


# --- SARIF and JUnit -----------------------------------------------------------------------------------------


def sarif_run(found):
    log = json.loads(verdicts(found, fmt="sarif"))
    jsonschema.Draft4Validator(SARIF).validate(log)
    (run,) = log["runs"]
    return run


def test_sarif_has_a_rule_for_every_limit_and_caution():
    run = sarif_run(MIXED)
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert {field.name.replace("_", "-") for field in dataclasses.fields(Budget)} < set(rules)
    results = run["results"]
    assert [result["ruleId"] for result in results] == ["unproductive", "unreached", "max-params", "min-rf", "gridding"]
    assert all(rules[result["ruleIndex"]] == result["ruleId"] for result in results)
    assert [result["level"] for result in results] == ["warning", "warning", "error", "error", "warning"]


def test_sarif_tells_a_failed_run_from_a_finding():
    (invocation,) = sarif_run([PASSED, FAILED])["invocations"]
    assert invocation == {"executionSuccessful": True, "toolExecutionNotifications": []}
    run = sarif_run([BROKEN])
    assert run["results"] == []
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is False
    assert invocation["toolExecutionNotifications"][0]["message"]["text"] == BROKEN.error


def test_sarif_places(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def place(file):
        (result, *_) = sarif_run([dataclasses.replace(FAILED, file=file)])["results"]
        return result["locations"][0].get("physicalLocation")

    relative = {"uri": "a%20b/n%C3%A9t%23%3A.py", "uriBaseId": "%SRCROOT%"}
    assert place("a b/nét#:.py") == {"artifactLocation": relative, "region": {"startLine": 12}}
    assert place(str(tmp_path / "a b/nét#:.py"))["artifactLocation"] == relative
    assert place("/else where/net.py")["artifactLocation"] == {"uri": "file:///else%20where/net.py"}
    assert place("caf\udce9.py")["artifactLocation"]["uri"] == "caf%E9.py"
    assert place(None) is None


def junit(found, **options):
    text = verdicts(found, fmt="junit", **options)
    JUNIT.validate(text)
    return ElementTree.fromstring(text)


def test_junit_counts_what_it_holds():
    (suite,) = junit(MIXED, skipped=3)
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "4",
        "failures": "1",
        "errors": "1",
        "skipped": "0",
    }
    assert [case.get("name") for case in suite.iter("testcase")] == [verdict.design for verdict in MIXED]
    assert [len(list(suite.iter(kind))) for kind in ("failure", "error")] == [1, 1]
    assert "fix: Put a pool before body.8: 7,950 params" in suite.find("testcase/failure").text


# --- whatever the names ----------------------------------------------------------------------------------------

WORDS = st.text(st.characters(), max_size=12)  # surrogates too: undecodable file names hold them
NAMES = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=12)


@st.composite
def any_verdict(draw):
    outcome = draw(st.sampled_from(["pass", "fail", "error"]))
    figures = st.builds(
        Figures, *[st.integers(0, 10**15)] * 4, *[st.lists(st.integers(0, 999), max_size=4).map(tuple)] * 2, st.just(1)
    )
    layers = st.lists(WORDS, max_size=6).map(tuple)
    violation = st.builds(
        Violation, st.sampled_from(["max_params", "min_rf"]), *[st.integers(0, 99)] * 3, layers, WORDS
    )
    return Verdict(
        draw(WORDS),
        draw(WORDS),
        draw(st.none() | NAMES),
        draw(st.none() | st.integers(1, 10**6)),
        outcome,
        Budget(),
        None if outcome == "error" else draw(figures),
        tuple(draw(st.lists(violation, min_size=1, max_size=2))) if outcome == "fail" else (),
        cautions=tuple(draw(st.lists(st.builds(Caution, st.just("unreached"), layers, WORDS), max_size=2))),
        error=draw(WORDS.filter(bool)) if outcome == "error" else "",
    )


@given(st.lists(any_verdict(), max_size=4))
def test_every_format_takes_any_name_and_message(found):
    jsonschema.validate(json.loads(verdicts(found, fmt="json")), OWN)

    run = sarif_run(found)
    for result in run["results"]:
        uri = result["locations"][0].get("physicalLocation", {}).get("artifactLocation", {}).get("uri", "")
        assert re.fullmatch(r"(file:///)?[A-Za-z0-9_.~/%()*!'&=+$,;:@-]*", uri)
        assert "\0" not in unquote(uri)

    (suite,) = junit(found)
    assert len(suite.findall("testcase")) == len(found)

    *lines, _ = verdicts(found, fmt="github").split("\n")
    findings = sum(len(v.violations) + len(v.cautions) + (v.outcome == "error") for v in found)
    assert len(lines) == findings
    for line in lines:
        assert re.match(r"::(error|warning) (file=[^,:]*,(line=\d+,)?)?title=[^,:]*::", line)
        assert "\r" not in line

    assert all(line.isprintable() for line in verdicts(found, base="main").split("\n"))
