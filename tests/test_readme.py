import ast
import pickle
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


def test_the_public_names_are_those_that_a_type_checker_and_a_star_import_see():
    (shown,) = (node for node in ast.parse(Path(taugrad.__file__).read_text()).body if isinstance(node, ast.If))
    homes = {name.name: node.module for node in shown.body for name in node.names}
    assert sorted(homes) == sorted(taugrad.__all__)
    assert all(getattr(taugrad, name).__module__.startswith(home) for name, home in homes.items())
    assert set(taugrad.__all__) | {"bounds", "probe", "ops"} <= set(dir(taugrad))
    assert {"softmax", "subsets"} <= set(taugrad.ops.__all__)
    scope = {}
    exec("from taugrad import *", scope)
    assert all(scope[name] is getattr(taugrad, name) for name in taugrad.__all__)
    assert pickle.loads(pickle.dumps(taugrad.ReinMax())) == taugrad.ReinMax()
    with pytest.raises(AttributeError, match="module 'taugrad' has no attribute 'gumbel_softmaxx'"):
        taugrad.gumbel_softmaxx  # noqa: B018


def test_the_readme_stays_short():
    assert len(README.splitlines()) < 150
