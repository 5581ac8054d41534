"""Checks of the compiled graph and of DDP: one graph for all steps, and equal parameters on two ranks."""

import os
import pickle
import sys
import tempfile
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from src.checks.base import Subject, draw_tokens
from src.errors import one_line
from src.files import ROOT

N_STEPS = 6
DDP_TIMEOUT_S = 600.0  # includes the start of two processes on a busy machine


def check_one_graph(subject: Subject) -> list[str]:
    """Check that a forward reads nothing back to the host and that one graph without a break is used for all steps."""
    gpt = subject.build_small(jittered=False, dtype=torch.float32)
    gpt.hidden(draw_tokens())  # the first forward verifies kernels, which reads their errors
    with _HostReads() as reads:
        gpt.hidden(draw_tokens())
    if reads.count:
        return [
            f"a forward reads {reads.count} values back to the host (.item(), float(), bool()): each stops a GPU; keep "
            "them tensors (torch.where, clamp, buffers filled in on_step)"
        ]
    graphs = 0

    def count(graph: torch.fx.GraphModule, _inputs: Any) -> Any:  # dynamo's own signature
        nonlocal graphs
        graphs += 1
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(gpt.hidden, fullgraph=True, dynamic=False, backend=count)
    try:
        for step in range(N_STEPS):
            gpt.follow(step, 100)
            compiled(draw_tokens())
    except Exception as error:  # dynamo raises many kinds
        return [
            f"the trunk does not compile into one graph ({one_line(error)[:160]}); keep tensors on the device: no "
            ".item(), no branch on a value, no numpy"
        ]
    finally:
        torch.compiler.reset()
    if graphs > 1:
        return [
            f"{N_STEPS} steps made {graphs} graphs: a Python number changes with the step; write it into a tensor "
            "buffer in on_step (buffer.fill_)"
        ]
    return []


class _HostReads(TorchDispatchMode):
    """Dispatch mode that counts the conversions of tensors to Python numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # as torch has it
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def check_two_ranks(subject: Subject) -> list[str]:
    """Check that two gloo ranks hold equal parameters after three steps with find_unused_parameters=False."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "subject"
        file.write_bytes(pickle.dumps(subject))
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        command = [sys.executable, "-m", "src.checks.ddp_step", str(file)]
        ranks = [Popen([*command, str(r)], env=env, stdout=PIPE, stderr=PIPE, text=True) for r in range(2)]
        try:
            outputs = [rank.communicate(timeout=DDP_TIMEOUT_S) for rank in ranks]
        except TimeoutExpired:
            return [f"two DDP ranks hang for {DDP_TIMEOUT_S:.0f} s: they take different paths through the strategy"]
        finally:
            for rank in ranks:
                rank.kill()
    failed = [(rank.returncode, err) for rank, (_, err) in zip(ranks, outputs, strict=True) if rank.returncode]
    if failed:
        lines = [line for line in failed[0][1].splitlines() if line.strip()]
        return [
            f"a DDP step with find_unused_parameters=False fails: {' '.join(lines[-1].split())[:200]}; every "
            "parameter must take part in every step"
        ]
    if len({out for out, _ in outputs}) != 1:
        return ["two DDP ranks hold different parameters after three steps: something random differs between them"]
    return []
