"""Away from the CPU: nothing reads a value, and nothing calls more operators than torch's own function.

The meta device stands in for a GPU: its tensors have no values, so whatever would wait for one raises.
"""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from helpers.cases import each
from helpers.estimators import EVERY, PATHWISE
from helpers.images import cat_vae, semi_supervised, structured
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from taugrad import bounds
from taugrad.estimators import Enumeration, STGumbelSoftmax
from taugrad.layers import OneHotSample
from taugrad.ops import categorical, embedding, gumbel, permutations, softmax, subsets


class Counted(TorchDispatchMode):
    """Counts the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[function._schema.name] += 1
        return function(*args, **(kwargs or {}))


def meta(*shape: int) -> Tensor:
    return torch.randn(shape, device="meta", requires_grad=True)


def total(z: Tensor) -> Tensor:
    return z.cumsum(-1).square().sum((-2, -1))


def test_a_read_would_raise_here():
    with pytest.raises(RuntimeError, match="meta"):
        meta(3).sum().item()
    with pytest.raises(RuntimeError, match="meta"):
        bool(meta(3).isnan().any())


FUNCTIONS = {
    **{f"{e!r}.sample": lambda x, tau, e=e: e.sample(x, tau) for e in PATHWISE},
    **{f"{e!r}": lambda x, tau, e=e: e.expectation(total, x, tau) for e in EVERY},
    "OneHotSample": lambda x, tau: OneHotSample(STGumbelSoftmax(), dim=1)(x, tau),
    "embedding": lambda x, tau: embedding.embedding(x, x[0].T, tau),
    "softmax": softmax.softmax,
    "gumbel_k_hot": lambda x, tau: subsets.gumbel_k_hot(x, 2, tau),
    "gumbel_sinkhorn": lambda x, tau: permutations.gumbel_sinkhorn(x[..., :3, :3], tau),
    "entropy": lambda x, tau: categorical.entropy(x),
    "kl": lambda x, tau: categorical.kl(x, 2 * x),
    "log_prob": lambda x, tau: categorical.log_prob(x, gumbel.gumbel_max(x)),
    "bernoulli_log_prob": lambda x, tau: categorical.bernoulli_log_prob(x, gumbel.gumbel_max(x)),
    "elbo": lambda x, tau: bounds.elbo(x.sum((-2, -1)), x),
    "importance_weighted_bound": lambda x, tau: bounds.importance_weighted_bound(total, x, 3),
    "multi_sample_bound": lambda x, tau: bounds.multi_sample_bound(lambda S: x.sum() + bounds.hard_samples(x, S), 2),
}


@each("name", FUNCTIONS)
@each("kind", ["number", "tensor", "row", "learned"])
def test_nothing_reads_a_value_forward_or_backward(name, kind):
    tau = {
        "number": lambda: 0.5,
        "tensor": lambda: torch.ones((), device="meta"),
        "row": lambda: torch.ones(4, 1, 1, device="meta"),
        "learned": lambda: torch.ones((), device="meta", requires_grad=True),
    }[kind]()
    x = meta(4, 3, 5)
    y = FUNCTIONS[name](x, tau)
    assert y.is_meta
    y.sum().backward()
    assert x.grad.shape == x.shape
    if kind == "learned" and ".sample" in name and "ReinMax" not in name and "Decoupled" not in name:
        assert tau.grad.shape == ()


@each("estimator", [e for e in EVERY if not isinstance(e, Enumeration)])
@each("build", [cat_vae, structured, semi_supervised])
def test_no_training_step_of_a_model_reads_a_value(build, estimator):
    model = build().model.to("meta")
    optimizer = torch.optim.Adam(model.parameters())
    x = torch.rand(6, 4, 4, device="meta")
    labels = torch.zeros(6, dtype=torch.int64, device="meta")
    loss = model.loss_terms(x, labels, estimator, 0.5)["loss"]
    loss.backward()
    optimizer.step()
    assert loss.is_meta


def calls(function, *arguments) -> int:
    """Operators called by a function of logits and its backward."""
    x = meta(32, 10)
    with Counted() as counted:
        function(x, *arguments).backward(torch.empty(32, 10, device="meta"))
    return counted.calls.total()


@each("hard", [False, True])
@each("tau", [0.5, torch.ones((), device="meta")])
def test_a_sample_calls_no_more_operators_than_torchs_function(hard, tau):
    torchs = calls(F.gumbel_softmax, tau, hard)
    assert calls(gumbel.gumbel_softmax, tau, hard) <= torchs + (2 if isinstance(tau, Tensor) else 0)
