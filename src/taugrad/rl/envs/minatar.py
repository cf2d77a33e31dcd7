"""Games of MinAtar (1903.03176) as gymnasium environments, because the package registers none.

Observations are the game's planes of 10 x 10, bool; the choices are the actions that the game uses. An episode of 5,000
frames times out, as in the paper.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete, MultiBinary
from gymnasium.vector import SyncVectorEnv, VectorEnv
from gymnasium.wrappers import TimeLimit

from taugrad.checks import check_count
from taugrad.errors import ConfigError
from taugrad.extras import extra

_GAMES = "asterix", "breakout", "freeway", "seaquest", "space_invaders"
_FRAMES = 5_000


class MinAtar(gymnasium.Env[np.ndarray, Any]):
    """One game, in which the last action is repeated with probability `sticky_actions`.

    Raises:
        ConfigError: there is no such game, or no package `minatar`.
    """

    def __init__(self, game: str, sticky_actions: float = 0.1) -> None:
        if game not in _GAMES:
            raise ConfigError(f"game must be one of {', '.join(_GAMES)}, got {game}")
        self._game = extra("minatar", "minatar").Environment(game, sticky_action_prob=sticky_actions)
        self._actions = self._game.minimal_action_set()
        self.observation_space = MultiBinary(self._game.state_shape())
        self.action_space = Discrete(len(self._actions))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin a new episode; gymnasium's interface."""
        super().reset(seed=seed)
        if seed is not None:
            self._game.seed(seed)
        self._game.reset()
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Make one frame; gymnasium's interface."""
        reward, terminated = self._game.act(self._actions[action])
        return self._observation(), float(reward), bool(terminated), False, {}

    def _observation(self) -> np.ndarray:
        return self._game.state().astype(np.int8)


def make(game: str, num_envs: int) -> VectorEnv:
    """Make `num_envs` copies of a game, each with its time limit."""
    check_count("num_envs", num_envs)
    return SyncVectorEnv([lambda: TimeLimit(MinAtar(game), _FRAMES)] * num_envs)
