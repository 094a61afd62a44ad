"""What a forward is fed: shapes, tensors and plain arguments, and which dims are measured."""

import copy
import doctest
import functools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from programs import Fn
from torch import nn

import rfcalc
from rfcalc.analysis import inputs as module
from rfcalc.analysis.inputs import Inputs
from rfcalc.errors import InputError
from rfcalc.gate.cautions import cautions
from rfcalc.proof.oracle import prepare, verify

both_levels = pytest.mark.parametrize("level", [1, 2])
IMAGE = (3, 8, 8)
TOKENS = torch.rand(7, 1, 16)


def conv():
    return nn.Conv2d(3, 3, 3, padding=1)


# ------------------------------------------------------------------------------------------- shapes and layouts

LEAVES = {  # given, layout -> the tensors' shapes, and (dim, size) of every axis
    "image": (IMAGE, None, [(1, 3, 8, 8)], [(2, 8), (3, 8)]),
    "numpy's integers": ([np.int64(3), np.int32(8), 8], None, [(1, 3, 8, 8)], [(2, 8), (3, 8)]),
    "batch first, said": (IMAGE, "NCHW", [(1, 3, 8, 8)], [(2, 8), (3, 8)]),
    "shape with its batch": ((2, 3, 8, 8), "NCHW", [(2, 3, 8, 8)], [(2, 8), (3, 8)]),
    "channels last": ((8, 8, 3), "NHWC", [(1, 8, 8, 3)], [(1, 8), (2, 8)]),
    "sequence first": ((7, 16), "TNC", [(7, 1, 16)], [(0, 7)]),
    "lower case": ((7, 16), "tnc", [(7, 1, 16)], [(0, 7)]),
    "batch last": ((7, 16), "TCN", [(7, 16, 1)], [(0, 7)]),
    "tensor, sequence first": (TOKENS, "TNC", [(7, 1, 16)], [(0, 7)]),
    "tensor, the batch is the dim of 1": (TOKENS, "TC", [(7, 1, 16)], [(0, 7)]),
    "tensor, a channel of 1 is no batch": (torch.rand(5, 1, 8, 8), "CHW", [(5, 1, 8, 8)], [(2, 8), (3, 8)]),
    "tensor without a batch": (torch.rand(*IMAGE), "CHW", [IMAGE], [(1, 8), (2, 8)]),
    "signal of one dim": (torch.rand(9), "T", [(9,)], [(0, 9)]),
    "a layout fits one of two": ([IMAGE, (7, 16)], "TC", [(1, *IMAGE), (1, 7, 16)], [(2, 8), (3, 8), (1, 7)]),
    "steps and lengths": ([IMAGE, torch.tensor(5), torch.ones(4)], None, [(1, *IMAGE), (), (4,)], [(2, 8), (3, 8)]),
    "ids": (torch.zeros(2, 9, dtype=torch.long), None, [(2, 9)], [(1, 9)]),
}


@pytest.mark.parametrize("case", LEAVES)
def test_leaves_and_axes(case):
    given, layout, shapes, axes = LEAVES[case]
    inputs = Inputs.of(given, layout)
    assert [leaf.shape for leaf in inputs.leaves] == shapes
    assert [(axis.dim, axis.size) for axis in inputs.axes] == axes
    assert Inputs.of(inputs) is inputs
    args, kwargs, _ = inputs.tensors(torch.float32, "meta")
    assert [tuple(t.shape) for t in args] == shapes
    assert kwargs == {}


@pytest.mark.parametrize(
    ("given", "layout", "message"),
    [
        (None, None, "no shape found"),
        ("1x28x28", None, "no shape found"),
        (28, None, "no shape found"),
        ((), None, "no shape found"),
        ([None, 2.0], None, "no shape found"),
        ((True, 8, 8), None, "True is not a positive whole number"),
        ((3, np.True_, 8), None, "is not a positive whole number"),
        ((3, 8.0, 8), None, "8.0 is not a positive whole number"),
        ((3, np.float32(8), 8), None, "is not a positive whole number"),
        ((3, -8, 8), None, "-8 is not a positive whole number"),
        ((3, 0, 8), None, "0 is not a positive whole number"),
        ({1: IMAGE}, None, r"keys \[1\] are no names"),
        (torch.rand(8), None, "no axis to measure along.*T for a signal of one dim"),
        (torch.tensor(1.0), None, "no axis to measure along"),
        ((16,), "CN", "no axis to measure along"),
        ((7, 16), "CC", "no axis to measure along"),
        ((7, 16), "BTC", r"3 letters, but the input has 2 dims \(7, 16\); N stands for the batch"),
        ((7, 16), "TT", "T names two dims"),
        ((7, 16), "NTCN", "N names two dims"),
        ((7, 16), "T1", "one letter per dim"),
        ([IMAGE, (7, 16)], "T", "fits none of the inputs"),
    ],
)
def test_refused(given, layout, message):
    with pytest.raises(InputError, match=message):
        Inputs.of(given, layout)


# --------------------------------------------------------------------------------------------- plain arguments


@both_levels
def test_a_step_is_passed_on_as_it_is(level):
    def forward(m, sample, timestep):
        return m.conv(sample) + (m.scale * timestep)[None, :, None, None]

    model = Fn(forward, conv=conv(), scale=nn.Parameter(torch.ones(3)))
    given = {"sample": IMAGE, "timestep": torch.tensor(5.0)}
    report = rfcalc.analyze(model, given, level=level)
    assert report.rf_output == (3, 3)
    assert report.params == sum(row.params for row in report.rows) == 87
    assert report.input_shapes == (IMAGE, ())


@both_levels
@pytest.mark.parametrize("label", [torch.tensor([3]), torch.tensor(3), torch.tensor([3.0])])
def test_layers_on_labels_are_reached(label, level):
    model = Fn(
        lambda m, x, y: m.conv(x) + m.mlp(y.reshape(1, 1).float())[:, :, None, None], conv=conv(), mlp=nn.Linear(1, 3)
    )
    report = rfcalc.analyze(model, [IMAGE, label], level=level)
    assert report.rf_output == (3, 3)
    assert report.unreached == ()
    assert sum(row.params for row in report.rows) == report.params == 90


@both_levels
def test_lengths_are_structure(level):
    model = Fn(lambda m, x, n: m.line(x[:, :, : int(n[0])]), line=nn.Conv1d(2, 2, 3))
    report = rfcalc.analyze(model, [(2, 20), torch.tensor([12])], level=level)
    assert report.output_shapes == ((1, 2, 10),)
    assert report.notes == ()


def test_given_tensors_are_not_written_to():
    step = torch.tensor([1.0, 2.0])
    count = torch.tensor(3)
    rfcalc.analyze(Fn(lambda m, x, s, n: m.conv(x) * s.mul_(2).sum() * n.add_(1), conv=conv()), [IMAGE, step, count])
    assert step.tolist() == [1.0, 2.0]
    assert count.item() == 3


@both_levels
def test_plain_arguments_stay_what_they_are(level):
    def forward(m, x, *, size, flag, name, none):
        assert (size, flag, name["deep"], none) == (2, True, "text", None)
        return m.conv(x) * size

    given = {"x": IMAGE, "size": 2, "flag": True, "name": {"deep": "text"}, "none": None}
    assert rfcalc.analyze(Fn(forward, conv=conv()), given, level=level).rf_output == (3, 3)
    positional = Fn(lambda m, x, size, flag: m.conv(x) * size if flag else x, conv=conv())
    assert rfcalc.analyze(positional, [IMAGE, 2.5, True], level=level).rf_output == (3, 3)


# -------------------------------------------------------------------------------------------------- the model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.ReLU, r"ReLU is a class; pass an instance: ReLU\(\)"),
        (conv, r"is a function; pass the module that it makes: conv\(\)"),
        (functools.partial(conv), "is a function; pass the module that it makes"),
        ("models/step8.py", r"is a string; pass the module, or load_design\('models/step8.py'\)"),
        (None, "None is no module"),
    ],
)
def test_what_is_no_module(model, message):
    with pytest.raises(InputError, match=message):
        rfcalc.analyze(model, IMAGE)


# ---------------------------------------------------------------------------------------------- sequence first


@both_levels
@pytest.mark.parametrize(("given", "layout"), [(TOKENS, "TC"), (TOKENS, "TNC"), ((7, 16), "TNC")])
def test_attention_over_a_sequence_that_comes_first(given, layout, level):
    report = rfcalc.analyze(nn.TransformerEncoderLayer(16, 4, 32), given, layout=layout, level=level)
    assert report.rf_output == (7,)
    assert all(row.is_global == (True,) and row.n_out == (7,) for row in report.rows)
    assert report.macs == 4 * 7 * 16 * 16 + 2 * 7 * 7 * 16 + 2 * 7 * 16 * 32
    assert [row.ch_out for row in report.rows if row.op == "Linear"] == [32, 16]


# ------------------------------------------------------------------ what the analysis takes, the proof takes


@dataclass
class Batch:
    image: object
    name: str = "kept"


IDS, FLAGS = torch.zeros(1, 12, dtype=torch.long), torch.zeros(1, 7, dtype=torch.bool)
TABLE, PLAIN = nn.Embedding(50, 8), nn.Conv2d(3, 3, 3, padding=1)
TOKEN, MASK, SQUARE = (7, 16), torch.ones(1, 1, 8, 8).bool(), torch.ones(1, 7, 7).bool()
STEP, LABEL = torch.tensor(5.0), torch.tensor([3])
ATTEND, FIRST = nn.MultiheadAttention(16, 4, batch_first=True), nn.TransformerEncoderLayer(16, 4, 32)


def padded(m, ids):
    return m.line((m.table(ids) * (ids != 0).unsqueeze(-1)).transpose(1, 2))


def padding(m, x, flags):
    return m.attend(x, x, x, key_padding_mask=flags)[0]


TAKEN = {
    "shape": (PLAIN, IMAGE, None),
    "size": (PLAIN, torch.Size(IMAGE), None),
    "tensor": (PLAIN, torch.rand(2, *IMAGE), None),
    "half": (copy.deepcopy(PLAIN).half(), torch.rand(1, *IMAGE).half(), None),
    "no batch": (PLAIN, torch.rand(*IMAGE), "CHW"),
    "sequence first": (FIRST, (7, 16), "TNC"),
    "sequence first, tensor": (FIRST, torch.rand(7, 1, 16), "TC"),
    "nested": (Fn(lambda m, x: m.conv(x[0] + x[1]["k"]), conv=PLAIN), [(IMAGE, {"k": IMAGE, "scale": 2})], None),
    "dataclass": (Fn(lambda m, x: m.conv(x.image) if x.name == "kept" else None, conv=PLAIN), Batch(IMAGE), None),
    "step": (Fn(lambda m, x, t: m.conv(x) * t, conv=PLAIN), [IMAGE, STEP], None),
    "keywords": (Fn(lambda m, *, x, t: m.conv(x) * t, conv=PLAIN), {"x": IMAGE, "t": STEP}, None),
    "label": (
        Fn(lambda m, x, y: m.conv(x) + m.table(y)[:, :3, None, None], conv=PLAIN, table=TABLE), [IMAGE, LABEL], None
    ),
    "ids by shape": (nn.Sequential(TABLE, nn.Linear(8, 8)), (12,), None),
    "ids": (nn.Sequential(TABLE, nn.LSTM(8, 4, batch_first=True)), IDS, None),
    "short ids": (Fn(lambda m, ids: m.table(ids.long()), table=TABLE), IDS.int(), None),
    "ids and padding": (Fn(padded, table=TABLE, line=nn.Conv1d(8, 8, 3)), IDS + 1, None),
    "shifted ids": (Fn(lambda m, ids: m.table((ids + 1) % 50), table=TABLE), IDS, None),
    "bag": (nn.EmbeddingBag(50, 8), IDS, None),
    "one hot": (Fn(lambda m, ids: F.one_hot(ids, 9).double() @ torch.ones(9, 4, dtype=torch.double)), IDS, None),
    "selected": (Fn(lambda m, ids: torch.ones(9, 4).index_select(0, ids.view(-1)).view(1, 12, 4)), IDS, None),
    "bytes": (Fn(lambda m, x: m.conv(x.float() / 255), conv=PLAIN), torch.zeros(1, *IMAGE, dtype=torch.uint8), None),
    "flags": (Fn(lambda m, x, k: m.conv(x).masked_fill(~k, 0), conv=PLAIN), [IMAGE, MASK], None),
    "padding flags": (Fn(padding, attend=ATTEND), [TOKEN, FLAGS], None),
    "attention flags": (Fn(lambda m, x, k: F.scaled_dot_product_attention(x, x, x, k)), [TOKEN, SQUARE], None),
    "complex": (Fn(lambda m, x: m.conv(x.real), conv=PLAIN), torch.rand(1, *IMAGE, dtype=torch.complex64), None),
}  # fmt: skip


@pytest.mark.parametrize("case", TAKEN)
def test_what_the_analysis_takes(case):
    model, given, layout = TAKEN[case]
    report = rfcalc.analyze(model.eval(), given, layout=layout)
    checks = list(verify(model, given, report, layout=layout))
    assert [c for c in checks if not c.agrees] == []
    assert any(c.measured is not None for c in checks)


def test_another_input_or_layout_is_told():
    report = rfcalc.analyze(FIRST, (7, 16), layout="TNC")
    with pytest.raises(InputError, match="another input or layout"):
        prepare(FIRST, (7, 16), report)


MODULES = [
    nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32), 2, enable_nested_tensor=False),
    nn.LSTM(16, 8),
    nn.GRU(16, 8),
    nn.Sequential(nn.Linear(16, 16), nn.RNN(16, 8)),
]


@both_levels
@pytest.mark.parametrize("model", MODULES, ids=["transformer", "lstm", "gru", "rnn behind a layer"])
@pytest.mark.parametrize(
    ("given", "layout", "said"),
    [
        ((7, 16), "TC", True), ((7, 16), None, True), (torch.rand(2, 7, 16), "TC", True),
        ((7, 16), "TNC", False), (torch.rand(7, 2, 16), "TNC", False), (TOKENS, "TC", False),
        (torch.rand(7, 16), "TC", False),
    ],
)  # fmt: skip
def test_a_batch_that_would_be_read_as_time_is_noted(model, given, layout, said, level):
    notes = rfcalc.analyze(model, given, layout=layout, level=level).notes
    assert [note for note in notes if "7 positions do not see each other" in note and "layout TNC" in note] == list(
        notes
    )
    assert len(notes) == said


@pytest.mark.parametrize("module", [nn.LSTM(16, 8, batch_first=True), nn.MultiheadAttention(16, 4, batch_first=True)])
def test_a_module_that_takes_the_batch_first_is_not_blamed(module):
    model = Fn(lambda m, x: m.part(*[x] * (3 if isinstance(module, nn.MultiheadAttention) else 1))[0], part=module)
    assert rfcalc.analyze(model, (7, 16), layout="TC").notes == ()


def test_a_map_is_made_a_sequence_that_comes_first():
    def forward(m, x):
        tokens = m.patches(x).flatten(2).permute(2, 0, 1)
        return m.attend(tokens, tokens, tokens)[0]

    model = Fn(forward, patches=nn.Conv2d(3, 16, 4, 4), attend=nn.MultiheadAttention(16, 4))
    assert rfcalc.analyze(model, (3, 32, 32)).notes == ()


@both_levels
def test_an_image_without_a_batch(level):
    report = rfcalc.analyze(nn.Sequential(conv(), nn.ReLU()), torch.rand(*IMAGE), layout="CHW", level=level)
    assert report.notes == ()
    assert [(row.grid, row.n_out, row.ch_out, row.r_out) for row in report.rows] == [((1, 2), (8, 8), 3, (3, 3))] * 2


# ------------------------------------------------------------------------------------------ channels forgotten


FORGOTTEN = {
    "image": (nn.Conv2d(1, 4, 3), (28, 28), None, "1x28x28"),
    "signal": (nn.Conv1d(1, 4, 3), (28,), None, "1x28"),
    "volume": (nn.Conv3d(1, 4, 3), (8, 28, 28), None, "1x8x28x28"),
    "transposed": (nn.ConvTranspose2d(1, 4, 3), (28, 28), None, "1x28x28"),
    "later": (nn.Sequential(nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(1, 4, 3)), (28, 28), None, "1x28x28"),
    "functional": (Fn(lambda m, x: F.conv2d(x, torch.ones(1, 1, 3, 3))), (28, 28), None, "1x28x28"),
    "tensor": (nn.Conv2d(3, 4, 3), torch.rand(3, 28, 28), None, "3x28x28"),
    "right": (nn.Conv2d(1, 4, 3), (1, 28, 28), None, None),
    "said": (nn.Conv2d(1, 4, 3), (28, 28), "HW", None),
    "made in the forward": (Fn(lambda m, x: m.conv(x.unsqueeze(1)), conv=nn.Conv2d(1, 4, 3)), (28, 28), None, None),
    "batch left out in the forward": (Fn(lambda m, x: m.conv(x[0]), conv=nn.Conv2d(1, 4, 3)), (1, 28, 28), None, None),
}


@both_levels
@pytest.mark.parametrize("case", FORGOTTEN)
def test_a_forgotten_channel_is_noted(case, level):
    model, given, layout, likely = FORGOTTEN[case]
    report = rfcalc.analyze(model, given, layout=layout, level=level)
    found = [caution for caution in cautions(report) if caution.kind == "input"]
    assert tuple(caution.message for caution in found) == report.notes
    assert [note.split(": ")[-1] for note in report.notes] == ([f"{likely} is likely meant"] if likely else [])


def test_a_forgotten_channel_that_torch_refuses():
    with pytest.raises(rfcalc.ForwardError, match="the input 28x28 has one dim too few, 3x28x28 is likely meant"):
        rfcalc.analyze(nn.Sequential(nn.Conv2d(3, 4, 3)), (28, 28))


def test_examples():
    assert doctest.testmod(module).failed == 0
