r"""An actor over factored actions, and a critic that is multilinear in the one-hot action.

    logits(s)                   (..., F, K): factor f of the action is Cat(softmax(logits_f)), independent of the others
    A(s, a) = sum_f h_f(s) . a_f + sum_{f < g} a_f^T W_fg(s) a_g,      a one-hot, (..., F, K)

On a function that is linear in each factor a straight-through gradient is exact in expectation (2304.08612, section 3),
and the expectation over independent factors is the function at their probabilities, A(s, pi).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from taugrad.nets import mlp


class Actor(nn.Module):
    """Logits of every factor; a factor with fewer choices than K has -inf for the rest.

    Args:
        observation_size: D.
        factors: choices of each factor, of which the largest is K.
        hidden: sizes of the hidden layers.
    """

    allowed: Tensor

    def __init__(self, observation_size: int, factors: Sequence[int], hidden: Sequence[int]) -> None:
        super().__init__()
        shape = len(factors), max(factors)
        self.net = mlp(observation_size, hidden, shape[0] * shape[1], "Tanh")
        orthogonal(self.net, last_gain=0.01)
        self.shape = shape
        self.register_buffer("allowed", torch.arange(shape[1]) < torch.tensor(factors)[:, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (..., F, K) of observations (..., D)."""
        return self.net(x).unflatten(-1, self.shape).masked_fill(~self.allowed, -torch.inf)


class Advantage(nn.Module):
    """The coefficients h and W of A(s, .), for `multilinear`.

    Args:
        observation_size: D.
        factors: choices of each factor.
        hidden: sizes of the hidden layers.
        pairwise: with W; else the factors' contributions add up.
    """

    def __init__(
        self, observation_size: int, factors: Sequence[int], hidden: Sequence[int], pairwise: bool = False
    ) -> None:
        super().__init__()
        F, K = len(factors), max(factors)
        pairs = F * (F - 1) // 2 if pairwise else 0
        self.sizes = [F * K, pairs * K * K]
        self.shapes = [(F, K), (pairs, K, K)]
        self.net = mlp(observation_size, hidden, sum(self.sizes), "ReLU", layer_norm=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """H (..., F, K) and W (..., pairs, K, K) of observations (..., D)."""
        h, w = self.net(x).split(self.sizes, -1)
        return h.unflatten(-1, self.shapes[0]), w.unflatten(-1, self.shapes[1])


def multilinear(a: Tensor, h: Tensor, w: Tensor) -> Tensor:
    """sum_f h_f . a_f + sum_{f < g} a_f^T W_fg a_g.

    Args:
        a: one-hot or probabilities, (*more, ..., F, K).
        h: (..., F, K).
        w: (..., F (F - 1) / 2, K, K), the pairs in the order of `torch.triu_indices`, or none, (..., 0, K, K).

    Returns:
        (*more, ...).

    >>> a, h = torch.eye(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> multilinear(a, h, torch.full((1, 2, 2), 10.0))
    tensor(15.)
    """
    value = (a * h).sum((-2, -1))
    if w.shape[-3] == 0:
        return value
    f, g = torch.triu_indices(a.shape[-2], a.shape[-2], offset=1, device=a.device)
    return value + ((w @ a[..., g, :, None]).squeeze(-1) * a[..., f, :]).sum((-2, -1))


def orthogonal(net: nn.Module, last_gain: float) -> None:
    """Set the linear layers to orthogonal matrices of gain sqrt 2, the last one of `last_gain`; biases to zero."""
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, last_gain if layer is layers[-1] else 2**0.5)
        nn.init.zeros_(layer.bias)
