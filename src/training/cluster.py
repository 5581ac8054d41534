"""Lightning's view of the ranks that a launcher started, and the agreement of ranks before the first step."""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from torch import distributed

from src.errors import UserError
from src.launch.world import World, read_world

#: What ranks compare, in the order in which a difference is reported, and what to do about it.
COMPARED = {
    "code": "check out the same commit on every node",
    "config": "give every rank the same command line",
    "data": "give every node the same data",
    "first step": "give resume=<a folder that every node sees>",
    "rollbacks": "wait until every node sees the result.json of rank 0, then start the job again",
}


class WorldEnvironment(ClusterEnvironment):
    """Cluster environment of ranks that torchrun, srun or another launcher started; it reads `World` only.

    Lightning's own detection also takes variables that a shell holds from something else, and SLURM's job for its step.
    """

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        if self.world.launcher == "slurm":
            nodes = os.environ.get("SLURM_STEP_NODELIST", "127.0.0.1")
            return os.environ.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(nodes)
        return os.environ.get("MASTER_ADDR", "127.0.0.1")

    @property
    def main_port(self) -> int:
        if "MASTER_PORT" in os.environ:
            return int(os.environ["MASTER_PORT"])
        # The same port on every node: derived from the job, as Lightning does.
        return 15000 + int(self.world.job[-4:]) if self.world.job.isdecimal() else 29500

    @staticmethod
    def detect() -> bool:
        return read_world().is_launched

    def world_size(self) -> int:
        return self.world.size

    def set_world_size(self, size: int) -> None:
        if size != self.world.size:
            raise RuntimeError(f"Lightning counts {size} ranks, {self.world.launcher} started {self.world.size}")

    def global_rank(self) -> int:
        return self.world.rank

    def set_global_rank(self, rank: int) -> None:
        if rank != self.world.rank:
            raise RuntimeError(f"Lightning counts this process as rank {rank}, it is rank {self.world.rank}")

    def local_rank(self) -> int:
        return self.world.local_rank

    def node_rank(self) -> int:
        return self.world.rank // self.world.local_size


def build_environment() -> ClusterEnvironment:
    """Return the environment for Lightning: of a launcher, or of ranks that this process starts itself."""
    world = read_world()
    return WorldEnvironment(world) if world.is_launched else LightningEnvironment()


@contextmanager
def explain_rendezvous(trainer: L.Trainer, timeout_s: float) -> Iterator[None]:
    """Turn the error of a process group that was not formed in time into one of the user.

    Raises:
        UserError: not all ranks came to the address of rank 0.
    """
    try:
        yield
    except (distributed.DistStoreError, distributed.DistNetworkError) as error:
        if distributed.is_initialized():
            raise
        environment = build_environment()
        raise UserError(
            f"rank {trainer.global_rank} did not meet all {trainer.world_size} ranks at {environment.main_address}:"
            f"{environment.main_port} within {timeout_s:g} s (safety.rank_timeout_s); start every rank, and set "
            "MASTER_ADDR and MASTER_PORT to a free port of rank 0's node that all nodes reach"
        ) from error


class RankAgreement(L.Callback):
    """Check at the start of a training that the process group is the one that is recorded and that its ranks agree.

    Args:
        world_size: the recorded number of ranks.
        identity: what has to be equal on all ranks, by the keys of `COMPARED`.
        folder: run folder; only rank 0's counts.
        timeout_s: seconds for a file of rank 0 to appear on other nodes.
    """

    def __init__(self, world_size: int, identity: dict[str, str], folder: Path, timeout_s: float) -> None:
        self.world_size, self.identity, self.folder, self.timeout_s = world_size, identity, folder, timeout_s

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Compare over all ranks, before the strategy wraps the model, which must be the same on all of them.

        Raises:
            RuntimeError: the group has another number of ranks than is recorded.
            UserError: a rank differs, or the run folder is not shared.
        """
        size = distributed.get_world_size() if distributed.is_initialized() else 1
        if not size == trainer.world_size == self.world_size:
            raise RuntimeError(f"the process group has {size} ranks, the record {self.world_size}; start the job again")
        if size == 1:
            return
        own = {**self.identity, "folder": str(self.folder)}
        found: list[dict[str, str]] = [{} for _ in range(size)]
        distributed.all_gather_object(found, own)
        for key, hint in COMPARED.items():
            odd = [str(rank) for rank, other in enumerate(found) if other[key] != found[0][key]]
            if odd:
                raise UserError(f"rank {', '.join(odd)} has other {key} than rank 0; {hint}")
        self._check_shared(Path(found[0]["folder"]))

    def _check_shared(self, folder: Path) -> None:
        """Check that every rank sees a file that rank 0 writes into the run folder."""
        name = [secrets.token_hex(8)]
        distributed.broadcast_object_list(name)
        path = folder / f".shared-{name[0]}"
        if distributed.get_rank() == 0:
            path.touch()
        deadline = time.monotonic() + self.timeout_s / 2
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        seen: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(seen, path.exists())
        if distributed.get_rank() == 0:
            path.unlink(missing_ok=True)
        if not all(seen):
            missing = ", ".join(str(rank) for rank, ok in enumerate(seen) if not ok)
            raise UserError(
                f"{folder} is not shared between the nodes: rank {missing} does not see it; "
                "give hydra.run.dir=<folder on a shared file system>"
            )
