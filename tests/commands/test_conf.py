"""Every option of every group composes, fits the signatures that it names, and builds."""

import functools
import re
from dataclasses import MISSING, fields
from importlib.util import find_spec

import pytest
import torch
from helpers.configs import CONF, composed
from hydra.utils import get_class
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf

from taugrad.config import instantiate
from taugrad.errors import ConfigError
from taugrad.estimators import Estimator
from taugrad.rl.algorithm import Algorithm
from taugrad.rl.evaluation import Evaluation
from taugrad.rl.multilinear import MultilinearActorCritic
from taugrad.rl.ppo import PPO
from taugrad.rl.rollouts import Collection
from taugrad.schedules import Constant, Rectified
from taugrad.training.images import ImageTask
from taugrad.training.policies import PolicyTask

composed = functools.cache(composed)  # each option is composed by the test of its group, too; none changes it
OPTIONS = sorted(f"{path.parent.name}={path.stem}" for path in CONF.glob("*/*.yaml") if path.parent.name != "sweep")


NEEDED = {
    "env=gymnasium": ["env.make.id=CartPole-v1"],
    "env=pettingzoo": ["env.make.id=mpe2.simple_spread_v3"],
    "task=policy": ["env=cartpole", "model=ppo"],
    "data=image_folder": ["data.source.root=pictures"],
    "model=token_prior": ["model.tokenizer.run=a_run"],
}


def options(group):
    return [option for option in OPTIONS if option.startswith(f"{group}=")]


CLASSES = {
    option: get_class(OmegaConf.load(CONF / f"{option.replace('=', '/')}.yaml").model._target_)
    for option in options("model")
}
ALGORITHMS = {option: cls for option, cls in CLASSES.items() if issubclass(cls, Algorithm)}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_every_group_composes_and_fits_its_signatures(option):
    group, name = option.split("=")
    config = composed(option, *NEEDED.get(option, []))
    if group != "experiment":
        assert config[group]
    assert (CONF / group / f"{name}.yaml").is_file()


@pytest.mark.parametrize("option", [*options("tau"), *options("lr_factor")])
def test_every_schedule_builds_and_gives_a_positive_value(option):
    schedule = instantiate(composed(option)[option.split("=")[0]])
    assert all(0 < schedule(step) <= 1 for step in (0, 1, 10_000, 20_000))


@pytest.mark.parametrize("option", options("estimator"))
def test_every_estimator_builds(option):
    assert isinstance(instantiate(composed(option)["estimator"]), Estimator)


BUILT = [option for option in options("model") if option != "model=token_prior"]  # it builds from a finished run


@pytest.mark.parametrize("option", [*BUILT, *options("experiment"), *options("optimizer")])
def test_every_model_and_experiment_builds_with_its_optimizer(option):
    if option in ("model=maddpg", "model=mappo"):
        pytest.importorskip("mpe2")
    task = instantiate(composed(option)["task"])
    assert isinstance(task, (ImageTask, PolicyTask))
    assert task.configure_optimizers().defaults["lr"] > 0


def test_every_model_trains_by_default_through_hard_samples_with_an_annealed_tau():
    for option in options("model"):
        config = composed(option, *NEEDED.get(option, []))
        node = config["task"] if "estimator" in config["task"] else config["model"]
        if "estimator" not in node:
            assert "estimator" not in {field.name for field in fields(ALGORITHMS[option])}  # the score function
            continue
        if option == "model=logic_gates":  # measured: Gumbel noise in the gradient and any annealing lose there
            assert node["estimator"]["_target_"] == "taugrad.estimators.StraightThrough"
            assert instantiate(node["tau"])(0) == 1
            continue
        assert node["estimator"]["_target_"] == "taugrad.estimators.STGumbelSoftmax", option
        schedule = instantiate(node["tau"])
        taus = [schedule(step) for step in range(0, config["length"] + 1, config["length"] // 10)]
        assert taus == sorted(taus, reverse=True), option
        assert taus[-1] < taus[0], option
    soft = composed("experiment=soft_cat_vae")
    assert soft["task"]["estimator"]["_target_"] == "taugrad.estimators.GumbelSoftmax"
    assert soft["model"]["_target_"] == composed("model=cat_vae")["model"]["_target_"]


@pytest.mark.parametrize("option", [*options("trainer"), *options("callbacks"), *options("logger")])
def test_trainer_callbacks_and_loggers_build(option, tmp_path):
    config = composed(option, f"run_dir={tmp_path}")
    if option in ("logger=wandb", "logger=mlflow") and not find_spec(option.split("=")[1]):
        with pytest.raises(ConfigError, match=r"Logger needs a package that is missing: .*pip install"):
            instantiate(config["logger"][option.split("=")[1]])
        return
    nodes = [node for group in ("callbacks", "logger") for node in config[group].values() if node is not None]
    off = [name for name, node in config["callbacks"].items() if node is None]
    assert off == (["pictures"] if option in ("callbacks=policy", "callbacks=film") else [])
    assert all(map(instantiate, nodes))
    if option == "trainer=gpu" and not torch.cuda.is_available():
        with pytest.raises(MisconfigurationException, match="No supported gpu backend found"):
            instantiate(config["trainer"])(logger=False)
        return
    assert instantiate(config["trainer"])(logger=False).max_steps == config["trainer"]["max_steps"]


def test_a_data_set_chosen_on_the_command_line_wins_over_the_models():
    assert composed("model=cat_vae", "data=mnist")["data"]["source"]["_target_"] == "taugrad.data.mnist.mnist"


@pytest.mark.parametrize("option", [option for option in options("env") if option not in NEEDED])
def test_every_environment_builds_under_both_policies(option):
    if option in ("env=simple_spread", "env=speaker_listener"):
        pytest.importorskip("mpe2")
    for model in ("policy", "ppo"):
        config = composed(f"model={model}", option)
        policy = instantiate(config["task"])
        assert policy.clock() == (0, config["env"]["max_env_steps"])
        policy.collector.environments.close()


def test_the_policys_environment_and_schedules_can_be_chosen():
    config = composed("model=policy", "env=gymnasium", "env.make.id=MountainCar-v0", "tau=linear")
    assert config["task"]["env"]["id"] == "MountainCar-v0"
    assert config["tau"]["steps"] == config["lr_factor"]["steps"] == 500_000
    assert "data" not in config


WORDS = [
    (["model=policy", "env=acrobot"], "env.make.id", "Acrobot-v1"),
    (["model=ppo", "env=acrobot"], "env.make.id", "Acrobot-v1"),
    (["model=policy", "tau=constant"], "tau._target_", "taugrad.schedules.Constant"),
    (["model=policy", "estimator=reinmax"], "estimator._target_", "taugrad.estimators.ReinMax"),
    (["model=policy", "callbacks=film"], "callbacks.film.every", 2),
    (["model=ppo", "lr_factor=constant"], "lr_factor._target_", "taugrad.schedules.Constant"),
    (["model=ppo", "evaluation.every=7"], "evaluation.every", 7),
    (["model=structured", "data=mnist"], "data.source._target_", "taugrad.data.mnist.mnist"),
    (["experiment=k_cartpoles", "env=cartpole"], "env.make.id", "CartPole-v1"),
]


@pytest.mark.parametrize(("words", "key", "value"), WORDS, ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_a_choice_on_the_command_line_wins_over_the_models_in_either_order(words, key, value):
    config = composed(*words)
    assert config == composed(*reversed(words))
    for name in key.split("."):
        config = config[name]
    assert config == value


@pytest.mark.parametrize(("model", "algorithm"), [("policy", MultilinearActorCritic), ("ppo", PPO)])
def test_a_policy_is_chosen_by_its_model_alone(model, algorithm):
    config = composed(f"model={model}")
    task = instantiate(config["task"])
    assert isinstance(task, PolicyTask)
    assert isinstance(task.agent.hp, algorithm)
    assert "data" not in config
    assert config["env"]["make"]["id"] == "CartPole-v1"
    assert (config["objective"], config["direction"]) == ("eval/mean_reward", "maximize")
    assert config["callbacks"]["best"]["monitor"] == "eval/mean_reward"
    assert config["length"] == config["collection"]["max_env_steps"] == 100_000


def test_a_circuit_is_chosen_by_its_accuracy_and_wired_by_the_seed():
    config = composed("model=logic_gates", "seed=3")
    assert (config["objective"], config["direction"]) == ("val/accuracy", "maximize")
    assert [config["callbacks"]["best"][name] for name in ("monitor", "mode")] == ["val/accuracy", "max"]
    assert config["model"]["seed"] == 3
    assert composed("experiment=logic_gates")["model"]["depth"] == 6


def defaults(dataclass):
    """Values of a dataclass's fields that have a default, as a config writes them."""
    made = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(dataclass)}
    return {name: list(x) if isinstance(x, tuple) else x for name, x in made.items() if x is not MISSING}


DATACLASSES = [
    *((option, "model", algorithm) for option, algorithm in ALGORITHMS.items()),
    ("model=ppo", "collection", Collection),
    ("model=ppo", "evaluation", Evaluation),
]
OTHERS = {"tau": "taugrad.schedules.Linear"}  # annealed, as every model's


@pytest.mark.parametrize(("option", "node", "dataclass"), DATACLASSES, ids=[row[2].__name__ for row in DATACLASSES])
def test_the_files_hold_the_defaults_of_the_dataclasses(option, node, dataclass):
    config = composed(option)[node]
    assert set(config) == {"_target_", *(field.name for field in fields(dataclass))}
    for name, value in defaults(dataclass).items():
        here = config[name]
        if name in OTHERS:
            assert here["_target_"] == OTHERS[name]
        else:
            assert (instantiate(here) if isinstance(here, dict) else here) == value, name


def test_the_schedules_follow_the_length_of_the_training():
    config = composed("trainer.max_steps=123")
    assert config["task"]["tau"]["steps"] == config["task"]["lr_factor"]["steps"] == 123


def test_jangs_preset_has_the_papers_architecture():
    model = instantiate(composed("experiment=jang_cat_vae")["model"])
    shapes = [tuple(p.shape) for name, p in model.named_parameters() if name.endswith("weight")]
    assert shapes == [(200, 784), (200, 200), (784, 200)]


def test_the_files_name_no_device():
    for path in CONF.rglob("*.yaml"):
        assert not re.search(r"\b(cuda|cpu|mps)\b", path.read_text()), path


@pytest.mark.parametrize(
    ("column", "estimator", "lr", "tau", "lr_factor", "size"),
    [
        ("8x4", "st_gumbel_softmax", 3e-4, 0.5, Constant(1.0), (4, 8)),
        ("8x4", "reinmax", 5e-4, 1.3, Constant(1.0), (4, 8)),
        ("4x24", "gumbel_rao", 5e-4, 0.3, Rectified(), (24, 4)),
        ("8x16", "gapped_straight_through", 7e-4, 0.5, Rectified(), (16, 8)),
        ("10x30", "straight_through", 7e-3, 1.4, Rectified(), (30, 10)),
    ],
)
def test_a_cell_of_the_grid_has_its_published_settings(column, estimator, lr, tau, lr_factor, size):
    config = composed(f"experiment=grid_{column}", f"estimator={estimator}")
    task = instantiate(config["task"])
    assert (task.model.latents, task.model.categories) == size
    assert task.tau(0) == task.tau(50_000) == tau
    assert task.lr_factor == lr_factor
    assert type(task.configure_optimizers()) is torch.optim.Adam
    assert task.configure_optimizers().defaults["lr"] == lr
    assert config["data"]["binarize"] == "none"
    assert config["data"]["source"]["validation"] == 0


def test_a_preset_without_settings_for_an_estimator_says_so():
    with pytest.raises(ConfigError, match=r"settings.*REBAR|REBAR.*settings"):
        composed("experiment=grid_8x4", "estimator=rebar")
