"""Compile the hyper-stream kernels for an H200, which need not be present, and print the resources they take.

One line for each kernel: name, the streams' dtype, registers, bytes of stack, and the widest load of its PTX in units
of 32 bits. A process of its own, because Triton's interpreter must be off.
"""

import importlib
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

D, N = 1024, 4
BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
STREAMS = {"h", "out", "start", "dout", "dh"}
OUTPUTS = {"y", "u", "du", "dy"}
NUMBERS = {"tokens": "i32", "R": "i32", "J": "i32", "n_iteration": "i32", "eps": "fp32", "table": "*i64"}
COMMON: dict[str, Any] = {"D": D, "DP": D, "N": N, "BATCHED": True, "F": tl.float32}
CASE: dict[str, Any] = {"COPIES": False, "FIRST": False, "PENDING": True}
PADDED: dict[str, Any] = {"NP": 4, "CP": 8}

#: Module, kernel, constants, warps, most registers.
KERNELS: list[tuple[str, str, dict[str, Any], int, int]] = [
    ("dhc_triton", "dhc_forward", {**PADDED, **CASE, "RP": 32}, 2, 168),
    ("dhc_triton", "dhc_backward", {**PADDED, **CASE}, 4, 168),
    ("mhc_triton", "mhc_weights", {"CP": 32, "M": 64, "E": 64, "COPIES": False, "PENDING": True}, 4, 255),
    ("mhc_triton", "mhc_mix", {**CASE, "NP": 4, "RP": 32}, 2, 168),
    ("mhc_triton", "mhc_mix_backward", CASE, 4, 168),
    ("mhc_triton", "mhc_weights_backward", {"M": 32}, 1, 255),
    ("mhc_triton", "mhc_stream_gradients", {**CASE, "CP": 32, "M": 16, "E": 64}, 8, 255),
]


def compile_kernel(module: str, name: str, constants: dict[str, Any], warps: int, most: int, streams: str) -> str:
    """Return the line of a kernel."""
    kernel = getattr(importlib.import_module(f"src.kernels.hyper_streams.{module}"), name)
    constants_of = {**COMMON, **constants}
    signature, attributes = {}, {}
    for i, argument in enumerate(kernel.arg_names):
        wide = {**dict.fromkeys(STREAMS, streams), **dict.fromkeys(OUTPUTS, "*bf16"), **NUMBERS}
        signature[argument] = "constexpr" if argument in constants_of else wide.get(argument, "*fp32")
        if signature[argument].startswith("*"):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants_of, attributes)
    options = {"num_warps": warps, "maxnreg": most, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        usage = subprocess.run(
            [str(BIN / "cuobjdump"), "-res-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0]
    wide_loads = 4 if re.search(r"ld\.global\S*\.v4|cp\.async", compiled.asm["ptx"]) else 1
    return f"{name} {streams[1:]} {registers} {stack} {wide_loads}"


if __name__ == "__main__":
    for entry in KERNELS:
        for streams in ("*fp32", "*bf16"):
            print(compile_kernel(*entry, streams), flush=True)
