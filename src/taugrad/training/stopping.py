"""End of a training: by itself, with its last step validated and saved; by a signal, with a checkpoint to resume from.

SIGTERM, Ctrl-C and SIGHUP (a terminal that is gone) end it after the step in progress.
"""

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn

_HANGUP: int | None = getattr(signal, "SIGHUP", None)  # Windows has none
CODES = tuple(128 + s for s in (signal.SIGINT, signal.SIGTERM, _HANGUP) if s is not None)  # what these exit with


class Stopped(SystemExit):
    """Exit of a run that a signal stopped; as in a shell, the code is 128 plus the signal's number: 130, 143 or 129."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)


class StopSignals(Callback):
    """Turns the signals into `Stopped`: during training after the current step and a checkpoint, else at once.

    A second signal ends the process at once.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self._before: dict[int, Any] = {}
        self._training = False
        self._received: int | None = None
        self._saved_for: int | None = None

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # the only one that may
            self._before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
            if _HANGUP is not None and signal.getsignal(_HANGUP) != signal.SIG_IGN:  # as under nohup
                self._before[_HANGUP] = signal.getsignal(_HANGUP)
        self._handle()
        return self

    def __exit__(self, *_: Any) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def on_train_start(self, *_: Any) -> None:
        """Replace Lightning's handlers, which would lose the steps since the last checkpoint."""
        self._handle()
        self._training = True

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save if a signal came; a validation that is due now still runs, as a resumed run would skip it."""
        if trainer.strategy.reduce_boolean_decision(self._received is not None, all=False):  # of all processes
            trainer.save_checkpoint(self.checkpoint)
            self._saved_for = self._received or signal.SIGTERM  # another process had it

    def on_train_batch_start(self, *_: Any) -> None:
        """Stop if a checkpoint was saved for a signal; the resumed run begins with this batch."""
        if self._saved_for is not None:
            raise Stopped(self._saved_for)

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        """Save once more, and stop."""
        if self._saved_for is not None and trainer.state.fn == TrainerFn.FITTING:
            trainer.save_checkpoint(self.checkpoint)
            raise Stopped(self._saved_for)

    def on_train_end(self, *_: Any) -> None:
        """Stop if a signal came; there is nothing left to save."""
        self._training = False
        signum = self._saved_for or self._received
        if signum is not None:
            raise Stopped(signum)

    def _handle(self) -> None:
        for signum in self._before:
            signal.signal(signum, self._receive)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self._received is not None:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self._received = signum
        if signum == _HANGUP:
            _drop_dead_terminal()
        if not self._training:
            raise Stopped(signum)
        sys.stderr.write("stopping after this step\n")


class LastStep(Callback):
    """Ends every fit with a validation and a checkpoint of its last step, whatever ended it; none is made twice.

    Both come right after the step, before Lightning closes the epoch: from a checkpoint of that moment a run with more
    steps goes on bit for bit. This callback must be the last one: it reads what the others decided, and saves their
    state.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self._first: int | None = None
        self._validated: int | None = None
        self._saved: int | None = None

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Record the first step of the fit."""
        self._first = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Validate and save the last step."""
        if _ends(trainer):
            self._close(trainer)
            trainer.fit_loop.epoch_loop._skip_next_val = True  # skip the validation that may be due now

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        """Record the validation; if it ends the fit, as early stopping does, save the state that it has changed."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._validated = trainer.global_step
            if _ends(trainer):
                self._save(trainer)

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        """Validate and save where the end was decided later, such as at the end of an epoch."""
        if trainer.global_step != self._first:
            self._close(trainer)

    def _close(self, trainer: Trainer) -> None:
        step = trainer.global_step
        if trainer.enable_validation and self._validated != step:
            _validate(trainer)
        if self._saved != step:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.checkpoint)
        self._saved = trainer.global_step


def _validate(trainer: Trainer) -> None:
    """Run a validation within a fit, as Lightning does when one is due."""
    every, trainer.check_val_every_n_epoch = trainer.check_val_every_n_epoch, None  # else `ModelCheckpoint` may wait
    connector = trainer._logger_connector
    first = connector._first_loop_iter
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True
    connector._first_loop_iter = first
    trainer.check_val_every_n_epoch = every


def _ends(trainer: Trainer) -> bool:
    """Return True if no step follows the current one, by what is decided so far."""
    loop = trainer.fit_loop
    if (trainer.should_stop and loop._can_stop_early) or 0 <= loop.max_steps <= trainer.global_step:
        return True
    last_epoch = loop.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= loop.max_epochs
    return last_epoch and loop.epoch_loop._num_ready_batches_reached()


def _drop_dead_terminal() -> None:
    """Redirect output from a terminal that is gone to the null device: a progress bar's error would end the run."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in filter(_is_dead, (1, 2)):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _is_dead(descriptor: int) -> bool:
    try:
        os.write(descriptor, b"")
    except OSError:
        return True
    return False
