"""Run folders written by version 0.1.0 keep working: they resume, and their checkpoints are evaluated."""

import json
import shutil
from pathlib import Path

import pytest

from tests.runs import make_shards, metrics, result, run

STORED = Path(__file__).parent / "stored_run"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_folder_of_version_0_1_0_evaluates_and_resumes(optimizer: str, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(STORED / optimizer, folder)
    make_shards(tmp_path / "shards", vocab_size=60, tokens=3000)
    before = metrics(folder)

    keys = ["task=evaluate", "run=old", "evaluation=none", "trainer=cpu", "hydra.run.dir=evaluated"]
    done = run(*keys, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "evaluated/evaluation.json").read_text())["step"] == 8
    assert len(list((folder / "evaluations").iterdir())) == 1

    done = run("resume=old", "trainer.max_steps=12", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert metrics(folder)[:8] == before
    assert [row["step"] for row in metrics(folder)] == list(range(1, 13))
    assert result(folder)["status"] == "completed"
    assert result(folder)["resumed_at"] == [8]
