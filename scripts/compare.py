"""Draw the learning curves of several runs: python scripts/compare.py outputs/policy/* --metric rollout/ep_rew_mean."""

import argparse
from pathlib import Path

from taugrad.curves import compare
from taugrad.errors import one_sentence


@one_sentence
def main() -> None:
    """Read the command line, draw, say where."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="directories of runs, or of sweeps of runs")
    parser.add_argument("--metric", default="rollout/ep_rew_mean", help="a tag of TensorBoard's scalars")
    parser.add_argument("--out", type=Path, default=Path("curves.png"))
    arguments = parser.parse_args()
    for label, count in compare(arguments.runs, arguments.metric, arguments.out).items():
        print(f"{count} runs of {label}")
    print(f"the curves are in {arguments.out}")


if __name__ == "__main__":
    main()
