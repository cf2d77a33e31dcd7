"""Compare gradient estimators with the exact gradient: python scripts/probe.py run=outputs/cat_vae/... ."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from taugrad.errors import one_sentence
from taugrad.probing import run_probe

_CONF = Path(__file__).resolve().parent.parent / "conf"


@hydra.main(version_base="1.3", config_path="../conf", config_name="probe")
@one_sentence
def main(config: DictConfig) -> None:
    """Probe, print, write probe.json and probe.png."""
    run_probe(config, _CONF / "estimator")


if __name__ == "__main__":
    main()
