"""The designs in models/ against what is known of their networks, and the two README tables cell for cell."""

import ast
import csv
import functools
import io
import json
import runpy
from pathlib import Path

import pytest
import torch
from rfcalc_cli.main import app
from typer.testing import CliRunner

import rfcalc

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = json.loads((ROOT / "tests/golden/ladders.json").read_text())
OPS = {"conv": "Conv2d", "maxpool": "MaxPool2d", "gap": "AvgPool2d"}
README_OPS = {"CONVLUTION": "Conv2d", "MaxPool": "MaxPool2d", "GAP": "AvgPool2d"}
RECIPE_KEYS = [
    "optimizer",
    "scheduler",
    "epochs",
    "batch_size",
    "train_augmentation",
    "normalize",
    "seed",
    "loss",
]

every_design = pytest.mark.parametrize("known", GOLDEN["designs"], ids=lambda known: known["id"])


@functools.cache
def report_of(file):
    design = rfcalc.load_design(str(ROOT / file))
    return rfcalc.analyze(design.build(), design.input_shape, name=file)


@functools.cache
def namespace_of(file):
    return runpy.run_path(str(ROOT / file))


@every_design
def test_totals(known):
    report = report_of(known["file"])
    net = namespace_of(known["file"])["Net"]()
    assert report.params == known["params"] == sum(p.numel() for p in net.parameters())
    assert report.params == sum(row.params for row in report.rows)
    assert sum(row.macs for row in report.rows if row.op == "Conv2d") == known["conv_macs"]
    assert report.input_shapes == ((1, 28, 28),)
    assert report.output_shapes == ((1, 10),)
    assert report.approximate_ops == report.unreached == ()


@every_design
def test_receptive_field(known):
    report = report_of(known["file"])
    # Without global pooling the last spatial map is the one that gets flattened.
    spatial = known["rf_before_global_pool"] or known["rf_final"]
    assert report.rf_output == (known["rf_final"],) * 2
    assert report.rf_spatial == (spatial,) * 2


@every_design
def test_every_conv_and_pool(known):
    found = [
        {
            "op": row.op,
            "k": row.kernel,
            "s": row.stride,
            "p": row.padding,
            "c_in": row.ch_in,
            "c_out": row.ch_out,
            "n_in": row.n_in,
            "n_out": row.n_out,
            "j_in": row.j_in,
            "j_out": row.j_out,
            "r_in": row.r_in,
            "r_out": row.r_out,
        }
        for row in report_of(known["file"]).rows
        if row.kernel is not None
    ]
    assert found == [
        {
            "op": OPS[row["op"]],
            "p": ((row["p"],) * 2,) * 2,
            "c_in": row["c_in"],
            "c_out": row["c_out"],
            **{key: (row[key],) * 2 for key in ("k", "s", "n_in", "n_out", "j_in", "j_out", "r_in", "r_out")},
        }
        for row in known["rf_table"]
    ]


@every_design
def test_file_is_a_self_contained_design(known):
    tree = ast.parse((ROOT / known["file"]).read_text())
    assigned = {}
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(name)], value=value) | ast.AnnAssign(target=ast.Name(name), value=value):
                assigned[name] = value
    assert ast.get_docstring(tree)
    assert ast.literal_eval(assigned["INPUT_SHAPE"]) == (1, 28, 28)
    assert list(ast.literal_eval(assigned["RECIPE"])) == RECIPE_KEYS

    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add("." * node.level + (node.module or "").partition(".")[0])
    assert imported == {"torch"}

    modules = {
        name
        for name, value in namespace_of(known["file"]).items()
        if isinstance(value, type) and issubclass(value, torch.nn.Module)
    }
    assert modules == {"Net"}


@pytest.mark.parametrize("mode", ["train", "eval"])
@every_design
def test_forward_gives_log_probabilities(known, mode):
    torch.manual_seed(0)
    design = namespace_of(known["file"])
    net = design["Net"]().train(mode == "train")
    with torch.no_grad():
        log_probabilities = net(torch.randn(2, *design["INPUT_SHAPE"]))
    assert log_probabilities.shape == (2, 10)
    torch.testing.assert_close(log_probabilities.exp().sum(dim=1), torch.ones(2))


def printed_table(file, columns):
    """The records that the command line prints for one design, header first."""
    command = ["table", str(ROOT / file), "--geometry", "--format", "csv", "--columns", ",".join(columns)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return list(csv.reader(io.StringIO(result.stdout)))


def cells(rows):
    return [["" if cell is None else str(cell) for cell in row] for row in rows]


@pytest.mark.parametrize("file", GOLDEN["readme_rf_tables"]["njam"]["applies_to"])
def test_readme_table_of_njam(file):
    readme = GOLDEN["readme_rf_tables"]["njam"]
    columns = ["op" if column == "operation" else column for column in readme["columns"]]
    header, _input, *rows = printed_table(file, columns)  # this README has no row for the input
    assert header == columns
    assert rows == cells([README_OPS[operation], *numbers] for operation, *numbers in readme["rows"])


@pytest.mark.parametrize("file", GOLDEN["readme_rf_tables"]["era"]["applies_to"])
def test_readme_table_of_era(file):
    readme = GOLDEN["readme_rf_tables"]["era"]
    columns = ["name" if column == "layer" else column for column in readme["columns"]]
    header, *rows = printed_table(file, columns)
    assert header == columns
    assert rows == cells(readme["rows"])
