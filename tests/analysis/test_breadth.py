"""Every name torchvision knows is analysed, with torch's own parameter total and output shape and no unknown op."""

import pytest
import torch
from torch import Tensor

import rfcalc

models = pytest.importorskip("torchvision.models")

DETECTORS = ("rcnn", "retinanet", "fcos", "ssd")
VIDEO = ("mc3_18", "r2plus1d_18", "r3d_18", "s3d", "mvit", "swin3d")
# The smallest inputs these accept; the others take 64x64.
SIZES = {"alexnet": 80, "squeezenet": 80, "inception": 96, "quantized_inception": 96, "maxvit": 224, "swin": 96}


def input_of(name, model):
    """The shapes without batch that a model of this name takes."""
    if name.startswith("raft"):
        return ((3, 128, 128), (3, 128, 128))
    if name == "s3d":
        return (3, 16, 224, 224)
    if name.startswith("mvit"):
        return (3, 16, 224, 224)
    if name.startswith(VIDEO):
        return (3, 8, 64, 64)
    if name.startswith("vit"):
        return (3, model.image_size, model.image_size)
    size = next((n for start, n in SIZES.items() if name.startswith(start)), 64)
    return (3, size, size)


def outputs_of(name, shape):
    """The output shapes (of the first output) that torchvision documents for its defaults."""
    if name.startswith("raft"):
        return (1, 2, *shape[0][1:])
    if any(s in name for s in ("deeplabv3", "fcn_", "lraspp")):
        return (1, 21, *shape[1:])
    return (1, 400 if name.startswith(VIDEO) else 1000)


def design_of(name):
    source = models.get_model_builder(name)
    return rfcalc.load_design(f"{source.__module__}:{source.__name__}")


@pytest.mark.parametrize("name", [n for n in models.list_models() if not any(d in n for d in DETECTORS)])
def test_analysed_without_values(name):
    model = design_of(name).build()
    shape = input_of(name, model)
    report = rfcalc.analyze(model, shape, name=name)
    assert report.params == sum(p.numel() for p in model.parameters())
    assert report.params == sum(row.params for row in report.rows) + sum(n for _, n in report.unreached)
    assert report.approximate_ops == ()
    assert report.notes == ()
    assert all(row.exact for row in report.rows)
    assert report.output_shapes[0] == outputs_of(name, shape)
    assert min(report.coverage) > 0.8  # some strides leave the last pixels out


def small(model):
    """A detector that does not enlarge its input, and keeps every detection."""
    model.transform.min_size, model.transform.max_size = (96,), 96
    if model.transform.fixed_size is not None:
        model.transform.fixed_size = (300, 300)
    for part in (model, getattr(model, "roi_heads", model)):
        part.score_thresh = 0.0
    return model


@pytest.mark.parametrize("name", [n for n in models.list_models() if any(d in n for d in DETECTORS)])
def test_detectors_run_on_values(name):
    design = design_of(name)
    model = small(design.build())
    image = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))
    report = rfcalc.analyze(model, [[image]], name=name)
    assert report.params == sum(p.numel() for p in model.parameters())
    assert report.approximate_ops == ()
    assert any("needs values" in note for note in report.notes)
    boxes = report.output_shapes[0]
    assert boxes[1] == 4
    assert boxes[0] > 0
    assert all(shape[0] == boxes[0] for shape in report.output_shapes)
    assert not any("does not depend" in note for note in report.notes)


def forward_shapes(model, shape):
    shapes = shape if isinstance(shape[0], tuple) else (shape,)
    with torch.no_grad():
        out = model.eval().to("meta")(*(torch.empty(1, *s, device="meta") for s in shapes))
    out = list(out.values()) if isinstance(out, dict) else out if isinstance(out, list | tuple) else [out]
    return tuple(tuple(t.shape) for t in out if isinstance(t, Tensor))


@pytest.mark.parametrize(
    "name",
    "resnet18 densenet121 swin_t swin_v2_t vit_b_32 maxvit_t fcn_resnet50 lraspp_mobilenet_v3_large r3d_18 mvit_v2_s "
    "raft_small googlenet shufflenet_v2_x0_5 efficientnet_b0".split(),
)
def test_output_shapes_are_those_of_a_forward_at_both_levels(name):
    model = design_of(name).build()
    shape = input_of(name, model)
    fast, slow = (rfcalc.analyze(model, shape, level=level) for level in (2, 1))
    assert fast.output_shapes == forward_shapes(model, shape)
    assert fast.to_dict() == slow.to_dict()  # the peak of live activations too
