"""Scored items as files, in lm-eval's own form."""

import json
from pathlib import Path

import numpy as np
import pytest

from src.datamodules.tokenization.gpt2 import gpt2_tokenizer
from src.evaluation.samples import write_samples
from tests.support import component, tiny_gpt

ROW = {
    "doc_id": 0,
    "doc": {"question": "1 + 1 =", "answer": "zwei \u2014 2"},
    "target": 1,
    "arguments": [("1 + 1 =", " 1"), ("1 + 1 =", " 2")],
    "resps": [[(-1.5, False)], [(-0.5, True)]],
    "filtered_resps": [(-1.5, False), (-0.5, True)],
    "acc": np.float64(1.0),
}


def test_a_row_is_as_lm_eval_writes_it(tmp_path: Path) -> None:
    write_samples(tmp_path / "new", {"first": [ROW, ROW], "second": []})
    first, second = (tmp_path / "new/samples_first.jsonl", tmp_path / "new/samples_second.jsonl")
    row, again = map(json.loads, first.read_text("utf-8").splitlines())
    assert (
        row
        == again
        == {
            **ROW,
            "target": "1",
            "arguments": {
                "gen_args_0": {"arg_0": "1 + 1 =", "arg_1": " 1"},
                "gen_args_1": {"arg_0": "1 + 1 =", "arg_1": " 2"},
            },
            "resps": [[["-1.5", "False"]], [["-0.5", "True"]]],
            "filtered_resps": [["-1.5", "False"], ["-0.5", "True"]],
            "acc": 1.0,
        }
    )
    assert second.read_text() == ""
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["samples_first.jsonl", "samples_second.jsonl"]


def test_lm_evals_tracker_writes_the_same_bytes(tmp_path: Path) -> None:
    tracker = pytest.importorskip("lm_eval.loggers").EvaluationTracker(output_path=str(tmp_path / "theirs"))
    tracker.general_config_tracker.model_name_sanitized = "m"
    tracker.date_id = "now"
    tracker.save_results_samples("first", [dict(ROW)])
    write_samples(tmp_path, {"first": [ROW]})
    (theirs,) = (tmp_path / "theirs").rglob("*.jsonl")
    assert (tmp_path / "samples_first.jsonl").read_bytes() == theirs.read_bytes()


def test_a_suite_writes_its_items_on_request_only(tmp_path: Path) -> None:
    for wanted in (False, True):
        suite = component("evaluation", "embedded", log_samples=wanted)
        suite.texts.clear()
        object.__setattr__(suite.tasks, "limit", 2)
        scores = suite.run(tiny_gpt(vocab_size=50304).eval(), gpt2_tokenizer(), lambda: None, tmp_path / str(wanted))
        assert {*scores["lm_eval"]} == {"arc_easy", "piqa", "winogrande"}
    assert not (tmp_path / "False").exists()
    names = sorted(path.name for path in (tmp_path / "True").iterdir())
    assert names == ["samples_arc_easy.jsonl", "samples_piqa.jsonl", "samples_winogrande.jsonl"]
    rows = [json.loads(line) for line in (tmp_path / "True/samples_arc_easy.jsonl").read_text("utf-8").splitlines()]
    assert sum(row["acc_norm"] for row in rows) / 2 == scores["lm_eval"]["arc_easy"]["acc_norm"]
