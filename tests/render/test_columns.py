"""A column is one entry: how it is read off a row, and how programs and people are shown it."""

import pytest
from reports import report, row, window

from rfcalc.analysis.report import LayerRow
from rfcalc.render.columns import COLUMNS, Column, chosen, named

WIDE = window("wide", "Conv2d", 3, r_min=(3, 3), r_out=(5, 4), r_local=(5, 4), params=1_234, macs=5_000, ch_in=None)
REPORT = report(WIDE, macs=20_000)
SHARE = Column("macs%", "MACs %", lambda row, report: 100 * row.macs / report.macs, lambda value, _: f"{value:.1f}")


def test_every_field_of_a_row_is_a_column():
    names = [column.name for column in COLUMNS]
    assert set(names) >= set(LayerRow._fields)
    assert len(names) == len(set(names))
    assert all(named(name).name == name for name in names)


@pytest.mark.parametrize(
    ("column", "plain", "cell", "merged"),
    [
        (named("params"), "1234", "1,234", "1,234"),
        (named("r_out"), "5x4", "5x4", "3..5x4"),
        (named("kernel"), "3", "3", "3"),
        (named("is_global"), "no", "no", "no"),
        (named("ch_in"), "", "", ""),
        (named("shape_out"), "1x8x28x28", "1x8x28x28", "1x8x28x28"),
        (SHARE, "25.0", "25.0", "25.0"),
    ],
)
def test_cells(column, plain, cell, merged):
    found = column.plain(WIDE, REPORT), column.cell(WIDE, REPORT, False), column.cell(WIDE, REPORT, True)
    assert found == (plain, cell, merged)


@pytest.mark.parametrize(
    ("rows", "left_out"),
    [
        ([WIDE], {"dilation", "r_local"}),
        ([WIDE, WIDE._replace(dilation=(2, 1))], {"r_local"}),
        ([WIDE, row("all", "mean", r_out=(28, 28), r_local=(3, 3))], {"dilation"}),
    ],
)
def test_a_column_that_tells_nothing_is_left_out(rows, left_out):
    every = {column.name for column in COLUMNS if column.heading}
    assert every - {column.name for column in chosen(rows)} == left_out
