"""task=bench through the front door: what is counted, timed and written.

Covers `src/bench/host_overhead.py` and `src/reporting/bench_figure.py` too.
"""

import json
from pathlib import Path

import pytest

from src.files import CONF
from src.tasks.bench import BenchKeys
from tests.runs import SMALL, error_lines, run
from tests.support import options


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("bench")
    done = run(
        *("task=bench", *SMALL, "bench.residual=[rezero,denseformer,dual_path]", "bench.rounds=2"),
        'bench.configurations=["twice: norm=rmsnorm residual=rezero model.block_size=16","recurrence=mini"]',
        *("bench.at_once=3", "bench.peer=benchmarks.peers:plain", "hydra.run.dir=b"),
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    return cwd / "b"


def test_counts_are_those_at_gpt2_medium(folder: Path) -> None:
    costs = json.loads((folder / "bench.json").read_text())["costs"]
    assert costs["vanilla"]["n_params_model"] == 353_551_360 + 1024 * 1024
    assert [cost["init_equivalent"] for cost in costs.values()] == ["vanilla", "identity", "vanilla", "other"]
    assert {name: cost["n_params"] for name, cost in costs.items()} == {
        "vanilla": 0,
        "rezero": 24,
        "denseformer": 324,
        "dual_path": 48 * 1024,  # the norms that the trunk does not build
    }
    more = costs["dual_path"]["flops_per_token"] - costs["vanilla"]["flops_per_token"]
    assert more == 6 * 24 * 8 * 1024**2
    hidden = 4 * 8 * 1024 * 1024
    assert (costs["denseformer"]["kept_bytes"] - costs["vanilla"]["kept_bytes"]) / hidden < 26


NAMES = ["vanilla", "rezero", "denseformer", "dual_path", "twice", "recurrence=mini", "plain"]


def test_every_configuration_is_timed_beside_the_baseline(folder: Path) -> None:
    timings = json.loads((folder / "bench.json").read_text())["timings"]
    assert list(timings) == NAMES
    for timing in timings.values():
        assert len(timing["seconds"]) == len(timing["ratios"]) == 2
        assert min(timing["seconds"]) > 0
        assert timing["step_bytes"] > 4 * timing["n_params"]  # the gradients at least
        assert timing["state_bytes"] >= 12 * timing["n_params"]
    for name in NAMES[:-1]:
        timing = timings[name]
        assert list(timing["parts"]) == ["forward", "loss", "backward", "optimizer"]
        assert sum(timing["parts"].values()) <= 1.5 * max(timing["seconds"])


def test_reading_and_loop_are_measured_too(folder: Path) -> None:
    results = json.loads((folder / "bench.json").read_text())
    assert list(results["data_seconds"]) == NAMES[:-1]
    assert results["data_seconds"]["vanilla"] == results["data_seconds"]["rezero"] > 0
    assert abs(results["loop_seconds"]) < 0.1
    assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert not (folder / "multirun").exists()  # the shards of random tokens are removed


def test_a_configuration_is_timed_with_all_its_overrides(folder: Path) -> None:
    timings = json.loads((folder / "bench.json").read_text())["timings"]
    assert [timings[name]["tokens"] for name in ("vanilla", "twice")] == [64, 32]
    # RMSNorm has as many weights as LayerNorm; a scalar per layer; sixteen positions fewer
    assert timings["twice"]["n_params"] - timings["vanilla"]["n_params"] == 2 - 16 * 32
    # both layers are visited again from the middle of a run on: the later, costlier state is timed
    assert timings["recurrence=mini"]["flops_per_token"] > 1.2 * timings["vanilla"]["flops_per_token"]


def test_the_tables_have_a_line_for_each_configuration(folder: Path) -> None:
    text = (folder / "table.md").read_text()
    strategies, speeds, parts = (b.splitlines() for b in text.split("\n\n") if b.startswith("|"))
    assert [line.split(" | ")[0] for line in strategies[2:]] == [f"| {name}" for name in NAMES[:4]]
    for table in (speeds, parts):
        assert [line.split(" | ")[0] for line in table[2:]] == [f"| {name}" for name in NAMES]


def keys(residual: list[str] | str | None = None, configurations: list[str] | None = None) -> BenchKeys:
    return BenchKeys(residual, configurations or [], "vanilla", [], 1, 1, None, "a:b", None)


def test_all_are_the_shipped_strategies_without_the_baseline() -> None:
    names = keys().strategies()
    assert {*names, "vanilla"} == {path.stem for path in (CONF / "residual").glob("*.yaml")}
    assert "vanilla" not in names
    assert keys(residual="all", configurations=["a=b"]).strategies() == names
    assert keys(configurations=["a=b"]).strategies() == []


def test_a_composition_is_named_by_its_parts() -> None:
    assert keys(residual=["lns+resformer", "vanilla"]).strategies() == ["lns+resformer"]
    with pytest.raises(ValueError, match=r"bench\.residual=resfomer is not a strategy, did you mean resformer\?"):
        keys(residual="lns+resfomer").strategies()


def test_an_unknown_strategy_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"bench\.residual=atnres is not a strategy, did you mean attnres\?"):
        keys(residual=["atnres"]).strategies()


def test_an_invalid_configuration_is_an_error_of_one_line(tmp_path: Path) -> None:
    done = run("task=bench", *SMALL, 'bench.configurations=["residual=atnres"]', cwd=tmp_path)
    assert done.returncode == 2
    assert len(error_lines(done)) == 1
    assert "'residual=atnres': residual=atnres is not an option, did you mean attnres?" in done.stderr


def test_an_unknown_suite_is_an_error_that_names_the_nearest(tmp_path: Path) -> None:
    done = run("task=bench", *SMALL, "bench.suite=cpus", cwd=tmp_path)
    assert done.returncode == 2
    assert error_lines(done) == ["error: bench.suite=cpus is not a suite, did you mean cpu?; one of cpu, gpu, scaling"]


def test_the_page_of_step_times_names_each_strategy_once_at_most() -> None:
    lines = (CONF.parent / "docs/performance.md").read_text().splitlines()
    named = [line.split("`")[1] for line in lines if line.startswith("| `")]
    assert len(set(named)) == len(named) > 60
    assert set(named) <= set(options("residual"))
