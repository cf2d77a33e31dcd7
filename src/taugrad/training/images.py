r"""What every model of images shares: training on stacks of batches, discrete evaluation, code usage, checkpoints.

A training step takes a stack of batches and makes an optimizer step for each (manual optimization): what Lightning does
around a training step costs a fifth of a small model's optimizer step. Lightning's x-axis would count training steps,
so during a fit `callbacks.Scalars` writes what is logged here to the loggers, over optimizer steps.

Evaluation is discrete whatever training relaxed: hard samples, by a generator of their own, so that neither does
evaluating change training nor the number of evaluations a result.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from torch import Tensor

from taugrad.checks import check_counts
from taugrad.config import instantiate
from taugrad.data.datamodule import ImageData
from taugrad.errors import ConfigError
from taugrad.estimators import Estimator
from taugrad.ops.categorical import entropy
from taugrad.schedules import Schedule
from taugrad.training.task import is_kept, optimizer_over, require_finite

_EVALUATION_SEED = 0
_ACTIVE = 0.01  # the share of the data that a code must stand for to count as used


class ImageModel(LightningModule, ABC):
    """The base of models of images; their parts are given as configs, which is what a checkpoint can hold safely.

    Args:
        image_size: height and width of an image.
        estimator: config of the gradient estimator.
        tau: config of the temperature's schedule, over optimizer steps.
        optimizer: config of the optimizer, partial: the parameters come later.
        lr_factor: config of the schedule that multiplies the optimizer's learning rate.

    Raises:
        ValueError: a size is out of range.
    """

    evaluated: ClassVar[str] = "best"  # checkpoint
    speed: ClassVar[str] = "train/steps_per_second"
    changeable: ClassVar[tuple[str, ...]] = ("estimator", "tau", "lr_factor", "optimizer.lr")  # on resume
    charts: ClassVar[dict[str, tuple[str, ...]]] = {  # side by side in TensorBoard
        "loss": ("train/loss", "val/loss"),
        "terms": ("train/reconstruction", "train/kl", "train/labelled_elbo", "train/elbo", "train/classification"),
        "temperature": ("tau",),
        "gradient": ("train/grad_norm",),
        "gradient against the exact one": ("probe/cosine", "probe/snr"),
        "codes": ("val/code_perplexity", "val/active_codes"),
    }
    metrics: ClassVar[tuple[str, ...]] = (
        *("train/epoch_loss", "val/loss", "test/loss"),
        *("val/code_perplexity", "val/active_codes"),
    )

    def __init__(
        self,
        image_size: Sequence[int],
        estimator: Mapping[str, Any],
        tau: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        lr_factor: Mapping[str, Any],
    ) -> None:
        super().__init__()
        check_counts("image_size", image_size)
        self.automatic_optimization = False  # a training step makes several optimizer steps
        self.image_size = tuple(image_size)
        self.estimator: Estimator = instantiate(estimator)
        self.tau: Schedule = instantiate(tau)
        self.lr_factor: Schedule = instantiate(lr_factor)
        self.optimizer_config = optimizer
        self.gradient_clip_val: float | None = None  # a trainer clips only where it makes the optimizer steps itself
        self.epoch_losses: list[Tensor] = []  # one for each step of the epoch, or of its part since a resume
        self.aggregate: Tensor | None = None  # sum of the codes' probabilities over the validation images, (N, K)

    def start(self, mean: Tensor) -> None:  # most models take nothing from it
        """What a model takes from the data before its first step: the mean (height, width) of the first images."""

    @abstractmethod
    def loss_terms(self, x: Tensor, labels: Tensor, step: int) -> dict[str, Tensor]:
        """The `loss` of a training batch, x (batch, height, width) and labels (batch,), and terms to show beside it."""

    @abstractmethod
    def evaluation_terms(
        self, x: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The `loss` and others of a batch by hard samples, batch means, and the codes' logits (batch, N, K)."""

    @abstractmethod
    def test_terms(self, x: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor | float]:
        """What the test reports beside them."""

    @abstractmethod
    def greedy(self, x: Tensor) -> Tensor:
        """The most probable choices for images (batch, height, width), without sampling: what an export computes."""

    @abstractmethod
    def pictures(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Pictures (height, width) in [0, 1] by their names, of images x (n, height, width) and their labels (n,)."""

    @property
    def input_size(self) -> tuple[int, ...]:
        """Of one input of `greedy`."""
        return self.image_size

    def clock(self) -> tuple[int, int]:
        """Optimizer steps done, and in all (-1: no end)."""
        return self.trainer.global_step, self.trainer.max_steps

    def results(self) -> dict[str, Any]:
        """What a finished run reports beside its metrics."""
        return {"steps": self.trainer.global_step}

    def setup(self, stage: str) -> None:
        """Check the images' size, before anything is trained."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, ImageData):
            self._check_size(data.image_size)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """One optimizer step for each batch of a stack (stack, batch, height, width), or for a batch without stack."""
        images, labels = (part if batch[0].ndim == 4 else part.unsqueeze(0) for part in batch)
        self._check_size(images.shape[-2:])
        if self.global_step == 0:
            mean = self.trainer.strategy.reduce(images.flatten(0, 1).mean(0), reduce_op="mean")  # of all processes
            self.start(cast(Tensor, mean))
        terms: dict[str, Tensor] = {}
        for x, y in zip(images, labels, strict=True):
            if self.global_step == self.trainer.max_steps:
                break
            terms = self.optimization_step(x, y)
        if terms and is_kept(self.trainer):
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            terms["grad_norm"] = torch.nn.utils.get_total_norm(gradients)
            shown = {"train/loss": terms.pop("loss"), "tau": self.tau(self.global_step - 1)}
            self.log_dict({f"train/{name}": term for name, term in terms.items()}, logger=False, sync_dist=True)
            self.log_dict(shown, prog_bar=True, logger=False, sync_dist=True)

    def optimization_step(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One step on the loss of a batch; tau and the learning rate follow from the step."""
        step = self.global_step
        optimizer = cast(LightningOptimizer, self.optimizers())
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * self.lr_factor(step)
        terms = self.loss_terms(x, labels, step)
        optimizer.zero_grad()
        self.manual_backward(terms["loss"])
        optimizer.step()
        terms = {name: term.detach() for name, term in terms.items()}
        self.epoch_losses.append(terms["loss"])
        return terms

    def _check_size(self, size: Sequence[int]) -> None:
        if tuple(size) != self.image_size:
            raise ConfigError(
                f"model.image_size must be {[*size]}, the size of the data's images, got {[*self.image_size]}"
            )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients to `gradient_clip_val`, as the trainer's `gradient_clip_algorithm` says."""
        if self.gradient_clip_val is None:
            return
        by_value = self.trainer.gradient_clip_algorithm == GradClipAlgorithmType.VALUE
        clip = torch.nn.utils.clip_grad_value_ if by_value else torch.nn.utils.clip_grad_norm_
        clip(self.parameters(), self.gradient_clip_val)

    def require_finite(self, term: str, value: Tensor, step: int) -> None:
        """Raise when a term of the loss is not finite, naming it, the step and tau."""
        require_finite(term, value, step, self.tau(step))

    def on_train_epoch_start(self) -> None:
        """Gather the epoch's losses anew."""
        self.epoch_losses = []

    def on_train_epoch_end(self) -> None:
        """Log the mean loss of the epoch's steps, each by its training sample."""
        if self.epoch_losses:
            self.log("train/epoch_loss", torch.stack(self.epoch_losses).mean(), logger=False, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The configured optimizer over all parameters."""
        return optimizer_over(self.parameters(), self.optimizer_config)

    def on_validation_epoch_start(self) -> None:
        """Start the evaluation's own noise, the same at every evaluation."""
        self.aggregate = None
        self._generator = torch.Generator(self.device).manual_seed(_EVALUATION_SEED + self.global_rank)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss by hard samples, and gather which codes are used."""
        terms, logits = self.evaluation_terms(*batch, self._generator)
        total = logits.softmax(-1).sum(0)
        self.aggregate = total if self.aggregate is None else self.aggregate + total
        self._log_evaluation("val", terms, batch_size=len(batch[0]))

    def on_validation_epoch_end(self) -> None:
        """Log how many codes a latent uses, on average over the latents."""
        if self.aggregate is not None:
            self.aggregate = cast(Tensor, self.trainer.strategy.reduce(self.aggregate, reduce_op="sum"))
        perplexity, active = self.code_usage()
        self._log_evaluation("val", {"code_perplexity": perplexity.mean(), "active_codes": active.mean()})

    def code_usage(self) -> tuple[Tensor, Tensor]:
        """Perplexity and number of the codes above 1 % of the data, each (N,), over the last validation."""
        if self.aggregate is None:
            raise RuntimeError("code_usage needs a validation epoch before it")
        share = self.aggregate / self.aggregate.sum(-1, keepdim=True)
        return entropy(share.log()).exp(), (share > _ACTIVE).sum(-1).float()

    def on_test_epoch_start(self) -> None:
        """Start the evaluation's own noise."""
        self._generator = torch.Generator(self.device).manual_seed(_EVALUATION_SEED + self.global_rank)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss by hard samples, and what only the test computes."""
        terms, _ = self.evaluation_terms(*batch, self._generator)
        more = self.test_terms(*batch, self._generator)
        self._log_evaluation("test", {**terms, **more}, batch_size=len(batch[0]))

    def _log_evaluation(self, split: str, terms: Mapping[str, Tensor | float], batch_size: int | None = None) -> None:
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        named = {f"{split}/{name}": term for name, term in terms.items()}
        self.log_dict(named, batch_size=batch_size, logger=False if fitting else None, sync_dist=True)
