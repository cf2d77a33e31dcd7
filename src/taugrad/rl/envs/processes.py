"""Environments stepped by several processes: this one and others, each with its share.

A step of an environment in Python takes much longer than sending its result, if all of a process's environments are
sent at once: a process for each environment is slower than none. Each environment gets the seed that it would get in
one process, so that seeded results do not depend on their number.
"""

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space

from taugrad.checks import check_count
from taugrad.errors import DataError

_PATIENCE = 5.0  # seconds, until a process that does not end is killed


class Processes(VectorEnv):
    """`num_envs` environments in `processes` processes, of which this is one.

    `make(n)` returns a vector environment of n, whose observations and actions are arrays. The processes end when this
    one does, however it does.

    Raises:
        DataError: in a step or reset: a process has ended.
    """

    def __init__(self, make: Callable[[int], VectorEnv], num_envs: int, processes: int) -> None:
        check_count("num_envs", num_envs)
        check_count("processes", processes)
        shares = [len(share) for share in np.array_split(range(num_envs), min(processes, num_envs))]
        self.num_envs = num_envs
        self._own = make(shares[-1])  # the smallest share, first in order
        self._starts = np.cumsum([0, shares[-1], *shares[:-1]]).tolist()
        self._others = [_Worker(make, n) for n in shares[:-1]]
        self.metadata, self.spec, self.render_mode = self._own.metadata, self._own.spec, self._own.render_mode
        self.single_observation_space = self._own.single_observation_space
        self.single_action_space = self._own.single_action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin new episodes in all environments; gymnasium's interface."""
        each = [{"seed": None if seed is None else seed + start, "options": options} for start in self._starts[:-1]]
        observation, info = self._all("reset", [((), keywords) for keywords in each])
        return np.concatenate(observation), _joined(info)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Make one step in all environments; gymnasium's interface."""
        given = np.split(actions, self._starts[1:-1])
        *parts, info = self._all("step", [((share,), {}) for share in given])
        observation, reward, terminated, truncated = map(np.concatenate, parts)
        return observation, reward, terminated, truncated, _joined(info)

    def render(self) -> Any:
        """Render this process's environments, the first of all among them; gymnasium's interface."""
        return self._own.render()

    def close_extras(self, **kwargs: Any) -> None:
        """End the other processes; gymnasium's interface."""
        for worker in self._others:
            worker.close()
        self._own.close()

    def _all(self, method: str, arguments: list[tuple[tuple, dict]]) -> list[tuple]:
        """Call a method in all processes at once, and return each part of what it returns as a tuple over processes."""
        for worker, given in zip(self._others, arguments[1:], strict=True):
            worker.call(method, *given)
        positional, keywords = arguments[0]
        try:
            own = getattr(self._own, method)(*positional, **keywords)
        finally:  # else the next call would get the answers to this one
            answers = [worker.answer() for worker in self._others]
        for _, error, where in answers:
            if error is not None:
                raise error from RuntimeError(where)
        return list(zip(own, *(result for result, _, _ in answers), strict=True))


class _Worker:
    """Another process with a vector environment of n."""

    def __init__(self, make: Callable[[int], VectorEnv], n: int) -> None:
        # A process forked from this one would inherit its threads' locks, and pipes that keep others from ending.
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context: Any = multiprocessing.get_context(method)
        context.set_forkserver_preload([__name__])
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, pickle.dumps(partial(make, n))), daemon=True)
        self.process.start()
        theirs.close()

    def call(self, method: str, positional: tuple, keywords: dict) -> None:
        try:
            self.connection.send((method, positional, keywords))
        except OSError as error:
            raise self._ended() from error

    def answer(self) -> tuple[Any, Exception | None, str]:
        """Return what the call returned, or its error and where that was raised."""
        try:
            return self.connection.recv()
        except (EOFError, OSError) as ended:
            raise self._ended() from ended

    def close(self) -> None:
        self.connection.close()
        self.process.join(_PATIENCE)
        if self.process.exitcode is None:
            self.process.kill()

    def _ended(self) -> DataError:
        self.process.join(_PATIENCE)
        return DataError(f"a process that steps environments has ended, with exit code {self.process.exitcode}")


def _work(connection: Connection, make: bytes) -> None:
    """Do what comes through the connection until it closes."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C is for the process that trains, which still evaluates
    env: Any = None
    failure = None
    try:
        env = pickle.loads(make)()  # noqa: S301  # our own
    except Exception as error:  # foreign code may raise anything
        failure = None, _sendable(error), traceback.format_exc()
    with suppress(EOFError, OSError):  # the other end has closed
        while True:
            method, positional, keywords = connection.recv()
            connection.send(failure or _answer(env, method, positional, keywords))


def _answer(env: VectorEnv, method: str, positional: tuple, keywords: dict) -> tuple[Any, Exception | None, str]:
    try:
        return getattr(env, method)(*positional, **keywords), None, ""
    except Exception as error:  # foreign code may raise anything
        return None, _sendable(error), traceback.format_exc()


def _sendable(error: Exception) -> Exception:
    """Return the error, or another with its words if it does not survive pickling."""
    try:
        return pickle.loads(pickle.dumps(error))  # noqa: S301  # our own
    except Exception:  # foreign code may raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")


def _joined(infos: tuple[dict[str, np.ndarray], ...]) -> dict[str, np.ndarray]:
    """Join what vector environments say that say the same things."""
    return {key: np.concatenate([info[key] for info in infos]) for key in infos[0] if all(key in i for i in infos)}
