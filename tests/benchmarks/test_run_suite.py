"""Suites and their runs: every target can be judged, failures are reported, budgets and rehearsals work."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from benchmarks import run_suite as suite_runs
from benchmarks.suites import SUITES, Comparison, Suite
from benchmarks.targets import Measured, Target, memory_ratio, overhead, times_as_fast
from src.bench.timing import Timing
from src.files import CONF
from src.launch.job import Job
from src.launch.suggestions import options
from tests.runs import ROOT, SMALL, environment

BASE = Timing([1.0, 2.0, 1.0], [1.0, 1.0, 1.0], 1.0, 10, 1000, 5, int(2e9), int(8e9), {})
PEER = replace(BASE, seconds=[1.5, 3.0, 1.5], ratios=[1.5, 1.5, 1.5])


@pytest.mark.parametrize("name", list(SUITES))
def test_every_target_of_a_suite_can_be_judged_by_its_comparisons(name: str) -> None:
    suite = SUITES[name]
    timings = {
        comparison.name: {
            row.partition(": ")[0]: PEER for row in (*comparison.rows, *(peer for peer, _ in comparison.peers))
        }
        for comparison in suite.comparisons
    }
    for comparison in suite.comparisons:  # the baseline's time differs, so that no difference of times is zero
        timings[comparison.name][comparison.rows[0].partition(": ")[0]] = BASE
    measured = Measured(timings, {"loop ms": 1.0, "first step s": 1.0, "peak FLOP/s": 1e9})
    assert {target.judge(measured)["verdict"] for target in suite.targets} <= {"met", "missed"}
    overrides = {word for comparison in suite.comparisons for row in comparison.rows for word in row.split()}
    strategies = {word.removeprefix("residual=") for word in overrides if word.startswith("residual=")}
    assert strategies <= set(options("residual"))
    for comparison in suite.comparisons:
        assert len(timings[comparison.name]) == len(comparison.rows) + len(comparison.peers), "a name twice"


@pytest.mark.stress
def test_the_gpu_script_rehearses_on_a_cpu(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    done = subprocess.run(
        [str(ROOT / "tests/gpu/bars.sh"), "out", *SMALL, "trainer.compile=false", "bench.rounds=1"],
        cwd=tmp_path / "bare",
        env={
            **environment(),
            "PYTHON": sys.executable,
            "TORCHDYNAMO_DISABLE": "1",  # compiling the peer takes minutes
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "bare/out/bars.json").read_text())
    assert len(results["bars"]) == len(SUITES["gpu"].targets)
    verdicts = {row["bar"]: row["verdict"] for row in results["bars"]}
    assert verdicts.pop("vanilla, MFU") == "not measured: peak FLOP/s was not run"
    assert (
        verdicts.pop("attnres, share of flash-linear-attention's overhead") == "not measured: fla attnres was not run"
    )
    assert set(verdicts.values()) <= {"met", "missed"}
    assert (tmp_path / "bare/out/bars.md").read_text().startswith("bench.suite=gpu")
    assert [path.name for path in (tmp_path / "bare").iterdir()] == ["out"]


@pytest.fixture
def n_built() -> Counter[str]:
    """Count the models built by their residual strategy's class."""
    return Counter()


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, n_built: Counter[str]) -> Suite:
    """A suite of two sound candidates, one that fails when built, and a peer."""
    suite = Suite(
        comparisons=(
            Comparison(
                "t",
                base=("trainer=cpu", "model.n_layer=3"),
                rows=(
                    "vanilla: residual=vanilla",
                    "rezero: residual=rezero",
                    "broken: data.micro_batch_size=3",
                ),
                peers=(("theirs", "plain"),),
                at_once=3,
                builds=3,
            ),
        ),
        targets=(
            Target("memory", memory_ratio("t", "rezero", "vanilla"), 2, "x"),
            Target("peer", times_as_fast("t", "vanilla", "theirs"), 0, "x", at_most=False),
            Target("broken", overhead("t", "broken", "vanilla"), 2, "%"),
        ),
    )
    monkeypatch.setitem(SUITES, "planted", suite)

    def build_or_fail(settings):  # type: ignore[no-untyped-def]
        n_built[settings.config["residual"]["_target_"].rpartition(".")[2]] += 1
        if settings.config["data"]["micro_batch_size"] == 3:
            raise RuntimeError("out of memory")
        return build(settings)

    build = suite_runs.build_candidate
    monkeypatch.setattr("src.bench.candidates.build_candidate", build_or_fail)
    return suite


def test_a_suite_reports_every_target_and_what_failed(planted: Suite, tmp_path: Path, n_built: Counter[str]) -> None:
    overrides = ("name=planted", *SMALL)  # the command line's two layers win over three
    with initialize_config_dir(str(CONF), version_base="1.3"):
        job = Job(tmp_path, OmegaConf.create({"trusted_targets": []}), False, overrides)
        end = suite_runs.run_suite(job, "planted", rounds=2, budget_s=None)
    assert end.line.startswith("2 of 3 targets met")
    results = json.loads((tmp_path / "bench.json").read_text())
    assert [row["verdict"] for row in results["bars"]] == ["met", "met", "not measured: broken was not run"]
    assert results["failed"] == {"broken": "out of memory"}
    assert results["turns"]["t"]["measured"].startswith("2 layers, 32 wide")
    timings = results["turns"]["t"]["timings"]
    assert list(timings) == ["vanilla", "theirs", "rezero"]
    assert {(t["builds"], len(t["seconds"]), len(t["ratios"])) for t in timings.values()} == {(3, 6, 6)}
    assert timings["vanilla"]["ratios"] == [1] * 6  # each over its own round's baseline
    assert n_built["ReZero"] == 4  # once more after the group that failed
    assert "Failed: broken: out of memory" in (tmp_path / "table.md").read_text()


def test_a_build_cut_short_is_dropped(planted: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def time_nothing_the_second_time(builders: dict[str, object], **keys: object) -> dict[str, Timing]:
        calls.append(keys["seed"])
        timings = dict.fromkeys(builders, PEER) if len(calls) != 2 else {}
        if keys["on_group"]:
            keys["on_group"](timings)  # type: ignore[operator]
        return timings

    monkeypatch.setattr(suite_runs, "time_in_turns", time_nothing_the_second_time)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        job = Job(tmp_path, OmegaConf.create({"trusted_targets": []}), False, ("name=planted", *SMALL))
        suite_runs.run_suite(job, "planted", rounds=3, budget_s=None)
    assert len(set(calls)) == 3
    timings = json.loads((tmp_path / "bench.json").read_text())["turns"]["t"]["timings"]
    assert {(t["builds"], len(t["ratios"])) for t in timings.values()} == {(2, 6)}


def test_no_group_starts_once_the_budget_is_spent(planted: Suite, tmp_path: Path) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        job = Job(tmp_path, OmegaConf.create({"trusted_targets": []}), False, ("name=planted", *SMALL))
        end = suite_runs.run_suite(job, "planted", rounds=2, budget_s=1e-9)
    assert end.line.startswith("0 of 3 targets met")
