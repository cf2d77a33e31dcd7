"""Rows of a table by a sample: value, gradients and classes of `sample @ weight`, for every pathwise estimator."""

import pytest
import torch
from helpers.cases import each
from helpers.estimators import PATHWISE

from taugrad import Pathwise


class Own(Pathwise):
    """Estimator with the documented signature and nothing more."""

    def sample(self, logits, tau, *, generator):
        return (logits / tau).softmax(-1)


@pytest.mark.usefixtures("backend")
@each("estimator", [*PATHWISE, Own()])
@each("tau", [1.0, 0.7])
def test_it_is_the_sample_times_the_table_with_its_gradients(estimator, tau):
    logits = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    e, index = estimator.embedding(logits, weight, tau)
    grad = torch.randn_like(e)
    found = torch.autograd.grad(e, (logits, weight), grad)
    torch.manual_seed(3)
    z = estimator.sample(logits, tau, generator=None)
    expected = z @ weight
    torch.testing.assert_close(e, expected)
    assert torch.equal(index, z.argmax(-1))
    assert not index.requires_grad
    for one, other in zip(found, torch.autograd.grad(z @ weight, (logits, weight), grad), strict=True):
        torch.testing.assert_close(one, other)
