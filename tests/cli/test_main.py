"""The program as a process: start-up, pipes, signals, terminals."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

RFCALC = [sys.executable, "-c", "from rfcalc_cli.main import main; main()"]
NET = "from torch import nn\nINPUT_SHAPE = (1, 12, 12)\nmodel = nn.Sequential(nn.Conv2d(1, 4, 3))"


def run_python(source: str) -> str:
    return subprocess.run([sys.executable, "-c", source], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    "command", [[], ["table"], ["region"], ["verify"], ["summary"], ["annotate"], ["predict"], ["export"]]
)
def test_help_has_an_example(rfcalc, command):
    found = rfcalc(*command, "--help")
    assert (found.code, found.err) == (0, "")
    assert f"rfcalc {command[0] if command else 'table'} models/step8.py" in found.out


def test_without_arguments_the_help_is_shown(rfcalc):
    assert rfcalc().out == rfcalc("--help").out


def test_the_version(rfcalc):
    assert rfcalc("--version").out.startswith("rfcalc 0.")


def test_help_imports_no_torch():
    source = "import sys; from rfcalc_cli.main import run; run(['--help']); run(['table', '--help'])"
    assert run_python(f"{source}; print('torch' in sys.modules, 'rich' in sys.modules)").endswith("False False\n")


def test_a_table_imports_only_what_it_needs(write_design):
    write_design(NET)
    source = "import sys; from rfcalc_cli.main import run; run(['table', 'net.py'])"
    heavy = "{'torchvision', 'torchinfo', 'matplotlib', 'rich'}"
    assert run_python(f"{source}; print({heavy} & set(sys.modules))").endswith("set()\n")


def test_a_closed_pipe_is_no_error(write_design):
    write_design(NET)
    process = subprocess.Popen([*RFCALC, "table", "net.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_a_full_disk_is_one_line(write_design):
    write_design(NET)
    with open("/dev/full", "w") as full:
        found = subprocess.run(
            [*RFCALC, "table", "net.py"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert found.returncode == 2
    assert found.stderr == "rfcalc: stdout: cannot be written: No space left on device\n"


def test_ctrl_c_is_silent(write_design):
    write_design("import time\nopen('started', 'w').close()\ntime.sleep(60)")
    process = subprocess.Popen([*RFCALC, "table", "net.py"], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not os.path.exists("started") and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.communicate() == (b"", b"")
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("environment", "colored", "ascii_only"),
    [
        ({"PYTHONIOENCODING": "utf-8"}, True, False),
        ({"PYTHONIOENCODING": "utf-8", "NO_COLOR": "1"}, False, False),
        ({"PYTHONIOENCODING": "ascii", "TERM": "dumb"}, False, True),
    ],
)
def test_a_terminal_decides_on_colour_and_characters(write_design, environment, colored, ascii_only):
    write_design("from torch import nn\nmodel = nn.Sequential()\nmodel.add_module('long_' * 30, nn.Conv2d(1, 4, 3))")
    ours = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
    main, side = pty.openpty()
    process = subprocess.Popen(
        [*RFCALC, "table", "net.py", "--input", "1x9x9"], stdout=side, env={**ours, "TERM": "xterm", **environment}
    )
    os.close(side)
    text = b""
    while chunk := read(main):
        text += chunk
    assert process.wait() == 0
    assert (b"\033[1m" in text) == colored
    assert ("…".encode() in text) != ascii_only
    assert text.isascii() == ascii_only


def read(terminal: int) -> bytes:
    """What the terminal shows next; a Linux terminal whose other side is closed raises."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


def test_a_pipe_gets_no_colour_and_100_columns(rfcalc, write_design, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    write_design(NET.replace("nn.Sequential(nn.Conv2d(1, 4, 3))", "nn.Sequential(*[nn.Conv2d(1, 1, 1)] * 3)"))
    found = rfcalc("table", "net.py")
    assert "\033" not in found.out
    assert max(map(len, found.out.splitlines())) > 40


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("rfcalc ta", "table"),
        ("rfcalc check --max-p", "--max-params"),
        ("rfcalc check --no-require-e", "--no-require-exact"),
    ],
)
def test_shell_completion(words, completed):
    place = str(words.count(" "))
    environment = {**os.environ, "_RFCALC_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": place}
    found = subprocess.run(RFCALC, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [completed]
