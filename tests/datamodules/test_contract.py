"""Every shipped data module, and the smallest possible one, fulfils the contract of src/datamodules/base.py."""

import functools
import json
import multiprocessing
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch

from src.datamodules.base import BatchSpec, TokenDataModule, build_data, count_micro_steps
from src.datamodules.shards.loader import TrainLoader
from src.launch.signals import STOP_SIGNALS
from tests.datamodules.counting_tokens import CountingTokens
from tests.runs import SMALL, begin, computed, error_lines, kill_after, make_shards, result, run
from tests.support import component, options

SIZES: dict[str, Any] = {"micro_batch_size": 2, "global_batch_size": 8, "workers": 0}
BLOCK_SIZE, VOCAB_SIZE = 16, 50304
Build = Callable[..., TokenDataModule]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data") / "shards", tokens=6000)


@pytest.fixture(scope="module", params=[*options("data"), "counting"])
def build(request: pytest.FixtureRequest, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Build the data module of an option in a fresh state; what would be remote is read from local shards."""
    if request.param == "counting":
        factory = functools.partial(CountingTokens, **SIZES, n_val=7)
    else:
        cache = str(tmp_path_factory.mktemp("cache"))
        keys = {**SIZES, "val_tokens": 7 * BLOCK_SIZE, "cache": cache}
        if request.param != "embedded":
            keys["path"] = str(shards)
        factory = component("data", request.param, **keys)

    def fresh(steps: int = 10, **keys: Any) -> TokenDataModule:
        spec = BatchSpec(BLOCK_SIZE, VOCAB_SIZE, 1, steps)
        data = build_data(functools.partial(factory, **keys), spec)
        data.prepare_data()
        data.setup()
        return data

    return fresh


def rows(batch: torch.Tensor) -> list[list[int]]:
    """Return the sequences of a batch as lists."""
    found: list[list[int]] = batch.flatten(0, -2).int().tolist()
    return found


def test_a_batch_holds_the_micro_steps_of_one_rank(build: Build) -> None:
    batch = build().train_batch(3, 0, 2)
    assert batch.shape == (2, 2, BLOCK_SIZE + 1)
    assert batch.dtype in (torch.uint16, torch.int32)
    assert batch.int().max() < VOCAB_SIZE


def test_the_global_batch_is_the_same_for_every_number_of_ranks(build: Build) -> None:
    data = build()
    for step in (0, 9):
        whole = rows(data.train_batch(step, 0, 1))
        for world in (2, 4):
            parts = [rows(data.train_batch(step, rank, world)) for rank in range(world)]
            assert [row for part in parts for row in part] == whole


def test_a_step_depends_on_its_number_alone(build: Build) -> None:
    forwards, again = build(), build()
    want = [rows(forwards.train_batch(step, 0, 1)) for step in range(10)]
    assert [rows(again.train_batch(step, 0, 1)) for step in reversed(range(10))] == want[::-1]
    assert len({tuple(map(tuple, batch)) for batch in want}) == 10


def test_skipped_steps_are_left_out(build: Build) -> None:
    data = build()
    want = [rows(data.train_batch(step, 0, 1)) for step in range(10)]
    data.skipped = ((2, 3), (4, 1))
    found = [rows(data.train_batch(step, 0, 1)) for step in range(6)]
    assert found == [want[i] for i in (0, 1, 5, 6, 8, 9)]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_yields_every_step(workers: int, build: Build) -> None:
    data = build(steps=4, workers=workers)
    loader = data.train_dataloader()
    assert len(loader) == 4
    assert [rows(batch) for batch in loader] == [rows(data.train_batch(step, 0, 1)) for step in range(4)]


def test_signals_to_every_process_of_a_job_end_no_worker_but_its_parent_can() -> None:
    batches = iter(TrainLoader(lambda step: torch.tensor(step), start=0, max_steps=40, workers=1))
    next(batches)
    (worker,) = multiprocessing.active_children()
    for signum in STOP_SIGNALS:
        subprocess.run(["kill", f"-{signum.value}", str(worker.pid)], check=True)
    assert len([next(batches) for _ in range(38)]) == 38
    worker.terminate()  # as multiprocessing does at exit, where it then waits for the worker
    worker.join(timeout=30)
    code = worker.exitcode
    worker.kill()
    assert code == 0


def test_a_resumed_loader_keeps_its_length_and_starts_at_its_step(build: Build) -> None:
    data = build()
    loader = TrainLoader(lambda step: data.train_batch(step, 0, 1), start=6, max_steps=10, workers=0)
    assert len(loader) == 10
    batches = list(loader)
    assert len(batches) == 4
    assert rows(batches[0]) == rows(data.train_batch(6, 0, 1))


def test_ranks_share_the_validation_windows(build: Build) -> None:
    data = build()
    assert data.val_windows.shape == (7, BLOCK_SIZE + 1)
    want = sorted(data.val_windows.astype(int).tolist())
    for world in (1, 2, 3):
        batches = [batch for rank in range(world) for batch in data.val_batches(rank, world)]
        assert max(map(len, batches)) <= 2
        assert sorted(row for batch in batches for row in rows(batch)) == want


@pytest.mark.parametrize(("rank", "world", "n_batches"), [(0, 1, 4), (0, 2, 2), (1, 2, 2), (2, 3, 1)])
def test_a_validation_loader_knows_its_number_of_batches(build: Build, rank: int, world: int, n_batches: int) -> None:
    data: Any = build()
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
    loader = data.val_dataloader()[0]
    assert loader.n_batches == len(list(loader)) == n_batches


def test_the_identity_is_json_and_follows_from_the_content(build: Build) -> None:
    identity = build().identity()
    assert len(identity["hash"]) == 64
    assert json.loads(json.dumps(build().identity())) == json.loads(json.dumps(identity))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"global_batch_size": 7}, "data.global_batch_size must be a multiple"),
        ({"micro_batch_size": 0}, "data.micro_batch_size must be at least 1, got 0"),
    ],
)
def test_sizes_out_of_bounds_are_rejected(keys: dict[str, int], message: str, build: Build) -> None:
    with pytest.raises(ValueError, match=message):
        build(**keys)


def test_an_indivisible_global_batch_names_the_nearest_one() -> None:
    assert count_micro_steps(32, 512, 2) == 8
    with pytest.raises(ValueError, match=r"= 32 \* 3, got 512; the nearest is 480"):
        count_micro_steps(32, 512, 3)


class Foreign(L.LightningDataModule):
    """A data module that knows nothing of the contract."""


@pytest.mark.parametrize("factory", [Foreign, functools.partial(Foreign), lambda spec: Foreign()])
def test_a_foreign_data_module_is_rejected_at_construction(factory: Callable[[BatchSpec], object]) -> None:
    with pytest.raises(ValueError, match=r"must be a subclass of src\.datamodules\.base\.TokenDataModule, got"):
        build_data(factory, BatchSpec(16, 512, 1, 5))


#: A data set of one's own: a YAML in a folder of one's own.
COUNTING = """
_target_: tests.datamodules.counting_tokens.CountingTokens
_partial_: true
n_val: 6
micro_batch_size: 2
global_batch_size: 4
workers: 0
"""
FOREIGN = """
_target_: tests.datamodules.test_contract.Foreign
_partial_: true
"""


def own_data(folder: Path, text: str) -> list[str]:
    """Write the YAML and return the arguments that select it."""
    (folder / "conf/data").mkdir(parents=True)
    (folder / "conf/data/own.yaml").write_text(text)
    keys = [key for key in SMALL if not key.startswith("data.")]
    return [f"--config-dir={folder / 'conf'}", *keys, "data=own", "trusted_targets=[tests]"]


@pytest.mark.slow
def test_a_data_set_of_ones_own_trains_and_resumes_without_another_edit(tmp_path: Path) -> None:
    own = own_data(tmp_path, COUNTING)
    done = run(*own, "hydra.run.dir=whole", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    identity = CountingTokens(BatchSpec(32, 512, 1, 1), **SIZES, n_val=6).identity()
    assert result(tmp_path / "whole")["data"] == identity
    kill_after(5, tmp_path / "r", begin(*own, "hydra.run.dir=r", cwd=tmp_path), signal.SIGKILL)
    done = run("resume=r", "trusted_targets=[tests]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    losses = [row["train/loss"] for row in computed(tmp_path / "whole")]
    assert losses[-1] < losses[0]
    assert computed(tmp_path / "r") == computed(tmp_path / "whole")


@pytest.mark.slow
def test_a_foreign_data_module_exits_with_2_and_one_line(tmp_path: Path) -> None:
    done = run(*own_data(tmp_path, FOREIGN), "hydra.run.dir=r", cwd=tmp_path)
    assert done.returncode == 2
    assert len(error_lines(done)) == 1
    assert "data._target_ must be a subclass of src.datamodules.base.TokenDataModule" in done.stderr
