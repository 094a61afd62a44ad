"""`rfcalc annotate`: what it writes, what it says, and with which exit code."""

import errno
import os
import stat
import subprocess
from pathlib import Path
from textwrap import dedent

import pytest

NET = """
    from torch import nn
    INPUT_SHAPE = (1, 28, 28)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.Conv2d(8, 8, 3),  # N 26->24  J 1  R 7
        nn.ReLU(),  # N 24->24  J 1  R 7
        nn.Conv2d(8, 8, 1),  # N 24->24  J 1  R 5
        *[nn.Conv2d(8, 8, 3) for _ in range(5)],
    )
"""
LOOP = "net.py:9: makes 5 layers, 4, 5, 6, 7 and 1 more: left without a comment\n"
FOUND = """\
net.py:5: found no comment, expected # N 28->26  J 1  R 3
net.py:6: found # N 26->24  J 1  R 7, expected # N 26->24  J 1  R 5
net.py:7: found # N 24->24  J 1  R 7, expected none
"""
DIFF = """\
--- a/net.py
+++ b/net.py
@@ -2,9 +2,9 @@
 from torch import nn
 INPUT_SHAPE = (1, 28, 28)
 model = nn.Sequential(
-    nn.Conv2d(1, 8, 3),
-    nn.Conv2d(8, 8, 3),  # N 26->24  J 1  R 7
-    nn.ReLU(),  # N 24->24  J 1  R 7
+    nn.Conv2d(1, 8, 3),  # N 28->26  J 1  R 3
+    nn.Conv2d(8, 8, 3),  # N 26->24  J 1  R 5
+    nn.ReLU(),
     nn.Conv2d(8, 8, 1),  # N 24->24  J 1  R 5
     *[nn.Conv2d(8, 8, 3) for _ in range(5)],
 )
"""


@pytest.mark.parametrize(
    ("options", "code", "out"),
    [
        ((), 0, "net.py: 3 comments, 1 added, 1 corrected, 1 removed\n"),
        (("--check",), 1, FOUND),
        (("--diff",), 0, DIFF),
        (("--check", "--diff"), 1, FOUND + DIFF),
    ],
)
def test_stale_comments(rfcalc, write_design, options, code, out):
    write_design(NET)
    before = Path("net.py").read_bytes()
    found = rfcalc("annotate", *options, "net.py")
    assert (found.code, found.out, found.err) == (code, out, LOOP)
    assert (Path("net.py").read_bytes() == before) == bool(options)


def test_true_comments(rfcalc, write_design):
    write_design(NET)
    rfcalc("annotate", "net.py")
    written = os.stat("net.py")
    assert rfcalc("annotate", "net.py").out == "net.py: 3 comments, all true\n"
    assert os.stat("net.py").st_mtime_ns == written.st_mtime_ns
    for options in (["--check"], ["--diff"], ["--check", "--diff"]):
        found = rfcalc("annotate", *options, "net.py")
        assert (found.code, found.out, found.err) == (0, "", LOOP)


@pytest.mark.parametrize("ending", ["\n", ""])
@pytest.mark.parametrize("content", [NET.replace("\n    ", "\n").replace("\n", "\r\n"), NET.replace("\n    ", "\n")])
def test_the_diff_is_a_patch(rfcalc, write_design, ending, content):
    write_design((content.rstrip() + ending).encode())
    Path("patch").write_bytes(rfcalc("annotate", "--diff", "net.py").out.encode())
    rfcalc("annotate", "net.py")
    after = Path("net.py").read_bytes()
    write_design((content.rstrip() + ending).encode())
    subprocess.run(["git", "apply", "--whitespace=nowarn", "patch"], check=True)
    assert Path("net.py").read_bytes() == after


TWICE = """
    from torch import nn
    INPUT_SHAPE = (1, 28, 28)
    class Stem(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = nn.MaxPool2d(2)
        def forward(self, x):
            return self.pool(x)
    class Twice(Stem):
        def forward(self, x):
            return super().forward(super().forward(x))
    class Later(Stem):
        def forward(self, x):
            return super().forward(x[:, :, ::2, ::2])
"""


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["Twice"], "its layer is called with different numbers (pool, pool#2)"),
        (["Stem", "Later"], "its layer has different numbers in different designs (pool)"),
    ],
)
def test_a_layer_with_several_numbers(rfcalc, write_design, names, says):
    write_design(TWICE)
    found = rfcalc("annotate", "--check", *(f"net.py:{name}" for name in names))
    assert f"net.py:7: {says}: left without a comment\n" in found.err
    assert found.err.count("\n") == 1


def test_many_files(rfcalc, write_design):
    """What is broken or defines no design is no reason to leave the others as they are."""
    write_design(NET, "models/net.py")
    write_design(NET, "models/below/net.py")
    write_design("import math", "models/__init__.py")
    write_design("class Other(dict): ...", "models/other.py")
    write_design("1 / 0\nmodel = None", "models/broken.py")
    found = rfcalc("annotate", "models", "models/broken.py", "models/nat.py")
    assert found.code == 2
    assert found.out.count("3 comments, 1 added, 1 corrected, 1 removed\n") == 2
    assert found.err.splitlines()[-3:] == [
        "2 files without a design skipped",
        "rfcalc: models/broken.py:1: raised at import: ZeroDivisionError: division by zero",
        "rfcalc: models/nat.py: no such file; did you mean models/net.py?",
    ]
    found = rfcalc("annotate", "--check", "models/net.py", "models/other.py", "models/__init__.py")
    assert (found.code, found.out) == (0, "")


LEAVING = """
    import sys
    from torch import nn
    INPUT_SHAPE = (1, 28, 28)
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3)
        def forward(self, x):
            x = x[:, :, ::2].mean()
            {}
"""


@pytest.mark.parametrize("end", ["sys.exit(0)", "return self.conv(x)", "return x.nothing"])
def test_a_forward_that_fails_does_not_touch_the_next(rfcalc, write_design, end):
    write_design(LEAVING.format(end), "leaving.py")
    write_design(NET)
    found = rfcalc("annotate", "leaving.py", "net.py")
    assert (found.code, found.out) == (2, "net.py: 3 comments, 1 added, 1 corrected, 1 removed\n")
    assert found.err.startswith(LOOP)
    assert found.err.splitlines()[-1].startswith("rfcalc: leaving.py:Net")
    assert rfcalc("table", "net.py").code == 0


DEADLY = {
    "raise KeyboardInterrupt": "raised KeyboardInterrupt",
    "import os\nos._exit(0)": "its process ended with exit code 0 before the verdict; "
    "expected a design that does not exit",
    "while True: pass": "no verdict after 3 s; look for an endless loop in the file, its constructor or forward, "
    "or allow more: --timeout",
}


@pytest.mark.parametrize("place", ["import", "forward"])
def test_a_file_that_does_not_answer(rfcalc, write_design, place):
    """Each is told, none passes for true, and the others are done."""
    for number, code in enumerate(DEADLY):
        end = code.replace("\n", "; ") if place == "forward" else "return self.conv(x)"
        write_design((f"{code}\n" if place == "import" else "") + dedent(LEAVING.format(end)), f"{number}.py")
    write_design(NET)
    found = rfcalc("annotate", "--timeout", "3", "0.py", "1.py", "2.py", "net.py")
    assert (found.code, found.out) == (2, "net.py: 3 comments, 1 added, 1 corrected, 1 removed\n")
    assert found.err == LOOP + "".join(f"rfcalc: {n}.py: {says}\n" for n, says in enumerate(DEADLY.values()))
    for number in range(2):  # the third takes its time
        found = rfcalc("annotate", "--check", "--timeout", "3", f"{number}.py")
        assert (found.code, found.out, found.err.count("\n")) == (2, "", 1)


def test_a_design_that_moves_away_is_written_where_it_lies(rfcalc, write_design):
    write_design("import os\nos.chdir('/')\n" + dedent(NET))
    assert rfcalc("annotate", "net.py").code == 0
    assert "# N 28->26  J 1  R 3" in Path("net.py").read_text()


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_debug_shows_where_a_design_raised(rfcalc, write_design, debug):
    write_design("1 / 0\nmodel = None")
    assert "raised at import: ZeroDivisionError" in (err := rfcalc("annotate", "net.py", *debug).err)
    assert ('net.py", line 1, in <module>' in err) == bool(debug)


def test_the_file_keeps_its_mode_and_its_links(rfcalc, write_design):
    write_design(NET)
    Path("net.py").chmod(0o754)
    Path("link.py").symlink_to("net.py")
    assert rfcalc("annotate", "link.py").code == 0
    assert Path("link.py").is_symlink()
    assert stat.S_IMODE(os.stat("net.py").st_mode) == 0o754
    assert rfcalc("annotate", "net.py").out == "net.py: 3 comments, all true\n"
    assert sorted(os.listdir()) == ["link.py", "net.py"]


def test_shape_and_layout_from_flags_and_from_the_settings(rfcalc, write_design):
    write_design(NET.replace("INPUT_SHAPE", "SHAPE"))
    rfcalc("annotate", "net.py", "--input", "1x32x20")
    assert "# N 32x20->30x18  J 1  R 3" in Path("net.py").read_text()
    write_design('[tool.rfcalc]\ninput = "1x40x40"', "pyproject.toml")
    rfcalc("annotate", "net.py")
    assert "# N 40->38  J 1  R 3" in Path("net.py").read_text()
    write_design('[tool.rfcalc]\ninput = "1x30x30"', "other.toml")
    rfcalc("annotate", "net.py", "--config", "other.toml")
    assert "# N 30->28  J 1  R 3" in Path("net.py").read_text()
    write_design("from torch import nn\nmodel = nn.MultiheadAttention\nmodel = nn.Conv1d(8, 8, 3)")
    rfcalc("annotate", "net.py", "--input", "8x30", "--layout", "CL")
    assert "nn.Conv1d(8, 8, 3)  # N 30->28  J 1  R 3" in Path("net.py").read_text()


def test_what_a_design_prints_is_no_part_of_the_answer(rfcalc, write_design):
    write_design(NET + "    print('hello')\n")
    found = rfcalc("annotate", "--diff", "net.py")
    assert "hello" in found.err
    assert found.out.startswith("--- a/net.py\n")


SEVERAL = NET + "    class Net(nn.Module): ...\n    class Other(Net): ...\n    del model\n"


@pytest.mark.parametrize(
    ("source", "arguments", "says"),
    [
        (NET, ["nat.py"], "nat.py: no such file; did you mean net.py?"),
        (NET, ["torchvision.models:resnet18"], "torchvision.models:resnet18: expected a design file"),
        (NET, ["net.py#0"], "net.py#0: expected a design file"),
        (NET, ["net.py", "--input", "2x28x28"], "0 (Conv2d)"),
        (NET, ["net.py", "--input", "1x0"], "--input"),
        (NET, ["net.py", "--config", "no.toml"], "no.toml"),
        (NET, ["net.py", "--timeout", "0"], "--timeout"),
        (NET, [], "Missing argument 'FILE...'"),
        (SEVERAL, ["net.py"], "2 designs; name one: net.py:Net, net.py:Other"),
        ("def", ["net.py"], "net.py:1: not valid Python"),
        (b"# coding: nonsense\nmodel = 1", ["net.py"], "net.py"),
    ],
)
def test_bad_input(rfcalc, write_design, source, arguments, says):
    write_design(source)
    before = Path("net.py").read_bytes()
    found = rfcalc("annotate", *arguments)
    assert (found.code, found.out, found.err.count("\n")) == (2, "", 1)
    assert says in found.err
    assert Path("net.py").read_bytes() == before


def test_a_disk_that_fills_up(rfcalc, write_design, monkeypatch):
    write_design(NET)
    before = Path("net.py").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    found = rfcalc("annotate", "net.py")
    assert (found.code, found.out) == (2, "")
    assert "cannot be written: No space left on device" in found.err
    assert Path("net.py").read_bytes() == before
    assert os.listdir() == ["net.py"]


def test_one_design_does_not_change_the_next(rfcalc, write_design):
    write_design(NET + "\n    nn.Conv2d = nn.Linear\n    import os; os.chdir('/')\n", "a.py")
    write_design(NET, "b.py")
    alone = rfcalc("annotate", "--diff", "b.py").out
    assert alone.count("# N ") > 0
    assert alone in rfcalc("annotate", "--diff", "a.py", "b.py").out
