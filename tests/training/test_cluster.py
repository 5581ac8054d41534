"""Lightning's environment of launched ranks, and the agreement of ranks before the first step."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from src.errors import UserError
from src.launch.world import World
from src.training import cluster
from src.training.cluster import RankAgreement, WorldEnvironment, build_environment

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


def agree(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, others: list[dict[str, str]], *, sees: bool = True) -> None:
    """Run the agreement as rank 0 of a group whose other ranks answer `others`."""
    own = {"code": "a", "config": "b", "data": "c"}

    def gather(found: list[Any], value: Any) -> None:
        found[:] = [value, *({**own, "folder": "", **other} if isinstance(value, dict) else sees for other in others)]

    group = SimpleNamespace(
        is_initialized=lambda: True,
        get_world_size=lambda: 1 + len(others),
        get_rank=lambda: 0,
        all_gather_object=gather,
        broadcast_object_list=lambda values: None,
    )
    monkeypatch.setattr(cluster, "distributed", group)
    trainer = cast(Any, SimpleNamespace(world_size=1 + len(others)))
    RankAgreement(2, own, tmp_path, timeout_s=0.1).on_fit_start(trainer, cast(Any, torch.nn.Identity()))


def test_equal_ranks_agree_and_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    agree(monkeypatch, tmp_path, [{}])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["code", "config", "data"])
def test_a_rank_with_something_else_is_named(key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    with pytest.raises(UserError, match=rf"rank 1 has other {key} than rank 0; "):
        agree(monkeypatch, tmp_path, [{key: "z"}])


def test_a_group_of_another_size_than_recorded_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    with pytest.raises(RuntimeError, match="the process group has 3 ranks, the record 2"):
        agree(monkeypatch, tmp_path, [{}, {}])


def test_a_run_folder_that_another_node_does_not_see_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    with pytest.raises(
        UserError, match=r"is not shared between the nodes: rank 1 does not see it; give hydra\.run\.dir"
    ):
        agree(monkeypatch, tmp_path, [{}], sees=False)
