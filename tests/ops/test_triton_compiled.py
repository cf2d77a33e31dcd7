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

SHAPES = {  # of kernels by the first number of its relaxation, 0 where it has none: classes, dtype, architecture
    ("sample", 1): [
        *(
            (4, "fp32", 80),
            (16, "fp32", 90),
            (32, "fp32", 80),
            (50, "fp32", 90),
            (1000, "fp32", 90),
            (1024, "fp32", 80),
        ),
        *((8192, "fp32", 90), (8192, "bf16", 90), (151936, "fp32", 90), (151936, "bf16", 80)),
    ],
    ("sample", 3): [(50, "fp32", 90), (8192, "fp32", 80), (151936, "fp32", 90)],
    ("sample", 4): [(16, "fp32", 80), (50, "fp32", 90), (8192, "bf16", 90), (151936, "fp32", 90)],
    ("gumbel_rao", 0): [(16, "fp32", 90), (50, "fp32", 80), (2048, "fp32", 90), (151936, "fp32", 90)],
    ("softmax_backward", 0): [(50, "fp32", 90), (8192, "bf16", 80), (151936, "fp32", 90)],
    ("noise_run", 0): [(1, "fp32", 80), (1, "fp64", 90)],
}
SHAPES["sample_backward", 1] = [*SHAPES["sample", 1], (100, "fp32", 80), (100, "fp64", 90), (8192, "fp64", 90)]
SHAPES["sample_backward", 3], SHAPES["sample_backward", 4] = SHAPES["sample", 3], SHAPES["sample", 4]
MOST_REGISTERS = 128  # of 65,536: 512 threads a multiprocessor at least
MOST_REGISTERS_OF_DOUBLES = 160

COMPILE = """
import json, re, subprocess, sys, tempfile
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from taugrad.ops.triton import kernels, launch

tool = next(Path(triton.__file__).parent.rglob("cuobjdump"))

def report(name, relaxation, K, dtype, architecture):
    double = dtype == "fp64"
    wide = "fp64" if double else "fp32"
    if name == "noise_run":
        kernel, blocks = kernels.noise_run, launch._noise_blocks(double)
    else:
        blocks = launch._blocks(K, double, averages=name == "gumbel_rao")
        kernel = getattr(kernels, name + ("_tile" if "R" in blocks else "_chunks"))
    warps = blocks.pop("num_warps")
    constants = {**blocks, "RELAXATION": relaxation, "HARD": True, "DRAWN": True, "WRITES": True, "inner": 1}
    constants |= dict.fromkeys(("taus", "gaps", "dtau"), None) | {"tau_step": 0}
    if relaxation in (1, 2):
        constants["indices"] = None
    types = {"kept": "*" + wide, "sums": "*" + wide, "seed": "*i64", "indices": "*i64", "tau": "fp32", "gap": "fp32"}
    types |= dict.fromkeys(("x", "y", "out", "grad", "dx"), "*" + dtype)
    signature, attributes = {}, {}
    for i, argument in enumerate(kernel.arg_names):
        if argument.endswith("_near"):
            constants[argument] = 0
        if argument.endswith("_step") and argument != "tau_step":
            constants[argument] = 1
        if argument in constants:
            signature[argument] = "constexpr"
            continue
        signature[argument] = types.get(argument, "i32")
        odd = K % 16 and (argument == "K" or argument.endswith("_outer"))
        if argument not in ("tau", "gap", "draws") and not odd:
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
    products = re.findall(r"arith\\.muli %rows, \\S+ : i32", program.asm["ttir"])
    return {"registers": n["REG"], "spilled": n["STACK"] + n["LOCAL"], "wide": widths.count(16), "narrow": len(
        [w for w in widths if w < 16]), "rows": blocks.get("R", 1), "products": len(products)}

print(json.dumps([[*case, report(*case)] for case in json.loads(sys.argv[1])]))
"""


def test_kernels_compile_for_two_architectures_within_bounds(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    cases = [[*kernel, *shape] for kernel, shapes in SHAPES.items() for shape in shapes]
    command = [sys.executable, "-c", COMPILE, json.dumps(cases)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    for name, relaxation, K, dtype, architecture, found in json.loads(result.stdout):
        case = f"{name} {relaxation} of {K} {dtype} for sm_{architecture}: {found}"
        assert found["registers"] <= (MOST_REGISTERS_OF_DOUBLES if dtype == "fp64" else MOST_REGISTERS), case
        assert found["spilled"] == 0, case
        assert found["products"] == 0, case  # of rows, up to 2^31, in 32 bits
        if K % 16 == 0:
            assert found["wide"] >= 2, case  # what is left narrow is of the seed and of what is kept for each row
            assert found["narrow"] <= (6 if found["rows"] == 1 else 16), case
