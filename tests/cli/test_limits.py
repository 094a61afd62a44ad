"""The flags of the limits follow from the fields of Budget."""

import re

import pytest
from rfcalc_cli.limits import with_limits

from rfcalc.gate.budget import LIMITS, SWITCHES


@pytest.mark.parametrize("name", LIMITS)
def test_every_limit_has_a_flag_with_its_help(rfcalc, name):
    flag = name.replace("_", "-")
    shown = f"--{flag} / --no-{flag}" if name in SWITCHES else f"--{flag} N"
    text = re.sub(r"\s+", " ", rfcalc("check", "--help").out)
    assert f"{shown} {LIMITS[name].help}" in text


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (None, None),
        ("8000", 8000),
        ("8_000", 8000),
        ("false", False),
        ("none", "none"),
        ("٣", "٣"),
        ("-1", "-1"),
        ("", ""),
        ("9" * 20, "9" * 20),
        (True, True),
        (False, False),
    ],
)
def test_what_a_flag_says(given, taken):
    @with_limits
    def command(limits: dict[str, object], level: int = 2) -> int:
        assert limits == dict.fromkeys(LIMITS) | {"max_params": taken}
        return level

    assert command(**dict.fromkeys(LIMITS) | {"max_params": given}, level=1) == 1
