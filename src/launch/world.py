"""Ranks of a job: how many processes train together, and which of them this one is.

Decided once per process, from the variables of what started it, and from nowhere else:

    torchrun   TORCHELASTIC_RUN_ID is set; RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE
    reslab     likewise, with the run id `OWN_RUN_ID`: this process is one of the ranks that `elastic.py` launched
    slurm      this step of the job has several tasks (SLURM_STEP_NUM_TASKS > 1); SLURM_PROCID, SLURM_LOCALID
    other      WORLD_SIZE > 1 without either; RANK, LOCAL_RANK
    none       none of these: one process, which may launch ranks itself (`elastic.py`)

Variables that a shell still holds from something else (RANK=0 WORLD_SIZE=1, SLURM_* of an interactive session, a batch
script's SLURM_PROCID=0) start nothing and thus change nothing.

Source: PyTorch, torch.distributed.run ("Environment Variables"); Slurm, srun ("OUTPUT ENVIRONMENT VARIABLES").
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from src.errors import UserError

Launcher = Literal["none", "reslab", "torchrun", "slurm", "other"]

#: Run id at torchelastic of the ranks that a job launches itself.
OWN_RUN_ID = "reslab"


@dataclass(frozen=True)
class World:
    """Place of this process among the ranks that a launcher started.

    Args:
        launcher: what started the ranks.
        rank, local_rank: rank among all processes, and among those of this node.
        size, local_size: number of processes in total, and on each node.
        restarts: how often the launcher has started this job before.
        job: identity of the job at its launcher, the same after a restart; empty without one.
    """

    launcher: Launcher = "none"
    rank: int = 0
    local_rank: int = 0
    size: int = 1
    local_size: int = 1
    restarts: int = 0
    job: str = ""

    @property
    def n_node(self) -> int:
        """Number of nodes."""
        return self.size // self.local_size

    @property
    def is_launched(self) -> bool:
        """True if a launcher started the ranks, so that this process starts none."""
        return self.launcher != "none"


def read_world(env: Mapping[str, str] | None = None) -> World:
    """Return the place of this process, from `env` (default: the environment).

    Raises:
        UserError: the variables of a launcher contradict each other.
    """
    env = os.environ if env is None else env
    if env.get("TORCHELASTIC_RUN_ID") == OWN_RUN_ID:
        world = World("reslab", *_read_ranks(env), *_read_slurm_job(env))
    elif "TORCHELASTIC_RUN_ID" in env:
        restarts = _read(env, "TORCHELASTIC_RESTART_COUNT", 0)
        world = World("torchrun", *_read_ranks(env), restarts, _read_torchrun_job(env))
    elif _read(env, "SLURM_STEP_NUM_TASKS", 1) > 1:
        world = World("slurm", *_read_slurm_ranks(env), *_read_slurm_job(env))
    elif _read(env, "WORLD_SIZE", 1) > 1:
        world = World("other", *_read_ranks(env))
    else:
        restarts, job = _read_slurm_job(env)
        world = World(restarts=restarts, job=job)
    if world.size % world.local_size or not world.rank < world.size or not world.local_rank < world.local_size:
        raise UserError(
            f"the variables of {world.launcher} contradict each other: rank {world.rank} of {world.size}, local rank "
            f"{world.local_rank} of {world.local_size}; unset RANK, LOCAL_RANK and WORLD_SIZE, or start with torchrun"
        )
    return world


def _read_ranks(env: Mapping[str, str]) -> tuple[int, int, int, int]:
    """Return rank, local rank, size and local size from the variables of PyTorch."""
    size = _read(env, "WORLD_SIZE", 1)
    return _read(env, "RANK", 0), _read(env, "LOCAL_RANK", 0), size, _read(env, "LOCAL_WORLD_SIZE", size)


def _read_slurm_ranks(env: Mapping[str, str]) -> tuple[int, int, int, int]:
    """Return rank, local rank, size and local size from the variables of this step of a SLURM job."""
    size, n_node = _read(env, "SLURM_STEP_NUM_TASKS", 1), _read(env, "SLURM_STEP_NUM_NODES", 1)
    if size % n_node:
        raise UserError(
            f"srun started {size} tasks on {n_node} nodes; every node needs the same number (--ntasks-per-node)"
        )
    return _read(env, "SLURM_PROCID", 0), _read(env, "SLURM_LOCALID", 0), size, size // n_node


def _read_torchrun_job(env: Mapping[str, str]) -> str:
    """Return the rendezvous id, or where none was given the agent that started this process, which outlives restarts."""
    given = env["TORCHELASTIC_RUN_ID"]
    agent = Path(f"/proc/{os.getppid()}/stat")
    if given != "none" or not agent.is_file():
        return given
    started = agent.read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    return f"torchrun {os.getppid()}, started at {started}"


def _read_slurm_job(env: Mapping[str, str]) -> tuple[int, str]:
    """Return how often SLURM has requeued this job, and its number."""
    return _read(env, "SLURM_RESTART_COUNT", 0), env.get("SLURM_JOB_ID", "")


def _read(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal():
        raise UserError(f"the environment variable {name} must be a number, got {text!r}; unset it")
    return int(text)
