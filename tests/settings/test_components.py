"""Classes that a configuration file may name, and stored configurations that run again."""

from pathlib import Path

import pytest

from tests.robust.support import LONGER
from tests.runs import SMALL, computed, make_shards, result, run, same_weights


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("whole")
    make_shards(cwd / "shards")
    done = run(*LONGER, f"data.path={cwd}/shards", "hydra.run.dir=r", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "r"


def refused(tmp_path: Path, *overrides: str) -> str:
    done = run(*SMALL, *overrides, "hydra.run.dir=r", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert not (tmp_path / "ran").exists()
    return done.stderr


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["residual._target_=subprocess.Popen", "+residual.args=[touch,ran]"], "trusted_targets=[subprocess]"),
        (["norm._target_=torch.hub.load", "+norm.source=local"], "not a class of a component"),
        (["residual._target_=src.files.write_atomic"], "is not a component of this project"),
        (["+residual._args_=[ran,x]"], "_args_ is not used here"),
        (["+data.path={_target_:subprocess.Popen,args:[touch,ran]}"], "trusted_targets=[subprocess]"),
        (["task=evaluate", "checkpoint=http://127.0.0.1:9/x.ckpt"], "no checkpoint there"),
        (["resume=http://127.0.0.1:9/run"], "is not a run folder"),
        (["task._target_=os.system"], "is not a task of this project"),
    ],
)
def test_a_target_that_is_no_component_is_rejected(overrides: list[str], words: str, tmp_path: Path) -> None:
    assert words in refused(tmp_path, *overrides)


def test_a_stored_configuration_cannot_declare_trust(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("open('ran', 'w')")
    stored = (whole / "config.yaml").read_text()
    assert "trusted_targets: []" in stored
    bad = tmp_path / "bad"
    bad.mkdir()
    changed = stored.replace("src.residual.vanilla.Vanilla", "subprocess.Popen")
    (bad / "config.yaml").write_text(changed.replace("trusted_targets: []", "trusted_targets: [subprocess]"))
    done = run(f"from_run={bad}", cwd=tmp_path)
    assert done.returncode == 2
    assert "trusted_targets=[subprocess]" in done.stderr
    (bad / "config.yaml").write_text(
        stored + "hydra:\n  callbacks:\n    x:\n      _target_: subprocess.Popen\n"
    )
    done = run(f"from_run={bad}", cwd=tmp_path)
    assert done.returncode == 2
    assert "contains hydra, which no run writes" in done.stderr


def test_a_stored_configuration_runs_again_with_the_same_numbers(whole: Path, tmp_path: Path) -> None:
    done = run(f"from_run={whole}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (again,) = [path.parent for path in tmp_path.glob("multirun/*/*/result.json")]
    assert computed(again) == computed(whole)
    assert same_weights(again, whole)
    assert result(again)["config_hash"] == result(whole)["config_hash"]


def test_resume_auto_starts_continues_and_recognizes_a_completed_run(whole: Path, tmp_path: Path) -> None:
    keys = [*LONGER, f"data.path={whole.parent}/shards", "name=auto", "resume=auto"]
    stopped = run(*keys, "trainer.max_time=00:00:00:00", cwd=tmp_path)
    assert stopped.returncode == 143, stopped.stderr
    for words in ("resuming from step 1", "nothing to do"):
        done = run(*keys, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert words in done.stderr
    (folder,) = [path.parent for path in tmp_path.glob("multirun/*/*/result.json")]
    assert computed(folder) == computed(whole)
    assert same_weights(folder, whole)
    done = run(*LONGER, "resume=auto", cwd=tmp_path)
    assert done.returncode == 2
    assert "needs name=" in done.stderr
