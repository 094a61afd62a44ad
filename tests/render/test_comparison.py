"""The rendering alone: reports made by hand, and the pairing of layers tried on every kind of change."""

import csv
import io
import json
import random
from fractions import Fraction

import pytest
from epochs import run_of, trained
from reports import report, row, window

from rfcalc.errors import RfcalcError
from rfcalc.gate.budget import Budget, Violation
from rfcalc.gate.verdict import Figures, Verdict
from rfcalc.render.comparison import checked_sort, comparison, paired, sort_keys

TWO = (Fraction(2), Fraction(2))


def conv(name, ch_in, ch_out, r, n, **changes):
    params = 9 * ch_in * ch_out
    plain = {"ch_in": ch_in, "ch_out": ch_out, "r_out": (r, r), "n_out": (n, n), "params": params, "macs": params * n}
    return window(name, "Conv2d", 3, **{**plain, **changes})


def norm(name, channels, r, n):
    return row(name, "BatchNorm2d", ch_in=channels, ch_out=channels, r_out=(r, r), n_out=(n, n), params=2 * channels)


def pool(name, channels, r, n):
    return window(
        name, "MaxPool2d", 2, ch_in=channels, ch_out=channels, r_out=(r, r), n_out=(n, n), stride=(2, 2), j_out=TWO
    )


def compared(name, *rows, **changes):
    """Verdict and report of the rows; RF, params and MACs are those of the rows."""
    params, macs = sum(r.params for r in rows), sum(r.macs for r in rows)
    made = report(*rows, name=name, params=params, macs=macs, rf_output=rows[-1].r_out, **changes)
    figures = Figures(params, params, macs, 76864, made.rf_output, (18, 18), sum(r.macs > 0 for r in rows))
    missed = (Violation("max_params", 8000, params, params - 8000, (), "too many"),) if params > 8000 else ()
    return Verdict(name, name, name, 1, "fail" if missed else "pass", Budget(), figures, violations=missed), made


STEM = [conv("stem.0", 1, 8, 3, 26), norm("stem.1", 8, 3, 26), conv("stem.3", 8, 16, 5, 24), norm("stem.4", 16, 5, 24)]
OLD = compared(
    "models/old.py:Net",
    *STEM,
    conv("body.0", 16, 16, 7, 22),
    norm("body.1", 16, 7, 22),
    pool("body.3", 16, 8, 11),
    conv("last", 16, 10, 12, 9),
)
NEW = compared(
    "models/new.py:Net",
    *STEM,
    conv("body.0", 16, 20, 9, 20, dilation=(2, 2)),
    norm("body.1", 20, 9, 20),
    conv("body.3", 20, 20, 11, 18),
    norm("body.4", 20, 11, 18),
    pool("body.6", 20, 12, 9),
    conv("last", 20, 10, 16, 7),
)
WIDE = compared("models/wide.py:Net", conv("only", 1, 1000, 3, 26), input_shapes=((1, 32, 32),), coverage=(0.1, 0.1))


@pytest.mark.parametrize(
    ("name", "designs", "options"),
    [
        ("compare_two.txt", (OLD, NEW), {}),
        ("compare_two_color.txt", (OLD, NEW), {"color": True}),
        ("compare_two_github.txt", (OLD, NEW), {"fmt": "github", "width": None}),
        ("compare_two_narrow.txt", (OLD, NEW), {"width": 60, "ascii_only": True}),
        ("compare_three.txt", (NEW, WIDE, OLD), {"sort": "params"}),
        ("compare_csv.txt", (NEW, WIDE, OLD), {"fmt": "csv"}),
        ("compare_json.txt", (OLD, NEW), {"fmt": "json"}),
    ],
)
def test_the_whole_text(golden, name, designs, options):
    golden(name, comparison(designs, **options))


@pytest.mark.parametrize("key", sort_keys())
def test_sorted_by_any_figure(key):
    text = comparison([WIDE, NEW, OLD], fmt="csv", sort=key)
    values = [line[key] for line in csv.DictReader(io.StringIO(text))]
    assert values == sorted(values, key=str if key == "design" else lambda value: int(value.split("x")[0]))


def test_what_cannot_be_sorted_by_or_written():
    with pytest.raises(RfcalcError, match="sort key 'parms': unknown; did you mean params"):
        checked_sort("parms")
    with pytest.raises(RfcalcError, match="format 'gitub': unknown"):
        comparison([OLD], fmt="gitub")


def test_sorting_does_not_turn_the_difference_round():
    found = json.loads(comparison([NEW, OLD], fmt="json", sort="params"))
    assert [design["design"] for design in found["designs"]] == [OLD[0].design, NEW[0].design]
    assert (found["difference"]["before"], found["difference"]["after"]) == (NEW[0].design, OLD[0].design)


def test_only_two_have_a_difference():
    for designs in ([OLD], [OLD, NEW, WIDE]):
        assert json.loads(comparison(designs, fmt="json"))["difference"] is None
        assert "->" not in comparison(designs)


def test_a_design_equals_itself():
    assert "no figure changed\nno layer differs" in comparison([OLD, OLD])


def test_a_design_cannot_write_to_the_terminal():
    nasty = compared("net\x1b[2J.py", conv("\x1b[2J", 1, 8, 3, 26))
    assert "\x1b" not in comparison([nasty, OLD])


# --- the pairing ---------------------------------------------------------------------------------------------


def change(before, after):
    """What became of each layer, as `old>new`; `+` and `-` stand for nobody."""
    pairs = paired(before, after)
    return " ".join(f"{old.name if old else '+'}>{new.name if new else '-'}" for old, new in pairs)


def chain(*channels):
    """A plain Sequential of convolutions and norms: an insertion renames all that follows."""
    rows = []
    for number, (ch_in, ch_out) in enumerate(zip((1, *channels), channels, strict=False)):
        rows += [conv(str(2 * number), ch_in, ch_out, 3, 9), norm(str(2 * number + 1), ch_out, 3, 9)]
    return rows


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (chain(8), chain(8), "0>0 1>1"),
        ([], chain(8), "+>0 +>1"),
        (chain(8), [], "0>- 1>-"),
        (chain(8, 16), chain(8, 20), "0>0 1>1 2>2 3>3"),
        (chain(8, 16, 18), chain(8, 10, 16, 18), "0>0 1>1 +>2 +>3 2>4 3>5 4>6 5>7"),
        (chain(8, 10, 16), chain(8, 16), "0>0 1>1 2>- 3>- 4>2 5>3"),
        (chain(8), [row("0", "GroupNorm")], "0>- 1>- +>0"),
        (STEM, [STEM[0], STEM[2], STEM[3]], "stem.0>stem.0 stem.1>- stem.3>stem.3 stem.4>stem.4"),
        ([pool("p", 8, 4, 9), *chain(8)], [*chain(8), pool("p", 8, 4, 9)], "p>- 0>0 1>1 +>p"),
        (chain(8), [chain(8)[0]._replace(kernel=(5, 5)), chain(8)[1]], "0>0 1>1"),
    ],
)
def test_layers_find_their_partners(before, after, expected):
    assert change(before, after) == expected


def test_every_layer_is_paired_once_and_in_order():
    draw = random.Random(0)
    for _ in range(100):
        before, after = (chain(*draw.choices([8, 16], k=draw.randrange(6))) for _ in range(2))
        pairs = paired(before, after)
        assert [pair.before for pair in pairs if pair.before] == before
        assert [pair.after for pair in pairs if pair.after] == after
        assert all(pair.before or pair.after for pair in pairs)
        assert all(pair.before.op == pair.after.op for pair in pairs if pair.before and pair.after)


def test_very_long_networks_without_a_common_layer_are_not_paired():
    before, after = ([row(f"{side}{i}", "Conv2d") for i in range(1001)] for side in "ab")
    pairs = paired(before, after)
    assert [pair.change for pair in pairs] == ["removed"] * 1001 + ["added"] * 1001


# --- trained -------------------------------------------------------------------------------------------------


def test_what_was_trained_has_a_column():
    run = run_of({1: trained([9000] * 10 + [9953] * 5), 2: trained([9000] * 10 + [9939] * 5, seed=2)})
    known = {"models/old.py:Net": (run, run.verdict())}
    lines = comparison([OLD, NEW], trained=known).splitlines()
    assert lines[0].split()[-2:] == ["trained", "verdict"]
    assert " mnist 99.39 % 1/2  PASS" in lines[2]
    assert "%" not in lines[3]
    assert "how many seeds held its target" in " ".join(comparison([OLD, NEW], trained=known).split())
    assert "trained" not in comparison([OLD, NEW])

    rows = list(csv.DictReader(io.StringIO(comparison([OLD, NEW], trained=known, fmt="csv"))))
    assert [row["trained"] for row in rows] == ["mnist 99.39 % 1/2", ""]
    old, new = json.loads(comparison([OLD, NEW], trained=known, fmt="json"))["designs"]
    assert (old["trained"]["run"], old["trained"]["recipe"], old["trained"]["verified"]) == (
        "runs/models-step8-Net/now",
        "ours",
        False,
    )
    assert old["trained"]["judged"][0]["holding"] == 1
    assert new["trained"] is None
