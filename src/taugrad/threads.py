"""How OpenMP's threads wait for each other, decided before torch loads their library."""

import os
import sys

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_LIBRARY")  # a user's choice; KMP_BLOCKTIME wins over ours anyway


def wait_passively() -> None:
    """Let OpenMP's threads sleep while they wait for each other, unless the user chose or torch is there already.

    By spinning they take the processor from whatever else computes on the machine, and wait the longer for a thread of
    theirs that it holds up. Their library reads the variable when torch loads it; child processes inherit it.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "passive"
