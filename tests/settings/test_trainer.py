"""Section `trainer`: threads, time limits and devices of this machine."""

import pytest
import torch

from src.errors import UserError
from src.launch.world import World
from src.settings import trainer as trainer_settings
from src.settings.trainer import max_seconds
from tests.settings.test_read import settled


@pytest.mark.parametrize(("asked", "ranks", "threads"), [("3", 2, 3), ("", 2, 4), ("no", 1, 8), ("0", 1, 8)])
def test_threads_come_from_the_environment_or_the_cores_per_rank(
    asked: str, ranks: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    settings = settled("trainer=cpu", f"trainer.devices={ranks}")
    assert settings.trainer.threads == threads


def test_max_time_is_days_hours_minutes_and_seconds() -> None:
    assert max_seconds(None) is None
    assert max_seconds("01:02:03:04") == 86_400 + 2 * 3600 + 3 * 60 + 4
    for wrong in ("11:55:00", "00:11:55", "1d"):
        with pytest.raises(ValueError, match=r"trainer\.max_time must be days:hours:minutes:seconds"):
            max_seconds(wrong)


def test_auto_takes_the_gpus_and_bf16_that_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    found = settled().trainer
    assert (found.accelerator, found.devices, found.strategy) == ("gpu", 2, "ddp")
    assert (found.precision, found.compile, found.onednn) == ("bf16-mixed", True, False)
    with pytest.raises(ValueError, match=r"trainer\.devices must be at most 2, the GPUs that this process sees, got 3"):
        settled("trainer.devices=3")


def test_auto_takes_what_a_launcher_started(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World("torchrun", rank=1, size=8, local_size=4)
    monkeypatch.setattr(trainer_settings, "read_world", lambda: world)
    found = settled("trainer=cpu").trainer
    assert (found.devices, found.num_nodes, found.world_size, found.strategy) == (4, 2, 8, "ddp")
    for key in ("devices=8", "num_nodes=1"):
        with pytest.raises(ValueError, match=rf"trainer\.{key.partition('=')[0]} must be \d, the .* torchrun started"):
            settled("trainer=cpu", f"trainer.{key}")
    with pytest.raises(ValueError, match=r"trainer\.restarts must be 0 under torchrun, .* got 2"):
        settled("trainer=cpu", "trainer.restarts=2")


def test_a_process_alone_has_one_node() -> None:
    found = settled("trainer=cpu", "trainer.devices=2").trainer
    assert (found.num_nodes, found.world_size) == (1, 2)
    with pytest.raises(ValueError, match=r"trainer\.num_nodes must be 1 without a launcher, got 2"):
        settled("trainer=cpu", "trainer.num_nodes=2")


def test_kept_steps_are_a_list_within_the_run_or_the_powers_of_two() -> None:
    def kept(*overrides: str) -> list[int]:
        return settled("trainer=cpu", "trainer.max_steps=64", *overrides).trainer.kept_steps

    assert kept() == []
    assert kept("trainer.keep_steps=[64,3,3]") == [3, 64]
    assert kept("trainer.keep_steps=powers_of_two") == [1, 2, 4, 8, 16, 32, 64]
    assert kept("trainer.keep_steps=powers_of_two", "trainer.max_steps=63")[-1] == 32
    with pytest.raises(ValueError, match=r"trainer\.keep_steps must be <= trainer\.max_steps=64, got 65"):
        kept("trainer.keep_steps=[1,65]")
    with pytest.raises(ValueError, match=r"trainer\.keep_steps must be powers_of_two, list\[int >= 1.*got \[0\]"):
        kept("trainer.keep_steps=[0]")


def test_debug_repeats_one_batch_and_wrong_combinations_are_one_sentence_each() -> None:
    found = settled("experiment=debug", "trainer=cpu").trainer
    assert (found.overfit_batches, found.detect_anomaly, found.compile) == (1, True, False)
    for keys, sentence in (
        (["trainer.compile=true"], r"trainer\.detect_anomaly=true needs trainer\.compile=false"),
        (["trainer.overfit_batches=151"], r"trainer\.overfit_batches must be <= trainer\.max_steps=150, got 151"),
        (["guard=rollback"], r"trainer\.overfit_batches=1 needs guard=stop"),
    ):
        with pytest.raises(UserError, match=sentence):
            settled("experiment=debug", "trainer=cpu", *keys)


def test_auto_compiles_nothing_where_anomalies_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert settled("trainer.compile=auto").trainer.compile
    assert not settled("trainer.compile=auto", "trainer.detect_anomaly=true").trainer.compile
