"""Every perplexity protocol against a plain computation, a token at a time, on transformers' GPT-2."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from src.datamodules.tokenization.gpt2 import gpt2_tokenizer
from src.datamodules.tokenizer import END_OF_TEXT, gpt2_encoding
from src.evaluation.lm_adapter import GPTAdapter
from src.evaluation.perplexity import Window, rolling_windows, sliding_windows
from src.evaluation.protocols import PROTOCOLS, Scorer, score_token_sliding
from src.evaluation.sources import PROTOCOL_NAMES, TextSet
from src.models.gpt import GPT
from tests.support import component, export_gpt2, jitter, tiny_gpt

T = 12
ROWS = [
    "It was the best of times, it was the worst of times, it was the age of wisdom",
    "Ça va? Наука, naïve café — \u4f60\u597d, said the captain of the little ship",
    "She opened the door, and behind the door there was another door",
]
STREAM = np.random.default_rng(0).integers(0, 50257, 101).astype(np.uint16)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT, Any]:
    """The same random weights here and in transformers."""
    transformers = pytest.importorskip("transformers", reason="a development dependency")
    gpt = jitter(tiny_gpt(bias=True, vocab_size=50304, n_layer=2), 0.2).eval()
    folder = tmp_path_factory.mktemp("hub") / "gpt2"
    export_gpt2(gpt, folder)
    return gpt, transformers.GPT2LMHeadModel.from_pretrained(folder).eval()


def log_probability(theirs: Any, context: list[int], token: int) -> tuple[float, bool]:
    """Return the log-probability of a token after at most T tokens, and true if it is the most likely."""
    assert 1 <= len(context) <= T
    with torch.no_grad():
        logits_V = theirs(torch.tensor([context])).logits[0, -1].double()
    return float(logits_V.log_softmax(-1)[token]), int(logits_V.argmax()) == token


def text_set(**keys: Any) -> TextSet:
    values = {"path": None, "hub": None, "field": "text", "join": "\n\n", "limit_tokens": None, "stride": None}
    return TextSet(**{**values, "protocol": "windows", **keys})


def scored(gpt: GPT, **keys: Any) -> dict[str, Any]:
    text = text_set(**keys)
    scorer = Scorer(gpt, gpt2_tokenizer(), batch_size=3, between_batches=lambda: None)
    return PROTOCOLS[text.protocol](scorer, ROWS, text)


def tokens_of_rows() -> list[int]:
    found: list[int] = gpt2_encoding().encode_ordinary("\n\n".join(ROWS))
    return found


def test_windows_equals_a_plain_computation(pair: tuple[GPT, Any]) -> None:
    gpt, theirs = pair
    tokens = tokens_of_rows()
    whole = (len(tokens) - 1) // T * T
    total = sum(log_probability(theirs, tokens[i // T * T : i + 1], tokens[i + 1])[0] for i in range(whole))
    found = scored(gpt)
    assert found["ppl"] == pytest.approx(math.exp(-total / whole), rel=1e-5)
    assert found["tokens"] == whole


@pytest.mark.parametrize("stride", [1, 5, 11, 12])
def test_sliding_equals_a_plain_computation(pair: tuple[GPT, Any], stride: int) -> None:
    gpt, theirs = pair
    tokens = STREAM.tolist()
    total = 0.0
    for i in range(1, len(tokens)):
        start = max(0, math.ceil((i - T) / stride)) * stride  # the first window that reaches token i
        total += log_probability(theirs, tokens[start:i], tokens[i])[0]
    scorer = Scorer(gpt, gpt2_tokenizer(), batch_size=7, between_batches=lambda: None)
    found = score_token_sliding(scorer, STREAM, None, stride)
    assert found["ppl"] == pytest.approx(math.exp(-total / (len(tokens) - 1)), rel=1e-5)
    assert (found["tokens"], found["limited"], found["stride"]) == (len(tokens) - 1, None, stride)


def rolling_total(theirs: Any, tokens: list[int]) -> float:
    """Each token once, from end of text on; the tail after all that a window holds before it."""
    stream = [END_OF_TEXT, *tokens]
    n = len(tokens)
    total = 0.0
    for i in range(1, n + 1):
        start = (i - 1) // T * T
        if n - start < T:
            start = max(0, n - T)
        total += log_probability(theirs, stream[start:i], stream[i])[0]
    return total


def test_words_and_bytes_equal_a_plain_computation(pair: tuple[GPT, Any]) -> None:
    gpt, theirs = pair
    text = "\n\n".join(ROWS)
    total = rolling_total(theirs, tokens_of_rows())
    by_word, by_byte = scored(gpt, protocol="words"), scored(gpt, protocol="bytes")
    n_bytes = len(text.encode())
    assert by_word["ppl"] == pytest.approx(math.exp(-total / len(text.split())), rel=1e-5)
    assert by_byte["ppl"] == pytest.approx(math.exp(-total / n_bytes), rel=1e-5)
    assert by_byte["bits_per_byte"] == pytest.approx(-total / n_bytes / math.log(2), rel=1e-5)
    assert (by_word["words"], by_byte["bytes"]) == (len(text.split()), n_bytes)
    assert by_word["tokens"] == len(tokens_of_rows())


def test_rolling_is_lm_evals_rolling_log_likelihood(pair: tuple[GPT, Any]) -> None:
    gpt, _ = pair
    adapter = GPTAdapter(gpt, gpt2_tokenizer(), batch_size=2, between_batches=lambda: None)
    (theirs,) = adapter.loglikelihood_rolling([SimpleNamespace(args=("\n\n".join(ROWS),))])  # type: ignore[list-item]
    found = scored(gpt, protocol="words")
    assert found["loss"] * found["tokens"] == pytest.approx(-theirs, rel=1e-6)


def test_last_word_equals_a_plain_computation(pair: tuple[GPT, Any]) -> None:
    gpt, theirs = pair
    losses, right = [], []
    for row in ROWS:
        at = row.rindex(" ")
        context, word = (gpt2_encoding().encode_ordinary(part) for part in (row[:at], row[at:]))
        total, greedy = 0.0, True
        start = max(0, len(context) + len(word) - 1 - T)
        for i in range(len(word)):
            logp, likeliest = log_probability(theirs, (context + word[:i])[start:], word[i])
            total, greedy = total + logp, greedy and likeliest
        losses.append(-total)
        right.append(greedy)
    found = scored(gpt, protocol="last_word")
    assert found["ppl"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert found["acc"] == sum(right) / len(right)
    assert (found["items"], found["limited"]) == (3, None)


def test_last_word_detects_the_most_likely_word(pair: tuple[GPT, Any]) -> None:
    gpt, _ = pair
    encoding = gpt2_encoding()
    right = []
    for start in ("It was the best of", "She opened", "In the beginning there was"):
        with torch.no_grad():
            likeliest = int(gpt(torch.tensor([encoding.encode_ordinary(start)]))[0, -1].argmax())
        word = encoding.decode([likeliest]) if likeliest < 50257 else ""
        if word[:1] == " " and word[1:].isalpha() and encoding.encode_ordinary(word) == [likeliest]:
            right.append(start + word)
    assert right, "no start has a word as its likeliest token; choose others"
    found = PROTOCOLS["last_word"](Scorer(gpt, gpt2_tokenizer(), 2, lambda: None), [*right, ROWS[0]], text_set())
    assert found["acc"] == len(right) / (len(right) + 1)


def test_a_limit_counts_predicted_tokens_and_is_marked(pair: tuple[GPT, Any]) -> None:
    gpt, theirs = pair
    n = len(tokens_of_rows())
    assert scored(gpt, limit_tokens=30)["limited"] == f"first 24 of {(n - 1) // T * T} tokens"
    found = scored(gpt, limit_tokens=30, protocol="sliding", stride=4)
    assert (found["tokens"], found["limited"]) == (30, f"first 30 of {n - 1} tokens")
    found = scored(gpt, limit_tokens=30, protocol="bytes")
    cut = tokens_of_rows()[:30]
    assert found["bytes"] == len(gpt2_encoding().decode_bytes(cut))
    assert found["ppl"] == pytest.approx(math.exp(-rolling_total(theirs, cut) / found["bytes"]), rel=1e-5)
    assert found["limited"] == f"first 30 of {n} tokens"
    found = scored(gpt, limit_tokens=2, protocol="last_word")
    assert (found["items"], found["limited"]) == (2, "first 2 of 3 rows")


@pytest.mark.parametrize("size", [1, 5, 12])
@pytest.mark.parametrize("n", [2, 11, 12, 13, 14, 25, 40])
def test_every_token_is_predicted_once(n: int, size: int) -> None:
    plans = [rolling_windows(n, size), *(sliding_windows(n, size, stride) for stride in range(1, size + 1))]
    for plan in plans:
        predicted = [w.start + i + 1 for w in plan for i in range(w.seen, w.length)]
        assert predicted == list(range(1, n))
        assert all(1 <= w.length <= size for w in plan)


def test_the_tail_of_a_rolling_stream_has_a_full_window() -> None:
    assert rolling_windows(16, 12) == [Window(0, 12, 0), Window(3, 12, 9)]
    assert sliding_windows(16, 12, 12) == [Window(0, 12, 0), Window(12, 3, 0)]


def test_an_invalid_protocol_or_stride_is_rejected_before_the_run() -> None:
    assert tuple(PROTOCOLS) == PROTOCOL_NAMES
    with pytest.raises(ValueError, match=r"k\.protocol must be one of windows, .*, got window"):
        text_set(protocol="window").check("k", T)
    with pytest.raises(ValueError, match=r"k\.stride goes with k\.protocol=sliding"):
        text_set(stride=3).check("k", T)
    with pytest.raises(ValueError, match=r"k\.stride goes with k\.protocol=sliding"):
        text_set(protocol="sliding").check("k", T)
    with pytest.raises(ValueError, match=r"k\.stride must be between 1 and model\.block_size, 12, got 13"):
        text_set(protocol="sliding", stride=13).check("k", T)
    with pytest.raises(ValueError, match="row 2 has fewer than two words"):
        PROTOCOLS["last_word"](Scorer(tiny_gpt(), gpt2_tokenizer(), 1, lambda: None), ["a b", "one "], text_set())


def test_the_shipped_suite_of_all_protocols_has_each() -> None:
    texts = component("evaluation", "perplexities").texts
    assert {text.protocol for text in texts.values()} == set(PROTOCOLS)
    for name, text in texts.items():
        text.check(name, 128)


def test_real_texts_are_scored_under_every_protocol() -> None:
    path = Path(__file__).parents[2].parent / "shared/data/local/eval/wikitext2_test.jsonl.xz"
    if not path.exists():
        pytest.skip("WikiText-2 is not beside the project")
    gpt = tiny_gpt(vocab_size=50304)
    for protocol in PROTOCOLS:
        stride = 6 if protocol == "sliding" else None
        text = text_set(path=str(path), field="page", limit_tokens=240, protocol=protocol, stride=stride)
        rows = text.read_rows("k")
        assert rows is not None
        found = PROTOCOLS[protocol](Scorer(gpt, gpt2_tokenizer(), 16, lambda: None), rows, text)
        assert found["loss"] * found.get("items", found["tokens"]) / found["tokens"] == pytest.approx(
            math.log(50304), rel=0.01
        )
        assert (found["limited"] is None) == (protocol == "last_word")  # fewer pages than 240
