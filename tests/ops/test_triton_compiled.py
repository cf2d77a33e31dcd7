"""The kernels for GPUs, compiled for two NVIDIA architectures: registers, spills, width of loads and stores.

This process interprets Triton (tests/conftest.py), so another one compiles.
"""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install -e '.[dev,triton]'")

pytestmark = [pytest.mark.triton, pytest.mark.system]

SHAPES = [  # classes, dtype, architecture
    (16, "fp32", 90),
    (1000, "fp32", 90),
    (1024, "fp32", 80),
    (8192, "fp32", 90),
    (8192, "bf16", 90),
    (151936, "fp32", 90),
    (151936, "bf16", 80),
]
MOST_REGISTERS = 128  # of 65,536: 512 threads a multiprocessor at least

COMPILE = """
import json, re, subprocess, sys, tempfile
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from taugrad.ops.triton import kernels, launch

tool = next(Path(triton.__file__).parent.rglob("cuobjdump"))

def report(name, K, dtype, architecture):
    blocks = launch._blocks(K, False)
    warps = blocks.pop("num_warps")
    kernel = getattr(kernels, name + ("_tile" if "R" in blocks else "_chunks"))
    constants = {**blocks, "RELAXATION": 1, "HARD": True, "DRAWN": True, "inner": 1, "tau_step": 0}
    constants |= dict.fromkeys(("taus", "gaps", "indices", "dtau"))
    signature, attributes = {}, {}
    for i, argument in enumerate(kernel.arg_names):
        tensor = argument in ("x", "out", "grad", "dx")
        number = argument in ("rows", "K") or argument.endswith("_outer")
        if argument.endswith("_near"):
            constants[argument] = 0
        if argument.endswith("_step"):
            constants[argument] = 1
        if argument in constants:
            signature[argument] = "constexpr"
            continue
        types = {"kept": "*fp32", "seed": "*i64", "tau": "fp32", "gap": "fp32"}
        signature[argument] = f"*{dtype}" if tensor else types.get(argument, "i32")
        if argument not in ("tau", "gap") and not (number and argument != "rows" and K % 16):
            attributes[(i,)] = [["tt.divisibility", 16]]
    constants = {(kernel.arg_names.index(n),): v for n, v in constants.items() if n in kernel.arg_names}
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": warps, "enable_fp_fusion": True}
    program = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(program.asm["cubin"])
        file.flush()
        used = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    moved = re.findall(r"(?:ld|st)\\.global\\S*?((?:\\.v\\d)?)\\.b(\\d+)\\b", program.asm["ptx"])
    widths = [int(v[2:] or 1) * int(b) // 8 for v, b in moved]
    n = {key: int(re.search(rf"{key}:(\\d+)", used)[1]) for key in ("REG", "STACK", "LOCAL")}
    return {"registers": n["REG"], "spilled": n["STACK"] + n["LOCAL"], "wide": widths.count(16), "narrow": len(
        [w for w in widths if w < 16])}

shapes = json.loads(sys.argv[1])
print(json.dumps([
    [name, *shape, report(name, *shape)] for name in ("sample", "sample_backward") for shape in shapes
]))
"""


def test_kernels_compile_for_two_architectures_within_bounds(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILE, json.dumps(SHAPES)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    for name, K, dtype, architecture, found in json.loads(result.stdout):
        case = f"{name} of {K} {dtype} for sm_{architecture}: {found}"
        assert found["registers"] <= MOST_REGISTERS, case
        assert found["spilled"] == 0, case
        if K % 16 == 0:
            assert found["wide"] >= 2, case  # what is left narrow is of the seed and of what is kept for each row
            assert found["narrow"] <= 3, case
