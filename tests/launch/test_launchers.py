"""Runs whose ranks torchrun starts, and runs beside the variables that a launcher left behind."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.agents import children_of, start_agent, workers_of
from tests.faulty import faulty
from tests.runs import ROOT, SMALL, computed, error_lines, free_port, make_shards, metrics, result, run

#: A batch script's variables under SLURM: one task, whose process starts the ranks itself.
BATCH_SCRIPT = {"SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
LEFT_OVER = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def one_rank(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run to the end in one process, for comparison."""
    folder = tmp_path_factory.mktemp("one")
    done = run(*SMALL, f"data.path={shards}", "hydra.run.dir=r", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "r"


def finish(process: subprocess.Popen[str], timeout: float = 240) -> str:
    """Wait for an agent; kill its session where it does not end. Returns its standard error."""
    try:
        return process.communicate(timeout=timeout)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for_step(step: int, folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() or len(metrics(folder)) < step:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_same_losses(folder: Path, other: Path) -> None:
    """Compare every step's loss, each step once; another number of ranks sums in another order."""
    found, expected = computed(folder), computed(other)
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for a, b in zip(found, expected, strict=True):
        assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-5)


def test_torchruns_ranks_train_together_without_a_key(shards: Path, one_rank: Path, tmp_path: Path) -> None:
    agent = start_agent(
        "--standalone",
        "--nproc-per-node=2",
        str(ROOT / "run.py"),
        *SMALL,
        f"data.path={shards}",
        "hydra.run.dir=r",
        cwd=tmp_path,
    )
    words = finish(agent)
    assert agent.returncode == 0, words
    assert result(tmp_path / "r")["world_size"] == 2
    assert_same_losses(tmp_path / "r", one_rank)


@pytest.mark.stress  # tests/settings/test_trainer.py has the sentences
@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("trainer.devices=3", "trainer.devices must be 2, the processes per node that torchrun started, got 3"),
        ("trainer.num_nodes=2", "trainer.num_nodes must be 1, the nodes that torchrun started, got 2"),
    ],
)
def test_other_ranks_than_torchruns_are_one_sentence(key: str, words: str, shards: Path, tmp_path: Path) -> None:
    agent = start_agent(
        "--standalone", "--nproc-per-node=2", str(ROOT / "run.py"), *SMALL, key, f"data.path={shards}", cwd=tmp_path
    )
    assert words in finish(agent)
    assert agent.returncode != 0


def test_several_nodes_without_a_launcher_are_one_sentence(tmp_path: Path) -> None:
    done = run(*SMALL, "trainer.num_nodes=2", cwd=tmp_path)
    assert done.returncode == 2
    assert len(error_lines(done)) == 1
    assert (
        "trainer.num_nodes must be 1 without a launcher, got 2; start every node with torchrun or srun" in done.stderr
    )


@pytest.mark.stress  # tests/launch/test_world.py reads the same variables
@pytest.mark.parametrize("left_over", [LEFT_OVER, BATCH_SCRIPT], ids=["variables", "batch script"])
def test_left_over_variables_do_not_change_the_world(
    left_over: dict[str, str],
    shards: Path,
    one_rank: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for name, value in {**left_over, "MASTER_PORT": str(taken.getsockname()[1])}.items():
            monkeypatch.setenv(name, value)
        done = run(*SMALL, "trainer.devices=2", f"data.path={shards}", "hydra.run.dir=r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert result(tmp_path / "r")["world_size"] == 2
    assert_same_losses(tmp_path / "r", one_rank)


@pytest.mark.stress
def test_a_killed_worker_is_restarted_and_resumes(shards: Path, one_rank: Path, tmp_path: Path) -> None:
    keys = [*SMALL, "trainer.max_steps=12", f"data.path={shards}"]
    slow = ["trainer.checkpoint_every_steps=2", "safety.rank_timeout_s=120"]
    agent = start_agent(
        "--standalone",
        "--nproc-per-node=2",
        "--max-restarts=2",
        str(ROOT / "run.py"),
        *keys,
        *slow,
        "name=again",
        cwd=tmp_path,
    )
    folders: list[Path] = []
    while not folders:
        assert agent.poll() is None, agent.communicate()[1]
        folders = [path.parent for path in tmp_path.glob("multirun/*/*/config.yaml")]
        time.sleep(0.02)
    wait_for_step(4, folders[0], agent)
    os.kill(workers_of(tmp_path)[-1], signal.SIGKILL)
    words = finish(agent)
    assert agent.returncode == 0, words
    assert_same_losses(folders[0], one_rank)
    resumed = result(folders[0])["resumed_at"]
    assert len(resumed) == 1
    assert resumed[0] >= 2
    assert [path.parent for path in tmp_path.glob("multirun/*/*/config.yaml")] == folders


@pytest.mark.stress
def test_the_workers_of_a_killed_agent_save_and_end(shards: Path, tmp_path: Path) -> None:
    keys = [*SMALL, "trainer.max_steps=100000", "trainer.val_every_steps=50000", "trainer.checkpoint_every_steps=50000"]
    agent = start_agent(
        "--standalone",
        "--nproc-per-node=2",
        str(ROOT / "run.py"),
        *keys,
        f"data.path={shards}",
        "hydra.run.dir=r",
        cwd=tmp_path,
    )
    wait_for_step(5, tmp_path / "r", agent)
    os.kill(agent.pid, signal.SIGKILL)
    deadline = time.monotonic() + 120
    while workers_of(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    agent.communicate()
    assert result(tmp_path / "r")["status"] == "interrupted"
    assert (tmp_path / "r/checkpoints/last.ckpt").exists()


@pytest.mark.stress
def test_a_node_joins_late_loses_a_worker_and_is_lost_without_a_step_or_a_wrong_loss(
    shards: Path, tmp_path: Path
) -> None:
    """Two agents with two workers each; `kill -9` of a worker, then of the second agent; the first completes the run."""
    (tmp_path / "slow").touch()
    slow = [*faulty("slow", 0, tmp_path, lasts=10**6), "data.micro_batch_size=1", "trainer.checkpoint_every_steps=5"]
    keys = [*SMALL, *slow, "trainer.max_steps=200"]
    options = [
        "--nnodes=1:2",
        "--nproc-per-node=2",
        "--max-restarts=3",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{free_port()}",
        "--rdzv-id=elastic",
    ]
    data = [f"data.path={shards}", "safety.rank_timeout_s=120"]
    arguments = [*options, str(ROOT / "run.py"), *keys, *data, "hydra.run.dir=r"]
    folder = tmp_path / "r"
    first = start_agent(*arguments, cwd=tmp_path)
    wait_for_resume(0, 2, folder, first)
    second = start_agent(*arguments, cwd=tmp_path)
    wait_for_resume(1, 4, folder, first)
    os.kill(children_of(second.pid)[-1], signal.SIGKILL)
    wait_for_resume(2, 4, folder, first)
    os.kill(second.pid, signal.SIGKILL)
    wait_for_resume(3, 2, folder, first)
    (tmp_path / "slow").unlink()
    words = finish(first)
    second.communicate()
    assert first.returncode == 0, words
    assert result(folder)["world_size"] == 2
    done = run(*keys, *data, "hydra.run.dir=whole", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_losses(folder, tmp_path / "whole")


def wait_for_resume(times: int, ranks: int, folder: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a run that has resumed so many times on so many ranks has made six steps more."""
    deadline = time.monotonic() + 600
    stated: dict[str, Any] = {}
    while stated.get("world_size") != ranks or len(stated["resumed_at"]) < times:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, stated
        stated = result(folder) if (folder / "result.json").exists() else {}
        time.sleep(0.1)
    wait_for_step(max([0, *stated["resumed_at"]]) + 6, folder, process)
