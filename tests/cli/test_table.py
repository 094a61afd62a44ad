"""`rfcalc table`: what is asked for, where it goes."""

import json
import os
import stat

import pytest

NET = """
    import torch
    from torch import nn
    INPUT_SHAPE = (1, 12, 12)
    print("a design may talk")
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        def forward(self, x):
            print("so may its forward")
            return torch.relu(self.body(x))
"""


@pytest.fixture
def net(write_design):
    return write_design(NET)


def names(text: str) -> list[str]:
    return [line.split()[0] for line in text.split("\n\n", maxsplit=1)[0].splitlines()[2:]]


def test_the_three_selections(rfcalc, net):
    assert names(rfcalc("table", net).out) == ["input", "body.0", "body.1", "body.3"]
    assert names(rfcalc("table", net, "--geometry").out) == ["input", "body.0", "body.3"]
    assert names(rfcalc("table", net, "--all").out) == ["input", "body.0", "body.1", "body.2", "body.3", "relu"]


def test_what_a_design_prints_is_kept_out_of_the_answer(rfcalc, net):
    found = rfcalc("table", net, "--format", "json")
    (report,) = json.loads(found.out)
    assert report["design"] == "net.py:Net"
    assert "a design may talk" in found.err


def test_both_levels_agree(rfcalc, net):
    assert rfcalc("table", net, "--level", "1").out == rfcalc("table", net, "--level", "2").out


def test_columns_format_and_input(rfcalc, net):
    found = rfcalc("table", net, "--columns", "name,n_out", "--format", "csv", "--input", "1x20x16")
    assert found.out.splitlines() == ["name,n_out", "input,20x16", "body.0,18x14", "body.1,18x14", "body.3,9x7"]


def test_a_layout_names_the_axes(rfcalc, write_design):
    write_design("from torch import nn\nmodel = nn.Linear(4, 2)")
    found = rfcalc(
        "table", "net.py", "--input", "6x4", "--layout", "TC", "--columns", "n_out,ch_out", "--format", "csv"
    )
    assert found.out.splitlines() == ["n_out,ch_out", "6,4", "6,2"]


def test_several_targets_stand_under_their_names(rfcalc, net):
    found = rfcalc("table", net, f"{net}:Net")
    assert found.code == 0
    assert found.out.splitlines().count("net.py:Net") == 2


def test_a_part_of_a_network(rfcalc, net):
    found = rfcalc("table", f"{net}#body", "--input", "1x12x12", "--geometry")
    assert "net.py:Net#body" in found.out
    assert names(found.out) == ["input", "0", "3"]


def test_output_goes_to_the_file_and_only_there(rfcalc, net, tmp_path):
    found = rfcalc("table", net, "--output", "out.txt")
    assert (found.code, found.out) == (0, "")
    assert (tmp_path / "out.txt").read_text(encoding="utf-8") == rfcalc("table", net).out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.py", "out.txt"]


def test_an_old_output_is_replaced_through_a_link(rfcalc, net, tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    assert rfcalc("table", net, "--output", "link.txt").code == 0
    assert (tmp_path / "link.txt").is_symlink()
    assert "body.0" in (tmp_path / "real.txt").read_text(encoding="utf-8")


def test_a_device_is_written_to_and_not_replaced(rfcalc, net, tmp_path):
    assert rfcalc("table", net, "--output", os.devnull).code == 0
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_a_failed_write_leaves_the_old_file(rfcalc, net, tmp_path, monkeypatch):
    (tmp_path / "out.txt").write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    found = rfcalc("table", net, "--output", "out.txt")
    assert found.code == 2
    assert "No space left on device" in found.err
    assert (tmp_path / "out.txt").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.py", "out.txt"]
