"""Training by two processes as a user starts it, next to the same training by one."""

import json
import subprocess

import pytest
import torch
from helpers.commands import SMALL, run, taugrad
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.system

# The exact gradient and plain descent: what is left to differ is how the batches are shared and the gradients averaged.
EXACT = [
    *("model=cat_vae", "model.encoder=[32]", "model.decoder=[32]", "model.latents=2", "model.categories=3"),
    *("estimator=enumeration", "optimizer._target_=torch.optim.SGD", "optimizer.lr=0.01", "model.nll_samples=5"),
    *("trainer.max_steps=60", "trainer.check_val_every_n_epoch=null", "+trainer.val_check_interval=3"),
]
SPY = """
import torch
from lightning import Callback

class Spy(Callback):
    def __init__(self, directory: str) -> None:
        self.directory, self.seen = directory, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append((batch[0].sum((-1, -2)), torch.get_rng_state()))

    def on_train_end(self, trainer, pl_module):
        images, states = map(torch.stack, zip(*self.seen))
        torch.save({"images": images, "states": states}, f"{self.directory}/spy{trainer.global_rank}.pt")
"""


def train(cwd, *arguments):
    """Train by the command of an installation, and with one process in this one."""
    (cwd / "ddp_spy.py").write_text(SPY)
    spy = ["+callbacks.spy._target_=ddp_spy.Spy", f"+callbacks.spy.directory={cwd}"]
    words = ["train", *spy, *arguments, f"hydra.run.dir={cwd}/run"]
    with pytest.MonkeyPatch.context() as patch:
        if "trainer=ddp" in arguments:
            for name, value in {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": str(cwd)}.items():
                patch.setenv(name, value)
            command = ["taugrad", *words]
            result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
        else:
            patch.syspath_prepend(cwd)
            result = taugrad(*words, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result, json.loads((cwd / "run" / "metrics.json").read_text())


def losses(cwd, tag):
    events = EventAccumulator(str(cwd / "run" / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory):
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    return (one, *train(one, *EXACT)), (two, *train(two, *EXACT, "trainer=ddp"))


def test_two_processes_end_with_the_weights_of_one(one_and_two):
    (one, _, metrics_of_one), (two, _, metrics_of_two) = one_and_two
    weights = [torch.load(d / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for d in (one, two)]
    start = max(w.abs().max() for w in weights[0].values())
    for name, of_one in weights[0].items():
        torch.testing.assert_close(weights[1][name], of_one, rtol=1e-5, atol=1e-6 * start.item())
    assert (metrics_of_one["processes"], metrics_of_two["processes"]) == (1, 2)
    # Evaluation draws hard samples: over 10,000 images the bounds of two noises differ by some hundredths of a nat.
    for name in ("val/loss", "test/loss", "test/nll", "val/code_perplexity"):
        assert metrics_of_two[name] == pytest.approx(metrics_of_one[name], rel=1e-3)
    assert metrics_of_two["train/epoch_loss"] == pytest.approx(metrics_of_one["train/epoch_loss"], rel=1e-5)


def test_what_two_processes_log_is_the_mean_of_both(one_and_two):
    (one, *_), (two, *_) = one_and_two
    for tag, tolerance in (("train/loss", 1e-5), ("train/grad_norm", 1e-4), ("val/loss", 1e-3)):
        expected = losses(one, tag)
        found = losses(two, tag)
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [v for _, v in found] == pytest.approx([v for _, v in expected], rel=tolerance)


def test_each_process_draws_its_own_noise_and_half_of_every_batch(one_and_two):
    (one, *_), (two, *_) = one_and_two
    of_one = torch.load(one / "spy0.pt")["images"]
    halves = [torch.load(two / f"spy{rank}.pt") for rank in (0, 1)]
    assert of_one.shape == (6, 10, 100)
    for half in halves:
        assert half["images"].shape == (6, 10, 50)
    both = torch.cat([half["images"] for half in halves], -1)
    assert torch.equal(both.sort(-1).values, of_one.sort(-1).values)
    assert not torch.equal(halves[0]["images"].sort(-1).values, halves[1]["images"].sort(-1).values)
    assert not torch.equal(halves[0]["states"], halves[1]["states"])


def test_two_processes_leave_the_files_of_one(one_and_two):
    (one, said_by_one, _), (two, said_by_two, _) = one_and_two
    files = [  # an event file ends on a number that its process counts
        sorted((*path.relative_to(d).parts[:2], path.suffix.rstrip("0123456789")) for path in found if path.is_file())
        for d in (one, two)
        for found in [(d / "run").rglob("*")]
    ]
    assert files[0] == files[1]
    for said in (said_by_one.stdout, said_by_two.stdout):
        assert said.count("test/nll ") == 1
        assert said.count("the run is in") == 1


def test_labelled_batches_are_shared_and_a_resumed_run_draws_apart_again(tmp_path):
    model = ["model=semi_supervised", *SMALL[-4:], "+trainer.limit_train_batches=6"]
    train(tmp_path, *model, "trainer.max_steps=30")
    _, metrics = train(tmp_path, *model, "trainer=ddp", "trainer.max_steps=60", "ckpt_path=last")
    assert metrics["steps"] == 60
    halves = [torch.load(tmp_path / f"spy{rank}.pt") for rank in (0, 1)]
    for half in halves:
        assert half["images"].shape[-1] == 50 + 25
    assert not torch.equal(halves[0]["states"], halves[1]["states"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["data.batch_size=75"], "error: data.batch_size must be a multiple of the number of processes, 2, got 75"),
        (
            ["model=semi_supervised", "data.labelled_batch_size=25"],
            "error: data.labelled_batch_size must be a multiple of the number of processes, 2, got 25",
        ),
        (
            ["model=policy", "trainer.max_steps=-1"],
            "error: trainer.devices must be 1 for PolicyTask, got 2 processes",
        ),
        (["trainer.strategy=ddp_spawn"], "error: trainer.strategy must be ddp for 2 processes, got ddp_spawn"),
        (["-m"], "error: job 0: trainer.devices must be 1 in a sweep, whose jobs are one process each"),
    ],
)
def test_what_cannot_be_shared_gets_a_sentence_before_a_process_starts(arguments, sentence, tmp_path):
    result = run("train.py", *arguments, "trainer=ddp", f"hydra.sweep.dir={tmp_path}/sweep", cwd=tmp_path)
    assert result.returncode == 1
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert "training" not in result.stdout
