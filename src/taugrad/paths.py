"""Paths as a user writes them."""

import os
import re
from pathlib import Path

_SHORT = re.compile(r"((?<=^)|(?<=file://))~[\w.-]*(?=[/\\]|$)|\$[A-Za-z_]\w*")  # a home at the beginning, a variable
_TEXT = re.compile(r""""[^"]*"|'[^']*'|[^,\[\](){}"'\s]+""")  # of Hydra's values: quoted, or without what separates
_PLAIN = re.compile(r"[A-Za-z0-9_./:\\-]+")  # what Hydra reads without quotation marks


def user_path(path: str | Path) -> Path:
    """`path` with the user's home for `~` and the environment's values for `$NAME`, as a shell has it.

    >>> user_path("~/mnist") == Path.home() / "mnist"
    True
    """
    return Path(_expand(str(path)))


def expand_override(override: str) -> str:
    """A command line's `key=value` with `user_path` applied to its values: a shell leaves them alone behind the sign.

    >>> os.environ["HERE"] = "/a b"
    >>> expand_override("hydra.run.dir=$HERE/c"), expand_override("run=~/c") == f"run={Path.home()}/c"
    ("hydra.run.dir='/a b/c'", True)
    >>> expand_override("~callbacks.pruning")  # which leaves a key out
    '~callbacks.pruning'
    """
    key, sign, value = override.partition("=")
    if key.startswith("-"):  # an option, --config-dir, whose value is no list and has no quotation marks
        return key + sign + _expand(value)

    def full(match: re.Match[str]) -> str:
        mark = match[0][0] if match[0][0] in "\"'" else ""
        text = match[0].strip(mark) if mark else match[0]
        found = _SHORT.sub(lambda short: _expand(short[0]), text)
        if not mark and found != text and not _PLAIN.fullmatch(found):
            return "'" + found.replace("'", r"\'") + "'"
        return mark + found + mark

    return key + sign + _TEXT.sub(full, value)


def _expand(text: str) -> str:
    return os.path.expanduser(os.path.expandvars(text))  # noqa: PTH111  # this one keeps the name of an unknown user
