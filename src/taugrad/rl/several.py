r"""Networks of several agents: actors that see their own part of the observation, and N networks computed at once.

    logits_i = actor_i(x_i),      x = (x_1, ..., x_N),      pi(a|x) = prod_i pi_i(a_i|x_i)

The parts of the observation and of the action are those of `Sizes.parts`, in order. N networks have one batched matrix
product a layer: on a CPU three actors of 2 x 64 units took 71 us for 8 observations where a loop took 452, and 2.3 ms
in place of 3.7 for a forward and backward of 256; from 1,024 on there is no difference.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from taugrad.nets import mlp
from taugrad.rl.actor import FactoredActor, orthogonal
from taugrad.rl.masks import allowed
from taugrad.rl.spaces import Part


class Layout(nn.Module):
    """Map from numbers of an observation and factors of an action to the N agents that they belong to.

    >>> layout = Layout([Part("a", 1, (2,)), Part("b", 2, (3, 2))])
    >>> layout.observations(torch.tensor([1.0, 2.0, 3.0]))
    tensor([[1., 0.],
            [2., 3.]])
    >>> layout.sums(torch.tensor([1.0, 2.0, 3.0]))
    tensor([1., 5.])
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        super().__init__()
        self.agents = N = len(parts)
        self.inputs, self.rows = max(part.observation for part in parts), max(len(part.factors) for part in parts)
        D, F = sum(part.observation for part in parts), sum(len(part.factors) for part in parts)
        columns, factors = torch.full((N, self.inputs), D), torch.full((N, self.rows), F)  # D and F: padding
        owner, slot, x, f = [], [], 0, 0
        for i, part in enumerate(parts):
            n = len(part.factors)
            columns[i, : part.observation] = torch.arange(x, x + part.observation)
            factors[i, :n] = torch.arange(f, f + n)
            owner, slot = owner + [i] * n, slot + list(range(n))
            x, f = x + part.observation, f + n
        self.columns = nn.Buffer(columns, persistent=False)  # (N, D_max)
        self.factors = nn.Buffer(factors, persistent=False)  # (N, F_max)
        self.owner = nn.Buffer(torch.tensor(owner), persistent=False)  # (F,)
        self.slot = nn.Buffer(torch.tensor(slot), persistent=False)  # (F,)
        self.own = nn.Buffer(self.owner == torch.arange(N)[:, None], persistent=False)  # (N, F), bool

    def observations(self, x: Tensor) -> Tensor:
        """Split x (..., D) into what each agent sees, (..., N, D_max), padded with zeros."""
        return functional.pad(x, (0, 1))[..., self.columns]

    def join(self, y: Tensor) -> Tensor:
        """Join rows of each agent's factors, (..., N, F_max, K), to those of all, (..., F, K)."""
        return y[..., self.owner, self.slot, :]

    def split(self, logits: Tensor) -> Tensor:
        """Split logits (..., F, K) to (..., N, F_max, K), padded with factors that have no choice."""
        sure = torch.full_like(logits[..., :1, :], -torch.inf)
        sure[..., 0] = 0.0
        return torch.cat([logits, sure], -2)[..., self.factors, :]

    def sums(self, y: Tensor) -> Tensor:
        """Add what each agent's factors have, (..., F), up to (..., N)."""
        return functional.pad(y, (0, 1))[..., self.factors].sum(-1)

    def living(self, a: Tensor, alive: Tensor) -> Tensor:
        """Set the actions (..., F, K) of agents that are not alive, (..., N), to zero."""
        return a * alive[..., self.owner, None]

    def replaced(self, a: Tensor, z: Tensor) -> Tensor:
        """Return N joint actions (*more, ..., N, F, K): `a` (..., F, K) with agent i's factors from z[..., i, :, :]."""
        return torch.where(self.own[..., None], z[..., self.slot, :], a.unsqueeze(-3))


class Actors(FactoredActor):
    """Actors of N agents, each on its own part of the observation; the joint logits (..., F, K) are padded with -inf.

    With `shared` one network serves all, which also gets the agent's index as a one-hot.

    Raises:
        ValueError: `shared`, and the agents' observations or actions differ in size.
    """

    def __init__(self, parts: Sequence[Part], hidden: Sequence[int], shared: bool) -> None:
        super().__init__()
        factors = [n for part in parts for n in part.factors]
        self.K = max(factors)
        self.layout = Layout(parts)
        inputs, outputs = [part.observation for part in parts], [len(part.factors) * self.K for part in parts]
        if shared:
            check_equal(parts)
        self.net = networks(inputs, hidden, outputs, "Tanh", shared=shared, last_gain=0.01)
        self.allowed = nn.Buffer(allowed(factors), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (..., F, K) of observations (..., D), -inf where `mask` (..., F, K) allows no choice."""
        rows = self.net(self.layout.observations(x)).unflatten(-1, (self.layout.rows, self.K))
        return self.layout.join(rows).masked_fill(~(self.allowed if mask is None else mask), -torch.inf)


def check_equal(parts: Sequence[Part]) -> None:
    """Raise ValueError unless all agents see as many numbers and have the same factors.

    >>> check_equal([Part("speaker", 3, (3,)), Part("listener", 11, (5,))])
    Traceback (most recent call last):
    ValueError: shared=true needs agents of equal sizes: speaker has 3 numbers and factors (3,), listener 11 and (5,)
    """
    one = parts[0]
    for other in parts[1:]:
        if other[1:] != one[1:]:
            raise ValueError(
                f"shared=true needs agents of equal sizes: {one.name} has {one.observation} numbers and factors "
                f"{one.factors}, {other.name} {other.observation} and {other.factors}"
            )


def networks(
    inputs: Sequence[int],
    hidden: Sequence[int],
    outputs: Sequence[int],
    activation: str,
    *,
    layer_norm: bool = False,
    shared: bool = False,
    last_gain: float | None = None,
) -> nn.Module:
    """Build a network for each of N agents, or one for all if `shared`, from (..., N, inputs) to (..., N, outputs).

    With a `last_gain` the matrices start orthogonal.
    """
    N = len(inputs)
    one_hot = N if shared and N > 1 else 0
    nets = [mlp(inputs[i] + one_hot, hidden, outputs[i], activation, layer_norm) for i in range(1 if shared else N)]
    for net in nets if last_gain is not None else []:
        orthogonal(net, cast(float, last_gain))
    return Indexed(nets[0], N) if one_hot else MLPs(nets)


class Indexed(nn.Module):
    """One network for N agents, which gets the agent's index as a one-hot, from (..., N, D) to (..., N, outputs)."""

    def __init__(self, net: nn.Module, agents: int) -> None:
        super().__init__()
        self.net = net
        self.index = nn.Buffer(torch.eye(agents), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network to x (..., N, D)."""
        return self.net(torch.cat([x, self.index.expand(*x.shape[:-1], -1)], -1))


class MLPs(nn.Module):
    """N networks of `mlp` with equal hidden layers as one, from (..., N, inputs) to (..., N, outputs).

    Inputs and outputs of different sizes are padded to the largest.

    >>> MLPs([mlp(3, [8], 5), mlp(2, [8], 4)])(torch.zeros(7, 2, 3)).shape
    torch.Size([7, 2, 5])
    """

    def __init__(self, nets: Sequence[nn.Sequential]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*map(_together, zip(*nets, strict=True)))

    def forward(self, x: Tensor) -> Tensor:
        """Apply network i to x[..., i, :]."""
        *batch, N, D = x.shape
        y = self.layers(x.movedim(-2, 0).reshape(N, -1, D))
        return y.unflatten(1, batch).movedim(0, -2) if batch else y[:, 0]


def _together(layers: Sequence[nn.Module]) -> nn.Module:
    """Return the same layer of N networks as one, on (N, B, ...)."""
    if isinstance(layers[0], nn.Linear):
        return _Linears(cast(Sequence[nn.Linear], layers))
    if isinstance(layers[0], nn.LayerNorm):
        return _LayerNorms(cast(Sequence[nn.LayerNorm], layers))
    return layers[0]  # an activation


class _Linears(nn.Module):
    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        outputs, inputs = (max(layer.weight.shape[i] for layer in layers) for i in (0, 1))
        self.weight = nn.Parameter(torch.zeros(len(layers), outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(len(layers), outputs))
        with torch.no_grad():
            for i, layer in enumerate(layers):
                o, n = layer.weight.shape
                self.weight[i, :o, :n], self.bias[i, :o] = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 1:  # to the bit what one network computes, where a batched product rounds otherwise
            return functional.linear(x[0], self.weight[0], self.bias[0])[None]
        return torch.baddbmm(self.bias[:, None], x, self.weight.mT)


class _LayerNorms(nn.Module):
    def __init__(self, layers: Sequence[nn.LayerNorm]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:]) * self.weight[:, None] + self.bias[:, None]
