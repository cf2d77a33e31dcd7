"""The rules of docs/architecture.md, held against the imports of every module, those inside functions too."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "taugrad"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^    ((?:[a-z]+ )*[a-z]+)  +\S.*$", PAGE.partition("## The rules")[0], re.MULTILINE)
LEVEL = {name: level for level, row in enumerate(ROWS) for name in row.split()}
MODULES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py" and "conf" not in path.parts)


def imported(path):
    """The dotted names that a module imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def part(path):
    """The name in the tree: the first folder, or the file itself."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def violations(path, source=imported):
    """What the module imports against the rules."""
    own = part(path)
    for name in source(path):
        package, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if package == "taugrad" and LEVEL.get(other, -1) > LEVEL[own]:
            yield f"{own} imports {name}, which is below it"
        if package in ("lightning", "hydra", "omegaconf") and LEVEL[own] <= LEVEL["rl"]:
            yield f"{own} is of the library and imports {name}"
        kernels = name.startswith(("taugrad.ops.native", "taugrad.ops.triton"))
        if kernels and path.stem != "_fused" and path.parent.name not in ("native", "triton"):
            yield f"{path.stem} imports {name}: only ops/_fused.py knows the kernels"
        choice = name.startswith(("taugrad.ops._fused", "taugrad.ops._backend"))
        if choice and own != "ops" and LEVEL[own] <= LEVEL["rl"]:
            yield f"{own} imports {name}: of the library, only ops chooses between kernels and torch"


def test_the_page_names_every_part_of_the_package_and_no_other():
    there = {path.name.removesuffix(".py") for path in SOURCE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert set(LEVEL) == there - {"__init__", "__pycache__", "conf", "py.typed"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_follow_the_rules(path):
    assert sorted(set(violations(path))) == []


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("ops/gumbel.py", "taugrad.estimators"),
        ("models/cat_vae.py", "taugrad.training.images"),
        ("rl/ppo.py", "lightning"),
        ("errors.py", "omegaconf.errors"),
        ("estimators/relaxed.py", "taugrad.ops.native.kernels"),
        ("commands/train.py", "taugrad.ops.native"),
        ("estimators/relaxed.py", "taugrad.ops._fused"),
        ("layers/gate.py", "taugrad.ops._fused.backend"),
        ("models/cat_vae.py", "taugrad.ops._backend"),
        ("rl/ppo.py", "taugrad.ops._backend.backend_chosen"),
    ],
)
def test_an_import_that_breaks_a_rule_is_found(file, name):
    assert list(violations(SOURCE / file, lambda _: [name]))
