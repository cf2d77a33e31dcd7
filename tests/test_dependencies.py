"""That the constraints stand for what pyproject.toml says."""

import re
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def pins(name):
    lines = (ROOT / "constraints" / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def requirements():
    """Name and bounds of every requirement, extras included."""
    found = (re.match(r"([\w.-]+)(?:\[.*?\])?\s*([^;]*)", line) for line in requires("taugrad") or [])
    return {(match[1], match[2].strip()) for match in found if match}


def test_the_lowest_constraints_are_the_lower_bounds():
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    lowest = pins("lowest.txt")
    bounded = {name: [s.version for s in SpecifierSet(spec) if s.operator == ">="] for name, spec in requirements()}
    assert {name: Version(v) for name, v in lowest.items()} == {n: Version(v[0]) for n, v in bounded.items() if v}


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the lock is of Python 3.11")
def test_the_lock_holds_every_requirement_within_its_bounds():
    from packaging.specifiers import SpecifierSet

    lock = {name.lower().replace("_", "-"): version for name, version in pins("lock.txt").items()}
    for name, spec in requirements():
        if name in ("ray", "hydra-ray-launcher"):  # an extra that is not of dev
            continue
        assert lock[name.lower()] in SpecifierSet(spec), name
