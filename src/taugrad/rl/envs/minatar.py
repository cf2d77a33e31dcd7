"""Games of MinAtar (1903.03176) as gymnasium environments, because the package registers none.

Observations are the game's planes of 10 x 10, bool; the choices are the actions that the game uses. An episode of 5,000
frames times out, as in the paper. A picture has a colour for each plane; the last plane of a cell is seen.
"""

import colorsys
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
_CELL = 16  # pixels of a cell's side


class MinAtar(gymnasium.Env[np.ndarray, Any]):
    """One game, in which the last action is repeated with probability `sticky_actions`.

    Raises:
        ConfigError: there is no such game, or no package `minatar`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012  # gymnasium's own form

    def __init__(self, game: str, sticky_actions: float = 0.1, render_mode: str | None = None) -> None:
        if game not in _GAMES:
            raise ConfigError(f"game must be one of {', '.join(_GAMES)}, got {game}")
        self._game = extra("minatar", "minatar").Environment(game, sticky_action_prob=sticky_actions)
        self._actions = self._game.minimal_action_set()
        self.observation_space = MultiBinary(self._game.state_shape())
        self.action_space = Discrete(len(self._actions))
        self.render_mode = render_mode
        planes = self.observation_space.shape[-1]
        hues = [colorsys.hsv_to_rgb(k / planes, 0.8, 1.0) for k in range(planes)]
        self._colours = (255 * np.array([(0, 0, 0), *hues])).astype(np.uint8)

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

    def render(self) -> np.ndarray | None:
        """Draw the planes, (160, 160, 3), uint8; gymnasium's interface."""
        if self.render_mode is None:
            return None
        planes = self._observation()
        last = (planes * np.arange(1, planes.shape[-1] + 1)).max(-1)
        return self._colours[last].repeat(_CELL, 0).repeat(_CELL, 1)

    def _observation(self) -> np.ndarray:
        return self._game.state().astype(np.int8)


def make(game: str, num_envs: int, render_mode: str | None = None) -> VectorEnv:
    """Make `num_envs` copies of a game, each with its time limit."""
    check_count("num_envs", num_envs)
    return SyncVectorEnv([lambda: TimeLimit(MinAtar(game, render_mode=render_mode), _FRAMES)] * num_envs)
