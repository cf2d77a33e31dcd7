"""Exported models, by the command; held against the run's own weights by hand."""

import numpy as np
import onnxruntime
import pytest
import torch
from helpers.commands import SHORT, SMALL, run, run_process

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


@pytest.mark.parametrize("name", MODELS)
def test_an_exported_model_chooses_as_the_run_does(name, tmp_path):
    trained = run("train.py", *MODELS[name], f"hydra.run.dir={tmp_path}", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    for file in ("a.onnx", "a.pt2"):
        start = run_process if (name, file) == ("cat_vae", "a.onnx") else run  # once as a user does
        result = start("export.py", f"run={tmp_path}", f"out={tmp_path / file}", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert "the same as the model on 100 inputs" in result.stdout
    model = load_run(tmp_path)[0].eval()
    x = 5 * torch.randn(60, *model.input_size)  # loud, so that choices differ after this short a training
    with torch.no_grad():
        expected = model.greedy(x).numpy()
    (onnx,) = onnxruntime.InferenceSession(tmp_path / "a.onnx").run(None, {"x": x.numpy()})
    program = torch.export.load(tmp_path / "a.pt2").module()(x).numpy()
    assert len(np.unique(expected, axis=0)) > 1  # not one choice for all
    np.testing.assert_allclose(onnx, expected, atol=1e-5)
    np.testing.assert_allclose(program, expected, atol=1e-5)


def test_another_ending_and_no_run_get_a_sentence(tmp_path):
    result = run("export.py", f"run={tmp_path}", "out=a.pkl", cwd=tmp_path)
    assert "error: out must end in .onnx or .pt2, got a.pkl" in result.stderr
    result = run("export.py", f"run={tmp_path}", "out=a.pt2", cwd=tmp_path)
    assert "error: run must be a run's directory that holds checkpoints/best.ckpt" in result.stderr
