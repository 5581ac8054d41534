"""One process in a run folder, from outside."""

import json
import signal
from pathlib import Path

import pytest

from tests.robust.support import LONGER, wait_for_row
from tests.runs import kill_after, make_shards, result, run, start


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


def test_a_live_run_refuses_others_and_a_dead_one_is_taken_over(shards: Path, tmp_path: Path) -> None:
    keys = [*LONGER, f"data.path={shards}", "hydra.run.dir=r"]
    process = start(*keys, cwd=tmp_path)
    wait_for_row(5, tmp_path / "r", process)
    process.send_signal(signal.SIGSTOP)
    for again in (keys, ["resume=r"]):
        done = run(*again, cwd=tmp_path)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert f"process {process.pid}" in done.stderr or "holds a run already" in done.stderr
    assert process.poll() is None
    assert kill_after(1, tmp_path / "r", process, signal.SIGKILL) == -signal.SIGKILL
    assert json.loads((tmp_path / "r/.lock").read_text())["pid"] == process.pid
    done = run("resume=r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "is taken over" in done.stderr
    assert not (tmp_path / "r/.lock").exists()


@pytest.mark.stress
def test_a_number_that_another_process_has_now_is_no_live_run(shards: Path, tmp_path: Path) -> None:
    keys = [*LONGER, "trainer.max_steps=2", f"data.path={shards}", "hydra.run.dir=r"]
    assert run(*keys, cwd=tmp_path).returncode == 0
    process = start(*keys[:-1], "hydra.run.dir=other", "trainer.max_steps=4000", cwd=tmp_path)
    wait_for_row(1, tmp_path / "other", process)
    stale = {**json.loads((tmp_path / "other/.lock").read_text()), "started": "1"}
    (tmp_path / "r/.lock").write_text(json.dumps(stale))
    done = run("resume=r", "trainer.max_steps=4", cwd=tmp_path)
    process.kill()
    process.communicate()
    assert done.returncode == 0, done.stderr
    assert result(tmp_path / "r")["steps"] == 4
