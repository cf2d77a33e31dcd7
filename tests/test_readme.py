import re
from pathlib import Path

import pytest

import taugrad

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_readmes_code_runs(code):
    exec(compile(code, "README.md", "exec"), {})


def test_every_file_that_the_readme_links_to_exists():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).is_file(), link


def test_the_public_names_exist_and_are_documented():
    assert all(hasattr(taugrad, name) for name in taugrad.__all__)
    assert all(getattr(taugrad, name).__doc__ for name in taugrad.__all__)


def test_the_readme_stays_short():
    assert len(README.splitlines()) < 150
