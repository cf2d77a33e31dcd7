"""The constraints stand for what pyproject.toml says."""

from importlib.metadata import metadata, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
RAY = ("ray", "hydra-ray-launcher")  # an extra of its own: it takes older packages than the others
EXTRAS = metadata("taugrad").get_all("Provides-Extra")
SYSTEMS = {"linux": "posix", "win32": "nt", "darwin": "posix"}


def pins(name):
    lines = (ROOT / "constraints" / name).read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def version(pin):
    (specifier,) = pin.specifier
    assert specifier.operator == "=="
    return specifier.version


def requirements():
    """Every requirement, extras included."""
    return [Requirement(line) for line in requires("taugrad") or []]


def test_the_lowest_constraints_are_the_lower_bounds():
    bounds = {(r.name, s.version) for r in requirements() for s in r.specifier if s.operator == ">="}
    assert {(pin.name, Version(version(pin))) for pin in pins("lowest.txt")} == {(n, Version(v)) for n, v in bounds}


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_the_lock_holds_one_version_of_every_requirement_within_its_bounds_for_every_python_and_system(python):
    for platform, os_name in SYSTEMS.items():
        machine = {"linux": "x86_64", "win32": "AMD64", "darwin": "arm64"}[platform]
        environment = {
            "python_version": python,
            "python_full_version": f"{python}.9",
            "sys_platform": platform,
            "os_name": os_name,
            "platform_machine": machine,
        }
        locked = [pin for pin in pins("lock.txt") if pin.marker is None or pin.marker.evaluate(environment)]
        versions = {canonicalize_name(pin.name): version(pin) for pin in locked}
        assert len(versions) == len(locked)
        for requirement in requirements():
            marker = requirement.marker
            needed = marker is None or any(marker.evaluate(environment | {"extra": extra}) for extra in EXTRAS)
            if needed and requirement.name not in RAY:
                name = canonicalize_name(requirement.name)
                assert versions[name] in requirement.specifier, (name, platform)


def test_the_lock_is_of_the_torch_that_the_figures_were_measured_with():
    assert [version(pin) for pin in pins("lock.txt") if pin.name == "torch"] == ["2.13.0"]


def test_every_way_to_set_up_takes_the_lock():
    use, develop = "pip install -c constraints/lock.txt -e .", 'pip install -c constraints/lock.txt -e ".[dev]"'
    readme = (ROOT / "README.md").read_text()
    assert f"\n    {use} && python scripts/train.py model=cat_vae\n" in readme
    assert f"\n    {develop} && pytest\n" in readme
    assert f"\n    {develop} && pre-commit install\n" in (ROOT / "CONTRIBUTING.md").read_text()
    ci = (ROOT / ".ci" / "run").read_text()
    assert ci.index('packages=(-c constraints/lock.txt -e ".[dev]" triton)') < ci.index("\npytest ")
