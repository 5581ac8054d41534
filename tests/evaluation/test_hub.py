"""Data sets of the hub where it cannot be reached: one request, then the cache, then one sentence."""

import datasets
import pytest
from huggingface_hub import constants

from src.datamodules.tokenization.gpt2 import gpt2_tokenizer
from src.evaluation import hub
from src.evaluation.hub import find_obstacle, prefer_hub
from src.evaluation.suite import EvaluationSuite
from tests.support import component, tiny_gpt

OBSTACLE = "ConnectError: [Errno 111] Connection refused"


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    asked = find_obstacle()
    assert asked is not None
    assert "Error" in asked
    with prefer_hub():
        assert constants.HF_HUB_OFFLINE
        assert datasets.config.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
    assert not datasets.config.HF_HUB_OFFLINE


def test_the_environment_decides_without_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "find_obstacle", lambda: pytest.fail("a request"))
    with prefer_hub():
        assert constants.HF_HUB_OFFLINE
    assert constants.HF_HUB_OFFLINE


def test_a_run_is_rejected_at_once_where_its_texts_are_neither_on_the_hub_nor_cached(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hub, "find_obstacle", lambda: OBSTACLE)
    suite = component("evaluation", "perplexities")
    with pytest.raises(ValueError, match=r"wikitext2\.hub=Salesforce/wikitext could not be fetched") as error:
        suite.check(gpt2_tokenizer(), 50304, 128)
    assert str(error.value).count(";") == 1  # one sentence with the way out
    assert OBSTACLE in caplog.text


def test_scores_that_cannot_be_had_at_the_end_of_a_training_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "find_obstacle", lambda: OBSTACLE)
    text = {"path": None, "hub": ["no-one/nothing", "default", "test"], "field": "text", "join": "\n"}
    texts = {"gone": {**text, "limit_tokens": None, "protocol": "windows", "stride": None}}
    lm_eval = {"tasks": ["piqa"], "files": {}, "limit": 1, "num_fewshot": 0}
    suite = EvaluationSuite(perplexity=texts, lm_eval=lm_eval, batch_size=1, every_steps=None, log_samples=False)
    monkeypatch.setattr("src.evaluation.harness._load", _fail)
    scores = suite.run(tiny_gpt(vocab_size=50304).eval(), gpt2_tokenizer(), lambda: None)
    for entry in (scores["perplexity"]["gone"], scores["lm_eval"]["piqa"]):
        assert entry["skipped"].endswith("; task=evaluate run=<run folder> scores it later")


def _fail(*_: object) -> None:
    raise ConnectionError("no route to host")
