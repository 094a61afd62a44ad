"""The loop: one seed's training, an `Epoch` of figures and a `State` to go on from after each epoch.

>>> for epoch, state in train(design.build_real, data, OURS, seed=1, device="cpu"):        # doctest: +SKIP
...     print(epoch.epoch, epoch.test_correct, epoch.ema_correct)

The same seed, machine, number of threads and options give the same numbers, in one go or resumed. What is random has
generators of its own, whose states are part of `State`; the caller's random state is left as it was."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from rfcalc.errors import ForwardError, NotFiniteError, RfcalcError
from rfcalc.text import one_line
from rfcalc.train.augment import apply, draw
from rfcalc.train.data import DataSet, normalise
from rfcalc.train.evaluation import batch_sizes, evaluate, require_trainable
from rfcalc.train.fused import fuse
from rfcalc.train.graph import Captured, cudnn, keep_memory
from rfcalc.train.optim import BY_BATCH, Choice, build, build_schedule, shares
from rfcalc.train.recipe import Recipe

_CHECKED = 32
"""Steps between looks for a loss that is not finite. On a GPU a look waits for it, so there is one at the end."""
_TRIED = 64
"""Images on which a network is tried before training: enough for the statistics of a norm."""
_REPORT_EVERY = 0.1
"""Seconds at least between two calls of `on_batch`."""
_FINITE = "expected a finite loss: try a smaller learning rate"

DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True)
class Epoch:
    """The figures of one epoch. Losses are means; the training's are of augmented images as the weights changed.

    Learning rate and momentum are what the first optimizer used, whatever the recipe says (Adam's first beta counts
    as momentum). `ema_*` are those of the averaged weights, None when the recipe keeps none.
    """

    seed: int
    epoch: int
    """From 1."""
    steps: int
    seconds: float
    """Of training; testing takes its own."""
    images_per_second: float
    train_loss: float
    train_correct: int
    train_total: int
    test_loss: float
    test_correct: int
    test_total: int
    ema_loss: float | None
    ema_correct: int | None
    lr_first: float
    lr_max: float
    lr_last: float
    momentum_first: float
    momentum_min: float
    momentum_last: float


@dataclass(frozen=True)
class Progress:
    """Where an epoch stands: mean loss and images right so far."""

    seed: int
    epoch: int
    step: int
    steps: int
    images: int
    loss: float
    correct: int


@dataclass(frozen=True)
class State:
    """Everything needed to go on after an epoch, copied to the CPU: tensors and plain values only.

    `model` and `ema` are state dicts of the network. torch.save(state.to_dict()) loads with weights_only=True.
    """

    seed: int
    epoch: int
    threads: int
    """Sums of floats depend on how many threads share them."""
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    optimizers: list[dict[str, Any]]
    schedules: list[dict[str, Any]]
    shuffle: Tensor
    """Of the generator of order and augmentation."""
    noise: list[Tensor]
    """Of torch's generators, the CPU's and the device's: dropout draws from them."""

    def to_dict(self) -> dict[str, Any]:
        """Its fields by name."""
        return {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> State:
        """The state of `to_dict`. Raises RfcalcError when it is another version's."""
        names = {one.name for one in dataclasses.fields(cls)}
        if set(values) != names:
            odd = sorted(set(values) ^ names)[0]
            raise RfcalcError(f"training state: {odd!r} is missing or unknown; expected one this version has written")
        return cls(**values)


def pick_device(name: str = "auto") -> str:
    """`auto` as the best there is; another name as it is. Raises RfcalcError for a device that is not there."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, there in here.items() if there)
    if name not in here:
        raise RfcalcError(f"device {name!r}: unknown; expected one of {', '.join(DEVICES)}")
    if not here[name]:
        there = ", ".join(device for device, found in here.items() if found)
        raise RfcalcError(f"device {name!r}: torch {torch.__version__} finds none here; expected auto or {there}")
    return name


def train(
    build_model: Callable[[], nn.Module],
    data: DataSet,
    recipe: Recipe,
    *,
    seed: int,
    device: str = "cpu",
    amp: bool = False,
    state: State | None = None,
    on_batch: Callable[[Progress], None] | None = None,
) -> Iterator[tuple[Epoch, State]]:
    """Train one seed, epoch by epoch.

    Args:
        build_model: the network with its author's initialisation.
        data: what to train and test on; the recipe's mean and std win over its own.
        device: "cpu", "cuda" or "mps".
        amp: train in bfloat16 where torch's autocast does; evaluation stays in float32.
        state: go on after it; its seed and number of threads are used.
        on_batch: is told how far the epoch is, a few times a second.

    Raises:
        RecipeError: recipe and data do not fit together.
        ForwardError, InputError: the network cannot take the images, its output is not [N, classes], or nothing in it
            can be trained.
        NotFiniteError: the loss is not finite; the message names epoch and step.
    """
    if state is not None and torch.get_num_threads() != state.threads:
        torch.set_num_threads(state.threads)
    run = _Training(build_model, recipe.fitted(data).to(device), recipe, seed, device, amp)
    if state is not None:
        run.restore(state)
    while run.epoch < recipe.epochs:
        yield run.train_epoch(on_batch), run.state()


class _Training:
    """One training: everything that changes from step to step. Its state is made of `State`'s fields."""

    def __init__(
        self, build_model: Callable[[], nn.Module], data: DataSet, recipe: Recipe, seed: int, device: str, amp: bool
    ) -> None:
        self.data, self.recipe, self.seed, self.device, self.amp = data, recipe, seed, torch.device(device), amp
        if device == "cpu":
            keep_memory()
        self.epoch = 0
        self.noise: list[Tensor] | None = None
        self.shuffle = torch.Generator().manual_seed(seed)
        with self._randomness():
            torch.manual_seed(seed)
            self.model = build_model().to(self.device).to(memory_format=torch.channels_last)
            if device == "cpu":
                fuse(self.model)
            require_trainable(self.model, data)
        self.sizes = batch_sizes(len(data.train), recipe.batch_size)
        self.ema = copy.deepcopy(self.model).requires_grad_(False) if recipe.ema else None
        self.averaged = (_averaged(self.ema), _averaged(self.model)) if self.ema else None
        graphed = device == "cuda" and recipe.optimizer.name in ("Muon", "AdamW", "Adam") and _only_rate(recipe)
        self.optimizers = [build(choice, part, captured=graphed) for choice, part in self._shares()]
        total = recipe.epochs * len(self.sizes)
        self.schedules = [
            build_schedule(recipe.schedule, optimizer, total) for optimizer in self.optimizers if recipe.schedule
        ]
        self.step = Captured(self._step) if graphed else self._step

    def _shares(self) -> list[tuple[Choice, list[nn.Parameter]]]:
        """Who trains what, by the network as it was built: the same when a run is resumed."""
        images, _ = self.data.train.batch(torch.arange(min(_TRIED, len(self.data.train)), device=self.device))
        images = normalise(images, self.data).contiguous(memory_format=torch.channels_last)
        with self._randomness(), self._naming(images):
            return shares(self.model, self.recipe.optimizer, self.recipe.rest, images)

    @contextlib.contextmanager
    def _naming(self, images: Tensor) -> Iterator[None]:
        """What the design's own forward and backward raise is a ForwardError."""
        try:
            yield
        except Exception as error:
            raise ForwardError(
                f"seed {self.seed}: training the design raised {one_line(error)} on images {tuple(images.shape)}"
            ) from error

    # --- an epoch ---

    def train_epoch(self, on_batch: Callable[[Progress], None] | None) -> Epoch:
        """One pass over the training split in a new order, and one over the test split."""
        self.epoch += 1
        self.model.train()
        # A forward that draws in evaluation too, as F.dropout without `training` does, must not draw from elsewhere.
        with self._randomness(), _repeatable(self.device):
            start = time.perf_counter()
            losses, correct, used = self._pass(on_batch)
            seconds = time.perf_counter() - start
            test_loss, test_correct = evaluate(self.model, self.data.test, self.data)
            ema_loss, ema_correct = evaluate(self.ema, self.data.test, self.data) if self.ema else (None, None)
        for loss in (test_loss, ema_loss):
            if loss is not None and not math.isfinite(loss):
                raise NotFiniteError(f"seed {self.seed}: the test loss is {loss} after epoch {self.epoch}; {_FINITE}")
        self._end_epoch(test_loss)
        total = sum(self.sizes)
        rates, momenta = zip(*((float(rate), momentum) for rate, momentum in used), strict=True)
        return Epoch(
            seed=self.seed,
            epoch=self.epoch,
            steps=len(self.sizes),
            seconds=seconds,
            images_per_second=total / seconds,
            train_loss=_mean(losses, self.sizes),
            train_correct=int(correct),
            train_total=total,
            test_loss=test_loss,
            test_correct=test_correct,
            test_total=len(self.data.test),
            ema_loss=ema_loss,
            ema_correct=ema_correct,
            lr_first=rates[0],
            lr_max=max(rates),
            lr_last=rates[-1],
            momentum_first=momenta[0],
            momentum_min=min(momenta),
            momentum_last=momenta[-1],
        )

    def _pass(
        self, on_batch: Callable[[Progress], None] | None
    ) -> tuple[list[float], Tensor, list[tuple[float | Tensor, float]]]:
        """Every batch once: the losses, how many images were right, and the rate and momentum of every step."""
        images = self.data.train.images
        order = torch.randperm(len(images), generator=self.shuffle)
        shape = (images.shape[1], images.shape[2], images.shape[3])
        table = draw(self.recipe.augmentation, sum(self.sizes), shape, self.shuffle)
        batches = zip(
            torch.split(order[: sum(self.sizes)].to(self.device), self.sizes),
            torch.split(table.to(self.device), self.sizes),
            strict=True,
        )
        losses = torch.zeros(len(self.sizes), device=self.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        used: list[tuple[float | Tensor, float]] = []
        reported = time.monotonic()
        for step, (rows, drawn) in enumerate(batches):
            used.append(_rate_and_momentum(self.optimizers[0]))
            loss, hits = self.step(rows, drawn)
            losses[step] = loss
            correct += hits
            self._average((self.epoch - 1) * len(self.sizes) + step)
            if self.recipe.schedule and self.recipe.schedule.name in BY_BATCH:
                for schedule in self.schedules:
                    schedule.step()
            if self.device.type == "cpu" and step % _CHECKED == 0:
                self._require_finite(losses[: step + 1].tolist())
            if on_batch and (time.monotonic() - reported >= _REPORT_EVERY or step + 1 == len(self.sizes)):
                seen = self.sizes[: step + 1]
                loss_so_far = _mean(losses[: step + 1].tolist(), seen)
                on_batch(
                    Progress(self.seed, self.epoch, step + 1, len(self.sizes), sum(seen), loss_so_far, int(correct))
                )
                reported = time.monotonic()
        values = losses.tolist()
        self._require_finite(values)
        return values, correct, used

    def _step(self, rows: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """One step on the images of these rows, changed as drawn: mean loss and number of images right."""
        images, labels = self.data.train.batch(rows)
        images = normalise(apply(images, self.recipe.augmentation, drawn), self.data)
        images = images.contiguous(memory_format=torch.channels_last)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        with self._naming(images):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
                output = self.model(images)
            output = output.float()
            loss = cross_entropy(output, labels, label_smoothing=self.recipe.label_smoothing)
            torch.autograd.backward(loss)
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.detach(), (output.detach().argmax(1) == labels).sum()

    def _average(self, step: int) -> None:
        """Move the averaged weights towards those after this step, counted from 0 over all epochs."""
        if self.averaged is not None:
            decay = min(self.recipe.ema, (step + 1) / (step + 10))
            averages, current = (read() for read in self.averaged)
            torch._foreach_lerp_(averages, current, 1 - decay)

    def _end_epoch(self, test_loss: float) -> None:
        if self.recipe.schedule and self.recipe.schedule.name not in BY_BATCH:
            for schedule in self.schedules:
                if isinstance(schedule, ReduceLROnPlateau):
                    schedule.step(test_loss)
                else:
                    schedule.step()

    def _require_finite(self, losses: list[float]) -> None:
        for step, loss in enumerate(losses, 1):
            if not math.isfinite(loss):
                raise NotFiniteError(
                    f"seed {self.seed}: the loss is {loss} in epoch {self.epoch} at step {step} of {len(self.sizes)}; "
                    f"{_FINITE}"
                )

    # --- what is kept ---

    def state(self) -> State:
        """A copy: the run may go on."""
        assert self.noise is not None  # made with the model
        return State(
            seed=self.seed,
            epoch=self.epoch,
            threads=torch.get_num_threads(),
            model=_copied(self.model.state_dict()),
            ema=_copied(self.ema.state_dict()) if self.ema else None,
            optimizers=[_copied(optimizer.state_dict()) for optimizer in self.optimizers],
            schedules=[_copied(schedule.state_dict()) for schedule in self.schedules],
            shuffle=self.shuffle.get_state(),
            noise=[one.clone() for one in self.noise],
        )

    def restore(self, state: State) -> None:
        """Go on after `state`. Raises RfcalcError when it is not of this network and recipe."""
        try:
            self.model.load_state_dict(state.model)
            if self.ema is not None:
                self.ema.load_state_dict(state.ema or {})
            for optimizer, saved in zip(self.optimizers, state.optimizers, strict=True):
                optimizer.load_state_dict(_copied(saved))
                for group in optimizer.param_groups:
                    if isinstance(group["lr"], Tensor):
                        group["lr"] = group["lr"].to(self.device)
            for schedule, saved in zip(self.schedules, state.schedules, strict=True):
                schedule.load_state_dict(_copied(saved))
        except (RuntimeError, ValueError, KeyError) as error:
            raise RfcalcError(
                f"training state of seed {state.seed}: {one_line(error)}; expected one of this design and recipe"
            ) from error
        self.seed, self.epoch = state.seed, state.epoch
        self.shuffle.set_state(state.shuffle)
        self.noise = [one.clone() for one in state.noise]

    @contextlib.contextmanager
    def _randomness(self) -> Iterator[None]:
        """torch's generators as this run left them; afterwards as the caller had them."""
        sources = [torch] + [getattr(torch, self.device.type)] * (self.device.type != "cpu")
        outer = [source.get_rng_state() for source in sources]
        for source, inner in zip(sources, self.noise or [], strict=False):
            source.set_rng_state(inner)
        try:
            yield
        finally:
            self.noise = [source.get_rng_state() for source in sources]
            for source, before in zip(sources, outer, strict=True):
                source.set_rng_state(before)


def _averaged(model: nn.Module) -> Callable[[], list[Tensor]]:
    """Reads parameters and the statistics of norms; counters are not averaged.

    Buffers are read where they stand: a forward may have put another tensor there.
    """
    weights = list(model.parameters())
    places = {
        id(buffer): (module._buffers, name)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and buffer.is_floating_point()
    }
    return lambda: [*weights, *(table[name] for table, name in places.values())]  # type: ignore[list-item]


def _rate_and_momentum(optimizer: Optimizer) -> tuple[float | Tensor, float]:
    group = optimizer.param_groups[0]
    rate = group["lr"]
    # Of a captured step the rate is a tensor that the schedule overwrites; reading it here would wait for the GPU.
    return rate.clone() if isinstance(rate, Tensor) else rate, group.get("momentum", group.get("betas", (0.0,))[0])


def _mean(losses: list[float], sizes: list[int]) -> float:
    return sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)


def _copied(value: Any) -> Any:
    """The value with copies of its tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    return type(value)(map(_copied, value)) if isinstance(value, list | tuple) else value


@contextlib.contextmanager
def _repeatable(device: torch.device) -> Iterator[None]:
    """cuDNN's repeatable algorithms on a GPU; a CPU's are."""
    if device.type != "cuda":
        yield
        return
    with cudnn(benchmark=False, deterministic=True):
        yield


# --- CUDA graph ----------------------------------------------------------------------------------------------


def _only_rate(recipe: Recipe) -> bool:
    """Whether the schedule changes nothing but learning rates: a captured step would not see another momentum."""
    return recipe.schedule is None or recipe.schedule.name != "OneCycleLR"
