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
from lightning import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_cat_vae import Losses, cat_vae, loaders, trainer
from test_pipeline import ROOT, SHORT, SMALL, run

from taugrad import checkpoints
from taugrad.callbacks import RandomStates
from taugrad.stopping import Stopped, StopSignals

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
    stop, losses, validations = StopSignals(directory / "last.ckpt"), Losses(), Validations()
    plugins = [checkpoints.WholeCheckpoints()]
    parts = [*callbacks, losses, validations, RandomStates(), stop]
    run = trainer(directory, *parts, max_steps=78, plugins=plugins, **arguments)
    model = cat_vae()
    with stop, suppress(Stopped):
        run.fit(model, *loaders(stack=4), ckpt_path=checkpoint, weights_only=True)
    return model.state_dict(), losses.losses, validations.losses, run.state.finished


@pytest.mark.parametrize(
    "when", [{"check_val_every_n_epoch": 1}, {"check_val_every_n_epoch": None, "val_check_interval": 3}]
)
@pytest.mark.parametrize("batch", [2, 3, 4, 9, 12, 19])
def test_a_stopped_training_goes_on_bit_for_bit(when, batch, tmp_path):
    weights, losses, validations, _ = fit(tmp_path, **when)
    _, *first, ended = fit(tmp_path, SignalAt(batch), **when)
    assert not ended
    found, *rest, ended = fit(tmp_path, checkpoint=tmp_path / "last.ckpt", **when)
    assert ended
    assert not first[0].keys() & rest[0].keys()  # no step twice
    assert first[0] | rest[0] == losses  # and its tau, learning rate and images
    assert first[1] | rest[1] == validations
    for name, value in weights.items():
        assert torch.equal(found[name], value), name


def test_the_handlers_of_before_come_back_and_a_signal_outside_training_stops_at_once(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals(tmp_path / "last.ckpt"), pytest.raises(Stopped) as stopped:
        signal.raise_signal(signal.SIGINT)
    assert stopped.value.code == 130
    assert signal.getsignal(signal.SIGTERM) == before


def start(cwd, *arguments):
    (cwd / "spy.py").write_text(SPY)
    path = [str(cwd), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": os.pathsep.join(path)}
    spy = [*SPIED, f"+callbacks.spy.path={cwd / 'step'}", "threads=1"]
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *spy, *arguments, f"hydra.run.dir={cwd / 'run'}"]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def undisturbed(cwd, *arguments):
    """The same run without a spy, in this process; what it printed."""
    result = run("train.py", "threads=1", *arguments, f"hydra.run.dir={cwd / 'run'}", cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def wait_for_step(cwd, process, since):
    """Until the run has made steps after `since`."""
    while step(cwd) <= since:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def step(cwd):
    try:
        return int((cwd / "step").read_text() or 0)
    except (FileNotFoundError, ValueError):  # not yet there, or being written
        return 0


def scalars(cwd, tag):
    events = EventAccumulator(str(cwd / "run" / "tensorboard"))
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
    return finish(start(cwd, *arguments, KEPT, "ckpt_path=last"))


def weights(cwd):
    return checkpoints.load(cwd / "run" / "checkpoints" / "last.ckpt")["state_dict"]


def equal_runs(one, other, *tags):
    for name, value in weights(one).items():
        assert torch.equal(weights(other)[name], value), name
    for tag in tags:
        assert scalars(one, tag) == scalars(other, tag)


LONG = [*SMALL, "trainer.max_steps=700", "+trainer.limit_train_batches=20", "trainer.log_every_n_steps=1"]


def test_a_killed_run_goes_on_bit_for_bit_from_its_last_checkpoint(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir(), other.mkdir()
    undisturbed(one, *LONG, KEPT)
    kill_and_go_on(other, LONG, 2, random.Random(0), span=0.5)
    equal_runs(one, other, "train/loss", "tau", "train/grad_norm")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_with_a_checkpoint_and_the_command_that_goes_on(signum, code, tmp_path):
    process = start(tmp_path, *SMALL, "trainer.max_steps=100_000", "trainer.log_every_n_steps=1")
    wait_for_step(tmp_path, process, 0)
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    saved = checkpoints.load(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"]
    assert saved == step(tmp_path)
    assert scalars(tmp_path, "tau")[-1][0] <= saved  # the event file is closed
    (line,) = (line for line in out.splitlines() if line.startswith("stopped; to go on: python "))
    assert line.endswith(f"hydra.run.dir={tmp_path / 'run'} ckpt_path=last")


def test_a_run_that_has_ended_can_be_evaluated_again_by_going_on(tmp_path):
    undisturbed(tmp_path, *SMALL)
    before = json.loads((tmp_path / "run" / "metrics.json").read_text())
    out = undisturbed(tmp_path, *SMALL, "ckpt_path=last")
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
        ["model=policy", "model.max_env_steps=60_000", "model.test_episodes=5"],
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


def test_slurms_signal_saves_and_requeues_and_the_next_start_goes_on(tmp_path, monkeypatch):
    """With a stand-in for `scontrol`: what a cluster does with its call is the cluster's."""
    tool, calls = tmp_path / "bin" / "scontrol", tmp_path / "calls"
    tool.parent.mkdir()
    tool.write_text(SCONTROL.format(calls=calls))
    tool.chmod(0o755)
    job = {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "taugrad"}
    job |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "localhost"}
    for name, value in (job | {"PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}"}).items():
        monkeypatch.setenv(name, value)
    long = [*SMALL, "trainer.max_steps=100_000"]
    process = start(tmp_path, *long)
    wait_for_step(tmp_path, process, 0)
    process.send_signal(signal.SIGUSR1)
    saved = tmp_path / "run" / "hpc_ckpt_1.ckpt"
    while not calls.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)  # as the cluster ends a job that it has requeued
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert calls.read_text() == "requeue 7\n"
    reached = checkpoints.load(saved)["global_step"]
    assert 0 < reached <= step(tmp_path)
    (tmp_path / "step").unlink()
    (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink()
    process = start(tmp_path, *long)  # the same command
    wait_for_step(tmp_path, process, 0)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert step(tmp_path) > reached
