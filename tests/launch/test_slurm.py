"""Batch scripts of docs/scaling-out.md on a real SLURM of two virtual nodes."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.runs import SMALL, computed, make_shards, metrics, result, run
from tests.slurm_cluster import SCRIPTS, Cluster, documented_script, missing_programs

STEPS = 400
KEYS = [
    *SMALL,
    *(f"trainer.max_steps={STEPS}", "trainer.val_every_steps=200", "trainer.checkpoint_every_steps=100"),
    *("schedule=constant", "optimizer.warmup_steps=10"),  # as many steps as there are do not change the first ones
]


def needs_slurm(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that starts a cluster."""
    missing = ", ".join(missing_programs())
    skipped = pytest.mark.skipif(bool(missing), reason=f"Slurm is not installed (slurm-wlm, munge): no {missing}")
    return pytest.mark.slurm(pytest.mark.slow(skipped(test)))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as started:
        yield started


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def one_rank(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run to the end in one process, for comparison."""
    folder = tmp_path_factory.mktemp("one")
    done = run(*KEYS, f"data.path={shards}", "hydra.run.dir=r", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "r"


def assert_same_losses(folder: Path, one_rank: Path, steps: int) -> None:
    """Compare the losses of the first steps with those of one process, which sums in another order."""
    found = [row["train/loss"] for row in computed(folder)[:steps]]
    assert found == pytest.approx([row["train/loss"] for row in computed(one_rank)[:steps]], rel=1e-4)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_documented_script_is_one_of_bash(script: str) -> None:
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "python run.py " in script


@needs_slurm
def test_two_nodes_save_on_a_signal_and_continue_after_the_requeue(
    cluster: Cluster, shards: Path, one_rank: Path, tmp_path: Path
) -> None:
    script = documented_script(*KEYS, f"data.path={shards}", "hydra.run.dir=r")
    job = cluster.submit(script, tmp_path, "--ntasks-per-node=1", "--cpus-per-task=1", "--time=60")
    cluster.wait_for_step(5, tmp_path / "r")
    cluster.call("scancel", "--signal=TERM", job)  # as SLURM does for --signal
    output = cluster.wait(job, "COMPLETED", output=tmp_path)
    assert "Restarts=1" in output
    record = result(tmp_path / "r")
    assert (record["status"], record["world_size"], len(record["resumed_at"])) == ("completed", 2, 1)
    assert 5 <= record["resumed_at"][0] < STEPS
    assert [row["step"] for row in metrics(tmp_path / "r")] == list(range(1, STEPS + 1))
    assert_same_losses(tmp_path / "r", one_rank, STEPS)


@needs_slurm
def test_the_jobs_of_an_array_start_their_own_ranks_and_are_not_requeued_when_they_are_cancelled(
    cluster: Cluster, shards: Path, one_rank: Path, tmp_path: Path
) -> None:
    own = ["seed=$SLURM_ARRAY_TASK_ID", "hydra.run.dir=r$SLURM_ARRAY_TASK_ID", "trainer.max_steps=100000"]
    script = documented_script(*KEYS, f"data.path={shards}", "trainer.devices=2", *own)
    options = ["--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=2", "--time=60", "--array=1-2"]
    job = cluster.submit(script, tmp_path, *options)
    for folder in (tmp_path / "r1", tmp_path / "r2"):
        cluster.wait_for_step(5, folder)
    cluster.call("scancel", job)
    output = cluster.wait(job, "CANCELLED", output=tmp_path)
    assert "Restarts=0" in output
    for folder in (tmp_path / "r1", tmp_path / "r2"):
        record = result(folder)
        assert (record["status"], record["reason"]) == ("interrupted", "stopped by SIGTERM")
        assert (record["world_size"], record["steps"]) == (2, len(metrics(folder)))
        assert (folder / "checkpoints/last.ckpt").exists()
    assert_same_losses(tmp_path / "r1", one_rank, 5)
    assert computed(tmp_path / "r1")[:5] != computed(tmp_path / "r2")[:5]
