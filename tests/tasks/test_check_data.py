"""task=check data.path=...: exit code 0, 1 for faulty content, 2 and one line for data that cannot be read."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.runs import SMALL, error_lines, run, write_bin

pytestmark = pytest.mark.slow


def test_check_reports_faulty_content_and_unreadable_data(tmp_path: Path) -> None:
    rng, folder = np.random.default_rng(0), tmp_path / "d"
    folder.mkdir()
    for split in ("val_000000", "train_000001"):
        ids = rng.integers(0, 500, 5000)
        write_bin(folder / f"x_{split}.bin", ids)
    keys = [*SMALL, "task=check", f"data.path={folder}"]
    done = run(*keys, "hydra.run.dir=a", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "no end-of-text token in 5000 train tokens" in done.stderr
    for path in folder.iterdir():
        ids = rng.integers(0, 500, 5000)
        ids[::100] = 50256
        write_bin(path, ids)
    done = run(*keys, "model.vocab_size=50304", "hydra.run.dir=b", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "b" / "check.json").read_text())["ok"] is True
    path.write_bytes(path.read_bytes()[:-1])
    done = run(*keys, "hydra.run.dir=c", cwd=tmp_path)
    assert done.returncode == 2
    assert len(error_lines(done)) == 1
    assert "truncated, 11023 bytes where a header of 5000 tokens asks for 11024" in done.stderr
