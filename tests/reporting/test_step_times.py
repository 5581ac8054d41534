"""Step times of a task=bench in the leaderboard of the runs with the same names."""

import json
from pathlib import Path
from statistics import median

import pytest

from src.reporting.document import write_report
from src.reporting.report import build_report
from tests.reporting.folders import write_run

RATIOS = {"vanilla": [1.0, 1.0, 1.0], "other": [1.05, 1.01, 1.02], "third": [2.0, 2.0, 2.0]}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name, loss in (("vanilla", 3.3), ("other", 3.2), ("unbenched", 3.4)):
        for seed in (1, 2):
            losses = [4.0, 3.5, loss + 0.01 * seed]
            write_run(tmp_path / "runs" / f"{name}{seed}", name=name, seed=seed, losses=losses)
    return tmp_path / "runs"


def bench(folder: Path, **changed: object) -> Path:
    folder.mkdir(exist_ok=True)
    timings = {name: {"ratios": values, "ratio": median(values)} for name, values in RATIOS.items()}
    results = {"baseline": "vanilla", "measured": "2 layers, a CPU", "timings": timings, **changed}
    (folder / "bench.json").write_text(json.dumps(results))
    return folder


def test_the_leaderboard_has_the_bench_ratios_with_quartiles(runs: Path, tmp_path: Path) -> None:
    report = build_report([runs], "vanilla", ["residual"], bench(tmp_path / "b"))
    row = report.board.set_index("system").loc["other"]
    assert [row[c] for c in ("step", "step low", "step high")] == pytest.approx([1.02, 1.015, 1.035])
    text = write_report(report, tmp_path).with_suffix(".md").read_text()
    assert "1.020 [1.015, 1.035]" in text
    assert "over vanilla's, median and quartiles of alternating rounds in one process (2 layers, a CPU)" in text
    unbenched = next(line for line in text.splitlines() if line.startswith("| unbenched"))
    assert "nan" not in unbenched.lower()


@pytest.mark.parametrize(
    ("changed", "baseline", "words"),
    [
        ({"baseline": "rmsnorm"}, "vanilla", "give baseline=rmsnorm"),
        ({"timings": {"attnres": {"ratios": [1.0]}}}, "vanilla", "only attnres"),
        ({"timings": 3}, "vanilla", "is not a bench.json"),
        ({}, None, "baseline=None"),
    ],
)
def test_a_bench_of_other_systems_is_an_error(
    runs: Path, tmp_path: Path, changed: dict[str, object], baseline: str | None, words: str
) -> None:
    folder = bench(tmp_path / "b", **changed)
    with pytest.raises(ValueError, match=words):
        build_report([runs], baseline, ["residual"], folder)


def test_the_error_of_a_missing_bench_names_it(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no bench.json there; give the folder of a task=bench"):
        build_report([runs], "vanilla", ["residual"], tmp_path / "nowhere")
