"""Evaluate a run from its checkpoint: python scripts/evaluate.py run=outputs/cat_vae/... num_samples=1000."""

import hydra
from omegaconf import DictConfig

from taugrad import pipeline
from taugrad.errors import one_sentence


@hydra.main(version_base="1.3", config_path="../conf", config_name="evaluate")
@one_sentence
def main(config: DictConfig) -> dict[str, float]:
    """Evaluate the run and return its test metrics."""
    return pipeline.evaluate(config)


if __name__ == "__main__":
    main()
