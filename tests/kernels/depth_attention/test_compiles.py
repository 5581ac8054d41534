"""The depth kernels compile for an H200, without one: those that their trial launches, at real widths.

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
SPILLED = 16  # bytes that a thread may keep outside of its registers


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
    assert {"scores", "mixtures", "pull", "keys_gradient"} == {name for name, _, _ in kernels}
    assert [(name, spilled) for name, _, spilled in kernels if int(spilled) > SPILLED] == []


def compile_trial(width: int) -> None:
    """Print every kernel of a trial with its registers and bytes on the stack a thread."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    from src.kernels.depth_attention import check as depth_check
    from src.kernels.depth_attention import ops as depth_blocks

    class NoDevice:
        def get_current_target(self) -> Any:
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

    made: dict[int, tuple[str, Any]] = {}
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, warmup: bool, **options: Any) -> None:
        kernel = run(self, *args, warmup=True, **options)
        made[id(kernel)] = self.__name__, kernel

    triton.runtime.driver.set_active(NoDevice())
    JITFunction.run = compile_only
    depth_blocks.native_for = lambda x: None
    for kept in (torch.float32, torch.bfloat16):
        depth_check._error(torch.device("cpu"), torch.float32, width, kept)
    program = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    for name, kernel in made.values():
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(kernel.asm["cubin"])
            file.flush()
            command = [str(program), "-res-usage", file.name]
            said = subprocess.run(command, capture_output=True, text=True, check=True)
        found = re.search(r"REG:(\d+) STACK:(\d+)", said.stdout + said.stderr)
        assert found is not None
        print(name, *found.groups())


if __name__ == "__main__":
    compile_trial(int(sys.argv[1]))
