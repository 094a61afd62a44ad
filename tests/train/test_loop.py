"""The loop against one written out by hand, its figures against what was done, and going on just where it stopped."""

import copy
import dataclasses
import io
import math
import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, dropout, log_softmax

from rfcalc.designs.design import load_design
from rfcalc.errors import ForwardError, InputError, NotFiniteError, RecipeError, RfcalcError
from rfcalc.train import evaluation, graph, loop
from rfcalc.train.augment import Augmentation
from rfcalc.train.data import DataSet, Split, load
from rfcalc.train.evaluation import evaluate
from rfcalc.train.loop import Epoch, State, pick_device, train
from rfcalc.train.optim import Choice
from rfcalc.train.recipe import OURS, Recipe, from_reference

ROOT = Path(__file__).resolve().parents[2]
PLAIN = Recipe("plain", 2, 32, Choice("SGD", {"lr": 0.1, "momentum": 0.9}))


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that share cores with other tests wait for each other for most of their time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Net(nn.Module):
    """A convolution, a norm, dropout and a classifier."""

    def __init__(self, p=0.1, classes=3):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Dropout(p), nn.Conv2d(4, 4, 3), nn.ReLU()
        )
        self.head = nn.Linear(4, classes)

    def forward(self, x):
        return log_softmax(self.head(self.body(x).mean((2, 3))), 1)


def stripes(count, seed):
    """Three classes of noisy 8x8 images: lines across, down, neither."""
    source = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=source)
    images = torch.randint(120, (count, 1, 8, 8), generator=source)
    images[labels == 0, :, ::2] += 100
    images[labels == 1, :, :, ::2] += 100
    return Split(images.to(torch.uint8), labels)


@pytest.fixture(scope="module")
def data():
    return DataSet("stripes", stripes(200, 1), stripes(70, 2), ("across", "down", "neither"), (0.4,), (0.2,))


def run(data, recipe=PLAIN, build=Net, **options):
    return list(train(build, data, recipe, **{"seed": 1, **options}))


def same(one, other):
    """Whether two values of lists, dicts and tensors are equal bit by bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def figures(epoch):
    return {name: value for name, value in vars(epoch).items() if name not in ("seconds", "images_per_second")}


def same_runs(one, other):
    return all(
        figures(a) == figures(b) and same(s.to_dict(), t.to_dict()) for (a, s), (b, t) in zip(one, other, strict=True)
    )


# --- what it does --------------------------------------------------------------------------------------------


def test_the_loop_written_out_by_hand(data):
    found = run(data, build=lambda: Net(p=0.0))
    torch.manual_seed(1)
    net = Net(p=0.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    order = torch.Generator().manual_seed(1)
    for epoch, state in found:
        total, right = 0.0, 0
        net.train()
        for rows in torch.randperm(200, generator=order).split(32):
            images = (data.train.images[rows] / 255 - 0.4) / 0.2
            output = net(images)
            loss = cross_entropy(output, data.train.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
            right += (output.argmax(1) == data.train.labels[rows]).sum().item()
        torch.testing.assert_close(state.model, net.state_dict(), atol=1e-4, rtol=1e-4)
        assert (epoch.train_correct, epoch.train_total, epoch.steps) == (right, 200, 7)
        assert epoch.train_loss == pytest.approx(total / 200, rel=1e-4)
        net.eval()
        with torch.no_grad():
            output = net((data.test.images / 255 - 0.4) / 0.2)
        assert epoch.test_loss == pytest.approx(cross_entropy(output, data.test.labels).item(), rel=1e-3)
        assert (epoch.test_correct, epoch.test_total) == ((output.argmax(1) == data.test.labels).sum().item(), 70)


def test_the_average_written_out_by_hand(data, monkeypatch):
    seen = []
    average = loop._Training._average

    def spy(self, step):
        average(self, step)
        seen.append((step, copy.deepcopy(self.model.state_dict())))

    monkeypatch.setattr(loop._Training, "_average", spy)
    recipe = dataclasses.replace(PLAIN, ema=0.3)
    found = run(data, recipe)
    torch.manual_seed(1)
    expected = Net().state_dict()
    for step, weights in seen:
        decay = min(0.3, (step + 1) / (step + 10))
        for name, value in expected.items():
            if value.is_floating_point():
                expected[name] = decay * value + (1 - decay) * weights[name]
    epoch, state = found[-1]
    assert [step for step, _ in seen] == list(range(14))
    for name, value in expected.items():
        if value.is_floating_point():
            torch.testing.assert_close(state.ema[name], value, atol=1e-5, rtol=1e-5)
    net = Net()
    net.load_state_dict(state.ema)
    assert (epoch.ema_loss, epoch.ema_correct) == pytest.approx(evaluate(net, data.test, data))
    assert not torch.equal(state.ema["body.2.running_mean"], state.model["body.2.running_mean"])


class Reassigning(Net):
    """Its forward puts another tensor in its buffer's place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.seen = self.seen + 1
        return super().forward(x)


def test_a_buffer_that_is_reassigned_is_averaged(data):
    _, state = run(data, dataclasses.replace(PLAIN, ema=0.3), Reassigning)[-1]
    expected = 0.0
    for step in range(14):
        decay = min(0.3, (step + 1) / (step + 10))
        expected = decay * expected + (1 - decay) * (step + 1)
    assert state.model["seen"] == 14
    assert state.ema["seen"].item() == pytest.approx(expected)


def test_without_an_average_there_is_none(data):
    epoch, state = run(data)[0]
    assert (epoch.ema_loss, epoch.ema_correct, state.ema) == (None, None, None)


def test_evaluation_leaves_the_mode_and_takes_every_image(data, monkeypatch):
    monkeypatch.setattr(evaluation, "_EVALUATED", 33)
    net = Net().train()
    found = evaluate(net, data.test, data)
    assert net.training
    monkeypatch.setattr(evaluation, "_EVALUATED", 1000)
    assert found == pytest.approx(evaluate(net, data.test, data))


def test_the_rate_and_momentum_are_what_was_used(data):
    recipe = dataclasses.replace(
        PLAIN,
        epochs=3,
        optimizer=Choice("SGD", {"lr": 0.1, "momentum": 0.7}),
        schedule=Choice("OneCycleLR", {"max_lr": 0.2}),
    )
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.7)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=21)
    for epoch, _ in run(data, recipe):
        used = []
        for _ in range(7):
            used.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
            optimizer.step()
            schedule.step()
        lrs, momenta = zip(*used, strict=True)
        assert (epoch.lr_first, epoch.lr_max, epoch.lr_last) == pytest.approx((lrs[0], max(lrs), lrs[-1]))
        assert (epoch.momentum_first, epoch.momentum_last) == pytest.approx((momenta[0], momenta[-1]))
        assert epoch.momentum_min == pytest.approx(min(momenta))
        assert 0.7 not in momenta


def test_a_schedule_by_epochs_and_one_by_the_test_loss(data, monkeypatch):
    steps = dataclasses.replace(PLAIN, epochs=4, schedule=Choice("StepLR", {"step_size": 2, "gamma": 0.1}))
    assert [epoch.lr_first for epoch, _ in run(data, steps)] == pytest.approx([0.1, 0.1, 0.01, 0.01])
    monkeypatch.setattr(loop, "evaluate", lambda *_: (1.0, 0))
    plateau = dataclasses.replace(PLAIN, epochs=4, schedule=Choice("ReduceLROnPlateau", {"patience": 1}))
    # The first loss is the best; the second and third are not better, which is one too many.
    assert [epoch.lr_first for epoch, _ in run(data, plateau)] == pytest.approx([0.1, 0.1, 0.1, 0.01])


def test_adams_first_beta_counts_as_momentum(data):
    epoch, _ = run(data, dataclasses.replace(PLAIN, optimizer=Choice("AdamW", {"betas": (0.8, 0.9)})))[0]
    assert epoch.momentum_min == 0.8


@pytest.mark.parametrize(("count", "sizes"), [(64, [32, 32]), (65, [32, 32]), (66, [32, 32, 2])])
def test_a_last_batch_of_one_image_is_left_out(data, count, sizes):
    part = dataclasses.replace(data, train=Split(data.train.images[:count], data.train.labels[:count]))
    epoch, _ = run(part, dataclasses.replace(PLAIN, epochs=1))[0]
    assert (epoch.steps, epoch.train_total) == (len(sizes), sum(sizes))


def test_progress_is_told(data, monkeypatch):
    monkeypatch.setattr(loop, "_REPORT_EVERY", 0)
    told = []
    epochs = run(data, on_batch=told.append)
    assert [(one.epoch, one.step, one.images) for one in told[:8]] == [
        *((1, step, 32 * step) for step in range(1, 7)),
        (1, 7, 200),
        (2, 1, 32),
    ]
    assert (told[6].loss, told[6].correct, told[6].steps) == (epochs[0][0].train_loss, epochs[0][0].train_correct, 7)


def test_mixed_precision_trains_and_evaluates_in_float32(data):
    kinds = set()

    class Spy(Net):
        def forward(self, x):
            kinds.add((self.training, self.body[0](x).dtype))
            return super().forward(x)

    epochs = run(data, dataclasses.replace(PLAIN, epochs=5), build=Spy, amp=True)
    assert kinds == {(True, torch.bfloat16), (False, torch.float32)}
    assert all(value.dtype != torch.bfloat16 for value in epochs[-1][1].model.values())
    assert epochs[-1][0].train_loss < epochs[0][0].train_loss


# --- the same numbers again ----------------------------------------------------------------------------------

RANDOM = dataclasses.replace(OURS, epochs=4, batch_size=32, augmentation=(Augmentation(rotate=(-9, 9), shift=1),))
RECIPES = {
    "ours": RANDOM,
    "one cycle": dataclasses.replace(PLAIN, epochs=4, schedule=Choice("OneCycleLR", {"max_lr": 0.2})),
    "plateau": dataclasses.replace(PLAIN, epochs=4, schedule=Choice("ReduceLROnPlateau", {"patience": 0})),
}


def test_the_same_seed_gives_the_same_numbers_and_another_others(data):
    torch.manual_seed(5)
    first = run(data, RANDOM)
    torch.manual_seed(6)
    assert same_runs(first, run(data, RANDOM))
    assert not same_runs(first, run(data, RANDOM, seed=2))


def test_two_runs_side_by_side_do_not_disturb_each_other(data):
    alone = run(data, RANDOM)
    one, other = (train(Net, data, RANDOM, seed=seed) for seed in (1, 2))
    mixed = []
    for first, _ in zip(one, other, strict=True):
        torch.rand(3)  # nor does what the caller draws
        mixed.append(first)
    assert same_runs(alone, mixed)


class AlwaysDrops(Net):
    """As notebooks often do by mistake: dropout in evaluation too."""

    def forward(self, x):
        return dropout(super().forward(x), 0.1)


@pytest.mark.parametrize("build", [Net, AlwaysDrops])
def test_the_callers_random_state_is_left_and_does_not_matter(data, build):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = run(data, RANDOM, build)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    assert same_runs(first, run(data, RANDOM, build))
    assert same_runs(first[2:], run(data, RANDOM, build, state=first[1][1]))


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state.to_dict(), file)
    file.seek(0)
    return State.from_dict(torch.load(file, weights_only=True))


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("after", [1, 2, 3])
def test_going_on_gives_what_going_through_gives(data, name, after):
    straight = run(data, RECIPES[name])
    state = saved_and_loaded(straight[after - 1][1])
    resumed = run(data, RECIPES[name], state=state)
    assert len(resumed) == 4 - after
    assert same_runs(straight[after:], resumed)


def test_going_on_twice_from_one_state_gives_the_same(data):
    state = run(data, RANDOM)[1][1]
    assert same_runs(run(data, RANDOM, state=state), run(data, RANDOM, state=state))


def test_a_finished_run_has_nothing_to_go_on_with(data):
    assert run(data, state=run(data)[-1][1]) == []


def test_a_state_keeps_its_number_of_threads(data):
    state = run(data)[0][1]
    next(train(Net, data, PLAIN, seed=1, state=dataclasses.replace(state, threads=2)))
    assert (state.threads, torch.get_num_threads()) == (1, 2)


def test_a_state_is_a_copy(data):
    training = train(Net, data, PLAIN, seed=1)
    _, state = next(training)
    before = copy.deepcopy(state.to_dict())
    next(training)
    assert same(before, state.to_dict())


def test_a_state_of_another_design_or_recipe(data):
    state = run(data)[0][1]
    with pytest.raises(RfcalcError, match="training state of seed 1: RuntimeError") as caught:
        run(data, build=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), state=state)
    assert "\n" not in str(caught.value)
    with pytest.raises(RfcalcError, match="expected one of this design and recipe"):
        run(data, RANDOM, state=state)


@pytest.mark.parametrize("change", [lambda v: v.pop("noise"), lambda v: v.update(extra=1)])
def test_a_state_of_another_version(data, change):
    values = run(data)[0][1].to_dict()
    change(values)
    with pytest.raises(RfcalcError, match=r"training state: '(noise|extra)' is missing or unknown"):
        State.from_dict(values)


# --- what cannot be trained ----------------------------------------------------------------------------------


class Breaks(Net):
    """Its weights stop being numbers at one step of training."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def forward(self, x):
        self.count += self.training
        return super().forward(x) * (math.nan if self.training and self.count == 10 else 1.0)


def test_a_loss_that_is_not_finite_names_its_step(data):
    training = train(Breaks, data, PLAIN, seed=4)
    _, state = next(training)
    with pytest.raises(NotFiniteError, match="seed 4: the loss is nan in epoch 2 at step 3 of 7") as caught:
        next(training)
    assert "\n" not in str(caught.value)
    assert all(value.isfinite().all() for value in state.model.values())


def test_a_rate_too_large_is_found_within_the_epoch(data):
    with pytest.raises(NotFiniteError, match=r"epoch \d at step \d of 7|the test loss is"):
        run(data, dataclasses.replace(PLAIN, epochs=9, optimizer=Choice("SGD", {"lr": 1e30})))


def test_a_test_loss_that_is_not_finite(data):
    class Late(Net):
        def forward(self, x):
            return super().forward(x) * (1.0 if self.training or len(x) == 2 else math.inf)

    with pytest.raises(NotFiniteError, match=r"seed 1: the test loss is (nan|inf) after epoch 1"):
        run(data, build=Late)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Net(classes=4), InputError, r"stripes: the design's output is \(2, 4\) .* expected \(2, 3\)"),
        (lambda: nn.Conv2d(1, 3, 8), InputError, r"the design's output is \(2, 3, 1, 1\)"),
        (lambda: nn.Conv2d(3, 3, 3), ForwardError, r"stripes: the design's forward raised RuntimeError"),
        (lambda: nn.LSTM(8, 3), ForwardError, r"stripes: the design's forward raised"),
    ],
)
def test_a_design_that_does_not_fit(data, build, error, message):
    with pytest.raises(error, match=message) as caught:
        run(data, build=build)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "build", [nn.Identity, lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).requires_grad_(False)]
)
def test_nothing_to_train(data, build):
    with pytest.raises(InputError, match="stripes: the design has no parameter to train; expected one or more"):
        run(data, build=build)


class OnlyTests(Net):
    """Raises in training."""

    def forward(self, x):
        return super().forward(x) if not self.training else x[:, :, :0].mean(0).view(-1, 7)


class Sorts(Net):
    """Its output has no gradient."""

    def forward(self, x):
        return super().forward(x).argsort()


@pytest.mark.parametrize("build", [OnlyTests, Sorts])
def test_a_design_that_cannot_be_trained(data, build):
    with pytest.raises(ForwardError, match=r"seed 1: training the design raised \w+: .* on images \(32, 1, 8, 8\)$"):
        run(data, build=build)


def test_a_batch_larger_than_the_data(data):
    with pytest.raises(RecipeError, match="batch_size is 201; stripes has 200 images"):
        run(data, dataclasses.replace(PLAIN, batch_size=201))


# --- devices -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cuda", "mps", "expected"),
    [
        ("auto", True, False, "cuda"),
        ("auto", False, True, "mps"),
        ("auto", False, False, "cpu"),
        ("cpu", True, True, "cpu"),
        ("cuda", True, False, "cuda"),
        ("cuda", False, True, None),
        ("mps", False, False, None),
        ("tpu", True, True, None),
    ],
)
def test_devices(monkeypatch, name, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    if expected:
        assert pick_device(name) == expected
        return
    with pytest.raises(RfcalcError, match=f"device '{name}': .* expected ") as caught:
        pick_device(name)
    assert "\n" not in str(caught.value)


def test_cudnn_works_and_repeats_itself_and_tests_in_full_precision(data):
    seen = []

    class Spy(Net):
        def forward(self, x):
            cudnn = torch.backends.cudnn
            seen.append((cudnn.enabled, cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32))
            return super().forward(x)

    with torch.backends.cudnn.flags(enabled=True, benchmark=True), loop._repeatable(torch.device("cuda")):
        evaluate(Spy(), data.test, data)
        assert torch.backends.cudnn.allow_tf32
    assert set(seen) == {(True, True, False, False)}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_captured_step_is_the_plain_one(data, monkeypatch):
    build = lambda: Net(p=0.0)  # noqa: E731
    captured = run(data, RANDOM, build, device="cuda")
    monkeypatch.setattr(graph, "Captured", lambda step: step)
    plain = run(data, RANDOM, build, device="cuda")
    torch.testing.assert_close(captured[-1][1].model, plain[-1][1].model, atol=1e-3, rtol=1e-3)


# --- end to end ----------------------------------------------------------------------------------------------


def test_digits_are_learnt():
    digits = load("digits", input_shape=(1, 28, 28))
    design = load_design(str(ROOT / "models/compact.py"))
    recipe = dataclasses.replace(OURS, epochs=6, batch_size=32)
    epochs = list(train(design.build_real, digits, recipe, seed=1))
    assert epochs[-1][0].ema_correct > 0.95 * epochs[-1][0].test_total
    assert all(isinstance(epoch, Epoch) for epoch, _ in epochs)


def test_a_reference_recipe_runs_on_mnist():
    folder = Path(os.environ.get("RFCALC_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "MNIST" / "raw").is_dir():
        pytest.skip(f"MNIST is not in {folder}; RFCALC_DATA names its folder")
    mnist = load("mnist", data_dir=folder, input_shape=(1, 28, 28), download=False)
    few = dataclasses.replace(
        mnist,
        train=Split(mnist.train.images[:6000], mnist.train.labels[:6000]),
        test=Split(mnist.test.images[:1000], mnist.test.labels[:1000]),
    )
    design = load_design(str(ROOT / "models/step8.py"))
    recipe = from_reference(design.recipe, "models/step8.py")
    (epoch, _), *_ = train(design.build_real, few, dataclasses.replace(recipe, epochs=1), seed=1)
    assert epoch.momentum_first == pytest.approx(0.95)  # not the 0.7 that the optimizer was given
    assert epoch.test_correct > 300  # by chance 100
