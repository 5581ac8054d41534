"""Lightning's environment of launched ranks, and the agreement of ranks before the first step."""

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from torch import distributed

from src.errors import UserError
from src.launch.world import World
from src.training import cluster
from src.training.cluster import WorldEnvironment, build_environment, explain_rendezvous
from tests.launch.test_launchers import free_port
from tests.runs import PREPARED
from tests.training import agreeing_rank

SLURM = World("slurm", rank=3, local_rank=1, size=4, local_size=2, job="1234567")


def test_the_environment_states_what_the_launcher_started(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[07-08]")
    environment = WorldEnvironment(SLURM)
    assert (environment.world_size(), environment.global_rank()) == (4, 3)
    assert (environment.local_rank(), environment.node_rank()) == (1, 1)
    assert (environment.main_address, environment.main_port) == ("node07", 15000 + 4567)
    assert environment.creates_processes_externally


def test_lightning_may_not_count_other_ranks() -> None:
    environment = WorldEnvironment(SLURM)
    environment.set_world_size(4)
    environment.set_global_rank(3)
    with pytest.raises(RuntimeError, match="Lightning counts 2 ranks, slurm started 4"):
        environment.set_world_size(2)
    with pytest.raises(RuntimeError, match="Lightning counts this process as rank 1, it is rank 3"):
        environment.set_global_rank(1)


def test_without_a_launcher_lightnings_own_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "read_world", World)
    assert type(build_environment()).__name__ == "LightningEnvironment"
    monkeypatch.setattr(cluster, "read_world", lambda: SLURM)
    assert isinstance(build_environment(), WorldEnvironment)


def test_ranks_that_differ_are_named_by_every_rank(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    ranks = []
    for rank in ("0", "1"):
        (tmp_path / rank / "run").mkdir(parents=True)
        ranks.append(PREPARED.begin(str(Path(agreeing_rank.__file__)), rank, cwd=tmp_path / rank))
    printed = [rank.communicate(timeout=120) for rank in ranks]
    *lines, rollback = printed[0][0].splitlines()
    said = dict(zip(agreeing_rank.CASES, lines, strict=True))
    assert rollback == "0/run/checkpoints/step00000004.ckpt"
    assert printed[1][0] == printed[0][0], printed
    assert said == {
        "equal": "",
        "code": "UserError: rank 1 has other code than rank 0; check out the same commit on every node",
        "config": "UserError: rank 1 has other config than rank 0; give every rank the same command line",
        "data": "UserError: rank 1 has other data than rank 0; give every node the same data",
        "first step": "UserError: rank 1 has other first step than rank 0; give resume=<a folder that every node sees>",
        "rollbacks": "UserError: rank 1 has other rollbacks than rank 0; wait until every node sees the result.json of "
        "rank 0, then start the job again",
        "folder": "UserError: run is not shared between the nodes: rank 1 does not see it; "
        "give hydra.run.dir=<folder on a shared file system>",
        "size": "RuntimeError: the process group has 2 ranks, the record 3; start the job again",
    }
    assert [path.name for path in tmp_path.rglob("run/*") if path.name != "store"] == [
        "checkpoints"
    ]  # nothing else is left behind


def test_a_rendezvous_that_times_out_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    words = rf"rank {{}} did not meet all 2 ranks at 127\.0\.0\.1:{port} within 1 s \(safety\.rank_timeout_s\); start"
    for rank in (0, 1):  # the first waits for the second, the second finds nobody
        trainer = cast(Any, SimpleNamespace(global_rank=rank, world_size=2))
        with pytest.raises(UserError, match=words.format(rank)), explain_rendezvous(trainer, 1.0):
            distributed.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=1))
