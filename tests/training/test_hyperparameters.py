"""First view of TensorBoard's HParams tab, read back as TensorBoard's own server reads it."""

import pytest
from helpers.configs import CONF
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict
from tensorboard.plugins.hparams import backend_context, metadata

from taugrad.commands.train import TrainConfig
from taugrad.config import read
from taugrad.training import hyperparameters


@pytest.fixture
def chosen(tmp_path, monkeypatch):
    """A function to the hyperparameters of a run; of a sweep with its own command line, and without Hydra."""
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)

    def choose(*overrides, sweep=(), hydra=True):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("train", [f"run_dir={tmp_path}", *overrides], return_hydra_config=True)
        with open_dict(config):
            config.hydra.mode = RunMode.MULTIRUN if sweep else RunMode.RUN
            config.hydra.sweep.dir = str(tmp_path)
            config.hydra.job.num = 0
        if sweep:
            OmegaConf.save({"hydra": {"overrides": {"task": list(sweep)}}}, tmp_path / "multirun.yaml")
        if hydra:
            HydraConfig.instance().set_config(config)
        config = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
        return hyperparameters.chosen(vars(read(TrainConfig, config)))

    return choose


ALWAYS = {"seed": 0, "estimator": "st_gumbel_softmax", "model": "cat_vae"}


def test_what_was_swept_stands_first_then_seed_estimator_and_model(chosen):
    fixed = ["model.latents=4", "trainer.max_steps=60", "~callbacks.pruning", "sweep=optuna"]
    sweep = [*fixed, "optimizer.lr=tag(log,interval(1e-4,1e-2))"]
    found = chosen("model.latents=4", "trainer.max_steps=60", "sweep=optuna", "optimizer.lr=0.00125", sweep=sweep)
    assert list(found.items()) == [("optimizer.lr", 0.00125), *ALWAYS.items()]
    found = chosen("estimator=reinmax", "seed=3", sweep=["estimator=glob(*)", "seed=range(0,5)"])
    assert found == {"estimator": "reinmax", "seed": 3, "model": "cat_vae"}  # no path of a class


def test_what_was_set_on_the_command_line_stands_first_where_nothing_is_swept(chosen):
    found = chosen("optimizer.lr='1e-3'", "+trainer.limit_val_batches=4", "tau=exponential", "debug=true")
    assert list(found.items()) == [
        ("optimizer.lr", 0.001),  # text on the command line
        ("trainer.limit_val_batches", 4),
        ("tau", "exponential"),
        *ALWAYS.items(),
    ]


def test_lists_nulls_nodes_classes_and_deleted_keys_are_plain_values(chosen):
    own = ["estimator._target_=taugrad.estimators.ReinMax", "model.encoder=[32,16]", "threads=null"]
    own += ["~callbacks.summary", "+callbacks.film={_target_:taugrad.training.tensorboard.Film,every:3}"]
    found = chosen(*own)
    assert found == ALWAYS | {
        "estimator": "ReinMax",
        "model.encoder": "[32, 16]",
        "threads": "null",
        "callbacks.film": "Film",
        "callbacks.film.every": 3,
    }


def test_a_swept_key_has_one_type_in_all_jobs(chosen):
    key = "+trainer.gradient_clip_val"
    for value, sweep, expected in (("0.5", "0.3,0.5", 0.5), ("0.5", "null,0.5", "0.5"), ("null", "null,0.5", "null")):
        found = chosen(f"{key}={value}", sweep=[f"{key}={sweep}"])
        assert found["trainer.gradient_clip_val"] == expected


def test_without_hydra_the_classes_of_estimator_and_model_are_shown(chosen):
    assert chosen("model=structured", hydra=False) == {
        "seed": 0,
        "estimator": "STGumbelSoftmax",
        "model": "Structured",
    }


def test_tensorboard_shows_the_first_five_as_numbers_texts_and_truth_values_and_the_metrics_in_order():
    values = {"z": 0.5, "y": True, "x": "reinmax", "w": 1, "v": 2, "a": 3, "b": "text"}
    metrics = ["hp/val/loss", "hp/test/nll", "hp/test/elbo"]
    records = hyperparameters.summaries(values, metrics)
    content = {r.value[0].tag: r.value[0].metadata.plugin_data.content for r in records}
    context = backend_context.Context(None)
    experiment = context.experiment_from_metadata(None, "", True, {"run": content}, None)
    infos = experiment.hparam_infos  # the first five of which the page ticks
    assert [info.name for info in infos] == ["v", "w", "x", "y", "z", "a", "b"]
    assert [info.type for info in infos] == [3, 3, 1, 2, 3, 3, 1]  # float64, string, bool
    assert [info.name.tag for info in experiment.metric_infos] == metrics
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    assert {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()} == values
