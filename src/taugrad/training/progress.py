"""Output of a run while it trains: its config, and its progress."""

import time
from datetime import timedelta
from typing import Any

import rich.progress
from hydra.core.hydra_config import HydraConfig
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TimeElapsedColumn, TimeRemainingColumn
from rich.syntax import Syntax

from taugrad.checks import check_count
from taugrad.config import in_sweep
from taugrad.training.task import task_of

_QUIET_SECONDS = 30.0  # seconds after which a log file gets another line


class ShowConfig(Callback):
    """Prints the run's config, as YAML, when training starts, after everything in it was checked."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.shown = False

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Print the config, on rank 0 only."""
        self.shown = True
        if trainer.is_global_zero:
            Console().print(Syntax(self.text, "yaml", background_color="default"))


class Progress(ProgressBar):
    """Progress of a training and a test: a bar in a terminal or a notebook, lines of text in a log file.

    Both show the task's clock, loss, tau and the time left. A line is written after a validation, with the monitored
    metric, at every tenth of the training, and after 30 seconds without one. The bar is refreshed at intervals of
    `every` training steps, because a refresh costs more than a small model's step.
    """

    def __init__(self, every: int = 50) -> None:
        super().__init__()
        check_count("every", every)
        self.every = every
        self._display: _Bar | _Lines | None = None
        self._enabled = True

    def enable(self) -> None:
        """Show the progress, as on rank 0."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Start the training's bar."""
        done, total = task_of(trainer).clock()
        self._start("training", total if total > 0 else None, done, self.every, 10)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Write a line, after that of a validation at the same step."""
        if isinstance(self._display, _Lines):
            self._move(task_of(trainer).clock()[0], trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Move the training's bar."""
        if isinstance(self._display, _Bar):
            self._move(task_of(trainer).clock()[0], trainer)

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        """Write a line with the validation's metric."""
        if isinstance(self._display, _Lines) and not trainer.sanity_checking:
            self._display.evaluated = True
            self._move(task_of(trainer).clock()[0], trainer)

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        """End the training's bar, or write its last line."""
        if self._display is not None and self._display.shown != task_of(trainer).clock()[0]:
            self._display.show(task_of(trainer).clock()[0], _metrics_at_hand(trainer))
        self._stop()

    def on_test_start(self, trainer: Trainer, *_: Any) -> None:
        """Start the test's bar."""
        self._start("test", int(sum(trainer.num_test_batches)), 0, 1, 1)

    def on_test_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, i: int, *_: Any) -> None:
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
        self._display = _Bar(console, name, total, done, every) if moving else _Lines(console, name, total, done, lines)

    def _move(self, done: int, trainer: Trainer | None = None) -> None:
        if self._display is not None and self._display.due(done):
            self._display.show(done, _metrics_at_hand(trainer) if trainer else "")

    def _stop(self) -> None:
        if isinstance(self._display, _Bar):
            self._display.stop()
        self._display = None


class _Bar:
    """A bar that is refreshed in place."""

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
    """Lines of plain text, a moderate number for a training of any length."""

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
    """Return the task's metrics for a progress bar, and the last value of the monitored one."""
    metrics = dict(trainer.progress_bar_metrics)
    monitor = getattr(trainer.checkpoint_callback, "monitor", None)
    if monitor in trainer.callback_metrics:
        metrics[monitor] = trainer.callback_metrics[monitor].item()
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
