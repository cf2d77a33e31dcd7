"""python scripts/same_run.py COMMIT: do the working tree and COMMIT train the same, to the last digit?

Train each model of `RUNS` from one seed by the code of both, and compare the two `metrics.json`. A commit that only
moves code passes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUNS = {
    "cat_vae": ("trainer.max_steps=500", "trainer.limit_test_batches=2"),
    "structured": ("trainer.max_steps=250", "trainer.limit_test_batches=2"),
    "semi_supervised": ("trainer.max_steps=100", "trainer.limit_test_batches=2"),
    "policy": ("env.max_env_steps=12_000",),
    "ppo": ("env.max_env_steps=12_000",),
}
_OF_THE_MACHINE = ("wall_seconds", "versions/")


def metrics(tree: Path, model: str, directory: Path) -> dict[str, object]:
    """Return what a run by the code of `tree` reports, but for what no seed decides."""
    fixed = (f"model={model}", "threads=1", "trainer.enable_progress_bar=false", f"hydra.run.dir={directory}")
    command = [sys.executable, tree / "scripts" / "train.py", *fixed, *RUNS[model]]
    ran = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tree / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        sys.exit(f"error: {model} by {tree}: {ran.stderr[-2000:]}")
    found = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
    return {name: value for name, value in found.items() if not name.startswith(_OF_THE_MACHINE)}


def main() -> None:
    """Compare the runs named, all by default, and end with an error where one differs."""
    parser = argparse.ArgumentParser(description="Do the working tree and a commit train the same?")
    parser.add_argument("commit")
    parser.add_argument("models", nargs="*", default=list(RUNS), help=f"of {', '.join(RUNS)}")
    arguments = parser.parse_args()
    different = []
    with tempfile.TemporaryDirectory() as directory:
        there = Path(directory) / "tree"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "-q", there, arguments.commit], check=True)
        try:
            for model in arguments.models:
                old, new = (
                    metrics(tree, model, Path(directory) / name / model)
                    for name, tree in (("old", there), ("new", ROOT))
                )
                if old != new:
                    different.append(model)
                for name in sorted(old.keys() | new.keys()):
                    if old.get(name) != new.get(name):
                        print(f"{model}: {name} was {old.get(name)}, is {new.get(name)}")
                print(f"{model}: {'different' if old != new else 'the same'}, {len(old)} metrics")
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", there], check=True)
    if different:
        sys.exit(f"error: {', '.join(different)} trained otherwise than by {arguments.commit}")


if __name__ == "__main__":
    main()
