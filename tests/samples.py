"""torch's own samples of every op and module (`torch.testing._internal`), and what rfcalc must say of each.

A sample becomes a model: every tensor of data is an input of its own, given flat, so that each of its elements is one
input index; everything else (index tensors, masks, numbers) is a constant of the model. The model calls the op twice,
and writes in between, which shows in its outputs whether a result is a view or a copy:

    y            the results of the op
    x written    the inputs, after the first result was set to zero: a view has carried that back
    y written    the results of the second call, after its inputs were set to zero: a view has followed

The truth is torch on the CPU: shapes, dtypes, what it refuses, and which output elements change when one input element
takes another finite value. Only that binds. A NaN may show more (0 * NaN in a masked product), so it is counted apart.
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db
from torch.utils._pytree import tree_flatten, tree_unflatten

import rfcalc
from rfcalc.analysis.parts import EMPTY, dense

DTYPES = (torch.float32, torch.float64, torch.int64, torch.complex64)
MAX_ELEMENTS = 2_000  # larger samples are skipped
ALL_ELEMENTS = 40  # up to so many input elements each one is perturbed; else so many of them
SECONDS = 6.0  # of one sample, of the processor: a busy machine changes nothing
# What lies in these is whatever was in memory.
UNINITIALISED = frozenset("empty empty_like new_empty new_empty_strided empty_strided empty_permuted resize_".split())

# Random, but torch's samples set the seed within; how many numbers are drawn depends on the input.
SEEDED = frozenset(("nn.functional.rrelu",))

# From best to worst: a sample's class is the worst thing found.
CLASSES = (
    "ok-exact", "ok-refused", "ok-approximate", "loose", "skipped", "STRIDES", "PEAK DIFFERS", "LEVELS DIFFER",
    "ACCEPTED-BUT-TORCH-REFUSES", "REFUSED-BUT-TORCH-ACCEPTS", "SHAPE/DTYPE", "UNSOUND-NAMED", "UNSOUND", "CRASH",
)  # fmt: skip
FINE = frozenset(CLASSES[: CLASSES.index("STRIDES")])


class OutOfTimeError(BaseException):
    """A sample took too long. No Exception, so that nothing on the way takes it for an error of the model."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


# ---------------------------------------------------------------------------------------------------- the model


class Out(nn.Module):
    """Keeps a result as it is now, under a path by which the report's row is found again."""

    def forward(self, y: Tensor) -> Tensor:
        return y.clone()


class Log:
    """What the forward saw. Not a list: rfcalc gives a model's lists and tables the contents back that they had."""

    def __init__(self) -> None:
        self.results: list[tuple[Any, ...]] = []
        self.kinds: list[str] = []


def tensors_in(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [t for t in tree_flatten(result)[0] if isinstance(t, Tensor)]


def _reverse(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(range(len(shape)))[::-1]


def about(t: Tensor) -> tuple[Any, ...]:
    """Shape, dtype, and the strides of the dims that are stepped along."""
    steps = tuple(s for n, s in zip(t.shape, t.stride(), strict=True) if n > 1) if t.numel() else ()
    return tuple(t.shape), str(t.dtype), steps


class Model(nn.Module):
    """The op on flat inputs."""

    def __init__(self, call: Callable[..., Any], leaves: Sequence[Any], spec: Any, where: Sequence[int]) -> None:
        super().__init__()
        if isinstance(call, nn.Module):
            self.inner = call
        self.call, self.leaves, self.spec, self.where = [call], tuple(leaves), spec, tuple(where)
        self.outs = nn.ModuleList([Out() for _ in range(64)])
        self.log = Log()
        self.turned = self.writes = self.plain = False

    def inputs(self, flats: Sequence[Tensor]) -> list[Tensor]:
        found = []
        for i, flat in zip(self.where, flats, strict=True):
            shape = tuple(self.leaves[i].shape)
            x = flat.clone() if self.leaves[i].numel() else flat.clone()[:, :0]
            found.append(x.reshape(shape[::-1]).permute(_reverse(shape)) if self.turned else x.reshape(shape))
        return found

    def results(self, xs: Sequence[Tensor]) -> list[Tensor]:
        leaves = list(self.leaves)
        for i, x in zip(self.where, xs, strict=True):
            leaves[i] = x
        args, kwargs = tree_unflatten(leaves, self.spec)
        return tensors_in(self.call[0](*args, **kwargs))

    def forward(self, *flats: Tensor) -> list[Tensor]:
        log = self.log
        outs: list[Tensor] = []
        log.results, log.kinds = [], []

        def keep(kind: str, tensors: Sequence[Tensor]) -> None:
            for t in tensors:
                log.kinds.append(kind)
                outs.append(t.clone() if self.plain else self.outs[len(outs)](t))

        xs = self.inputs(flats)
        ys = self.results(xs)[:20]
        log.results = [] if self.plain else [about(y) for y in ys]
        keep("y", ys)
        if self.writes and ys:
            ys[0].zero_()
            keep("x written", xs[:20])
            xs = self.inputs(flats)
            ys = self.results(xs)[:20]
            for x in xs:
                x.zero_()
            keep("y written", ys)
        return outs


@dataclass
class Case:
    """One sample of one op, in one way to call it."""

    op: str
    variant: str  # function, method, inplace, out, module, error
    dtype: str
    index: int
    model: Model
    flats: list[Tensor]
    text: str


@dataclass
class Verdict:
    op: str
    variant: str
    dtype: str
    index: int
    kind: str
    detail: str = ""
    text: str = ""
    ops: tuple[str, ...] = ()  # named as approximate
    flags: tuple[str, ...] = ()
    found: list[tuple[str, str]] = field(default_factory=list)


def _brief(v: Any) -> str:
    if isinstance(v, Tensor):
        return f"{str(v.dtype).removeprefix('torch.')}{list(v.shape)}"
    return repr(v)[:80]


def is_data(t: Any, dtype: torch.dtype) -> bool:
    """Is a tensor an input of the model? Of an integer sample all whole numbers are, else all that may be fractions."""
    if not isinstance(t, Tensor) or type(t) not in (Tensor, nn.Parameter) or t.layout is not torch.strided:
        return False
    if dtype.is_floating_point or dtype.is_complex:
        return t.is_floating_point() or t.is_complex()
    return t.dtype == dtype


def case_of(
    op: str, variant: str, dtype: torch.dtype, index: int, call: Any, args: Any, kwargs: Any, turned: bool = False
) -> Case | str:
    """The case, or why there is none."""
    leaves, spec = tree_flatten((tuple(args), dict(kwargs)))
    if any(isinstance(t, Tensor) and (t.layout is not torch.strided or t.is_quantized) for t in leaves):
        return "sparse, nested or quantized"
    if any(isinstance(t, Tensor) and t.device.type != "cpu" for t in leaves):
        return "not on the CPU"
    where = [i for i, t in enumerate(leaves) if is_data(t, dtype)]
    if not where:  # indices are data where there is nothing else
        where = [i for i, t in enumerate(leaves) if is_data(t, torch.int64)]
    if not where:
        return "no tensor of data among its inputs"
    if sum(leaves[i].numel() for i in where) > MAX_ELEMENTS:
        return f"more than {MAX_ELEMENTS:,} input elements"
    leaves = [t.detach() if isinstance(t, Tensor) else t for t in leaves]
    model = Model(call, leaves, spec, where).eval()
    model.turned = turned
    flats = []
    for i in where:
        t = leaves[i].permute(_reverse(leaves[i].shape)) if turned else leaves[i]
        t = t.resolve_conj().resolve_neg()
        flats.append(t.reshape(1, -1).clone() if t.numel() else torch.ones(1, 1, dtype=t.dtype))
    text = ", ".join([*map(_brief, tree_flatten(args)[0]), *[f"{k}={_brief(v)}" for k, v in kwargs.items()]])
    return Case(op, variant, str(dtype).removeprefix("torch."), index, model, flats, text[:300])


# ---------------------------------------------------------------------------------------------------- the truth


def really(model: Model, flats: Sequence[Tensor], seed: int | None = None, plain: bool = True) -> list[Any]:
    """The model's outputs as torch makes them on the CPU, as arrays."""
    if seed is not None:
        torch.manual_seed(seed)
    leaves = model.leaves
    if model.writes:  # a result may be a view of a constant
        model.leaves = tuple(t.clone() if isinstance(t, Tensor) else t for t in leaves)
    model.plain = plain
    try:
        with torch.no_grad():
            return [_array(t) for t in model.forward(*flats)]
    finally:
        model.leaves, model.plain = leaves, False


def _array(t: Tensor) -> Any:
    t = t.resolve_conj().resolve_neg()
    wider = _NUMPY_LACKS.get(t.dtype)
    return (t if wider is None else t.to(wider)).numpy().reshape(-1)


_NUMPY_LACKS = {torch.bfloat16: torch.float32, torch.complex32: torch.complex64}


def differ(a: Any, b: Any) -> Any:
    if a.shape != b.shape:  # as many as the numbers say: which element is which is not known
        return np.zeros(b.shape, np.bool_)
    return (a != b) & ~((a != a) & (b != b))  # noqa: PLR0124  NaN is not equal to itself


def _other_values(v: Any, rng: np.random.Generator) -> list[Any]:
    """What an element is changed to: near, far, of the other sign, zero."""
    if isinstance(v, complex):
        return [v + 0.013, v * -1.7 + 0.3j, complex(*(rng.normal(size=2) * 3)), 0j]
    if isinstance(v, float):
        return [v + 0.013, v - 0.71, float(rng.normal() * 3), 0.0, 31.0]
    return [v + 1, v - 1, 0, int(rng.integers(-9, 10))]


@dataclass
class Reach:
    """Per output and input: first and last input index whose change changed each output element."""

    low: list[list[Any]]
    high: list[list[Any]]
    size: list[list[Any]]  # the largest change, relative to the largest output
    complete: bool


def reach(model: Model, flats: Sequence[Tensor], base: Sequence[Any], seed: int | None, nan: bool = False) -> Reach:
    rng = np.random.default_rng(7)
    total = sum(f.numel() for f in flats)
    complete = total <= ALL_ELEMENTS
    low = [[np.full(b.shape, EMPTY, np.int64) for _ in flats] for b in base]
    high = [[np.full(b.shape, -1, np.int64) for _ in flats] for b in base]
    size = [[0.0 for _ in flats] for b in base]
    scale = [float(np.nanmax(np.abs(np.where(np.isfinite(b), b, 0)), initial=1e-30)) for b in base]
    for a, flat in enumerate(flats):
        n = flat.numel()
        share = max(4, ALL_ELEMENTS * n // total)
        at = range(n) if complete else sorted({0, n - 1, *rng.choice(n, min(n, share), replace=False).tolist()})
        for i in at:
            was = flat[0, i].item()
            for value in [float("nan")] if nan else _other_values(was, rng):
                given = [f.clone() if b == a else f for b, f in enumerate(flats)]
                given[a][0, i] = value
                try:
                    outs = really(model, given, seed)
                except Exception:
                    continue
                for k, (o, b) in enumerate(zip(outs, base, strict=False)):
                    hit = differ(o, b)
                    if not hit.any():
                        continue
                    low[k][a][hit] = np.minimum(low[k][a][hit], i)
                    high[k][a][hit] = np.maximum(high[k][a][hit], i)
                    if b.dtype.kind in "fc":
                        with np.errstate(all="ignore"):
                            by = np.abs(o[hit] - b[hit]).max() / scale[k]
                        size[k][a] = max(size[k][a], float(by)) if by == by else np.inf  # noqa: PLR0124
                    else:
                        size[k][a] = np.inf
    return Reach(low, high, size, complete)


# ---------------------------------------------------------------------------------------------------- the claim


@dataclass
class Claim:
    """A report, its intervals of each output per input, and what the forward saw."""

    report: Any = None
    error: str = ""
    crash: str = ""
    results: tuple[Any, ...] = ()
    bounds: list[list[Any]] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)


def claimed(model: Model, flats: Sequence[Tensor], level: int) -> Claim:
    try:
        report = rfcalc.analyze(model, [f.clone() for f in flats], level=level, name="net")
    except rfcalc.RfcalcError as error:
        return Claim(error=str(error))
    except Exception as error:  # what this harness looks for
        return Claim(crash=_line(error))
    claim = Claim(report, results=tuple(model.log.results))
    rows = {r.path: r for r in report.rows if r.path.startswith("outs.")}
    for k in range(len(model.log.kinds)):
        row = rows.get(f"outs.{k}")
        shape = report.output_shapes[k]
        axes = []
        for a in range(len(flats)):
            parts = report.fields[row.name].axes[a].parts if row else ()
            bounds, dims = dense(parts, shape)
            full = bounds.reshape(4, *[n if d in dims else 1 for d, n in enumerate(shape)])
            axes.append(np.broadcast_to(full, (4, *shape)).reshape(4, -1))
        claim.bounds.append(axes)
        claim.shapes.append(shape)
    return claim


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _on_meta(model: Model, flats: Sequence[Tensor]) -> str:
    """What torch alone says of the model on meta tensors: '' or its error."""
    leaves = model.leaves
    model.leaves = tuple(t.to("meta") if isinstance(t, Tensor) else t for t in leaves)
    inner = getattr(model, "inner", None)
    if inner is not None:
        return "not tried"
    try:
        with torch.no_grad():
            model(*[f.to("meta") for f in flats])
    except Exception as error:
        return _line(error)
    finally:
        model.leaves = leaves
    return ""


# ---------------------------------------------------------------------------------------------------- judging


def judge(case: Case, seconds: float = SECONDS) -> Verdict:
    """Everything that can be wrong with what rfcalc says of a sample, worst first."""
    verdict = Verdict(case.op, case.variant, case.dtype, case.index, "skipped", text=case.text)
    try:
        with limited(seconds), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _judge(case, verdict)
    except OutOfTimeError:
        verdict.found.append(("skipped", f"more than {seconds:.0f} s"))
    except Exception as error:
        import traceback

        at = traceback.extract_tb(error.__traceback__)[-1]
        verdict.found.append(("CRASH", f"{_line(error)} at {at.filename.rpartition('/')[2]}:{at.lineno}"))
    if verdict.found:
        verdict.kind, verdict.detail = max(verdict.found, key=lambda f: CLASSES.index(f[0]))
    return verdict


def _judge(case: Case, verdict: Verdict) -> None:
    model, flats = case.model, case.flats
    found = verdict.found
    base, refused = _truth(model, flats)
    truth_log = (list(model.log.results), list(model.log.kinds))
    claims = {level: claimed(model, flats, level) for level in (1, 2)}
    for level, c in claims.items():
        if c.crash:
            found.append(("CRASH", f"level {level}: {c.crash}"))
    if any(c.crash for c in claims.values()):
        return
    if refused:
        found.append(_refusal(model, flats, claims, refused))
        return
    wrong = [f"level {level}: {c.error}" for level, c in claims.items() if c.error]
    if wrong:
        meta = _on_meta(model, flats)
        found.append(("REFUSED-BUT-TORCH-ACCEPTS", f"{'; '.join(wrong)} [torch's meta: {meta or 'accepts'}]"))
        return
    first, second = claims[1], claims[2]
    found += _structure(truth_log[0], first, second)
    if not truth_log[0]:
        found.append(("skipped", "no tensor among its results"))
        return
    if any(k == "SHAPE/DTYPE" for k, _ in found):
        return
    verdict.ops = tuple(first.report.approximate_ops)
    if any("run on CPU tensors" in n for n in first.report.notes):
        verdict.flags += ("values",)
    found += _against_perturbation(case, verdict, base, truth_log[1], second)
    if not found:
        named = [*verdict.ops, *[n for n in second.report.notes if "did not apply" in n]]
        found.append(("ok-approximate", ", ".join(named)) if named else ("ok-exact", ""))


def _truth(model: Model, flats: Sequence[Tensor]) -> tuple[list[Any], str]:
    """Outputs on the CPU, with the writes where torch allows them; or its refusal."""
    for writes in (True, False):
        model.writes = writes
        try:
            return really(model, flats, 0, plain=False), ""
        except Exception as error:
            refusal = _line(error)
    return [], refusal


def _refusal(model: Model, flats: Sequence[Tensor], claims: dict[int, Claim], refused: str) -> tuple[str, str]:
    accepting = [level for level, c in claims.items() if not c.error]
    if not accepting:
        return "ok-refused", ""
    meta = _on_meta(model, flats)
    levels = " and ".join(map(str, accepting))
    return "ACCEPTED-BUT-TORCH-REFUSES", f"level {levels}; torch: {refused} [torch's meta: {meta or 'accepts too'}]"


def _structure(truth: Sequence[Any], first: Claim, second: Claim) -> list[tuple[str, str]]:
    found = []
    for level, c in ((1, first), (2, second)):
        if [r[:2] for r in c.results] != [r[:2] for r in truth]:
            found.append(("SHAPE/DTYPE", f"level {level}: {c.results} where torch has {truth}"[:300]))
    if not found and first.results != second.results:
        found.append(("LEVELS DIFFER", f"strides: {first.results} and {second.results}"[:300]))
    elif not found and [r[2] for r in first.results] != [r[2] for r in truth]:
        found.append(("STRIDES", f"{first.results} where torch has {truth}"[:300]))
    one, two = first.report.to_dict(), second.report.to_dict()
    if one["totals"] != two["totals"]:
        peak = {k: (one["totals"][k], two["totals"][k]) for k in one["totals"] if one["totals"][k] != two["totals"][k]}
        found.append(("PEAK DIFFERS", f"{peak}"))
        one["totals"] = two["totals"]
    if one != two:
        keys = [k for k in one if one[k] != two[k]]
        rows = [(a, b) for a, b in zip(one["rows"], two["rows"], strict=False) if a != b]
        what = [(a["name"], b["name"], [k for k in a if a[k] != b[k]]) for a, b in rows[:3]]
        found.append(("LEVELS DIFFER", f"{keys} {what or (len(one['rows']), len(two['rows']))}"[:300]))
    elif first.shapes == second.shapes:
        for k, (a, b) in enumerate(zip(first.bounds, second.bounds, strict=True)):
            if any((x != y).any() for x, y in zip(a, b, strict=True)):
                found.append(("LEVELS DIFFER", f"intervals of output {k}"))
                break
    return found


def _against_perturbation(
    case: Case, verdict: Verdict, base: Sequence[Any], kinds: Sequence[str], claim: Claim
) -> list[tuple[str, str]]:  # fmt: skip
    model, flats = case.model, case.flats
    again, other = really(model, flats, 0), really(model, flats, 1)
    if case.op in UNINITIALISED or any(differ(a, b).any() for a, b in zip(again, base, strict=True)):
        return [("skipped", "its result is not determined")]
    drawn = case.op in SEEDED or any(a.shape != b.shape or differ(a, b).any() for a, b in zip(other, base, strict=True))
    seed = 0 if drawn else None
    if seed is not None:
        verdict.flags += ("random",)
    found = []
    moved = reach(model, flats, base, seed)
    for k, kind in enumerate(kinds):
        bad, loose = _compare(claim.bounds[k], moved, k)
        if bad is not None and seed is not None and _says(claim, k, *bad):
            verdict.flags += ("a change moves the numbers drawn",)
            continue
        if bad is not None:
            a, o = bad
            by = moved.size[k][a]
            small = f", by {by:.0e} of the output" if by < 1e-4 else ""
            text = f"{kind} {_interval(claim, moved, k, a, o)}{small}"
            found.append(("UNSOUND-NAMED" if verdict.ops else "UNSOUND", text))
        elif loose is not None and moved.complete:
            a, o = loose
            verdict.flags += (f"loose: {kind}",)
            found.append(("loose", f"{kind} {_interval(claim, moved, k, a, o)}"))
    if verdict.ops:
        found = [f for f in found if f[0] != "loose"]
    # LAPACK may bring the process down when it meets a NaN.
    if _all_fractions(flats) and not case.op.startswith("linalg") and not any("UNSOUND" in f[0] for f in found):
        shown = reach(model, flats, base, seed, nan=True)
        if any(_compare(claim.bounds[k], shown, k)[0] is not None for k in range(len(kinds))):
            verdict.flags += ("NaN shows more",)
    return found


def _all_fractions(flats: Sequence[Tensor]) -> bool:
    return all(f.is_floating_point() or f.is_complex() for f in flats)


def _compare(bounds: Sequence[Any], moved: Reach, k: int) -> tuple[Any, Any]:
    """Where an interval leaves out what a change showed, and where it is wider: (input, output element) or None."""
    loose = None
    for a, b in enumerate(bounds):
        low, high = moved.low[k][a], moved.high[k][a]
        seen = high >= 0
        if b.shape[1] != seen.size:
            return (a, 0), None
        claimed_low, claimed_high = b[0], -b[1]
        small = seen & ((claimed_low > low) | (claimed_high < high))
        if small.any():
            return (a, int(np.flatnonzero(small)[0])), None
        wide = (claimed_low <= claimed_high) & (~seen | (claimed_low < low) | (claimed_high > high))
        if loose is None and wide.any():
            loose = (a, int(np.flatnonzero(wide)[0]))
    return None, loose


def _says(claim: Claim, k: int, a: int, o: int) -> bool:
    """Does the report say anything of this output element and this input?"""
    b = claim.bounds[k][a]
    return bool(b[0][o] <= -b[1][o])


def _interval(claim: Claim, moved: Reach, k: int, a: int, o: int) -> str:
    b = claim.bounds[k][a]
    shape = claim.shapes[k]
    said = "nothing" if b[0][o] > -b[1][o] else f"{b[0][o]}..{-b[1][o]}"
    low, high = moved.low[k][a][o], moved.high[k][a][o]
    seen = "nothing" if high < 0 else f"{low}..{high}"
    at = tuple(int(i) for i in np.unravel_index(o, shape)) if shape else ()
    return f"output {k} at {at} of input {a}: report {said}, changes {seen}"


# ---------------------------------------------------------------------------------------------------- the samples


def spaced(items: Iterator[Any], count: int, seconds: float = 20.0) -> tuple[list[tuple[int, Any]], str]:
    """Up to `count` of the samples, evenly spaced, each with its number; and why no more were made."""
    made: list[Any] = []
    why = ""
    try:
        with limited(seconds):
            for item in items:
                made.append(item)
                if len(made) > 40 * count:
                    break
    except OutOfTimeError:
        why = "making its samples takes too long"
    except Exception as error:
        why = f"its samples cannot be made: {_line(error)}"
    at = range(len(made)) if len(made) <= count else sorted({i * (len(made) - 1) // (count - 1) for i in range(count)})
    return [(i, made[i]) for i in at], why


def _out_call(op: Any, sample: Any) -> Callable[..., Any] | None:
    """The op with `out=`: buffers are made inside the model, of the shapes that the op returns."""
    with torch.no_grad():
        made = op(sample.input, *sample.args, **sample.kwargs)
    many = isinstance(made, tuple | list)
    wanted = [(tuple(t.shape), t.dtype) for t in tensors_in(made)]
    if not wanted:
        return None

    def call(*args: Any, **kwargs: Any) -> Any:
        device = next(t.device for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor))
        buffers = tuple(torch.zeros(s, dtype=d, device=device) for s, d in wanted)
        return op(*args, **kwargs, out=buffers if many else buffers[0]), buffers

    return call


def _inplace_call(op: Any) -> Callable[..., Any]:
    return lambda x, *args, **kwargs: (op(x, *args, **kwargs), x)


def cases(op: Any, dtype: torch.dtype, count: int) -> Iterator[Case | Verdict]:
    """Cases of an op in every way to call it; a Verdict stands for one that could not be made."""
    name = op.full_name if hasattr(op, "full_name") else op.name
    short = str(dtype).removeprefix("torch.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(3)
        samples, why = spaced(iter(op.sample_inputs("cpu", dtype, requires_grad=False)), count)
    if why:
        yield Verdict(name, "function", short, -1, "skipped", why)
    fewer = samples[:: max(1, len(samples) // max(2, count // 4))]
    plans: list[tuple[str, Any, Any, bool]] = [("function", op.op, samples, False), ("turned", op.op, fewer, True)]
    if op.method_variant is not None and op.method_variant is not op.op:
        plans.append(("method", op.method_variant, fewer, False))
    if op.inplace_variant is not None:
        plans.append(("inplace", op.inplace_variant, fewer, False))
    if op.supports_out:  # the buffers are where the input is, which `device="cpu"` is not in a storage-less run
        plans.append(("out", op.op, [(i, s) for i, s in fewer if "device" not in s.kwargs], False))
    for variant, call, chosen, turned in plans:
        for i, s in chosen:
            try:
                use = _inplace_call(call) if variant == "inplace" else call
                use = _out_call(call, s) if variant == "out" else use
                if use is None or (turned and not any(t.dim() > 1 for t in tensors_in((s.input, s.args)))):
                    continue
                case = case_of(name, variant, dtype, i, use, (s.input, *s.args), s.kwargs, turned)
            except Exception as error:
                case = _line(error)
            yield Verdict(name, variant, short, i, "skipped", case) if isinstance(case, str) else case


def error_cases(op: Any) -> Iterator[Case | Verdict]:
    """What torch must refuse."""
    if op.error_inputs_func is None:
        return
    name = op.full_name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        errors, why = spaced(iter(op.error_inputs("cpu")), 1_000)
    if why:
        yield Verdict(name, "error", "", -1, "skipped", why)
    for i, e in errors:
        s = e.sample_input
        leaves = tree_flatten((s.input, s.args, s.kwargs))[0]
        fractions = any(isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex()) for t in leaves)
        whole = next((t.dtype for t in leaves if isinstance(t, Tensor)), torch.int64)
        dtype = torch.float32 if fractions else whole
        try:
            case = case_of(name, "error", dtype, i, op.op, (s.input, *s.args), s.kwargs)
        except Exception as error:
            case = _line(error)
        yield Verdict(name, "error", "", i, "skipped", case) if isinstance(case, str) else case


def module_cases(info: Any, dtype: torch.dtype, count: int) -> Iterator[Case | Verdict]:
    name, short = f"nn.{info.name.removeprefix('nn.')}", str(dtype).removeprefix("torch.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(3)
        made = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=False)
        samples, why = spaced(iter(made), count)
        if why:
            yield Verdict(name, "module", short, -1, "skipped", why)
        for i, s in samples:
            if s.forward_input is None:
                continue
            try:
                built = s.constructor_input
                inner = info.module_cls(*built.args, **built.kwargs).to(dtype).eval()
                case = case_of(name, "module", dtype, i, inner, s.forward_input.args, s.forward_input.kwargs)
                if not isinstance(case, str):
                    case.text = f"({', '.join(map(_brief, built.args))}, {built.kwargs}) on {case.text}"[:300]
            except Exception as error:
                case = _line(error)
            yield Verdict(name, "module", short, i, "skipped", case) if isinstance(case, str) else case
        if dtype is torch.float32 and info.module_error_inputs_func is not None:
            yield from _module_errors(info, name, dtype)


def _module_errors(info: Any, name: str, dtype: torch.dtype) -> Iterator[Case | Verdict]:
    made = info.module_error_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=False)
    errors, _ = spaced(iter(made), 1_000)
    for i, e in errors:
        s = e.module_error_input
        if s.forward_input is None or "FORWARD" not in e.error_on.name:
            continue
        inner = info.module_cls(*s.constructor_input.args, **s.constructor_input.kwargs).to(dtype).eval()
        case = case_of(name, "error", dtype, i, inner, s.forward_input.args, s.forward_input.kwargs)
        yield Verdict(name, "error", "", i, "skipped", case) if isinstance(case, str) else case


def subjects() -> dict[str, Any]:
    """Every op and module by its name."""
    found: dict[str, Any] = {}
    for op in op_db:
        found[op.full_name] = op
    for info in module_db:
        found[f"nn.{info.name.removeprefix('nn.')}"] = info
    return found


def all_cases(subject: Any, count: int, dtypes: Sequence[torch.dtype] = DTYPES) -> Iterator[Case | Verdict]:
    """Of one op or module: float32 in full, a quarter as many of the other dtypes, and what torch refuses."""
    is_module = hasattr(subject, "module_cls")
    known = subject.dtypes if is_module else subject.supported_dtypes("cpu")
    for dtype in dtypes:
        if dtype in known:
            n = count if dtype is torch.float32 else max(2, count // 5)
            yield from module_cases(subject, dtype, n) if is_module else cases(subject, dtype, n)
    if not is_module:
        yield from error_cases(subject)
