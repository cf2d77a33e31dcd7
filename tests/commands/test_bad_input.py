"""Answer of a command to input that cannot be used: one sentence that names it, exit code 1 or 2, and no traceback.

The commands run in this process, by their entry point, which is what a shell starts but for the seconds of imports.
"""

import gzip
import math
import os
import re
import shutil
import tempfile
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from filelock import FileLock
from gymnasium.envs.registration import register
from gymnasium.spaces import Box, Dict, Discrete, Sequence
from helpers.cases import each
from helpers.commands import SMALL
from helpers.idx import NAMES, idx, write_set

from taugrad import gumbel_softmax
from taugrad.data.mnist import mnist, read_idx
from taugrad.errors import DataError
from taugrad.ops.softmax import softmax
from taugrad.training import checkpoints


class Broken(gymnasium.Env):
    """Gives what no environment should."""

    observation_space = Box(-1, 1, (2,))
    action_space = Discrete(2)

    def __init__(self, observation=0.0, reward=0.0, nested=False):
        self._observation, self._reward, self._steps = observation, reward, 0
        if nested:
            self.observation_space = Dict({"a": Sequence(Discrete(2))})

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self._steps += 1
        return np.full(2, self._observation, np.float32), self._reward, self._steps % 9 == 0, False, {}


if "Broken-v0" not in gymnasium.registry:  # pytest imports this twice
    register("Broken-v0", Broken, disable_env_checker=True)


def policy(*arguments):
    return ["model=policy", "env=gymnasium", *arguments, "env.max_env_steps=2000", "evaluation.test_episodes=1"]


CONFIGS = [
    # groups, keys, types
    (["model=cat_va"], "Could not find 'model/cat_va'", "did you mean model=cat_vae?"),
    (["estimator=reinmx"], "Could not find 'estimator/reinmx'", "did you mean estimator=reinmax?"),
    (["tau=lineer"], "Could not find 'tau/lineer'", "did you mean tau=linear?"),
    (["modle=cat_vae"], "Could not override 'modle'", "did you mean model?"),
    (
        ["model.latnts=3"],
        "error: model.latnts is not an argument of ",
        "; did you mean model.latents? It takes latents",
    ),
    # arguments of another node
    (
        ["model=policy", "model.max_env_steps=9"],
        "error: model.max_env_steps is not",
        "; did you mean env.max_env_steps?",
    ),
    (
        ["model=ppo", "model.num_envs=9"],
        "error: model.num_envs is not an arg",
        "PPO; did you mean collection.num_envs?",
    ),
    (
        ["model=policy", "model.evaluation_every=9"],
        "error: model.evaluation_every ",
        "; did you mean evaluation.every?",
    ),
    (["model.lr=1e-3"], "error: model.lr is not an argument of ", "CatVAE; did you mean optimizer.lr?"),
    (["model.tau.value=1"], "error: model.tau is not an argument of ", "CatVAE; did you mean tau?"),
    (["trainer.max_epoch=3"], "error: trainer.max_epoch is not an argument of ", "did you mean trainer.max_epochs? It"),
    (["callbacks.summary.max_dpth=3"], "did you mean callbacks.summary.max_depth?"),
    (["callbacks.bst.monitor=val/kl"], "Could not override 'callbacks.bst.monitor'", "did you mean callbacks.best?"),
    # groups that are needed
    (["lr_factor=null"], "error: task.lr_factor refers to lr_factor, which the config lacks"),
    (["data=null"], "error: data must fit ImageTask, which takes images, got null"),
    (["model=policy", "env=null"], " refers to env.", ", which the config lacks"),
    (
        ["model=policy", "data=mnist"],
        "error: data must fit PolicyTask, which takes no data, but an env, got taugrad.data",
    ),
    (["model=null"], "error: task.model refers to model, which the config lacks"),
    (["task=null"], "error: task is missing: taugrad.commands.train.TrainConfig needs it"),
    (["+model.foo=3"], "error: model.foo is not an argument of taugrad.models.cat_vae.CatVAE; it takes latents"),
    (["model.latents=many"], "error: model.latents must be int, got 'many'"),
    (["model.encoder=16"], "error: model.encoder must be list[int], got 16"),
    (["trainer.max_steps=soon"], "error: trainer.max_steps must be int, got 'soon'"),
    (["seed=1.5"], "error: seed must be int, got 1.5"),
    (["estimator._target_=taugrad.estimators.Nope"], "error: estimator._target_ must be the import path of a class"),
    (["tau=join", "~tau.schedules"], "error: tau.schedules is missing: taugrad.schedules.Join needs it"),
    (["model=semi_supervised", "~model.alpha"], "error: model.alpha is missing: taugrad.models.semi_supervised.Semi"),
    # values out of range: one of each kind of object, whose other arguments have tables of refusals in their own tests
    (
        ["tau=constant", "tau.value=0"],
        "error: taugrad.schedules.Constant: value must be a positive finite number, got 0",
    ),
    (["model.encoder=[16,0]"], "CatVAE: encoder[1] must be at least 1, got 0"),
    (["estimator=rloo", "estimator.samples=1"], "RLOO: samples must be at least 2, got 1"),
    (["optimizer.lr=-1"], "error: optimizer: Invalid learning rate: -1.0"),
    (["seed=-1"], "error: seed must be in [0, 4294967295], got -1"),
    (["threads=0"], "error: threads must be at least 1, got 0"),
    (["trainer.max_steps=0"], "error: trainer.max_steps must be at least 1, or -1 for no end, got 0"),
    (["trainer.max_steps=-1", "+trainer.max_epochs=0"], "error: trainer.max_epochs must be at least 1, or -1"),
    (
        ["trainer.max_steps=-1"],
        "error: taugrad.schedules.Linear: steps must be at least 1, got -1",
        "trainer.max_epochs",
    ),
    (["trainer.limit_val_batches=0"], "error: trainer.limit_val_batches must be more than 0, got 0"),
    (["trainer.limit_test_batches=1e-3"], "error: trainer.limit_test_batches must leave one of the 100 batches, got"),
    (
        ["callbacks.best.monitor=val/los"],
        "error: monitor of callback ModelCheckpoint must be one of train/epoch_loss, ",
    ),
    (["objective=train/loss"], "error: objective must be one of train/epoch_loss, val/loss, "),
    (["callbacks.progress.every=0"], "error: taugrad.training.progress.Progress: every must be at least 1, got 0"),
    (["callbacks=probe", "model=structured"], "error: callbacks.probe is for a categorical VAE, got Structured"),
    (["sweep=optuna"], "error: callbacks.pruning is for the jobs of a sweep: add -m, or ~callbacks.pruning"),
    (
        ["logger=wandb"],
        "error: lightning.pytorch.loggers.WandbLogger needs a package that is missing: Requirement 'wandb",
    ),
    # devices
    (["trainer.accelerator=abacus"], "error: trainer: You selected an invalid accelerator name"),
    (["trainer=gpu"], "error: trainer: No supported gpu backend found"),
    (["trainer.devices=0"], "error: trainer: `Trainer(devices=0)` value is not a valid input"),
    (["trainer=ddp", "model=policy"], "error: trainer.devices must be 1 for PolicyTask, got 2 processes"),
    (
        ["trainer=ddp", "trainer.strategy=ddp_spawn"],
        "error: trainer.strategy must be ddp for 2 processes, got ddp_spawn",
    ),
    # resuming
    (["ckpt_path=absent.ckpt"], "error: ckpt_path must be a checkpoint file, or last, got absent.ckpt"),
    (["ckpt_path=last"], "error: ckpt_path=last goes on with a run: give its directory as hydra.run.dir=..."),
    # data
    (["data.batch_size=0"], "error: taugrad.data.datamodule.ImageData: batch_size must be at least 1, got 0"),
    (["data.batch_size=50001"], "error: data.batch_size must be at most 50000, the size of the training split"),
    (["data.binarize=some"], "error: taugrad.data.datamodule.ImageData: binarize must be one of none, static, dynamic"),
    (["data=mnist", "data.source.root=empty"], "error: empty lacks train-images-idx3-ubyte and it could not be"),
    (["data=mnist", "data.source.root=."], "lacks train-images-idx3-ubyte"),
    (
        ["model.image_size=[14,14]"],
        "error: model.image_size must be [28, 28], the size of the data's images, got [14, 14]",
    ),
    (["model=semi_supervised", "data.labels=5"], "error: data.labels must be a positive multiple of the number of"),
    (
        ["model=semi_supervised", "data.labels=60000"],
        "error: data.labels must be at most 45060, as one class has 4506, got 60000",
    ),
    (["model=semi_supervised", "model.classes=5"], "error: labels must be in 0 to 4, or -1 for none, got 0 to 9: "),
    (["model=logic_gates", "model.classes=5"], "error: labels must be in 0 to 4, got 0 to 9: model.classes must be"),
    (["model=logic_gates", "estimator=rloo"], "ImageTask: estimator must be a pathwise estimator, which gives samples"),
    # environments
    (policy("env.make.id=Nope-v0"), "error: env.make.id=Nope-v0: Environment `Nope` doesn't exist."),
    (policy("env.make.id=nope:Nope-v0"), "error: env.make.id=nope:Nope-v0: No module named 'nope'."),
    (
        policy("env.make.id=Pendulum-v1"),
        "error: a policy's actions must be Discrete, MultiDiscrete, MultiBinary or a Tuple of them, the environment's",
    ),
    (
        policy("env.make.id=Broken-v0", "+env.make.nested=true"),
        "or a Dict or Tuple of them, the environment's are Dict('a': Sequence(",
    ),
    (
        policy("env.make.id=Broken-v0", "+env.make.observation=nan"),
        "error: the environment returned an observation of nan",
    ),
    (policy("env.make.id=Broken-v0", "+env.make.reward=inf"), "error: the environment returned a reward of inf"),
    (["model=policy", "env=k_cartpoles", "env.make.poles=0"], "PolicyTask: poles must be at least 1, got 0"),
    (
        ["model=policy", "env.max_env_steps=0"],
        "error: ",
        "must be at least 1, got 0",
        " set env.max_env_steps or length",
    ),
    (["model=policy", "collection.num_envs=0"], "error: taugrad.rl.rollouts.Collection: num_envs must be at least 1"),
    (["model=ppo", "evaluation.every=0"], "error: taugrad.rl.evaluation.Evaluation: every must be at least 1, got 0"),
]


@pytest.mark.parametrize("case", CONFIGS, ids=lambda case: " ".join(case[0]))
def test_a_config_that_cannot_be_used_ends_before_training_in_a_sentence(case, command, tmp_path):
    arguments, *sentences = case
    small = SMALL[1:] if not any(a.startswith("model=") for a in arguments) else []
    keys = {a.partition("=")[0].lstrip("~+") for a in arguments}
    code, err, out = command("train", *(a for a in small if a.partition("=")[0].lstrip("+") not in keys), *arguments)
    assert code in (1, 2)
    for sentence in sentences:
        assert sentence in err
    assert err.count("error: ") <= 1
    assert "Traceback" not in err
    assert "training ━" not in out
    if "the environment returned" not in sentences[0]:  # which a step of the training finds
        assert "_target_: taugrad" not in out
        assert not [*tmp_path.rglob("events.out.*")]  # with which the directory would hold a run


def test_debug_shows_where_it_failed(command):
    code, err, _ = command("train", "seed=-1", "debug=true")
    assert code == 1
    assert "seed must be in [0, 4294967295], got -1" in err
    assert "Traceback" in err


# Data files


def damaged_sets():
    cut = idx(np.zeros((30, 28, 28)))[:-1]
    return [
        ("empty", 0, b"", "is not an IDX file of unsigned bytes: it starts with nothing"),
        ("truncated", 0, cut, "should hold 23520 bytes for shape (30, 28, 28), but holds 23519"),
        (
            "wrong magic",
            0,
            b"\x00\x00\x0d\x03" + cut[4:],
            "is not an IDX file of unsigned bytes: it starts with 00 00 0d",
        ),
        ("damaged archive", 0, gzip.compress(cut)[:-9], "cannot be read: "),
        ("other size", 0, idx(np.zeros((30, 32, 32))), "must hold images of 28 x 28, got shape (30, 32, 32)"),
        ("labels out of range", 1, idx(np.full(30, 10)), "must hold labels 0 to 9, got 10"),
        ("too few labels", 1, idx(np.zeros(29)), "must hold one label for each of 30 images, got shape (29,)"),
        ("no images", 0, idx(np.zeros((0, 28, 28))), "holds no data: its shape is (0, 28, 28)"),
    ]


@each("what, file, content, sentence", damaged_sets())
def test_a_data_file_that_cannot_be_used_is_named(what, file, content, sentence, tmp_path):
    write_set(tmp_path / "set")
    (tmp_path / "set" / NAMES[file]).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}/set/{NAMES[file]} {sentence}")):
        mnist(tmp_path / "set", validation=10)


def test_a_data_file_that_cannot_be_used_ends_a_run_before_training(command, tmp_path):
    _, file, content, sentence = damaged_sets()[0]
    write_set(tmp_path / "set")
    (tmp_path / "set" / NAMES[file]).write_bytes(content)
    code, err, out = command("train", *SMALL, "data=mnist", "data.source.root=set", "data.source.validation=10")
    assert code == 1
    assert f"error: set/{NAMES[file]} {sentence}" in err
    assert "Traceback" not in err
    assert "training ━" not in out


def test_a_file_without_permission_is_named():
    with tempfile.TemporaryDirectory() as name:  # which others may enter, unlike pytest's own
        path, user = Path(name) / NAMES[0], os.geteuid()
        path.write_bytes(idx(np.zeros((1, 28, 28))))
        path.chmod(0)
        Path(name).chmod(0o755)
        if user == 0:
            os.seteuid(65534)  # permissions do not bind root
        try:
            with pytest.raises(DataError, match=r"train-images-idx3-ubyte cannot be read: .*Permission denied"):
                read_idx(path)
        finally:
            os.seteuid(user)


# Runs


def damage(run, how):
    path = run / "checkpoints" / "best.ckpt"
    content = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "gone":
        path.unlink()
    else:
        checkpoint = checkpoints.load(path)
        if how == "stranger":
            checkpoint["config"]["task"]["estimator"]["_target_"] = "os._exit"
        elif how == "version":
            checkpoint["config"]["task"]["model"]["novel"] = 1
            checkpoint["versions"] = {"taugrad": "9.9"}
        elif how == "shape":
            checkpoint["config"]["task"]["model"]["latents"] = 5
        checkpoints.save(checkpoint, path)


RUNS = [
    ("evaluate", "", [], "error: run must be a run's directory that holds checkpoints/best.ckpt, got"),
    ("evaluate", "gone", ["checkpoint=best"], "error: run must be a run's directory that holds checkpoints/best.ckpt"),
    ("evaluate", "truncated", [], "best.ckpt is truncated or no checkpoint of taugrad: its checksum is missing; "),
    (
        "evaluate",
        "flipped",
        [],
        "best.ckpt is damaged: its content does not have the SHA-256 that it was written with; ",
    ),
    ("evaluate", "flipped", [], "last.ckpt is whole, of step 60"),
    ("evaluate", "stranger", ["checkpoint=best"], "error: os._exit is not trusted: trust=[os] allows it, if you know"),
    ("evaluate", "version", ["checkpoint=best"], ", written by taugrad 9.9, does not load: "),
    ("evaluate", "shape", ["checkpoint=best"], "does not load: Error(s) in loading state_dict for ImageTask: size mis"),
    ("evaluate", "whole", ["checkpoint=middle"], "that holds checkpoints/middle.ckpt, got"),
    (
        "export",
        "",
        ["run=", "out=model.pt2"],
        "error: run must be a run's directory that holds checkpoints/best.ckpt, got /",
    ),
    ("evaluate", "whole", ["num_samples=0"], "nll_samples must be at least 1, got 0"),
    ("evaluate", "whole", ["num_samples=many"], "error: num_samples must be int or null, got 'many'"),
    ("evaluate", "whole", ["episodes=3"], "error: test_episodes cannot be set for a run of ImageTask, which has none"),
    ("evaluate", "whole", ["video=film.gif"], "error: video is for policies, got a run of ImageTask"),
    ("evaluate", "whole", ["trust=os"], "error: trust must be list[str], got 'os'"),
    ("export", "whole", ["out=model.txt"], "error: out must end in .onnx, .pt2, .c, .blif or .v, got model.txt"),
    ("export", "flipped", ["out=model.pt2"], "best.ckpt is damaged"),
    ("export", "stranger", ["out=model.pt2", "checkpoint=best"], "error: os._exit is not trusted"),
    ("probe", "stranger", ["draws=20"], "error: os._exit is not trusted"),
    (
        "probe",
        "whole",
        ["estimators=[reinmx]"],
        "error: estimators must be names of conf/estimator, got reinmx; did you",
    ),
    ("probe", "whole", ["taus=[0]"], "error: taus must be a positive finite number, got 0.0"),
    ("probe", "whole", ["draws=3"], "error: draws must be at least 20, got 3"),
    ("compare", "whole", ["--metric", "train/nope", "--out", "curves.png"], ", got train/nope"),
]


@pytest.mark.parametrize("case", RUNS, ids=lambda case: " ".join([*case[:2], *case[2]]))
def test_a_run_that_cannot_be_used_gets_a_sentence(case, command, trained, tmp_path):
    name, how, arguments, sentence = case
    run = tmp_path / "run"
    if how:
        shutil.copytree(trained[0], run)
        if how != "whole":
            damage(run, how)
    code, err, _ = command(name, run if name == "compare" else f"run={run}", *arguments)
    assert code == 1
    assert sentence in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["model=structured"], "error: model."),
        (["model.latents=5"], "error: model.latents cannot change on resume: the checkpoint has 4, got 5"),
        (["optimizer=radam"], "error: optimizer._target_ cannot change on resume"),
    ],
)
def test_a_checkpoint_of_another_model_is_not_resumed(arguments, sentence, command, trained):
    given = {a.partition("=")[0] for a in arguments}
    small = [a for a in SMALL if a.partition("=")[0] not in given and (a[:5] != "model" or "model" not in given)]
    code, err, _ = command("train", *small, *arguments, f"ckpt_path={trained[0] / 'checkpoints' / 'last.ckpt'}")
    assert code == 1
    assert sentence in err
    assert "Traceback" not in err


# Sweeps and the command itself


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-m", "sweep=optuna"], "error: sweep=optuna needs something to sweep, such as optimizer.lr="),
        (
            ["-m", "sweep=optuna", "optimizer.lr=interval(1e-4,1e-3)", "direction=down"],
            "error: direction must be minimize or maximize for each of val/loss, got down",
        ),
        (["-m", "optimizer.lr=interval(1e-4,1e-3)"], "error: optimizer.lr must be a list of values in a grid, got"),
        (["-m", "seed=0,1", "hydra.sweeper.jobs=0"], "error: hydra.sweeper.jobs must be at least 1, got 0"),
        (
            ["-m", "sweep=optuna", "optimizer.lr=interval(1e-4,1e-3)", "hydra.sweeper.jobs=0"],
            "error: hydra.sweeper.jobs must be at least 1, got 0",
        ),
        (["-m", "hydra/launcher=joblb", "seed=0,1"], "Could not find 'hydra/launcher/joblb'"),
    ],
)
def test_a_sweep_that_cannot_be_run_gets_a_sentence(arguments, sentence, command):
    code, err, _ = command("train", *arguments, "hydra.sweep.dir=sweep")
    assert code == 1
    assert sentence in err
    assert "Traceback" not in err


def test_two_sweeps_in_one_directory_get_a_sentence(command, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "multirun.yaml").write_text("")
    code, err, _ = command("train", "-m", *SMALL, "seed=0,1", "hydra.sweep.dir=sweep")
    assert code == 1
    assert "error: hydra.sweep.dir=sweep holds a sweep already: choose another directory, or go on with" in err
    assert not (tmp_path / "sweep" / "0").exists()


def test_two_sweeps_at_once_in_one_directory_get_a_sentence(command, tmp_path):
    (tmp_path / "sweep").mkdir()
    with FileLock(tmp_path / "sweep" / ".lock"):  # of another process, in which nothing is shared
        code, err, _ = command("train", "-m", *SMALL, "seed=0,1", "hydra.sweep.dir=sweep")
    assert code == 1
    assert "error: hydra.sweep.dir=sweep: another run or sweep is going on there" in err


def test_an_unknown_command_and_missing_arguments_get_a_sentence(command):
    code, err, _ = command("trian")
    assert (code, err) == (
        1,
        "error: the command must be one of train, evaluate, probe, export, bench, compare, got trian\n",
    )
    code, err, _ = command("compare")
    assert code == 2
    assert "the following arguments are required: runs" in err


# Functions: one for all, as they share their checks


NAN, INF = math.nan, math.inf
LOGITS = [
    (torch.zeros(2, 3, dtype=torch.int64), {}, TypeError, "logits must be a floating-point tensor, got torch.int64"),
    ([0.0, 1.0], {}, TypeError, "logits must be a floating-point tensor, got list"),
    (torch.tensor(0.0), {}, ValueError, "logits must have a dimension of classes, got a 0-d tensor"),
    (torch.zeros(2, 0), {}, ValueError, r"logits must have at least one class along dim -1, got shape \(2, 0\)"),
    (torch.zeros(2, 3), {"dim": 2}, IndexError, r"dim must be in \[-2, 1\] for logits of shape \(2, 3\), got 2"),
    (
        torch.tensor([[0.0, NAN]]),
        {},
        ValueError,
        "logits must have a finite entry in every row and no NaN or .inf, got 1",
    ),
    (
        torch.tensor([[0.0, INF]]),
        {},
        ValueError,
        "logits must have a finite entry in every row and no NaN or .inf, got 1",
    ),
    (torch.full((2, 3), -INF), {}, ValueError, "logits must have a finite entry .*, got 2 of 2 rows without"),
    (torch.zeros(2, 3), {"tau": 0.0}, ValueError, "tau must be a positive finite number, got 0.0"),
    (torch.zeros(2, 3), {"tau": -1}, ValueError, "tau must be a positive finite number, got -1"),
    (torch.zeros(2, 3), {"tau": NAN}, ValueError, "tau must be a positive finite number, got nan"),
    (torch.zeros(2, 3), {"tau": INF}, ValueError, "tau must be a positive finite number, got inf"),
    (torch.zeros(2, 3), {"tau": "1"}, TypeError, "tau must be a number or a floating-point tensor, got str"),
    (torch.zeros(2, 3), {"tau": torch.ones(2)}, ValueError, "tau must have one value, or one for each row"),
]


@each("logits, arguments, error, sentence", LOGITS)
@each("hard", [False, True])
def test_logits_and_tau_that_cannot_be_used_get_a_sentence(logits, arguments, error, sentence, hard, backend):
    with pytest.raises(error, match=sentence):
        gumbel_softmax(logits, **{"tau": 1.0, "hard": hard} | arguments)


@pytest.mark.parametrize("hard", [False, True])
def test_one_class_and_no_rows_are_no_errors(hard, backend):
    assert torch.equal(gumbel_softmax(torch.randn(4, 1), tau=1.0, hard=hard), torch.ones(4, 1))
    empty = torch.zeros(0, 3, requires_grad=True)
    sample = gumbel_softmax(empty, tau=1.0, hard=hard)
    assert sample.shape == (0, 3)
    sample.sum().backward()
    assert empty.grad.shape == (0, 3)
    assert softmax(empty).shape == (0, 3)
