"""A forward that differentiates is run with torch's graph, and left without a trace of it."""

from __future__ import annotations

import pytest
import torch
from programs import Apply
from torch import nn

import rfcalc
from rfcalc.proof.oracle import prepare

both_levels = pytest.mark.parametrize("level", [1, 2])
IMAGE = (1, 12, 12)


def net(function, layer=None):
    return Apply(function, m=layer or nn.Conv2d(1, 2, 3))


def energy(m):
    return lambda y: torch.tanh(m(y)).sum()


def linearized(x, m):
    _, along = torch.func.linearize(lambda y: torch.tanh(m(y)), x)
    return along(torch.ones_like(x))


# What a transform of torch.func works on has no gradient of its own: the oracle measures what goes on outside of it.
TRANSFORMS = {
    "grad": (lambda x, m: torch.func.grad(energy(m))(x), 5),
    "grad_and_value": (lambda x, m: torch.func.grad_and_value(energy(m))(x)[0], 5),
    "vjp": (lambda x, m: torch.func.vjp(energy(m), x)[1](x.new_ones(()))[0], 5),
    "jvp": (lambda x, m: torch.func.jvp(lambda y: torch.tanh(m(y)), (x,), (torch.ones_like(x),))[1], 3),
    "jacrev": (lambda x, m: torch.func.jacrev(lambda y: torch.tanh(m(y)).sum((2, 3)))(x)[0, 0], 5),
    "linearize": (linearized, 3),
}


@pytest.mark.filterwarnings("ignore")
@both_levels
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name, level):
    function, r = TRANSFORMS[name]
    report = rfcalc.analyze(net(function), IMAGE, level=level)
    assert report.rf_output == (r, r)
    assert report.approximate_ops == ()
    assert report.notes == ()


def test_what_a_transform_wraps_is_not_measured():
    model = net(TRANSFORMS["vjp"][0])
    report = rfcalc.analyze(model, IMAGE)
    oracle = prepare(model, IMAGE, report)
    assert all(check.agrees for check in oracle.check(report))
    assert "grad" in oracle.unmeasured(report)


@both_levels
def test_a_constant_gradient(level):
    def forward(x, m):
        return torch.autograd.grad(m(x.requires_grad_()).sum(), x)[0]

    report = rfcalc.analyze(net(forward), IMAGE, level=level)
    assert report.notes == ("the output does not depend on the input",)


@both_levels
@pytest.mark.parametrize("enabled", [True, False])
def test_gradients_are_on_where_the_forward_needs_them(enabled, level):
    def forward(x, m):
        with torch.set_grad_enabled(enabled or torch.is_grad_enabled()):
            return torch.autograd.grad(energy(m)(x.requires_grad_()), x)[0]

    assert rfcalc.analyze(net(forward), IMAGE, level=level).rf_output == (5, 5)


@both_levels
def test_gradients_of_the_weights_are_put_back(level):
    def forward(x, m):
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            energy(m)(leaf).backward()
        return leaf.grad

    layer = nn.Conv2d(1, 2, 3)
    layer.weight.grad = kept = torch.ones_like(layer.weight)
    assert rfcalc.analyze(net(forward, layer), IMAGE, level=level).rf_output == (5, 5)
    assert layer.weight.grad is kept
    assert bool((kept == 1).all())
    assert layer.bias.grad is None
    assert layer.weight.requires_grad


@both_levels
def test_a_gradient_that_a_forward_guards(level):
    def forward(x, m):
        try:
            torch.set_grad_enabled(True)
            return torch.autograd.grad(energy(m)(x.requires_grad_()), x)[0]
        except Exception:
            return m(x)

    assert rfcalc.analyze(net(forward), IMAGE, level=level).rf_output == (5, 5)


@both_levels
def test_a_backward_of_ones_own(level):
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return grad * 3 * x**2

    def forward(x, m):
        return torch.autograd.grad(Cube.apply(m(x.requires_grad_())).sum(), x)[0]

    report = rfcalc.analyze(net(forward), IMAGE, level=level)
    assert report.rf_output == (5, 5)
    assert report.approximate_ops == ()


@both_levels
def test_a_derivative_without_a_rule_is_named(level):
    def forward(x, m):
        y = m(x.requires_grad_())
        return torch.autograd.grad(torch.cdist(y[:, 0], y[:, 1]).sum(), x)[0]

    report = rfcalc.analyze(net(forward), IMAGE, level=level)
    assert report.approximate_ops == ("_cdist_backward",)
    assert not report.rows[-1].exact
