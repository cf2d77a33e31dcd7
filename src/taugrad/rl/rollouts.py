"""Rollouts of a policy, and a window of the last ones, in tensors allocated once; rows are time."""

import math
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from taugrad.checks import check_count
from taugrad.errors import ConfigError
from taugrad.rl.environments import Environments
from taugrad.rl.spaces import Sizes

# Observations (E, D) and masks (E, F, K) to choices (E, F) and their log-probability (E,).
Act = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Rollout:
    """T steps of E environments of N agents; action t was chosen from row t of what was seen, and row T came last."""

    observation: Tensor  # (T + 1, E, D)
    mask: Tensor  # (T + 1, E, F, K), bool: the choices that were allowed
    alive: Tensor  # (T + 1, E, N), bool: the agents that chose
    action: Tensor  # (T, E, F), int64: the choices
    log_mu: Tensor  # (T, E), by the policy that chose
    reward: Tensor  # (T, E, N)
    terminated: Tensor  # (T, E), bool
    truncated: Tensor  # (T, E), bool
    valid: Tensor  # (T, E), bool: False for a reset, which is no transition

    def places(self) -> Tensor:
        """Indices of the transitions among T E steps, (n,); on a GPU this would wait for it."""
        return self.valid.flatten().nonzero()[:, 0]

    def map(self, f: Callable[[Tensor], Tensor]) -> "Rollout":
        """Return a rollout with `f` applied to every tensor."""
        return Rollout(*map(f, vars(self).values()))


class Transitions(NamedTuple):
    """B single transitions of N agents."""

    observation: Tensor  # (B, D)
    mask: Tensor  # (B, F, K), bool
    alive: Tensor  # (B, N), bool
    action: Tensor  # (B, F), int64
    reward: Tensor  # (B, N)
    next_observation: Tensor  # (B, D)
    next_mask: Tensor  # (B, F, K), bool
    next_alive: Tensor  # (B, N), bool
    terminated: Tensor  # (B, N), bool: for this agent nothing follows


def next_alive(alive: Tensor, later: Tensor, truncated: Tensor) -> Tensor:
    """Return for which agents something follows a step, (..., N), by who is alive before it and after it.

    After a time-out, `truncated` (...), an environment may show who is left, or nobody: then it ended no agent.

    >>> next_alive(torch.tensor([True, True]), torch.tensor([True, False]), torch.tensor(False))
    tensor([ True, False])
    """
    nobody = truncated[..., None] & ~later.any(-1, keepdim=True)
    return alive & torch.where(nobody, alive, later)


class Window:
    """The last rollouts, `capacity` of them, each of T `steps` of E environments, in memory allocated once.

    Observations (D numbers, of `dtype`) are kept unnormalized because the normalization changes.

    Raises:
        ConfigError: there is no memory for them.
    """

    def __init__(
        self,
        capacity: int,
        steps: int,
        num_envs: int,
        sizes: Sizes,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape, seen = (capacity, steps, num_envs), (capacity, steps + 1, num_envs)
        F, K, N = len(sizes.factors), max(sizes.factors), len(sizes.parts)
        self._all = Rollout(
            _observations((*seen, sizes.observation), dtype),
            torch.zeros(*seen, F, K, dtype=torch.bool),
            torch.zeros(*seen, N, dtype=torch.bool),
            torch.zeros(*shape, F, dtype=torch.int64),
            torch.zeros(shape),
            torch.zeros(*shape, N),
            *(torch.zeros(shape, dtype=torch.bool) for _ in range(3)),
        )
        self.capacity, self.added = capacity, 0
        self.rollout_size = steps * num_envs

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def oldest(self) -> Rollout:
        """Return the memory of the oldest rollout, to be filled; from now on it counts as the newest."""
        place = self.added % self.capacity
        self.added += 1
        return self._all.map(lambda x: x[place])

    def sample(self, newest: int, others: int) -> Rollout:
        """Join the `newest` rollouts and at most `others` drawn from the rest without replacement: (T, n E, ...)."""
        order = (self.added - 1 - torch.arange(len(self))) % self.capacity
        rest = order[newest:]
        places = torch.cat([order[:newest], rest[torch.randperm(len(rest))[:others]]])
        return self._all.map(lambda x: x[places].transpose(0, 1).flatten(1, 2))

    def draw(self, n: int) -> Transitions:
        """Draw `n` transitions of all in the window, each alike and independently; none if there is none."""
        every = self._all
        places = every.valid.flatten().nonzero()[:, 0]  # a rollout that was never filled has none
        i = places[torch.randint(len(places), (n,))] if len(places) else places
        c, t, e = torch.unravel_index(i, every.valid.shape)
        now, then = (c, t, e), (c, t + 1, e)
        alive, terminated = every.alive[now], every.terminated[now][:, None]
        later = next_alive(alive, every.alive[then], every.truncated[now])
        seen = every.observation[now], every.mask[now], alive
        after = every.observation[then], every.mask[then], later
        return Transitions(*seen, every.action[now], every.reward[now], *after, terminated | ~later)

    def state_dict(self) -> dict[str, Any]:
        """Contents for a checkpoint."""
        return {"added": self.added, **vars(self._all)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the contents from a `state_dict`; ValueError if it is of a window of other sizes."""
        for name, here in vars(self._all).items():
            if name not in state:
                raise ValueError(f"the checkpoint's rollouts have no {name}: another version of taugrad wrote it")
            if here.shape != state[name].shape:
                got = tuple(state[name].shape)
                raise ValueError(f"the rollouts' {name} must have shape {tuple(here.shape)}, got {got}")
            here.copy_(state[name])
        self.added = state["added"]


def _observations(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    size, (window, rows, num_envs, numbers) = math.prod(shape) * dtype.itemsize, shape
    none = ConfigError(
        f"there is no memory for {size / 1e9:,.0f} GB: {window} rollouts (collection.window) of {rows - 1} steps of "
        f"{num_envs} environments with observations of {numbers:,} numbers; fewer rollouts or smaller pictures help"
    )
    if size > _memory():  # torch may give it all the same, and the system end the process when it is written to
        raise none
    try:
        return torch.zeros(shape, dtype=dtype)
    except RuntimeError as error:
        raise none from error


def _memory() -> float:
    """Bytes of memory that the machine has; infinite if it does not say."""
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf
    return size if size > 0 else math.inf


@dataclass(frozen=True)
class Collection:
    """Settings of the collecting of rollouts; ValueError if a count is below 1."""

    max_env_steps: int  # length of the training
    num_envs: int = 8  # E, environments stepped at once
    rollout_steps: int = 32  # T, steps of each in a rollout
    window: int = 1  # rollouts kept
    seed: int = 0  # seed of the environments

    changeable: ClassVar[tuple[str, ...]] = ("max_env_steps",)

    def __post_init__(self) -> None:
        for name in ("max_env_steps", "num_envs", "rollout_steps", "window"):
            check_count(name, getattr(self, name))


class Collector:
    """Steps E environments, first reset by `seed`, with a policy, and counts steps and episodes."""

    def __init__(self, environments: Environments, seed: int) -> None:
        self.environments = environments
        self.env_steps = 0
        self.returns: deque[float] = deque(maxlen=100)  # returns of the last episodes that ended
        self.each: deque[list[float]] = deque(maxlen=100)  # the returns of each agent
        self.lengths: deque[int] = deque(maxlen=100)
        self.restart(seed)

    @property
    def mean_return(self) -> float | None:
        """Mean return of the last episodes that ended; None before the first."""
        return sum(self.returns) / len(self.returns) if self.returns else None

    def restart(self, seed: int) -> None:
        """Begin new episodes in all environments and drop those in flight; the counts stay."""
        self._seen = self.environments.reset(seed)
        self._return = torch.zeros(self.environments.num_envs, dtype=torch.float64)
        self._each = torch.zeros(self.environments.num_envs, len(self.environments.sizes.parts), dtype=torch.float64)
        self._length = torch.zeros(self.environments.num_envs, dtype=torch.int64)

    @torch.no_grad()
    def fill(self, rollout: Rollout, act: Act) -> None:
        """Fill the rollout with steps chosen by `act`; no graph of autograd is kept."""
        for t in range(len(rollout.reward)):
            self._show(rollout, t)
            action, log_mu = act(self._seen.observation, self._seen.mask)
            step = self.environments.step(action)
            rollout.action[t], rollout.log_mu[t], rollout.reward[t] = action, log_mu, step.reward
            rollout.terminated[t], rollout.truncated[t], rollout.valid[t] = step.terminated, step.truncated, step.valid
            self._seen = step.seen
        self._show(rollout, -1)
        self._count(rollout)

    def _show(self, rollout: Rollout, t: int) -> None:
        """Write what is seen before a step to row t."""
        rollout.observation[t], rollout.mask[t], rollout.alive[t] = self._seen

    def _count(self, rollout: Rollout) -> None:
        self.env_steps += int(rollout.valid.sum())
        done = (rollout.terminated | rollout.truncated) & rollout.valid
        each = torch.where(rollout.valid[..., None], rollout.reward, 0.0)
        reward = each.sum(-1)
        for t in range(len(reward)):
            self._return += reward[t]
            self._each += each[t]
            self._length += rollout.valid[t]
            if done[t].any():
                for e in done[t].nonzero()[:, 0].tolist():
                    self.returns.append(self._return[e].item())
                    self.each.append(self._each[e].tolist())
                    self.lengths.append(int(self._length[e]))
                    self._return[e], self._each[e], self._length[e] = 0.0, 0.0, 0
