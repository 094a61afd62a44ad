"""Fixtures that several test files use. `pytest --update` writes the expected outputs in golden/ anew."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from hypothesis import HealthCheck, settings

GOLDEN = Path(__file__).parent / "golden"

# The same examples in every run, on every machine; nothing that depends on how busy it is. How many is a test's own.
settings.register_profile(
    "rfcalc",
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=True,
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much),
)
settings.load_profile("rfcalc")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="write the expected outputs in tests/golden anew")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For files of tiny tensors, where more threads only cost."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)`: the text must equal the file of that name in tests/golden."""

    def check(name: str, text: str) -> None:
        file = GOLDEN / name
        if request.config.getoption("--update"):
            file.write_text(text + "\n", encoding="utf-8")
        assert file.exists(), f"{file} is missing: run pytest --update and read what it wrote"
        assert text + "\n" == file.read_text(encoding="utf-8")

    return check


@pytest.fixture
def write_design(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`write_design(source, name="net.py")` writes a file in an empty current folder and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(source: str | bytes, name: str = "net.py") -> str:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(source if isinstance(source, bytes) else dedent(source).encode())
        return name

    return write


@dataclass(frozen=True)
class Outcome:
    """What a command line did."""

    code: int
    out: str
    err: str


@pytest.fixture
def rfcalc(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """`rfcalc("table", "net.py")` runs a command line in this process."""
    from rfcalc_cli.main import run

    def call(*arguments: str) -> Outcome:
        capfd.readouterr()
        code = run(arguments)
        return Outcome(code, *capfd.readouterr())

    return call
