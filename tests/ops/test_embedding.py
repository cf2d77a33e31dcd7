import math

import pytest
import torch
from helpers.cases import each
from torch import Tensor, nn

from taugrad.ops import embedding as module
from taugrad.ops._sampling import sample
from taugrad.ops.embedding import embedding
from taugrad.ops.onehot import Relaxation

RELAXATIONS = [Relaxation.PERTURBED, Relaxation.PLAIN, Relaxation.GAPPED, Relaxation.MARKED]
GAP = 0.5


def codes(weight: Tensor, e: Tensor) -> Tensor:
    """The rows of a table that e (..., D) are."""
    return (e.unsqueeze(-2) == weight).all(-1).to(weight.dtype)


@pytest.mark.usefixtures("backend")
@each("relaxation", RELAXATIONS)
@each("dim", [-1, 1])
def test_it_is_a_hard_sample_times_the_table_with_its_gradients(relaxation, dim):
    x = torch.randn(5, 7, 3, dtype=torch.float64).movedim(1, dim).contiguous().requires_grad_()
    weight = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    e = embedding(x, weight, 0.7, dim, relaxation, gap=GAP)
    torch.manual_seed(3)
    z = sample(x, 0.7, dim, relaxation, gap=GAP)  # the same seed in a single share
    expected = (z.movedim(dim, -1) @ weight).movedim(-1, dim)
    assert e.is_contiguous()
    torch.testing.assert_close(e, expected)
    grad = torch.randn_like(e)
    for found, right in zip(
        torch.autograd.grad(e, (x, weight), grad), torch.autograd.grad(expected, (x, weight), grad), strict=True
    ):
        assert found.is_contiguous()
        torch.testing.assert_close(found, right)


@each("relaxation", RELAXATIONS)
def test_in_shares_each_has_noise_of_its_own_and_the_same_in_the_backward(relaxation, monkeypatch):
    x = torch.zeros(64, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.eye(6, dtype=torch.float64)
    monkeypatch.setattr(module, "_SHARE", 6 * 10)  # 7 shares, the last one short
    z = embedding(x, weight, 0.7, relaxation=relaxation, gap=GAP)
    index = z.argmax(-1)
    assert not torch.equal(index[:10], index[10:20])
    # At equal logits the largest gradient of <z, drawn> is the drawn class's, if the noise is the one that drew it.
    (dx,) = torch.autograd.grad((z * z.detach()).sum(), x)
    assert torch.equal(dx.argmax(-1), index)


@pytest.mark.usefixtures("backend")
def test_half_precision_masks_and_a_table_that_is_a_parameter():
    x = torch.randn(40, 9, dtype=torch.float16)
    x[:, 3] = -math.inf
    x.requires_grad_()
    table = nn.Embedding(9, 5)
    e = embedding(x, table.weight, 0.7)
    assert e.dtype is torch.float32
    e.square().sum().backward()
    assert x.grad.dtype is torch.float16
    assert (x.grad[:, 3] == 0).all()
    assert (table.weight.grad[3] == 0).all()
    drawn = codes(table.weight, e).sum(0) > 0
    assert torch.equal(table.weight.grad.abs().sum(-1) > 0, drawn)


@pytest.mark.usefixtures("backend")
def test_a_temperature_may_learn_or_differ_between_rows():
    x, weight = torch.randn(40, 9), torch.randn(9, 5)
    for tau in (torch.tensor(0.7, requires_grad=True), torch.full((40, 1), 0.7, requires_grad=True)):
        embedding(x, weight, tau).square().sum().backward()
        assert (tau.grad != 0).all()


@pytest.mark.usefixtures("backend")
@each("rows", [(), (0,), (4,), (2, 0, 3)])
@each("D", [0, 1, 5])
def test_no_rows_and_no_columns_are_no_error(rows, D):
    x, weight = torch.zeros(*rows, 9, requires_grad=True), torch.randn(9, D, requires_grad=True)
    e = embedding(x, weight)
    assert e.shape == (*rows, D)
    e.sum().backward()
    assert (x.grad.shape, weight.grad.shape) == (x.shape, weight.shape)


@pytest.mark.usefixtures("binding")
@each(
    "shape, dim, dtype",
    [((64, 1024), -1, torch.float32), ((64, 1024), -1, torch.bfloat16), ((8, 1024, 8), 1, torch.float32)],
)
def test_neither_samples_nor_their_gradients_are_there_whole(shape, dim, dtype, monkeypatch):
    N, K, D = 64, 1024, 4
    monkeypatch.setattr(module, "_SHARE", 4 * K)
    x, weight = torch.randn(shape, dtype=dtype, requires_grad=True), torch.randn(K, D, requires_grad=True)
    saved = []

    def keep(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile,
    ):
        embedding(x, weight, dim=dim).sum().backward()
    largest = sorted(event.self_cpu_memory_usage for event in profile.events())
    assert 0 < largest[-2] <= 4 * max(N * D, 4 * K)
    assert largest[-1] <= x.nbytes  # dx
    assert sum(t.numel() for t in saved if t is not x and t is not weight) <= N + 1  # an index a row, and a seed


@pytest.mark.usefixtures("backend")
@each("relaxation", RELAXATIONS)
@each("dim", [-1, 1])
def test_a_batch_of_gradients_is_taken_at_once(relaxation, dim, monkeypatch):
    monkeypatch.setattr(module, "_SHARE", 6 * 10)
    x = torch.randn(3, 9, 6, dtype=torch.float64).movedim(-1, dim).contiguous().requires_grad_()
    weight = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    e = embedding(x, weight, 0.7, dim, relaxation, gap=GAP)
    grads = torch.randn(4, *e.shape, dtype=torch.float64)
    batch = torch.autograd.grad(e, (x, weight), grads, is_grads_batched=True, retain_graph=True)
    for i, grad in enumerate(grads):
        for found, right in zip(batch, torch.autograd.grad(e, (x, weight), grad, retain_graph=True), strict=True):
            torch.testing.assert_close(found[i], right)


def test_autocast_changes_no_dtype():
    x, weight = torch.randn(4, 3), torch.randn(3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        for tau in (0.5, torch.tensor(0.5, requires_grad=True)):
            assert embedding(x, weight, tau).dtype is torch.float32


def test_bad_input_gets_a_sentence():
    with pytest.raises(TypeError, match="weight must be a floating-point tensor, got list"):
        embedding(torch.zeros(2, 3), [[1.0], [2.0], [3.0]])
    x, weight = torch.zeros(4, 3), torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"weight must have shape \(3, D\), a row for each class, got \(2, 3\)"):
        embedding(x, weight.T)
    with pytest.raises(TypeError, match=r"weight must be a floating-point tensor, got torch.int64"):
        embedding(x, weight.long())
    with pytest.raises(ValueError, match="tau must be a positive finite number, got 0"):
        embedding(x, weight, 0)
    for tau in (torch.tensor(-1.0), torch.tensor([[-1.0], [1.0], [1.0], [1.0]])):
        with pytest.raises(ValueError, match="tau must be a positive finite number, got a tensor with nan"):
            embedding(x, weight, tau)
    with pytest.raises(ValueError, match="finite entry in every row"):
        embedding(torch.full((4, 3), math.nan), weight)
