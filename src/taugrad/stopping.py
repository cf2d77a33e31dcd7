"""SIGTERM and Ctrl-C: a training ends after the step in progress, with a checkpoint to go on from."""

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(SystemExit):
    """A signal ended the run; the exit code is 128 and the signal's number, as a shell has it: 130 or 143."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


class StopSignals(Callback):
    """Turns the signals into `Stopped`: while a model trains after its step and a checkpoint, else at once.

    A second signal ends the process at once.

    Args:
        checkpoint: where to write it.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self._before: dict[int, Any] = {}
        self._training = False
        self._received: int | None = None
        self._saved_for: int | None = None

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # the only one that may
            self._before = {signum: signal.getsignal(signum) for signum in _SIGNALS}
        self._handle()
        return self

    def __exit__(self, *_: Any) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def on_train_start(self, *_: Any) -> None:
        """Take the signals from Lightning, which loses what was trained since the last checkpoint."""
        self._handle()
        self._training = True

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save; a validation that is due now still runs, as a resumed run would leave it out."""
        if trainer.strategy.reduce_boolean_decision(self._received is not None, all=False):  # of all processes
            trainer.save_checkpoint(self.checkpoint)
            self._saved_for = self._received or signal.SIGTERM  # another process had it

    def on_train_batch_start(self, *_: Any) -> None:
        """Stop; this batch is the next run's first."""
        if self._saved_for is not None:
            raise Stopped(self._saved_for)

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        """Save once more, and stop."""
        if self._saved_for is not None and trainer.state.fn == TrainerFn.FITTING:
            trainer.save_checkpoint(self.checkpoint)
            raise Stopped(self._saved_for)

    def on_train_end(self, *_: Any) -> None:
        """From here on there is nothing to save."""
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
        if not self._training:
            raise Stopped(signum)
        sys.stderr.write("stopping after this step\n")
