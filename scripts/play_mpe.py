"""Play MPE's two cooperative tasks by scripts that are told the goals, at random, and by trained runs.

pip install -e ".[mpe]" && python scripts/play_mpe.py simple_spread RUN ... --episodes 1000

Of simple_spread it also prints what 1706.02275 reports: the distances of the landmarks to their nearest agents, summed
over landmarks, mean over steps, and the number of pairs that collide, summed over the steps of an episode.
"""

import argparse
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from taugrad.cli import one_sentence
from taugrad.commands.bench_arguments import count
from taugrad.extras import extra
from taugrad.training.runs import load_run

TASKS = {"simple_spread": "mpe2.simple_spread_v3", "simple_speaker_listener": "mpe2.simple_speaker_listener_v4"}
PUSHES = np.array([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)])  # of the five actions
FIRST_SEED = 10_000

Observations = Mapping[str, np.ndarray]
Play = Callable[[Any, Observations], dict[str, int]]  # a world and what is seen to the actions
Player = Callable[[Any], Play]  # made at the start of an episode


def towards(agent: Any, goal: np.ndarray) -> int:
    """Return the action after which an agent that coasts on would come nearest to the goal."""
    pushed = 0.75 * agent.state.p_vel + 0.5 * PUSHES
    return int(np.linalg.norm(goal - agent.state.p_pos - 0.25 * pushed, axis=1).argmin())


def spreading(nearest: bool) -> Player:
    """Send each agent to its nearest landmark, or all by the assignment of the shortest ways."""

    def player(world: Any) -> Play:
        landmarks = np.array([landmark.state.p_pos for landmark in world.landmarks])
        ways = np.array([np.linalg.norm(landmarks - agent.state.p_pos, axis=1) for agent in world.agents])
        rows = range(len(ways))
        orders = itertools.permutations(rows)
        goals = ways.argmin(1) if nearest else min(orders, key=lambda order: ways[rows, order].sum())
        return lambda world, _: {
            agent.name: towards(agent, landmarks[goal]) for agent, goal in zip(world.agents, goals, strict=True)
        }

    return player


def told(world: Any) -> Play:
    """Send the listener to the landmark that is meant."""
    return listening(world.agents[0].goal_b.state.p_pos)


def centre(world: Any) -> Play:
    """Send the listener to the centre of the landmarks, as if nothing were said."""
    return listening(np.mean([landmark.state.p_pos for landmark in world.landmarks], axis=0))


def listening(goal: np.ndarray) -> Play:
    """Send the listener to a goal, whatever the speaker says."""
    return lambda world, _: {world.agents[0].name: 0, world.agents[1].name: towards(world.agents[1], goal)}


def trained(run: Path) -> Player:
    """Play greedily by a run's last weights."""
    task, *_ = load_run(run)

    def play(_: Any, seen: Observations) -> dict[str, int]:
        x = torch.from_numpy(np.concatenate(list(seen.values())))[None]
        return dict(zip(seen, task.greedy(x)[0].tolist(), strict=True))

    return lambda _: play


def played(task: str, player: Player | None, episodes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of each episode its return, summed over agents, its mean distance, and its colliding pairs."""
    env = extra(TASKS[task], "mpe").parallel_env()
    rows = []
    for seed in range(FIRST_SEED, FIRST_SEED + episodes):
        seen, _ = env.reset(seed=seed)
        world = env.unwrapped.world
        marks = np.array([landmark.state.p_pos for landmark in world.landmarks])  # which do not move
        play = None if player is None else player(world)
        distances, collisions, total = [], 0, 0.0
        random = np.random.default_rng(seed)
        while env.agents:
            if play is None:
                chosen = {agent: int(random.integers(env.action_space(agent).n)) for agent in env.agents}
            else:
                chosen = play(world, seen)
            seen, reward, *_ = env.step(chosen)
            total += sum(reward.values())
            at = np.array([agent.state.p_pos for agent in world.agents])
            distances.append(np.linalg.norm(marks[:, None] - at, axis=-1).min(1).sum())
            pairs = itertools.combinations(world.agents, 2)
            collisions += sum(
                np.linalg.norm(a.state.p_pos - b.state.p_pos) < a.size + b.size for a, b in pairs if a.collide
            )
        rows.append((total, np.mean(distances), collisions))
    returns, distances, collisions = np.array(rows, dtype=float).T
    return returns, distances, collisions


@one_sentence
def main() -> None:
    """Print the mean of each player and its standard error."""
    parser = argparse.ArgumentParser(description="Play MPE's tasks by scripts and by runs.")
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--episodes", type=count, default=1000)
    arguments = parser.parse_args()
    players: dict[str, Player | None] = {"at random": None}
    if arguments.task == "simple_spread":
        players |= {"each to its nearest": spreading(nearest=True), "the best assignment": spreading(nearest=False)}
    else:
        players |= {"the landmarks' centre": centre, "told the goal": told}
    players |= {str(run): trained(run) for run in arguments.runs}
    width = max(map(len, players))
    for name, player in players.items():
        cells = played(arguments.task, player, arguments.episodes)
        shown = [("return", cells[0])]
        if arguments.task == "simple_spread":
            shown += [("distance", cells[1]), ("collisions", cells[2])]
        line = (f"{title} {x.mean():.2f} ({x.std() / len(x) ** 0.5:.2f})" for title, x in shown)
        print(f"{name:{width}}  {'  '.join(line)}", flush=True)


if __name__ == "__main__":
    main()
