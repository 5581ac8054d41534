"""Scores and conditions of runs as a report reads them; `test_report.py` has whole reports."""

import json
from pathlib import Path

from src.reporting.runs import final_scores, read_run, read_scores
from src.reporting.systems import computed_config, group_runs
from tests.reporting.folders import entry_ppl, entry_task, write_run


def test_scores_per_token_follow_the_tokens_and_scores_per_word_or_byte_the_text() -> None:
    entry = {**entry_ppl(40.0), "bits_per_byte": 1.25, "acc": 0.5, "text_sha256": "t" * 64}
    found = read_scores("set", entry)
    sha256 = {column: dict(score.identity)["sha256"] for column, score in found.items()}
    assert sha256 == {"set ppl": "a" * 64, "set bits/byte": "t" * 64, "set acc": "a" * 64}
    assert found["set acc"].value == 50.0
    per_word = read_scores("set", {**entry, "protocol": "rolling windows, word level"})
    assert dict(per_word["set ppl"].identity)["sha256"] == "t" * 64


def test_a_complete_score_of_the_run_itself_is_kept_beside_a_later_one(tmp_path: Path) -> None:
    scores = {"perplexity": {"a": entry_ppl(40.0), "b": entry_ppl(50.0, "first 9 tokens")}}
    folder = write_run(tmp_path / "r", name="x", seed=1, losses=[3.0, 2.9], scores=scores)
    (folder / "evaluations").mkdir()
    later = {"perplexity": {"a": entry_ppl(41.0), "b": entry_ppl(51.0)}, "lm_eval": {"piqa": entry_task(60.0)}}
    for step in (2, 4):
        (folder / f"evaluations/{step}.json").write_text(
            json.dumps({"step": step, "scores": later if step == 4 else {}})
        )
    found, omitted = final_scores(read_run(folder))
    assert (found["a ppl"].value, found["b ppl"].value, found["piqa acc_norm"].value) == (40.0, 51.0, 60.0)
    assert omitted == {}


def test_a_key_that_is_null_is_as_one_that_is_absent(tmp_path: Path) -> None:
    run = read_run(
        write_run(tmp_path / "r", name="x", seed=1, losses=[3.0], config={"schedule": {"decay_steps": None}})
    )
    assert "schedule.decay_steps" not in computed_config(run)


def test_runs_that_differ_in_how_they_are_executed_are_one_system(tmp_path: Path) -> None:
    trainer = {"max_steps": 2, "devices": 1, "precision": "32-true", "threads": 1}
    keys = [{}, {"max_time": "1:0:0:0"}, {"detect_anomaly": True, "peak_flops": 1e12}]
    runs = [
        read_run(write_run(tmp_path / str(i), name="x", seed=i, losses=[3.0], config={"trainer": {**trainer, **own}}))
        for i, own in enumerate(keys)
    ]
    (system,) = group_runs(runs).systems
    assert [run.seed for run in system.runs] == [0, 1, 2]
