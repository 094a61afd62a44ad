"""Networks as ONNX models: what they answer beside torch, what they tell of themselves, and what cannot be exported."""

import json
import math

import onnx
import pytest
import torch
from torch import nn

from rfcalc.errors import ForwardError, InputError, RfcalcError
from rfcalc.train import export
from rfcalc.train.export import Checked, Export
from rfcalc.train.inference import Normal
from rfcalc.train.weights import About

SHAPE = (1, 8, 8)


def network():
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(36, 10), nn.LogSoftmax(1),
    )  # fmt: skip
    for _ in range(3):
        model(torch.randn(50, *SHAPE) * 3 + 1)  # statistics that matter
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def content(model):
    return export.exported(model, SHAPE, {"mean": "[0.5]", "design": "net.py:Net"})


def test_it_answers_as_torch_does_for_any_number_of_images(model, content):
    found = export.compared(model, content, SHAPE)
    assert (found.what, found.images) == ("random inputs", 64)
    assert found.difference < 1e-5
    for count in (1, 2, 5, 700):
        assert export.difference(model, content, torch.randn(count, *SHAPE)) < 1e-5


def test_what_it_tells_of_itself(content):
    proto = onnx.load_from_string(content)
    onnx.checker.check_model(proto)
    assert {one.key: one.value for one in proto.metadata_props} == {"mean": "[0.5]", "design": "net.py:Net"}
    (given,), (answer,) = proto.graph.input, proto.graph.output
    assert (given.name, answer.name) == ("images", "scores")
    assert [dim.dim_value for dim in given.type.tensor_type.shape.dim] == [0, 1, 8, 8]
    assert given.type.tensor_type.shape.dim[0].dim_param


def test_other_weights_differ(model, content):
    other = network()
    with torch.no_grad():
        other[6].bias[3] += 0.25
    images = torch.randn(4, *SHAPE)
    other[7], plain = nn.Identity(), network()
    plain[7] = nn.Identity()
    made = export.exported(plain, SHAPE, {})
    assert export.difference(other, made, images) == pytest.approx(0.25, abs=1e-5)


def test_what_is_not_a_number_differs_infinitely(content):
    broken = network()
    with torch.no_grad():
        broken[6].bias[3] = float("nan")
    found = Checked("random inputs", 4, export.difference(broken, content, torch.randn(4, *SHAPE)))
    assert math.isinf(found.difference)
    assert not found.finite


def test_dropout_that_never_stops_is_found(model):
    class Restless(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x.flatten(1))

    restless = Restless().eval()
    assert export.compared(restless, export.exported(restless, SHAPE, {}), SHAPE).difference > 0.5


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_a_norm_written_out_is_the_norm(kind, affine):
    norm = kind(3, affine=affine)
    sample = torch.randn(9, 3, *[5] * (1 if kind is nn.BatchNorm1d else 2))
    norm(sample * 2 + 1)
    norm.eval()
    found, *rest = export._norm(sample, norm.weight, norm.bias, norm.running_mean, norm.running_var, 0.1, norm.eps)
    torch.testing.assert_close(found, norm(sample))
    assert [one.numel() for one in rest] == [0, 0]


def test_an_exporter_that_cannot_do_norms(model, monkeypatch):
    """As that of torch 2.6 with an onnxscript of today."""
    real = torch.onnx.export

    def older(program, *arguments, **options):
        if isinstance(program, nn.Module):
            raise AttributeError("'tuple' object has no attribute 'dtype'")
        assert not [n for n in program.graph.nodes if "batch_norm" in str(n.target)]
        return real(program, *arguments, **options)

    monkeypatch.setattr(torch.onnx, "export", older)
    made = export.exported(model, SHAPE, {})
    assert export.compared(model, made, SHAPE).difference < 1e-5


class Fixed(nn.Module):
    def forward(self, x):
        return x.reshape(2, 64)


class Raising(nn.Module):
    def forward(self, x):
        raise ValueError("not\ntoday")


class Two(nn.Module):
    def forward(self, x):
        return x, x


class Beyond(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x).abs()


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (Fixed(), RfcalcError, "exports the design for exactly 2 inputs at once: its forward fixes their number or"),
        (Raising(), ForwardError, "the design's forward raised ValueError: not on (2, 1, 8, 8)"),
        (Two(), InputError, "the design's output is tuple; expected one tensor"),
        (Beyond(), RfcalcError, "cannot export the design to ONNX: "),
    ],
)
def test_what_cannot_be_exported(model, error, message, capfd):
    with pytest.raises(error) as raised:
        export.exported(model.eval(), SHAPE, {})
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_run(model):
    with pytest.raises(RfcalcError, match=r"onnxruntime cannot run the model on \(1, 1, 8, 8\): "):
        export.difference(model, b"no model", torch.zeros(1, *SHAPE))


def test_answers_of_another_shape(content):
    with pytest.raises(RfcalcError, match=r"onnxruntime's answer is \(2, 10\); expected \(2, 64\), as torch's"):
        export.difference(nn.Flatten(), content, torch.zeros(2, *SHAPE))


def test_properties_are_text():
    about = About(design="net.py:Net", weights="ema", seed=3, epoch=15, classes=("a", "b"))
    found = export.properties(about, Normal((0.25,), (0.5,), "as in training"))
    assert found == {
        "design": "net.py:Net", "weights": "ema", "seed": "3", "epoch": "15", "classes": '["a", "b"]', "mean": "[0.25]",
        "std": "[0.5]",
    }  # fmt: skip
    assert all(json.loads(found[key]) for key in ("classes", "mean", "std"))
    assert export.properties(About(), None) == {}


@pytest.mark.parametrize(
    ("differences", "fine"), [((0.0,), True), ((0.1, 0.1), True), ((0.1, 0.2), False), ((math.inf,), False)]
)
def test_every_difference_counts(differences, fine):
    checks = tuple(Checked("inputs", 1, one) for one in differences)
    assert Export("f", 1, "d", "p", About(), SHAPE, None, checks, 0.1).fine is fine
