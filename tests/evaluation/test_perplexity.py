"""Perplexity against an independent computation on transformers' GPT-2."""

import dataclasses
import gzip
import json
import lzma
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from src.datamodules.tokenization.gpt2 import gpt2_tokenizer
from src.evaluation.protocols import PROTOCOLS, Scorer, score_token_windows
from src.evaluation.sources import TextSet, read_texts, resolve_path
from src.evaluation.suite import EvaluationSuite
from src.models.gpt import GPT
from tests.ranks import run_ranks
from tests.support import ROOT, component, export_gpt2, jitter, option, tiny_gpt

STREAM = np.random.default_rng(0).integers(0, 64, 12 * 20 + 7).astype(np.uint16)


def score(gpt: GPT, **keys: Any) -> dict[str, Any]:
    values = {"batch_size": 4, "between_batches": lambda: None, **keys}
    limit_tokens = values.pop("limit_tokens", None)
    return score_token_windows(Scorer(gpt.eval(), gpt2_tokenizer(), **values), STREAM, limit_tokens)


def test_perplexity_equals_a_direct_computation_on_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="a development dependency")
    gpt = jitter(tiny_gpt(bias=True))
    export_gpt2(gpt, tmp_path / "hub")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hub").eval()
    losses = []
    for i in range(20):
        window = torch.from_numpy(STREAM[12 * i : 12 * i + 13].astype(np.int64))
        with torch.no_grad():
            logp = theirs(window[None, :-1]).logits[0].double().log_softmax(-1)
        losses += [-logp[t, window[t + 1]].item() for t in range(12)]
    expected = math.exp(sum(losses) / len(losses))
    found = score(gpt)
    assert found["ppl"] == pytest.approx(expected, rel=1e-5)
    assert (found["tokens"], found["windows"], found["limited"]) == (240, 20, None)


def test_a_limit_is_rounded_to_windows_and_marked() -> None:
    found = score(tiny_gpt(), limit_tokens=30)
    assert found["windows"] == 2
    assert found["limited"] == "first 24 of 240 tokens"


def test_the_batch_size_changes_nothing_and_the_poll_is_called() -> None:
    polls: list[int] = []
    a = score(jitter(tiny_gpt()), batch_size=1, between_batches=lambda: polls.append(1))
    b = score(jitter(tiny_gpt()), batch_size=64)
    assert a["ppl"] == pytest.approx(b["ppl"], rel=1e-6)
    assert a["sha256"] == b["sha256"]
    assert len(polls) == 20


def test_a_stream_shorter_than_a_window_is_rejected() -> None:
    with pytest.raises(ValueError, match="fills no window of 12"):
        score(tiny_gpt(), limit_tokens=11)


def loss() -> float:
    return float(score(jitter(tiny_gpt()))["loss"])


def test_two_ranks_share_the_windows_and_agree() -> None:
    losses = run_ranks(loss)
    assert losses[0] == losses[1] == pytest.approx(loss(), rel=1e-7)


# ---- sources


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    rows = [{"text": "one"}, {"text": "two\nlines"}]
    with lzma.open(tmp_path / "t.jsonl.xz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "t.txt").write_text("one\n\ntwo\nlines")
    return tmp_path


def test_rows_and_plain_text_make_the_same_stream(texts: Path) -> None:
    keys: dict[str, Any] = {"hub": None, "field": "text", "join": "\n\n", "limit_tokens": None}
    keys |= {"protocol": "windows", "stride": None}
    rows = [TextSet(path=str(texts / name), **keys).read_rows("k") for name in ("t.jsonl.xz", "t.txt")]
    assert ["\n\n".join(found or []) for found in rows] == ["one\n\ntwo\nlines"] * 2
    assert TextSet(path=None, **keys).read_rows("k") is None


def test_a_row_without_text_and_a_missing_file_are_named(texts: Path) -> None:
    with pytest.raises(ValueError, match="row 1: no text in field 'body'; fields with text: text"):
        read_texts(texts / "t.jsonl.xz", "body")
    with pytest.raises(ValueError, match=r"evaluation\.x\.path=gone\.txt: no such file"):
        resolve_path("evaluation.x.path", "gone.txt")


def test_a_damaged_file_is_named(texts: Path) -> None:
    whole = (texts / "t.jsonl.xz").read_bytes()
    packed = gzip.compress(b'{"text": "one"}\n' * 9)
    damaged = {
        "cut.jsonl.xz": whole[: len(whole) // 2],
        "changed.jsonl.xz": whole[:20] + b"\0\0\0\0" + whole[24:],
        "cut.jsonl.gz": packed[:-9],
        "changed.jsonl.gz": packed[:12] + b"\xff\xff" + packed[14:],
        "none.jsonl.gz": b"not packed",
        "latin.txt": "caf\xe9".encode("latin-1"),
    }
    for name, raw in damaged.items():
        (texts / name).write_bytes(raw)
        with pytest.raises(ValueError, match=rf"{name}: damaged \(.+\); restore it"):
            read_texts(texts / name, "text")


def test_without_a_file_the_hub_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*args: Any, **keys: Any) -> datasets.Dataset:
        asked.append((args, keys))
        return datasets.Dataset.from_dict({"text": ["a", "b"], "number": [1, 2]})

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    suite = component("evaluation", "full")
    assert suite.texts["wikitext2"].read_rows("k") == ["a", "b"]
    assert asked == [(("Salesforce/wikitext", "wikitext-2-raw-v1"), {"split": "test"})]
    for field, words in (
        ("number", r"k\.hub=Salesforce/wikitext, row 1: no text in column 'number', but 1$"),
        ("page", r"k\.hub=Salesforce/wikitext has no column 'page'; its columns: text, number$"),
    ):
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(suite.texts["wikitext2"], field=field).read_rows("k")


def test_the_shipped_suites_check_their_files_and_none_is_empty() -> None:
    for name in ("limited", "none"):
        component("evaluation", name).check(gpt2_tokenizer(), 50304, 128)
    assert component("evaluation", "none").run(tiny_gpt(), None, lambda: None) == {"perplexity": {}, "lm_eval": {}}
    with pytest.raises(ValueError, match=r"model\.vocab_size=512; give model\.vocab_size=50304"):
        component("evaluation", "limited").check(None, 512, 128)
    with pytest.raises(ValueError, match=r"50257 ids of tokenizer gpt2, .* 512; give model\.vocab_size=50304"):
        component("evaluation", "limited").check(gpt2_tokenizer(), 512, 128)


def test_data_missing_on_the_hub_is_an_error_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from src.evaluation import harness

    def offline(*args: Any, **keys: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("src.evaluation.hub.find_obstacle", lambda: None)
    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(ValueError, match=r"wikitext2\.hub=Salesforce/wikitext could not be fetched .*hub=null"):
        component("evaluation", "full").check(gpt2_tokenizer(), 50304, 128)
    monkeypatch.setattr(harness, "TaskManager", lambda **_: SimpleNamespace(_index={"arc_easy": 1}, load=offline))
    with pytest.raises(ValueError, match="has no task arc_hard"):
        harness.load(["arc_easy", "arc_hard"], {}, None)
    with pytest.raises(ValueError, match=r"files\.<task>=<file>"):
        harness.load(["arc_easy"], {}, None)


def suite_of(file: Path, content: str, **keys: Any) -> EvaluationSuite:
    """A suite of one text."""
    file.write_text(content)
    text = {"path": str(file), "hub": None, "field": "text", "join": "\n", "limit_tokens": None, "stride": None}
    lm_eval: dict[str, Any] = {"tasks": [], "files": {}, "limit": None, "num_fewshot": 0}
    return EvaluationSuite(
        perplexity={"mine": {**text, **keys}}, lm_eval=lm_eval, batch_size=2, every_steps=None, log_samples=False
    )


@pytest.mark.parametrize(
    ("content", "keys", "words"),
    [
        ("a b " * 20, {"protocol": "windows", "limit_tokens": 11}, "limit_tokens=11 fills no window of 12"),
        ("a b", {"protocol": "windows"}, "a stream of 2 tokens fills no window of 12"),
        ("", {"protocol": "words"}, "a stream of 1 tokens has none to predict"),
        ("a", {"protocol": "sliding", "stride": 3}, "a stream of 1 tokens has none to predict"),
        ("one", {"protocol": "last_word"}, "row 1 has fewer than two words"),
        ("", {"protocol": "last_word", "name": "t.jsonl"}, "there is no row"),
    ],
)
def test_a_text_that_cannot_be_scored_is_rejected_before_the_run_and_left_out_after_it(
    content: str, keys: dict[str, Any], words: str, tmp_path: Path
) -> None:
    keys = dict(keys)
    suite = suite_of(tmp_path / keys.pop("name", "t.txt"), content, **keys)
    with pytest.raises(ValueError, match=rf"^evaluation\.perplexity\.mine: .*{words}"):
        suite.check(gpt2_tokenizer(), 50304, 12)
    entry = suite.run(tiny_gpt(vocab_size=50304).eval(), gpt2_tokenizer(), lambda: None)["perplexity"]["mine"]
    assert re.search(words, entry["skipped"])


def test_an_error_of_the_scoring_itself_leaves_the_text_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no bytes")

    suite = suite_of(tmp_path / "t.txt", "a b " * 20, protocol="windows")
    monkeypatch.setitem(PROTOCOLS, "windows", fail)
    scores = suite.run(tiny_gpt(vocab_size=50304).eval(), gpt2_tokenizer(), lambda: None)
    assert scores["perplexity"]["mine"]["skipped"].startswith("no bytes; task=evaluate")


def test_a_missing_wikitext_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    config = option("evaluation", "limited")
    config.perplexity.pop("lambada")
    config.lm_eval.tasks = []
    scores = component_of(config).run(tiny_gpt(vocab_size=50304), gpt2_tokenizer(), lambda: None)
    assert "give evaluation.perplexity.wikitext2.path=<file>" in scores["perplexity"]["wikitext2"]["skipped"]
    assert "wikitext2 left out" in caplog.text


def component_of(config: Any) -> EvaluationSuite:
    from hydra.utils import instantiate

    made: EvaluationSuite = instantiate(config)
    return made


def test_a_wrong_key_in_the_suite_is_named() -> None:
    with pytest.raises(ValueError, match=r"evaluation\.lm_eval must have the keys tasks, files, limit"):
        EvaluationSuite(perplexity={}, lm_eval={"task": []}, batch_size=1, every_steps=None, log_samples=False)


def test_real_wikitext_is_scored_if_available() -> None:
    path = ROOT.parent / "shared/data/local/eval/wikitext2_test.jsonl.xz"
    if not path.exists():
        pytest.skip("WikiText-2 is not beside the project")
    config = option("evaluation", "limited")
    config.perplexity.pop("lambada")
    config.perplexity.wikitext2.path = str(path)
    config.perplexity.wikitext2.field = "page"
    config.perplexity.wikitext2.limit_tokens = 240
    config.lm_eval.tasks = []
    gpt = tiny_gpt(vocab_size=50304)
    scores = component_of(config).run(gpt, gpt2_tokenizer(), lambda: None)["perplexity"]["wikitext2"]
    assert scores["ppl"] == pytest.approx(50304, rel=0.05)
    assert scores["limited"].startswith("first 240 of 28")
