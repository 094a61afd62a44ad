"""Pictures: what their lines, tiles and titles show. The pixels are matplotlib's."""

import dataclasses

import numpy as np
import pytest
import torch
from epochs import epoch, run_of, trained

from rfcalc.render import plot
from rfcalc.train.analysis import Analysis, confusion
from rfcalc.train.augment import Augmentation
from rfcalc.train.data import DataSet, Split
from rfcalc.train.recipe import OURS
from rfcalc.train.verdict import Claim, Interval

COUNTS = [9000, 9900, 9940, 9950, 9951]
CLASSES = ("zero", "one $1_000 bill", "two")


def data_of(count=60, channels=1, classes=CLASSES):
    source = torch.Generator().manual_seed(1)
    images = torch.randint(256, (count, channels, 8, 8), generator=source, dtype=torch.uint8)
    split = Split(images, torch.arange(count) % len(classes))
    return DataSet("noise", split, split, classes, (0.5,) * channels, (0.3,) * channels)


def analysis_of(data, predicted, confidence=None):
    share = Interval(0.0, 0.5, 1.0)
    counts = confusion(data.test.labels, predicted, len(data.classes))
    confidence = torch.full((len(predicted),), 0.5) if confidence is None else confidence
    return Analysis(1, "ema", epoch(), share, share, share, None, predicted, confidence, counts)


def is_png(figure):
    content = plot.png(figure)
    return content.startswith(b"\x89PNG") and len(content) > 2000


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_curves():
    recipe = dataclasses.replace(OURS, epochs=5)
    runs = {1: trained(COUNTS), 2: trained([9100, *COUNTS[1:]], seed=2), 3: []}
    figure = plot.curves(run_of(runs, recipe=recipe, claim=Claim(last=2)))
    losses, accuracies = figure.axes
    found = lines(accuracies)
    assert found["test, EMA"].get_ydata().tolist() == pytest.approx([90, 99, 99.4, 99.5, 99.51])
    assert found["test, raw"].get_xdata().tolist() == [1, 2, 3, 4, 5]
    assert found["train, as augmented"].get_ydata()[0] == pytest.approx(100 * 58_621 / 60_000)
    assert set(found["target 99.4 %"].get_ydata()) == {99.4}
    assert len(accuracies.get_lines()) == 2 * 3 + 1
    assert [text.get_text() for text in losses.get_legend().get_texts()] == [
        "train, as augmented",
        "test, raw",
        "test, EMA",
    ]
    low, high = accuracies.get_ylim()
    assert 97 < low < 98  # the training's 97.70, not the first epoch's 90
    assert high == 100
    assert is_png(figure)


def test_curves_without_an_average_and_all_right():
    figure = plot.curves(run_of({1: [epoch(i, ema=None, raw=10_000) for i in (1, 2)]}, claim=Claim(weights="raw")))
    assert "test, EMA" not in lines(figure.axes[1])
    assert is_png(figure)


def test_rates():
    run = run_of(
        {1: [], 2: [epoch(1, lr_first=0.1, lr_max=0.3, lr_last=0.2), epoch(2, lr_first=0.2, lr_max=0.2, lr_last=0.1)]}
    )
    figure = plot.rates(run)
    lr, momentum = figure.axes
    assert lines(lr)["as used"].get_xydata().tolist() == [[0, 0.1], [0.5, 0.3], [1, 0.2], [1, 0.2], [2, 0.1]]
    assert lines(lr)["highest within an epoch"].get_xydata().tolist() == [[0.5, 0.3]]
    assert lines(momentum)["lowest within an epoch"].get_xydata().tolist() == [[0.5, 0.85], [1.5, 0.85]]
    assert is_png(figure)


@pytest.mark.parametrize("channels", [1, 3])
def test_augmented(channels):
    data = data_of(channels=channels)
    plain = dataclasses.replace(OURS, augmentation=())
    moved = dataclasses.replace(OURS, augmentation=(Augmentation(shift=3),))
    for recipe, same in ((plain, True), (moved, False)):
        figure = plot.augmented(run_of({1: trained(COUNTS)}, recipe=recipe), data)
        tiles = [axes.images[0].get_array() for axes in figure.axes]
        assert len(tiles) == 6 * 8
        image = data.train.images[1].permute(1, 2, 0).numpy().squeeze() / 255
        np.testing.assert_allclose(tiles[8], image, atol=1e-6)
        assert all(np.allclose(tile, image, atol=1e-6) for tile in tiles[9:16]) == same
    assert is_png(figure)


def test_few_images():
    figure = plot.augmented(run_of({1: trained(COUNTS)}), data_of(count=3))
    assert len(figure.axes) == 3 * 8


def test_misclassified():
    data = data_of()
    predicted, confidence = data.test.labels.clone(), torch.linspace(0.1, 0.9, 60)
    predicted[[4, 6]] = torch.tensor([0, 2])
    figure = plot.misclassified(analysis_of(data, predicted, confidence), data)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["zero -> two 18%", "one $1_000 … -> zero 15%", *[""] * 6]
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), data.test.images[6, 0] / 255, atol=1e-6)
    assert is_png(figure)


@pytest.mark.parametrize(("wrong", "tiles"), [(0, 8), (9, 16), (60, 40)])
def test_as_many_tiles_as_needed(wrong, tiles):
    data = data_of()
    predicted = data.test.labels.clone()
    predicted[:wrong] = (predicted[:wrong] + 1) % 3
    figure = plot.misclassified(analysis_of(data, predicted), data)
    assert len(figure.axes) == tiles
    assert bool(figure.get_suptitle()) == (wrong == 0)
    assert is_png(figure)


def test_confusions():
    data = data_of()
    predicted = data.test.labels.clone()
    predicted[[0, 3, 4]] = torch.tensor([1, 1, 2])
    figure = plot.confusions(analysis_of(data, predicted), data.classes)
    axes = figure.axes[0]
    shown = axes.images[0].get_array()
    assert shown[0, 1] == 2
    assert np.ma.getmaskarray(shown).diagonal().all() or np.isnan(shown.diagonal()).all()
    assert sorted(text.get_text() for text in axes.texts) == ["1", "18", "19", "2", "20"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["zero", "one $1_000 …", "two"]
    assert is_png(figure)


def test_confusions_of_many_classes_and_of_none():
    data = data_of(classes=tuple(map(str, range(30))))
    figure = plot.confusions(analysis_of(data, data.test.labels), data.classes)
    assert not figure.axes[0].texts
    assert is_png(figure)


def test_no_display_is_needed_and_none_is_touched():
    import sys

    plot.png(plot.rates(run_of({1: trained(COUNTS)})))
    assert "matplotlib.pyplot" not in sys.modules
