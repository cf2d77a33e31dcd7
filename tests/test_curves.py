import pytest
from torch.utils.tensorboard import SummaryWriter

from taugrad.curves import compare
from taugrad.errors import ConfigError


def leave_run(directory, overrides, values):
    (directory / ".hydra").mkdir(parents=True)
    (directory / ".hydra" / "overrides.yaml").write_text("".join(f"- {x}\n" for x in overrides))
    with SummaryWriter(str(directory / "tensorboard")) as writer:
        for step, value in values:
            writer.add_scalar("score", value, step)


def test_runs_that_differ_in_their_seed_are_one_curve(tmp_path):
    for seed in range(3):
        leave_run(tmp_path / "a" / str(seed), ["model=policy", f"seed={seed}"], [(0, 0.0), (50 + seed, 1.0)])
    leave_run(tmp_path / "b", ["model=ppo"], [(0, 1.0), (90, 2.0)])
    leave_run(tmp_path / "c", [], [(0, 1.0), (90, 2.0)])
    counts = compare([tmp_path / "a", tmp_path / "b", tmp_path / "c"], "score", tmp_path / "curves.png")
    assert counts == {"model=policy": 3, "model=ppo": 1, "default": 1}
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_metric_that_is_not_there_is_named_beside_those_that_are(tmp_path):
    leave_run(tmp_path / "a", [], [(0, 1.0)])
    with pytest.raises(ConfigError, match=r"metric must be one of score for .*a, got loss"):
        compare([tmp_path], "loss", tmp_path / "curves.png")


def test_a_directory_without_runs_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="runs must be directories that hold runs, got "):
        compare([tmp_path], "score", tmp_path / "curves.png")
