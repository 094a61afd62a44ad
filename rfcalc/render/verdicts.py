"""Verdicts -> text: for people, for programs (JSON), for GitHub, for code scanning (SARIF), for CI servers (JUnit).

>>> print(verdicts([judge("models/step8.py")]))       # doctest: +SKIP
>>> formats()
['text', 'json', 'github', 'sarif', 'junit']

Nothing is judged here. A new format is one function and its line in `_FORMATS`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_type_hints
from urllib.parse import quote

from rfcalc.errors import RfcalcError
from rfcalc.gate.budget import LIMITS
from rfcalc.gate.cautions import Caution
from rfcalc.render.cells import atom, changes, collapsed, figure_texts, nearest
from rfcalc.render.page import BOLD, DIM, GREEN, RED, YELLOW, Page, fitted, styled, wrapped
from rfcalc.version import VERSION

if TYPE_CHECKING:
    from rfcalc.gate.advice import Advice
    from rfcalc.gate.budget import Violation
    from rfcalc.gate.verdict import Verdict

SCHEMA = "rfcalc.verdict/1"  # described by rfcalc/schemas/verdict-1.json
_SHOWN_LAYERS = 4
_WORDS = {"pass": "PASS", "fail": "FAIL", "error": "ERROR"}
_STYLES = {"pass": GREEN, "fail": RED, "error": YELLOW}


@dataclass(frozen=True)
class _Request:
    """What is asked for besides the verdicts and the format."""

    skipped: int
    quiet: bool
    width: int | None
    color: bool
    ascii_only: bool
    base: str | None
    reasons: bool


def formats() -> list[str]:
    """Every name that `verdicts` takes as `fmt`."""
    return list(_FORMATS)


def checked_format(fmt: str) -> str:
    """The format's name. Raises RfcalcError that gives the nearest names, or all of them."""
    if fmt not in _FORMATS:
        raise RfcalcError(f"format {fmt!r}: unknown; {nearest(fmt, formats())}")
    return fmt


def verdicts(
    verdicts: Sequence[Verdict],
    *,
    skipped: int = 0,
    fmt: str = "text",
    quiet: bool = False,
    width: int | None = 100,
    color: bool = False,
    ascii_only: bool = False,
    base: str | None = None,
    reasons: bool = True,
) -> str:
    """The verdicts as one text; empty when there is nothing to say.

    Args:
        skipped: how many files held no design.
        fmt: one of `formats()`.
        quiet: only what was rejected or could not be judged (format text).
        width: lines are wrapped, and names cut at the left, to keep within it; None leaves them whole (format text).
        color: use terminal colours (format text).
        ascii_only: use no other character than ASCII (format text; JSON, SARIF and JUnit never do).
        base: the revision that `Verdict.before` was measured at; the change of each figure is shown (format text).
        reasons: say why a design could not be judged (format text); False where the caller says so on stderr.

    Raises:
        RfcalcError: an unknown format.
    """
    request = _Request(skipped, quiet, width, color, ascii_only, base, reasons)
    return _FORMATS[checked_format(fmt)](verdicts, request)


# --- what several formats say --------------------------------------------------------------------------------


def _flag(limit: str) -> str:
    """The name a user knows a limit by: `max-params`."""
    return limit.replace("_", "-")


def _counts(verdicts: Sequence[Verdict], skipped: int) -> dict[str, int]:
    found = Counter(verdict.outcome for verdict in verdicts)
    return {"passed": found["pass"], "rejected": found["fail"], "not_judged": found["error"], "skipped": skipped}


def _summary(verdicts: Sequence[Verdict], skipped: int) -> str:
    """`28 passed, 2 rejected, 1 could not be judged, 3 files without a design`, without what there is none of."""
    counts = _counts(verdicts, skipped)
    says = {
        "passed": "passed",
        "rejected": "rejected",
        "not_judged": "could not be judged",
        "skipped": "file without a design" if skipped == 1 else "files without a design",
    }
    return ", ".join(f"{counts[key]:,} {text}" for key, text in says.items() if counts[key]) or "nothing to judge"


def _layers(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN_LAYERS} more" if len(names) > _SHOWN_LAYERS else ""
    return ", ".join(names[:_SHOWN_LAYERS]) + more


def _advised(advice: Advice) -> str:
    """The change, what the changed design measures, and whether that is enough."""
    figures = (
        f"{advice.params:,} params, RF {collapsed(advice.rf_output)}, "
        f"spatial RF {collapsed(advice.rf_spatial)}, {advice.macs:,} MACs"
    )
    return f"{advice.message.rstrip('.')}: {figures}; {'then it passes' if advice.fits else 'not enough alone'}"


def _violated(verdict: Verdict, violation: Violation) -> Iterator[tuple[str, str]]:
    """What is wrong, where it comes from and what would mend it, each with its label."""
    yield "missed", violation.message
    if violation.layers:
        yield "layers", _layers(violation.layers)
    fixes = [_advised(advice) for advice in verdict.advice if advice.limit == violation.limit]
    yield from (("fix", text) for text in fixes or ["none found among the changes that rfcalc tries"])


class _Finding(NamedTuple):
    """A violation or caution as an annotation: one rule, one level, a message of several lines."""

    rule: str
    level: str
    message: str
    about: Violation | Caution


def _findings(verdict: Verdict) -> Iterator[_Finding]:
    for violation in verdict.violations:
        (_, message), *more = _violated(verdict, violation)
        lines = [message, *(f"{label}: {text}" for label, text in more)]
        yield _Finding(_flag(violation.limit), "error", "\n".join(lines), violation)
    for caution in verdict.cautions:
        yield _Finding(caution.kind, "warning", caution.message, caution)


def _below(root: str, file: str) -> Path:
    """The file's path from `root`; its absolute path when it lies elsewhere."""
    path = Path(os.path.abspath(file))
    return path.relative_to(root) if path.is_relative_to(root) else path


# --- text ----------------------------------------------------------------------------------------------------


def _text(verdicts: Sequence[Verdict], request: _Request) -> str:
    """A line per design, then what is to be said of some, then the count."""
    shown = [verdict for verdict in verdicts if not (request.quiet and verdict.outcome == "pass")]
    if request.quiet and not shown:
        return ""
    blocks = [_lines(shown, request)] if shown else []
    blocks += filter(None, (_block(verdict, request) for verdict in shown))
    text = "\n\n".join([*blocks, styled(_summary(verdicts, request.skipped), BOLD, request.color)])
    return text.encode("ascii", "replace").decode() if request.ascii_only else text


def _lines(verdicts: Sequence[Verdict], request: _Request) -> str:
    headings = ["verdict", "design", "params", "RF", "spatial RF", "MACs", "suits inputs"]
    cells = []
    for verdict in verdicts:
        known = {} if verdict.figures is None else {**figure_texts(verdict.figures), "suits inputs": _suits(verdict)}
        line = {"verdict": _WORDS[verdict.outcome], "design": atom(verdict.design), **known}
        cells.append([line.get(heading, "") for heading in headings])
    if not any(line[-1] for line in cells):
        headings, cells = headings[:-1], [line[:-1] for line in cells]
    page = Page("simple", request.width, request.color, request.ascii_only)
    heading, rule, *rows = fitted(headings, cells, page).splitlines()
    words = [_WORDS[verdict.outcome] for verdict in verdicts]
    rows = [
        styled(word, _STYLES[verdict.outcome], request.color) + row.removeprefix(word)
        for row, word, verdict in zip(rows, words, verdicts, strict=True)
    ]
    return "\n".join([styled(heading, BOLD, request.color), styled(rule, DIM, request.color), *rows])


def _suits(verdict: Verdict) -> str:
    """`18..28 px`: the smallest and largest input that fit the depth; `?` along an axis that has none."""
    sizes = collapsed(["?" if size is None else f"{size[0]}..{size[1]}" for size in verdict.suits])
    return f"{sizes} px" if sizes else ""


def _block(verdict: Verdict, request: _Request) -> str:
    """What is to be said of one design beyond its line; empty if nothing is."""
    said = list(_said(verdict, request))
    if not said:
        return ""
    indent = max(len(label) for label, _ in said) + 4
    lines = [wrapped(f"  {label:<{indent - 2}}{atom(text)}", request.width, " " * indent) for label, text in said]
    return "\n".join([styled(atom(verdict.design), BOLD, request.color), *lines])


def _said(verdict: Verdict, request: _Request) -> Iterator[tuple[str, str]]:
    """Label and text of each line of a design's block."""
    if verdict.outcome == "error" and request.reasons:
        yield "error", verdict.error
    for violation in verdict.violations:
        yield from _violated(verdict, violation)
    if not request.quiet:
        yield from (("warn", caution.message) for caution in verdict.cautions)
    if request.base is not None and verdict.figures is not None:
        said = "new, or not judged there" if verdict.before is None else changes(verdict.before, verdict.figures)
        yield "since", f"{request.base}: {said}"


# --- JSON ----------------------------------------------------------------------------------------------------


def _json(verdicts: Sequence[Verdict], request: _Request) -> str:
    found = {
        "schema": SCHEMA,
        "verdicts": [dataclasses.asdict(verdict) for verdict in verdicts],
        "summary": _counts(verdicts, request.skipped),
    }
    return json.dumps(found, indent=1)


# --- GitHub workflow commands --------------------------------------------------------------------------------


def _github(verdicts: Sequence[Verdict], request: _Request) -> str:
    """One annotation per violation, caution and failed judgement; the last line is for the log."""
    lines = []
    for verdict in verdicts:
        if verdict.outcome == "error":
            lines.append(_annotation(verdict, "error", "not judged", verdict.error))
        lines += [
            _annotation(verdict, found.level, found.rule, f"{verdict.design}: {found.message}")
            for found in _findings(verdict)
        ]
    return "\n".join([*lines, _summary(verdicts, request.skipped)])


def _annotation(verdict: Verdict, level: str, title: str, message: str) -> str:
    """`::error file=net.py,line=3,title=...::message`; GitHub takes paths from the top of the repository."""
    properties = {"title": f"rfcalc: {title}"}
    if verdict.file is not None:
        root = os.environ.get("GITHUB_WORKSPACE") or os.getcwd()
        path = _below(root, verdict.file).as_posix()
        properties = {"file": path, **({"line": str(verdict.line)} if verdict.line else {}), **properties}
    named = ",".join(f"{key}={_escaped(value, ':,')}" for key, value in properties.items())
    return f"::{level} {named}::{_escaped(message)}"


def _escaped(text: str, more: str = "") -> str:
    for letter in f"%\r\n{more}":  # the percent sign first: it introduces the others
        text = text.replace(letter, f"%{ord(letter):02X}")
    return text


# --- SARIF ---------------------------------------------------------------------------------------------------


_SARIF = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def _sarif(verdicts: Sequence[Verdict], request: _Request) -> str:
    """SARIF 2.1.0, one run: limits and cautions are rules. What could not be judged is no finding about the code
    but about the run: a notification, and the run not successful (3.20.21, 3.58)."""
    limits = [_flag(name) for name in LIMITS]
    kinds = list(get_args(get_type_hints(Caution)["kind"]))
    rules = [_rule(limit, "error", f"The design misses the limit {limit} of its budget.") for limit in limits]
    rules += [_rule(kind, "warning", f"rfcalc cautions: {kind}.") for kind in kinds]
    failed = [verdict for verdict in verdicts if verdict.outcome == "error"]
    notifications = [
        {
            "descriptor": {"id": "not-judged"},
            "level": "error",
            "message": {"text": verdict.error},
            **_locations(verdict),
        }
        for verdict in failed
    ]
    run = {
        "tool": {
            "driver": {
                "name": "rfcalc",
                "version": VERSION,
                "rules": rules,
                "notifications": [{"id": "not-judged", "shortDescription": {"text": "A design could not be judged."}}],
            }
        },
        "invocations": [{"executionSuccessful": not failed, "toolExecutionNotifications": notifications}],
        "results": [_result(verdict, found, [*limits, *kinds]) for verdict in verdicts for found in _findings(verdict)],
    }
    found = {"$schema": _SARIF, "version": "2.1.0", "runs": [run]}
    return json.dumps(found, indent=1)


def _rule(name: str, level: str, text: str) -> dict[str, Any]:
    return {"id": name, "shortDescription": {"text": text}, "defaultConfiguration": {"level": level}}


def _result(verdict: Verdict, found: _Finding, rules: Sequence[str]) -> dict[str, Any]:
    return {
        "ruleId": found.rule,
        "ruleIndex": rules.index(found.rule),
        "level": found.level,
        "message": {"text": f"{verdict.design}: {found.message}"},
        **_locations(verdict),
        "properties": {"design": verdict.design, **dataclasses.asdict(found.about)},
    }


def _locations(verdict: Verdict) -> dict[str, Any]:
    """Where the design's class stands; a design of an importable module has a name and no file."""
    location: dict[str, Any] = {"logicalLocations": [{"fullyQualifiedName": verdict.design, "kind": "type"}]}
    if verdict.file is not None:
        path = _below(os.getcwd(), verdict.file)
        uri = path.as_uri() if path.is_absolute() else quote(os.fsencode(path.as_posix()))
        location["physicalLocation"] = {
            "artifactLocation": {"uri": uri, **({} if path.is_absolute() else {"uriBaseId": "%SRCROOT%"})},
            "region": {"startLine": max(verdict.line or 1, 1)},
        }
    return {"locations": [location]}


# --- JUnit ---------------------------------------------------------------------------------------------------

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _junit(verdicts: Sequence[Verdict], request: _Request) -> str:
    """The JUnit XML of Jenkins and GitLab: a test case per design, in one suite."""
    counts = _counts(verdicts, request.skipped)
    totals = {"tests": len(verdicts), "failures": counts["rejected"], "errors": counts["not_judged"]}
    attributes = {"name": "rfcalc", **{key: str(count) for key, count in totals.items()}}
    root = ET.Element("testsuites", attributes)
    suite = ET.SubElement(root, "testsuite", {**attributes, "skipped": "0"})
    properties = ET.SubElement(suite, "properties")
    ET.SubElement(properties, "property", name="files without a design", value=str(request.skipped))
    for verdict in verdicts:
        _add_case(suite, verdict)
    ET.indent(root)
    # Character references for all beyond ASCII: true in any encoding, UTF-8 among them.
    document: bytes = ET.tostring(root, encoding="us-ascii", xml_declaration=False)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + document.decode("ascii")


def _add_case(suite: ET.Element, verdict: Verdict) -> None:
    place = verdict.target if verdict.file is None else _below(os.getcwd(), verdict.file).as_posix()
    case = ET.SubElement(suite, "testcase", name=_xml(verdict.design), classname=_xml(place))
    if verdict.outcome == "error":
        ET.SubElement(case, "error", type="not-judged", message=_xml(verdict.error))
    if verdict.violations:
        limits = ", ".join(_flag(violation.limit) for violation in verdict.violations)
        message = "; ".join(violation.message for violation in verdict.violations)
        failure = ET.SubElement(case, "failure", type=_xml(limits), message=_xml(message))
        failure.text = _xml("\n".join(found.message for found in _findings(verdict) if found.level == "error"))
    figures = {} if verdict.figures is None else figure_texts(verdict.figures)
    said = [*(f"{name}: {value}" for name, value in figures.items())]
    said += [f"warning: {caution.message}" for caution in verdict.cautions]
    if said:
        ET.SubElement(case, "system-out").text = _xml("\n".join(said))


def _xml(text: str) -> str:
    """The text without the characters that no XML document may hold."""
    return _NOT_XML.sub("?", text)


_FORMATS: dict[str, Callable[[Sequence[Verdict], _Request], str]] = {
    "text": _text,
    "json": _json,
    "github": _github,
    "sarif": _sarif,
    "junit": _junit,
}
