"""The Triton kernels of depth attention compile for an H200, without one, at the widths of models.

This file runs itself in a process whose Triton does not interpret, under a driver that has a target and no device.
"""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
SPILLED = 16  # bytes that a thread may spill from its registers


@pytest.mark.stress
@pytest.mark.parametrize("width", [768, 1024, 1600])
def test_every_kernel_fits_into_its_registers(width: int, tmp_path: Path) -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, __file__, str(width)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    kernels = [line.split() for line in done.stdout.splitlines()]
    assert {"scores", "mixtures", "source_gradients", "keys_gradient"} == {name for name, _, _ in kernels}
    assert [(name, spilled) for name, _, spilled in kernels if int(spilled) > SPILLED] == []


def compile_kernels(width: int) -> None:
    """Print every kernel that verification launches, with registers and bytes on the stack of a thread."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    from src.kernels import depth_attention
    from src.kernels.dispatch import REGISTRY

    class NoDevice:
        def get_current_target(self) -> Any:
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

    compiled: dict[int, tuple[str, Any]] = {}
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, warmup: bool, **options: Any) -> None:
        kernel = run(self, *args, warmup=True, **options)
        compiled[id(kernel)] = self.__name__, kernel

    triton.runtime.driver.set_active(NoDevice())
    JITFunction.run = compile_only
    REGISTRY.backend_of_device["cpu"] = "triton"
    for kept in (torch.float32, torch.bfloat16):
        depth_attention._verify("triton", torch.device("cpu"), torch.float32, width, (kept,))
    program = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    for name, kernel in compiled.values():
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(kernel.asm["cubin"])
            file.flush()
            command = [str(program), "-res-usage", file.name]
            usage = subprocess.run(command, capture_output=True, text=True, check=True)
        found = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout + usage.stderr)
        assert found is not None
        print(name, *found.groups())


if __name__ == "__main__":
    compile_kernels(int(sys.argv[1]))
