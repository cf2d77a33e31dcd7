"""Print the steps a second of environments of several agents, with random actions: one process, two, one for each copy.

pip install -e ".[mpe,foraging]" && python scripts/step_agents.py
"""

import statistics
import time
from functools import partial

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, VectorEnv

from taugrad.rl.envs.agents import Joint, make, make_parallel

STEPS, REPEATS, FORAGING = 240, 4, "lbforaging:Foraging-8x8-2p-3f-v3"


def spread() -> Joint:
    """Make three agents that spread over landmarks."""
    from mpe2.simple_spread_v3 import parallel_env

    return Joint(parallel_env())


def foraging() -> Joint:
    """Make two agents that forage."""
    return Joint(gymnasium.make(FORAGING, disable_env_checker=True))


def speed(env: VectorEnv, actions: np.ndarray) -> float:
    """Return the steps a second of all copies together."""
    start = time.perf_counter()
    for action in actions:
        env.step(action)
    return STEPS / (time.perf_counter() - start)


def main() -> None:
    """Measure the ways in turn, so that all get the machine's other load."""
    kinds = {
        "simple_spread": (partial(make_parallel, "mpe2.simple_spread_v3"), spread),
        "foraging": (partial(make, FORAGING), foraging),
    }
    print(f"{'':14}copies    1 process  2 processes  AsyncVectorEnv")
    for name, (several, one) in kinds.items():
        for copies in (8, 16, 32):
            envs = [several(copies), several(copies, processes=2), AsyncVectorEnv([one] * copies)]
            random = np.random.default_rng(0)
            high = envs[0].single_action_space.nvec  # pyright: ignore[reportAttributeAccessIssue]
            for env in envs:
                env.reset(seed=0)
            speeds = []
            for _ in range(REPEATS):
                actions = random.integers(high, size=(STEPS // copies, copies, len(high)))
                speeds.append([speed(env, actions) for env in envs])
            medians = map(statistics.median, zip(*speeds, strict=True))
            print(f"{name:14}{copies:6}" + "".join(f"{median:13,.0f}" for median in medians), flush=True)
            for env in envs:
                env.close()


if __name__ == "__main__":
    main()
