"""Comments behind layers: each case is an annotated source; annotating it without its comments must give it back."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfcalc.designs.design import load_design, real_path
from rfcalc.errors import DesignError
from rfcalc.render.comments import Comment, Comments, Makers, annotated, comments_on

ROOT = Path(__file__).resolve().parents[2]
LADDERS = json.loads((ROOT / "tests/golden/ladders.json").read_text())["designs"]
HEAD = """\
import copy
from collections import OrderedDict
import torch
import torch.nn.functional as F
from torch import nn
INPUT_SHAPE = (1, 16, 16)
"""
EVERY_LINE = frozenset(range(1000))
# A design that makes no layer and runs every line: every comment of ours is stale.
NOTHING = [Comments((), EVERY_LINE)]


def annotate(*targets):
    """What annotating does to the file of these targets."""
    file = real_path(targets[0].partition(":")[0])
    designs = []
    for target in targets:
        makers = Makers(str(file))
        with makers.watching():
            design = load_design(target)
        designs.append(comments_on(design, makers))
    return annotated(file.read_bytes(), designs)


def net(made, forward):
    """A design with these lines in its constructor and in its forward."""
    made, forward = (dedent(part).strip("\n").replace("\n", "\n        ") for part in (made, forward))
    return f"""{HEAD}
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        {made}

    def forward(self, x):
        {forward}
"""


BLOCK = """
class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3)  # N 16->14  J 1  R 3

    def forward(self, x):
        return F.max_pool2d(self.conv(x), 2)  # N 14->7  J 2  R 4
"""

TRUE = {
    "attributes": net(
        """
        self.a = nn.Conv2d(1, 4, 3)  # N 16->14  J 1  R 3
        self.norm = nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 4, 1)  # N 14->14  J 1  R 3
        self.pool = nn.MaxPool2d(2)  # N 14->7  J 2  R 4
        """,
        "return self.pool(self.b(self.norm(self.a(x)).relu()))",
    ),
    "entries": net(
        """
        self.chain = nn.Sequential(
            nn.Conv2d(1, 4, 3),  # N 16->14  J 1  R 3
            nn.ReLU(),
            nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)),  # N 14->12  J 1  R 5
        )
        self.named = nn.Sequential(
            OrderedDict(
                [
                    ("conv", nn.Conv2d(4, 4, 3)),  # N 12->10  J 1  R 7
                    ("act", nn.ReLU()),
                ]
            )
        )
        self.list = nn.ModuleList(
            [
                nn.Conv2d(4, 4, 3),  # N 10->8  J 1  R 9
                nn.Conv2d(4, 4, 3),  # N 8->6  J 1  R 11
            ]
        )
        self.add_module("added", nn.Conv2d(4, 4, 3))  # N 6->4  J 1  R 13
        layers = []
        layers.append(nn.AvgPool2d(2))  # N 4->2  J 2  R 14
        layers += [nn.Conv2d(4, 4, 2)]  # N 2->1  J 2  R 16
        self.rest = nn.Sequential(*layers)
        """,
        """
        x = self.named(self.chain(x))
        for layer in self.list:
            x = layer(x)
        return self.rest(self.added(x))
        """,
    ),
    "functional calls": net(
        """
        self.weight = nn.Parameter(torch.ones(4, 1, 3, 3))
        """,
        """
        x = F.relu(F.conv2d(x, self.weight, padding=1))  # N 16->16  J 1  R 3
        x = F.max_pool2d(x, 2)  # N 16->8  J 2  R 4
        y = x[:, :, ::2]  # N 8->4x8  J 4x2  R 4
        y = F.interpolate(y, scale_factor=(2, 1))  # N 4x8->8  J 2  R 4!
        x = torch.cat([x, y], 1)
        x = x.mean((2, 3))  # N 8->1  J 2  R 16x18..18!
        return x
        """,
    ),
    "rectangles, fractions, and fields that differ by position": net(
        """
        self.up = nn.ConvTranspose2d(1, 1, 2, stride=2)  # N 16->32  J 1/2  R 1!
        self.wide = nn.Conv2d(1, 1, (1, 4))  # N 32->32x29  J 1/2  R 1x2..1x3!
        """,
        "return self.wide(self.up(x))",
    ),
    "global fields": net(
        """
        self.conv = nn.Conv2d(1, 4, 3, padding=1)  # N 16->16  J 1  R 3
        self.norm = nn.GroupNorm(2, 4)  # N 16->16  J 1  R 16*
        """,
        "return self.norm(self.conv(x))",
    ),
    "calls over several lines": net(
        """
        self.conv = nn.Conv2d(
            1,
            4,  # channels
            kernel_size=3,
        )  # N 16->14  J 1  R 3
        """,
        """
        return (
            self.conv(x)
            .relu()
            .mean(
                (2, 3),
            )  # N 14->1  J 1  R 16
            .relu()
        )
        """,
    ),
    "lines that cannot end where the call does": net(
        """
        self.conv, self.text = nn.Conv2d(1, 4, 3), '''a text
            of two lines'''  # N 16->14  J 1  R 3
        """,
        """
        x = self.conv(x)[:, :, :7] \\
            * 2  # N 14->7x14  J 1  R 3
        return x
        """,
    ),
    "comments of the author": net(
        """
        self.conv = nn.Conv2d(1, 4, 3)  # entry block, N 28->26  # N 16->14  J 1  R 3
        self.pool = nn.MaxPool2d(2)  # noqa: E501  # N 14->7  J 2  R 4
        # N 1->1  J 1  R 1
        # N in->out  J jump  R field
        self.act = nn.ReLU()  # N is the map's size
        self.note = "# N 1->1  J 1  R 1"
        """,
        "return self.act(self.pool(self.conv(x)))",
    ),
    "letters beyond ASCII before the call": net(
        "self.größe, self.conv = 'ÄÖÜ→', nn.Conv2d(1, 4, 3)  # N 16->14  J 1  R 3", "return self.conv(x)"
    ),
    "a block used once": f"{HEAD}{BLOCK}" + "\n\nmodel = nn.Sequential(Block(1), nn.ReLU())",
    "an instance at the top level": HEAD
    + """
model = nn.Sequential(
    nn.Conv2d(1, 4, 3),  # N 16->14  J 1  R 3
    nn.Flatten(),  # N 14->1  J 1  R 3!
    nn.Linear(784, 10),  # N 1->1  J 1  R 16
)
""",
    "a layer and nothing else": HEAD + "model = nn.Conv2d(1, 4, 3)  # N 16->14  J 1  R 3\n",
    "a function that builds": HEAD
    + """
def model():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),  # N 16->14  J 1  R 3
        nn.MaxPool2d(2),  # N 14->7  J 2  R 4
    )
""",
    "a layer called again without a difference": net(
        "self.mix = nn.Conv2d(1, 1, 1)  # N 16->16  J 1  R 1", "return self.mix(self.mix(x))"
    ),
    "a helper used once": HEAD
    + """
def down(x):
    return F.max_pool2d(x, 2)  # N 16->8  J 2  R 2


class Net(nn.Module):
    def forward(self, x):
        return down(x)
""",
    "a forward that needs values": net(
        "self.conv = nn.Conv2d(1, 1, 3)  # N 16->14  J 1  R 3",
        """
        x = self.conv(x)
        if x.sum().item() > -1e9:  # N 14->1  J 1  R 16
            x = F.max_pool2d(x, 2)  # N 14->7  J 2  R 4
        return x
        """,
    ),
    "lazy layers": net("self.conv = nn.LazyConv2d(4, 3)  # N 16->14  J 1  R 3", "return self.conv(x)"),
    "a pooling of torchvision's": HEAD
    + """
from torchvision.ops import Conv2dNormActivation

model = nn.Sequential(
    Conv2dNormActivation(1, 4, 3, stride=2),  # N 16->8  J 2  R 3
)
""",
    "no layer that moves anything": net("self.act = nn.ReLU()", "return self.act(x)"),
}


@pytest.fixture
def bare(write_design):
    """Writes a source without its comments into net.py."""

    def write(source):
        content = source if isinstance(source, bytes) else source.encode()
        write_design(annotated(content, NOTHING).after)
        return content

    return write


@pytest.mark.parametrize("source", TRUE.values(), ids=TRUE)
def test_true_comments_are_written(bare, source):
    content = bare(source)
    written = content.count(b"# N ") - 4 * (b"entry block" in content)
    found = annotate("net.py")
    assert found.after.decode() == source
    assert ast.dump(ast.parse(found.before)) == ast.dump(ast.parse(found.after))
    assert found.refused == found.elsewhere == ()
    assert found.comments == len(found.changes) >= min(written, 1)
    assert all(change.found is None for change in found.changes)
    Path("net.py").write_bytes(found.after)
    again = annotate("net.py")
    assert (again.after, again.changes, again.comments) == (found.after, (), found.comments)


REFUSED = {
    "a loop": (
        net(
            """
            layers = []
            for width in (1, 4, 4):
                layers.append(nn.Conv2d(width, 4, 3))  # N 16->14  J 1  R 3
            self.chain = nn.Sequential(*layers)
            """,
            "return self.chain(x)",
        ),
        [(13, ("chain.0", "chain.1", "chain.2"), "layers")],
    ),
    "a comprehension": (
        net("self.chain = nn.Sequential(*[nn.Conv2d(1, 1, 3) for _ in range(2)])", "return self.chain(x)"),
        [(11, ("chain.0", "chain.1"), "layers")],
    ),
    "two calls on a line": (
        net("self.a = nn.Conv2d(1, 1, 3); self.b = nn.Conv2d(1, 1, 3)", "return self.b(self.a(x))"),
        [(11, ("a", "b"), "layers")],
    ),
    "two that happen to agree": (
        net("self.a, self.b = nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3)", "return self.b(x) + self.a(x)"),
        [(11, ("b", "a"), "layers")],
    ),
    "a block used twice": (
        f"{HEAD}{BLOCK}" + "\n\nmodel = nn.Sequential(Block(1), Block(1))",
        [(11, ("0.conv", "1.conv"), "layers"), (14, ("0.max_pool2d", "1.max_pool2d"), "layers")],
    ),
    "a helper used twice": (
        HEAD
        + """
def down(x):
    return F.max_pool2d(x, 2)

class Net(nn.Module):
    def forward(self, x):
        return down(down(x))
""",
        [(9, ("max_pool2d", "max_pool2d#2"), "calls")],
    ),
    "a layer called again with other numbers": (
        net("self.conv = nn.Conv2d(1, 1, 3)", "return self.conv(self.conv(x))"),
        [(11, ("conv", "conv#2"), "calls")],
    ),
    "two layers, one of them called twice": (
        net("self.a, self.b = nn.MaxPool2d(2), nn.Conv2d(1, 1, 3)", "return self.a(self.b(self.a(x)))"),
        [(11, ("a", "b"), "layers")],
    ),
    "a block of another file": (
        f"{HEAD}from torchvision.ops import SqueezeExcitation\nmodel = nn.Sequential(SqueezeExcitation(1, 1))\n",
        [(8, ("0.avgpool", "0.fc1", "0.fc2", "0.mul"), "layers")],
    ),
}


@pytest.mark.parametrize(("source", "lines"), REFUSED.values(), ids=REFUSED)
def test_a_line_that_no_comment_is_true_of_has_none(write_design, source, lines):
    write_design(source)
    found = annotate("net.py")
    assert [(refusal.line, refusal.names, refusal.why) for refusal in found.refused] == lines
    assert found.after == annotated(source.encode(), NOTHING).after
    assert found.comments == 0


def test_layers_that_no_line_makes(write_design):
    write_design(f"{HEAD}one = nn.Conv2d(1, 1, 3)\nmodel = copy.deepcopy(nn.Sequential(one, copy.deepcopy(one)))")
    assert annotate("net.py").elsewhere == ("0", "1")
    write_design(f"{HEAD}from torchvision.models import resnet18 as model\nINPUT_SHAPE = (3, 64, 64)\n")
    found = annotate("net.py")
    assert found.comments == len(found.changes) == len(found.refused) == 0
    assert "layer4.1.conv2" in found.elsewhere


STALE = net(
    """
    self.a = nn.Conv2d(1, 1, 5)  # N 16->14  J 1  R 3
    self.b = nn.Conv2d(1, 1, 3)  # kept  # N 12->10 J 1 R 7
    self.c = nn.ReLU()  #N 10->10  J 1  R 7
    self.unused = nn.Conv2d(1, 1, 3)  # also kept# N 1->1  J 1  R 1  
    """,  # noqa: W291
    "return self.c(self.b(self.a(x)))",
)


def test_stale_comments_are_corrected_or_removed(write_design):
    write_design(STALE)
    found = annotate("net.py")
    assert [(change.line, change.found, change.expected) for change in found.changes] == [
        (11, "# N 16->14  J 1  R 3", "# N 16->12  J 1  R 5"),
        (13, "#N 10->10  J 1  R 7", None),
        (14, "# N 1->1  J 1  R 1", None),
    ]
    assert found.after.decode().splitlines()[10:14] == [
        "        self.a = nn.Conv2d(1, 1, 5)  # N 16->12  J 1  R 5",
        "        self.b = nn.Conv2d(1, 1, 3)  # kept  # N 12->10 J 1 R 7",  # true, however it is spaced
        "        self.c = nn.ReLU()",
        "        self.unused = nn.Conv2d(1, 1, 3)  # also kept",
    ]


SEVERAL = f"""{HEAD}
class First(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3)  # N 1->1  J 1  R 1

    def forward(self, x):
        return self.conv(x)


class Second(First):
    def __init__(self):
        super().__init__()
        self.more = nn.Conv2d(1, 1, 3)  # N 2->2  J 2  R 2

    def forward(self, x):
        return self.more(super().forward(x))


class Third(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, 1, 3)  # N 3->3  J 3  R 3
"""


@pytest.mark.parametrize(
    ("targets", "lines"),
    [
        (["net.py:First"], {11: "# N 16->14  J 1  R 3", 20: "# N 2->2  J 2  R 2"}),
        (["net.py:First", "net.py:Second"], {11: "# N 16->14  J 1  R 3", 20: "# N 14->12  J 1  R 5"}),
    ],
)
def test_named_designs_leave_the_others_alone(write_design, targets, lines):
    write_design(SEVERAL)
    after = annotate(*targets).after.decode().splitlines()
    expected = SEVERAL.splitlines()
    for number, comment in lines.items():
        expected[number - 1] = f"{expected[number - 1].partition('  #')[0]}  {comment}"
    assert after == expected


STEM = f"""{HEAD}
class Stem(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3)

    def forward(self, x):
        return self.conv(x)


class First(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = Stem()

    def forward(self, x):
        return self.stem(x)


class Second(First):
    def __init__(self):
        super().__init__()
        self.base = self.stem
        del self.stem

    def forward(self, x):
        return self.base(x)
"""


@pytest.mark.parametrize(
    ("source", "refused"),
    [
        (SEVERAL, []),
        (SEVERAL.replace("self.more(super().forward(x))", "super().forward(self.more(x))"), [(("conv",), "designs")]),
        (
            SEVERAL.replace("self.more(super().forward(x))", "super().forward(super().forward(x))"),
            [(("conv", "conv#2"), "calls")],
        ),
        (STEM, []),
        (STEM.replace("self.base(x)", "self.base(x[..., ::2])"), [(("stem.conv", "base.conv"), "designs")]),
        (
            STEM.replace("= self.stem\n", "= nn.Sequential(Stem(), Stem())\n"),
            [(("base.0.conv", "base.1.conv"), "layers")],
        ),
    ],
)
def test_designs_that_share_a_line(write_design, source, refused):
    write_design(source)
    found = annotate("net.py:First", "net.py:Second")
    assert [(refusal.names, refusal.why) for refusal in found.refused if refusal.line == 11] == refused
    assert found.after.decode().splitlines()[10].endswith(")" if refused else ")  # N 16->14  J 1  R 3")


SIDE_BY_SIDE = {
    "a class": """
class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 5)

    def forward(self, x):
        return self.conv(x)


class Big(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3)

    def forward(self, x):
        return F.max_pool2d(self.conv(x), 2)


model = Small
""",
    "a class that was built": """
class Big(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3)

    def forward(self, x):
        return F.max_pool2d(self.conv(x), 2)


big = Big()
model = nn.Conv2d(1, 1, 5)
""",
    "a function": """
def big():
    return nn.Sequential(
        nn.Conv2d(1, 1, 3),
        nn.MaxPool2d(2),
    )


def model():
    return nn.Conv2d(1, 1, 5)
""",
    "an instance": """
big = nn.Sequential(
    nn.Conv2d(1, 1, 3),
    nn.MaxPool2d(2),
)
model = nn.Conv2d(1, 1, 5)
""",
}


@pytest.mark.parametrize("source", SIDE_BY_SIDE.values(), ids=SIDE_BY_SIDE)
def test_the_design_of_a_file_leaves_the_others_alone(write_design, source):
    """What `file.py:Big` wrote is no stale comment of `file.py`, nor the other way round."""
    write_design(HEAD + source)
    first, second = ("net.py:Big" if "class Big" in source else "net.py:big"), "net.py"
    for target, count in ((first, 2), (second, 1), (first, 0), (second, 0)):
        found = annotate(target)
        assert len(found.changes) == count
        Path("net.py").write_bytes(found.after)
    assert found.after.count(b"# N ") == 3


OWN = {
    "a class that only hands on": """
class Keep(nn.Module):
    def forward(self, x):
        return x  # N 1->1  J 1  R 1


model = nn.Sequential(Keep(), nn.ReLU())
""",
    "a class that others inherit": """
class Base(nn.Module):
    def forward(self, x):
        return self.run(x)  # N 1->1  J 1  R 1


class Net(Base):
    def run(self, x):
        return x


model = Net
""",
    "a helper that calls layers": """
def run(layers, x):
    for layer in layers:
        x = layer(x)  # N 1->1  J 1  R 1
    return x


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.ReLU()])

    def forward(self, x):
        return run(self.layers, x)
""",
    "a helper that makes what is thrown away": """
def act():
    return nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU())[1:]  # N 1->1  J 1  R 1


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(act())
""",
}


@pytest.mark.parametrize("source", OWN.values(), ids=OWN)
def test_whatever_the_design_runs_has_no_stale_comment(write_design, source):
    write_design(HEAD + source)
    assert [change.expected for change in annotate("net.py").changes] == [None]


def test_a_part_of_a_design_is_no_place_to_count_from(write_design):
    write_design(SEVERAL)
    with pytest.raises(DesignError, match="expected the whole"):
        annotate("net.py:First#conv")


# --- bytes -----------------------------------------------------------------------------------------------------

PLAIN = net(
    """
    self.name = "Größe"
    self.conv = nn.Conv2d(1, 4, 3)  # N 16->14  J 1  R 3
    self.pool = nn.MaxPool2d(2)  # N 14->7  J 2  R 4
    """,
    "return self.pool(self.conv(x))  # N is a size",
)
BYTES = {
    "LF": PLAIN.encode(),
    "CRLF": PLAIN.replace("\n", "\r\n").encode(),
    "CR": PLAIN.replace("\n", "\r").encode(),
    "mixed": PLAIN.replace("\n", "\r\n", 12).encode(),
    "no final newline": PLAIN.rstrip().encode(),
    "a comment at the end, no final newline": f"{HEAD}model = nn.Conv2d(1, 4, 3)  # N 16->14  J 1  R 3".encode(),
    "BOM": b"\xef\xbb\xbf" + PLAIN.encode(),
    "BOM, CRLF": b"\xef\xbb\xbf" + PLAIN.replace("\n", "\r\n").encode(),
    "latin-1": f"# -*- coding: latin-1 -*-\n{PLAIN}".encode("latin-1"),
    "tabs and form feeds": PLAIN.replace("        ", "\t\t")
    .replace("    ", "\t")
    .replace("\nclass", "\n\f\nclass")
    .encode(),
    "blanks at ends": PLAIN.replace("super().__init__()", "super().__init__()   ").replace("\n\n", "\n  \n").encode(),
    "separators within a string": PLAIN.replace("Größe", "\u2028\x1c\x85").encode(),
}


@pytest.mark.parametrize("content", BYTES.values(), ids=BYTES)
def test_every_other_byte_is_kept(bare, content):
    bare(content)
    assert b"->" not in Path("net.py").read_bytes()
    found = annotate("net.py")
    assert found.after == content
    assert annotated(found.after, NOTHING).after == found.before


CODE = st.sampled_from(
    [
        "call(1)",
        "call('# N 1->1  J 1  R 1')",
        "call(\n    1,  # N 3->3  J 3  R 3\n)",
        "call(1) \\\n    + 1",
        "pass",
        "",
        "  ",
    ]
)
OURS = st.builds(
    "# N {}->{}  J {}  R {}{}".format,
    *(st.integers(0, 999) for _ in range(2)),
    st.sampled_from(["1", "1/2", "2x4"]),
    st.sampled_from(["3", "3..5", "5x3"]),
    st.sampled_from(["", "*", "~", "!*H", "~*"]),
)
THEIRS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=12)


@given(
    st.lists(
        st.tuples(CODE, THEIRS.map("  # {}".format) | st.just(""), OURS.map("  {}".format) | st.just("")), max_size=6
    ),
    st.lists(OURS | st.none(), min_size=6, max_size=6),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.booleans(),
)
def test_whatever_stands_around(lines, wanted, ending, final):
    """Comments of the author and code stay; ours are as wanted wherever a call ends; a second time changes nothing."""
    text = "\n".join(code + (f"{theirs}{ours}" if code.strip() else "") for code, theirs, ours in lines)
    source = (text + "\n" * final).replace("\n", ending).encode()
    tree = ast.parse(source)
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    layers = [
        Comment(str(i), (i,), comment, (call.end_lineno, call.end_col_offset))
        for i, (call, comment) in enumerate(zip(calls, wanted, strict=False))
        if comment is not None
    ]
    found = annotated(source, [Comments(tuple(layers), EVERY_LINE)])
    assert ast.dump(ast.parse(found.after), include_attributes=True) == ast.dump(tree, include_attributes=True)
    assert found.comments == len(layers)
    assert annotated(found.after, [Comments(tuple(layers), EVERY_LINE)]).changes == ()
    bare, bare_before = (annotated(content, NOTHING).after.decode() for content in (found.after, source))
    assert [line.rstrip(" ") for line in bare.split(ending)] == [line.rstrip(" ") for line in bare_before.split(ending)]
    after = found.after.decode().replace(ending, "\n").split("\n")
    assert sum(line.endswith(layer.comment) for line in after for layer in layers) >= len(layers)


# --- the ladders -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ladders(tmp_path_factory):
    """Copies of all designs, annotated from scratch."""
    folder = tmp_path_factory.mktemp("ladders")
    shutil.copy(ROOT / "pyproject.toml", folder)
    for known in LADDERS:
        copy = folder / known["file"]
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(annotated((ROOT / known["file"]).read_bytes(), NOTHING).after)
        copy.write_bytes(annotate(str(copy)).after)
    return folder


@pytest.mark.parametrize("known", LADDERS, ids=lambda known: known["id"])
def test_the_ladders_numbers(ladders, known):
    file = ladders / known["file"]
    comments = [line.rpartition("  # ")[2] for line in file.read_text().splitlines() if "  # N " in line]
    assert comments == [
        f"N {row['n_in']}->{row['n_out']}  J {row['j_out']}  R {row['r_out']}" for row in known["rf_table"]
    ]
    found = annotate(str(file))
    assert (found.changes, found.refused, found.elsewhere) == ((), (), ())
    assert file.read_bytes() == (ROOT / known["file"]).read_bytes()  # what the repository shows is true, too


def test_the_formatter_leaves_the_comments_where_they_are(ladders, tmp_path):
    pytest.importorskip("ruff", reason="the formatter is not installed")

    def formatted(*arguments):
        return subprocess.run([sys.executable, "-m", "ruff", "format", *arguments], check=False, capture_output=True)

    assert formatted("--check", str(ladders)).returncode == 0
    long = tmp_path / "long.py"
    for name in ("entries", "functional calls", "calls over several lines", "comments of the author"):
        # As narrow as this the comments push their lines over the limit, and the formatter breaks the calls.
        for width in (40, 60, 120):
            assert formatted("--quiet", "--line-length", str(width), "--isolated", str(long)).returncode == (
                0 if long.exists() else 2
            )
            long.write_text(TRUE[name])
            for _ in range(2):
                formatted("--quiet", "--isolated", "--line-length", str(width), str(long))
                long.write_bytes(annotate(str(long)).after)
            assert formatted("--check", "--isolated", "--line-length", str(width), str(long)).returncode == 0
