"""Callbacks that write to a run's loggers: scalars, pictures, films."""

import time
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from torch import Tensor

from taugrad.checks import check_count
from taugrad.data.batches import images_to_show
from taugrad.extras import extra
from taugrad.models.base import Coded
from taugrad.training.images import ImageTask
from taugrad.training.policies import PolicyTask
from taugrad.training.task import is_kept, task_of

_EVALUATIONS = ("val/", "test/", "eval/", "eval_sampled/")


class Scalars(Callback):
    """Writes what a task logs, and the training speed without evaluations, to the loggers, over the task's clock.

    TensorBoard's tab of custom scalars shows the task's `charts`.
    """

    def __init__(self) -> None:
        self._since: tuple[int, float] | None = None

    def on_fit_start(self, trainer: Trainer, *_: Any) -> None:
        """Lay out the charts."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                charts = {title: ["Multiline", list(tags)] for title, tags in task_of(trainer).charts.items()}
                logger.experiment.add_custom_scalars({"training": charts})

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Let TensorBoard drop what a run wrote after the checkpoint from which this one is resumed."""
        step = task_of(trainer).clock()[0]
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero and step > 0:
                start = Event(step=step + 1, session_log=SessionLog(status=SessionLog.START))
                logger.experiment._get_file_writer().add_event(start)

    def on_save_checkpoint(self, trainer: Trainer, *_: Any) -> None:
        """Flush the loggers, so that the disk has everything up to the checkpoint."""
        for logger in trainer.loggers:
            logger.save()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Write the training's metrics every `log_every_n_steps`."""
        if not is_kept(trainer):
            return
        metrics = {name: x for name, x in trainer.callback_metrics.items() if not name.startswith(_EVALUATIONS)}
        task = task_of(trainer)
        step, now = task.clock()[0], time.perf_counter()
        if self._since:
            metrics[task.speed] = torch.tensor((step - self._since[0]) / (now - self._since[1]))
        self._since = step, now
        self._write(trainer, metrics, step)

    def on_validation_start(self, *_: Any) -> None:
        """Leave the time of a validation out of the speed."""
        self._since = None

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        """Write the evaluation's metrics."""
        if trainer.state.fn == TrainerFn.FITTING:
            metrics = {name: x for name, x in trainer.callback_metrics.items() if name.startswith(_EVALUATIONS)}
            self._write(trainer, metrics, task_of(trainer).clock()[0])

    def _write(self, trainer: Trainer, metrics: dict[str, Tensor], step: int) -> None:
        for logger in trainer.loggers:
            logger.log_metrics({name: value.item() for name, value in metrics.items()}, step=step)


class Pictures(Callback):
    """Writes to TensorBoard after each validation: the model's pictures of `images` images, and its code usage."""

    def __init__(self, images: int = 1000) -> None:
        check_count("images", images)
        self.images = images
        self._written = -1  # the step of the last pictures

    def on_fit_start(self, *_: Any) -> None:
        """Forget the pictures of a fit before."""
        self._written = -1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write pictures of fixed codes and images, so that those of two steps can be compared."""
        board = self._board(trainer, pl_module)
        if board is None or trainer.sanity_checking:
            return
        self._write_pictures(board, trainer, pl_module)
        task = cast(ImageTask, pl_module)
        if task.aggregate is None:  # a model without codes
            return
        if isinstance(task.model, Coded):
            board.experiment.add_histogram("codes/images_per_code", task.aggregate, trainer.global_step)
            return
        perplexity, active = task.code_usage()
        board.experiment.add_histogram("codes/perplexity_per_latent", perplexity, trainer.global_step)
        board.experiment.add_histogram("codes/active_per_latent", active, trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write pictures of the final model, if it was not validated last."""
        board = self._board(trainer, pl_module)
        if board is not None and self._written != trainer.global_step and trainer.limit_val_batches != 0:
            pl_module.eval()
            with torch.no_grad():
                self._write_pictures(board, trainer, pl_module)
            pl_module.train()

    def _board(self, trainer: Trainer, pl_module: LightningModule) -> TensorBoardLogger | None:
        if not trainer.is_global_zero or not isinstance(pl_module, ImageTask):
            return None  # only the first of several processes has TensorBoard
        return next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)

    def _write_pictures(self, board: TensorBoardLogger, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = trainer.val_dataloaders  # a training without a validation has not asked for them
        if batches is None and (data := getattr(trainer, "datamodule", None)) is not None:
            batches = data.val_dataloader()
        if not batches:
            return
        x, labels = images_to_show(batches, self.images)
        x = trainer.precision_plugin.convert_input(x)
        pictures = cast(ImageTask, pl_module).pictures(x.to(pl_module.device), labels.to(pl_module.device))
        for name, picture in pictures.items():
            axes = "HW" if picture.ndim == 2 else "CHW"
            board.experiment.add_image(name, picture.float(), trainer.global_step, dataformats=axes)
        self._written = trainer.global_step


class Film(Callback):
    """Writes to TensorBoard after each evaluation of a policy: its first episode, every `every`-th frame of it."""

    def __init__(self, every: int = 2) -> None:
        check_count("every", every)
        self.every = every
        self._imageio = extra("imageio.v3", "video")

    def check(self, task: LightningModule) -> None:
        """Raise ConfigError for a policy whose environment cannot be rendered."""
        if isinstance(task, PolicyTask):
            task.check_film()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the task."""
        self.check(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Play the episode once more, and write its frames."""
        board = next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)
        if board is None or trainer.sanity_checking or not isinstance(pl_module, PolicyTask):
            return
        frames, fps = pl_module.film()
        shown = frames[:: self.every]
        film = self._imageio.imwrite("<bytes>", shown, extension=".gif", duration=1000 * self.every / fps, loop=0)
        height, width, channels = shown.shape[1:]
        image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=film)
        summary = Summary(value=[Summary.Value(tag="eval/film", image=image)])
        board.experiment._get_file_writer().add_summary(summary, pl_module.clock()[0])
