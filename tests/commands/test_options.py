# fixtures of other files
"""Every argument of a config's nodes works, or is one sentence before training; groups can be switched off."""

import csv
import dataclasses
import inspect
import json
import re
import shutil
from functools import partial

import pytest
import torch
from helpers.commands import SMALL
from helpers.configs import CONF
from helpers.images import cat_vae, loaders, trainer
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning import LightningModule, Trainer
from omegaconf import OmegaConf

from taugrad import Constant, cli
from taugrad.commands import train as pipeline
from taugrad.config import fit_to_signature, read
from taugrad.errors import ConfigError
from taugrad.files import require_file, require_folder, require_picture
from taugrad.sweeps import jobs as sweeps
from taugrad.sweeps.jobs import Job
from taugrad.sweeps.report import report
from taugrad.training.trainer import build_trainer, check_optimization, check_processes

WORKS = ""
# Of every argument of lightning.Trainer values that work, and such as end in this sentence.
TRAINER = {
    "accelerator": [("cpu", WORKS), ("abacus", "invalid accelerator name")],
    "strategy": [("auto", WORKS), ("ddp", WORKS), ("nope", "invalid strategy name"), ("fsdp", "requires a GPU")],
    "devices": [(1, WORKS), ("auto", WORKS), (0, "value is not a valid input"), (2, "^$|must be 1 for Policy")],
    "num_nodes": [(1, WORKS), (2, "trainer.num_nodes must be 1 where neither SLURM nor torchrun|must be 1 for Policy")],
    "precision": [
        *((value, WORKS) for value in ("32-true", "64-true", "bf16-mixed", "bf16-true", 32, "64", None)),
        (7, "Precision 7 is invalid"),
        ("transformer-engine", "Requirement 'transformer_engine"),
    ],
    "logger": [(False, "trainer.logger cannot be set: it follows from the group logger"), (None, WORKS)],
    "callbacks": [([], "trainer.callbacks cannot be set: it follows from the group callbacks")],
    "fast_dev_run": [(True, WORKS), (2, WORKS), (-1, "fast_dev_run=-1 is not a valid configuration")],
    "max_epochs": [(2, WORKS), (-1, WORKS), (0, "trainer.max_epochs must be at least 1, or -1 for no end, got 0")],
    "min_epochs": [(2, WORKS)],
    "max_steps": [
        (5, WORKS),
        (-1, WORKS),
        (0, "trainer.max_steps must be at least 1"),
        (None, "must be int, got null"),
    ],
    "min_steps": [(5, WORKS)],
    "max_time": [("00:00:01:00", WORKS), ({"hours": 1}, WORKS), ("soon", "not a valid duration")],
    **{
        f"limit_{split}_batches": [(1, WORKS), (1.0, WORKS), (0.5, WORKS), (0, "more than 0"), (0.0, "more than 0")]
        for split in ("train", "val", "test")
    },
    "limit_predict_batches": [(3, WORKS)],
    "overfit_batches": [(0.0, WORKS), (2, "trainer.overfit_batches must be 0"), (0.1, "trainer.limit_train_batches")],
    "val_check_interval": [(0.5, WORKS), (3, WORKS), ("00:00:01:00", WORKS), (0, "must be more than 0, got 0")],
    "check_val_every_n_epoch": [(2, WORKS), (None, "should be an integer or a time-based|^$"), (0, "more than 0")],
    "num_sanity_val_steps": [(0, WORKS), (1, WORKS), (-1, WORKS)],
    "log_every_n_steps": [(1, WORKS), (0, WORKS), (None, WORKS), (-3, "must be at least 0, got -3")],
    "enable_checkpointing": [(False, "it follows from the ModelCheckpoints among the callbacks")],
    "enable_progress_bar": [(False, WORKS), (True, WORKS)],
    "enable_model_summary": [(True, WORKS)],
    "accumulate_grad_batches": [
        (1, WORKS),
        (2, "trainer.accumulate_grad_batches must be 1, .*batch_size"),
        (0, "got 0"),
    ],
    "gradient_clip_val": [(0.5, "^$|a policy clips by arguments of its own"), (-1, "more than 0"), (0, "more than 0")],
    "gradient_clip_algorithm": [("norm", WORKS), ("value", WORKS), ("nope", "algorithm. nope is invalid")],
    "deterministic": [
        (True, WORKS),
        ("warn", WORKS),
        ("often", "trainer.deterministic must be 'warn' or bool or null"),
    ],
    "benchmark": [(True, WORKS)],
    "inference_mode": [(False, WORKS)],
    "use_distributed_sampler": [(False, WORKS)],
    "profiler": [
        ("simple", WORKS),
        ("nope", "it can only be one of"),
        ({"foo": 1}, "trainer.profiler must be .*, got"),
    ],
    "detect_anomaly": [(True, WORKS), (False, WORKS)],
    "barebones": [(False, WORKS), (True, "trainer.barebones must be false")],
    "plugins": [
        ([], WORKS),
        ({"_target_": "lightning.pytorch.plugins.precision.Precision"}, WORKS),
        ([{"_target_": "lightning.pytorch.plugins.io.TorchCheckpointIO"}], "multiple values for CheckpointIO"),
        ("nope", "invalid type for plugin"),
    ],
    "sync_batchnorm": [(True, WORKS)],
    "reload_dataloaders_every_n_epochs": [(0, WORKS), (1, "must be 0, as every epoch has an order of its own, got 1")],
    "default_root_dir": [("there", "trainer.default_root_dir cannot be set: it follows from the run's directory")],
    "enable_autolog_hparams": [(False, WORKS)],
    "model_registry": [("name", "it follows from the ModelCheckpoints among the callbacks")],
}


@pytest.fixture(scope="module", params=["cat_vae", "policy"])
def run_and_model(request, tmp_path_factory):
    small = {"cat_vae": ["model.encoder=[4]", "model.decoder=[4]"], "policy": ["model.hidden=[4]"]}[request.param]
    directory = tmp_path_factory.mktemp(request.param)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"model={request.param}", *small, f"run_dir={directory}"])
    run = read(pipeline.TrainConfig, config)
    return run, pipeline._task_and_data(run)[0]


def up_to_the_training(run, model, name, value):
    """Make the checks of `train` on a trainer's arguments before Lightning has them all; return the trainer."""
    arguments = {key: x for key, x in run.trainer.items() if not key.startswith("_")} | {name: value}
    fitted = fit_to_signature(Trainer, arguments, "trainer")
    changed = dataclasses.replace(run, trainer=run.trainer | fitted)
    pipeline._check_amounts(changed)
    found = build_trainer(changed.trainer, run.run_dir, [], [])
    check_processes(found, changed.trainer, model, None)
    check_optimization(found, changed.trainer, model)
    return found


def test_every_argument_of_the_trainer_is_in_the_table():
    assert set(TRAINER) == set(inspect.signature(Trainer).parameters)


@pytest.mark.parametrize("name", TRAINER)
def test_every_argument_of_the_trainer_works_or_is_one_sentence_before_training(name, run_and_model):
    run, model = run_and_model
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        for value, sentence in TRAINER[name]:
            told = ""
            try:
                up_to_the_training(run, model, name, value)
            except ConfigError as error:
                told = str(error)
            assert re.search(sentence or "^$", told), (value, told)
            assert "\n" not in told
    finally:
        model.gradient_clip_val = None
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = False
        torch.autograd.set_detect_anomaly(False)


# Arguments without a plus


def test_an_argument_of_what_a_node_names_needs_no_plus():
    given = [
        *("trainer.max_steps=20", "trainer.max_epochs=2", "optimizer.weight_decay=0,0.1", "data.seed=3"),
        *("trainer.profiler._target_=own.Profiler", "+callbacks.es._target_=own.Stopping", "callbacks.es.patience=3"),
        *(
            "callbacks.nobody.every=3",
            "env.make.id=x",
            "task.tau.novel=1",
            "logger=null",
            "~callbacks.best",
            "seed=1,2",
        ),
    ]
    assert cli._accepting(["-m", *given], "train") == [
        *("-m", "trainer.max_steps=20", "++trainer.max_epochs=2", "++optimizer.weight_decay=0,0.1", "data.seed=3"),
        *(
            "++trainer.profiler._target_=own.Profiler",
            "+callbacks.es._target_=own.Stopping",
            "++callbacks.es.patience=3",
        ),
        *("callbacks.nobody.every=3", "env.make.id=x", "task.tau.novel=1", "~logger", "~callbacks.best", "seed=1,2"),
    ]


def test_in_a_sweep_over_options_a_key_of_some_of_them_needs_no_plus():
    assert (
        cli._accepting(["-m", "optimizer=adam,radam", "optimizer.fused=true"], "train")[-1] == "++optimizer.fused=true"
    )
    given = ["-m", "logger=null,tensorboard", "logger.tensorboard.name=x", "trainer.max_epochs=2"]
    assert cli._accepting(given, "train") == [*given[:2], "++logger.tensorboard.name=x", "++trainer.max_epochs=2"]
    assert cli._accepting(["run=x", "trainer.limit_test_batches=4"], "evaluate")[-1] == "++trainer.limit_test_batches=4"
    keys = ["env.max_env_steps=9", "collection.num_envs=2"]
    given = ["-m", "model=policy,ppo", *keys, "seed=1,2"]
    assert cli._accepting(given, "train") == [*given[:2], *(f"++{key}" for key in keys), "seed=1,2"]
    assert cli._accepting(["model=ppo", *keys], "train") == ["model=ppo", *keys]  # the model's own config has them


def test_a_study_does_not_mind_a_plus():
    assert (
        sweeps.name_of(OverridesParser.create().parse_override("++optimizer.weight_decay=0,1"))
        == "optimizer.weight_decay"
    )


def test_clipped_gradients_bound_a_step_of_plain_descent(tmp_path):
    for algorithm, order in (("norm", 2.0), ("value", float("inf"))):
        model = cat_vae(optimizer=partial(torch.optim.SGD, lr=1.0), lr_factor=Constant(1.0))
        before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        model.gradient_clip_val = 1e-3
        run = trainer(tmp_path, max_steps=1, gradient_clip_algorithm=algorithm)
        run.fit(model, *loaders())
        moved = torch.nn.utils.parameters_to_vector(model.parameters()) - before
        assert torch.linalg.vector_norm(moved, order).item() == pytest.approx(1e-3, rel=1e-2)


# Groups switched off, epochs instead of steps


def test_a_run_without_logger_and_callbacks_ends_with_the_results_of_its_last_weights(command, tmp_path):
    options = [
        "trainer.max_steps=-1",
        "trainer.max_epochs=2",
        "trainer.limit_train_batches=0.02",
        "trainer.precision=64-true",
    ]
    options += ["trainer.gradient_clip_val=1", "trainer.log_every_n_steps=0", "optimizer.weight_decay=0.1"]
    small = [a for a in SMALL if not a.startswith(("trainer.max_steps", "trainer.check_val", "+trainer.val_check"))]
    code, err, out = command("train", *small, *options, "logger=null", "callbacks=null", "hydra.run.dir=run")
    assert code == 0, err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["steps"] == 20  # 2 epochs of a fiftieth of 50 stacks of 10
    assert {"val/loss", "test/nll", "train/epoch_loss"} <= set(metrics)
    assert re.search(r"tau:\n.*\n.*\n.*\n +steps: 20\n|steps: 20", out)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".hydra", ".lock", "metrics.json"}


# Objectives


def test_an_objective_that_was_not_logged_is_nan_and_the_run_is_kept(capsys):
    run = pipeline.TrainConfig({}, {}, 0, ["val/loss", "rollout/ep_rew_mean"], "minimize", "run", 1)
    found = pipeline._objective(run, {"val/loss": 2.0}, pipeline.Console())
    assert str(found) == "[2.0, nan]"
    assert "the run logged no rollout/ep_rew_mean: that objective is nan" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:The dirpath has changed")  # the run was copied
def test_a_finished_run_taken_up_again_reports_what_it_had(command, trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    before = json.loads((tmp_path / "run" / "metrics.json").read_text())
    code, err, _ = command("train", *SMALL, "objective=train/epoch_loss", "ckpt_path=last", "hydra.run.dir=run")
    assert code == 0, err
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == before


def test_what_a_sweep_reported_of_a_finished_job_stays(tmp_path):
    config = OmegaConf.create({"objective": "val/loss", "direction": "minimize"})
    jobs = [Job(n, {"seed": str(n)}, [float(n)], "complete", 9.0) for n in range(3)]
    report(jobs, tmp_path, config, [])
    with pytest.raises(ConfigError, match="1 of 2 jobs failed, the first of them 1: broken"):
        report([jobs[0], Job(1, {"seed": "1"}, None, "failed", None, "broken")], tmp_path, config, [])
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["job"], r["seed"], r["val/loss"], r["state"], r["seconds"]) for r in rows] == [
        (str(n), str(n), str(float(n)), "complete", "9.0") for n in range(3)
    ]


def test_jobs_at_other_points_do_not_go_on_in_a_sweeps_folders(tmp_path):
    (tmp_path / "0" / ".hydra").mkdir(parents=True)
    (tmp_path / "0" / ".hydra" / "overrides.yaml").write_text("- ++trainer.max_epochs=1\n- seed=0\n")
    sweeps.require_same(tmp_path, [{"seed": "0", "trainer.max_epochs": "1"}, {"seed": "1"}])
    with pytest.raises(ConfigError, match="is of another sweep: its job 0 has seed=0, got 2"):
        sweeps.require_same(tmp_path, [{"seed": "2"}])


# What was computed is shown before it can be lost


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_metrics_are_shown_before_a_file_that_cannot_be_written_is_one_sentence(command, trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    for path in ("run/.evaluation.json.part", "other/.metrics.json.part"):
        (tmp_path / path).mkdir(parents=True)  # in the way of what is to be written
    few = ["num_samples=2", "trainer.limit_test_batches=1"]
    code, err, out = command("evaluate", "run=run", *few)
    assert code == 1
    assert err.endswith("error: run/evaluation.json cannot be written: Is a directory\n")
    assert "test/nll" in out
    code, err, out = command("train", *SMALL, "trainer.fast_dev_run=true", "hydra.run.dir=other")
    assert code == 1
    assert err.count("error: ") == 1
    assert "/other/metrics.json cannot be written: Is a directory" in err
    assert "test/nll" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "run=run", "images=true"],
        ["export", "run=run", "out=file/model.pt2"],
        ["probe", "run=run", "out=file"],
        ["probe", "out=file/probe"],
        ["compare", "run", "--out", "file/curves.png"],
        ["bench", "op", "--json", "file/op.json"],
        ["bench", "op", "--plot", "file/op.png"],
    ],
    ids=" ".join,
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    arguments, command, trained, tmp_path, monkeypatch
):
    shutil.copytree(trained[0], tmp_path / "run")
    (tmp_path / "file").write_text("")
    (tmp_path / "run" / "pictures").write_text("")
    for name in (
        "taugrad.commands.probe.reference",
        "taugrad.commands.export.load_run",
        "taugrad.commands.bench.op_at",
    ):
        monkeypatch.setattr(name, None)  # the work, which would fail
    code, err, _ = command(*arguments)
    assert code == 1
    assert re.search(r"error: (run|out|--json|--plot) must be where files can be written, got ", err)
    assert "Traceback" not in err


def test_the_folder_of_an_output_is_made_and_a_folder_or_an_unknown_format_refused(tmp_path):
    require_file("out", tmp_path / "a" / "b" / "model.pt2")
    assert (tmp_path / "a" / "b").is_dir()
    with pytest.raises(ConfigError, match=r"out must be a file, got .*a, which is a folder"):
        require_file("out", tmp_path / "a")
    with pytest.raises(ConfigError, match=r"--out must end in one of .*\.png.*, got curves.txt"):
        require_picture("--out", tmp_path.joinpath("curves.txt").relative_to(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError, match=r"out must be where files can be written, got .*: File exists|Not a directory"
    ):
        require_folder("out", tmp_path / "file")
    long = 300 * "x"  # more than any file system takes
    with pytest.raises(ConfigError, match=r"out must be a file that can be written, got .*: File name too long"):
        require_file("out", tmp_path / f"{long}.c")
    with pytest.raises(ConfigError, match=r"out must be where files can be written, got .*: File name too long"):
        require_file("out", tmp_path / long / "a.c")


# What a node builds


class Plain(LightningModule):
    """A model of Lightning that is no task."""

    def __init__(self, **_):
        super().__init__()


def nothing(**_):
    return None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            [f"task._target_={__name__}.Plain"],
            r"task must be a taugrad\S+Task, got test_options.Plain, a .*; docs/extending.md shows how a model",
        ),
        (["task._target_=torch.nn.Identity"], r"task must be a taugrad\S+Task, got torch.nn.Identity, a torch"),
        ([f"task._target_={__name__}.nothing"], "got test_options.nothing, a builtins.NoneType"),
        ([f"model._target_={__name__}.Plain"], "ImageTask: model must be an nn.Module with loss_terms, got Plain"),
        (["model._target_=torch.nn.Identity"], "ImageTask: model must be an nn.Module with loss_terms, got Identity"),
        ([f"model._target_={__name__}.nothing"], "model must be an nn.Module with loss_terms, got NoneType"),
        (
            [f"data._target_={__name__}.Plain"],
            r"data must be a lightning\S+LightningDataModule, got test_options.Plain",
        ),
        (
            ["+callbacks.mine._target_=torch.nn.Identity"],
            r"callbacks.mine must be a lightning\S+Callback, got torch.nn",
        ),
        (["+callbacks.mine.every=3"], "callbacks.mine must have a _target_, the import path of a lightning"),
        (
            ["+logger.mine._target_=torch.nn.Identity"],
            r"logger.mine must be a lightning\S+Logger, got torch.nn.Identity",
        ),
    ],
)
def test_what_a_node_builds_must_be_of_its_kind(arguments, sentence, command):
    code, err, out = command("train", *SMALL, *arguments)
    assert code == 1
    assert re.search(f"error: .*{sentence}", err), err
    assert "Traceback" not in err
    assert "_target_: taugrad" not in out
