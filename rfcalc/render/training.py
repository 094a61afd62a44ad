"""What training has to tell -> text: the lines of an epoch, the verdict, and report.md. Nothing is computed here.

Percentages are rounded down: what is short of a target must not read as the target.

>>> percent(9_939, 10_000), percent(2, 3)
('99.39', '66.66')
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import tabulate

from rfcalc.render.cells import atom
from rfcalc.render.page import wrapped

if TYPE_CHECKING:
    from rfcalc.train.analysis import Analysis
    from rfcalc.train.description import Config, Run
    from rfcalc.train.loop import Epoch
    from rfcalc.train.verdict import Claim, Interval, Judged, Seed, Verdict

_NAMES = {"ema": "EMA", "raw": "raw"}
_WORDS = {True: "verified", False: "not verified"}
_WIDTH, _NAME, _WORD = 110, 12, 16
_MOST_SEEDS = 8
"""Named one by one in the verdict; of more only those that do not hold, and no more than so many."""


def percent(correct: int, total: int) -> str:
    """Two decimals, rounded down."""
    hundredths = 10_000 * correct // total
    return f"{hundredths // 100}.{hundredths % 100:02}"


def _floored(share: float) -> str:
    # The hundred-millionth keeps 0.9947 from becoming 99.46: it is a little less than that in binary.
    return f"{math.floor(share * 10_000 + 1e-8) / 100:.2f}"


# --- an epoch ------------------------------------------------------------------------------------------------


def tested(loss: float, correct: int, total: int, weights: str) -> str:
    """`Test set: Average loss: 0.0168, Accuracy: 9950/10000 (99.50%)`, of averaged weights with (EMA)."""
    kind = "" if weights == "raw" else f" ({_NAMES[weights]})"
    return f"Test set{kind}: Average loss: {loss:.4f}, Accuracy: {correct}/{total} ({percent(correct, total)}%)"


def epoch_text(epoch: Epoch, epochs: int) -> str:
    """The lines of one epoch of so many: training, then the test set by raw and by averaged weights."""
    e = epoch
    lines = [
        f"seed {e.seed}, epoch {e.epoch}/{epochs}: {e.seconds:.1f} s, {e.images_per_second:,.0f} images/s, "
        f"lr {_path(e.lr_first, e.lr_max, e.lr_last)}, "
        f"momentum {_path(e.momentum_first, e.momentum_min, e.momentum_last)}",
        f"Train set: Average loss: {e.train_loss:.4f}, Accuracy: {e.train_correct}/{e.train_total} "
        f"({percent(e.train_correct, e.train_total)}%)",
        tested(e.test_loss, e.test_correct, e.test_total, "raw"),
    ]
    if e.ema_loss is not None and e.ema_correct is not None:
        lines.append(tested(e.ema_loss, e.ema_correct, e.test_total, "ema"))
    return "\n".join(lines)


def _path(first: float, turn: float, last: float) -> str:
    """`0.95 -> 0.85 -> 0.95`, or less where values repeat: what was used first, at the extreme, and last."""
    found = [f"{value:.3g}" for value in (first, turn, last)]
    return " -> ".join(value for i, value in enumerate(found) if i == 0 or value != found[i - 1])


def epoch_json(epoch: Epoch) -> str:
    """One line of JSON."""
    return json.dumps({"event": "epoch", **dataclasses.asdict(epoch)})


# --- the verdict ---------------------------------------------------------------------------------------------


def verdict_text(verdict: Verdict) -> str:
    """Three lines by the weights that decide, one on the others, and what follows."""
    first, *others = verdict.judged
    claim = verdict.claim
    lines = [
        ("HOLD", _WORDS[first.hold], _hold(verdict, first)),
        ("SEEDS", _WORDS[first.enough_seeds], _seeds(first) + _but(verdict, first)),
        ("POPULATION", _WORDS[first.population], _population(verdict, first) + _but(verdict, first)),
        *(("", f"by {_NAMES[judged.weights]} weights", _other(judged)) for judged in others),
    ]
    text = [_fitted(f"{name:<{_NAME}}{word:<{_WORD}}{what}") for name, word, what in lines]
    decided = f"{claim.require.upper()} decides, by {_NAMES[claim.weights]} weights"
    return "\n".join([*text, "", f"{'VERIFIED' if verdict.verified else 'NOT VERIFIED'}: {decided}"])


def _fitted(line: str) -> str:
    """In lines of the page's width, the % never parted from its number."""
    return wrapped(line.replace(" %", "\u00a0%"), _WIDTH, " " * (_NAME + _WORD)).replace("\u00a0%", " %")


def _but(verdict: Verdict, judged: Judged) -> str:
    """Why a line whose own figures are fine does not pass all the same."""
    if not verdict.within_budget:
        return "; but more parameters or epochs than claimed"
    return "" if all(seed.correct for seed in judged.seeds) else "; but not every seed is through"


def _hold(verdict: Verdict, judged: Judged) -> str:
    claim = verdict.claim
    found = [
        f"{judged.holding} of {_count(len(judged.seeds), 'seed')} at {claim.target:.15g} % or more "
        f"{_last(claim, 'in')}",
        _within(verdict.params, claim.max_params, "parameter"),
        _within(verdict.epochs, claim.max_epochs, "epoch"),
    ]
    # Of many seeds only those are named that do not hold.
    named = judged.seeds if len(judged.seeds) <= _MOST_SEEDS else [one for one in judged.seeds if not one.holds]
    lows = [_lowest(one, verdict) for one in named[:_MOST_SEEDS]]
    lows += [f"{len(named) - _MOST_SEEDS} more"] * (len(named) > _MOST_SEEDS)
    return "; ".join([*found, *([f"lowest: {', '.join(lows)}"] if lows else [])])


def _lowest(seed: Seed, verdict: Verdict) -> str:
    if not seed.correct:
        return f"seed {seed.seed} is not through ({seed.epochs} of {verdict.epochs} epochs)"
    lowest = min(seed.correct)
    return f"seed {seed.seed} {percent(lowest, seed.total)} % ({lowest:,} of {seed.total:,})"


def _last(claim: Claim, after: str) -> str:
    return f"{after} the last epoch" if claim.last == 1 else f"{after} each of the last {claim.last} epochs"


def _within(found: int, most: int, what: str) -> str:
    over = f", {found - most:,} too many" if found > most else ""
    return f"{_count(found, what)} of at most {most:,}{over}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + "s" * (number != 1)


def _seeds(judged: Judged) -> str:
    spread = judged.spread
    if spread is None:
        return "no seed is through"
    sd = "" if spread.sd is None else f", sd {spread.sd:.3f}"
    return (
        f"last epoch: mean {spread.mean:.3f} %{sd}, lowest {_floored(spread.lowest / 100)} %; {judged.holding} of "
        f"{len(judged.seeds)} hold, so at 95 % confidence {_floored(judged.bound)} % of all seeds or more do; "
        "expected above 50 %"
    )


def _population(verdict: Verdict, judged: Judged) -> str:
    if judged.interval is None or judged.lowest is None:
        return "no seed is through"
    found, lowest = judged.interval, judged.lowest
    return (
        f"seed {lowest.seed}'s last epoch, {lowest.correct[-1]:,} of {lowest.total:,}: of all such images "
        f"{likely(found)} at 95 % confidence; expected {verdict.claim.target:.15g} % or more"
    )


def likely(found: Interval) -> str:
    """`99.34 % to 99.62 %`."""
    return f"{_floored(found.low)} % to {100 * found.high:.2f} %"


def _other(judged: Judged) -> str:
    lines = {"HOLD": judged.hold, "SEEDS": judged.enough_seeds, "POPULATION": judged.population}
    each = ", ".join(f"{name} {_WORDS[passed]}" for name, passed in lines.items())
    spread = f", mean {judged.spread.mean:.3f} % after the last epoch" if judged.spread else ""
    return f"{each}; {judged.holding} of {len(judged.seeds)} hold{spread}"


def held(verdict: Verdict) -> str:
    """`99.53 % 3/3`: the lowest of the last epochs of all seeds by the weights that decide, and how many seeds hold."""
    judged = verdict.judged[0]
    through = [seed for seed in judged.seeds if seed.correct]
    if not through:
        return ""
    lowest = min(through, key=lambda seed: min(seed.correct) / seed.total)
    return f"{percent(min(lowest.correct), lowest.total)} % {judged.holding}/{len(judged.seeds)}"


def verdict_json(verdict: Verdict, folder: str) -> str:
    """One line of JSON."""
    return json.dumps({"event": "verdict", "run": folder, **verdict_values(verdict)})


def verdict_values(verdict: Verdict) -> dict[str, Any]:
    """Plain values for JSON."""
    judged = [
        {**dataclasses.asdict(one), "verified": {name: one.passes(name) for name in ("hold", "seeds", "population")}}
        for one in verdict.judged
    ]
    return {
        "verified": verdict.verified,
        "params": verdict.params,
        "epochs": verdict.epochs,
        "claim": dataclasses.asdict(verdict.claim),
        "judged": judged,
    }


# --- report.md -----------------------------------------------------------------------------------------------


def report(run: Run, verdict: Verdict, analysis: Analysis, pictures: Mapping[str, str]) -> str:
    """report.md: Target, Results, Analysis, the pictures (file -> caption), and how the run was made."""
    config, claim = run.config, verdict.claim
    blocks = [
        f"# {_plain(config.design)}",
        "## Target",
        f"- {claim.target:.15g} % of the test images of {_plain(config.data)} right {_last(claim, 'after')}\n"
        f"- at most {claim.max_params:,} parameters\n"
        f"- at most {_count(claim.max_epochs, 'epoch')}",
        "## Results",
        f"- {_count(verdict.params, 'parameter')}\n- {_count(verdict.epochs, 'epoch')}, recipe `{config.recipe.name}`\n"
        + _training_result(config, analysis),
        _last_epochs(run, verdict),
        f"```\n{verdict_text(verdict)}\n```",
        "## Analysis",
        "\n".join(f"- {line}" for line in findings(run, analysis)),
        *(f"![{caption}]({file})" for file, caption in pictures.items()),
        "## Every epoch",
        _every_epoch(run),
        "## How it was made",
        _made(config),
    ]
    return "\n\n".join(blocks)


def _training_result(config: Config, analysis: Analysis) -> str:
    epoch, how = analysis.epoch, " as augmented" if config.recipe.augmentation else ""
    share = percent(epoch.train_correct, epoch.train_total)
    return f"- Training accuracy{how} in the last epoch of seed {analysis.seed}: {share} %"


def _last_epochs(run: Run, verdict: Verdict) -> str:
    """A row per seed and kind of weights, the counts of the epochs that decide."""
    epochs = [f"epoch {number}" for number in range(verdict.epochs - verdict.claim.last + 1, verdict.epochs + 1)]
    rows = [
        [f"{seed.seed}", _NAMES[judged.weights], *_shares(seed, len(epochs)), "yes" if seed.holds else "no"]
        for judged in verdict.judged
        for seed in judged.seeds
    ]
    return _table(["seed", "weights", *epochs, "holds"], rows)


def _shares(seed: Seed, count: int) -> list[str]:
    return [f"{percent(one, seed.total)} %" for one in seed.correct] or ["not through"] * count


def findings(run: Run, analysis: Analysis) -> list[str]:
    """What the figures show, each with how sure it is."""
    return [
        _fit(analysis),
        _under_target(run, analysis),
        _augmented(analysis),
        _direction(analysis),
        *_mistakes(run, analysis),
    ]


def _fit(analysis: Analysis) -> str:
    gap = analysis.gap
    found = (
        f"On images as they are, seed {analysis.seed}'s {_NAMES[analysis.weights]} weights have "
        f"{_floored(analysis.train.share)} % of the training and {_floored(analysis.test.share)} % of the test images "
        f"right: a gap of {100 * gap.share:+.2f} points, {100 * gap.low:+.2f} to {100 * gap.high:+.2f} at 95 % "
        "confidence."
    )
    if gap.low > 0:
        return f"{found} It knows the images it was trained on better than others: it over-fits by that much."
    if gap.high < 0:
        return f"{found} The test images are the easier ones here; no over-fitting is seen."
    return f"{found} The gap may be none: no over-fitting is shown."


def _under_target(run: Run, analysis: Analysis) -> str:
    target = run.config.claim.target
    if 100 * analysis.train.high < target:
        return (
            f"Even of the training images fewer than {target:.15g} % are right: it under-fits. Too little capacity, "
            "too few epochs, the learning rate, or too much augmentation or dropout may be the cause; which, is not "
            "shown."
        )
    if 100 * analysis.train.low > target:
        return f"More than {target:.15g} % of the training images are right: the network can express the target."
    return f"The training images are at {target:.15g} % within the error: whether it under-fits cannot be told."


def _augmented(analysis: Analysis) -> str:
    epoch = analysis.epoch
    return (
        f"While it trained, {percent(epoch.train_correct, epoch.train_total)} % of the last epoch's images were right, "
        f"and after it {percent(epoch.test_correct, epoch.test_total)} % of the test images by raw weights. The first "
        "are images as augmented, met by dropout and by weights that still change: that gap says nothing of "
        "over-fitting."
    )


def _direction(analysis: Analysis) -> str:
    trend = analysis.trend
    if trend is None:
        return "Fewer than three last epochs: whether it still improves cannot be told."
    found = (
        f"Over the last {trend.epochs} epochs the test accuracy changes by {trend.slope:+.4f} +- {trend.error:.4f} "
        "points per epoch (mean of the seeds; 95 % if no epoch hung on the one before)"
    )
    meant = {
        "improving": "it still improves",
        "falling": "it falls",
        "flat": "within its error it may as well be flat, so that more epochs would help is not shown",
    }
    ended = f"the learning rate ended at {analysis.epoch.lr_last:.2g}"
    return f"{found}: {meant[trend.direction]}; {ended}."


def _mistakes(run: Run, analysis: Analysis) -> list[str]:
    classes = [_plain(name) for name in run.config.classes]
    total = int(analysis.confusion.sum())
    wrong = total - analysis.correct
    found = [f"{_count(wrong, 'test image')} of {total:,} wrong."]
    if wrong:
        pairs = ", ".join(f"{classes[p.true]} for {classes[p.predicted]} ({p.count:,})" for p in analysis.pairs(5))
        found[0] = f"{_count(wrong, 'test image')} of {total:,} wrong; most often taken {pairs}."
    recorded = analysis.epoch.ema_correct if analysis.weights == "ema" else analysis.epoch.test_correct
    if recorded != analysis.correct:
        found.append(
            f"Counted again here {analysis.correct:,} are right, in training {recorded:,} were: another device or "
            "number of threads rounds otherwise."
        )
    return found


def _every_epoch(run: Run) -> str:
    every = sorted((e for epochs in run.epochs.values() for e in epochs), key=lambda e: (e.seed, e.epoch))
    averaged = any(e.ema_correct is not None for e in every)
    rows = []
    for e in every:
        row = [
            f"{e.seed}",
            f"{e.epoch}",
            f"{e.train_loss:.4f}",
            percent(e.train_correct, e.train_total),
            f"{e.test_loss:.4f}",
            percent(e.test_correct, e.test_total),
        ]
        if e.ema_loss is not None and e.ema_correct is not None:
            row += [f"{e.ema_loss:.4f}", percent(e.ema_correct, e.test_total)]
        row += [
            _path(e.lr_first, e.lr_max, e.lr_last),
            _path(e.momentum_first, e.momentum_min, e.momentum_last),
            f"{e.seconds:.1f}",
        ]
        rows.append(row)
    headings = ["seed", "epoch", "train loss", "train %", "test loss", "test %"]
    headings += ["EMA loss", "EMA %"] if averaged else []
    return _table([*headings, "learning rate", "momentum", "seconds"], rows)


def _made(config: Config) -> str:
    where = config.environment
    lines = [
        f"- rfcalc {config.version}, torch {', then '.join(config.torches)}, Python {where['python']}, "
        f"{where['platform']}",
        f"- device {config.device} ({where['processor']}), {where['threads']} of {where['cores']} threads"
        + (", bfloat16 in training" if config.amp else ""),
        f"- seeds {', '.join(map(str, config.seeds))}, begun {config.created}",
        f"- data {_plain(config.data)}, sha256 {config.data_sha256[:16]}; design sha256 {config.source[:16]}",
        f"- recipe: `{json.dumps(dataclasses.asdict(config.recipe))}`",
    ]
    return "\n".join(lines)


def _table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    align = ["right"] * len(headings)
    return tabulate.tabulate(rows, headings, "github", disable_numparse=True, colalign=align)


def _plain(text: str) -> str:
    """A name that can neither break a line of Markdown nor a terminal."""
    return atom(text).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
