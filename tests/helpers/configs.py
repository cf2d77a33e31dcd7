"""Configs as a command composes them."""

from pathlib import Path

from hydra import compose, initialize_config_dir

from taugrad.config import resolve

CONF = Path(__file__).parents[2] / "conf"


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return resolve(compose("train", ["run_dir=somewhere", *overrides]))
