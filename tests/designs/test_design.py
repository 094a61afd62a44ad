"""Targets, their errors, and construction without storage."""

import random
import re
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import rfcalc
from rfcalc.designs.blueprint import blueprint
from rfcalc.designs.design import Design, load_design
from rfcalc.designs.imports import relocated
from rfcalc.designs.shapes import checked_input, checked_shape, parse_shape
from rfcalc.errors import DesignError, InputError

ROOT = Path(__file__).parents[2]
ONE = """
    from torch import nn
    INPUT_SHAPE = (1, 28, 28)
    RECIPE = {"epochs": 15}

    class Block(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.conv = nn.Conv2d(channels, channels, 3)

    class Net(nn.Module):
        def __init__(self, width=4):
            super().__init__()
            self.block = Block(width)
"""
TWO = """
    from torch import nn
    class A(nn.Module): ...
    class B(nn.Module): ...
"""


# --- targets -------------------------------------------------------------------------------------------------


def test_a_file_with_one_design(write_design):
    design = load_design(write_design(ONE))
    assert (design.name, design.input_shape, design.recipe, design.line) == (
        "net.py:Net",
        (1, 28, 28),
        {"epochs": 15},
        11,
    )
    assert design.path == Path("net.py").resolve()
    assert type(design.build()).__name__ == "Net"


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("net.py:Net", "Net"),
        ("./net.py", "Net"),
        ("net.py:Net#block", "Block"),
        ("net.py#block.conv", "Conv2d"),
        ("torch.nn:Identity", "Identity"),
        ("torchvision.models:resnet18", "ResNet"),
        ("torchvision.models:resnet18#layer1.0", "BasicBlock"),
    ],
)
def test_the_forms_of_a_target(write_design, target, kind):
    write_design(ONE)
    design = load_design(target, (3, 64, 64))
    for built in (design.build(), design.build_real()):
        assert type(built).__name__ == kind
    assert design.input_shape == (3, 64, 64)


def test_absolute_paths_and_home(write_design, tmp_path, monkeypatch):
    write_design(ONE)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_design(str(tmp_path / "net.py")).name == f"{tmp_path}/net.py:Net"
    assert load_design("~/net.py").path == tmp_path / "net.py"


def test_a_submodule_takes_no_shape_from_the_file(write_design):
    assert load_design(write_design(ONE) + "#block").input_shape is None


@pytest.mark.parametrize(
    "model", ["model = Net(3)", "model = Net", "def model(): return Net(3)", "model = lambda: Net(3)"]
)
def test_model_wins_over_classes(write_design, model):
    source = f"""
        from torch import nn
        class Other(nn.Module): ...
        class Net(nn.Module):
            def __init__(self, n=3):
                super().__init__()
                self.fc = nn.Linear(n, n)
        {model}
    """
    design = load_design(write_design(source), (3,))
    assert (design.name, design.line) == ("net.py:model", 8)
    assert design.build().fc.weight.is_meta
    assert not design.build_real().fc.weight.is_meta


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from torch.nn import Linear, Module\nclass Net(Module): ...", "Net"),  # imported classes do not count
        ("from torch import nn\nclass _Part(nn.Module): ...\nclass Net(nn.Module): ...", "Net"),
        ("from torch import nn\nclass _Net(nn.Module): ...", "_Net"),
        ("from torch import nn\nclass Net(nn.Module): ...\nAlias = Net", "Alias"),
        # Of two that build without arguments the one that the other is made with is a part.
        ("from torch import nn\nclass Act(nn.Module): ...\nclass Net(nn.Module):\n  def f(self): Act()", "Net"),
        (
            "from torch import nn\nclass Net(nn.Module):\n  def f(self, a): return a or Act\nclass Act(nn.Module): ...",
            "Net",
        ),
        ("from torch import nn\nimport model_zoo as model\nclass Net(nn.Module): ...", "Net"),  # a module named model
        (
            "from torch import nn\nclass Net(nn.Module):\n  def __init__(self, *args, **kwargs): super().__init__()",
            "Net",
        ),
    ],
)
def test_what_counts_as_the_one_design(write_design, source, name):
    write_design("", "model_zoo.py")
    assert load_design(write_design(source), (1,)).name == f"net.py:{name}"


def test_files_in_two_folders_import_their_own_siblings(write_design):
    for folder, width in (("a", 3), ("b", 5)):
        write_design(f"WIDTH = {width}", f"{folder}/siblings_of_rfcalc.py")
        write_design(
            """
            from torch import nn
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    from siblings_of_rfcalc import WIDTH
                    self.fc = nn.Linear(WIDTH, WIDTH)
            """,
            f"{folder}/net.py",
        )
    path = list(sys.path)
    designs = [load_design(f"{folder}/net.py", (3,)) for folder in "ab"]
    assert [d.build().fc.in_features for d in designs * 2] == [3, 5, 3, 5]
    assert sys.path == path
    assert "siblings_of_rfcalc" not in sys.modules


WIDE = """
    {importing}
    from torch import nn
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(WIDTH, WIDTH)
"""


def test_a_constructor_imports_from_where_its_file_says(write_design):
    write_design("WIDTH = 3", "elsewhere/found_by_its_file.py")
    source = WIDE.format(importing="import sys; sys.path.insert(0, 'elsewhere')")
    lazily = "super().__init__()\n            from found_by_its_file import WIDTH"
    design = load_design(write_design(source.replace("super().__init__()", lazily)), (3,))
    assert [design.build().fc.in_features, design.build_real().fc.in_features] == [3, 3]
    assert "elsewhere" not in sys.path


@pytest.mark.parametrize("first", ["a", "b"])
def test_packages_that_a_design_finds_for_itself_are_its_own(write_design, first):
    """Two projects, each of whose designs puts its own root on the path and has a package `parts_of_rfcalc`."""
    importing = """import sys; from os.path import dirname; sys.path.insert(0, dirname(dirname(__file__)))
    from parts_of_rfcalc.width import WIDTH"""
    for folder, width in (("a", 3), ("b", 5)):
        write_design(f"WIDTH = {width}", f"{folder}/parts_of_rfcalc/width.py")
        write_design(WIDE.format(importing=importing), f"{folder}/models/net.py")
    path = list(sys.path)
    found = {folder: load_design(f"{folder}/models/net.py", (3,)) for folder in sorted("ab", key=lambda f: f != first)}
    assert {folder: design.build().fc.in_features for folder, design in found.items()} == {"a": 3, "b": 5}
    assert sys.path == path
    assert not [name for name in sys.modules if name.startswith("parts_of_rfcalc")]


@pytest.mark.parametrize(
    "importing",
    ["from .width import WIDTH", "from models.width import WIDTH", "from ..models.width import WIDTH",
     "from outer.models.width import WIDTH", "from width import WIDTH"],
)  # fmt: skip
def test_a_design_in_a_package(write_design, importing):
    outer = "outer" in importing or ".." in importing
    for folder, width in (("a", 3), ("b", 5)):
        place = f"{folder}/outer/models" if outer else f"{folder}/models"
        for package in ["outer", "outer/models"] if outer else ["models"]:
            write_design("", f"{folder}/{package}/__init__.py")
        write_design(f"WIDTH = {width}", f"{place}/width.py")
        write_design(WIDE.format(importing=importing), f"{place}/net.py")
        assert load_design(f"{place}/net.py", (3,)).build().fc.in_features == width


def test_a_module_that_anyone_could_import_is_shared(write_design, monkeypatch):
    """Some cannot be run twice: those that register operations with torch."""
    write_design("", "shared/package_for_all.py")
    monkeypatch.syspath_prepend(str(Path("shared").absolute()))
    for folder in "ab":
        write_design("import package_for_all as p\nfrom torch import nn\nmodel = nn.Linear(1, 1)\nRECIPE = {'p': p}",
                     f"{folder}/net.py")  # fmt: skip
    one, other = (load_design(f"{folder}/net.py", (1,)).recipe["p"] for folder in "ab")
    assert one is other
    del sys.modules["package_for_all"]


def test_a_copy_of_a_repository_imports_from_the_copy(write_design, monkeypatch):
    for folder, width in (("repo", 5), ("copy", 3)):
        write_design(f"WIDTH = {width}", f"{folder}/found_by_path/width.py")
        write_design(WIDE.format(importing="from found_by_path.width import WIDTH"), f"{folder}/models/net.py")
    repo, copy = Path("repo").resolve(), Path("copy").resolve()
    monkeypatch.syspath_prepend(str(repo))
    path = list(sys.path)
    for _ in range(2):
        assert load_design("repo/models/net.py", (3,)).build().fc.in_features == 5
        module = sys.modules["found_by_path.width"]
        with relocated(repo, copy):
            assert load_design("copy/models/net.py", (3,)).build().fc.in_features == 3
        assert sys.modules["found_by_path.width"] is module
        assert sys.path == path
    for name in ("found_by_path.width", "found_by_path"):
        del sys.modules[name]


def test_dataclasses_in_a_design_find_their_module(write_design):
    source = """
        from __future__ import annotations
        from dataclasses import dataclass
        from torch import nn
        @dataclass
        class Config:
            width: int = 3
        class Net(nn.Module):
            def __init__(self, config: Config = Config()):
                super().__init__()
                self.fc = nn.Linear(config.width, 1)
    """
    assert load_design(write_design(source), (3,)).build().fc.in_features == 3


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (ONE, "nat.py", "nat.py: no such file; did you mean net.py?"),
        (ONE, "other/none.py", "other/none.py: no such file; expected a Python file"),
        (ONE, ".", ".: a folder; expected a Python file, e.g. net.py"),
        (ONE, "net.py:", "net.py:: expected file.py:Name or package.module:callable"),
        (ONE, "net.py:Nte", "net.py: has no 'Nte'; did you mean Net?"),
        (ONE, "net.py:Block", "net.py:Block: needs argument channels; expected none"),
        (ONE, "net.py:RECIPE", "net.py:RECIPE: a value of type dict; expected an nn.Module class"),
        (ONE, "net.py:nn", "net.py:nn: the module torch.nn; expected an nn.Module class"),
        (ONE, "net.py#", "net.py#: nothing after '#'; expected a submodule's path"),
        (ONE, "net.py#blok", "net.py:Net: has no submodule 'blok'; did you mean block"),
        (TWO, "net.py", "net.py: 2 designs; name one: net.py:A, net.py:B; or define model = A"),
        ("x = 1", "net.py", "net.py: no design; expected one nn.Module class that needs no arguments"),
        ("from torch.nn import Linear", "net.py", "net.py: no design; expected one nn.Module class"),
        (
            "from torch import nn\nclass A(nn.Module):\n def __init__(self, a, *, b): 0",
            "net.py",
            "A needs arguments a, b",
        ),
        ("def model(x): ...", "net.py", "net.py:model: needs argument x; expected none"),
        ("def model(): return 3", "net.py", "net.py:model: returned a value of type int; expected an nn.Module"),
        ("def model(): ...", "net.py", "net.py:model: returned None; expected an nn.Module"),
        ("class model: ...", "net.py", "net.py:model: a class that is no nn.Module"),
        ("x = (", "net.py", "net.py:1: not valid Python: '(' was never closed"),
        ("x = 1\n y = 2", "net.py", "net.py:2: not valid Python: unexpected indent"),
        (b"\x00\x01\x02", "net.py", "null bytes"),
        (b"\xff\xfe\xfa", "net.py", "net.py:1: not valid Python: (unicode error)"),
        ("import nowhere_to_be_found", "net.py", "net.py:1: raised at import: ModuleNotFoundError: No module named"),
        ("x = 1\n1 / 0", "net.py", "net.py:2: raised at import: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)", "net.py", "net.py:2: raised at import: SystemExit: 3"),
        ("raise ValueError('a\\nb')", "net.py", "net.py:1: raised at import: ValueError: a"),
        (
            "from torch import nn\nclass Net(nn.Module):\n def __init__(self):\n  nn.Linear(-1, 'x')",
            "net.py",
            "net.py:4: building net.py:Net raised ",
        ),
        ("def model():\n raise SystemExit", "net.py", "net.py:2: building net.py:model raised SystemExit"),
        (
            "RECIPE = 3\nfrom torch import nn\nclass A(nn.Module): ...",
            "net.py",
            "net.py: RECIPE is a value of type int",
        ),
        (ONE, "resnet18", "resnet18: neither a file nor package.module:callable"),
        (ONE, "no_such_package.x:y", "no_such_package.x: no module named 'no_such_package'"),
        (ONE, "torchvision.nodels:x", "torchvision.nodels: no module named 'torchvision.nodels'"),
        (ONE, "torchvision.models:resnet19", "torchvision.models: has no 'resnet19'; did you mean resnet1"),
        (ONE, "torchvision.models:resnet", "torchvision.models:resnet: the module torchvision.models.resnet"),
        (ONE, "torch.nn:Conv2d", "torch.nn:Conv2d: needs arguments in_channels, out_channels, kernel_size"),
    ],
)
def test_errors_are_one_line_that_says_where(write_design, source, target, message):
    write_design(source)
    with pytest.raises(DesignError, match=re.escape(message)) as caught:
        load_design(target, (3, 8, 8)).build()
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_python(write_design):
    write_design("x", "net.txt")
    with pytest.raises(DesignError, match=r"net\.txt: not a Python file; expected a name that ends in \.py"):
        load_design("net.txt")


def test_a_module_that_raises_at_import(write_design):
    write_design("import nowhere_to_be_found", "broken_for_rfcalc.py")
    with pytest.raises(DesignError, match="broken_for_rfcalc: raised at import: ModuleNotFoundError"):
        load_design("broken_for_rfcalc:x")


def test_a_module_target_is_found_in_the_current_folder(write_design):
    write_design("from torch import nn\nclass Net(nn.Module): ...", "pkg_for_rfcalc/nets.py")
    assert type(load_design("pkg_for_rfcalc.nets:Net", (1,)).build()).__name__ == "Net"


# --- shapes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("1x28x28", (1, 28, 28)),
        (" 3 X 64×64 ", (3, 64, 64)),
        ("10", (10,)),
        ("3x64x64,3x64x64", ((3, 64, 64), (3, 64, 64))),
        ("x=3x64x64,y=10", {"x": (3, 64, 64), "y": (10,)}),
        ("image=10", {"image": (10,)}),
    ],
)
def test_parse_shape(text, shape):
    assert parse_shape(text) == shape


@pytest.mark.parametrize(
    "text",
    "|,|x|1x|x1|0x28x28|-1x28x28|1x-28|nan|1xnanx28|infx2|1.5x2|1e3x2|1x28x28,|"
    "a=1,2|1,a=2|a=1,a=2|=3|a b=3|a=|０|1 2x3|99999999999999999999|0x1C".split("|"),
)
def test_parse_shape_refuses(text):
    with pytest.raises(InputError) as caught:
        parse_shape(text)
    assert "\n" not in str(caught.value)
    assert "expected" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        ([1, 28, 28], (1, 28, 28)),
        (torch.Size((1, 2)), (1, 2)),
        ((np.int64(3), 4), (3, 4)),
        (([3, 8, 8], (1, 4)), ((3, 8, 8), (1, 4))),
        ({"x": [3, 8]}, {"x": (3, 8)}),
    ],
)
def test_checked_shape(value, shape):
    assert checked_shape(value, "here") == shape


STEP = torch.tensor(5.0)


@pytest.mark.parametrize(
    ("value", "taken"),
    [
        ([[3, 8, 8], np.int64(5)], ((3, 8, 8), 5)),
        ({"image": [3, 8, 8], "step": STEP, "scale": 2.0}, {"image": (3, 8, 8), "step": STEP, "scale": 2.0}),
        ([((3, 8), {"k": [3, 8]}), None], (((3, 8), {"k": (3, 8)}), None)),
        (torch.Size((1, 2)), (1, 2)),
        (STEP, STEP),
    ],
)
def test_a_design_takes_what_analyze_takes(value, taken):
    assert checked_input(value, "here") == taken


def test_a_design_with_a_step_is_analysed(write_design):
    source = """
        import torch
        from torch import nn
        INPUT_SHAPE = {"x": (3, 8, 8), "step": torch.tensor(5.0)}

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 3, 3)

            def forward(self, x, step):
                return self.conv(x) * step
    """
    design = load_design(write_design(source))
    assert rfcalc.analyze(design.build(), design.input_shape).rf_output == (3, 3)


@pytest.mark.parametrize(
    "value",
    [
        28,
        "1x28",
        (),
        [],
        {},
        (1, 0),
        (1, -2),
        (1, 2.0),
        (float("nan"), 1),
        (True, 2),
        {"x": 3},
        {1: (2,)},
        ((),),
    ],
)
def test_a_malformed_input_shape_names_its_place(write_design, value):
    source = f"from torch import nn\nnan = float('nan')\nINPUT_SHAPE = {value!r}\nclass Net(nn.Module): ..."
    with pytest.raises(InputError, match=r"^net\.py: INPUT_SHAPE is .*; expected whole numbers above 0"):
        load_design(write_design(source))


# --- construction without storage ----------------------------------------------------------------------------


class Everything(nn.Module):
    """What constructors do to their parameters and tables."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.position = nn.Parameter(torch.zeros(1, 5, 8))
        self.scale = nn.Parameter(1e-6 * torch.ones(8), requires_grad=False)
        self.mixed = nn.Parameter(torch.randn(4) * torch.arange(4))
        self.index = nn.Parameter(torch.arange(6), requires_grad=False)
        self.head = nn.Linear(8, 8)
        self.head.weight = self.conv_of = nn.Linear(8, 8).weight
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, batch_first=True), 2)
        self.list = nn.ParameterList([torch.ones(3)])
        self.register_parameter("explicit", nn.Parameter(torch.ones(2)))
        self.lazy = nn.LazyLinear(4)
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
        self.weighted = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.rates = [r.item() for r in torch.linspace(0, 0.5, 3)]
        self.register_buffer("mask", torch.tril(torch.ones(4, 4)))
        self.register_buffer("clip", torch.empty(3, 3).fill_(float("-inf")).triu_(1))
        self.register_buffer("grid", torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")))
        with torch.no_grad():
            self.conv.weight.copy_(torch.rand(8, 3, 3, 3)).mul_(2)
            self.head.bias[0] = 3
        self.conv.weight.data.normal_()
        self.head.bias.data = torch.zeros(8)
        nn.init.trunc_normal_(self.head.weight)
        nn.init.orthogonal_(self.conv.weight)
        self.to(torch.float64)


def test_weights_have_no_storage_and_tables_keep_their_values():
    made, real = blueprint(Everything), Everything()
    weights = {name: p for name, p in made.named_parameters() if name != "index"}
    assert all(p.is_meta for p in weights.values())
    assert [(n, p.requires_grad, p.dtype) for n, p in made.named_parameters()] == [
        (n, p.requires_grad, p.dtype) for n, p in real.named_parameters()
    ]
    for name in ("index", "mask", "clip", "grid", "bn.running_mean", "bn.running_var"):
        assert torch.equal(
            made.get_parameter(name) if name == "index" else made.get_buffer(name), real.state_dict()[name]
        )
    assert made.rates == real.rates
    assert made.head.weight is made.conv_of
    assert made.state_dict().keys() == real.state_dict().keys()


def test_a_parameter_registered_twice_stays_one():
    def make():
        shared = nn.Parameter(torch.zeros(3))
        net = nn.Module()
        net.a, net.b = nn.Module(), nn.Module()
        net.a.w = net.b.w = shared
        return net

    made = blueprint(make)
    assert made.a.w is made.b.w
    assert made.a.w.is_meta


def test_attributes_of_a_parameter_survive():
    def make():
        net, weight = nn.Module(), nn.Parameter(torch.zeros(3))
        weight.no_decay = True
        net.w = weight
        return net

    assert blueprint(make).w.no_decay


def test_weights_of_any_size_can_be_built():
    made = blueprint(lambda: nn.Sequential(nn.Linear(2**20, 2**20), nn.Embedding(2**30, 2**10)))
    made.table = blueprint(lambda: nn.Parameter(torch.zeros(2**20, 2**21)))
    assert sum(p.numel() for p in made.parameters()) > 2**40
    assert made.table.is_meta


@pytest.mark.parametrize(
    ("make", "real"),
    [
        (lambda: torch.ones(2048, 2048), True),
        (lambda: torch.full((1, 1024, 1024), float("-inf")), True),
        (lambda: torch.zeros(size=(2**16,)), True),
        (lambda: torch.zeros(np.int64(3), 2), True),
        (lambda: torch.eye(64), True),
        (lambda: torch.zeros(2**18, dtype=torch.int64), True),
        (lambda: torch.zeros(2**17), False),
        (lambda: torch.ones(4096, 4096), False),
        (lambda: torch.eye(2**14), False),
        (lambda: torch.empty(3, 4), False),
        (lambda: torch.empty(3, 4).fill_(1), True),
        (lambda: torch.empty(2**17).zero_(), False),
        (lambda: torch.empty(3, 4)[0].fill_(1), False),
        (lambda: torch.normal(0.0, 1.0, (3,)), False),
        (lambda: torch.normal(torch.zeros(3), torch.zeros(3)), True),
        (lambda: torch.randn(3).cpu(), False),
        (lambda: torch.ones(3).to(torch.float64), True),
        (lambda: torch.arange(3) + torch.rand(3), False),
        (lambda: torch.stack([torch.ones(3), torch.rand(3)]), False),
    ],
)
def test_constants_are_real_and_weights_are_not(make, real):
    assert blueprint(make).is_meta != real
    if real:
        assert torch.equal(blueprint(make), make())


def test_a_real_table_is_not_written_from_a_tensor_without_values():
    with pytest.raises(RuntimeError):
        blueprint(lambda: torch.zeros(3).copy_(torch.rand(3)))


def test_the_random_state_stays():
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
    blueprint(lambda: (Everything(), random.random(), np.random.rand(), torch.randperm(4)))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()


def test_torch_is_left_as_it_was():
    def functions():
        return (
            nn.Module.__setattr__,
            nn.Module.register_parameter,
            nn.Linear.reset_parameters,
            nn.init.kaiming_uniform_,
        )

    def fail():
        nn.Linear(3, 3)
        raise ZeroDivisionError

    before = functions()
    with pytest.raises(ZeroDivisionError):
        blueprint(fail)
    blueprint(lambda: blueprint(Everything))
    assert functions() == before
    layer = nn.Linear(3, 3)
    assert not layer.weight.is_meta


def test_another_thread_initialises_its_own_modules():
    found = []

    def make():
        thread = threading.Thread(target=lambda: found.append(nn.Linear(64, 64).weight))
        thread.start()
        thread.join()
        return nn.Linear(2, 2)

    made = blueprint(make)
    assert made.weight.is_meta
    assert not found[0].is_meta
    assert 0 < found[0].abs().max() <= 1 / 8


def test_a_constructor_that_reads_weights_is_built_plainly(write_design):
    source = """
        from torch import nn
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(4, 4)
                self.largest = self.fc.weight.abs().max().item()
    """
    assert not load_design(write_design(source), (4,)).build().fc.weight.is_meta


def test_an_instance_is_copied_and_keeps_its_weights(write_design):
    design = load_design(
        write_design("from torch import nn\nmodel = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))"), (3,)
    )
    first, second = design.build(), design.build_real()
    assert first[0].weight.is_meta
    assert not first[1].running_var.is_meta
    nn.init.zeros_(second[0].weight)
    assert design.build_real()[0].weight.abs().sum() > 0


def test_a_function_that_returns_an_old_instance_does_not_lose_it():
    old = nn.Linear(3, 3)
    assert blueprint(lambda: old) is old
    assert not old.weight.is_meta


def test_a_constant_attribute_may_replace_a_parameter():
    def make():
        net = nn.Linear(3, 3)
        net.bias = None
        net.extra = None
        net.extra = nn.Linear(1, 1)
        net.note = 1
        del net.note
        net.note = nn.Parameter(torch.zeros(1))
        return net

    made = blueprint(make)
    assert made.bias is None
    assert list(dict(made.named_parameters())) == ["weight", "note", "extra.weight", "extra.bias"]


def test_who_watches_the_registration_of_modules_still_hears_of_it():
    from torch.nn.modules.module import register_module_module_registration_hook

    heard = []
    handle = register_module_module_registration_hook(lambda module, name, child: heard.append(name))
    try:
        made = blueprint(Everything)
    finally:
        handle.remove()
    assert {"conv", "bn", "head"} <= set(heard)
    assert made.conv.weight.is_meta
    assert made.position.is_meta


@pytest.mark.parametrize(
    "make",
    [
        lambda n: setattr(n, "bias", 3),
        lambda n: setattr(n, "forward", nn.Parameter(torch.zeros(1))),
        lambda n: n.register_parameter("a.b", None),
        lambda n: n.register_buffer("a.b", torch.zeros(1)),
        lambda n: n.register_buffer("weight", torch.zeros(1)),
        lambda n: n.register_buffer("forward", torch.zeros(1)),
        lambda n: n.register_buffer("b", 3),
        lambda n: nn.Module(3),
        lambda n: nn.Module.__new__(nn.Module).register_buffer("b", torch.zeros(1)),
        lambda n: setattr(nn.Module.__new__(nn.Module), "b", nn.Linear(1, 1)),
    ],
)
def test_what_a_module_refuses_is_still_refused(make):
    def built(net):
        make(net)
        return net

    for build in (lambda: built(nn.Linear(1, 1)), lambda: blueprint(lambda: built(nn.Linear(1, 1)))):
        with pytest.raises((TypeError, KeyError, AttributeError)):
            build()


@pytest.mark.parametrize(
    "name", "densenet121 regnet_y_400mf swin_t vit_b_16 googlenet convnext_tiny mobilenet_v3_small".split()
)
def test_torchvision_models_are_those_of_a_plain_construction(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = load_design(f"torchvision.models:{name}", (3, 224, 224)).build()
    real = load_design(f"torchvision.models:{name}", (3, 224, 224)).build_real()
    assert [type(m) for m in made.modules()] == [type(m) for m in real.modules()]
    assert [vars(m).keys() for m in made.modules()] == [vars(m).keys() for m in real.modules()]
    assert {k: (v.shape, v.dtype) for k, v in made.state_dict().items()} == {
        k: (v.shape, v.dtype) for k, v in real.state_dict().items()
    }
    assert all(p.is_meta for p in made.parameters())
    assert all(torch.equal(a, b) for a, b in zip(made.buffers(), real.buffers(), strict=True))


def test_a_backbone_is_not_downloaded():
    design = load_design("torchvision.models.segmentation:lraspp_mobilenet_v3_large", (3, 224, 224))
    assert isinstance(design.build(), nn.Module)


def test_every_ladder_design_of_the_repository_loads():
    files = sorted((ROOT / "models").rglob("*.py"))
    assert files
    for file in files:
        design = load_design(str(file))
        assert isinstance(design, Design)
        assert design.input_shape == (1, 28, 28)
        assert all(p.is_meta for p in design.build().parameters())
