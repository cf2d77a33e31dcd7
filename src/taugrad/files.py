"""Paths that a user writes, and files that a command writes.

A path that cannot be written is refused before the work, and a failure to write is one sentence.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taugrad.errors import ConfigError, TaugradError
from taugrad.extras import extra

_SHORT = re.compile(r"((?<=^)|(?<=file://))~[\w.-]*(?=[/\\]|$)|\$[A-Za-z_]\w*")  # a home at the beginning, a variable
_TEXT = re.compile(r""""[^"]*"|'[^']*'|[^,\[\](){}"'\s]+""")  # a value of Hydra: quoted, or without separators
_PLAIN = re.compile(r"[A-Za-z0-9_./:\\-]+")  # a value that needs no quotation marks


def user_path(path: str | Path) -> Path:
    """Expand `~` and `$NAME` in a path, as a shell does.

    >>> user_path("~/mnist") == Path.home() / "mnist"
    True
    """
    return Path(_expand(str(path)))


def expand_override(override: str) -> str:
    """Apply `user_path` to the values of a `key=value`, which a shell does not expand after the equals sign.

    >>> os.environ["HERE"] = "/a b"
    >>> expand_override("hydra.run.dir=$HERE/c"), expand_override("run=~/c") == f"run={Path.home()}/c"
    ("hydra.run.dir='/a b/c'", True)
    >>> expand_override("~callbacks.pruning")  # which leaves a key out
    '~callbacks.pruning'
    """
    key, sign, value = override.partition("=")
    if key.startswith("-"):  # an option such as --config-dir, whose value is one path without quotation marks
        return key + sign + _expand(value)

    def full(match: re.Match[str]) -> str:
        mark = match[0][0] if match[0][0] in "\"'" else ""
        text = match[0].strip(mark) if mark else match[0]
        found = _SHORT.sub(lambda short: _expand(short[0]), text)
        if not mark and found != text and not _PLAIN.fullmatch(found):
            return "'" + found.replace("'", r"\'") + "'"
        return mark + found + mark

    return key + sign + _TEXT.sub(full, value)


def require_file(key: str, path: Path) -> None:
    """Make the folder of a file that a command is going to write; ConfigError, naming `key`, if nothing can be."""
    require_folder(key, path.parent, path)
    try:
        folder, there = path.is_dir(), path.exists()
    except OSError as error:  # a name that is too long
        raise ConfigError(f"{key} must be a file that can be written, got {path}: {error.strerror}") from error
    if folder:
        raise ConfigError(f"{key} must be a file, got {path}, which is a folder")
    if there and not os.access(path, os.W_OK):
        raise ConfigError(f"{key} must be a file that can be written, got {path}")


def require_picture(key: str, path: Path) -> None:
    """Do as `require_file` for a plot; ConfigError too if matplotlib lacks the format, or is missing."""
    formats = extra("matplotlib.figure", "plot").Figure().canvas.get_supported_filetypes()
    if path.suffix.lstrip(".") not in formats:
        raise ConfigError(f"{key} must end in one of {', '.join(f'.{name}' for name in sorted(formats))}, got {path}")
    require_file(key, path)


def require_folder(key: str, folder: Path, of: Path | None = None) -> None:
    """Make a folder that a command is going to write into; ConfigError, naming `key` and its value, if it cannot."""
    where = f"{key} must be where files can be written, got {of or folder}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        there = os.path.exists(folder)  # noqa: PTH110  # pathlib raises for a name that is too long
        reason = "it" if there else "there is no such folder, and it"
        raise ConfigError(f"{where}: {reason} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{where}: {folder} is read-only")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write a file into one sentence that names it.

    Raises:
        TaugradError: it cannot be written.

    >>> with writing(Path("run/metrics.json")):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
    taugrad.errors.TaugradError: run/metrics.json cannot be written: No space left on device
    """
    try:
        yield
    except OSError as error:
        raise TaugradError(f"{path} cannot be written: {error.strerror or error}") from error


def _expand(text: str) -> str:
    return os.path.expanduser(os.path.expandvars(text))  # noqa: PTH111  # pathlib would raise for an unknown user
