"""Reports made by hand, for tests of what is made of a report."""

import dataclasses
from fractions import Fraction
from typing import Any

from rfcalc.analysis.report import Axis, LayerRow, Report

ONE = (Fraction(1), Fraction(1))


def row(name: str, op: str, **changes: Any) -> LayerRow:
    """A row of a square two-dimensional map that changes nothing, but for what is said."""
    plain = LayerRow(
        name=name,
        path=name,
        op=op,
        call=0,
        shape_in=(1, 8, 28, 28),
        shape_out=(1, 8, 28, 28),
        grid=(2, 3),
        kernel=None,
        stride=None,
        padding=None,
        dilation=None,
        groups=None,
        n_in=(28, 28),
        n_out=(28, 28),
        ch_in=8,
        ch_out=8,
        j_in=ONE,
        j_out=ONE,
        r_in=(1, 1),
        r_out=(1, 1),
        r_min=(1, 1),
        r_local=(1, 1),
        start=(0.5, 0.5),
        effective_padding=(0, 0),
        is_global=(False, False),
        params=0,
        trainable_params=0,
        macs=0,
        activation_bytes=0,
        exact=True,
        aligned=True,
        moves_grid=False,
    )
    if "r_out" in changes:
        changes = {"r_min": changes["r_out"], "r_local": changes["r_out"], **changes}
    return plain._replace(**changes)


def window(name: str, op: str, k: int, **changes: Any) -> LayerRow:
    """A row of a convolution or pool of k taps, stride 1."""
    shape = {"kernel": (k, k), "stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1}
    return row(name, op, **{**shape, "moves_grid": True, **changes})


def report(*rows: LayerRow, **changes: Any) -> Report:
    plain = Report(
        name="net.py:Net",
        input_shapes=((1, 28, 28),),
        axes=(Axis(0, 2, "H", 28), Axis(0, 3, "W", 28)),
        rows=rows,
        params=12345,
        trainable_params=12345,
        macs=1234567,
        peak_activation_bytes=75 * 1024,
        output_shapes=((1, 10),),
        rf_output=(28, 28),
        rf_spatial=(18, 18),
        coverage=(1.0, 1.0),
        approximate_ops=(),
        unreached=(),
        notes=(),
    )
    return dataclasses.replace(plain, **changes)
