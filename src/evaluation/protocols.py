"""Perplexity protocols by name, as in `evaluation.perplexity.<set>.protocol`.

windows    Token level, non-overlapping windows, tail dropped: the benchmark's protocol. For LAMBADA this is the
           perplexity of whole passages. With bits per byte of the predicted tokens.
sliding    Token level, overlapping windows every `stride` tokens, so that every token has much context. With bits per
           byte too.
words      exp(total / words): the rows joined into one text, each token predicted once after end of text (rolling
           windows). Words are separated by whitespace; a word that a limit cuts counts.
bytes      The same per UTF-8 byte, with bits per byte = total / bytes / ln 2. Comparable across tokenizers.
last_word  Last word of each row, with the space before it, given the rest: exp(mean loss of a word), and the share of
           rows in which each of its tokens is the most likely one. LAMBADA's own metric.

A limit counts predicted tokens: rounded down to windows (`windows`), exact (`sliding`, `words`, `bytes`), or rounded
up to rows (`last_word`).

Source: MLS-Bench; Hugging Face; lm-evaluation-harness 0.4.13, tasks wikitext and lambada_openai.
"""

import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from src.datamodules.tokenization.base import Ids, Tokenizer
from src.evaluation import perplexity
from src.evaluation.perplexity import Scorer, Window, bounded_exp
from src.evaluation.sources import TextSet

Entry = dict[str, Any]

#: Characters that one token stands for in few texts.
CHARACTERS_OF_TOKEN = 16


def check_rows(tokenizer: Tokenizer, rows: list[str], text: TextSet, block_size: int) -> None:
    """Find, without a model, what `PROTOCOLS` would reject.

    Raises:
        ValueError: the rows have no token to predict, no whole window, or no last word.
    """
    if text.protocol == "last_word":
        _split_rows(rows)
        return
    # The start of a long text is enough.
    joined = text.join.join(rows)
    n = len(tokenizer.encode(joined[: CHARACTERS_OF_TOKEN * (block_size + 1)]))
    if n <= block_size:
        n = len(tokenizer.encode(joined))
    if text.protocol == "windows":
        perplexity.disjoint_windows(n, block_size, text.limit_tokens)
    elif text.protocol == "sliding":
        assert text.stride is not None  # TextSet.check raises an error
        perplexity.sliding_windows(n, block_size, text.stride)
    else:
        perplexity.rolling_windows(n + 1, block_size)


def score_windows(scorer: Scorer, rows: list[str], text: TextSet) -> Entry:
    """Score with protocol `windows`."""
    return score_token_windows(scorer, encode_rows(scorer, rows, text), text.limit_tokens)


def score_token_windows(scorer: Scorer, tokens: Ids, limit_tokens: int | None) -> Entry:
    """Score a stream of tokens with protocol `windows`."""
    T = scorer.model.config.block_size
    plan = perplexity.disjoint_windows(len(tokens), T, limit_tokens)
    whole = (len(tokens) - 1) // T
    limited = None if len(plan) == whole else f"first {len(plan) * T} of {whole * T} tokens"
    name = "non-overlapping windows of block_size, token level"
    entry = perplexity.make_entry(scorer.total(tokens, plan), tokens, plan, T, name)
    return {**entry, **_per_byte(scorer, entry, tokens, plan), "limited": limited}


def score_sliding(scorer: Scorer, rows: list[str], text: TextSet) -> Entry:
    """Score with protocol `sliding`."""
    assert text.stride is not None  # TextSet.check raises an error
    return score_token_sliding(scorer, encode_rows(scorer, rows, text), text.limit_tokens, text.stride)


def score_token_sliding(scorer: Scorer, tokens: Ids, limit_tokens: int | None, stride: int) -> Entry:
    """Score a stream of tokens with protocol `sliding`."""
    T = scorer.model.config.block_size
    n = len(tokens) if limit_tokens is None else min(len(tokens), limit_tokens + 1)
    plan = perplexity.sliding_windows(n, T, stride)
    name = "sliding windows of block_size, token level"
    entry = perplexity.make_entry(scorer.total(tokens, plan), tokens, plan, T, name)
    per_byte = _per_byte(scorer, entry, tokens, plan)
    return {**entry, **per_byte, "stride": stride, "limited": _describe_limit(n - 1, len(tokens) - 1)}


def _per_byte(scorer: Scorer, entry: Entry, tokens: Ids, plan: Sequence[Window]) -> Entry:
    """Return the loss in bits per byte of the predicted tokens, which compares across tokenizers."""
    predicted = (tokens[start + seen + 1 : start + length + 1] for start, length, seen in plan)
    n_bytes = sum(map(scorer.tokenizer.count_bytes, predicted))
    return {"bits_per_byte": entry["loss"] * entry["tokens"] / n_bytes / math.log(2)} if n_bytes else {}


def score_rolling(scorer: Scorer, rows: list[str], text: TextSet, *, unit: str) -> Entry:
    """Score with protocol `words` or `bytes`, of which `unit` is the singular."""
    T = scorer.model.config.block_size
    whole: Any = encode_rows(scorer, rows, text)  # numpy's stubs cannot concatenate a union of dtypes
    tokens = whole if text.limit_tokens is None else whole[: text.limit_tokens]
    prefixed = np.concatenate((np.array([scorer.tokenizer.end_of_text], dtype=whole.dtype), tokens))
    plan = perplexity.rolling_windows(len(prefixed), T)
    total = scorer.total(prefixed, plan)
    raw = scorer.tokenizer.decode_bytes(tokens.tolist())
    n_words = len(raw.decode("utf-8", errors="replace").split())  # a limit may cut a character
    entry = {
        **perplexity.make_entry(total, whole, plan, T, f"rolling windows, {unit} level"),
        "word_ppl": bounded_exp(total / max(1, n_words)),
        "byte_ppl": bounded_exp(total / len(raw)),
        "bits_per_byte": total / len(raw) / math.log(2),
        "words": n_words,
        "bytes": len(raw),
        "limited": _describe_limit(len(tokens), len(whole)),
    }
    return {**entry, "ppl": entry[f"{unit}_ppl"]}


def score_last_word(scorer: Scorer, rows: list[str], text: TextSet) -> Entry:
    """Score with protocol `last_word`.

    Raises:
        ValueError: no row, or one with fewer than two words.
    """
    from src.evaluation.lm_adapter import GPTAdapter  # imports lm-eval, which takes seconds

    pairs = _split_rows(rows)
    encode = scorer.tokenizer.encode
    coded = [(pair, encode(pair[0]), encode(pair[1])) for pair in pairs]
    kept, n_tokens = 0, 0
    while kept < len(coded) and (text.limit_tokens is None or n_tokens < text.limit_tokens):
        n_tokens += len(coded[kept][2])
        kept += 1
    adapter = GPTAdapter(
        scorer.model, scorer.tokenizer, batch_size=scorer.batch_size, between_batches=scorer.between_batches
    )
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


def _split_rows(rows: list[str]) -> list[tuple[str, str]]:
    """Return each row without its last word, and the word with the space before it."""
    if not rows:
        raise ValueError("there is no row, so protocol last_word has nothing to predict")
    pairs = []
    for number, row in enumerate(rows, 1):
        context, space, word = row.strip().rpartition(" ")
        if not (context and space):
            raise ValueError(f"row {number} has fewer than two words, so protocol last_word has nothing to predict")
        pairs.append((context, space + word))
    return pairs


def _describe_limit(n: int, whole: int) -> str | None:
    return None if n == whole else f"first {n} of {whole} tokens"


def encode_rows(scorer: Scorer, rows: list[str], text: TextSet) -> Ids:
    """Return the rows as one stream of tokens."""
    return scorer.tokenizer.encode_array(text.join.join(rows))


PROTOCOLS: dict[str, Callable[[Scorer, list[str], TextSet], Entry]] = {
    "windows": score_windows,
    "sliding": score_sliding,
    "words": functools.partial(score_rolling, unit="word"),
    "bytes": functools.partial(score_rolling, unit="byte"),
    "last_word": score_last_word,
}
