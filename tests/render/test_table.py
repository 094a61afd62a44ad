"""The rendering alone: reports made by hand, so that no analysis can change what is expected here."""

import csv
import io
import json
from fractions import Fraction

import pytest
from reports import ONE, report, row, window

from rfcalc.analysis.report import Axis, Report
from rfcalc.errors import RfcalcError
from rfcalc.render.table import checked_columns, checked_format, formats, table

LADDER = report(
    window("input.0", "Conv2d", 3, n_out=(26, 26), ch_in=1, r_out=(3, 3), params=72),
    row("input.1", "ReLU", n_in=(26, 26), n_out=(26, 26), r_in=(3, 3), r_out=(3, 3)),
    row("input.2", "BatchNorm2d", n_in=(26, 26), n_out=(26, 26), r_in=(3, 3), r_out=(3, 3), params=16),
    window(
        "pool",
        "MaxPool2d",
        2,
        stride=(2, 2),
        n_in=(26, 26),
        n_out=(13, 13),
        j_out=(Fraction(2), Fraction(2)),
        r_in=(3, 3),
        r_out=(4, 4),
    ),
)
ODD = report(
    window(
        "backbone.features.stem.0.conv",
        "Conv2d",
        3,
        kernel=(7, 1),
        stride=(2, 1),
        padding=((3, 3), (0, 1)),
        dilation=(2, 1),
        n_out=(14, 28),
        j_out=(Fraction(2), Fraction(1)),
        r_out=(7, 1),
        params=2359296,
    ),
    row(
        "backbone.features.stem.attention.mul", "mul", r_out=(28, 28), r_local=(7, 1), is_global=(True, True), params=1
    ),
    row("backbone.columns", "mean", r_out=(28, 3), is_global=(True, False), aligned=False, params=1),
    window("up", "AdaptiveAvgPool2d", 2, j_out=(Fraction(1, 2),) * 2, r_out=(6, 6), r_min=(5, 5), aligned=False),
    row("strange", "mystery", r_out=(28, 28), is_global=(True, True), exact=False, params=1),
    trainable_params=345,
    rf_output=(28, 14),
    rf_spatial=(28, 14),
    coverage=(1.0, 0.5),
    approximate_ops=("aten::mystery",),
    unreached=(("aux.fc", 1000), ("aux.relu", 0)),
    notes=("ran on real tensors, since the forward reads values: " + "a long reason " * 5,),
)
TWO_INPUTS = report(
    row(
        "join",
        "add",
        r_in=(3, 3, 1, 1),
        r_out=(3, 3, 1, 1),
        j_in=(*ONE, Fraction(1, 2), Fraction(1, 2)),
        j_out=ONE * 2,
        is_global=(False,) * 4,
        params=1,
    ),
    input_shapes=((3, 32, 32), (1, 16, 16)),
    axes=(Axis(0, 2, "0.H", 32), Axis(0, 3, "0.W", 32), Axis(1, 2, "1.H", 16), Axis(1, 3, "1.W", 16)),
    rf_output=(3, 3, 1, 1),
    rf_spatial=(3, 3, 1, 1),
    coverage=(1.0,) * 4,
)


@pytest.mark.parametrize(
    ("name", "reports", "options"),
    [
        ("ladder", [LADDER], {}),
        ("ladder_geometry", [LADDER], {"rows": "geometry"}),
        ("ladder_all", [LADDER], {"rows": "all", "fmt": "github"}),
        ("ladder_columns", [LADDER], {"columns": ["name", "shape_out", "start", "is_global", "macs"]}),
        ("ladder_color", [LADDER], {"color": True}),
        ("odd", [ODD], {}),
        ("odd_ascii", [ODD], {"ascii_only": True, "fmt": "fancy_grid"}),
        ("odd_wide", [ODD], {"width": None}),
        ("odd_color", [ODD], {"color": True}),
        ("two_designs", [LADDER, TWO_INPUTS], {}),
        ("csv", [ODD], {"fmt": "csv"}),
        ("two_csv", [LADDER, TWO_INPUTS], {"fmt": "csv", "columns": ["name", "n_out", "r_out", "params"]}),
    ],
)
def test_tables(golden, name, reports, options):
    golden(f"table_{name}.txt", table(*reports, **options))


def test_an_ordinary_table_fits_100_columns():
    assert max(map(len, table(LADDER).splitlines())) <= 100


def test_what_comes_after_the_table_always_fits():
    assert max(map(len, table(ODD).split("\n\n", 1)[1].splitlines())) <= 100


@pytest.mark.parametrize("fmt", ["simple", "grid", "plain", "github", "html"])
def test_no_row_is_broken(fmt):
    """Each name's end stands on one line with that row's op, in every format."""
    text = table(ODD, fmt=fmt, width=60)
    assert sum("mean" in line and "columns" in line for line in text.splitlines()) == 1


@pytest.mark.parametrize("width", [None, 60, 100, 1000])
def test_markup_is_never_shortened(width):
    assert "backbone.features.stem.attention.mul" in table(ODD, fmt="github", width=width)


def test_json_is_an_array_of_reports_with_the_selected_rows():
    found = json.loads(table(LADDER, ODD, fmt="json", rows="geometry"))
    assert [r["design"] for r in found] == ["net.py:Net"] * 2
    assert [r["path"] for r in found[0]["rows"]] == ["input.0", "pool"]
    assert Report.from_dict(json.loads(table(LADDER, fmt="json", rows="all"))[0]) == LADDER


def test_csv_cells_are_numbers():
    lines = list(csv.DictReader(io.StringIO(table(ODD, fmt="csv"))))
    assert lines[0]["name"] == "input"
    assert lines[1]["params"] == "2359296"
    assert lines[4]["r_out"] == "6"


@pytest.mark.parametrize("fmt", formats())
def test_every_format_is_rendered(fmt):
    assert "input.0" in table(LADDER, fmt=fmt).replace("\\", "")


def test_ascii_only_is_ascii():
    strange = report(row("größe", "ReLU", params=1), name="große.py:Net")
    for fmt in ("simple", "rounded_outline", "heavy_grid"):
        assert table(strange, ODD, fmt=fmt, ascii_only=True).isascii()


def test_control_characters_of_a_name_do_not_break_a_row():
    assert "a?b?" in table(report(row("a\nb\x1b", "ReLU", params=1)))


def test_the_footnote_explains_the_marks_that_occur_and_no_other():
    plain, odd = table(LADDER), table(ODD)
    for words in ("global", "without a rule", "unaligned", "a..b", "R_local", "dilation"):
        assert words not in plain
        assert words in odd


def test_a_report_without_rows_or_axes_still_prints():
    empty = report(axes=(), rf_output=(), rf_spatial=(), coverage=(), input_shapes=((10,),))
    for fmt in ("simple", "csv", "grid"):
        assert "input" in table(empty, fmt=fmt)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: checked_format("gihtub"), "format 'gihtub': unknown; did you mean github"),
        (lambda: checked_format(""), "format '': unknown; expected one of csv, json, "),
        (lambda: table(LADDER, fmt="nope"), "format 'nope': unknown"),
        (lambda: checked_columns("name,n_ot"), "column 'n_ot': unknown; did you mean n_out"),
        (lambda: checked_columns("name,"), "column '': unknown; expected one of name, path, "),
    ],
)
def test_unknown_names(call, message):
    with pytest.raises(RfcalcError) as caught:
        call()
    assert str(caught.value).startswith(message)


def test_columns_may_have_spaces():
    assert checked_columns("name, r_out") == ["name", "r_out"]
