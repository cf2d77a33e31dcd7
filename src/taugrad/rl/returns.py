r"""Advantages and returns of rollouts whose rows are time.

    delta_t = r_t + gamma (1 - terminated_t) V(s_{t+1}) - V(s_t)
    A_t     = delta_t + gamma lambda (1 - done_t) c_{t+1} A_{t+1},     c = min(1, pi(a|s) / mu(a|s))
    G_t     = V(s_t) + A_t

Without ratios, c = 1, this is generalized advantage estimation (1506.02438) and G the lambda-return; with them it has
Retrace's trace (1606.02647) on a state value, as in V-trace (1802.01561). A time-out bootstraps: the episode is
done, so nothing follows, but not terminated, so V(s_{t+1}) of its last observation counts.
"""

import torch
from torch import Tensor


def advantages(
    reward: Tensor,
    value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    lam: float,
    ratio: Tensor | None = None,
) -> Tensor:
    """Compute A_t of every step.

    Args:
        reward: r, (T, ...).
        value: V of the T + 1 observations, (T + 1, ...), with the last one of an episode.
        terminated: whether the step ended its episode, (T, ...), bool.
        truncated: whether a time-out did, (T, ...), bool.
        gamma: discount, in [0, 1].
        lam: lambda, in [0, 1].
        ratio: pi(a|s) / mu(a|s), (T, ...), for actions of another policy mu; None: all are 1.

    Returns:
        A, (T, ...).

    Raises:
        ValueError: `value` has not one row more than `reward`.

    Bias: that of `value`, less the nearer lambda is to 1.

    >>> steps = torch.zeros(2, dtype=torch.bool)
    >>> advantages(torch.ones(2), torch.tensor([0.0, 0.0, 4.0]), steps, steps, gamma=0.5, lam=1.0)
    tensor([2.5000, 3.0000])
    """
    if value.shape[0] != reward.shape[0] + 1:
        raise ValueError(f"value must have one row more than reward's {reward.shape[0]}, got {value.shape[0]}")
    delta = reward + gamma * torch.where(terminated, 0.0, value[1:]) - value[:-1]
    carry = gamma * lam * (~(terminated | truncated)).to(delta.dtype)
    if ratio is not None:
        carry[:-1] *= ratio[1:].clamp_max(1)
    out = delta.clone()
    for t in range(len(delta) - 2, -1, -1):
        out[t] += carry[t] * out[t + 1]
    return out
