"""Train a model: python scripts/train.py model=cat_vae. --help shows what can be set."""

import hydra
from omegaconf import DictConfig

from taugrad import pipeline
from taugrad.errors import one_sentence


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
@one_sentence
def main(config: DictConfig) -> float | list[float]:
    """Train, evaluate, return the objective or objectives."""
    return pipeline.train(config)


if __name__ == "__main__":
    main()
