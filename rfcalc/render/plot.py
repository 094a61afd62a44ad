"""Runs -> pictures, by matplotlib: learning curves, rates, augmented samples, misclassified images, confusions.

Each function makes one figure; `png` turns it into a file's bytes. No display, no global state of pyplot.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rfcalc.errors import extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from rfcalc.train.analysis import Analysis
    from rfcalc.train.data import DataSet
    from rfcalc.train.description import Run

_TRAIN, _RAW, _EMA, _TARGET = "tab:gray", "tab:blue", "tab:orange", "tab:red"
_COLUMNS = 8
_SHOWN = 40
"""Misclassified images at most."""
_NUMBERED = 20
"""Classes up to which a confusion matrix has its numbers written in."""
_VARIANTS = 7
_SAMPLES = 6


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def curves(run: Run) -> Figure:
    """Loss and accuracy by epoch, a line per seed: training as augmented, test by raw and averaged weights, target."""
    figure, [[losses, accuracies]] = _figure(1, 2, (12, 4.5))
    lowest = []
    for number, epochs in enumerate(epochs for epochs in run.epochs.values() if epochs):
        averaged = epochs[0].ema_loss is not None
        kinds: list[tuple[str, str, list[Any], list[float]]] = [
            (
                "train, as augmented",
                _TRAIN,
                [e.train_loss for e in epochs],
                [100 * e.train_correct / e.train_total for e in epochs],
            ),
            ("test, raw", _RAW, [e.test_loss for e in epochs], [100 * e.test_correct / e.test_total for e in epochs]),
        ]
        if averaged:
            shares = [100 * (e.ema_correct or 0) / e.test_total for e in epochs]
            kinds.append(("test, EMA", _EMA, [e.ema_loss for e in epochs], shares))
        for name, color, loss, accuracy in kinds:
            label = name if number == 0 else None
            style = {"color": color, "label": label, "marker": ".", "linewidth": 1.2}
            losses.plot([e.epoch for e in epochs], loss, **style)
            accuracies.plot([e.epoch for e in epochs], accuracy, **style)
            lowest.append(min(accuracy[len(accuracy) // 3 :]))
    target = run.config.claim.target
    accuracies.axhline(target, color=_TARGET, linestyle="--", linewidth=1, label=f"target {target:.15g} %")
    first = run.config.recipe.epochs - run.config.claim.last + 0.5
    accuracies.axvspan(first, run.config.recipe.epochs + 0.5, color="tab:green", alpha=0.08, label="epochs that decide")
    # The first epochs are far below and would leave the rest a line at the top.
    bottom = min([*lowest, target])
    accuracies.set_ylim(bottom - 0.05 * (100 - bottom) - 0.02, 100)
    losses.set_yscale("log")
    for axes, name in ((losses, "loss"), (accuracies, "accuracy, %")):
        _by_epoch(axes, name)
    return figure


def rates(run: Run) -> Figure:
    """Learning rate and momentum as they were used: first, highest (momentum: lowest) and last step of every epoch."""
    figure, [[lr, momentum]] = _figure(1, 2, (12, 3.5))
    epochs = next((epochs for epochs in run.epochs.values() if epochs), ())
    _path(lr, [(e.lr_first, e.lr_max, e.lr_last) for e in epochs], "highest within an epoch")
    _path(momentum, [(e.momentum_first, e.momentum_min, e.momentum_last) for e in epochs], "lowest within an epoch")
    for axes, name in ((lr, "learning rate"), (momentum, "momentum")):
        _by_epoch(axes, name)
    return figure


def _path(axes: Axes, values: Sequence[tuple[float, float, float]], turn: str) -> None:
    """A line through first and last step of every epoch, and through the extreme between them, put in its middle."""
    points = [
        (epoch + at, value)
        for epoch, (first, middle, last) in enumerate(values)
        for at, value in ((0, first), (0.5, middle), (1, last))
        if at != 0.5 or middle not in (first, last)
    ]
    axes.plot([x for x, _ in points], [y for _, y in points], color=_RAW, linewidth=1.2, label="as used")
    if turns := [(x, y) for x, y in points if x % 1]:
        axes.plot([x for x, _ in turns], [y for _, y in turns], ".", color=_EMA, label=turn)


def augmented(run: Run, data: DataSet) -> Figure:
    """Training images as they are, on the left, and as the recipe's augmentation may show them to the network."""
    import torch

    from rfcalc.train.augment import augment

    count = min(_SAMPLES, len(data.train))
    figure, grid = _figure(count, 1 + _VARIANTS, (1.1 * (1 + _VARIANTS), 1.1 * count + 0.4))
    images, _ = data.train.batch(torch.arange(count, device=data.train.labels.device))
    source = torch.Generator().manual_seed(0)
    variants = [augment(images, run.config.recipe.augmentation, source) for _ in range(_VARIANTS)]
    for row, axes in enumerate(grid):
        for place, shown in zip(axes, [images, *variants], strict=True):
            _image(place, shown[row])
    grid[0][0].set_title("as it is", fontsize=8)
    return figure


def misclassified(analysis: Analysis, data: DataSet) -> Figure:
    """Test images that were taken for another class, the most confident mistakes first: true -> predicted."""
    rows = analysis.wrong(data.test.labels.cpu())[:_SHOWN]
    lines = max(1, -(-len(rows) // _COLUMNS))
    figure, grid = _figure(lines, _COLUMNS, (1.35 * _COLUMNS, 1.55 * lines + 0.3))
    places = [axes for line in grid for axes in line]
    for axes in places:
        axes.axis("off")
    for axes, row in zip(places, rows.tolist(), strict=False):
        images, _ = data.test.batch(rows.new_tensor([row]).to(data.test.labels.device))
        _image(axes, images[0])
        true, predicted = data.classes[int(data.test.labels[row])], data.classes[int(analysis.predicted[row])]
        share = 100 * float(analysis.confidence[row])
        axes.set_title(f"{_short(true)} -> {_short(predicted)} {share:.0f}%", fontsize=8, parse_math=False)
    if not len(rows):
        figure.suptitle("no test image is misclassified", fontsize=9)
    return figure


def confusions(analysis: Analysis, classes: Sequence[str]) -> Figure:
    """Counts of test images by true and predicted class; colours are of the mistakes only."""
    import numpy as np

    counts = analysis.confusion.numpy()
    mistakes = np.where(np.eye(len(counts), dtype=bool), np.nan, counts)
    side = min(14.0, 3 + 0.45 * len(counts))
    figure, [[axes]] = _figure(1, 1, (side + 1, side))
    shown = axes.imshow(mistakes, cmap="OrRd", vmin=0, vmax=max(1, np.nanmax(mistakes)))
    figure.colorbar(shown, ax=axes, label="mistakes", shrink=0.8)
    if len(classes) <= _NUMBERED:
        dark = np.nanmax(mistakes) / 2
        for (true, predicted), count in np.ndenumerate(counts):
            color = "white" if true != predicted and count > dark > 0 else "black"
            if count:
                axes.text(predicted, true, f"{count:,}", ha="center", va="center", fontsize=8, color=color)
        names = [_short(name) for name in classes]
        axes.set_xticks(
            range(len(names)), labels=names, rotation=90 if max(map(len, names)) > 2 else 0, parse_math=False
        )
        axes.set_yticks(range(len(names)), labels=names, parse_math=False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    return figure


# --- small parts ---------------------------------------------------------------------------------------------


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, Any]:
    """A figure and its axes, a list of rows."""
    with extra("train"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _by_epoch(axes: Axes, name: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.set_ylabel(name)
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8)


def _image(axes: Axes, image: Tensor) -> None:
    """Floats 0..1 [C, H, W], grey or in colour."""
    pixels = image.cpu().clamp(0, 1).permute(1, 2, 0).numpy()
    axes.imshow(pixels if pixels.shape[2] == 3 else pixels[:, :, 0], cmap="gray", vmin=0, vmax=1)
    axes.axis("off")


def _short(name: str) -> str:
    return name if len(name) <= 12 else f"{name[:11]}…"
