"""Runs that are stopped or killed, and go on: in process at every position, as a user by signals."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import torch
from helpers.commands import ROOT, SHORT, SMALL, run
from helpers.images import Losses, cat_vae, loaders, trainer
from lightning import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from taugrad.training import checkpoints, stopping
from taugrad.training.checkpoints import RandomStates
from taugrad.training.stopping import LastStep, Stopped, StopSignals

SPY = """
from pathlib import Path
from lightning import Callback

class Spy(Callback):
    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.path.write_text(f"{trainer.global_step} ")
"""
SPIED = ["+callbacks.spy._target_=spy.Spy"]
INTERVAL = 20  # optimizer steps, or rollouts
KEPT = f"+callbacks.last.every_n_train_steps={INTERVAL}"


class Validations(Callback):
    def __init__(self):
        self.losses = {}

    def on_validation_end(self, trainer, pl_module):
        assert trainer.global_step not in self.losses  # never twice
        self.losses[trainer.global_step] = trainer.callback_metrics["val/loss"].item()


class SignalAt(Callback):
    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_start(self, trainer, *_):
        if trainer.fit_loop.epoch_loop.total_batch_idx + 1 == self.batch:
            os.kill(os.getpid(), signal.SIGTERM)


def fit(directory, *callbacks, checkpoint=None, **arguments):
    """78 steps in stacks of up to four, four stacks an epoch; the weights, what was logged, and whether it ended."""
    torch.manual_seed(0)
    arguments = {"max_steps": 78} | arguments
    stop, losses, validations = StopSignals(directory / "last.ckpt"), Losses(), Validations()
    plugins = [checkpoints.WholeCheckpoints()]
    parts = [*callbacks, losses, validations, RandomStates(), stop]
    run = trainer(directory, *parts, plugins=plugins, **arguments)
    run.callbacks.append(LastStep(directory / "last.ckpt"))
    model = cat_vae()
    with stop, suppress(Stopped):
        run.fit(model, *loaders(stack=4), ckpt_path=checkpoint, weights_only=True)
    return model.state_dict(), losses.losses, validations.losses, run.state.finished


SCHEDULES = {
    "every epoch": {"check_val_every_n_epoch": 1},
    "every fourth epoch": {"check_val_every_n_epoch": 4},
    "every third batch": {"check_val_every_n_epoch": None, "val_check_interval": 3},
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Results of `fit` for each schedule of validations."""
    return {name: fit(tmp_path_factory.mktemp("undisturbed"), **when) for name, when in SCHEDULES.items()}


@pytest.mark.parametrize(  # an epoch has four batches
    ("when", "batch"),
    [*(("every epoch", n) for n in (2, 4, 19)), *(("every third batch", n) for n in (2, 3, 4, 9, 12, 19))],
)
def test_a_stopped_training_goes_on_bit_for_bit(when, batch, undisturbed, tmp_path):
    (weights, losses, validations, _), when = undisturbed[when], SCHEDULES[when]
    _, *first, ended = fit(tmp_path, SignalAt(batch), **when)
    assert not ended
    found, *rest, ended = fit(tmp_path, checkpoint=tmp_path / "last.ckpt", **when)
    assert ended
    assert not first[0].keys() & rest[0].keys()  # no step twice
    assert first[0] | rest[0] == losses  # and its tau, learning rate and images
    assert first[1] | rest[1] == validations
    for name, value in weights.items():
        assert torch.equal(found[name], value), name


class StopAt(Callback):
    """Ends a fit as Lightning's callbacks do: after a batch, as its timer, or after an epoch, as early stopping."""

    def __init__(self, step, hook):
        self.step = step
        setattr(self, hook, self.stop)

    def stop(self, trainer, *_):
        if trainer.global_step >= self.step:
            trainer.should_stop = True


class Saves(Callback):
    def __init__(self):
        self.steps = []

    def on_save_checkpoint(self, trainer, *_):
        self.steps.append(trainer.global_step)


BATCH, EPOCH, VALIDATION = "on_train_batch_end", "on_train_epoch_end", "on_validation_end"


@pytest.mark.parametrize(
    ("when", "arguments", "stop", "end"),
    [
        ("every fourth epoch", {"max_steps": 8}, None, 8),
        ("every fourth epoch", {"max_steps": 26}, None, 26),
        ("every third batch", {"max_steps": 26}, None, 26),
        ("every epoch", {"max_steps": 30}, None, 30),
        ("every epoch", {"max_steps": -1, "max_epochs": 2}, None, 26),
        ("every third batch", {"max_steps": -1, "max_epochs": 2}, None, 26),
        ("every fourth epoch", {}, (30, BATCH), 30),
        ("every epoch", {}, (30, BATCH), 30),
        ("every fourth epoch", {}, (27, EPOCH), 39),
        ("every epoch", {}, (27, EPOCH), 39),
        ("every fourth epoch", {}, (26, VALIDATION), 52),
        ("every third batch", {}, (26, VALIDATION), 30),
    ],
)
def test_whatever_ends_a_fit_its_last_step_is_validated_once_and_saved_and_goes_on(
    when, arguments, stop, end, undisturbed, tmp_path
):
    (weights, every, _, _), when = undisturbed[when], SCHEDULES[when]
    saves = Saves()
    _, losses, validations, ended = fit(tmp_path, saves, *([StopAt(*stop)] if stop else []), **arguments, **when)
    assert ended
    assert len(losses) == end
    assert end in validations
    assert set(saves.steps) == {end} == {checkpoints.load(tmp_path / "last.ckpt")["global_step"]}
    found, rest, _, _ = fit(tmp_path, checkpoint=tmp_path / "last.ckpt", **when)
    assert losses | rest == every
    assert not losses.keys() & rest.keys()
    for name, value in weights.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_handlers_of_before_come_back_and_a_signal_outside_training_stops_at_once(signum, code, tmp_path):
    outside = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # of whoever started the tests
    before = signal.getsignal(signum)
    with StopSignals(tmp_path / "last.ckpt"), pytest.raises(Stopped) as stopped:
        signal.raise_signal(signum)
    assert stopped.value.code == code
    assert signal.getsignal(signum) == before
    signal.signal(signal.SIGHUP, outside)


def test_a_hangup_that_nohup_ignores_stays_ignored(tmp_path):
    outside = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignals(tmp_path / "last.ckpt"):
        signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    signal.signal(signal.SIGHUP, outside)


def test_a_terminal_that_is_gone_is_distinguished_from_one_that_is_there():
    master, terminal = os.openpty()
    assert not stopping._is_dead(terminal)
    os.close(master)
    assert stopping._is_dead(terminal)
    os.close(terminal)


def start(cwd, *arguments):
    (cwd / "spy.py").write_text(SPY)
    path = [str(cwd), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": os.pathsep.join(path)}
    spy = [*SPIED, f"+callbacks.spy.path={cwd / 'step'}", "threads=1"]
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *spy, *arguments, f"hydra.run.dir={cwd / 'run'}"]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def whole_run(cwd, *arguments):
    """The same run without a spy, in this process; what it printed."""
    result = run("train.py", "threads=1", *arguments, f"hydra.run.dir={cwd / 'run'}", cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def wait_for_step(cwd, process, since):
    """Wait until the run has made steps after `since`."""
    while step(cwd) <= since:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def step(cwd):
    try:
        return int((cwd / "step").read_text() or 0)
    except (FileNotFoundError, ValueError):  # not yet there, or being written
        return 0


def scalars(directory, tag):
    events = EventAccumulator(str(directory))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def kill_and_go_on(cwd, arguments, kills, rng, span):
    """Kill a run with SIGKILL so many times, each after a random time within `span` seconds of training; finish it."""
    for _ in range(kills):
        process = start(cwd, *arguments, KEPT, "ckpt_path=last")
        wait_for_step(cwd, process, step(cwd) if (cwd / "run" / "checkpoints").exists() else 0)
        time.sleep(rng.uniform(0, span))
        process.kill()
        process.communicate()
        for path in (cwd / "run").rglob("*.ckpt"):
            checkpoints.load(path)
        path, damaged = checkpoints.newest(cwd / "run")
        assert not damaged
        reached = checkpoints.load(path)["global_step"] if path else 0
        assert step(cwd) - reached <= INTERVAL + 10  # a stack in progress
        (cwd / "step").write_text(str(reached))
    time.sleep(1 - time.time() % 1)  # event files are read by their second of birth, within one by the process's number
    return whole_run(cwd, *arguments, KEPT, "ckpt_path=last")


def weights(cwd):
    return checkpoints.load(cwd / "run" / "checkpoints" / "last.ckpt")["state_dict"]


def equal_runs(one, other, *tags):
    for name, value in weights(one).items():
        assert torch.equal(weights(other)[name], value), name
    for tag in tags:
        assert scalars(one / "run" / "tensorboard", tag) == scalars(other / "run" / "tensorboard", tag)


LONG = [*SMALL, "trainer.max_steps=500", "+trainer.limit_train_batches=20", "trainer.log_every_n_steps=1"]


@pytest.mark.system
def test_a_killed_run_goes_on_bit_for_bit_from_its_last_checkpoint(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir(), other.mkdir()
    whole_run(one, *LONG, KEPT)
    kill_and_go_on(other, LONG, 1, random.Random(0), span=0.5)  # twenty kills are the slow tier's
    equal_runs(one, other, "train/loss", "tau", "train/grad_norm")


def stop(process, cwd, signum, code):
    """Signal a run; it ends after its step with a checkpoint, a closed event file and the command that goes on."""
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    saved = checkpoints.load(cwd / "run" / "checkpoints" / "last.ckpt")["global_step"]
    assert saved == step(cwd)
    assert scalars(cwd / "run" / "tensorboard", "tau")[-1][0] <= saved  # the event file is closed
    (line,) = (line for line in out.splitlines() if line.startswith("stopped; to go on: python "))
    assert line.endswith(f"hydra.run.dir={cwd / 'run'} ckpt_path=last")


@pytest.mark.system
def test_a_signal_ends_a_run_with_a_checkpoint_and_the_command_that_goes_on(tmp_path):
    process = start(tmp_path, *SMALL, "trainer.max_steps=100_000", "trainer.log_every_n_steps=1")
    wait_for_step(tmp_path, process, 0)
    stop(process, tmp_path, signal.SIGINT, 130)  # Slurm's test stops by a SIGTERM


def test_a_run_that_has_ended_can_be_evaluated_again_by_going_on(tmp_path):
    whole_run(tmp_path, *SMALL)
    before = json.loads((tmp_path / "run" / "metrics.json").read_text())
    out = whole_run(tmp_path, *SMALL, "ckpt_path=last")
    assert f"going on from {tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}" in out
    after = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for name in ("val/loss", "test/nll", "steps"):
        assert after[name] == before[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        [*LONG, "trainer.max_steps=8000"],
        ["model=structured", "trainer.max_steps=8000", *SHORT[1:], "model.nll_samples=5"],
        ["model=policy", "env.max_env_steps=60_000", "evaluation.test_episodes=5"],
    ],
    ids=["cat_vae", "structured", "policy"],
)
def test_twenty_kills_lose_nothing(model, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir(), other.mkdir()
    finish(start(one, *model, KEPT))
    kill_and_go_on(other, model, 20, random.Random(1), span=0.5)
    first, second = (json.loads((d / "run" / "metrics.json").read_text()) for d in (one, other))
    if model[0] == "model=policy":  # its episodes in flight start again
        assert second["env_steps"] >= first["env_steps"] - 1000
        return
    equal_runs(one, other, "train/loss", "tau", "train/grad_norm")
    assert second["test/loss"] == first["test/loss"]


SCONTROL = """#!/bin/sh
echo "$@" >> {calls}
"""


@pytest.mark.system
def test_slurms_signal_saves_and_requeues_and_the_next_start_goes_on(tmp_path, monkeypatch):
    """Check it with a stand-in for `scontrol`: what a cluster does with its call is the cluster's."""
    tool, calls = tmp_path / "bin" / "scontrol", tmp_path / "calls"
    tool.parent.mkdir()
    tool.write_text(SCONTROL.format(calls=calls))
    tool.chmod(0o755)
    job = {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "taugrad"}
    job |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "localhost"}
    for name, value in (job | {"PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}"}).items():
        monkeypatch.setenv(name, value)
    long = [*SMALL, "trainer.max_steps=100_000", "trainer.log_every_n_steps=1"]
    process = start(tmp_path, *long)
    wait_for_step(tmp_path, process, 0)
    process.send_signal(signal.SIGUSR1)
    saved = tmp_path / "run" / "hpc_ckpt_1.ckpt"
    while not calls.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    stop(process, tmp_path, signal.SIGTERM, 143)  # as the cluster ends a job that it has requeued
    assert calls.read_text() == "requeue 7\n"
    reached = checkpoints.load(saved)["global_step"]
    assert 0 < reached <= step(tmp_path)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink()
    events = (tmp_path / "run" / "tensorboard").rename(tmp_path / "events")
    whole_run(tmp_path, *long, f"trainer.max_steps={reached + 30}")  # the same command, which ends here
    assert scalars(events, "tau")[0][0] <= reached < scalars(tmp_path / "run" / "tensorboard", "tau")[0][0]
