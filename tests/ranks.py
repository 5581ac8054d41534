"""Two ranks for tests: forks of a process that has imported what training imports, so that they start at once."""

import multiprocessing
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed

RANKS = 2
#: Starts processes as forks; the one that they are forks of imports the modules when the first of them starts.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.support"])


def run_ranks(compute: Callable[[], Any]) -> list[Any]:
    """Return what a function returns on each rank of a process group.

    Args:
        compute: a function that pickle can name, or a partial of one.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _compute, (folder, compute), nprocs=RANKS, start_method=FORKS.get_start_method()
        )
        return [pickle.loads(Path(folder, str(rank)).read_bytes()) for rank in range(RANKS)]


def _compute(rank: int, folder: str, compute: Callable[[], Any]) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", RANKS)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    Path(folder, str(rank)).write_bytes(pickle.dumps(compute()))
    distributed.barrier()
    distributed.destroy_process_group()
