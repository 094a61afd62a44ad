"""True comments behind the layers of a design file: `# N 28->26  J 1  R 3`, each on the line where its layer is made.

Nothing is guessed from names. The file is run as always, and what Python itself knows is noted down: of every module
the expression that called its class, of every functional op in the forward the expression that called it (a frame's
current instruction has a line and a column). A row of the report thus leads to one expression, and its comment stands
at the end of the line in which that expression ends, where formatters leave it. Where several rows lead to one line
(loops, helper functions, a layer called twice) no comment may be true of all of them: `Annotation.refused` names them.

The rows are those that `rfcalc table --geometry` shows: every layer with a window, and whatever else moves N, J or R.
"""

from __future__ import annotations

import ast
import io
import itertools
import re
import sys
import tokenize
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType, FunctionType
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from rfcalc.analysis.analyze import analyze
from rfcalc.analysis.calls import call_name, is_query
from rfcalc.analysis.report import LayerRow, Report
from rfcalc.designs.design import Design
from rfcalc.errors import DesignError, ForwardError, RfcalcError
from rfcalc.render.cells import collapsed, mark_of, per_axis
from rfcalc.render.columns import named
from rfcalc.text import one_line

Point = tuple[int, int]
"""Where an expression ends: line from 1, column in bytes of UTF-8 from 0, as in the syntax tree."""


@dataclass(frozen=True, slots=True)
class Comment:
    """A row of the report that the file is to tell of: its comment, and the end of the expression that makes it.

    Rows with the same `maker` are the same layer, called again. `end` is None where the file does not make it.
    """

    name: str
    maker: tuple[object, ...]
    comment: str
    end: Point | None


@dataclass(frozen=True, slots=True)
class Comments:
    """The layers of one design, and lines of its file: of the code that makes and calls them, and of its classes."""

    layers: tuple[Comment, ...]
    lines: frozenset[int]


@dataclass(frozen=True, slots=True)
class Change:
    """A line whose comment is not the one expected; None stands for no comment."""

    line: int
    found: str | None
    expected: str | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A line that gets no comment, and its layers, because

    - "layers": it makes all of them in one design,
    - "calls": it makes one, called with different numbers,
    - "designs": it makes one in every design, with different numbers.
    """

    line: int
    names: tuple[str, ...]
    why: Literal["layers", "calls", "designs"]


@dataclass(frozen=True)
class Annotation:
    """What annotating does to one file. `comments` counts those it then has; `elsewhere` names the layers that other
    files make."""

    before: bytes
    after: bytes
    encoding: str
    comments: int
    changes: tuple[Change, ...]
    refused: tuple[Refusal, ...]
    elsewhere: tuple[str, ...]


# --- the comment -----------------------------------------------------------------------------------------------

_OWN = re.compile(r"#\s*N\s+([0-9x,]+->[0-9x,]+)\s+J\s+([0-9x,/]+)\s+R\s+([0-9x,.]+[~!]*(?:\*[\w.,]*)?)\s*$", re.ASCII)


def comment_of(row: LayerRow, report: Report) -> str:
    """What is written behind a layer: map sizes before and after, jump and receptive field after it, as in the table.

    `R 3..5` is the smallest and largest over the positions; the table's marks stand behind R: `*` global, `~`, `!`.
    """
    jump, field_size = per_axis(row.j_out, report.axes), named("r_out").cell(row, report, merged=True)
    return f"# N {collapsed(row.n_in)}->{collapsed(row.n_out)}  J {jump}  R {field_size}{mark_of(row, report.axes)}"


# --- where the layers are made ---------------------------------------------------------------------------------


@dataclass
class Makers:
    """Of every module made while watching, the end of the innermost expression of the file that was at it.

    None: no code of this file had a part in it. The modules are kept, so that no id is used twice.
    """

    file: str
    _made: dict[int, tuple[nn.Module, Point | None]] = field(default_factory=dict)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Loading and building a design belong in here. Raises RfcalcError when Python keeps no columns."""
        if next(iter(compile("0", "", "eval").co_positions()))[3] is None:
            raise RfcalcError("annotate needs the columns of Python's code: run it without -X no_debug_ranges")
        before = sys.getprofile()
        sys.setprofile(self._note)
        try:
            yield
        finally:
            sys.setprofile(before)

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        """A profiler's callback: the first `__init__` of an object is the one that its class calls."""
        code = frame.f_code
        if event != "call" or code.co_name != "__init__" or not code.co_argcount:
            return
        made = frame.f_locals.get(code.co_varnames[0])
        if isinstance(made, nn.Module) and id(made) not in self._made:
            self._made[id(made)] = made, next((_end(f) for f in _outward(frame.f_back) if self.holds(f)), None)

    def holds(self, frame: FrameType) -> bool:
        """Whether the frame runs code of the file."""
        return frame.f_code.co_filename == self.file

    def end(self, modules: Mapping[str, nn.Module], path: str) -> Point | None:
        """Where the module of that path was made. One that no class call made, a copy, came with what holds it."""
        while True:
            module = modules.get(path)
            if module is not None and id(module) in self._made:
                return self._made[id(module)][1]
            if not path:
                return None
            path = path.rpartition(".")[0]

    def known(self) -> frozenset[int]:
        """The ids of the modules made so far."""
        return frozenset(self._made)

    def lines(self, made: Iterable[int]) -> Iterator[int]:
        """The lines that made the modules of these ids."""
        ends = (self._made[one][1] for one in made if one in self._made)
        return (end[0] for end in ends if end is not None)

    def class_lines(self, modules: Iterable[nn.Module]) -> Iterator[int]:
        """Where the methods of the modules' classes stand in the file, one for each."""
        for kind in {base for module in modules for base in type(module).__mro__}:
            for method in vars(kind).values():
                if isinstance(method, FunctionType) and method.__code__.co_filename == self.file:
                    yield method.__code__.co_firstlineno


class _Calls(TorchFunctionMode):
    """Name and end of the expression of every op's call, numbered as in `calls.py`. It changes nothing."""

    def __init__(self, makers: Makers) -> None:
        super().__init__()
        self.makers = makers
        self.ends: list[tuple[str, Point | None]] = []
        self.lines: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not is_query(func):
            self.ends.append((call_name(func), self._end()))
        return func(*args, **(kwargs or {}))

    def _end(self) -> Point | None:
        """None for a call in a module whose forward stands in another file: the file calls that module."""
        own = True
        for frame in _outward(sys._getframe(2)):
            if self.makers.holds(frame):
                self.lines.add(frame.f_lineno)
                return _end(frame) if own else None
            own = own and frame.f_code is not nn.Module._call_impl.__code__
        return None

    def follow(self, model: nn.Module) -> nn.Module:
        """The same model; while its forward runs, this mode is the first to hear of every call."""
        if isinstance(model, torch.jit.ScriptModule):  # its forward is no Python code, and takes no hook
            return model

        def enter(*_: Any) -> None:
            self.ends.clear()  # a forward that needs values runs a second time
            self.__enter__()  # type: ignore[no-untyped-call]

        def leave(*_: Any) -> None:
            self.leave()

        model.register_forward_pre_hook(enter, prepend=True)
        model.register_forward_hook(leave, always_call=True)
        return model

    def leave(self) -> None:
        """Hear of nothing any more. Torch calls no hook when a forward ends by `sys.exit`."""
        if self in _get_current_function_mode_stack():  # type: ignore[no-untyped-call]
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]


def comments_on(design: Design, makers: Makers, layout: str | None = None) -> Comments:
    """Analyze a design that was loaded while `makers` was watching, and find where its layers are made.

    Raises the RfcalcErrors of `Design.build` and `analyze`; DesignError for a part of a design (`#sub.module`).
    """
    if design.submodule:
        raise DesignError(f"{design.name}: a part of a design; expected the whole, whose comments count from the input")
    loaded = makers.known()
    with makers.watching():
        model = design.build()
    calls = _Calls(makers)
    try:
        report = analyze(
            calls.follow(model),
            design.input_shape,
            level=1,  # level 2 answers whole layers before torch hears of them
            layout=layout,
            name=design.name,
            rebuild=lambda: calls.follow(design.build_real()),
        )
    except SystemExit as error:
        raise ForwardError(f"{design.name}: forward failed: {one_line(error)}") from error
    finally:
        calls.leave()
    # An instance at the top level was made as the file was loaded: what ran is a copy of it.
    original = design.source if isinstance(design.source, nn.Module) else model
    modules = dict(original.named_modules(remove_duplicate=False))
    root = type(model).__name__.removeprefix("Parametrized")
    numbers = Counter(row.call for row in report.rows)  # scripted ops bear the number of the call before them

    def layer(row: LayerRow) -> Comment:
        comment = comment_of(row, report)
        if row.name.split("#")[0] == row.path or (not row.path and row.op == root):
            return Comment(row.name, (row.path,), comment, makers.end(modules, row.path))
        name, end = calls.ends[row.call] if row.call < len(calls.ends) else ("", None)
        if end is None or name != row.op or numbers[row.call] > 1:
            return Comment(row.name, (row.name,), comment, makers.end(modules, row.path))
        return Comment(row.name, (row.path, end), comment, end)

    # What was made as the file was loaded may be another design's.
    made = makers.known() - loaded | set(map(id, modules.values()))
    lines = frozenset({*makers.lines(made), *makers.class_lines(modules.values()), *calls.lines})
    return Comments(tuple(layer(row) for row in report.rows if row.moves_grid), lines)


def _outward(frame: FrameType | None) -> Iterator[FrameType]:
    """The frame, its caller, and so on."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def _end(frame: FrameType) -> Point:
    """The end of the expression that the frame is at."""
    code = frame.f_code
    _, line, _, column = next(itertools.islice(code.co_positions(), frame.f_lasti // 2, None))
    return line or code.co_firstlineno, column or 0


# --- the file --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Slot:
    """The end of a line, where a comment can stand: no string and no backslash carries the line on."""

    line: int
    column: int
    comment: str


def annotated(source: bytes, designs: Sequence[Comments]) -> Annotation:
    """The file with true comments behind the layers of its designs, and nothing else changed.

    A comment of ours where these designs make no layer is stale within the classes and functions that they run.
    Elsewhere it may be true of another design in the file, and is left alone.

    Args:
        source: the file as it lies on the disk; encoding, line endings and a missing last one are kept.
        designs: the layers of every design in it that is to be annotated.

    >>> net = Comments((Comment("conv", ("conv",), "# N 8->6  J 1  R 3", (1, 24)),), frozenset({1}))
    >>> annotated(b"conv = nn.Conv2d(1, 1, 3)  # the first", [net]).after
    b'conv = nn.Conv2d(1, 1, 3)  # the first  # N 8->6  J 1  R 3'
    """
    encoding = tokenize.detect_encoding(io.BytesIO(source).readline)[0]
    text = source.decode(encoding)
    lines = list(io.StringIO(text, newline=""))
    slots = _slots(text, lines)
    layers: dict[int, dict[int, list[Comment]]] = {}
    elsewhere: dict[str, None] = {}
    for index, one in ((index, layer) for index, design in enumerate(designs) for layer in design.layers):
        if one.end is None:
            elsewhere[one.name] = None
        else:
            at = (one.end[0], len(lines[one.end[0] - 1].encode()[: one.end[1]].decode()))
            number = bisect_left(slots, at, key=lambda slot: (slot.line, slot.column))
            layers.setdefault(number, {}).setdefault(index, []).append(one)
    ours = _statements_at(source, {n for d in designs for n in d.lines})
    changes, refused = [], []
    comments = 0
    for number, slot in enumerate(slots):
        here = list(layers.get(number, {}).values())
        refusal = _refusal(slot.line, here)
        expected = here[0][0].comment if here and refusal is None else None
        if refusal is not None:
            refused.append(refusal)
        comments += expected is not None
        change = _change(lines, slot, expected) if here or slot.line in ours else None
        if change is not None:
            changes.append(change)
    after = "".join(lines).encode(encoding)
    return Annotation(source, after, encoding, comments, tuple(changes), tuple(refused), tuple(elsewhere))


def _refusal(line: int, designs: Sequence[Sequence[Comment]]) -> Refusal | None:
    """Why no comment is true of the layers that the designs have at a line; None when one is."""
    for layers in designs:
        makers: dict[tuple[object, ...], str] = {}
        for layer in layers:
            makers.setdefault(layer.maker, layer.name)
        if len(makers) > 1:
            return Refusal(line, tuple(makers.values()), "layers")
    for layers in designs:
        if len({layer.comment for layer in layers}) > 1:
            return Refusal(line, tuple(layer.name for layer in layers), "calls")
    everything = [layer for layers in designs for layer in layers]
    if len({layer.comment for layer in everything}) > 1:
        return Refusal(line, tuple(dict.fromkeys(layer.name for layer in everything)), "designs")
    return None


def _slots(text: str, lines: Sequence[str]) -> list[_Slot]:
    slots = []
    comment: tokenize.TokenInfo | None = None
    for token in tokenize.generate_tokens(io.StringIO(text, newline=None).readline):
        if token.type == tokenize.COMMENT:
            comment = token
        elif token.type in (tokenize.NEWLINE, tokenize.NL):
            line, column = (comment or token).start
            if lines[line - 1][:column].strip():  # else a blank line, or a comment that stands alone
                slots.append(_Slot(line, column, comment.string if comment else ""))
            comment = None
    return slots


def _change(lines: list[str], slot: _Slot, expected: str | None) -> Change | None:
    """Put the expected comment in its slot. None when the numbers that stand there are the expected ones."""
    line = lines[slot.line - 1]
    body = line.rstrip("\r\n")
    own = _OWN.search(slot.comment)
    wanted = _OWN.search(expected) if expected else None
    if (own and own.groups()) == (wanted and wanted.groups()):
        return None
    if own:
        body = body[: slot.column + own.start()]
    kept = body.rstrip()
    lines[slot.line - 1] = kept + (f"  {expected}" if expected else "") + line[len(line.rstrip("\r\n")) :]
    return Change(slot.line, own[0].rstrip() if own else None, expected)


def _statements_at(source: bytes, lines: set[int]) -> set[int]:
    """All lines of the top-level statements in which these lines stand."""
    found: set[int] = set()
    for statement in ast.parse(source).body:
        span = range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
        if not lines.isdisjoint(span):
            found.update(span)
    return found
