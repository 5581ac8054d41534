"""Profilers of a run: Lightning's `PyTorchProfiler` with a window of steps and a CUDA memory snapshot.

A profiler is built as `profiler(dirpath)`, with `dirpath` the folder `profiler/` of the run folder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import torch
from lightning.pytorch.profilers import PyTorchProfiler

from src.bounds import PositiveInt


class TraceProfiler(PyTorchProfiler):
    """Chrome trace of `trace_steps` training steps, and the CUDA allocations of the run.

    Open the trace in https://ui.perfetto.dev and `memory-<rank>.pickle` in https://pytorch.org/memory_viz.

    Args:
        dirpath: folder of the files.
        filename: prefix of the files.
        record_shapes: record the shapes of the inputs of every operator.
        with_stack: record the Python stack of every operator.
        skip_steps: steps before the trace, for compilation and caches to settle; one of them warms up the profiler.
        trace_steps: steps in the trace.
        memory_snapshot: record CUDA allocations; auto: where there is a GPU.
    """

    added_keys: ClassVar[Mapping[str, object]] = {"memory_snapshot": "auto"}

    def __init__(
        self,
        dirpath: Path,
        *,
        filename: str,
        record_shapes: bool,
        with_stack: bool,
        skip_steps: PositiveInt,
        trace_steps: PositiveInt,
        memory_snapshot: Literal["auto"] | bool,
    ) -> None:
        self.memory_snapshot = memory_snapshot
        self._records_memory = False
        schedule = torch.profiler.schedule(wait=skip_steps - 1, warmup=1, active=trace_steps, repeat=1)
        super().__init__(dirpath, filename, schedule=schedule, record_shapes=record_shapes, with_stack=with_stack)

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """Start to record CUDA allocations."""
        super().setup(stage, local_rank, log_dir)
        self._records_memory = bool(self.memory_snapshot) and torch.cuda.is_available()
        if self._records_memory:
            torch.cuda.memory._record_memory_history()

    def teardown(self, stage: str | None) -> None:
        """Write `memory-<rank>.pickle`, the snapshot of CUDA allocations, once."""
        if self._records_memory and self.dirpath is not None:
            self._records_memory = False  # Lightning calls this again when the profiler is deleted
            folder = Path(self.dirpath)
            folder.mkdir(parents=True, exist_ok=True)
            torch.cuda.memory._dump_snapshot(str(folder / f"memory-{self._local_rank or 0}.pickle"))  # type: ignore[no-untyped-call]  # torch's own is untyped
            torch.cuda.memory._record_memory_history(enabled=None)
        super().teardown(stage)
