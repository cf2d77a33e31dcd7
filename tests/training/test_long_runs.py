"""Memory of the process and files of the run do not grow with its length. Minutes each: slow."""

import os
import subprocess
import sys

import pytest
from helpers.commands import ROOT

SPY = """
from pathlib import Path
from lightning import Callback

class Memory(Callback):
    def __init__(self, path: str, every: int) -> None:
        self.path, self.every, self.last = Path(path), every, -1

    def on_train_batch_end(self, trainer, pl_module, *_):
        step = pl_module.clock()[0]
        if step // self.every > self.last:
            self.last = step // self.every
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            with self.path.open("a") as file:
                file.write(f"{step} {pages * 4096}\\n")
"""
IMAGES = ["trainer.max_steps=20_000", "model.nll_samples=2", "threads=1"]
# 300,000 environment steps are about 20,000 of the optimizers.
ACTING = ["env.max_env_steps=300_000", "evaluation.test_episodes=2", "threads=1"]


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")  # noqa: PTH110
@pytest.mark.parametrize(
    ("arguments", "every"),
    [
        (["model=cat_vae", "model.encoder=[32]", "model.decoder=[32]", "model.latents=4", *IMAGES], 500),
        (["model=structured", *IMAGES], 500),
        (["model=semi_supervised", "data.batch_size=10", "data.labelled_batch_size=10", IMAGES[0], IMAGES[2]], 500),
        (["model=policy", *ACTING], 7500),
        (["model=ppo", *ACTING], 7500),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_memory_grows_by_less_than_five_megabytes_after_warm_up(arguments, every, tmp_path):
    (tmp_path / "spy.py").write_text(SPY)
    path = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)}
    spy = ["+callbacks.memory._target_=spy.Memory", f"+callbacks.memory.path={tmp_path}/memory"]
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *spy, f"+callbacks.memory.every={every}", *arguments]
    result = subprocess.run(
        [*command, f"hydra.run.dir={tmp_path}/run"], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    sizes = [int(line.split()[1]) for line in (tmp_path / "memory").read_text().splitlines()]
    assert len(sizes) >= 35
    quarter = len(sizes) // 4  # after the first, every kind of step and evaluation has been made
    # The least of each: the allocator's part is a saw-tooth of some 10 MB and 10,000 steps, a leak shows in both.
    warm, end = min(sizes[quarter : 2 * quarter]), min(sizes[-quarter:])
    assert end - warm < 5e6, [f"{size / 1e6:.1f}" for size in sizes]
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert sorted(file.name for file in files if file.suffix == ".ckpt") == ["best.ckpt", "last.ckpt"]
    assert sum(file.stat().st_size for file in files if "tensorboard" in file.parts) < 50e6
