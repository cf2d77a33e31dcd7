"""Exported models, by the command; held against the run's own weights by hand."""

from functools import partial

import gymnasium
import numpy as np
import onnxruntime
import pytest
import torch
from gymnasium.spaces import Box, MultiDiscrete
from gymnasium.vector import SyncVectorEnv
from helpers.circuits import Gates, pictures
from helpers.commands import SHORT, SMALL, run
from helpers.images import cat_vae
from helpers.images import task as task_of
from omegaconf import OmegaConf

from taugrad import Constant
from taugrad.circuits import blif, c_source, simplify, verilog
from taugrad.commands import export as export_module
from taugrad.commands.export import write_circuit
from taugrad.errors import ConfigError, TaugradError
from taugrad.rl.evaluation import Evaluation
from taugrad.rl.ppo import PPO
from taugrad.rl.rollouts import Collection
from taugrad.training.policies import PolicyTask
from taugrad.training.runs import load_run

POLICY = ["model=policy", "env=k_cartpoles", "model.hidden=[16]", "env.max_env_steps=600", "evaluation.test_episodes=2"]
POLICY += ["evaluation.episodes=2", "evaluation.every=300"]
MODELS = {
    "cat_vae": [*SMALL, "trainer.max_steps=10"],
    "structured": ["model=structured", "model.nll_samples=2", *SHORT, "trainer.max_steps=10"],
    "semi_supervised": [
        "model=semi_supervised",
        "model.channels=[2,4]",
        "model.hidden=16",
        *SHORT,
        "trainer.max_steps=10",
    ],
    "policy": POLICY,
}


@pytest.mark.usefixtures("onnx_functions")
@pytest.mark.parametrize("name", MODELS)
def test_an_exported_model_chooses_as_the_run_does(name, tmp_path):
    trained = run("train.py", *MODELS[name], f"hydra.run.dir={tmp_path}", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    for file in ("a.onnx", "a.pt2"):
        result = run("export.py", f"run={tmp_path}", f"out={tmp_path / file}", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert "the same as the model on 100 inputs" in result.stdout
    model = load_run(tmp_path)[0].eval()
    x = 5 * torch.randn(60, *model.input_size)  # loud, so that choices differ after this short a training
    with torch.no_grad():
        expected = model.greedy(x).numpy()
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    assert [part.shape[0] for part in (*session.get_inputs(), *session.get_outputs())] == ["batch", "batch"]
    (onnx,) = session.run(None, {"x": x.numpy()})
    program = torch.export.load(tmp_path / "a.pt2").module()(x).numpy()
    assert len(np.unique(expected, axis=0)) > 1  # not one choice for all
    np.testing.assert_allclose(onnx, expected, atol=1e-5)
    np.testing.assert_allclose(program, expected, atol=1e-5)


def test_another_ending_and_no_run_get_a_sentence(tmp_path):
    result = run("export.py", f"run={tmp_path}", "out=a.pkl", cwd=tmp_path)
    assert "error: out must end in .onnx, .pt2, .c, .blif or .v, got a.pkl" in result.stderr
    result = run("export.py", f"run={tmp_path}", "out=a.pt2", cwd=tmp_path)
    assert "error: run must be a run's directory that holds checkpoints/best.ckpt" in result.stderr


@pytest.mark.parametrize("thresholds", [None, 3])
def test_a_circuit_is_written_and_compared_with_the_model_on_all_test_images(thresholds, tmp_path):
    task, data = task_of(model := Gates(thresholds)), pictures(255 if thresholds else 1)
    for name, what in {"a.c": "program", "a.blif": "netlist", "a.v": "netlist"}.items():
        told = write_circuit(task, data, tmp_path / name)
        assert f"gates of 110 in 2 levels, {(tmp_path / name).stat().st_size:,} bytes" in told
        assert told.endswith(f"; the {what} is the same as the model on 130 test images")
    netlist = simplify(model.circuit())
    assert (tmp_path / "a.c").read_text() == c_source(netlist, thresholds, "a.c")
    assert (tmp_path / "a.blif").read_text() == blif(netlist)
    assert (tmp_path / "a.v").read_text() == verilog(netlist)


def test_a_circuit_that_is_not_the_model_is_an_error_and_one_without_a_compiler_is_not(tmp_path, monkeypatch):
    task = task_of(model := Gates())
    monkeypatch.setattr(model, "greedy", lambda x: torch.full((len(x),), 7))
    for name in ("a.c", "a.v"):
        with pytest.raises(TaugradError, match=rf"a\{name[1:]} differs from the model on 130 of 130 test images"):
            write_circuit(task, pictures(1), tmp_path / name)
    monkeypatch.setenv("CXX", "no-such-compiler")
    told = write_circuit(task_of(Gates()), pictures(1), tmp_path / "a.c")
    assert "the netlist (there is no C++ compiler: no-such-compiler is not on the PATH) is the same" in told


def test_another_model_a_decoder_or_finer_thresholds_than_a_byte_are_no_program(tmp_path):
    with pytest.raises(ConfigError, match="run must be of model=logic_gates for a circuit, got one of CatVAE"):
        write_circuit(cat_vae(), pictures(1), tmp_path / "a.c")
    with pytest.raises(ConfigError, match=r"thresholds must be at most 254 .*, got 255"):  # a program takes bytes
        write_circuit(task_of(Gates(255)), pictures(), tmp_path / "a.c")
    result = run("export.py", f"run={tmp_path}", "out=a.c", "part=decoder", cwd=tmp_path)
    assert "error: part must be encoder for a.c, a circuit, got decoder" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("onnx_functions")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of torch's writer of ONNX
def test_a_policy_whose_environment_gives_masks_is_exported_with_a_second_input(tmp_path, monkeypatch, capsys):
    task = masked_policy()
    monkeypatch.setattr(export_module, "load_run", lambda *_: (task, None, None))
    for file in ("a.onnx", "a.pt2"):
        export_module.export(OmegaConf.create({"run": str(tmp_path), "out": str(tmp_path / file)}))
        told = " ".join(capsys.readouterr().out.split())
        taken = "(batch, 2) and mask (batch, 2, 3), bool, to (batch, 2), int64"
        assert f"{file}: {taken}; the same as the model on 100 inputs" in told
    x, mask = torch.randn(50, 2), torch.rand(50, 2, 3) < 0.4
    mask[..., 1] |= ~mask[..., :2].any(-1)
    mask[:, 0, 2] = False  # the first factor has two choices
    expected = task.greedy(x, mask)
    assert mask.gather(-1, expected[..., None]).all()
    assert not torch.equal(expected, task.greedy(x))
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    assert [part.shape[0] for part in (*session.get_inputs(), *session.get_outputs())] == ["batch"] * 3
    assert np.array_equal(session.run(None, {"x": x.numpy(), "mask": mask.numpy()})[0], expected)
    assert torch.equal(torch.export.load(tmp_path / "a.pt2").module()(x, mask), expected)


def masked_policy():
    class Free(gymnasium.Env):
        observation_space, action_space = Box(0, 1, (2,)), MultiDiscrete([2, 3])

        def reset(self, *, seed=None, options=None):
            return np.zeros(2, np.float32), {"action_mask": np.ones(5)}

    env = lambda num_envs: SyncVectorEnv([Free] * num_envs)  # noqa: E731
    adam = partial(torch.optim.Adam, lr=1e-3)
    task = PolicyTask(env, PPO([8]), Collection(100, num_envs=2), Evaluation(), adam, Constant(1.0))
    task.agent.policy.actor.net[-1].weight.data *= 1e3  # so that choices differ
    return task
