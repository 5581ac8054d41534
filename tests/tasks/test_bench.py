"""The cost table: what is counted, what is timed, what is said."""

import json
from pathlib import Path

import pytest
import torch

from src.overrides import CONF
from src.tasks.bench import BenchKeys
from src.tasks.chip import matmul_speed, published_peak
from src.tasks.strategy_table import Timing, at_init, idea, speed_table
from tests.runs import SMALL, error_lines, run
from tests.support import options


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("bench")
    done = run(
        *("task=bench", *SMALL, "bench.residual=[rezero,denseformer,dual_path]", "bench.rounds=2"),
        *("bench.at_once=2", "hydra.run.dir=b"),
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    return cwd / "b"


def test_counts_are_those_at_gpt2_medium(folder: Path) -> None:
    costs = json.loads((folder / "bench.json").read_text())["costs"]
    assert costs["vanilla"]["n_params_model"] == 353_551_360 + 1024 * 1024
    assert {name: cost["n_params"] for name, cost in costs.items()} == {
        "vanilla": 0,
        "rezero": 48,
        "denseformer": 324,
        "dual_path": 48 * 1024,  # the norms that the trunk then does not have
    }
    more = costs["dual_path"]["flops_per_token"] - costs["vanilla"]["flops_per_token"]
    assert more == 6 * 24 * 8 * 1024**2
    hidden = 4 * 8 * 1024 * 1024
    assert (costs["denseformer"]["kept_bytes"] - costs["vanilla"]["kept_bytes"]) / hidden < 26


def test_every_strategy_is_timed_beside_the_baseline(folder: Path) -> None:
    timings = json.loads((folder / "bench.json").read_text())["timings"]
    assert set(timings) == {"vanilla", "rezero", "denseformer", "dual_path"}
    for timing in timings.values():
        assert len(timing["seconds"]) == len(timing["ratios"]) == 2
        assert min(timing["seconds"]) > 0


def test_the_table_has_a_line_for_each(folder: Path) -> None:
    text = (folder / "table.md").read_text().split("Share of")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines[1:]] == [
        "| vanilla",
        "| rezero",
        "| denseformer",
        "| dual_path",
    ]


def test_quartiles_are_of_the_rounds_ratios() -> None:
    rest = (1.0, 8, 6, None)
    assert Timing([1.0] * 5, [1.0, 1.1, 1.2, 1.3, 9.0], *rest).quartiles() == (1.1, 1.2, 1.3)
    assert Timing([1.0], [1.5], *rest).quartiles() == (1.5, 1.5, 1.5)


def test_throughput_is_held_against_a_ceiling() -> None:
    timing = Timing([2.0, 4.0, 3.0], [1.0] * 3, 60.0, tokens=300, flops_per_token=5_000, step_bytes=2**31)
    line = speed_table({"vanilla": timing}, 1e6, "a chip's peak").splitlines()[-1]
    assert line == "| vanilla | 100 | 50.0 % | 60.0 s | 2.00 GiB |"


def test_a_chip_is_known_by_its_name() -> None:
    assert published_peak("NVIDIA H200") == 989e12
    assert published_peak("NVIDIA GB200 Superchip") == 2500e12
    assert published_peak("Some Chip") is None
    assert matmul_speed("cpu", torch.float32) > 1e9


@pytest.mark.parametrize("name", options("residual"))
def test_every_strategy_says_in_a_word_what_it_is_at_init(name: str) -> None:
    assert at_init(name) in ("-", "vanilla", "near vanilla", "identity", "near identity", "other")
    assert len(idea(name)) > 20


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("hyperconn", "vanilla"),
        ("mhc", "vanilla"),
        ("tdar", "near vanilla"),
        ("rezero", "identity"),
        ("layerscale", "near identity"),
        ("lime", "other"),
        ("parallel_lanes", "other"),
    ],
)
def test_the_word_is_the_docstrings(name: str, word: str) -> None:
    assert at_init(name) == word


def test_all_are_all_the_shipped_ones_but_the_baseline() -> None:
    names = BenchKeys("all", "vanilla", 1, 1).names()
    assert {*names, "vanilla"} == {path.stem for path in (CONF / "residual").glob("*.yaml")}
    assert "vanilla" not in names


def test_a_strategy_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = run("task=bench", *SMALL, "bench.residual=[atnres]", cwd=tmp_path)
    assert done.returncode == 2
    assert len(error_lines(done)) == 1
    assert "atnres is no strategy, did you mean attnres?" in done.stderr


def test_the_readme_has_a_line_for_every_strategy() -> None:
    lines = (CONF.parent / "README.md").read_text().splitlines()
    named = {line.split("`")[1] for line in lines if line.startswith("| `")}
    assert set(options("residual")) <= named
