"""The perplexity protocols by name, as `evaluation.perplexity.<set>.protocol` gives them.

windows    Token level, non-overlapping windows, tail dropped: the benchmark's. For LAMBADA this is the
           perplexity of whole passages.
sliding    Token level, overlapping windows of `stride`; every token with much context.
words      exp(total / words): the rows joined into one text, each token predicted once after end of text
           (rolling windows). A word is what whitespace separates; one that a limit cuts counts.
bytes      The same per UTF-8 byte, with bits per byte = total / bytes / ln 2. Compares across tokenizers.
last_word  Each row: the last word, with the space before it, given the rest: exp(mean loss of a word) and the
           share of rows where each of its tokens is the likeliest. LAMBADA's own metric.

A limit counts predicted tokens: rounded down to windows (`windows`), exact (`sliding`, `words`, `bytes`), or
rounded up to rows (`last_word`).

Source: MLS-Bench; Hugging Face; lm-evaluation-harness 0.4.13, tasks wikitext and lambada_openai.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from src.datamodules.tokenizer import END_OF_TEXT, gpt2_encoding
from src.evaluation import perplexity
from src.evaluation.perplexity import Tokens, bounded_exp, total_loss
from src.evaluation.sources import TextSet
from src.models.gpt import GPT

Entry = dict[str, Any]


@dataclass(frozen=True)
class Scorer:
    """A model and how it is run.

    Args:
        model: in evaluation mode, under whatever autocast is active.
        batch_size: sequences of a forward.
        between_batches: called after each forward.
    """

    model: GPT
    batch_size: int
    between_batches: Callable[[], None]

    def total(self, tokens: Tokens, windows: Sequence[perplexity.Window]) -> float:
        """Cross-entropy in nats over what `windows` predict."""
        how = {"batch_size": self.batch_size, "between_batches": self.between_batches}
        return total_loss(self.model, tokens, windows, **how)  # type: ignore[arg-type]  # a mapping of two types


def windows(scorer: Scorer, rows: list[str], text: TextSet) -> Entry:
    """Protocol `windows`."""
    return token_windows(scorer, stream(rows, text), text.limit_tokens)


def token_windows(scorer: Scorer, tokens: Tokens, limit_tokens: int | None) -> Entry:
    """Protocol `windows` on a stream of tokens."""
    T = scorer.model.config.block_size
    plan = perplexity.disjoint_windows(len(tokens), T, limit_tokens)
    whole = (len(tokens) - 1) // T
    limited = None if len(plan) == whole else f"first {len(plan) * T} of {whole * T} tokens"
    name = "non-overlapping windows of block_size, token level"
    return {**perplexity.entry(scorer.total(tokens, plan), tokens, plan, T, name), "limited": limited}


def sliding(scorer: Scorer, rows: list[str], text: TextSet) -> Entry:
    """Protocol `sliding`."""
    assert text.stride is not None  # TextSet refuses it
    return token_sliding(scorer, stream(rows, text), text.limit_tokens, text.stride)


def token_sliding(scorer: Scorer, tokens: Tokens, limit_tokens: int | None, stride: int) -> Entry:
    """Protocol `sliding` on a stream of tokens."""
    T = scorer.model.config.block_size
    n = len(tokens) if limit_tokens is None else min(len(tokens), limit_tokens + 1)
    plan = perplexity.sliding_windows(n, T, stride)
    name = "sliding windows of block_size, token level"
    found = perplexity.entry(scorer.total(tokens, plan), tokens, plan, T, name)
    return {**found, "stride": stride, "limited": _limited(n - 1, len(tokens) - 1)}


def words(scorer: Scorer, rows: list[str], text: TextSet) -> Entry:
    """Protocol `words`."""
    found = _rolling(scorer, rows, text, "rolling windows, word level")
    return {**found, "ppl": found["word_ppl"]}


def bytes_(scorer: Scorer, rows: list[str], text: TextSet) -> Entry:
    """Protocol `bytes`."""
    found = _rolling(scorer, rows, text, "rolling windows, byte level")
    return {**found, "ppl": found["byte_ppl"]}


def _rolling(scorer: Scorer, rows: list[str], text: TextSet, name: str) -> Entry:
    T = scorer.model.config.block_size
    whole = stream(rows, text)
    tokens = whole if text.limit_tokens is None else whole[: text.limit_tokens]
    prefixed = np.concatenate((np.array([END_OF_TEXT], dtype=np.uint16), tokens))
    plan = perplexity.rolling_windows(len(prefixed), T)
    total = scorer.total(prefixed, plan)
    raw = gpt2_encoding().decode_bytes(tokens.tolist())
    n_words = len(raw.decode("utf-8", errors="replace").split())  # a limit may cut a character
    return {
        **perplexity.entry(total, whole, plan, T, name),
        "word_ppl": bounded_exp(total / max(1, n_words)),
        "byte_ppl": bounded_exp(total / len(raw)),
        "bits_per_byte": total / len(raw) / math.log(2),
        "words": n_words,
        "bytes": len(raw),
        "limited": _limited(len(tokens), len(whole)),
    }


def last_word(scorer: Scorer, rows: list[str], text: TextSet) -> Entry:
    """Protocol `last_word`.

    Raises:
        ValueError: a row of fewer than two words.
    """
    from src.evaluation.lm_adapter import GPTAdapter  # imports lm-eval, which takes seconds

    pairs = [_last_word(i, row) for i, row in enumerate(rows, 1)]
    encode = gpt2_encoding().encode_ordinary
    coded = [(pair, encode(pair[0]), encode(pair[1])) for pair in pairs]
    kept, n_tokens = 0, 0
    while kept < len(coded) and (text.limit_tokens is None or n_tokens < text.limit_tokens):
        n_tokens += len(coded[kept][2])
        kept += 1
    adapter = GPTAdapter(scorer.model, batch_size=scorer.batch_size, between_batches=scorer.between_batches)
    scored = adapter._loglikelihood_tokens(coded[:kept])
    loss = -sum(logp for logp, _ in scored) / kept
    return {
        "ppl": bounded_exp(loss),
        "loss": loss,
        "acc": sum(greedy for _, greedy in scored) / kept,
        "items": kept,
        "tokens": n_tokens,
        "block_size": scorer.model.config.block_size,
        "protocol": "last word of each row, word level",
        "sha256": hashlib.sha256(json.dumps([c[1:] for c in coded]).encode()).hexdigest(),
        "limited": None if kept == len(coded) else f"first {kept} of {len(coded)} rows",
    }


def _last_word(number: int, row: str) -> tuple[str, str]:
    context, space, word = row.strip().rpartition(" ")
    if not (context and space):
        raise ValueError(f"row {number} has fewer than two words, so protocol last_word has nothing to predict")
    return context, space + word


def _limited(n: int, whole: int) -> str | None:
    return None if n == whole else f"first {n} of {whole} tokens"


def stream(rows: list[str], text: TextSet) -> Tokens:
    """The rows as one stream of tokens."""
    return np.array(gpt2_encoding().encode_ordinary(text.join.join(rows)), dtype=np.uint16)


PROTOCOLS: dict[str, Callable[[Scorer, list[str], TextSet], Entry]] = {
    "windows": windows,
    "sliding": sliding,
    "words": words,
    "bytes": bytes_,
    "last_word": last_word,
}
