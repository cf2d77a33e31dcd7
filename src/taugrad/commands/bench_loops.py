"""Training loops that `taugrad bench` compares: each returns the seconds that a step takes."""

import itertools
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from lightning import Callback, Trainer
from torch import Tensor

from taugrad.config import CONF, instantiate, resolve
from taugrad.nets import mlp
from taugrad.rl.algorithm import Clock
from taugrad.training.task import scale_lr, task_of

WARM_UP = 20  # optimizer steps not counted


class StepTimes(Callback):
    """Records the time at the end of every training step."""

    def __init__(self) -> None:
        self.times: list[tuple[int, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Keep the task's clock and the time."""
        self.times.append((task_of(trainer).clock()[0], time.perf_counter()))


def seconds_per_step(times: list[tuple[int, float]]) -> float:
    """Mean seconds a step of (step, time) pairs, from the first counted step on."""
    counted = [(step, time) for step, time in times if step >= min(WARM_UP, len(times) // 2)]
    (first, start), (last, end) = counted[0], counted[-1]
    return (end - start) / (last - first)


def lightning(keys: Sequence[str]) -> float:
    """Seconds a step of `scripts/train.py`'s own trainer, with all that it shows and logs."""
    return seconds_per_step(_times_in_lightning(keys))


def hand_written(keys: Sequence[str]) -> float:
    """Seconds a step of the loop that one would write without Lightning, for any model of images."""
    config, task, data = parts(["run_dir=.", *keys])
    optimizer = task.configure_optimizers()

    def step(i: int, x: Tensor, labels: Tensor) -> None:
        scale_lr(optimizer, task.lr_factor(i))
        loss = task.model.loss_terms(x, labels, task.estimator, task.tau(i))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return loop(step, data, config["trainer"]["max_steps"])


def torch_alone(keys: Sequence[str]) -> float:
    """Seconds a step of the loop that one would write with torch alone, at the same sizes, taus and data."""
    config, task, data = parts(["run_dir=.", *keys])
    model = task.model
    sizes, N, C, pixels = config["model"], model.latents, model.categories, math.prod(model.image_size)
    encoder = mlp(pixels, sizes["encoder"], N * C, sizes["activation"])  # a plain nn.Sequential
    decoder = mlp(N * C, sizes["decoder"], pixels, sizes["activation"])
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)

    def step(i: int, x: Tensor, labels: Tensor) -> None:
        x = x.flatten(1)
        logits = encoder(x).view(-1, N, C)
        z = F.gumbel_softmax(logits, task.tau(i), hard=True)
        log_q = F.log_softmax(logits, -1)
        kl = (log_q.exp() * (log_q + math.log(C))).sum() / len(x)
        loss = kl + F.binary_cross_entropy_with_logits(decoder(z.flatten(1)), x, reduction="sum") / len(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return loop(step, data, config["trainer"]["max_steps"])


def loop(step: Callable[[int, Tensor, Tensor], None], data: Any, steps: int) -> float:
    """Seconds a step, epoch after epoch over the training batches."""
    data.setup("fit")
    stacks = itertools.chain.from_iterable(itertools.repeat(data.train_dataloader()))
    batches = itertools.chain.from_iterable(zip(*stack, strict=True) for stack in stacks)
    times: list[tuple[int, float]] = []
    for i, (x, labels) in enumerate(itertools.islice(batches, steps)):
        step(i, x, labels)
        times.append((i + 1, time.perf_counter()))
    return seconds_per_step(times)


def policy_in_lightning(keys: Sequence[str]) -> float:
    """Seconds an environment step of `scripts/train.py`'s own trainer, with all that it shows and logs."""
    return _seconds_after_start(_times_in_lightning(["~callbacks.best", *keys]))  # `best` needs evaluations


def policy_by_hand(keys: Sequence[str]) -> float:
    """Seconds an environment step of the same collecting and improving in a plain loop."""
    task = parts(["run_dir=.", *keys])[1]
    optimizer = task.configure_optimizers()
    times: list[tuple[int, float]] = []
    while (clock := Clock(*task.clock())).steps < clock.total:
        task.collect()
        scale_lr(optimizer, task.lr_factor(task.collector.env_steps))
        task.agent.improve(task.window, optimizer, Clock(*task.clock()))
        times.append((task.collector.env_steps, time.perf_counter()))
    return _seconds_after_start(times)


def on_threads(threads: int, loop: Callable[[Sequence[str]], float], keys: Sequence[str]) -> float:
    """Seconds a step of a loop on a number of threads."""
    torch.set_num_threads(threads)
    return loop(keys)


def _times_in_lightning(keys: Sequence[str]) -> list[tuple[int, float]]:
    with tempfile.TemporaryDirectory() as directory:
        config, task, data = parts([f"run_dir={directory}", "+trainer.limit_val_batches=0", *keys])
        clock = StepTimes()
        callbacks = [instantiate(node) for node in config["callbacks"].values() if node is not None]
        loggers = [instantiate(node) for node in config["logger"].values()]
        trainer: Trainer = instantiate(config["trainer"])(callbacks=[*callbacks, clock], logger=loggers)
        trainer.fit(task, datamodule=data)
        return clock.times


def _seconds_after_start(times: list[tuple[int, float]]) -> float:
    """Mean seconds a step of (step, time) pairs, after the first tenth."""
    (first, start), (last, end) = times[len(times) // 10], times[-1]
    return (end - start) / (last - first)


def parts(keys: Sequence[str]) -> tuple[dict[str, Any], Any, Any]:
    """Config of conf/train.yaml with these overrides, its task and its data module."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = resolve(compose("train", list(keys)))
    data = config.get("data") and instantiate(config["data"])
    return config, instantiate(config["task"]), data
