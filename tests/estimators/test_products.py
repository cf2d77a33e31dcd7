"""Properties that only estimators have whose gradient is a product, and those that build on them."""

import pytest
import torch
from helpers.cases import each
from helpers.estimators import DIFFUSED, PRODUCTS

from taugrad.estimators import CAGE, DecoupledStraightThrough

NEW = [*PRODUCTS, *DIFFUSED, CAGE(), DecoupledStraightThrough()]


class Model(torch.nn.Module):
    def __init__(self, sample):
        super().__init__()
        self.sample = sample

    def forward(self, x):
        return self.sample(2 * x, 0.5)


@each("estimator", NEW)
def test_torch_fx_traces_it_symbolically(estimator):
    x = torch.randn(4, 5)
    model = Model(estimator.sample)
    traced = torch.fx.symbolic_trace(model)
    torch.manual_seed(0)
    z = traced(x)
    torch.manual_seed(0)
    assert torch.equal(z, model(x))


@each("estimator", NEW)
def test_a_temperature_a_row_is_that_of_each_row(estimator):
    logits = torch.randn(3, 40, 4, dtype=torch.float64, requires_grad=True)
    tau = torch.tensor([0.3, 0.7, 0.9], dtype=torch.float64).view(3, 1, 1)
    z = estimator.sample(logits.movedim(-1, 0), tau.movedim(-1, 0), dim=0).movedim(0, -1)
    g = torch.randn(4, dtype=torch.float64)
    (dx,) = torch.autograd.grad((z * g).sum(), logits)
    assert torch.isfinite(dx).all()
    torch.testing.assert_close(dx.sum(-1), torch.zeros(3, 40, dtype=torch.float64), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="tau must have one value, or one for each row"):
        estimator.sample(logits, torch.ones(4))


@each("estimator", [e for e in NEW if e not in DIFFUSED])
def test_the_gradient_is_linear_in_that_of_z(estimator):
    logits = torch.randn(30, 4, dtype=torch.float64, requires_grad=True)
    z = estimator.sample(logits, 0.6)
    a, b = torch.randn(2, 30, 4, dtype=torch.float64)
    one, other, both = (torch.autograd.grad(z, logits, g, retain_graph=True)[0] for g in (a, b, a - 3 * b))
    torch.testing.assert_close(both, one - 3 * other, rtol=0, atol=1e-13)  # and the noise of all three is the same


@each("estimator", NEW)
def test_a_batch_of_gradients_is_each_of_them(estimator):
    logits = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    z = estimator.sample(logits, 0.7)
    units = torch.eye(6, dtype=torch.float64).view(6, 2, 3)
    (batch,) = torch.autograd.grad(z, logits, units, is_grads_batched=True, retain_graph=True)
    each_alone = [torch.autograd.grad(z, logits, unit, retain_graph=True)[0] for unit in units]
    torch.testing.assert_close(batch, torch.stack(each_alone), rtol=0, atol=1e-14)


@each("estimator", PRODUCTS)
def test_a_tau_that_is_not_positive_in_a_tensor_raises(estimator):
    with pytest.raises(ValueError, match="tau must be a positive finite number, got a tensor with"):
        estimator.sample(torch.randn(2, 3), torch.tensor(-1.0))
