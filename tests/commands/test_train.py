"""The scripts as a user runs them, on the embedded data, with a small model."""

import io
import json
import math
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from helpers.commands import ROOT, SHORT, SMALL, run
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from taugrad.training.trainer import print_metrics


def test_a_run_shows_its_config_model_progress_and_result(trained):
    run_directory, result = trained
    for shown in (
        "_target_: taugrad.models.cat_vae.CatVAE",
        "Params",
        "tau",
        "train/loss",
        "test/nll",
        run_directory.name,
    ):
        assert shown in result.stdout


def test_a_run_leaves_config_checkpoints_events_and_metrics(trained):
    run_directory, _ = trained
    files = {str(path.relative_to(run_directory)) for path in run_directory.rglob("*") if path.is_file()}
    assert {
        ".hydra/config.yaml",
        ".hydra/overrides.yaml",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "metrics.json",
    } <= files
    metrics = json.loads((run_directory / "metrics.json").read_text())
    needed = {"val/elbo", "val/loss", "test/elbo", "test/nll", "test/nll_samples", "wall_seconds", "steps", "seed"}
    assert needed | {"versions/taugrad", "versions/torch", "versions/lightning", "versions/python"} <= set(metrics)
    assert (metrics["steps"], metrics["seed"], metrics["test/nll_samples"]) == (60, 0, 5)
    assert metrics["test/elbo"] == -metrics["test/loss"]
    assert 0 < metrics["test/nll"] < metrics["test/loss"] < 544  # nats of a fair coin for every pixel


def test_hyperparameters_stand_beside_the_final_metrics(trained):
    run_directory, _ = trained
    events = EventAccumulator(str(run_directory / "tensorboard"))
    events.Reload()
    metrics = json.loads((run_directory / "metrics.json").read_text())
    for name in ("val/elbo", "test/nll"):
        assert events.Scalars(f"hp/{name}")[-1].value == pytest.approx(metrics[name], rel=1e-6)
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"model.latents" in content
    assert b"_target_" not in content


@pytest.mark.parametrize("where", ["moved", "bare"])
def test_evaluate_agrees_with_the_run_from_its_checkpoint_alone(trained, where, tmp_path):
    run_directory, _ = trained
    target = tmp_path / "run"
    if where == "moved":
        shutil.copytree(run_directory, target)
    else:
        (target / "checkpoints").mkdir(parents=True)
        shutil.copy(run_directory / "checkpoints" / "best.ckpt", target / "checkpoints")
    result = run("evaluate.py", f"run={target}", "num_samples=5", "+trainer.limit_test_batches=4", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    evaluation = json.loads((target / "evaluation.json").read_text())
    metrics = json.loads((run_directory / "metrics.json").read_text())
    assert evaluation == {name: pytest.approx(metrics[name], rel=1e-6) for name in evaluation}
    assert "test/nll" in result.stdout


@pytest.mark.parametrize(
    ("small", "metrics", "pictures"),
    [
        (
            [*SMALL, "trainer.max_steps=30"],
            {"test/nll", "test/elbo"},
            {"reconstruction", "prior_samples", "class_samples", "latent_traversal"},
        ),
        (
            ["model=structured", "model.nll_samples=5", *SHORT, "trainer.max_steps=30"],
            {"test/nll", "test/nll_samples", "test/loss"},
            {"completions", "latent_traversal"},
        ),
        (
            ["model=semi_supervised", "model.channels=[2,4]", "model.hidden=16", *SHORT, "trainer.max_steps=30"],
            {"test/accuracy", "test/elbo", "val/accuracy"},
            {"class_samples", "analogies", "latent_traversal"},
        ),
        (
            ["model=logic_gates", "model.gates=40", *SHORT, "trainer.max_steps=30"],
            {"test/accuracy", "test/gap", "val/gate_perplexity"},
            {"gates", "pixels_read"},
        ),
    ],
    ids=["cat_vae", "structured", "semi_supervised", "logic_gates"],
)
def test_every_model_of_images_trains_resumes_and_is_plotted(small, metrics, pictures, tmp_path):
    target = tmp_path / "run"
    result = run("train.py", *small, f"hydra.run.dir={target}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads((target / "metrics.json").read_text())
    assert metrics <= set(found)
    events = EventAccumulator(str(target / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["images"]) == pictures
    result = run("evaluate.py", f"run={target}", "images=true", "+trainer.limit_test_batches=4", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (target / "pictures").iterdir()} == {f"{name}.png" for name in pictures}
    evaluation = json.loads((target / "evaluation.json").read_text())
    assert evaluation == {name: pytest.approx(found[name], rel=1e-5) for name in evaluation}
    ckpt = f"ckpt_path={target / 'checkpoints' / 'last.ckpt'}"
    result = run("train.py", *small, ckpt, "trainer.max_steps=40", f"hydra.run.dir={tmp_path / 'b'}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "b" / "metrics.json").read_text())["steps"] == 40


def test_more_samples_tighten_the_bound(trained):
    run_directory, _ = trained
    result = run(
        "evaluate.py", f"run={run_directory}", "num_samples=50", "+trainer.limit_test_batches=4", cwd=run_directory
    )
    assert result.returncode == 0, result.stderr
    evaluation = json.loads((run_directory / "evaluation.json").read_text())
    assert evaluation["test/nll"] < json.loads((run_directory / "metrics.json").read_text())["test/nll"]
    assert evaluation["test/nll_samples"] == 50


def test_the_same_seed_gives_the_same_metrics_and_another_seed_others(trained, tmp_path):
    run_directory, _ = trained
    first = json.loads((run_directory / "metrics.json").read_text())
    for seed, same in ((0, True), (1, False)):
        result = run("train.py", *SMALL, f"seed={seed}", f"hydra.run.dir={tmp_path / str(seed)}", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        again = json.loads((tmp_path / str(seed) / "metrics.json").read_text())
        results = [{k: v for k, v in m.items() if k not in ("wall_seconds", "seed")} for m in (first, again)]
        assert (results[0] == results[1]) == same


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(trained, tmp_path):
    run_directory, _ = trained
    half = [*SMALL, "tau.steps=60", "lr_factor.steps=60"]
    first = run("train.py", *half, "trainer.max_steps=30", f"hydra.run.dir={tmp_path / 'half'}", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    checkpoint = tmp_path / "half" / "checkpoints" / "last.ckpt"
    rest = run("train.py", *SMALL, f"ckpt_path={checkpoint}", f"hydra.run.dir={tmp_path / 'rest'}", cwd=tmp_path)
    assert rest.returncode == 0, rest.stderr
    states = [
        torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for directory in (run_directory, tmp_path / "rest")
    ]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_a_multirun_gives_a_directory_a_job_with_the_probe_in_its_events(tmp_path):
    probe = ["callbacks=probe", "callbacks.probe.every=2", "callbacks.probe.draws=20"]
    few = [*SMALL, *probe, "callbacks.probe.reference_samples=200", "trainer.max_steps=30"]
    result = run("train.py", "-m", *few, "estimator=reinmax,rloo", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    for job in ("0", "1"):
        assert (sweep / job / "metrics.json").is_file()
        events = EventAccumulator(str(sweep / job / "tensorboard"))
        events.Reload()
        assert [event.step for event in events.Scalars("probe/cosine")] == [20]


def test_a_bad_config_ends_before_training_in_a_sentence(tmp_path):
    result = run("train.py", *SMALL, "tau.start=0", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr == ("error: taugrad.schedules.Linear: start must be a positive finite number, got 0.0\n")
    assert "training" not in result.stdout


def test_the_command_line_prints_its_config_its_help_and_completions(tmp_path):
    config = run("train.py", "model=cat_vae", "--cfg", "job", cwd=tmp_path)
    assert "_target_: taugrad.models.cat_vae.CatVAE" in config.stdout
    text = run("train.py", "--help", cwd=tmp_path).stdout
    assert re.search(r"estimator: .*gumbel_softmax, .*reinmax, .*st_gumbel_softmax, straight_through", text)
    environment = os.environ | {"COMP_LINE": "train.py estimator=st", "COMP_POINT": "21"}
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "-sc", "query=bash"]
    completions = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert completions.stdout.split() == ["estimator=st_gumbel_softmax", "estimator=straight_through"]
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(("value", "shown"), [(91.264, "91.26"), (0.0052, "0.0052"), (0, "0.00"), (math.nan, "nan")])
def test_the_printed_table_has_two_digits_of_a_small_number(value, shown):
    console = Console(record=True, file=io.StringIO())
    print_metrics(console, {"test/mse": value})
    assert f" {shown} " in console.export_text()
