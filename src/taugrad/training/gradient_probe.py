"""Quality of the estimator's gradient while a VAE trains."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from taugrad.errors import ConfigError
from taugrad.models.base import Latent
from taugrad.probe import probe, reference
from taugrad.training.images import ImageTask


class GradientProbe(Callback):
    """Logs the quality of the estimator's gradient during training: `probe/cosine` and `probe/snr`. Off by default.

    At intervals of `every` training steps it probes so many `images` of the batch together, by `draws` gradients, a
    multiple of ten. The reference gradient takes `reference_samples` where enumeration is too large.
    """

    def __init__(self, every: int = 500, images: int = 4, draws: int = 100, reference_samples: int = 20_000) -> None:
        self.every, self.images, self.draws, self.reference_samples = every, images, draws, reference_samples

    def check(self, task: LightningModule) -> None:
        """Raise ConfigError for a task that has no encoder and likelihood to probe."""
        if not (isinstance(task, ImageTask) and isinstance(task.model, Latent)):
            kind = type(getattr(task, "model", task)).__name__
            raise ConfigError(f"callbacks.probe is for a categorical VAE, got {kind}")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the task."""
        self.check(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Probe the gradient at the current weights; the training's random state is left as it was."""
        if (trainer.fit_loop.epoch_loop.total_batch_idx + 1) % self.every or not trainer.is_global_zero:
            return
        images, labels = batch
        x = (images.flatten(0, 1) if labels.ndim == 2 else images)[: self.images]
        logits = pl_module.model.encode(x).detach()
        f = lambda z: pl_module.model.log_likelihood(x, z)  # noqa: E731
        with torch.random.fork_rng():
            exact, _ = reference(f, logits, samples=self.reference_samples)
            tau = pl_module.tau(trainer.global_step)
            quality = probe(pl_module.estimator, f, logits, exact, tau=tau, draws=self.draws)
        for logger in trainer.loggers:
            logger.log_metrics({"probe/cosine": quality.cosine, "probe/snr": quality.snr}, step=trainer.global_step)
