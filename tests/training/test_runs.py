"""A run owns its directory, keeps its best, ends in a checkpoint, and prints the command that goes on."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from helpers.commands import ROOT
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from taugrad.commands import train as pipeline
from taugrad.training import checkpoints, ownership, resuming
from taugrad.training.stopping import Stopped

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")  # Lightning, of a resumed run

TINY = [
    "model=cat_vae",
    "model.encoder=[8]",
    "model.decoder=[8]",
    "model.latents=2",
    "model.nll_samples=1",
    "threads=1",
]
TINY += ["+trainer.limit_val_batches=1", "+trainer.limit_test_batches=1", "~callbacks.summary", "~callbacks.pictures"]
POLICY = [
    "model=policy",
    "model.hidden=[8]",
    "collection.num_envs=2",
    "collection.rollout_steps=4",
    "model.batch_size=8",
]
POLICY += ["evaluation.test_episodes=1", "evaluation.episodes=1", "~callbacks.summary"]
STOP = ["+callbacks.stop._target_=test_stopping.SignalAt", "+callbacks.stop.batch=2"]


def files(directory):
    return {p.relative_to(directory): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def metrics(directory):
    return json.loads((Path(directory) / "metrics.json").read_text())


def saved(directory, name):
    return checkpoints.load(Path(directory) / "checkpoints" / f"{name}.ckpt")


def test_two_runs_started_in_the_same_second_get_a_directory_each(command):
    for name in ("noon", "noon_2", "noon_3"):
        code, err, out = command("train", *TINY, "trainer.max_steps=1", "hydra.run.dir=outputs/${now:noon}")
        assert code == 0, err
        assert out.rstrip().endswith(f"outputs/{name}")
        assert (Path("outputs") / name / ".hydra" / "config.yaml").is_file()
        assert metrics(f"outputs/{name}")["steps"] == 1


def test_a_directory_that_holds_a_run_is_refused_and_left_as_it_is(command):
    Path("run").mkdir()
    Path("run/notes.txt").write_text("of the user")  # a directory may be there, if no run is in it
    code, err, _ = command("train", *TINY, "trainer.max_steps=1", "hydra.run.dir=run")
    assert code == 0, err
    before = files(Path("run"))
    for key in ("hydra.run.dir", "run_dir"):
        code, err, _ = command("train", *TINY, "trainer.max_steps=2", f"{key}=run")
        assert code == 1
        assert f"error: {key}={Path('run').resolve()} holds a run already: choose another directory, or go on" in err
        assert files(Path("run")) == before
        with FileLock("run/.lock"):  # as another process that trains there
            code, err, _ = command("train", *TINY, "trainer.max_steps=2", f"{key}=run", "ckpt_path=last")
        assert code == 1
        assert f"{key}={Path('run').resolve()}: another run or sweep is going on there" in err
        assert files(Path("run")) == before  # but for the lock, that of a process which is gone
    lost = "ckpt_path=run/checkpoints/lost.ckpt"
    code, err, _ = command("train", *TINY, "trainer.max_steps=2", "hydra.run.dir=run", lost)
    assert (code, err) == (1, "error: ckpt_path must be a checkpoint file, or last, got run/checkpoints/lost.ckpt\n")
    assert files(Path("run")) == before
    for key, on in (("hydra.run.dir", "last"), ("run_dir", "run/checkpoints/last.ckpt")):
        code, err, _ = command("train", *TINY, "trainer.max_steps=2", f"{key}=run", f"ckpt_path={on}")
        assert code == 0, err
    assert metrics("run")["steps"] == 2


def test_a_mended_command_trains_in_the_directory_of_one_whose_data_could_not_be_used(command):
    code, err, _ = command("train", *TINY, "data.batch_size=50001", "hydra.run.dir=run")
    assert code == 1
    assert "error: data.batch_size must be at most 50000" in err
    code, err, _ = command("train", *TINY, "trainer.max_steps=1", "hydra.run.dir=run")
    assert code == 0, err


def test_a_run_starts_in_a_directory_that_is_named_as_run_dir(command):
    code, err, _ = command("train", *TINY, "trainer.max_steps=1", "run_dir=run")
    assert code == 0, err
    assert metrics("run")["steps"] == 1


def test_a_sweep_s_job_leaves_a_run_as_it_is_and_two_sweeps_of_a_second_get_a_directory_each(command):
    Path("sweep/0/checkpoints").mkdir(parents=True)
    Path("sweep/0/checkpoints/last.ckpt").write_text("of another run")
    code, err, _ = command("train", "-m", *TINY, "trainer.max_steps=1", "seed=0", "hydra.sweep.dir=sweep")
    assert code == 1
    assert "sweep/0 holds a run already" in err
    assert Path("sweep/0/checkpoints/last.ckpt").read_text() == "of another run"
    for name in ("noon", "noon_2"):
        code, err, _ = command("train", "-m", *TINY, "trainer.max_steps=1", "seed=3", "hydra.sweep.dir=${now:noon}")
        assert code == 0, err
        assert metrics(f"{name}/0")["seed"] == 3


def test_a_directory_that_cannot_be_written_gets_a_sentence(command):
    Path("file").write_text("")
    code, err, _ = command("train", *TINY, "hydra.run.dir=file/run")
    assert code == 1
    assert err == f"error: hydra.run.dir={Path('file/run').resolve()}: nothing can be written there: Not a directory\n"


def test_others_see_that_a_run_is_training(tmp_path):
    assert not ownership.is_training(tmp_path)
    with ownership.owned(tmp_path, "run_dir"), ownership.owned(tmp_path, "run_dir"):  # Hydra's callback and `train`
        assert ownership.is_training(tmp_path)
    assert not ownership.is_training(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of twenty steps, and what is worse than its best."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        schedule = ["trainer.check_val_every_n_epoch=null", "+trainer.val_check_interval=1"]
        pipeline.train(compose("train", [*TINY, *schedule, "trainer.max_steps=20", f"run_dir={directory}"]))
    return directory


def resumed(command, *arguments, steps=40):
    """Go on with a learning rate that ruins the model: the best was before."""
    ruin = ["optimizer.lr=30", "lr_factor=constant"]
    code, err, out = command("train", *TINY, *ruin, f"trainer.max_steps={steps}", *arguments)
    assert code == 0, err
    return out


@pytest.mark.parametrize(
    ("how", "steps"),
    [
        *((how, 40) for how in ("new", "copied", "moved", "moved, new", "best", "last alone")),
        *((how, 20) for how in ("new", "moved", "last alone")),  # nothing left
    ],
)
def test_a_resumed_run_keeps_its_best(how, steps, finished, command):
    first, best = metrics(finished), saved(finished, "best")
    run = Path("run")
    if how == "new":
        resumed(command, f"ckpt_path={finished}/checkpoints/last.ckpt", f"hydra.run.dir={run}", steps=steps)
    elif how == "best":
        resumed(command, f"ckpt_path={finished}/checkpoints/best.ckpt", f"hydra.run.dir={run}", steps=steps)
    elif how == "last alone":
        shutil.copy(finished / "checkpoints" / "last.ckpt", "elsewhere.ckpt")
        hidden = finished.rename(finished.with_name("hidden"))
        try:
            out = resumed(command, "ckpt_path=elsewhere.ckpt", f"hydra.run.dir={run}", steps=steps)
        finally:
            hidden.rename(finished)
        assert "the best checkpoint until now, with val/loss " in out
        assert "is not beside elsewhere.ckpt" in out
        assert saved(run, "last")["global_step"] == steps
        if steps == 40:
            assert saved(run, "best")["global_step"] == 40
        return
    else:
        shutil.copytree(finished, "copy")
        hidden = finished.rename(finished.with_name("hidden")) if how != "copied" else None
        try:
            if how == "moved, new":
                resumed(command, "ckpt_path=copy/checkpoints/last.ckpt", f"hydra.run.dir={run}", steps=steps)
            else:
                run = Path("copy")
                resumed(command, "ckpt_path=last", f"hydra.run.dir={run}", steps=steps)
        finally:
            if hidden is not None:
                hidden.rename(finished)
    assert metrics(run)["val/loss"] == pytest.approx(first["val/loss"], rel=1e-6)
    assert metrics(run)["test/loss"] == pytest.approx(first["test/loss"], rel=1e-6)
    kept = saved(run, "best")
    assert kept["global_step"] == best["global_step"]
    assert all(torch.equal(kept["state_dict"][name], value) for name, value in best["state_dict"].items())
    assert saved(run, "last")["global_step"] == metrics(run)["steps"] == steps
    assert saved(finished, "best")["global_step"] == best["global_step"]  # as it was


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ([*TINY, "trainer.max_steps=10"], 10),
        ([*TINY, "+trainer.fast_dev_run=true"], 1),
        ([*POLICY, "trainer.max_steps=3"], 3),
        ([*POLICY[1:-1], "model=ppo", "+trainer.max_time=00:00:00:01"], None),
        ([*POLICY, "env.max_env_steps=24"], 3),
    ],
    ids=["max_steps", "fast_dev_run", "policy's max_steps", "ppo's max_time", "max_env_steps"],
)
def test_the_end_of_a_run_is_in_its_last_checkpoint(arguments, steps, command):
    code, err, _ = command("train", *arguments, "hydra.run.dir=run")
    assert code == 0, err
    last = saved("run", "last")
    assert steps is None or last["global_step"] == steps
    if arguments[0] == "model=cat_vae":
        assert metrics("run")["steps"] == steps
    else:
        assert last["acting"]["env_steps"] == metrics("run")["env_steps"]
    if "+trainer.fast_dev_run=true" not in arguments:  # for which Lightning keeps no best
        assert saved("run", "best")["global_step"] <= last["global_step"]


def test_a_finished_policy_that_goes_on_has_nothing_left_to_do(command):
    for more in ([], ["ckpt_path=last"]):
        code, err, _ = command("train", *POLICY, "env.max_env_steps=24", "hydra.run.dir=run", *more)
        assert code == 0, err
        assert (metrics("run")["env_steps"], saved("run", "last")["global_step"]) == (24, 3)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_hydra_reads_the_text_that_is_assigned(text):
    override = OverridesParser.create().parse_override(resuming.assigned("a", text))
    value = override.value()
    assert OmegaConf.create({"a": str(value)}).a == text
    assert not override.is_sweep_override()


def test_a_command_keeps_what_was_given_but_for_the_directory_and_the_checkpoint(monkeypatch):
    given = ["-cd", "my conf", "+a=[1, 'b c']", "~callbacks.pictures", "x='it\\'s'", "hydra/launcher=joblib"]
    old = ["hydra.run.dir=old", "++ckpt_path=old.ckpt"]
    line = resuming.command("hydra.run.dir", Path("/tmp/a=b (é)"), ["scripts/train.py", *given, *old])
    words = shlex.split(line)
    assert words == ["python", "scripts/train.py", *given, "hydra.run.dir='/tmp/a=b (é)'", "ckpt_path=last"]
    assert resuming.command("hydra.run.dir", Path("a"), ["/usr/bin/taugrad"]).startswith("taugrad train ")
    assert resuming.command("hydra.run.dir", Path("a"), ["/usr/bin/mine"], None) == "/usr/bin/mine hydra.run.dir=a"


def printed(out):
    (line,) = (line for line in out.splitlines() if "stopped; to go on: " in line)
    return line.partition("to go on: ")[2]


def test_the_command_that_goes_on_does_where_the_directory_has_an_odd_name(command):
    directory = "hydra.run.dir='odd = (né) it\\'s [1,2]'"
    few = ["trainer.max_steps=30", "~task.tau", "+task.tau={_target_: taugrad.schedules.Constant, value: 0.5}"]
    code, err, out = command("train", *TINY, *few, *STOP, directory)
    assert code == 143, err
    assert saved("odd = (né) it's [1,2]", "last")["global_step"] == 20
    code, err, out = command(*shlex.split(printed(out))[1:])
    assert code == 0, err
    assert "going on from" in out
    assert metrics("odd = (né) it's [1,2]")["steps"] == 30


@pytest.mark.parametrize("optuna", [False, True], ids=["grid", "optuna"])
def test_a_stopped_sweep_prints_its_own_command_which_goes_on(optuna, command):
    swept = (
        ["sweep=optuna", "hydra.sweeper.trials=2", "~callbacks.pruning", "seed=choice(3,4)"] if optuna else ["seed=3,4"]
    )
    code, err, out = command("train", "-m", *TINY, "trainer.max_steps=30", *STOP, *swept, "hydra.sweep.dir='a=b'")
    assert code == 143, err
    assert out.count("to go on: ") == 1
    words = shlex.split(printed(out))
    assert words[2] == "-m"
    if optuna:  # a trial that was stopped begins again: it would be stopped again
        words = [word for word in words if not word.startswith("+callbacks.stop")]
        assert "ckpt_path=last" not in words
        return
    code, err, out = command(*words[1:])
    assert code == 143, err  # the second job is stopped, too
    assert metrics("a=b/0")["steps"] == 30
    code, err, out = command(*shlex.split(printed(out))[1:])
    assert code == 0, err
    assert [metrics(f"a=b/{job}")["steps"] for job in "01"] == [30, 30]
    assert Path("a=b/sweep.csv").read_text().count("complete") == 2


def test_a_run_without_hydra_is_stopped_and_goes_on_too(tmp_path, capsys):
    overrides = [*TINY, "trainer.max_steps=30", f"run_dir={tmp_path / 'run'}"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        with pytest.raises(Stopped):
            pipeline.train(compose("train", [*overrides, *STOP]))
        out = capsys.readouterr().out
        assert f"stopped; to go on: ckpt_path={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}" in out
        pipeline.train(compose("train", [*overrides, "ckpt_path=last"]))
    assert metrics(tmp_path / "run")["steps"] == 30
