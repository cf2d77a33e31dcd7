"""Errors whose message is one sentence for the user."""


class TaugradError(Exception):
    """Base of these errors; the message needs no traceback."""


class ConfigError(TaugradError, ValueError):
    """A config that cannot be used; the message names the key."""


class DataError(TaugradError, ValueError):
    """Data that cannot be used, of a file or an environment; the message names it."""


class CheckpointError(TaugradError, RuntimeError):
    """A checkpoint that cannot be written, read or trusted; the message names it."""


class LogitsError(TaugradError, ValueError):
    """Rows of logits that no class can be drawn from; the message says how many."""


class NonFiniteLossError(TaugradError, RuntimeError):
    """A term of the loss became NaN or infinite; the message names it, the step and tau."""


class KernelError(TaugradError, RuntimeError):
    """A kernel that cannot be compiled or run on a device; the message names both."""


def reason_of(error: Exception) -> str:
    r"""Return the first line of another library's error, or its name where it says nothing.

    >>> reason_of(RuntimeError("run failed\nand more")), reason_of(OSError())
    ('run failed', 'OSError')
    """
    return str(error).splitlines()[0] if str(error) else type(error).__name__
