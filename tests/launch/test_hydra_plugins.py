"""Sweeps through launchers and sweepers from plugins: no job is lost, and failed jobs are reported."""

import importlib.util
import os
import signal
import time
from pathlib import Path

import pytest

from src.errors import UserError
from src.launch.hydra_plugins import SUPPORTED
from tests.faulty import faulty
from tests.runs import SMALL, error_lines, make_shards, result, run, start

QUICK = [*SMALL, "trainer.max_steps=4", "samples.tokens=0"]


def needs(module: str) -> pytest.MarkDecorator:
    try:
        found = importlib.util.find_spec(f"hydra_plugins.{module}") is not None
    except ModuleNotFoundError:
        found = False
    return pytest.mark.skipif(not found, reason=f"needs the optional package {module} (pip install '.[sweeps]')")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param("joblib", marks=needs("hydra_joblib_launcher")),
        pytest.param("submitit_local", marks=needs("hydra_submitit_launcher")),
        pytest.param("ray", marks=needs("hydra_ray_launcher")),
    ],
)
def test_a_failing_job_leaves_its_record_and_the_others_run(launcher: str, shards: Path, tmp_path: Path) -> None:
    fault = [a for a in faulty("none", 2, tmp_path, times=9) if not a.startswith("+residual.fault=")]
    sweep = ["-m", f"hydra/launcher={launcher}", "hydra.sweep.dir=s", "+residual.fault=none,raise,poison"]
    if launcher == "joblib":
        sweep.append("hydra.launcher.n_jobs=2")
    if launcher == "ray":
        sweep += ["+hydra.launcher.ray.init.num_cpus=2", "+hydra.launcher.ray.init.include_dashboard=false"]
    done = run(*sweep, *QUICK, *fault, "name=x", f"data.path={shards}", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "a job did not complete: failed: planted error" in done.stderr
    stated = [result(tmp_path / f"s/{number}-x")["status"] for number in range(3)]
    assert stated == ["completed", "failed", "diverged"]


@pytest.mark.slow
@needs("hydra_optuna_sweeper")
def test_a_diverging_trial_fails_and_the_search_continues(shards: Path, tmp_path: Path) -> None:
    fault = [a for a in faulty("none", 2, tmp_path, times=9) if not a.startswith("+residual.fault=")]
    keys = [*QUICK, *fault, f"data.path={shards}", "name=x", "hydra.sweep.dir=s"]
    search = ["-m", "hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "+residual.fault=choice(none,poison)"]
    done = run(*search, *keys, "hydra.sweeper.n_jobs=1", cwd=tmp_path)
    assert done.returncode == 1, done.stderr  # one of them did not complete
    stated = {result(folder)["status"] for folder in (tmp_path / "s").glob("*-x")}
    assert stated == {"completed", "diverged"}
    assert "best_params" in (tmp_path / "s/optimization_results.yaml").read_text()


@pytest.mark.stress
@needs("hydra_joblib_launcher")
def test_a_killed_sweep_leaves_no_process_and_is_finished_by_running_it_again(shards: Path, tmp_path: Path) -> None:
    keys = ["-m", *QUICK, "trainer.max_steps=200", f"data.path={shards}", "name=x", "hydra.sweep.dir=s"]
    sweep = [*keys, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1,2,3"]
    process = start(*sweep, cwd=tmp_path)
    while process.poll() is None and not list(tmp_path.glob("s/*/checkpoints/last.ckpt")):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 143
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and working_in(tmp_path):
        time.sleep(0.2)
    assert working_in(tmp_path) == []
    done = run(*sweep, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [result(tmp_path / f"s/{number}-x")["steps"] for number in range(3)] == [200, 200, 200]


def working_in(folder: Path) -> list[str]:
    """Processes whose working directory is the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.readlink(entry / "cwd") == str(folder):
                found.append(entry.name)
        except OSError:
            continue
    return found


@pytest.mark.parametrize("argument", ["hydra/launcher=rq", "hydra/sweeper=ax"])
def test_an_unsupported_plugin_is_reported_in_one_line(argument: str, tmp_path: Path) -> None:
    done = run("-m", argument, "seed=1,2", cwd=tmp_path)
    assert done.returncode == 2
    assert error_lines(done) == [
        f"error: {argument} is not supported; give one of {', '.join(SUPPORTED[argument[: argument.index('=')]])}"
    ]


def test_a_missing_package_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from src.launch import hydra_plugins as launchers

    monkeypatch.setitem(SUPPORTED["hydra/launcher"], "joblib", ("hydra-joblib-launcher", "hydra_plugins.gone"))
    with pytest.raises(UserError, match=r"hydra/launcher=joblib needs the package hydra-joblib-launcher, which is not"):
        launchers.prepare_plugins(["-m", "hydra/launcher=joblib"])
    assert launchers.prepare_plugins(["-m", "seed=1,2"]) == ["-m", "seed=1,2"]


def test_a_ray_cluster_that_runs_is_given_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from src.launch import hydra_plugins as launchers

    monkeypatch.setitem(SUPPORTED["hydra/launcher"], "ray", (launchers.RAY[0], "json"))  # as if it were installed
    monkeypatch.setattr(launchers, "RAY", (launchers.RAY[0], "json"))
    address = ["-m", "hydra/launcher=ray", "hydra.launcher.ray.init.address=auto"]
    assert launchers.prepare_plugins(address[:2]) == address[:2]
    assert launchers.prepare_plugins(address) == [*address, "+hydra.launcher.ray.init.object_store_memory=null"]
