"""Paths as a user writes them."""

import os
import re
from pathlib import Path

# Where a value of an override begins, `~` or `~user`; anywhere, `$NAME`.
_HOME = r"""(?:(?<=^)|(?<=[,\[(\s"'])|(?<=file://))~[\w.-]*(?=[/\\,\])"'\s]|$)"""
_SHORT = re.compile(rf"{_HOME}|\$[A-Za-z_]\w*")
_SPECIAL = re.compile(r"([\\()\[\]{}:=,\s])")  # what Hydra wants a backslash before, outside quotation marks


def user_path(path: str | Path) -> Path:
    """`path` with the user's home for `~` and the environment's values for `$NAME`, as a shell has it.

    >>> user_path("~/mnist") == Path.home() / "mnist"
    True
    """
    return Path(_expand(str(path)))


def expand_override(override: str) -> str:
    r"""A command line's `key=value` with `user_path` applied to its values: a shell leaves them alone behind the sign.

    >>> os.environ["PLACE"] = "/a b"
    >>> expand_override("hydra.run.dir=$PLACE/c"), expand_override("hydra.run.dir='$PLACE/c'")
    ('hydra.run.dir=/a\\ b/c', "hydra.run.dir='/a b/c'")
    >>> expand_override("~callbacks.pruning")  # which leaves a key out
    '~callbacks.pruning'
    """
    key, sign, value = override.partition("=")

    def full(match: re.Match[str]) -> str:
        before = value[: match.start()]
        quoted = before.count("'") % 2 or before.count('"') % 2
        found = _expand(match[0])
        return found if quoted or found == match[0] else _SPECIAL.sub(r"\\\1", found)

    return key + sign + _SHORT.sub(full, value)


def _expand(text: str) -> str:
    return os.path.expanduser(os.path.expandvars(text))  # noqa: PTH111  # this one keeps the name of an unknown user
