"""Errors whose message is one sentence for the user, and how a script ends on them."""

import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class TaugradError(Exception):
    """The base of them: the message needs no traceback."""


class ConfigError(TaugradError, ValueError):
    """A config that cannot be used; the message names the key."""


class DataError(TaugradError, ValueError):
    """Data that cannot be used, of a file or an environment; the message names it."""


class CheckpointError(TaugradError, RuntimeError):
    """A checkpoint that cannot be written, read or trusted; the message names it."""


class NonFiniteLossError(TaugradError, RuntimeError):
    """A term of the loss became NaN or infinite; the message names it, the step and tau."""


def in_sweep() -> bool:
    """Whether this is a job of a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _of_the_user() -> tuple[type[Exception], ...]:
    """The errors of ours, and Lightning's about how it is configured: importing it for that would take seconds."""
    lightning = sys.modules.get("lightning.fabric.utilities.exceptions")
    return (TaugradError, lightning.MisconfigurationException) if lightning else (TaugradError,)


def one_sentence(main: Callable[P, R]) -> Callable[P, R]:
    """Let a script end on a user's error with its sentence and exit code 1; the traceback shows with `debug=true`.

    A job of a sweep prints the sentence, or the traceback of what is no user's error, and raises: its exit would be the
    sweep's, and Hydra keeps what it catches to itself.
    """

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except KeyboardInterrupt:
            sys.exit(130)
        except _of_the_user() as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1" or (args and getattr(args[0], "debug", False)):
                raise
            if in_sweep():
                from hydra.core.hydra_config import HydraConfig

                sys.stderr.write(f"error: job {HydraConfig.get().job.num}: {error}\n")
                raise
            sys.exit(f"error: {error}")
        except Exception as error:
            if in_sweep() and type(error).__name__ != "TrialPruned":
                traceback.print_exc()
            raise

    return run
