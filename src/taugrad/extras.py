"""Optional packages: imported where they are used, with one sentence when they are missing."""

import importlib
from types import ModuleType

from taugrad.errors import ConfigError


def extra(module: str, name: str) -> ModuleType:
    """Import a module that `pip install 'taugrad[name]'` installs.

    Raises:
        ConfigError: it is not installed.

    >>> extra("no_such_module", "plot")
    Traceback (most recent call last):
    taugrad.errors.ConfigError: this needs no_such_module: pip install 'taugrad[plot]'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(f"this needs {module.split('.')[0]}: pip install 'taugrad[{name}]'") from error
