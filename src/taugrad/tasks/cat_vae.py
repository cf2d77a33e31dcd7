r"""A variational auto-encoder with N categorical latents of K classes (1611.01144).

    q(z|x) = prod_n Cat(z_n; softmax(encoder(x)_n)),   p(z) = uniform,   p(x|z) = Bernoulli(decoder(z))
    loss   = -ELBO = KL(q(z|x) || p(z)) - E_q log p(x|z)

The KL is analytic; E_q log p(x|z) and its gradient come from any estimator, at tau = schedule(step). Evaluation is
discrete whatever training relaxed: hard samples, by a generator of their own, so that neither does evaluating change
training nor the number of evaluations a result.

A training step takes a stack of batches and makes an optimizer step for each (manual optimization): what Lightning does
around a training step costs a fifth of a small model's optimizer step. Lightning's x-axis would count training steps,
so during a fit `callbacks.Scalars` writes what is logged here to the loggers, over optimizer steps.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from taugrad._arguments import check_count
from taugrad.bounds import elbo, hard_samples, importance_weighted_bound
from taugrad.categorical import bernoulli_log_prob, entropy, kl_to_uniform
from taugrad.config import instantiate
from taugrad.estimators import Enumeration, Estimator, check_enumerable
from taugrad.nets import mlp
from taugrad.schedules import Schedule
from taugrad.tasks.training import is_kept, require_finite

_EVALUATION_SEED = 0
_ACTIVE = 0.01  # the share of the data that a code must stand for to count as used


class CatVAE(LightningModule):
    """A categorical VAE; its parts are given as configs, which is what a checkpoint can hold safely.

    Args:
        latents: N, the number of categorical latents.
        categories: K, classes a latent, at least 2.
        encoder: sizes of the encoder's hidden layers.
        decoder: sizes of the decoder's hidden layers.
        activation: name of the activation of `torch.nn` between their layers.
        image_size: height and width of an image.
        estimator: config of the gradient estimator.
        tau: config of the temperature's schedule.
        optimizer: config of the optimizer, partial: the parameters come later.
        lr_factor: config of the schedule that multiplies the optimizer's learning rate.
        nll_samples: m, the samples of the importance-weighted bound at test.

    Raises:
        ValueError: a size is out of range, or enumeration has too much to enumerate.
    """

    evaluated: ClassVar[str] = "best"  # checkpoint
    speed: ClassVar[str] = "train/steps_per_second"
    changeable: ClassVar[tuple[str, ...]] = (
        "estimator",
        "tau",
        "lr_factor",
        "optimizer.lr",
        "nll_samples",
    )  # on resume
    metrics: ClassVar[tuple[str, ...]] = (
        *(f"{split}/{name}" for split in ("val", "test") for name in ("loss", "elbo", "reconstruction", "kl")),
        "train/epoch_loss",
        "val/code_perplexity",
        "val/active_codes",
        "test/nll",
        "test/nll_samples",
    )

    def __init__(
        self,
        latents: int,
        categories: int,
        encoder: Sequence[int],
        decoder: Sequence[int],
        activation: str,
        image_size: Sequence[int],
        estimator: Mapping[str, Any],
        tau: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        lr_factor: Mapping[str, Any],
        nll_samples: int = 1000,
    ) -> None:
        super().__init__()
        check_count("latents", latents)
        check_count("categories", categories, smallest=2)
        check_count("nll_samples", nll_samples)
        for name, sizes in (("encoder", encoder), ("decoder", decoder), ("image_size", image_size)):
            for i, size in enumerate(sizes):
                check_count(f"{name}[{i}]", size)
        self.save_hyperparameters(logger=False)
        self.automatic_optimization = False  # a training step makes several optimizer steps
        self.latents, self.categories, self.image_size = latents, categories, tuple(image_size)
        self.nll_samples = nll_samples
        self.estimator: Estimator = instantiate(estimator)
        if isinstance(self.estimator, Enumeration):
            check_enumerable(latents, categories)
        self.tau: Schedule = instantiate(tau)
        self.lr_factor: Schedule = instantiate(lr_factor)
        pixels = math.prod(image_size)
        self.encoder = mlp(pixels, encoder, latents * categories, activation)
        self.decoder = mlp(latents * categories, decoder, pixels, activation)
        self.epoch_losses: list[Tensor] = []  # one for each step of the epoch, or of its part since a resume
        self.aggregate: Tensor | None = None  # sum of q(z|x) over the validation images seen, (N, K)

    def clock(self) -> tuple[int, int]:
        """Optimizer steps done, and in all (-1: no end)."""
        return self.trainer.global_step, self.trainer.max_steps

    def results(self) -> dict[str, Any]:
        """What a finished run reports beside its metrics."""
        return {"steps": self.trainer.global_step}

    def encode(self, x: Tensor) -> Tensor:
        """Logits of q(z|x), (batch, N, K), of images (batch, height, width) in [0, 1]."""
        return self.encoder(x.flatten(1)).unflatten(-1, (self.latents, self.categories))

    def decode(self, z: Tensor) -> Tensor:
        """Logits of p(x|z), (..., pixels), of one-hot z (..., N, K)."""
        return self.decoder(z.flatten(-2))

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """Log p(x|z), (*more, batch), of images (batch, height, width) and one-hot z (*more, batch, N, K)."""
        return bernoulli_log_prob(self.decode(z), x.flatten(1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """One optimizer step for each batch of a stack (stack, batch, height, width), or for a batch without stack."""
        images, _ = batch
        terms: dict[str, Tensor] = {}
        for x in images if images.ndim == 4 else images.unsqueeze(0):
            if self.global_step == self.trainer.max_steps:
                break
            terms = self.optimization_step(x)
        if terms and is_kept(self.trainer):
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            terms["train/grad_norm"] = torch.nn.utils.get_total_norm(gradients)
            self.log_dict(terms, logger=False)
            shown = {"train/loss": -terms["train/elbo"], "tau": self.tau(self.global_step - 1)}
            self.log_dict(shown, prog_bar=True, logger=False)

    def optimization_step(self, x: Tensor) -> dict[str, Tensor]:
        """One step on the loss of images (batch, height, width); tau and the learning rate follow from the step."""
        step = self.global_step
        optimizer = cast(LightningOptimizer, self.optimizers())
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * self.lr_factor(step)
        reconstruction, kl = self.elbo_terms(x, step)
        optimizer.zero_grad()
        self.manual_backward(kl - reconstruction)
        optimizer.step()
        self.epoch_losses.append((kl - reconstruction).detach())
        terms = {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}
        return {f"train/{name}": term.detach() for name, term in terms.items()}

    def on_train_epoch_start(self) -> None:
        """Gather the epoch's losses anew."""
        self.epoch_losses = []

    def on_train_epoch_end(self) -> None:
        """Log the mean loss of the epoch's steps, each by its training sample."""
        if self.epoch_losses:
            self.log("train/epoch_loss", torch.stack(self.epoch_losses).mean(), logger=False)

    def elbo_terms(self, x: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """E_q log p(x|z) by the estimator at tau(step) and the KL, batch means; their difference is the ELBO."""
        tau = self.tau(step)
        logits = self.encode(x)
        kl = kl_to_uniform(logits).sum(-1).mean()
        require_finite("KL", kl, step, tau)
        reconstruction = self.estimator.expectation(lambda z: self.log_likelihood(x, z), logits, tau).mean()
        require_finite("reconstruction", reconstruction, step, tau)
        return reconstruction, kl

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The configured optimizer over all parameters."""
        return instantiate(self.hparams["optimizer"])(self.parameters())

    def on_validation_epoch_start(self) -> None:
        """Start the evaluation's own noise, the same at every evaluation."""
        self.aggregate = torch.zeros(self.latents, self.categories, device=self.device)
        self._generator = torch.Generator(self.device).manual_seed(_EVALUATION_SEED)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the one-sample ELBO with hard samples, and gather which codes are used."""
        x, _ = batch
        logits = self._log_elbo(x, "val")
        assert self.aggregate is not None  # set when the epoch started
        self.aggregate += logits.softmax(-1).sum(0)

    def on_validation_epoch_end(self) -> None:
        """Log how many codes a latent uses, on average over the latents."""
        perplexity, active = self.code_usage()
        self._log_evaluation({"val/code_perplexity": perplexity.mean(), "val/active_codes": active.mean()})

    def code_usage(self) -> tuple[Tensor, Tensor]:
        """Perplexity and number of the codes above 1 % of the data, each (N,), over the last validation."""
        if self.aggregate is None:
            raise RuntimeError("code_usage needs a validation epoch before it")
        share = self.aggregate / self.aggregate.sum(-1, keepdim=True)
        return entropy(share.log()).exp(), (share > _ACTIVE).sum(-1).float()

    def on_test_epoch_start(self) -> None:
        """Start the evaluation's own noise."""
        self._generator = torch.Generator(self.device).manual_seed(_EVALUATION_SEED)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the one-sample ELBO and the importance-weighted bound on the negative log-likelihood."""
        x, _ = batch
        logits = self._log_elbo(x, "test")
        log_prior = -self.latents * math.log(self.categories)
        bound = importance_weighted_bound(
            lambda z: self.log_likelihood(x, z) + log_prior, logits, self.nll_samples, generator=self._generator
        )
        terms = {"test/nll": -bound.mean(), "test/nll_samples": float(self.nll_samples)}
        self._log_evaluation(terms, batch_size=len(x))

    def _log_elbo(self, x: Tensor, split: str) -> Tensor:
        logits = self.encode(x)
        z = hard_samples(logits, 1, generator=self._generator)[0]
        reconstruction = self.log_likelihood(x, z)
        bound = elbo(reconstruction, logits).mean()
        terms = {
            "loss": -bound,
            "elbo": bound,
            "reconstruction": reconstruction.mean(),
            "kl": reconstruction.mean() - bound,
        }
        self._log_evaluation({f"{split}/{name}": value for name, value in terms.items()}, batch_size=len(x))
        return logits

    def _log_evaluation(self, terms: Mapping[str, Tensor | float], batch_size: int | None = None) -> None:
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        self.log_dict(terms, batch_size=batch_size, logger=False if fitting else None)
