"""A tokenizer and its prior by the commands: trained, evaluated, exported both ways."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from helpers.commands import SHORT, run
from PIL import Image

from taugrad.training.runs import load_run

SMALL = [
    "model=tokenizer",
    "model.channels=[4,8]",
    "model.codes=16",
    "model.dim=3",
    "model.blocks=1",
    "trainer.max_steps=10",
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for split, n in (("train", 30), ("val", 10), ("test", 10)):
        for i in range(n):
            (root / split / "a").mkdir(parents=True, exist_ok=True)
            levels = random.integers(256, size=(8, 12, 3), dtype=np.uint8)
            Image.fromarray(levels).save(root / split / "a" / f"{i}.png")
    data = ["data=image_folder", f"data.source.root={root}", "data.batch_size=10", "data.eval_batch_size=10"]
    return [*data, *SHORT, "trainer.max_steps=10"]


@pytest.fixture(scope="module")
def tokenizer(pictures, tmp_path_factory):
    """A run."""
    directory = tmp_path_factory.mktemp("tokenizer")
    size = "model.image_size=[3,8,12]"
    result = run(
        "train.py", *pictures, *SMALL, size, "likelihood=logistic_mixture", f"hydra.run.dir={directory}", cwd=directory
    )
    assert result.returncode == 0, result.stderr
    return directory


def test_a_run_reports_errors_and_codes_and_plots_its_reconstructions(tokenizer):
    metrics = json.loads((tokenizer / "metrics.json").read_text())
    assert {"test/mse", "test/psnr", "test/code_perplexity", "test/codes_in_use", "val/codes_in_use"} <= set(metrics)
    assert 0 < metrics["test/codes_in_use"] <= 1
    result = run("evaluate.py", f"run={tokenizer}", "images=true", cwd=tokenizer)
    assert result.returncode == 0, result.stderr
    with Image.open(tokenizer / "pictures" / "reconstruction.png") as picture:
        assert (picture.mode, picture.size) == ("RGB", (10 * 12, 2 * 8))


@pytest.mark.usefixtures("onnx_functions")
def test_both_parts_are_exported(tokenizer, tmp_path):
    for part in ("encoder", "decoder"):
        result = run("export.py", f"run={tokenizer}", f"out={part}.onnx", f"part={part}", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    model = load_run(tokenizer)[0].eval().model
    x = torch.rand(7, 3, 8, 12)
    (tokens,) = onnxruntime.InferenceSession(tmp_path / "encoder.onnx").run(None, {"x": x.numpy()})
    assert np.array_equal(tokens, model.greedy(x).numpy())
    (back,) = onnxruntime.InferenceSession(tmp_path / "decoder.onnx").run(None, {"x": tokens})
    np.testing.assert_allclose(back, model.picture(torch.from_numpy(tokens)).detach().numpy(), atol=1e-5)
    result = run("export.py", f"run={tokenizer}", "out=a.onnx", "part=middle", cwd=tmp_path)
    assert "error: part must be encoder or decoder, got middle" in result.stderr


def test_a_prior_is_trained_on_the_tokens_and_gives_bits(tokenizer, pictures, tmp_path):
    prior = ["model=token_prior", "model.width=8", "model.depth=1", "model.heads=2"]
    given = f"model.tokenizer.run={tokenizer}"
    result = run("train.py", *pictures, *prior, given, f"hydra.run.dir={tmp_path}/prior", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "prior" / "metrics.json").read_text())
    assert 0 < metrics["test/bits_per_token"] < 5  # 4 by uniform tokens
    assert metrics["test/bits_per_dim"] > 0
    result = run("evaluate.py", f"run={tmp_path}/prior", "images=true", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "prior" / "pictures" / "prior_samples.png") as picture:
        assert picture.size == (10 * 12, 5 * 8)
    result = run("train.py", *pictures, *prior, cwd=tmp_path)
    assert "error: model.tokenizer.run must be given, as model.tokenizer.run=..., got none" in result.stderr
    result = run("train.py", *pictures, *prior, f"model.tokenizer.run={tmp_path}/prior", cwd=tmp_path)
    assert "tokenizer.run must be a run of model=tokenizer, got one of TokenPrior" in result.stderr
    result = run("train.py", *pictures, *prior, "model.tokenizer.run=nope", cwd=tmp_path)
    assert "error: tokenizer.run must be a run's directory that holds checkpoints/best.ckpt, got nope" in result.stderr
    larger = ["data.source.size=[16,24]", "hydra.run.dir=larger"]
    result = run("train.py", *pictures, *prior, given, *larger, cwd=tmp_path)
    assert (
        "error: the data's images must be [3, 8, 12], the size that TokenPrior takes, got [3, 16, 24]" in result.stderr
    )
    result = run("export.py", f"run={tmp_path}/prior", "out=a.onnx", "part=decoder", cwd=tmp_path)
    assert "error: part must be encoder for a run of TokenPrior, which has no decoder" in result.stderr


def test_what_does_not_fit_gets_a_sentence(pictures, tmp_path):
    result = run("train.py", *pictures, *SMALL, cwd=tmp_path)
    assert "error: model.image_size must be [3, 8, 12], the size of the data's images, got [3, 32, 32]" in result.stderr
    result = run("train.py", *pictures, *SMALL, "model.image_size=[3,8,10]", cwd=tmp_path)
    assert "the width in image_size must be divisible by the stride 4, got 10" in result.stderr
    result = run("train.py", *pictures, *SMALL, "model.image_size=[3,8,12]", "model.codes=1", cwd=tmp_path)
    assert "codes must be at least 2, got 1" in result.stderr
