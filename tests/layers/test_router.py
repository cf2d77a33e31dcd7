"""Routing against the dense mixture of all experts, its balance loss, and what an expert sees."""

import copy

import pytest
import torch
from helpers.cases import each
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from taugrad.estimators import RLOO, GumbelSoftmax, STGumbelSoftmax, StraightThrough
from taugrad.layers import Router

D, E = 4, 5


def router(k=1, estimator=None, dtype=torch.float64):
    experts = [nn.Sequential(nn.Linear(D, 6), nn.SiLU(), nn.Linear(6, 3)) for _ in range(E)]
    return Router(D, experts, k, estimator).to(dtype)


def dense(layer, x, indices, training):
    """The same by all experts: weights (..., E) that are zero where an expert was not chosen."""
    logits = x @ layer.gate.weight.T
    k_hot = torch.zeros_like(logits).scatter(-1, indices, 1.0)
    if layer.estimator is not None:
        weights = k_hot
        if training:  # straight-through's gradient, of the chosen expert's weight alone
            p = logits.softmax(-1)
            weights = k_hot * (1 + p - p.detach())
    elif layer.k == 1:
        weights = k_hot * logits.softmax(-1)
    else:
        weights = (logits.exp() * k_hot) / (logits.exp() * k_hot).sum(-1, keepdim=True)
    outputs = torch.stack([expert(x) for expert in layer.experts], -1)
    f, P = k_hot.flatten(0, -2).mean(0) / layer.k, logits.softmax(-1).flatten(0, -2).mean(0)
    return (outputs * weights.unsqueeze(-2)).sum(-1), E * torch.dot(f, P)


@each("k, estimator", [(1, None), (2, None), (5, None), (1, StraightThrough())])
def test_output_loss_and_every_gradient_are_those_of_the_dense_mixture(k, estimator):
    for training in (True, False):
        layer = router(k, estimator).train(training)
        x = torch.randn(2, 7, D, dtype=torch.float64, requires_grad=True)
        y, indices, loss = layer(x)
        expected, expected_loss = dense(layer, x, indices, training)
        assert indices.shape == (2, 7, k)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(loss, expected_loss)
        w = torch.randn_like(y)
        leaves = [x, *layer.parameters()]
        ours = torch.autograd.grad((y * w).sum() + loss, leaves)
        torch.testing.assert_close(ours, torch.autograd.grad((expected * w).sum() + expected_loss, leaves))


def test_an_expert_sees_exactly_the_rows_that_chose_it_and_evaluation_takes_the_most_probable():
    seen = {}

    class Seeing(nn.Module):
        def __init__(self, i):
            super().__init__()
            self.i = i

        def forward(self, x):
            seen[self.i] = x
            return x

    layer = Router(D, [Seeing(i) for i in range(E)], k=2)
    x = torch.randn(30, D)
    for mode in (True, False):
        _, indices, _ = layer.train(mode)(x)
        for i in range(E):
            assert torch.equal(seen[i], x[(indices == i).any(-1)])
        assert (indices[:, 0] != indices[:, 1]).all()
    assert torch.equal(indices, layer.gate(x).topk(2).indices)
    with torch.no_grad():
        layer.gate.weight.zero_()[3] = 100 * torch.ones(D)
    layer(torch.ones(7, D))
    assert len(seen[3]) == 7
    assert sum(len(rows) for rows in seen.values()) == 14


def test_the_loss_is_1_for_balanced_experts_and_e_for_one():
    layer = Router(E, [nn.Identity()] * E).double().eval()
    with torch.no_grad():
        layer.gate.weight.copy_(50 * torch.eye(E))
    torch.testing.assert_close(layer(torch.eye(E).double()).loss, torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(layer(torch.eye(E).double()[:1]).loss, torch.tensor(float(E), dtype=torch.float64))


@each("k, estimator", [(2, None), (1, STGumbelSoftmax())])
def test_a_router_works_in_every_dtype_and_under_autocast(k, estimator):
    layer = router(k, estimator, torch.float32)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        y, _, loss = copy.deepcopy(layer).to(dtype)(torch.randn(6, D, dtype=dtype))
        assert y.dtype == dtype
        assert torch.isfinite(loss)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(6, D)).output.dtype == torch.bfloat16


@pytest.mark.command
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own, where a program goes on after its break
def test_a_router_compiles_with_a_break_and_exports_whole():
    layer = Router(D, [nn.Linear(D, 3), nn.Linear(D, 3)], k=2).eval()
    x = torch.randn(6, D)
    torch.testing.assert_close(torch.compile(layer, backend="eager")(x), layer(x))
    program = torch.export.export(layer, (x,)).module()
    for rows in (x, torch.randn(6, D)):
        torch.testing.assert_close(program(rows), tuple(layer(rows)))


def test_every_expert_has_a_gradient_under_ddp_also_one_that_no_row_chose():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        layer = router(dtype=torch.float32)
        model = DistributedDataParallel(layer)
        for _ in range(2):  # the second raises if the first left parameters out
            y, indices, loss = model(torch.randn(2, D))
            (y.sum() + loss).backward()
        assert len(indices.unique()) < E
        assert all(p.grad is not None for p in layer.parameters())
    finally:
        torch.distributed.destroy_process_group()


def test_what_a_router_cannot_take_gets_a_sentence():
    two = [nn.Identity(), nn.Identity()]
    for arguments, error, sentence in [
        ((D, two[:1]), ValueError, "the number of experts must be at least 2, got 1"),
        ((D, two, 3), ValueError, "k must be at most 2, the number of experts, got 3"),
        ((D, two, 0), ValueError, "k must be at least 1, got 0"),
        ((0, two), ValueError, "features must be at least 1, got 0"),
        ((D, 4), TypeError, "experts must be a sequence of modules, got int"),
        ((D, two, 1, RLOO(2)), TypeError, "estimator must be a pathwise estimator"),
        ((D, two, 2, GumbelSoftmax()), ValueError, "estimator must be None for k > 1"),
    ]:
        with pytest.raises(error, match=sentence):
            Router(*arguments)
    with pytest.raises(ValueError, match=r"x must have features = 4 last, got shape \(2, 3\)"):
        Router(D, two)(torch.zeros(2, 3))
    for x in (torch.zeros(2, D).half(), torch.zeros(2, D).long(), [0.0] * D):
        with pytest.raises(TypeError, match=r"x must be a tensor of torch\.float32, as the router's weights are, got"):
            Router(D, two)(x)
    with pytest.raises(ValueError, match=r"experts must give outputs of one shape, got \(2,\), \(4,\)"):
        Router(D, [nn.Identity(), nn.Linear(D, 2)])(torch.zeros(2, D))
    assert Router(D, nn.Sequential(*two)).double()(torch.zeros(2, D).double()).output.shape == (2, D)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=r"got torch\.float64"):
        Router(D, two)(torch.zeros(2, D).double())
    empty = Router(D, two)(torch.zeros(0, D))
    assert (empty.output.shape, empty.loss.item()) == ((0, D), 0)
    for mode in (True, False):
        with pytest.raises(ValueError, match="logits must have a finite entry in every row and no NaN"):
            Router(D, two).train(mode)(torch.full((2, D), torch.nan))
