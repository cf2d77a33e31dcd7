"""Sweeps as a user runs them, small; what they are made of."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import optuna
import pytest
from helpers.commands import ROOT, SMALL, run
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from taugrad.errors import ConfigError
from taugrad.sweeps.jobs import Job, job, values
from taugrad.sweeps.report import _axis, plot
from taugrad.sweeps.study import NAME, Trials, distribution, storage

OPTUNA = [*SMALL, "sweep=optuna", "optimizer.lr=tag(log,interval(1e-4,1e-2))"]


def override(text):
    return OverridesParser.create().parse_override(text)


def config(**changes):
    return OmegaConf.create({"objective": "val/loss", "direction": "minimize", "callbacks": {}} | changes)


def rows(directory):
    with (directory / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_grid_goes_on_after_a_failed_job_and_reports_all(tmp_path):
    result = run("train.py", "-m", *SMALL, "optimizer.lr=-1,1e-2,1e-3", f"hydra.sweep.dir={tmp_path}", cwd=tmp_path)
    assert result.returncode == 1
    assert "error: job 0: " in result.stderr
    assert "error: 1 of 3 jobs failed, the first of them 0: " in result.stderr
    assert "Traceback" not in result.stderr
    found = rows(tmp_path)
    assert [(row["optimizer.lr"], row["state"]) for row in found] == [
        ("-1", "failed"),
        ("0.01", "complete"),
        ("0.001", "complete"),
    ]
    assert "Invalid learning rate" in found[0]["error"]
    for row in found[1:]:
        metrics = json.loads((tmp_path / row["job"] / "metrics.json").read_text())
        assert float(row["val/loss"]) == pytest.approx(metrics["val/loss"])
        assert float(row["seconds"]) == pytest.approx(metrics["wall_seconds"])
    table = result.stdout[result.stdout.rindex("job") :]
    assert table.index("0.01") < table.index("0.001") < table.index("failed")  # the best first
    assert (tmp_path / "sweep.png").stat().st_size > 5000


def test_a_sweep_over_models_reports_the_objective_of_the_models(tmp_path):
    small = ["collection.num_envs=2", "collection.rollout_steps=8", "model.hidden=[8]", "env.max_env_steps=64"]
    small += ["evaluation.every=64", "evaluation.episodes=1", "evaluation.test_episodes=2", "model.batch_size=16"]
    result = run("train.py", "-m", "model=policy,ppo", *small, f"hydra.sweep.dir={tmp_path}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = rows(tmp_path)
    assert [row["model"] for row in found] == ["policy", "ppo"]
    for row in found:
        metrics = json.loads((tmp_path / row["job"] / "metrics.json").read_text())
        assert float(row["eval/mean_reward"]) == pytest.approx(metrics["eval/mean_reward"])
    best = max(found, key=lambda row: float(row["eval/mean_reward"]))
    table = result.stdout[result.stdout.rindex("eval/mean_reward") :]
    assert table.index(best["model"]) == min(table.index(f" {row['model']} ") + 1 for row in found)


@pytest.mark.system
def test_a_killed_sweep_goes_on_to_its_total_in_the_folders_of_its_trials(tmp_path):
    keys = [*OPTUNA, "hydra.sweeper.trials=3", f"hydra.sweep.dir={tmp_path}", "~callbacks.pruning"]
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "-m", *keys]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "1" / "checkpoints").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    first = optuna.load_study(study_name=NAME, storage=storage(tmp_path)).trials
    assert [trial.state.name for trial in first] == ["COMPLETE", "RUNNING"]
    result = run("train.py", "-m", *keys, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    trials = optuna.load_study(study_name=NAME, storage=storage(tmp_path)).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert trials[2].params == first[1].params  # the interrupted point, again
    assert trials[0].value == first[0].value
    assert len({trial.params["optimizer.lr"] for trial in trials}) == 3
    found = rows(tmp_path)
    assert [row["error"] for row in found] == ["", "interrupted", "", ""]
    for row, trial in zip(found, trials, strict=True):
        if trial.value is not None:
            metrics = json.loads((tmp_path / row["job"] / "metrics.json").read_text())
            assert trial.value == metrics["val/loss"]
            overrides = (tmp_path / row["job"] / ".hydra" / "overrides.yaml").read_text()
            assert f"optimizer.lr={trial.params['optimizer.lr']}" in overrides
    again = run("train.py", "-m", *keys, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert rows(tmp_path) == found  # nothing is left to run
    other = run("train.py", "-m", *keys, "seed=5", cwd=tmp_path)
    assert other.returncode == 1
    assert "is of another sweep: fixed was" in other.stderr


def test_pruned_trials_are_recorded_as_pruned(tmp_path):
    pruner = ["hydra.sweeper.pruner._target_=optuna.pruners.ThresholdPruner", "+hydra.sweeper.pruner.upper=1.0"]
    keys = [*OPTUNA, *pruner, "hydra.sweeper.trials=2", f"hydra.sweep.dir={tmp_path}"]
    result = run("train.py", "-m", *keys, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    trials = optuna.load_study(study_name=NAME, storage=storage(tmp_path)).trials
    assert [trial.state.name for trial in trials] == ["PRUNED", "PRUNED"]
    assert all(list(trial.intermediate_values) == [30] for trial in trials)  # at the first validation, optimizer steps
    assert [row["state"] for row in rows(tmp_path)] == ["pruned", "pruned"]


@pytest.mark.system
def test_several_objectives_and_processes_with_a_share_of_the_threads_each(tmp_path, monkeypatch):
    two = ["objective=[val/loss,val/kl]", "direction=[minimize,maximize]", "~callbacks.pruning"]
    processes = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.jobs=2", "hydra.sweeper.trials=2"]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # of the tests: the jobs' processes are to share the cores
    result = run("train.py", "-m", *OPTUNA, *two, *processes, f"hydra.sweep.dir={tmp_path}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    study = optuna.load_study(study_name=NAME, storage=storage(tmp_path))
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MAXIMIZE"]
    for row, trial in zip(rows(tmp_path), study.trials, strict=True):
        metrics = json.loads((tmp_path / row["job"] / "metrics.json").read_text())
        assert trial.values == [metrics["val/loss"], metrics["val/kl"]]
        assert 2 * metrics["threads"] <= max(2, os.cpu_count() or 1)


@pytest.mark.system
def test_a_grid_runs_by_submitit_at_most_so_many_jobs_at_a_time(tmp_path):
    launcher = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5", "hydra.sweeper.jobs=1"]
    keys = [*SMALL, "seed=0,1", *launcher, f"hydra.sweep.dir={tmp_path}"]
    result = run("train.py", "-m", *keys, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [(row["seed"], row["state"]) for row in rows(tmp_path)] == [("0", "complete"), ("1", "complete")]
    first, second = (tmp_path / name / ".hydra" / "config.yaml" for name in "01")
    assert second.stat().st_mtime > (tmp_path / "0" / "metrics.json").stat().st_mtime >= first.stat().st_mtime


@pytest.mark.slow
def test_a_grid_runs_on_a_local_instance_of_ray_and_goes_on_after_a_failed_job(tmp_path):
    pytest.importorskip("ray", reason="needs the extra ray")
    keys = [*SMALL, "optimizer.lr=-1,1e-2,1e-3", "hydra/launcher=ray", f"hydra.sweep.dir={tmp_path}"]
    result = run("train.py", "-m", *keys, cwd=tmp_path)
    assert result.returncode == 1
    assert [row["state"] for row in rows(tmp_path)] == ["failed", "complete", "complete"]
    assert "Invalid learning rate" in rows(tmp_path)[0]["error"]
    assert (tmp_path / "2" / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1,2", optuna.distributions.CategoricalDistribution(["1", "2"])),
        ("a=choice(x,y)", optuna.distributions.CategoricalDistribution(["x", "y"])),
        ("a=range(2,8,2)", optuna.distributions.IntDistribution(2, 6, step=2)),
        ("a=range(0.5,2.0,0.5)", optuna.distributions.FloatDistribution(0.5, 1.5, step=0.5)),
        ("a=interval(0.5,2)", optuna.distributions.FloatDistribution(0.5, 2.0)),
        ("a=int(interval(1,8))", optuna.distributions.IntDistribution(1, 8)),
        ("a=tag(log,interval(1e-4,1e-2))", optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)),
        ("a=tag(log,int(interval(1,100)))", optuna.distributions.IntDistribution(1, 100, log=True)),
    ],
)
def test_a_swept_override_is_a_distribution(text, expected):
    assert distribution(override(text)) == expected


def test_an_interval_in_a_grid_gets_a_sentence():
    with pytest.raises(ConfigError, match=r"a must be a list of values in a grid, got a=interval\(1,2\)"):
        values(override("a=interval(1,2)"))
    assert values(override("a=range(1,4)")) == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("text", "found", "scale", "labels"),
    [
        ("a=tag(log,interval(1e-3,2e-3))", [0.0011, 0.0019], "log", ["0.0011", "0.0019"]),  # whatever the ratio
        ("a=tag(log,int(interval(1,100)))", [3, 90], "log", ["5", "10", "20", "50"]),
        ("a=interval(0.01,2)", [0.01, 1.9], "linear", None),
        ("a=range(1,200,50)", ["1", "51", "101", "151"], "linear", ["1", "51", "101", "151"]),
        (
            "a=1e-4,3e-4,1e-3,3e-3",
            ["0.0001", "0.0003", "0.001", "0.003"],
            "log",
            ["0.0001", "0.0003", "0.001", "0.003"],
        ),
        ("a=1,2,4,8", ["1", "2", "4", "8"], "log", ["1", "2", "4", "8"]),
        ("a=1,2,3", ["1", "3", "2"], "linear", ["1", "2", "3"]),
        ("a=-1,1e-2,1e-3", ["-1", "0.01", "0.001"], "linear", None),
        ("a=0,1e-4,1e-3", ["0", "0.001", "0.0001"], "linear", ["0", "0.0001", "0.001"]),  # side by side
        ("a=null,0.5,0.3", ["0.3", "null", "0.5"], "linear", ["null", "0.5", "0.3"]),  # in the order given
        ("a=true,false", ["False", "True"], "linear", ["True", "False"]),
        ("a=rloo,reinmax", ["reinmax"], "linear", ["reinmax"]),
        (f"a={'x' * 40},y", ["y", "x" * 40], "linear", ["x" * 27 + "…", "y"]),
        (None, ["b", "a"], "linear", ["b", "a"]),
        (None, ["nan", "1"], "linear", ["nan", "1"]),
    ],
)
def test_a_parameter_is_plotted_on_the_scale_on_which_it_was_swept(text, found, scale, labels):
    axis = _axis(found, override(text) if text else None)
    assert axis.scale == scale
    assert labels is None or axis.labels == labels
    assert len(axis.places) == len(found)
    assert axis.ticks is None or axis.ticks == sorted(axis.ticks)


def test_a_key_that_no_file_has_is_plotted_on_its_scale_too(tmp_path):
    swept = override("++a=tag(log,interval(1e-3,2e-3))")  # as `cli` gives Hydra one that needs a plus
    jobs = [Job(i, {"a": x}, [float(i)], "complete") for i, x in enumerate((0.0011, 0.0015, 0.0019))]
    figure = plot(jobs, ["a"], ["val/loss"], tmp_path / "sweep.png", [swept])
    assert figure.axes[0].get_xscale() == "log"


@pytest.mark.parametrize("params", [1, 6])
def test_the_axes_of_a_sweeps_picture_keep_their_size_under_long_labels(params, tmp_path):
    names = [f"model.augment.a_long_name_of_a_parameter_{i}" for i in range(params)]
    jobs = [Job(i, dict.fromkeys(names, f"{'x' * 30}{i}"), [1.0, i], "complete") for i in range(5)]
    figure = plot(jobs, names, ["val/loss", "val/kl"], tmp_path / "sweep.png")
    for axes in figure.axes:
        box = axes.get_window_extent()
        assert box.width / figure.dpi > 1.7
        assert box.height / figure.dpi > 2


@pytest.mark.parametrize(
    ("status", "returned", "state", "error"),
    [
        (JobStatus.COMPLETED, 2.0, "complete", ""),
        (JobStatus.COMPLETED, [2.0, 3.0], "complete", ""),
        (JobStatus.COMPLETED, float("nan"), "failed", "the objective is [nan]"),
        (JobStatus.FAILED, ConfigError("no\n good"), "failed", "no good"),
        (JobStatus.FAILED, KeyError(), "failed", "KeyError"),
        (JobStatus.FAILED, optuna.TrialPruned("pruned at step 3"), "pruned", "pruned at step 3"),
    ],
)
def test_a_job_is_complete_pruned_or_failed_with_its_reason(status, returned, state, error):
    result = JobReturn()
    result.status, result.return_value = status, returned
    found = job(3, {"a": "1"}, result)
    assert (found.number, found.state, found.error) == (3, state, error)
    assert (found.values is not None) == (state == "complete")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"direction": "down"}, "direction must be minimize or maximize for each of val/loss, got down"),
        ({"objective": ["a", "b"]}, "direction must be minimize or maximize for each of a, b, got minimize"),
        (
            {"objective": ["a", "b"], "direction": ["minimize"] * 2, "callbacks": {"pruning": {}}},
            "pruning needs a single objective",
        ),
    ],
)
def test_objectives_that_do_not_fit_get_a_sentence(changes, sentence, tmp_path):
    with pytest.raises(ConfigError, match=sentence):
        trials(tmp_path, **changes)


def trials(directory, swept=("a=1,2",), **changes):
    parts = ([override(text) for text in swept], optuna.samplers.TPESampler, optuna.pruners.NopPruner(), 0)
    return Trials(directory, config(**changes), [], *parts)


def test_nothing_to_sweep_and_another_sweeps_study_get_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match="sweep=optuna needs something to sweep, such as"):
        trials(tmp_path, swept=())
    trials(tmp_path)
    with pytest.raises(ConfigError, match=r"is of another sweep: swept was \['a=1,2'\], got \['a=1,3'\]"):
        trials(tmp_path, swept=("a=1,3",))


def test_a_resumed_sampler_does_not_ask_for_its_first_points_again(tmp_path):
    seen = []
    for _ in range(3):
        study = trials(tmp_path, swept=("a=interval(0.0,1.0)",))
        (trial,) = study.ask(1)
        result = JobReturn()
        result.status, result.return_value = JobStatus.COMPLETED, 1.0
        result.hydra_cfg = SimpleNamespace(hydra=SimpleNamespace(runtime=SimpleNamespace(output_dir=str(tmp_path))))
        study.tell([trial], [result])
        seen.append(trial.params["a"])
    assert len(set(seen)) == len(study) == 3
