"""Optimizers and learning-rate schedules by name. They are torch's own, save Muon, which torch has for matrices only.

>>> steps = [build(choice, parameters) for choice, parameters in shares(model, recipe.optimizer, recipe.rest)]
...                                                                                              # doctest: +SKIP

A `Choice` is a name and the arguments of torch's class of that name, checked by building it once on a small tensor.
"""

from __future__ import annotations

import copy
import difflib
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau, StepLR

from rfcalc.errors import RecipeError
from rfcalc.text import one_line

T = TypeVar("T")

# --- Muon ----------------------------------------------------------------------------------------------------

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of Newton-Schulz's polynomial a x + b x^3 + c x^5, as in torch: 5 rounds bring 0.003 and 1 alike to 0.7..1.2."""

_SMALL = (32, 512)
"""Matrices up to this size are padded to one stack: their time is that of the calls, not of the arithmetic."""


class Muon(Optimizer):
    """Momentum whose update is brought near the nearest orthogonal matrix: every direction is learnt at one speed.

    Keller Jordan's method with the arithmetic of `torch.optim.Muon` (momentum by lerp, Nesterov, learning rate times
    sqrt(max(1, rows / columns))), and two differences: a weight of more dimensions counts as its matrix
    [first, all others], as torch's refuses; and all layers take their Newton-Schulz rounds together, in float32.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float | Tensor = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        ns_steps: int = 5,
    ) -> None:
        for name, value, most in (("lr", lr, math.inf), ("weight_decay", weight_decay, math.inf)):
            if not 0 <= value < most:
                raise ValueError(f"{name} is {value}; expected a finite number, 0 or more")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}; expected 0 or more, less than 1")
        if type(ns_steps) is not int or not 1 <= ns_steps < 100:
            raise ValueError(f"ns_steps is {ns_steps}; expected a whole number from 1 to 99")
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "ns_steps": ns_steps})
        for weight in (weight for group in self.param_groups for weight in group["params"]):
            if weight.ndim < 2:
                raise ValueError(f"Muon takes weights of 2 dimensions or more; one has {weight.ndim}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every weight that has a gradient; the value of `closure`, if one is given."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._step(group, weights)
        return value

    def _step(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        wanted = torch._foreach_lerp(gradients, buffers, group["momentum"]) if group["nesterov"] else buffers
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        updates = orthogonalised([update.flatten(1) for update in wanted], group["ns_steps"])
        for weight, update in zip(weights, updates, strict=True):
            rows, columns = update.shape
            weight.sub_(update.mul_(group["lr"] * math.sqrt(max(1, rows / columns))).reshape(weight.shape))


def orthogonalised(matrices: Sequence[Tensor], rounds: int = 5) -> list[Tensor]:
    """Each matrix [R, C] with its singular values moved towards 1, by `rounds` of Newton-Schulz; float32.

    All small matrices share one stack and each equal larger shape has its own. Zeros around a matrix stay zeros
    through every product, so padding changes no result.
    """
    stacks: dict[tuple[int, int], list[int]] = {}
    for index, matrix in enumerate(matrices):
        low, high = sorted(matrix.shape)
        fits = low <= _SMALL[0] and high <= _SMALL[1]
        stacks.setdefault(_SMALL if fits else (low, high), []).append(index)
    found: dict[int, Tensor] = {}
    for members in stacks.values():
        flat = [_wide(matrices[index]) for index in members]
        low, high = (max(matrix.shape[dim] for matrix in flat) for dim in (0, 1))
        stack = flat[0].new_zeros((len(flat), low, high), dtype=torch.float32)
        for place, matrix in zip(stack, flat, strict=True):
            place[: matrix.shape[0], : matrix.shape[1]] = matrix
        stack = _newton_schulz(stack, rounds)
        for index, place in zip(members, stack, strict=True):
            matrix = matrices[index]
            low, high = sorted(matrix.shape)
            part = place[:low, :high]
            found[index] = part if matrix.shape[0] == low else part.mT
    return [found[index] for index in range(len(matrices))]


def _wide(matrix: Tensor) -> Tensor:
    """The matrix lying: its products with its own transpose are then the small ones."""
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix


def _newton_schulz(stack: Tensor, rounds: int) -> Tensor:
    """Matrices [N, R, C], R <= C. Their norm bounds their singular values, which the polynomial wants below 1."""
    a, b, c = COEFFICIENTS
    stack = stack / stack.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(rounds):
        gram = stack @ stack.mT
        stack = torch.baddbmm(stack, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), stack, beta=a)
    return stack


_SCALE_FREE = 0.5
"""A layer doubled in front of a norm moves the outputs by 0 to 0.3 of their spread in the ladders (more than 0 where a
bias of another layer or a norm's eps stands between); one without a norm by more than 1."""


def shares(
    model: nn.Module, first: Choice, rest: Choice | None, images: Tensor
) -> list[tuple[Choice, list[nn.Parameter]]]:
    """Which optimizer gets which parameters: all the only one, or Muon its matrices and `rest` what is left.

    Muon's are the weights of convolutions and linear layers but the last of them in the order of construction, the
    classifier, and only where a norm takes their length out again, as tried on `images` [N, C, H, W]: an orthogonal
    step is as long for a short weight as for a long one, so without a norm its rate has to fit the network.
    Convolutions in groups are not one matrix and go to `rest`. Parameters that are frozen go nowhere.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if rest is None:
        return [(first, trained)]
    layers = [module for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd | nn.Linear)]
    free = scale_free(model, images)
    matrices = {id(layer.weight) for layer in layers[:-1] if layer in free and getattr(layer, "groups", 1) == 1}
    matrices -= {id(layer.weight) for layer in layers[-1:]}
    own = [parameter for parameter in trained if id(parameter) in matrices]
    left = [parameter for parameter in trained if id(parameter) not in matrices]
    return [(choice, part) for choice, part in ((first, own), (rest, left)) if part]


@torch.no_grad()
def scale_free(model: nn.Module, images: Tensor) -> set[nn.Module]:
    """The convolutions and linear layers whose length a later norm takes out: doubled, the outputs hardly change.

    Tried on `images` [N, C, H, W], N > 1, on a copy of the network; torch's random state is left as it was.
    """
    trial = copy.deepcopy(model).train()
    before = _outputs(trial, images)
    spread = (before - before.mean(0)).norm()
    found = set()
    for layer, tried in zip(model.modules(), trial.modules(), strict=True):
        if isinstance(tried, nn.modules.conv._ConvNd | nn.Linear):
            own = list(tried.parameters(recurse=False))
            _scale(own, 2)
            if (_outputs(trial, images) - before).norm() <= _SCALE_FREE * spread:
                found.add(layer)
            _scale(own, 0.5)
    return found


def _scale(weights: list[nn.Parameter], factor: float) -> None:
    for weight in weights:
        weight.mul_(factor)


def _outputs(model: nn.Module, images: Tensor) -> Tensor:
    """With the same dropout at every call."""
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        outputs: Tensor = model(images)
        return outputs.cpu().double()  # an Apple GPU has no such numbers


# --- by name -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """An optimizer or a schedule: a name of the tables below, and arguments of its class."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


OPTIMIZERS: dict[str, type[Optimizer]] = {"Muon": Muon, "AdamW": AdamW, "Adam": Adam, "SGD": SGD}

_OURS = {"params", "optimizer", "foreach", "fused", "capturable", "differentiable", "last_epoch", "verbose"}
"""Arguments that belong to the machine or to the loop, never to a recipe."""


def build(choice: Choice, parameters: Sequence[Tensor], *, captured: bool = False) -> Optimizer:
    """The optimizer over these parameters; `captured`: its step can be recorded in a CUDA graph (Muon, Adam, AdamW).

    Raises RecipeError for an unknown name or option and for an impossible value.
    """
    kind = _known("optimizer", choice.name, OPTIMIZERS)
    options = _checked("optimizer", choice, kind, _OURS)
    if captured:
        # A graph reads the rate from where it lay when it was captured.
        options["lr"] = torch.tensor(float(options["lr"]), device=parameters[0].device)
    if kind is not Muon:
        options["fused"] = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
        if captured:
            options["capturable"] = True
    return _made("optimizer", choice, functools.partial(kind, list(parameters), **options))


def warm_up_then_linear(step: int, *, steps: int, warm_up: float) -> float:
    """The factor of the learning rate at a step from 0: up over the first share `warm_up`, then down to 0 at `steps`.

    >>> [round(warm_up_then_linear(step, steps=5, warm_up=0.4), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.67, 0.33, 0.0]
    """
    top = warm_up * steps
    rising = (step + 1) / top if top else math.inf
    return max(0.0, min(rising, (steps - step) / (steps - top), 1.0))


class WarmUpLinear(LambdaLR):
    """torch's LambdaLR over `warm_up_then_linear`."""

    def __init__(self, optimizer: Optimizer, warm_up: float = 0.2, *, total_steps: int) -> None:
        if not 0 <= warm_up < 1:
            raise ValueError(f"warm_up is {warm_up}; expected a share of the steps, 0 or more and less than 1")
        factor = functools.partial(warm_up_then_linear, steps=total_steps, warm_up=warm_up)
        super().__init__(optimizer, factor)


SCHEDULES: dict[str, type[LRScheduler]] = {
    "WarmUpLinear": WarmUpLinear,
    "OneCycleLR": OneCycleLR,
    "StepLR": StepLR,
    "ReduceLROnPlateau": ReduceLROnPlateau,
}
BY_BATCH = ("WarmUpLinear", "OneCycleLR")
"""Schedules that take a step after every batch; the others take one after every epoch."""


def build_schedule(choice: Choice, optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """The schedule of an optimizer over `total_steps` batches; ReduceLROnPlateau takes the mean test loss at its steps.

    Raises RecipeError as `build` does.
    """
    kind = _known("scheduler", choice.name, SCHEDULES)
    if kind is ReduceLROnPlateau and choice.options.get("mode", "min") != "min":
        raise RecipeError(f"scheduler {choice.name}: mode is {choice.options['mode']!r}; expected 'min', of losses")
    options = _checked("scheduler", choice, kind, {*_OURS, "total_steps", "epochs", "steps_per_epoch"})
    if choice.name in BY_BATCH:
        options["total_steps"] = total_steps
    return _made("scheduler", choice, functools.partial(kind, optimizer, **options))


def require_steps(choice: Choice, optimizer: Optimizer, steps: int) -> None:
    """Take a schedule through so many of its steps. Raises RecipeError for a value it cannot work with: torch looks at
    some only then."""
    schedule = build_schedule(choice, optimizer, steps)

    def through() -> None:
        optimizer.step()  # of a weight without a gradient: torch wants one before the first
        for _ in range(steps - 1):
            schedule.step(1.0) if isinstance(schedule, ReduceLROnPlateau) else schedule.step()

    _made("scheduler", choice, through)


def _known(what: str, name: str, table: Mapping[str, T]) -> T:
    if name not in table:
        raise RecipeError(f"{what} {name!r}: unknown; {nearest(name, table)}")
    return table[name]


def nearest(word: str, known: Iterable[str]) -> str:
    """What was meant, or what there is."""
    known = list(known)
    near = difflib.get_close_matches(str(word), known, n=1)
    return f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"


def _checked(what: str, choice: Choice, kind: type[Any], reserved: set[str]) -> dict[str, Any]:
    """The options, none unknown, missing, or not finite."""
    parameters = inspect.signature(kind).parameters
    known = [name for name in parameters if name not in reserved]
    for name, value in choice.options.items():
        if name not in known:
            raise RecipeError(f"{what} {choice.name}: no option {name!r}; {nearest(name, known)}")
        for number in value if isinstance(value, list | tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise RecipeError(f"{what} {choice.name}: {name} is {number}; expected a finite number")
    missing = [name for name in known if parameters[name].default is inspect.Parameter.empty]
    if absent := [name for name in missing if name not in choice.options]:
        raise RecipeError(f"{what} {choice.name}: {absent[0]!r} is missing")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in choice.options.items()}


def _made(what: str, choice: Choice, make: Callable[[], T]) -> T:
    try:
        return make()
    except (ValueError, TypeError, ZeroDivisionError) as error:  # torch's own checks of its arguments
        raise RecipeError(f"{what} {choice.name}: {one_line(error)}") from error
