"""Evaluation during training leaves training as it is and notes its scores at their steps."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from src.callbacks.evaluation import headline
from src.callbacks.run_record import read_metrics
from src.evaluation.suite import EvaluationSuite
from src.launch.stop_request import StopRequest
from tests.runs import make_shards
from tests.training.test_trainer import fit, logged_tags

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers and workers
KEYS = ["model.dropout=0.1", "trainer.max_steps=6", "trainer.val_every_steps=4"]


def test_a_run_with_evaluations_equals_one_without_and_has_their_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = make_shards(tmp_path / "shards")
    modes: list[bool] = []

    def run(self: EvaluationSuite, model: Any, tokenizer: Any, between_batches: Any, samples: Any) -> dict[str, Any]:
        modes.append(model.training)
        torch.manual_seed(7)  # whatever it draws or switches must not reach training
        torch.rand(3)
        return {"perplexity": {"x": {"ppl": float(len(modes))}}, "lm_eval": {"y": {"score": 50.0}}}

    monkeypatch.setattr(EvaluationSuite, "run", run)
    torch.manual_seed(0)
    plain = fit(tmp_path / "plain", shards, *KEYS)
    draw = torch.rand(1)
    modes.clear()
    torch.manual_seed(0)
    scored = fit(tmp_path / "scored", shards, *KEYS, "evaluation.every_steps=2")
    assert torch.equal(torch.rand(1), draw)
    assert modes == [False] * 3  # after steps 2, 4 (which is validated) and 6, the last
    rows = read_metrics(tmp_path / "scored")
    scores = [(r["step"], r["tokens"], r["perplexity/x"]) for r in rows if "perplexity/x" in r]
    assert scores == [(2, 256, 1.0), (4, 512, 2.0), (6, 768, 3.0)]
    assert {"perplexity/x", "lm_eval/y"} <= logged_tags(tmp_path / "scored")
    for key in ("train/loss", "val/loss", "grad_norm"):
        ours, theirs = ([r[key] for r in read_metrics(tmp_path / n) if key in r] for n in ("plain", "scored"))
        assert ours == theirs
    for a, b in zip(plain.lightning_module.parameters(), scored.lightning_module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_signal_gives_up_the_evaluation_and_saves_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[StopRequest] = []
    monkeypatch.setattr(StopRequest, "install", lambda self: requests.append(self))

    def run(self: EvaluationSuite, model: Any, tokenizer: Any, between_batches: Any, samples: Any) -> dict[str, Any]:
        requests[0].signum, requests[0].reason = signal.SIGTERM, "stopped by SIGTERM"
        between_batches()
        raise AssertionError("the evaluation continued")

    monkeypatch.setattr(EvaluationSuite, "run", run)
    trainer = fit(tmp_path / "r", make_shards(tmp_path / "shards"), *KEYS, "evaluation.every_steps=2")
    assert trainer.global_step == 2
    assert (tmp_path / "r/checkpoints/step00000002.ckpt").exists()
    assert trainer.lightning_module.training


def test_the_headline_has_each_score_and_leaves_out_what_was_skipped() -> None:
    scores = {
        "perplexity": {"wikitext2": {"ppl": 30, "loss": 3.4}, "lambada": {"skipped": "no data"}},
        "lm_eval": {"arc_easy": {"score": 40.5, "acc": 0.4}},
    }
    assert headline(scores) == {"perplexity/wikitext2": 30.0, "lm_eval/arc_easy": 40.5}
    assert headline({}) == {}
