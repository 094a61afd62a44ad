"""Epochs, verdicts and report.md as people and machines read them."""

import dataclasses
import json

import pytest
import torch
from epochs import epoch, run_of, trained

from rfcalc.render.training import epoch_json, epoch_text, findings, percent, report, verdict_json, verdict_text
from rfcalc.train.analysis import Analysis, Trend, difference
from rfcalc.train.verdict import Claim, interval, judge

GOOD = [9000] * 10 + [9953, 9955, 9954, 9958, 9957]
SHORT = [9000] * 10 + [9953, 9955, 9939, 9958, 9957]
STEADY = Trend(5, 0.004, 0.02)


def analysed(train=(59_900, 60_000), test=(9954, 10_000), pairs=((4, 9, 6), (7, 2, 3)), trend=STEADY):
    """An analysis with these counts, and these images of a class taken for another."""
    confusion = torch.diag(torch.full((10,), 1000))
    confusion[0, 0] += test[1] - 10_000
    for true, predicted, count in pairs:
        confusion[true, predicted] += count
        confusion[true, true] -= count
    left = test[1] - test[0] - sum(count for *_, count in pairs)
    confusion[0, 1] += left
    confusion[0, 0] -= left
    shares = interval(*train), interval(*test)
    none = torch.empty(0)
    one = epoch(15, seed=2, raw=9940, ema=9954, lr_last=2.1e-6)
    return Analysis(2, "ema", one, *shares, difference(*shares), trend, none, none, confusion)


# --- epochs --------------------------------------------------------------------------------------------------


def test_an_epoch():
    assert epoch_text(epoch(3, raw=9950, ema=9953, test_loss=0.0168, ema_loss=0.01614), 15) == "\n".join(
        [
            "seed 1, epoch 3/15: 8.5 s, 7,059 images/s, lr 0.0021 -> 0.01 -> 0.0098, momentum 0.95 -> 0.85 -> 0.95",
            "Train set: Average loss: 0.0712, Accuracy: 58621/60000 (97.70%)",
            "Test set: Average loss: 0.0168, Accuracy: 9950/10000 (99.50%)",
            "Test set (EMA): Average loss: 0.0161, Accuracy: 9953/10000 (99.53%)",
        ]
    )


def test_an_epoch_without_an_average_and_with_a_rate_that_stays():
    flat = {"lr_first": 0.1, "lr_max": 0.1, "lr_last": 0.1, "momentum_min": 0.95}
    text = epoch_text(epoch(3, ema=None, **flat), 15)
    assert "lr 0.1, momentum 0.95\n" in text
    assert "EMA" not in text


def test_an_epoch_for_machines():
    one = epoch(3)
    assert json.loads(epoch_json(one)) == {"event": "epoch", **dataclasses.asdict(one)}
    assert "\n" not in epoch_json(one)


@pytest.mark.parametrize(
    ("correct", "total", "text"),
    [
        (9950, 10_000, "99.50"),
        (9939, 10_000, "99.39"),
        (39_759, 40_000, "99.39"),  # 99.3975
        (2, 3, "66.66"),
        (0, 7, "0.00"),
        (7, 7, "100.00"),
        (1, 2000, "0.05"),
        (29, 100_000, "0.02"),
    ],
)
def test_percentages_are_rounded_down(correct, total, text):
    assert percent(correct, total) == text


# --- verdicts ------------------------------------------------------------------------------------------------

VERDICTS = {
    "three seeds hold": ({1: trained(GOOD), 2: trained(GOOD), 3: trained(GOOD)}, {}),
    "one image short": ({1: trained(GOOD), 2: trained(SHORT)}, {}),
    "too many parameters and epochs": ({1: trained([9999] * 16)}, {"params": 8001}),
    "a seed is not through": ({1: trained(GOOD), 2: trained(GOOD[:7]), 3: []}, {}),
    "nothing yet": ({1: []}, {"epochs": 15}),
    "raw weights and the last epoch": (
        {1: trained(GOOD)},
        {"claim": Claim(weights="raw", last=1, require="population")},
    ),
    "no average": (
        {1: [epoch(i, ema=None) for i in range(1, 16)]},
        {"claim": Claim(weights="raw", require="seeds", target=99.35)},
    ),
    "ten seeds of which one is short": ({seed: trained(SHORT if seed == 7 else GOOD) for seed in range(10)}, {}),
    "twelve seeds that are all short": ({seed: trained(SHORT) for seed in range(12)}, {}),
}


def test_verdicts(golden):
    texts = []
    for name, (runs, options) in VERDICTS.items():
        text = verdict_text(judge(runs, **{"params": 6720, **options}))
        assert max(map(len, text.splitlines())) <= 110
        texts.append(f"# {name}\n\n{text}")
    golden("training-verdicts.txt", "\n\n\n".join(texts))


def test_a_verdict_for_machines():
    verdict = judge({1: trained(GOOD), 2: trained(SHORT)}, params=6720)
    found = json.loads(verdict_json(verdict, "runs/a/b"))
    assert (found["event"], found["run"], found["verified"], found["params"]) == ("verdict", "runs/a/b", False, 6720)
    first, second = found["judged"]
    assert (first["weights"], first["holding"], first["verified"]) == (
        "ema",
        1,
        {"hold": False, "seeds": False, "population": True},
    )
    assert first["seeds"][1]["correct"] == [9953, 9955, 9939, 9958, 9957]
    assert second["weights"] == "raw"
    assert found["claim"] == dataclasses.asdict(Claim())


# --- report.md -----------------------------------------------------------------------------------------------


def test_a_report(golden):
    run = run_of({1: trained(GOOD), 2: trained(SHORT, seed=2)})
    text = report(run, run.verdict(), analysed(), {"curves.png": "Loss and accuracy"})
    golden("training-report.md", text)


def test_a_report_of_raw_weights_has_no_column_for_others():
    run = run_of({1: [epoch(i, ema=None) for i in range(1, 16)]}, claim=Claim(weights="raw"))
    found = dataclasses.replace(analysed(), seed=1, weights="raw")
    assert "EMA" not in report(run, run.verdict(), found, {})


def test_every_torch_that_trained_is_named():
    run = run_of({1: trained(GOOD)})
    environment = {**run.config.environment, "torch": "2.9", "later_torch": ["2.11", "2.15"]}
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, environment=environment))
    assert "torch 2.9, then 2.11, then 2.15, Python" in report(run, run.verdict(), analysed(), {})


def test_names_cannot_break_the_page():
    run = run_of({1: trained(GOOD)}, design="a`b|<img>\n# x.py:Net", data="folder:<b>\x1b[31m")
    text = report(run, run.verdict(), analysed(), {})
    assert text.startswith("# a'b\\|&lt;img>?# x.py:Net\n")
    assert "<b>" not in text
    assert "\x1b" not in text


FINDINGS = {
    "over-fitting": (analysed(train=(59_990, 60_000), test=(9900, 10_000)), "It knows the images it was trained on"),
    "no over-fitting": (analysed(train=(59_724, 60_000)), "no over-fitting is shown"),
    "easier test images": (analysed(train=(59_000, 60_000)), "The test images are the easier ones here"),
    "under-fitting": (analysed(train=(59_000, 60_000)), "Even of the training images fewer than 99.4 % are right"),
    "able": (analysed(train=(59_990, 60_000)), "More than 99.4 % of the training images are right"),
    "unable to tell": (analysed(train=(59_640, 60_000)), "whether it under-fits cannot be told"),
    "improving": (analysed(trend=Trend(5, 0.05, 0.02)),
                  "+0.0500 +- 0.0200 points per epoch (mean of the seeds; 95 % if no epoch hung on the one before): "
                  "it still"),
    "falling": (analysed(trend=Trend(5, -0.05, 0.02)), "it falls"),
    "flat": (analysed(trend=Trend(5, 0.01, 0.02)),
             "that more epochs would help is not shown; the learning rate ended at 2.1e-06"),
    "no trend": (analysed(trend=None), "whether it still improves cannot be told"),
    "confusions": (analysed(),
                   "46 test images of 10,000 wrong; most often taken 0 for 1 (37), 4 for 9 (6), 7 for 2 (3)."),
    "one mistake": (analysed(test=(9999, 10_000), pairs=()),
                    "1 test image of 10,000 wrong; most often taken 0 for 1 (1)."),
    "no mistake": (analysed(test=(10_000, 10_000), pairs=()), "0 test images of 10,000 wrong."),
    "counted otherwise": (analysed(test=(9955, 10_000)), "Counted again here 9,955 are right, in training 9,954 were"),
}  # fmt: skip


@pytest.mark.parametrize("name", FINDINGS)
def test_findings(name):
    analysis, expected = FINDINGS[name]
    text = "\n".join(findings(run_of({2: trained(GOOD, seed=2)}), analysis))
    assert expected in text
    exclusive = [
        ("over-fits by that much", "no over-fitting is"),
        ("it under-fits.", "can express the target", "cannot be told.\nWhile"),
        ("it still improves;", "it falls;", "not shown;", "cannot be told.\n46"),
    ]
    for phrases in exclusive:
        assert sum(phrase in text for phrase in phrases) <= 1
