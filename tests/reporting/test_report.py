"""Reports: numbers equal to independent computations, and warnings about runs that are not comparable.

Covers `conditions.py`, `curves.py`, `figures.py`, `leaderboard.py`, `page.py`, `runs.py`, `systems.py`, `tables.py`.
"""

import csv
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from scipy import stats

from src.reporting import systems
from src.reporting.document import MAX_DRAWN, write_report
from src.reporting.report import Report, build_report
from tests.reporting.folders import FLOPS_PER_TOKEN, STEP_TOKENS, entry_ppl, entry_task, write_run

LOSSES = {
    ("vanilla", 1): [4.0, 3.5, 3.30],
    ("vanilla", 2): [4.1, 3.6, 3.32],
    ("vanilla", 3): [4.2, 3.7, 3.37],
    ("better", 1): [3.9, 3.4, 3.19],
    ("better", 2): [4.0, 3.5, 3.22],
    ("better", 3): [4.1, 3.6, 3.26],
    ("same", 1): [4.0, 3.5, 3.31],
    ("same", 2): [4.1, 3.6, 3.31],
    ("same", 7): [4.1, 3.6, 3.35],
    ("welch", 8): [4.0, 3.5, 3.25],
    ("welch", 9): [4.1, 3.6, 3.27],
    ("single", 1): [4.0, 3.5, 3.10],
}
SPEED = {"vanilla": 1000.0, "better": 800.0, "same": 1000.0, "welch": 1000.0, "single": 500.0}
FLOPS = {"vanilla": 1000, "better": 1250, "same": 1000, "welch": 1000, "single": 1000}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for i, ((name, seed), losses) in enumerate(LOSSES.items()):
        scores = {
            "perplexity": {
                "wikitext2": entry_ppl(40.0 + i),
                "lambada": entry_ppl(70.0 + i, "first 9 of 99 tokens"),
            },
            "lm_eval": {"arc_easy": entry_task(50.0 + i), "winogrande": entry_task(51.0 - i, "acc")},
        }
        write_run(
            tmp_path / "runs" / f"{i}-{name}",
            name=name,
            seed=seed,
            losses=losses,
            tokens_per_s=SPEED[name],
            flops_per_token=FLOPS[name],
            scores=scores,
        )
    return tmp_path / "runs"


def read_csv(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open() as file:
        return list(csv.DictReader(file))


def compared_row(report: Report, metric: str, system: str) -> dict[str, Any]:
    frame = report.compared
    (row,) = frame[(frame["metric"] == metric) & (frame["system"] == system)].to_dict("records")
    return {str(key): value for key, value in row.items()}


def final_losses(name: str) -> dict[int, float]:
    return {seed: losses[-1] for (system, seed), losses in LOSSES.items() if system == name}


def test_means_sds_and_tests_equal_those_of_scipy(sweep: Path, tmp_path: Path) -> None:
    write_report(build_report([sweep], "vanilla", ["residual"]), tmp_path)
    board = {row["system"]: row for row in read_csv(tmp_path, "leaderboard.csv")}
    p_values = {}
    for name in ("better", "same", "welch"):
        ours, base = final_losses(name), final_losses("vanilla")
        shared = sorted(ours.keys() & base.keys())
        if len(shared) > 1:
            test = stats.ttest_rel([ours[s] for s in shared], [base[s] for s in shared])
            expected = mean(ours[s] - base[s] for s in shared)
        else:
            test = stats.ttest_ind(list(ours.values()), list(base.values()), equal_var=False)
            expected = mean(ours.values()) - mean(base.values())
        low, high = test.confidence_interval(0.95)
        row = board[name]
        assert float(row["val loss"]) == pytest.approx(mean(ours.values()))
        assert float(row["sd"]) == pytest.approx(stdev(ours.values()))
        assert float(row["difference"]) == pytest.approx(expected)
        assert float(row["p"]) == pytest.approx(test.pvalue)
        assert (float(row["95 % low"]), float(row["95 % high"])) == pytest.approx((low, high))
        p_values[name] = test.pvalue
    order = sorted(p_values, key=lambda name: p_values[name])
    running = 0.0
    for i, name in enumerate(order):
        running = max(running, min(1.0, (3 - i) * p_values[name]))
        assert float(board[name]["p (Holm)"]) == pytest.approx(running)
    assert board["single"]["p"] == ""
    assert board["single"]["n seeds"] == "1"
    assert [row["system"] for row in read_csv(tmp_path, "leaderboard.csv")] == sorted(
        SPEED, key=lambda name: mean(final_losses(name).values())
    )


def test_costs_and_scores_are_means_over_seeds(sweep: Path, tmp_path: Path) -> None:
    write_report(build_report([sweep], "vanilla", ["residual"]), tmp_path)
    board = {row["system"]: row for row in read_csv(tmp_path, "leaderboard.csv")}
    places = [i for i, (name, _) in enumerate(LOSSES) if name == "better"]
    row = board["better"]
    assert float(row["wikitext2 ppl"]) == pytest.approx(mean(40.0 + i for i in places))
    assert float(row["wikitext2 ppl sd"]) == pytest.approx(stdev(40.0 + i for i in places))
    assert float(row["arc_easy acc_norm"]) == pytest.approx(mean(50.0 + i for i in places))
    assert float(row["winogrande acc"]) == pytest.approx(mean(51.0 - i for i in places))
    assert float(row["cost %"]) == pytest.approx(100 * (1000 / 800 - 1))
    assert float(row["FLOPs/token"]) == 1250
    assert float(row["peak memory"]) == 2**30
    assert "lambada ppl" not in row


def interpolate(xs: list[float], ys: list[float], x: float) -> float:
    for (x0, y0), (x1, y1) in zip(zip(xs, ys, strict=True), list(zip(xs, ys, strict=True))[1:], strict=False):
        if x0 <= x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    raise AssertionError(f"{x} is outside {xs}")


def test_equal_budgets_are_read_off_the_curves(sweep: Path) -> None:
    report = build_report([sweep], "vanilla", ["residual"])
    tokens = [2 * STEP_TOKENS, 4 * STEP_TOKENS, 6 * STEP_TOKENS]
    # The first step of each run was logged at half speed, so it took twice as long.
    clock = {name: [(x + STEP_TOKENS) / speed for x in tokens] for name, speed in SPEED.items()}
    flops = {name: [x * FLOPS[name] for x in tokens] for name in SPEED}
    for name in SPEED:
        curves = [losses for (system, _), losses in LOSSES.items() if system == name]
        at = min(xs[-1] for xs in clock.values())
        expected = mean(interpolate(clock[name], losses, at) for losses in curves)
        assert compared_row(report, "val loss at equal seconds", name)["mean"] == pytest.approx(expected)
        at = min(xs[-1] for xs in flops.values())
        expected = mean(interpolate([float(x) for x in flops[name]], losses, at) for losses in curves)
        assert compared_row(report, "val loss at equal flops", name)["mean"] == pytest.approx(expected)
        expected = mean(losses[-1] for losses in curves)
        assert compared_row(report, "val loss at equal tokens", name)["mean"] == pytest.approx(expected)
    assert FLOPS["vanilla"] == FLOPS_PER_TOKEN


def test_differences_are_stated_in_sentences(sweep: Path) -> None:
    sentences = {line.split()[0]: line for line in build_report([sweep], "vanilla", ["residual"]).sentences()}
    assert sentences["better"].startswith("better is 0.1067 nats better than vanilla (3 seeds, sd 0.0058; 95 %")
    assert sentences["same"].startswith("same minus vanilla: +0.0000 nats, 2 seeds, sd 0.0141: not distinguishable (")
    assert "not distinguishable" in sentences["welch"]
    assert sentences["With"].startswith(
        "With one seed no test is possible, so not distinguishable from vanilla, in nats:"
    )
    assert "single (" in sentences["With"]
    assert len(sentences) == 4


def test_the_spread_between_seeds_is_pooled_over_systems(sweep: Path, tmp_path: Path) -> None:
    write_report(build_report([sweep], "vanilla", ["residual"]), tmp_path)
    groups = [list(final_losses(name).values()) for name in SPEED]
    squares = sum((x - mean(values)) ** 2 for values in groups for x in values)
    freedom = sum(len(values) - 1 for values in groups)
    sd = math.sqrt(squares / freedom)
    apart = stats.t.isf(0.025, freedom) * sd * math.sqrt(2 / 3)
    text = (tmp_path / "report.md").read_text()
    assert f"an sd of {sd:.4f} nats (pooled, {freedom} degrees of freedom)" in text
    assert f"3 unpaired seeds each would have to be {apart:.4f} nats apart" in text


def test_failures_are_in_no_mean_and_are_listed(sweep: Path, tmp_path: Path) -> None:
    before = build_report([sweep], "vanilla", ["residual"])
    bad = {"status": "diverged", "reason": "step 3: loss is nan"}
    write_run(sweep / "x1", name="better", seed=4, losses=[9.0, 9.0, 9.0], **bad)
    write_run(sweep / "x2", name="better", seed=5, losses=[9.0, 9.0, 9.0], status="running")
    write_run(sweep / "x3", name="better", seed=6, losses=[9.0, 9.0, 9.0], val_loss=math.nan)
    write_run(sweep / "x4", name="broken", seed=1, losses=[9.0, 9.0, 9.0], status="interrupted", reason="SIGTERM")
    (sweep / "x1/metrics.jsonl").write_text('{"step": 1, "tok')
    after = build_report([sweep], "vanilla", ["residual"])
    assert after.compared.equals(before.compared)
    reasons = {run.folder.name: reason for run, reason in after.found.failures}
    assert reasons["x1"] == "diverged: step 3: loss is nan"
    assert set(reasons) == {"x1", "x2", "x3", "x4"}
    write_report(after, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| better | 4 | 6 of 6 | diverged: step 3: loss is nan | x1 |" in text
    assert "4 of the runs found are in no mean" in text


def test_a_run_that_cannot_be_read_is_listed_and_the_others_are_compared(
    sweep: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = build_report([sweep], "vanilla", ["residual"])
    for name, file, text in (("x1", "result.json", '{"name": "bet'), ("x2", "config.yaml", "a: [1"),
                             ("x3", "metrics.jsonl", "{\n{}\n")):  # fmt: skip
        write_run(sweep / name, name="better", seed=7, losses=[9.0, 9.0, 9.0])
        (sweep / name / file).write_text(text)
    after = build_report([sweep], "vanilla", ["residual"])
    assert after.compared.equals(before.compared)
    assert "x1 cannot be read: " in caplog.text
    write_report(after, tmp_path)
    lines = [line for line in (tmp_path / "report.md").read_text().splitlines() if " unreadable: " in line]
    assert [line.split(" | ")[-1] for line in lines] == ["x1 |", "x2 |", "x3 |"]
    assert "is not a JSON object; restore it or leave the folder out" in lines[0]


def test_limited_evaluations_are_in_no_mean_and_are_listed(sweep: Path, tmp_path: Path) -> None:
    report = build_report([sweep], "vanilla", ["residual"])
    assert "lambada ppl" not in set(report.compared["metric"])
    write_report(report, tmp_path)
    assert "| better | lambada | first 9 of 99 tokens | 1, 2, 3 |" in (tmp_path / "report.md").read_text()


def test_a_complete_evaluation_of_the_last_step_replaces_a_limited_one(sweep: Path, tmp_path: Path) -> None:
    for i, (name, _) in enumerate(LOSSES):
        folder = sweep / f"{i}-{name}" / "evaluations"
        folder.mkdir()
        for step, value in ((2, 99.0), (6, 60.0 + i)):
            scores = {"perplexity": {"lambada": entry_ppl(value)}, "lm_eval": {}}
            (folder / f"{step}.json").write_text(json.dumps({"step": step, "scores": scores}))
    report = build_report([sweep], "vanilla", ["residual"])
    assert compared_row(report, "lambada ppl", "vanilla")["mean"] == pytest.approx(61.0)
    write_report(report, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "## Evaluated checkpoints\n\n- figure in report.html: lambada ppl by step" in text
    assert "in no mean" not in text


def test_a_repeated_seed_counts_once(sweep: Path) -> None:
    write_run(sweep / "z-again", name="vanilla", seed=1, losses=[4.0, 3.5, 3.4], tokens_per_s=1000.0)
    report = build_report([sweep], "vanilla", ["residual"])
    assert compared_row(report, "val loss", "vanilla")["n"] == 3
    assert compared_row(report, "val loss", "vanilla")["mean"] == pytest.approx(mean([3.4, 3.32, 3.37]))
    ((run, reason),) = report.found.failures
    assert run.folder.name == "0-vanilla"
    assert "z-again is the same configuration and seed" in reason


def test_differences_besides_the_axis_are_flagged_with_their_keys(tmp_path: Path) -> None:
    write_run(tmp_path / "a", name="vanilla", seed=1, losses=[3.0, 2.9])
    config = {"optimizer": {"lr": 2e-3, "betas": [0.9, 0.95]}}
    ppl = {"perplexity": {"wikitext2": entry_ppl(40.0)}}
    write_run(tmp_path / "b", name="lr", seed=1, losses=[3.0, 2.8], config=config, device="H200")
    other = {
        "data": {"folder": "x", "hash": "e" * 64},
        "perplexity": {"wikitext2": entry_ppl(40.0, sha256="f" * 64)},
    }
    write_run(tmp_path / "c", name="data", seed=1, losses=[3.0, 2.7], scores=other)
    write_run(tmp_path / "d", name="fair", seed=1, losses=[3.0, 2.6], scores=ppl)
    report = build_report([tmp_path], "fair", ["residual"])
    flagged = {(u.system, u.what, u.key) for u in report.differences}
    assert flagged == {
        ("lr", "loss", "optimizer.lr"),
        ("lr", "speed", "device"),
        ("data", "loss", "data.hash"),
        ("data", "wikitext2 ppl", "sha256"),
    }
    assert build_report([tmp_path], "fair", ["residual", "optimizer.lr", "data"]).differences != report.differences
    write_report(report, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "Unfair comparison: more than the compared axis differs: data.hash (data), optimizer.lr (lr)." in text


def test_how_a_run_is_executed_makes_no_other_system_but_other_speeds(tmp_path: Path) -> None:
    write_run(tmp_path / "a", name="vanilla", seed=1, losses=[3.0, 2.9])
    trainer = {"max_steps": 4, "precision": "32-true", "num_nodes": 2, "restarts": 3, "strategy": "fsdp"}
    config = {"trainer": {**trainer, "checkpoint_activations": True}}
    write_run(tmp_path / "b", name="vanilla", seed=2, losses=[3.0, 2.8], config=config)
    report = build_report([tmp_path], "vanilla", ["residual"])
    assert [len(system.runs) for system in report.found.systems] == [2]
    assert {(u.what, u.key) for u in report.differences} == {
        ("speed", "trainer.checkpoint_activations"),
        ("speed", "trainer.strategy=fsdp"),
    }


def test_the_report_warns_of_unsteady_speeds_and_other_code(tmp_path: Path) -> None:
    for seed, speed in ((1, 1000.0), (2, 1500.0)):
        write_run(tmp_path / f"v{seed}", name="vanilla", seed=seed, losses=[3.0, 2.9])
        git = "e" * 40 + "-dirty"
        write_run(tmp_path / f"x{seed}", name="x", seed=seed, losses=[3.0, 2.9], tokens_per_s=speed, git=git)
    report = build_report([tmp_path], "vanilla", ["residual"])
    write_report(report, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "costs and times are not comparable: x (1,000 to 1,500 tokens/s)." in text
    assert "Not run by the same code and libraries: code (x)." in text
    assert "| x | software | code | eeeeeeeeeeee-dirty | cccccccccccc |" in text


def test_code_is_compared_by_its_sources_not_by_the_commit(tmp_path: Path) -> None:
    def code(*sources: str) -> list[dict[str, Any]]:
        return [{"step": step, "git": "?", "sources": sha * 64} for step, sha in enumerate(sources)]

    for name, commit, found in (
        ("vanilla", "a", code("1")),
        ("same", "b", code("1")),
        ("resumed", "a", code("1", "2")),
    ):
        losses = [3.0, 2.9]
        write_run(tmp_path / name, name=name, seed=1, losses=losses, git=commit * 40, code=found)
    differences = build_report([tmp_path], "vanilla", ["residual"]).differences
    flagged = [(d.system, d.what, d.key, d.theirs, d.baseline) for d in differences]
    assert flagged == [("resumed", "software", "code", f"{'1' * 12} / {'2' * 12}", "1" * 12)]


def test_labels_of_systems_of_one_name_have_the_keys_that_differ(tmp_path: Path) -> None:
    for lr in (1e-3, 2e-3):
        config = {"optimizer": {"lr": lr}}
        write_run(tmp_path / f"{lr}", name="vanilla", seed=1, losses=[3.0, 2.9], config=config)
    report = build_report([tmp_path], "vanilla optimizer.lr=0.002", ["optimizer"])
    assert set(report.board["system"]) == {"vanilla optimizer.lr=0.001", "vanilla optimizer.lr=0.002"}
    assert report.differences == []
    with pytest.raises(ValueError, match="fits several systems; give one of 'baseline=\"vanilla optimizer"):
        build_report([tmp_path], "vanilla", ["optimizer"])


def test_errors_are_one_sentence(sweep: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="baseline=x has no completed run; give one of baseline=better, baseline=same"):
        build_report([sweep], "x", ["residual"])
    with pytest.raises(ValueError, match="no such folder"):
        build_report([tmp_path / "nowhere"], "vanilla", ["residual"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no run"):
        build_report([tmp_path / "empty"], "vanilla", ["residual"])


def test_a_report_of_failures_alone_is_written(tmp_path: Path) -> None:
    write_run(tmp_path / "a", name="vanilla", seed=1, losses=[3.0, 2.9], status="failed", reason="no disk")
    write_report(build_report([tmp_path], "vanilla", ["residual"]), tmp_path)
    assert "failed: no disk" in (tmp_path / "report.html").read_text()


class ExternalReferences(HTMLParser):
    """Parser that collects what a page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "iframe", "object"):
            self.found.append(tag)
        self.found += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href") and not _inside(v)]


def _inside(value: str | None) -> bool:
    return (value or "").startswith(("data:", "#"))


def test_the_page_is_one_file_that_loads_nothing_and_escapes_names(sweep: Path, tmp_path: Path) -> None:
    write_run(sweep / "odd", name="<script>x</script>", seed=1, losses=[4.0, 3.5, 3.3])
    figures = sweep / "0-vanilla" / "figures"
    figures.mkdir()
    (figures / "stream_rms.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    write_report(build_report([sweep], "vanilla", ["residual"]), tmp_path)
    text = (tmp_path / "report.html").read_text()
    parser = ExternalReferences()
    parser.feed(text)
    assert parser.found == []
    assert not re.search(r"url\((?!#)|@import", text)
    assert "&lt;script&gt;x" in text
    assert text.count("<svg ") == 5
    assert "data:image/png;base64,iVBOR" in text


def test_the_same_runs_give_the_same_bytes(sweep: Path, tmp_path: Path) -> None:
    pages = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pages.append(write_report(build_report([sweep], "vanilla", ["residual"]), tmp_path / name).read_bytes())
    assert pages[0] == pages[1]


def test_many_systems_of_one_name_are_labelled_and_the_best_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_runs = MAX_DRAWN + 5
    for i in range(n_runs):
        losses = [4.0, 3.0 + i / 100]
        write_run(tmp_path / f"r/{i:03d}", name="vanilla", seed=1, losses=losses, config={"optimizer": {"lr": i}})
    calls: list[str] = []
    computed_config = systems.computed_config

    def count(run: systems.Run) -> dict[str, Any]:
        calls.append(run.name)
        return computed_config(run)

    monkeypatch.setattr(systems, "computed_config", count)
    report = build_report([tmp_path / "r"], f"vanilla optimizer.lr={n_runs - 1}", ["optimizer"])
    assert len(calls) == 3 * n_runs + 1  # to group, to label, and to compare with the reference
    page = write_report(report, tmp_path).read_text()
    assert [label.partition("=")[2] for label in report.board["system"]] == [str(i) for i in range(n_runs)]
    assert f"Of {n_runs} systems, the {MAX_DRAWN} with the lowest loss and the baseline are drawn." in page
    legend = re.findall(r"<text[^>]*>vanilla optimizer\.lr=(\d+) \(1\)</text>", page)
    assert legend == 3 * [*map(str, range(MAX_DRAWN)), str(n_runs - 1)]


def test_runs_of_different_tokenizers_are_compared_in_bits_per_byte(tmp_path: Path) -> None:
    small = {"name": "small", "sha256": "5" * 64, "n_vocab": 300}
    gpt2 = {"name": "gpt2", "ranks_sha256": "9" * 64, "n_vocab": 50257}
    for name, tokenizer, losses, per_byte in (
        ("vanilla", gpt2, (3.3, 3.4), (1.20, 1.22)),
        ("fewer_ids", small, (2.1, 2.3), (1.25, 1.26)),  # lower per token, higher per byte
    ):
        for seed, loss, bpb in zip((1, 2), losses, per_byte, strict=True):
            data = {"folder": "shards", "hash": tokenizer["name"], "tokenizer": tokenizer}
            folder = tmp_path / f"{name}{seed}"
            write_run(folder, name=name, seed=seed, losses=[4.0, 3.5, loss], data=data, val_bpb=bpb)
    report = build_report([tmp_path], "vanilla", ["residual"])
    assert report.loss == "val bpb"
    assert list(report.board["system"]) == ["vanilla", "fewer_ids"]
    assert report.board["difference"].iloc[1] == pytest.approx(mean((1.25, 1.26)) - mean((1.20, 1.22)))
    (tmp_path / "out").mkdir()
    page = write_report(report, tmp_path / "out").with_suffix(".md").read_text()
    assert "the runs have different tokenizers, gpt2 (50,257 ids) and small (300 ids)" in page
    assert "compared in bits per byte" in page
    assert "Left out: losses per token of different tokenizers do not compare." in page
    same = build_report([tmp_path / "vanilla1", tmp_path / "vanilla2"], "vanilla", ["residual"])
    assert same.loss == "val loss"
