"""What is told of a run: counts against counts made otherwise, intervals and slopes against textbooks and by hand."""

import dataclasses
import itertools

import pytest
import torch
from epochs import epoch, trained
from torch import nn

from rfcalc.designs.design import load_design
from rfcalc.errors import RunError
from rfcalc.train import description, evaluation, record, run_folder
from rfcalc.train.analysis import Confused, Trend, analyse, confusion, difference, lowest_seed, probabilities, trend
from rfcalc.train.data import DataSet, Split
from rfcalc.train.evaluation import evaluate
from rfcalc.train.loop import train
from rfcalc.train.recipe import OURS
from rfcalc.train.verdict import Claim, Interval, interval

RECIPE = dataclasses.replace(OURS, epochs=3, batch_size=16, augmentation=())
NET = """
    from torch import nn

    INPUT_SHAPE = (1, 6, 6)

    class Net(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, 3))
"""


def split(count, seed):
    source = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 1, 6, 6), generator=source, dtype=torch.uint8)
    return Split(images, torch.randint(3, (count,), generator=source))


@pytest.fixture(scope="module")
def data():
    return DataSet("noise", split(64, 1), split(40, 2), ("a", "b", "c"), (0.5,), (0.3,))


@pytest.fixture
def design(write_design):
    return load_design(write_design(NET))


def trained_run(design, data, folder, weights="ema", epochs=3):
    config = description.describe(
        design, data, RECIPE, seeds=(1, 2), device="cpu", amp=False, claim=Claim(last=3, weights=weights)
    )
    with record.create(config, folder) as recorder:
        for seed in (1, 2):
            for _, (one, state) in zip(range(epochs), train(design.build_real, data, RECIPE, seed=seed), strict=False):
                recorder.add(one, state)
    return recorder.run


def test_figures_that_are_ahead_of_the_weights(design, data, tmp_path):
    """A writer killed between the figures of an epoch and its state."""
    run = trained_run(design, data, tmp_path)
    for _, state in itertools.chain(*(train(design.build_real, data, RECIPE, seed=seed) for seed in (1, 2))):
        if state.epoch == 2:
            torch.save(state.to_dict(), run.folder / f"state-{state.seed}.pt")
    found = analyse(run, design, data)
    assert found.epoch == run.epochs[found.seed][1]
    assert found.correct == found.epoch.ema_correct


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_a_run(design, data, tmp_path, weights):
    run = trained_run(design, data, tmp_path, weights)
    found = analyse(run, design, data)
    recorded = {
        seed: epochs[-1].ema_correct if weights == "ema" else epochs[-1].test_correct
        for seed, epochs in run.epochs.items()
    }
    assert found.seed == min(recorded, key=recorded.get)
    assert found.epoch == run.epochs[found.seed][-1]
    assert found.correct == recorded[found.seed]
    assert found.test == interval(found.correct, 40)
    model = design.build_real()
    model.load_state_dict(run_folder.weights_of(run, found.seed, weights)[1])
    assert found.train == interval(evaluate(model, data.train, data)[1], 64)  # without dropout
    assert found.gap == difference(found.train, found.test)
    with torch.no_grad():
        expected = model.eval()((data.test.images / 255 - 0.5) / 0.3).softmax(1)
    confidence, predicted = expected.max(1)
    assert torch.equal(found.predicted, predicted)
    torch.testing.assert_close(found.confidence, confidence)
    assert found.confusion.sum() == 40
    assert found.confusion[1, 2] == ((data.test.labels == 1) & (predicted == 2)).sum()
    rows = found.wrong(data.test.labels)
    assert sorted(rows.tolist()) == [i for i in range(40) if predicted[i] != data.test.labels[i]]
    assert found.confidence[rows].diff().le(0).all()


def test_a_run_that_has_not_ended(design, data, tmp_path):
    run = trained_run(design, data, tmp_path, epochs=1)
    found = analyse(run, design, data)
    assert (found.epoch.epoch, found.trend) == (1, None)


def test_nothing_to_report(design, data, tmp_path):
    with pytest.raises(RunError, match="no seed has finished an epoch; there is nothing to report yet"):
        analyse(trained_run(design, data, tmp_path, epochs=0), design, data)


def test_weights_of_another_design(design, data, tmp_path, write_design):
    run = trained_run(design, data, tmp_path)
    other = load_design(write_design(NET.replace("nn.BatchNorm2d(4), ", ""), "other.py"))
    with pytest.raises(RunError, match=r"its weights do not fit other.py:Net; expected the design it trained"):
        analyse(run, other, data)


def test_logits_and_log_probabilities_give_the_same(data, monkeypatch):
    torch.manual_seed(1)
    logits = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval()
    monkeypatch.setattr(evaluation, "_EVALUATED", 7)
    one, other = (probabilities(net, data.test, data) for net in (logits, nn.Sequential(logits, nn.LogSoftmax(1))))
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(one.sum(1), torch.ones(40))


def test_confusions():
    labels, predicted = torch.tensor([0, 0, 1, 2, 2, 2, 1]), torch.tensor([0, 1, 1, 0, 0, 2, 2])
    found = confusion(labels, predicted, 3)
    assert found.tolist() == [[1, 1, 0], [0, 1, 1], [2, 0, 1]]


def test_pairs(design, data, tmp_path):
    found = analyse(trained_run(design, data, tmp_path), design, data)
    told = dataclasses.replace(found, confusion=torch.tensor([[9, 1, 0], [0, 9, 1], [2, 0, 9]]))
    assert told.pairs(2) == [Confused(2, 0, 2), Confused(0, 1, 1)]
    assert len(told.pairs(9)) == 3


def test_the_lowest_seed_is_one_of_the_furthest():
    runs = {1: trained([9950, 9960]), 2: trained([9990, 9955]), 3: trained([9000])}
    assert lowest_seed(runs, "ema") == 2
    assert lowest_seed({2: trained([9950]), 1: trained([9950])}, "ema") == 1


def test_newcombes_interval():
    # Newcombe 1998, Statistics in Medicine 17:873, table II (a): 56/70 - 48/80, method 10: 0.0524 to 0.3339.
    found = difference(interval(56, 70), interval(48, 80))
    assert (found.low, found.share, found.high) == pytest.approx((0.0524, 0.2, 0.3339), abs=5e-5)
    # (e): 5/56 - 0/29: -0.0381 to 0.1926.
    found = difference(interval(5, 56), interval(0, 29))
    assert (found.low, found.high) == pytest.approx((-0.0381, 0.1926), abs=5e-5)


def test_a_gap_turned_round():
    one, other = Interval(0.5, 0.6, 0.8), Interval(0.3, 0.35, 0.4)
    there, back = difference(one, other), difference(other, one)
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))


def test_the_trend_worked_out_by_hand():
    # 99.1, 99.3, 99.2 percent: slope 0.05, residuals -0.05, 0.1, -0.05; error of the slope sqrt(0.015 / 1 / 2).
    found = trend({1: trained([9000, 9910, 9930, 9920])}, "ema", 3)
    assert (found.epochs, found.slope) == (3, pytest.approx(0.05))
    assert found.error == pytest.approx(12.7062047 * (0.015 / 2) ** 0.5)  # t of one degree of freedom
    assert found.direction == "flat"


def test_the_trend_is_of_the_mean_of_all_seeds_where_all_are():
    runs = {1: trained([9000, 9900, 9910, 9920, 9999]), 2: trained([9000, 9920, 9930, 9940])}
    found = trend(runs, "ema", 3)
    assert found.slope == pytest.approx(0.1)
    assert found.error == pytest.approx(0, abs=1e-6)
    assert found.direction == "improving"


def test_no_trend_of_two_epochs():
    assert trend({1: trained([9900, 9910])}, "ema", 5) is None
    assert trend({1: trained([9900, 9910, 9920])}, "ema", 2) is None
    assert trend({1: [epoch(i, ema=None, raw=9900 + i) for i in (1, 2, 3)]}, "raw", 5).slope == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("slope", "error", "direction"),
    [(0.2, 0.1, "improving"), (-0.2, 0.1, "falling"), (0.1, 0.2, "flat"), (-0.1, 0.2, "flat"), (0.0, 0.0, "flat")],
)
def test_directions(slope, error, direction):
    assert Trend(5, slope, error).direction == direction
