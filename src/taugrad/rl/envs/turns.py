"""A turn-based game of PettingZoo as an environment of one agent, against others that choose legal actions at random.

A step is the agent's own turn and those of all others until it is its turn again, or the game is over. Its reward is
what it got in that time. Which of the agents it is, and so who begins, is drawn uniformly for every episode. What is
legal stands in the observation's `action_mask`, which is shown (`taugrad.rl.masks`).
"""

import importlib
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete
from gymnasium.vector import SyncVectorEnv, VectorEnv

from taugrad.checks import check_count
from taugrad.errors import ConfigError
from taugrad.extras import extra
from taugrad.rl.masks import KEY, has_mask


class AgainstRandom(gymnasium.Env[Any, Any]):
    """One agent of `game`, an `AECEnv` of PettingZoo; each of the others chooses uniformly among its legal actions.

    Raises:
        ConfigError: the agents' spaces differ, or their actions are no Discrete or their observations have no mask.
    """

    def __init__(self, game: Any) -> None:
        self._game = game
        self._agents = list(game.possible_agents)
        seen = [game.observation_space(agent) for agent in self._agents]
        actions = [game.action_space(agent) for agent in self._agents]
        if not all(isinstance(space, Discrete) and space == actions[0] for space in actions):
            raise ConfigError(f"the agents of a game must choose from the same Discrete, got {actions}")
        if not all(has_mask(space) and space == seen[0] for space in seen):
            raise ConfigError(f"the agents of a game must see the same Dict with {KEY}, got {seen}")
        self.observation_space, self.action_space = seen[0], actions[0]
        self.metadata, self.render_mode = game.metadata, game.render_mode
        self._agent, self._start = self._agents[0], int(getattr(actions[0], "start", 0))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Begin a new game as one of the agents, drawn at random; gymnasium's interface."""
        super().reset(seed=seed)
        while True:  # once, but for a game that may end before everyone had a turn
            self._game.reset(seed=seed, options=options)
            self._agent = self._agents[self.np_random.integers(len(self._agents))]
            observation, _, terminated, truncated, info = self._until_its_turn()
            if not (terminated or truncated):
                return observation, info
            seed = None

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        """Take the agent's turn, and the others' until it has the next one; gymnasium's interface."""
        self._game.step(action)
        return self._until_its_turn()

    def render(self) -> Any:
        """Return the game's picture."""
        return self._game.render()

    def close(self) -> None:
        """Close the game."""
        self._game.close()

    def _until_its_turn(self) -> tuple[Any, float, bool, bool, dict]:
        """Let the others act; return what the agent sees and has got."""
        while True:
            observation, reward, terminated, truncated, info = self._game.last()
            if self._game.agent_selection == self._agent:
                return observation, float(reward), bool(terminated), bool(truncated), info
            self._game.step(None if terminated or truncated else self._legal(observation[KEY]))

    def _legal(self, mask: np.ndarray) -> Any:
        legal = np.flatnonzero(mask)
        return self._start + legal[self.np_random.integers(len(legal))]


def make(id: str, num_envs: int, **options: Any) -> VectorEnv:  # gymnasium's own name
    """Make `num_envs` copies of the game whose module is `id`, such as pettingzoo.classic.connect_four.connect_four.

    Raises:
        ConfigError: there is no such module, it is no turn-based game, or it lacks a package.
    """
    check_count("num_envs", num_envs)
    extra("pettingzoo", "pettingzoo")
    try:
        game = importlib.import_module(id)
    except (ImportError, ValueError, TypeError) as error:
        raise ConfigError(f"env.make.id={id}: {error}") from error
    if not callable(getattr(game, "env", None)):
        raise ConfigError(f"env.make.id={id}: a game's module has a function env, as those of pettingzoo.classic do")
    return SyncVectorEnv([lambda: AgainstRandom(game.env(**options))] * num_envs)
