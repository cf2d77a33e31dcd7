r"""The task of a model of images: training on stacks of batches, discrete evaluation, code usage.

A training step takes a stack of batches and makes an optimizer step for each: what Lightning does around a training
step costs a fifth of a small model's optimizer step. During a fit `tensorboard.Scalars` writes what is logged here to
the loggers, over optimizer steps.

Evaluation is discrete, also where training is relaxed. Its hard samples come from a generator of their own, so that
evaluating does not change training, and the number of evaluations does not change a result.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast, final

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from torch import Tensor, nn
from torch.optim import Optimizer

from taugrad.data.datamodule import ImageData
from taugrad.errors import ConfigError, LogitsError, NonFiniteLossError
from taugrad.estimators import Estimator, StraightThrough, check_estimator
from taugrad.models.base import Checked, Coded, Evaluated, Greedy, ImageModel, Pictured, Started, Tested
from taugrad.ops._torch import readable
from taugrad.ops.categorical import entropy
from taugrad.schedules import Constant, Schedule, check_schedule
from taugrad.training.task import MakeOptimizer, Task, is_kept, scale_lr

_EVALUATION_SEED = 0
_WHOLE = Constant(1.0)
_ACTIVE = 0.01  # the share of the data that a code must stand for to count as used

_CHARTS = {
    "loss": ("train/loss", "val/loss"),
    "terms": ("train/reconstruction", "train/kl", "train/labelled_elbo", "train/elbo", "train/classification"),
    "temperature": ("tau",),
    "weight of the KL": ("kl_weight",),
    "gradient": ("train/grad_norm",),
    "gradient against the exact one": ("probe/cosine", "probe/snr"),
    "codes": ("val/code_perplexity", "val/active_codes", "val/codes_in_use"),
}


@final
class ImageTask(Task):
    """Trains a model of images through an estimator, at a temperature that a schedule gives.

    Args:
        model: an `nn.Module` with `loss_terms`; the other protocols of `taugrad.models.base` are optional.
        estimator: of the gradient through the samples.
        tau: schedule of the temperature, over optimizer steps.
        optimizer: makes the optimizer of the parameters, such as `partial(torch.optim.Adam, lr=1e-3)`.
        lr_factor: schedule that multiplies the optimizer's learning rate.
        kl_weight: schedule of the weight of the term `kl` in the training loss, over optimizer steps; evaluations
            report the bound itself, of weight 1.

    Raises:
        TypeError: `model` is no module with `loss_terms`, or another argument is not what it should be.
        ValueError: the model refuses the estimator.

    >>> from functools import partial
    >>> from taugrad import Constant, Linear, STGumbelSoftmax
    >>> from taugrad.models.cat_vae import CatVAE
    >>> adam = partial(torch.optim.Adam, lr=1e-3)
    >>> task = ImageTask(CatVAE(), STGumbelSoftmax(), Linear(1.0, 0.5, steps=20_000), adam, Constant(1.0))
    >>> task.greedy(torch.zeros(2, 28, 28)).shape
    torch.Size([2, 20])
    """

    evaluated: ClassVar[str] = "best"
    speed: ClassVar[str] = "train/steps_per_second"

    def __init__(
        self,
        model: ImageModel,
        estimator: Estimator,
        tau: Schedule,
        optimizer: MakeOptimizer,
        lr_factor: Schedule,
        kl_weight: Schedule = _WHOLE,
    ) -> None:
        super().__init__(optimizer, lr_factor)
        self.charts = _CHARTS
        if not isinstance(model, nn.Module) or not isinstance(model, ImageModel):
            raise TypeError(f"model must be an nn.Module with loss_terms, got {type(model).__name__}")
        check_estimator(estimator)
        check_schedule("tau", tau)
        check_schedule("kl_weight", kl_weight)
        if isinstance(model, Checked):
            model.check(estimator)
        self.model: ImageModel = model
        self.estimator, self.tau, self.kl_weight = estimator, tau, kl_weight
        self.metrics = (
            *("train/epoch_loss", "val/loss", "test/loss"),
            *(("val/code_perplexity", "val/active_codes") if self._codes_per_latent() else ()),
            *getattr(model, "metrics", ()),
        )
        changeable = (f"model.{name}" for name in getattr(model, "changeable", ()))
        self.changeable = ("estimator", "tau", "kl_weight", "lr_factor", "optimizer.lr", *changeable)
        self.input_size: tuple[int, ...] = tuple(getattr(model, "image_size", ()))
        self.gradient_clip_val: float | None = None  # a trainer clips only where it makes the optimizer steps itself
        self.epoch_losses: list[Tensor] = []  # one for each step of the epoch, or of its part since a resume
        self._finite_losses = 0  # how many of these are known to be finite
        self.aggregate: Tensor | None = None  # sum of the codes' probabilities, (N, K), or counts, over the evaluation

    def greedy(self, x: Tensor) -> Tensor:
        """Return the model's most probable choices for images (batch, ...); ConfigError if it has none."""
        if not isinstance(self.model, Greedy):
            children = cast(nn.Module, self.model).named_children()
            part = next((name for name, child in children if isinstance(child, Greedy)), None)
            instead = f"; its {part} has: export a run of that" if part else ""
            raise ConfigError(f"{type(self.model).__name__} cannot be exported: it has no greedy{instead}")
        return self.model.greedy(x)

    def pictures(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the model's pictures (height, width) or (3, height, width) by their names, from images `x`."""
        return self.model.pictures(x, labels) if isinstance(self.model, Pictured) else {}

    def clock(self) -> tuple[int, int]:
        """Return the optimizer steps done, and their total (-1: no end)."""
        return self.trainer.global_step, self.trainer.max_steps

    def results(self) -> dict[str, Any]:
        """Return the number of optimizer steps."""
        return {"steps": self.trainer.global_step}

    def setup(self, stage: str) -> None:
        """Check the images' size and the labels before the first step."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, ImageData):
            self.check_data(data)

    def check_data(self, data: ImageData) -> None:
        """Raise ConfigError, or what the model raises, if the data's images or labels do not fit the model."""
        self._check_size(data.image_size)
        if isinstance(self.model, Checked):
            self.model.check(self.estimator, data.labels())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Make an optimizer step for each batch of a stack, labels (stack, batch), or for one batch alone."""
        images, labels = (part if batch[1].ndim == 2 else part.unsqueeze(0) for part in batch)
        self._check_size(images.shape[2:])
        if self.global_step == 0 and isinstance(self.model, Started):
            mean = self.trainer.strategy.reduce(images.flatten(0, 1).mean(0), reduce_op="mean")  # over processes
            self.model.start(cast(Tensor, mean))
        terms: dict[str, Tensor] = {}
        for x, y in zip(images, labels, strict=True):
            if self.global_step == self.trainer.max_steps:
                break
            terms = self.optimization_step(x, y)
        if terms and is_kept(self.trainer):
            self._require_finite_losses()
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            terms["grad_norm"] = torch.nn.utils.get_total_norm(gradients)
            shown = {"train/loss": terms.pop("loss"), "tau": self.tau(self.global_step - 1)}
            if self.kl_weight != _WHOLE:
                shown["kl_weight"] = self.kl_weight(self.global_step - 1)
            self.log_dict({f"train/{name}": term for name, term in terms.items()}, logger=False, sync_dist=True)
            self.log_dict(shown, prog_bar=True, logger=False, sync_dist=True)

    def optimization_step(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Make one optimizer step on a batch; tau and the learning rate follow from the step."""
        step = self.global_step
        optimizer = cast(LightningOptimizer, self.optimizers())
        scale_lr(cast(Optimizer, optimizer), self.lr_factor(step))
        tau = self.tau(step)
        try:
            terms = self.model.loss_terms(x, labels, self.estimator, tau)
        except LogitsError as error:  # sampling on a CPU refuses those of a model that has diverged
            raise _non_finite("logits that are not finite", step, tau) from error
        weight = self.kl_weight(step)
        if weight != 1:
            terms["loss"] = terms["loss"] + (weight - 1) * _kl_of(terms, self.model)
        if readable(terms["loss"]) and not torch.isfinite(terms["loss"]):
            bad = (f"{name} = {term.item()}" for name, term in terms.items() if not torch.isfinite(term))
            raise _non_finite(", ".join(bad), step, tau)
        optimizer.zero_grad()
        self.manual_backward(terms["loss"])
        optimizer.step()
        terms = {name: term.detach() for name, term in terms.items()}
        self.epoch_losses.append(terms["loss"])
        return terms

    def _check_size(self, size: Sequence[int]) -> None:
        if not self.input_size or tuple(size) == self.input_size:
            return
        there, takes = list(size), list(self.input_size)
        if "image_size" in inspect.signature(type(self.model)).parameters:
            raise ConfigError(f"model.image_size must be {there}, the size of the data's images, got {takes}")
        raise ConfigError(
            f"the data's images must be {takes}, the size that {type(self.model).__name__} takes, got {there}: "
            "data.source.size and data.source.mode change those of a folder"
        )

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradients to `gradient_clip_val` by the trainer's `gradient_clip_algorithm`."""
        if self.gradient_clip_val is not None:
            by_value = self.trainer.gradient_clip_algorithm == GradClipAlgorithmType.VALUE
            clip = torch.nn.utils.clip_grad_value_ if by_value else torch.nn.utils.clip_grad_norm_
            clip(self.parameters(), self.gradient_clip_val)

    def on_train_epoch_start(self) -> None:
        """Forget the losses of the epoch before."""
        self.epoch_losses = []
        self._finite_losses = 0

    def _require_finite_losses(self) -> None:
        """Raise late for a loss of the epoch that is not finite: on a GPU its step would have had to wait for it.

        Raises:
            NonFiniteLossError: one is not.
        """
        losses = self.epoch_losses[self._finite_losses :]
        bad = [] if not losses else (~torch.isfinite(torch.stack(losses))).nonzero().flatten().tolist()
        if bad:
            step = self.global_step - len(losses) + bad[0]
            raise _non_finite(f"loss = {losses[bad[0]].item()}", step, self.tau(step))
        self._finite_losses = len(self.epoch_losses)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to save a model whose loss was not finite."""
        self._require_finite_losses()

    def on_train_epoch_end(self) -> None:
        """Log the mean loss of the epoch's steps, each by its training sample."""
        self._require_finite_losses()
        if self.epoch_losses:
            self.log("train/epoch_loss", torch.stack(self.epoch_losses).mean(), logger=False, sync_dist=True)

    def on_validation_epoch_start(self) -> None:
        """Forget the codes' usage, and seed the evaluation's own noise, the same for every evaluation."""
        self.aggregate = None
        self._generator = torch.Generator(self.device).manual_seed(_EVALUATION_SEED + self.global_rank)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss by hard samples, and add up the usage of the codes."""
        self._log_terms("val", self._evaluate(batch), batch_size=len(batch[0]))

    def on_validation_epoch_end(self) -> None:
        """Log how many codes a latent uses, averaged over the latents, or what the model says of its codes."""
        self._log_usage("val")

    def on_test_epoch_end(self) -> None:
        """Log what a model that counts its codes itself says of them."""
        if isinstance(self.model, Coded):
            self._log_usage("test")

    def _log_usage(self, split: str) -> None:
        if self.aggregate is None:
            return
        self.aggregate = cast(Tensor, self.trainer.strategy.reduce(self.aggregate, reduce_op="sum"))
        if isinstance(self.model, Coded):
            usage = self.model.usage(self.aggregate)
        else:
            perplexity, active = self.code_usage()
            usage = {"code_perplexity": perplexity.mean(), "active_codes": active.mean()}
        self.log_evaluation({f"{split}/{name}": value for name, value in usage.items()})

    def _codes_per_latent(self) -> bool:
        return isinstance(self.model, Evaluated) and not isinstance(self.model, Coded)

    def code_usage(self) -> tuple[Tensor, Tensor]:
        """Return the perplexity of the codes, and the number that stand for over 1 % of the last validation, (N,) each.

        Raises:
            RuntimeError: there was none, or the model has no codes.
        """
        if self.aggregate is None or not self._codes_per_latent():
            raise RuntimeError("code_usage needs a validation epoch before it, of a model with evaluation_terms")
        share = self.aggregate / self.aggregate.sum(-1, keepdim=True)
        return entropy(share.log()).exp(), (share > _ACTIVE).sum(-1).float()

    on_test_epoch_start = on_validation_epoch_start

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss by hard samples, and the terms that only the test computes."""
        terms = self._evaluate(batch)
        more = self.model.test_terms(*batch, self._generator) if isinstance(self.model, Tested) else {}
        self._log_terms("test", {**terms, **more}, batch_size=len(batch[0]))

    def _evaluate(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Return the terms of a batch by hard samples, and add the codes' probabilities to `aggregate`."""
        if isinstance(self.model, Evaluated):
            terms, counted = self.model.evaluation_terms(*batch, self._generator)
            total = counted if isinstance(self.model, Coded) else counted.softmax(-1).sum(0)
            self.aggregate = total if self.aggregate is None else self.aggregate + total
            return terms
        seed = int(torch.randint(2**62, (), generator=self._generator, device=self.device))
        with torch.random.fork_rng([self.device] if self.device.type != "cpu" else [], device_type=self.device.type):
            torch.manual_seed(seed)
            return self.model.loss_terms(*batch, StraightThrough(), 1.0)

    def _log_terms(self, split: str, terms: Mapping[str, Tensor | float], batch_size: int) -> None:
        self.log_evaluation({f"{split}/{name}": term for name, term in terms.items()}, batch_size)


def _kl_of(terms: Mapping[str, Tensor], model: object) -> Tensor:
    if "kl" not in terms:
        got = ", ".join(terms)
        raise ConfigError(f"kl_weight needs a model with a term `kl`, got {type(model).__name__}, which has {got}")
    return terms["kl"]


def _non_finite(named: str, step: int, tau: float) -> NonFiniteLossError:
    return NonFiniteLossError(
        f"the loss is not finite at step {step} (tau = {tau:.4g}), with {named}: a lower learning rate or a higher tau "
        "usually helps"
    )
