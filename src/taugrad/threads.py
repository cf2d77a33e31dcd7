"""Waiting of OpenMP's threads for each other, set before torch loads their library."""

import os
import sys

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_LIBRARY")  # set by a user; KMP_BLOCKTIME wins over ours anyway


def wait_passively() -> None:
    """Let OpenMP's threads sleep while they wait for each other, unless the user chose or torch is imported already.

    Spinning threads take the processor from other programs, and then wait longer for the thread that these hold up.
    OpenMP reads the variable when torch loads it; child processes inherit it.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "passive"
