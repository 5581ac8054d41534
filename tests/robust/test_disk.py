"""Full disks, folders that cannot be written to or vanish, figures that fail."""

import shutil
from pathlib import Path

import pytest

from tests.robust.support import LONGER, saved_step, wait_for_row
from tests.runs import ROOT, computed, make_shards, result, run, start

FAULTS = ROOT / "tests" / "robust" / "faults"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


def test_a_full_disk_ends_the_run_loudly_and_leaves_the_checkpoints_whole(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [*LONGER, "trainer.max_steps=28", f"data.path={shards}"]
    whole = run(*keys, "hydra.run.dir=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    monkeypatch.setenv("FAULT_FILES", r"\.ckpt\.part")
    monkeypatch.setenv("FAULT_AFTER", "3")
    done = run(*keys, "hydra.run.dir=r", cwd=tmp_path)
    assert done.returncode == 1
    assert "cannot be written: [Errno 28] No space left on device" in done.stderr
    assert result(tmp_path / "r")["status"] == "failed"
    assert saved_step(tmp_path / "r/checkpoints/last.ckpt") in (6, 8)
    assert not list(tmp_path.glob("r/checkpoints/.*.part"))
    monkeypatch.delenv("FAULT_FILES")
    done = run("resume=r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert computed(tmp_path / "r") == computed(tmp_path / "whole")


@pytest.mark.stress
def test_a_result_that_cannot_be_written_fails_loudly(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    monkeypatch.setenv("FAULT_FILES", r"result\.json")
    monkeypatch.setenv("FAULT_AFTER", "3")
    done = run(*LONGER, f"data.path={shards}", "hydra.run.dir=r", cwd=tmp_path)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert result(tmp_path / "r")["status"] == "running"  # the last that could be written


def test_figures_and_dashboards_fail_with_one_warning_each(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    monkeypatch.setenv("FAULT_FILES", r"tensorboard|/figures/|stream\.jsonl|/csv/")
    monkeypatch.setenv("FAULT_ERRNO", "EROFS")
    keys = [*LONGER, "trainer.stream_pictures=true", "trainer.max_steps=14", "logger=csv"]
    done = run(*keys, f"data.path={shards}", "hydra.run.dir=r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert result(tmp_path / "r")["status"] == "completed"
    assert done.stderr.count("the run continues") == len(
        {line.partition(" failed and")[0] for line in done.stderr.splitlines() if "the run continues" in line}
    )
    for what in ("TensorBoardLogger", "stream.jsonl", "figures of the stream"):
        assert f"{what} failed and may be incomplete" in done.stderr


def test_too_little_free_space_is_an_error_before_the_run(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    monkeypatch.setenv("FAULT_FREE", str(10 * 2**20))
    done = run(*LONGER, f"data.path={shards}", "hydra.run.dir=r", cwd=tmp_path)
    assert done.returncode == 2
    assert "10.0 MiB of free space" in done.stderr
    assert not (tmp_path / "r/result.json").exists()


def test_a_folder_that_cannot_be_written_to_is_an_error(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    monkeypatch.setenv("FAULT_FILES", "/r/")
    monkeypatch.setenv("FAULT_ERRNO", "EROFS")
    done = run(*LONGER, f"data.path={shards}", "hydra.run.dir=r", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "cannot be written to" in done.stderr


@pytest.mark.stress
def test_a_folder_that_vanishes_ends_the_run_loudly(shards: Path, tmp_path: Path) -> None:
    keys = [*LONGER, "trainer.max_steps=100000", f"data.path={shards}", "hydra.run.dir=r"]
    process = start(*keys, cwd=tmp_path)
    wait_for_row(5, tmp_path / "r", process)
    shutil.move(tmp_path / "r", tmp_path / "gone")
    _, words = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "failed:" in words
    assert saved_step(tmp_path / "gone/checkpoints/last.ckpt") >= 4
