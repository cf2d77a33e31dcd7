"""Hydra's compositions, remembered: a process reads the files of `conf` and merges those of a choice of options once.

A command composes its config three times, for 0.14 s each, and five sixths of that go into the files. What Hydra makes
of them depends on the options, and not on the keys, which are set afterwards, as ever. A composition with files from
elsewhere, such as a test's own, is made anew.
"""

import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_store import ConfigStore

CONF = Path(__file__).parents[2] / "conf"


def remember_compositions() -> None:
    """Let Hydra copy what it made of the same files and options before."""
    load, merge = ConfigRepository.load_config, ConfigLoaderImpl._compose_config_from_defaults_list
    make_list, map_choices = config_loader_impl.create_defaults_list, defaults_list._create_interpolation_map
    made: dict[tuple, bytes] = {}

    def remembered(repo: Any, key: tuple, make: Callable[[], Any]) -> Any:
        if not _lasts(repo):
            return make()
        if key not in made:
            made[key] = pickle.dumps(make())
        return pickle.loads(made[key])

    def load_config(self, config_path):
        return remembered(self, ("file", config_path), lambda: load(self, config_path))

    def create_defaults_list(repo, config_name, overrides_list, prepend_hydra, skip_missing):
        given = [o for o in overrides_list if not o.is_sweep_override()]
        options = [o for o in given if repo.group_exists(o.key_or_group) and not isinstance(o.value(), dict)]
        key = ("list", config_name, *(o.input_line for o in options), prepend_hydra, skip_missing)
        found = remembered(repo, key, lambda: make_list(repo, config_name, options, prepend_hydra, skip_missing))
        return replace(found, config_overrides=[o for o in given if o not in options])

    def compose(self, defaults, repo):
        return remembered(repo, ("config", repr(defaults)), lambda: merge(self, defaults, repo))

    def choices_where_referred_to(overrides, defaults, self_added):
        referring = any(default.is_interpolation() for default in defaults)
        return map_choices(overrides, defaults, self_added) if referring else None

    ConfigStore.__deepcopy__ = lambda store, _: store  # each composition would copy all that is registered, to read it
    ConfigRepository.load_config = load_config
    ConfigLoaderImpl._compose_config_from_defaults_list = compose
    config_loader_impl.create_defaults_list = create_defaults_list
    defaults_list._create_interpolation_map = choices_where_referred_to  # each of 20 files would copy all choices


def _lasts(repo: Any) -> bool:
    """Return whether all files are of `conf` and Hydra, which stay as they are."""
    sources = ((source.scheme(), source.path) for source in repo.get_sources())
    return all(
        _is_ours(Path(path).absolute()) if scheme == "file" else path in ("", "hydra.conf") for scheme, path in sources
    )


@lru_cache
def _is_ours(path: Path) -> bool:
    return path.resolve() == CONF
