"""Private names of torch: which ones there are, and that one module has them all."""

import ast
from pathlib import Path

import torch
from helpers.cases import each

import taugrad
from taugrad.ops import _torch

SOURCES = Path(taugrad.__file__).parent
NAMES = [
    "_C._TorchDispatchModeKey.FAKE",
    "_C._TorchDispatchModeKey.FUNCTIONAL",
    "_C._TorchDispatchModeKey.PROXY",
    "_C._functorch.is_functorch_wrapped_tensor",
    "_C._functorch.peek_interpreter_stack",
    "_C._get_dispatch_mode",
    "_C._get_tracing_state",
    "_C._has_storage",
    "_C._len_torch_dispatch_stack",
    "Tensor._is_zerotensor",
    "_softmax_backward_data",
    "autograd.forward_ad._current_level",
]
OF_OBJECTS = {  # attributes that no class has, and objects that have them
    "_step_supports_amp_scaling": lambda: torch.optim.Adam([torch.zeros(2, requires_grad=True)], fused=True),
}
ELSEWHERE = {("commands/bench.py", "torch._softmax_backward_data")}  # torch's own backward, which ours is compared with


@each("name", NAMES)
def test_torch_has_every_private_name(name):
    found = torch
    for part in name.split("."):
        assert hasattr(found, part), f"torch {torch.__version__} has no torch.{name}, which taugrad.ops._torch needs"
        found = getattr(found, part)


@each("name", OF_OBJECTS)
def test_torchs_objects_have_every_private_attribute(name):
    assert hasattr(OF_OBJECTS[name](), name), f"torch {torch.__version__} has no {name}, which taugrad.ops._torch needs"


def dotted(node: ast.AST) -> list[str]:
    """The parts of `a.b.c`, or nothing where it does not start with a name."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return [node.id, *reversed(parts)] if isinstance(node, ast.Name) else []


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


BY_STRING = ("getattr", "hasattr", "setattr", "delattr")


def private_strings(tree: ast.AST) -> set[str]:
    """Private names of attributes that are got, set or looked for by a string, of whatever object."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and len(node.args) > 1]
    names = [call.args[1] for call in calls if isinstance(call.func, ast.Name) and call.func.id in BY_STRING]
    return {name.value for name in names if isinstance(name, ast.Constant) and is_private(str(name.value))}


def private_names(source: str) -> set[str]:
    """Private names of torch that a file uses: in an import, after an imported name, of a tensor, in a string."""
    tree = ast.parse(source)
    modules, used = {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                bound = name.name if name.asname else name.name.split(".")[0]  # `import a.b` binds a
                modules[name.asname or bound] = bound
                used.add(name.name)
        if isinstance(node, ast.ImportFrom):
            modules |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
    modules = {name: path for name, path in modules.items() if path.split(".")[0] == "torch"}
    used = {path for path in [*used, *modules.values()] if path.startswith("torch.")}
    used = {path for path in used if any(map(is_private, path.split(".")))}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        first, *rest = dotted(node) or [""]
        if first in modules and any(map(is_private, rest)):
            used.add(".".join([modules[first], *rest]))
        elif is_private(node.attr) and hasattr(torch.Tensor, node.attr):
            used.add(f"torch.Tensor.{node.attr}")
        elif node.attr in OF_OBJECTS:
            used.add(f"*.{node.attr}")
    return used | {f"*.{name}" for name in private_strings(tree)}


def test_no_other_module_uses_a_private_name_of_torch():
    used = {
        (str(path.relative_to(SOURCES)), name)
        for path in SOURCES.rglob("*.py")
        if path != Path(_torch.__file__)
        for name in private_names(path.read_text(encoding="utf-8"))
    }
    assert used == ELSEWHERE


def test_the_search_for_private_names_has_power():
    source = """
import torch, torch._dynamo
from torch.autograd import forward_ad
from torch._C import _has_storage
torch._C._get_tracing_state(), forward_ad._current_level, x._is_zerotensor(), torch.__version__, self._mine
optimizer._step_supports_amp_scaling, getattr(optimizer, "_one", 0), hasattr(x, "_two"), getattr(x, "__len__")
"""
    assert private_names(source) == {
        "torch._dynamo",
        "torch._C._has_storage",
        "torch._C._get_tracing_state",
        "torch._C",
        "torch.autograd.forward_ad._current_level",
        "torch.Tensor._is_zerotensor",
        "*._step_supports_amp_scaling",
        "*._one",
        "*._two",
    }


def test_every_private_name_that_is_used_is_in_the_list():
    tree = ast.parse(Path(_torch.__file__).read_text(encoding="utf-8"))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_private(node.attr)}
    used -= {"_dynamo_marked_constant"}  # set for the compiler to read
    used |= private_strings(tree)
    assert used == {part for name in NAMES for part in name.split(".") if is_private(part)} | set(OF_OBJECTS)
