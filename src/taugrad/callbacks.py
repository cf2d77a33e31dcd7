"""What a run shows and saves beside its task: progress, scalars, pictures, random states, its own config."""

import random
import time
from datetime import timedelta
from typing import Any, cast

import numpy as np
import rich.progress
import torch
from hydra.core.hydra_config import HydraConfig
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TimeElapsedColumn, TimeRemainingColumn
from rich.syntax import Syntax
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from torch import Tensor

from taugrad import __version__, sweeps
from taugrad.checks import check_count
from taugrad.data.batches import first_images
from taugrad.errors import ConfigError, in_sweep
from taugrad.extras import extra
from taugrad.probe import probe, reference
from taugrad.tasks.acting import Acting
from taugrad.tasks.cat_vae import CatVAE
from taugrad.tasks.modelling import ImageModel
from taugrad.tasks.training import is_kept

_QUIET_SECONDS = 30.0  # after which a log file gets another line
_EVALUATIONS = ("val/", "test/", "eval/", "eval_sampled/")


class ShowConfig(Callback):
    """Prints the run's config when training starts: after all that may be wrong with it was checked.

    Args:
        text: the config, as YAML.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.shown = False

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Print it, of several processes in the first."""
        self.shown = True
        if trainer.is_global_zero:
            Console().print(Syntax(self.text, "yaml", background_color="default"))


class Progress(ProgressBar):
    """How far a training and an evaluation are: by a bar in a terminal or a notebook, by lines of text in a log file.

    Both show the task's clock, loss, tau and the time left. A line is written after a validation, with what checkpoints
    are chosen by, at every tenth of the training, and after 30 seconds without one.

    Args:
        every: training steps between two refreshes of the bar; drawing costs more than a small model's step.
    """

    def __init__(self, every: int = 50) -> None:
        super().__init__()
        check_count("every", every)
        self.every = every
        self._display: _Bar | _Lines | None = None
        self._enabled = True

    def enable(self) -> None:
        """Show the progress, as on the first process of several."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Start the training's bar."""
        done, total = pl_module.clock()
        self._start("training", total if total > 0 else None, done, self.every, 10)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        """Write a line, not before a validation that falls on the same step has."""
        if isinstance(self._display, _Lines):
            self._move(pl_module.clock()[0], trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        """Move the training's bar."""
        if isinstance(self._display, _Bar):
            self._move(pl_module.clock()[0], trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write a line with what the validation found."""
        if isinstance(self._display, _Lines) and not trainer.sanity_checking:
            self._display.evaluated = True
            self._move(pl_module.clock()[0], trainer)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """End the training's bar, or write its last line."""
        if self._display is not None and self._display.shown != pl_module.clock()[0]:
            self._display.show(pl_module.clock()[0], _metrics_at_hand(trainer))
        self._stop()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the test's bar."""
        self._start("test", int(sum(trainer.num_test_batches)), 0, 1, 1)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, i: int, *_: Any
    ) -> None:
        """Move the test's bar."""
        self._move(i + 1)

    def on_test_end(self, *_: Any) -> None:
        """End the test's bar."""
        self._stop()

    def on_exception(self, *_: Any) -> None:
        """Leave the terminal in order."""
        self._stop()

    def _start(self, name: str, total: int | None, done: int, every: int, lines: int) -> None:
        if not self._enabled:
            return
        if in_sweep():  # whose jobs may write to the same file at the same time
            name = f"job {HydraConfig.get().job.num}: {name}"
        console = Console()
        moving = console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal)
        display = _Bar(console, name, total, done, every) if moving else _Lines(console, name, total, done, lines)
        self._display = display

    def _move(self, done: int, trainer: Trainer | None = None) -> None:
        if self._display is not None and self._display.due(done):
            self._display.show(done, _metrics_at_hand(trainer) if trainer else "")

    def _stop(self) -> None:
        if isinstance(self._display, _Bar):
            self._display.stop()
        self._display = None


class _Bar:
    """A bar that is drawn over again."""

    def __init__(self, console: Console, name: str, total: int | None, done: int, every: int) -> None:
        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        fields = "{task.fields[shown]}"
        self._bar = rich.progress.Progress(*columns, fields, console=console, auto_refresh=False)
        self._bar.start()
        self._bar.add_task(name, total=total, completed=done, shown="")
        self._total, self._every, self.shown = total, every, done

    def due(self, done: int) -> bool:
        return done - self.shown >= self._every or done == self._total

    def show(self, done: int, metrics: str) -> None:
        self._bar.update(TaskID(0), completed=done, shown=metrics, refresh=True)
        self.shown = done

    def stop(self) -> None:
        self._bar.stop()


class _Lines:
    """Lines of plain text, a moderate number whatever the training's length."""

    def __init__(self, console: Console, name: str, total: int | None, done: int, lines: int) -> None:
        self._console, self._name, self._total, self._lines = console, name, total, lines
        self._begun, self._since, self._last = done, time.monotonic(), time.monotonic()
        self.shown = done
        self.evaluated = False  # since the last line

    def due(self, done: int) -> bool:
        steps = done - self.shown
        if steps and time.monotonic() - self._last >= _QUIET_SECONDS:
            return True
        if self._total is None:
            return steps > 0 and self.evaluated
        return steps * (100 if self.evaluated else self._lines) >= self._total  # at most a hundred for validations

    def show(self, done: int, metrics: str) -> None:
        now = time.monotonic()
        seconds, steps = now - self._since, done - self._begun
        parts = [f"{self._name} {done}" + (f"/{self._total}" if self._total else ""), metrics]
        if steps and seconds:
            parts.append(f"{steps / seconds:.4g} steps/s")
        if self._total and steps > 0 and done < self._total:
            parts.append(f"{timedelta(seconds=round((self._total - done) * seconds / steps))} left")
        else:
            parts.append(f"{timedelta(seconds=round(seconds))} in all")
        self._console.print("  ".join(filter(None, parts)), soft_wrap=True, markup=False, highlight=False)
        self.shown, self._last, self.evaluated = done, now, False


def _metrics_at_hand(trainer: Trainer) -> str:
    """What the task wants in a progress bar, and the last value of what checkpoints are chosen by."""
    metrics = dict(trainer.progress_bar_metrics)
    monitor = getattr(trainer.checkpoint_callback, "monitor", None)
    if monitor in trainer.callback_metrics:
        metrics[monitor] = trainer.callback_metrics[monitor].item()
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())


class Scalars(Callback):
    """Writes what a task logs, and the training speed, to the loggers: over its clock, evaluations left out.

    In TensorBoard's tab of custom scalars the task's `charts` stand side by side.
    """

    def __init__(self) -> None:
        self._since: tuple[int, float] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Lay out the charts."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                charts = {title: ["Multiline", list(tags)] for title, tags in pl_module.charts.items()}
                logger.experiment.add_custom_scalars({"training": charts})

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Let TensorBoard forget what a run wrote after the checkpoint that this one goes on from."""
        step = pl_module.clock()[0]
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero and step > 0:
                start = Event(step=step + 1, session_log=SessionLog(status=SessionLog.START))
                logger.experiment._get_file_writer().add_event(start)

    def on_save_checkpoint(self, trainer: Trainer, *_: Any) -> None:
        """Write to disk what belongs to the training up to the checkpoint."""
        for logger in trainer.loggers:
            logger.save()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        """Write the training's metrics every `log_every_n_steps`."""
        if not is_kept(trainer):
            return
        metrics = {name: x for name, x in trainer.callback_metrics.items() if not name.startswith(_EVALUATIONS)}
        step, now = pl_module.clock()[0], time.perf_counter()
        if self._since:
            metrics[pl_module.speed] = torch.tensor((step - self._since[0]) / (now - self._since[1]))
        self._since = step, now
        self._write(trainer, metrics, step)

    def on_validation_start(self, *_: Any) -> None:
        """Do not count the time of a validation."""
        self._since = None

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write the evaluation's metrics."""
        if trainer.state.fn == TrainerFn.FITTING:
            metrics = {name: x for name, x in trainer.callback_metrics.items() if name.startswith(_EVALUATIONS)}
            self._write(trainer, metrics, pl_module.clock()[0])

    def _write(self, trainer: Trainer, metrics: dict[str, Tensor], step: int) -> None:
        for logger in trainer.loggers:
            logger.log_metrics({name: value.item() for name, value in metrics.items()}, step=step)


class Pictures(Callback):
    """Writes to TensorBoard after each validation: the model's pictures, and how it uses its codes.

    Args:
        images: of the validation split, which the model draws from.
    """

    def __init__(self, images: int = 1000) -> None:
        check_count("images", images)
        self.images = images
        self._drawn = -1  # the step of the last pictures

    def on_fit_start(self, *_: Any) -> None:
        """Begin anew."""
        self._drawn = -1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw with fixed codes and images, so that the pictures of two steps can be compared."""
        board = self._board(trainer, pl_module)
        if board is None or trainer.sanity_checking:
            return
        self._draw(board, trainer, pl_module)
        perplexity, active = cast(ImageModel, pl_module).code_usage()
        board.experiment.add_histogram("codes/perplexity_per_latent", perplexity, trainer.global_step)
        board.experiment.add_histogram("codes/active_per_latent", active, trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the model as it has become, where no validation came last."""
        board = self._board(trainer, pl_module)
        if board is not None and self._drawn != trainer.global_step and trainer.limit_val_batches != 0:
            pl_module.eval()
            with torch.no_grad():
                self._draw(board, trainer, pl_module)
            pl_module.train()

    def _board(self, trainer: Trainer, pl_module: LightningModule) -> TensorBoardLogger | None:
        if not trainer.is_global_zero or not isinstance(pl_module, ImageModel):
            return None  # of several processes the others have no TensorBoard
        return next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)

    def _draw(self, board: TensorBoardLogger, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = trainer.val_dataloaders  # which a training without a validation has not asked for
        if batches is None and (data := getattr(trainer, "datamodule", None)) is not None:
            batches = data.val_dataloader()
        if not batches:
            return
        x, labels = first_images(batches, self.images)
        x = trainer.precision_plugin.convert_input(x)
        pictures = cast(ImageModel, pl_module).pictures(x.to(pl_module.device), labels.to(pl_module.device))
        for name, picture in pictures.items():
            board.experiment.add_image(name, picture.float(), trainer.global_step, dataformats="HW")
        self._drawn = trainer.global_step


class Film(Callback):
    """Writes to TensorBoard after each evaluation of a policy: its first episode, as an animated picture.

    Args:
        every: pictures of the episode between two that are shown.
    """

    def __init__(self, every: int = 2) -> None:
        check_count("every", every)
        self.every = every
        self._imageio = extra("imageio.v3", "video")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Play the episode once more, and draw it."""
        board = next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)
        if board is None or trainer.sanity_checking or not isinstance(pl_module, Acting):
            return
        frames, fps = pl_module.film()
        shown = frames[:: self.every]
        options = {"extension": ".gif", "duration": 1000 * self.every / fps, "loop": 0}
        film = self._imageio.imwrite("<bytes>", shown, **options)
        height, width, channels = shown.shape[1:]
        image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=film)
        summary = Summary(value=[Summary.Value(tag="eval/film", image=image)])
        board.experiment._get_file_writer().add_summary(summary, pl_module.clock()[0])


class GradientProbe(Callback):
    """Logs how good the estimator's gradient is during training: `probe/cosine` and `probe/snr`. Off by default.

    Args:
        every: training steps between two probes.
        images: of the batch at hand, taken together.
        draws: gradients a probe, a multiple of ten.
        reference_samples: behind the reference gradient where enumeration is too large.
    """

    def __init__(self, every: int = 500, images: int = 4, draws: int = 100, reference_samples: int = 20_000) -> None:
        self.every, self.images, self.draws, self.reference_samples = every, images, draws, reference_samples

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a task that has no encoder and likelihood to probe.

        Raises:
            ConfigError: it is no VAE.
        """
        if not isinstance(pl_module, CatVAE):
            raise ConfigError(f"callbacks.probe is for a categorical VAE, got model {type(pl_module).__name__}")

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Probe the loss at the weights as they are; the training's random numbers stay what they were."""
        if (trainer.fit_loop.epoch_loop.total_batch_idx + 1) % self.every or not trainer.is_global_zero:
            return
        x = batch[0].flatten(0, -3)[: self.images]
        logits = pl_module.encode(x).detach()
        f = lambda z: pl_module.log_likelihood(x, z)  # noqa: E731
        with torch.random.fork_rng():
            exact, _ = reference(f, logits, samples=self.reference_samples)
            tau = pl_module.tau(trainer.global_step)
            quality = probe(pl_module.estimator, f, logits, exact, tau=tau, draws=self.draws)
        for logger in trainer.loggers:
            metrics = {"probe/cosine": quality.cosine, "probe/snr": quality.snr}
            logger.log_metrics(metrics, step=trainer.global_step)


class Pruning(Callback):
    """Reports each evaluation's objective to the trial of a study, and ends the run when the study's pruner says so.

    Args:
        directory: of the sweep, which holds the study.
        trial: the trial's number.
        monitor: the metric.
        pruner: of the study, which its storage does not keep.

    Raises:
        ConfigError: there is no trial, as the run is no job of a sweep; no evaluation gives the metric.
    """

    def __init__(self, directory: str, trial: int | None, monitor: str, pruner: Any) -> None:
        if trial is None:
            raise ConfigError("callbacks.pruning is for the jobs of a sweep: add -m, or ~callbacks.pruning")
        if monitor.startswith("test/"):
            raise ConfigError(f"callbacks.pruning: {monitor} is known after the training only: add ~callbacks.pruning")
        optuna = extra("optuna", "optuna")
        study = optuna.load_study(study_name=sweeps.NAME, storage=sweeps.storage(directory), pruner=pruner)
        self._trial, self.monitor = optuna.Trial(study, study.trials[trial]._trial_id), monitor

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Report, and raise Optuna's `TrialPruned`, which the sweep records as such."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        step = pl_module.clock()[0]
        if self.monitor not in trainer.callback_metrics:  # as the return before the first episode has ended
            return
        self._trial.report(trainer.callback_metrics[self.monitor].item(), step)
        if self._trial.should_prune():
            raise extra("optuna", "optuna").TrialPruned(f"pruned at step {step}")


class RandomStates(Callback):
    """Puts the states of all random generators into checkpoints, so that a resumed run draws what it would have.

    Of several processes each draws numbers of its own, at the start and after a resume.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The states as plain values and tensors."""
        name, key, *rest = np.random.get_state()  # noqa: NPY002  # libraries do use the global one
        return {
            "python": random.getstate(),
            "numpy": [name, np.asarray(key).tolist(), *rest],
            "torch": torch.get_rng_state(),
            "accelerator": _accelerator().get_rng_state() if torch.accelerator.is_available() else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training starts: set-up draws numbers too."""
        self._loaded = state_dict

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Restore what a checkpoint brought, and part the processes, which have the same states till here."""
        if self._loaded is not None:
            random.setstate(self._loaded["python"])
            name, key, *rest = self._loaded["numpy"]
            np.random.set_state((name, np.array(key, dtype=np.uint32), *rest))  # noqa: NPY002
            torch.set_rng_state(self._loaded["torch"].cpu())
            if self._loaded["accelerator"] is not None and torch.accelerator.is_available():
                _accelerator().set_rng_state(self._loaded["accelerator"].cpu())
            self._loaded = None
        if trainer.world_size > 1:
            torch.manual_seed(int(torch.randint(2**62, ())) + trainer.global_rank)


class SaveConfig(Callback):
    """Puts the run's config, and whose it is, into its checkpoints: a checkpoint alone can be evaluated."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the config, plain dicts, lists and scalars."""
        checkpoint["config"] = self.config
        checkpoint["versions"] = {"taugrad": __version__}


def _accelerator() -> Any:
    return torch.get_device_module(torch.accelerator.current_accelerator())
