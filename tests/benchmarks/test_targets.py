"""Bars: what is measured, which end of its interval counts, and what is said where nothing was."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from benchmarks import run_suite as suite_run
from benchmarks.suites import SUITES, Suite, Turn
from benchmarks.targets import (
    Bar,
    Measured,
    bars_table,
    interval,
    memory_more,
    memory_ratio,
    mfu,
    overhead,
    share_of_overhead,
    single,
    times_as_fast,
)
from src.bench.timing import Timing
from src.launch.arguments import CONF, options
from src.launch.job import Job
from tests.runs import ROOT, SMALL, environment

BASE = Timing([1.0, 2.0, 1.0], [1.0, 1.0, 1.0], 1.0, 10, 1000, 5, int(2e9), int(8e9), {})
OURS = replace(BASE, seconds=[1.1, 2.4, 1.1], ratios=[1.1, 1.2, 1.1], step_bytes=int(9e9))
PEER = replace(BASE, seconds=[1.5, 3.0, 1.5], ratios=[1.5, 1.5, 1.5])
MEASURED = Measured({"t": {"base": BASE, "ours": OURS, "peer": PEER}}, {"loop ms": 0.4, "peak FLOP/s": 5e4})


@pytest.mark.parametrize(
    ("measure", "value"),
    [
        (overhead("t", "ours", "base"), 10),
        (times_as_fast("t", "ours", "peer"), 1.5 / 1.1),
        (share_of_overhead("t", "ours", "peer", "base"), 0.2),
        (memory_ratio("t", "ours", "base"), 1.1),
        (memory_more("t", "ours", "base"), 1),
        (mfu("t", "base"), 20),
        (single("loop ms"), 0.4),
    ],
)
def test_what_a_bar_measures(measure, value: float) -> None:  # type: ignore[no-untyped-def]
    assert measure(MEASURED).value == pytest.approx(value)


def test_the_worse_end_of_the_interval_counts() -> None:
    ours = overhead("t", "ours", "base")  # 10 % in two rounds, 20 % in one
    assert ours(MEASURED).high == pytest.approx(20)
    assert Bar("b", ours, 15, "%").judge(MEASURED)["verdict"] == "missed"
    assert Bar("b", ours, 20.1, "%").judge(MEASURED)["verdict"] == "met"
    speed = times_as_fast("t", "ours", "peer")
    assert Bar("b", speed, 1.3, "x", at_most=False).judge(MEASURED)["verdict"] == "missed"
    assert Bar("b", speed, 1.2, "x", at_most=False).judge(MEASURED)["verdict"] == "met"


def test_a_suite_without_bars_is_its_title() -> None:
    assert bars_table([], "scaling") == "scaling\n"


def test_the_interval_is_of_the_median() -> None:
    found = interval([1.0] * 20 + [5.0])
    assert (found.value, found.low, found.high) == (1, 1, 1)


def test_builds_that_differ_widen_the_interval() -> None:
    values = [1.0, 1.01, 0.99] * 3 + [1.1, 1.11, 1.09] * 3
    rounds, builds = interval(values), interval(values, builds=2)
    assert rounds.value == builds.value == pytest.approx(1.05, abs=0.001)
    assert builds.low < 1.01
    assert builds.high > 1.09
    many = [value for part in range(12) for value in ([1.0] * 3 if part % 2 else [1.1] * 3)]
    assert interval(many, builds=12).high - interval(many, builds=12).low > 0
    with pytest.raises(ValueError, match="equal parts"):
        interval(values, builds=5)


def test_what_was_not_run_is_told_as_such() -> None:
    rows = [
        Bar("one", single("loop ms"), 0.5, "ms").judge(MEASURED),
        Bar("two", overhead("t", "theirs", "base"), 2, "%").judge(MEASURED),
    ]
    text = bars_table(rows, "cpu")
    assert "1 of 2 bars met" in text
    assert text.splitlines()[-2:] == [
        "| one | at most 0.5 ms | 0.4 | met |",
        "| two | at most 2 % | - | not measured: theirs was not run |",
    ]


@pytest.mark.parametrize("name", list(SUITES))
def test_every_bar_of_a_suite_can_be_judged_by_its_turns(name: str) -> None:
    suite = SUITES[name]
    timings = {
        turn.name: {row.partition(": ")[0]: PEER for row in (*turn.rows, *(peer for peer, _ in turn.peers))}
        for turn in suite.turns
    }
    for turn in suite.turns:  # a time that is not the baseline's, so that nothing is divided by zero
        timings[turn.name][turn.rows[0].partition(": ")[0]] = BASE
    measured = Measured(timings, {"loop ms": 1.0, "first step s": 1.0, "peak FLOP/s": 1e9})
    assert {bar.judge(measured)["verdict"] for bar in suite.bars} <= {"met", "missed"}
    overrides = {word for turn in suite.turns for row in turn.rows for word in row.split()}
    strategies = {word.removeprefix("residual=") for word in overrides if word.startswith("residual=")}
    assert strategies <= set(options("residual"))
    for turn in suite.turns:
        assert len(timings[turn.name]) == len(turn.rows) + len(turn.peers), "a name twice"


@pytest.mark.slow
def test_the_gpu_script_rehearses_on_a_cpu(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    done = subprocess.run(
        [str(ROOT / "tests/gpu/bars.sh"), "out", *SMALL, "trainer.compile=false", "bench.rounds=1"],
        cwd=tmp_path / "bare",
        env={
            **environment(),
            "PYTHON": sys.executable,
            "TORCHDYNAMO_DISABLE": "1",  # the peer is compiled else, for long
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    stated = json.loads((tmp_path / "bare/out/bars.json").read_text())
    assert len(stated["bars"]) == len(SUITES["gpu"].bars)
    told = {row["bar"]: row["verdict"] for row in stated["bars"]}
    assert told.pop("vanilla, MFU") == "not measured: peak FLOP/s was not run"
    assert (
        told.pop("attnres, share of flash-linear-attention's overhead")
        == "not measured: fla attnres was not run"
    )
    assert set(told.values()) <= {"met", "missed"}
    assert (tmp_path / "bare/out/bars.md").read_text().startswith("bench.suite=gpu")
    assert [path.name for path in (tmp_path / "bare").iterdir()] == ["out"]


built: Counter[str] = Counter()


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Suite:
    suite = Suite(
        turns=(
            Turn(
                "t",
                base=("trainer=cpu", "model.n_layer=3"),
                rows=(
                    "vanilla: residual=vanilla",
                    "rezero: residual=rezero",
                    "broken: data.micro_batch_size=3",
                ),
                peers=(("theirs", "plain"),),
                at_once=3,
                times=3,
            ),
        ),
        bars=(
            Bar("memory", memory_ratio("t", "rezero", "vanilla"), 2, "x"),
            Bar("peer", times_as_fast("t", "vanilla", "theirs"), 0, "x", at_most=False),
            Bar("broken", overhead("t", "broken", "vanilla"), 2, "%"),
        ),
    )
    monkeypatch.setitem(SUITES, "planted", suite)

    built.clear()

    def fail(settings):  # type: ignore[no-untyped-def]
        built[settings.config["residual"]["_target_"].rpartition(".")[2]] += 1
        if settings.config["data"]["micro_batch_size"] == 3:
            raise RuntimeError("out of everything")
        return entrant(settings)

    entrant = suite_run.entrant
    monkeypatch.setattr("src.bench.candidates.entrant", fail)
    return suite


def test_a_suite_tells_every_bar_and_what_failed(planted: Suite, tmp_path: Path) -> None:
    overrides = ("name=planted", *SMALL)  # two layers there: the command line's word
    with initialize_config_dir(str(CONF), version_base="1.3"):
        job = Job(tmp_path, OmegaConf.create({"trusted_targets": []}), False, overrides)
        end = suite_run.run_suite(job, "planted", rounds=2, budget_s=None)
    assert end.line.startswith("2 of 3 bars met")
    stated = json.loads((tmp_path / "bench.json").read_text())
    assert [row["verdict"] for row in stated["bars"]] == ["met", "met", "not measured: broken was not run"]
    assert stated["failed"] == {"broken": "out of everything"}
    assert stated["turns"]["t"]["measured"].startswith("2 layers, 32 wide")
    timings = stated["turns"]["t"]["timings"]
    assert list(timings) == ["vanilla", "theirs", "rezero"]
    assert {(t["builds"], len(t["seconds"]), len(t["ratios"])) for t in timings.values()} == {(3, 6, 6)}
    assert timings["vanilla"]["ratios"] == [1] * 6  # each to its own round's baseline
    assert built["ReZero"] == 4  # once more beside what failed
    assert "Failed: broken: out of everything" in (tmp_path / "table.md").read_text()


def test_a_repetition_cut_short_counts_for_nothing(
    planted: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def once(builders: dict[str, object], **keys: object) -> dict[str, Timing]:
        calls.append(keys["seed"])
        found = dict.fromkeys(builders, PEER) if len(calls) != 2 else {}
        if keys["told"]:
            keys["told"](found)  # type: ignore[operator]
        return found

    monkeypatch.setattr(suite_run, "time_in_turns", once)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        job = Job(tmp_path, OmegaConf.create({"trusted_targets": []}), False, ("name=planted", *SMALL))
        suite_run.run_suite(job, "planted", rounds=3, budget_s=None)
    assert len(set(calls)) == 3
    timings = json.loads((tmp_path / "bench.json").read_text())["turns"]["t"]["timings"]
    assert {(t["builds"], len(t["ratios"])) for t in timings.values()} == {(2, 6)}


def test_no_group_begins_once_the_budget_is_spent(planted: Suite, tmp_path: Path) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        job = Job(tmp_path, OmegaConf.create({"trusted_targets": []}), False, ("name=planted", *SMALL))
        end = suite_run.run_suite(job, "planted", rounds=2, budget_s=1e-9)
    assert end.line.startswith("0 of 3 bars met")
