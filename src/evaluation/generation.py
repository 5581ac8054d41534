"""Greedy decoding, of one prompt or of many at once.

Prompts of unequal length are padded on the right, which a causal model does not see, and the next token of each row
is read at its own last position; rows leave the batch when they end. Every token costs a full forward pass: the cache
of `models/kv_cache.py` needs rows of equal length that grow by one token, and here rows differ in length and end early.

Source: EleutherAI/lm-evaluation-harness 0.4.13, models/huggingface.py (generate_until) for the truncation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from src.datamodules.tokenization.base import Tokenizer
from src.models.gpt import GPT

MAX_GEN_TOKS = 256
#: Id on the right of shorter rows, which no earlier position sees.
PADDING = 0
#: Names of the length of a continuation in lm-eval; the first one given counts.
LENGTH_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@dataclass
class Continuation:
    """Prompt, cut on the left so that `n_new` tokens fit after it, and the tokens generated so far."""

    tokenizer: Tokenizer
    prompt: list[int]
    n_new: int
    until: list[str]
    new: list[int] = field(default_factory=list)
    ended: bool = False

    def append(self, token: int) -> None:
        """Append a token unless it is end of text."""
        self.ended = token == self.tokenizer.end_of_text
        if self.ended:
            return
        self.new.append(token)
        self.ended = len(self.new) == self.n_new or any(stop in self._decode() for stop in self.until)

    @property
    def text(self) -> str:
        """Return the continuation up to the first stop string."""
        text = self._decode()
        for stop in self.until:
            text = text.split(stop)[0]
        return text

    def _decode(self) -> str:
        return self.tokenizer.decode(self.new)


def start_continuation(
    tokenizer: Tokenizer, prompt: list[int], arguments: dict[str, Any], block_size: int
) -> Continuation:
    """Return a prompt with a task's generation arguments.

    A task that asks for block_size tokens or more, for which lm-eval's Hugging Face model fails an assertion, gets
    block_size - 1 after the prompt's last token.

    Raises:
        ValueError: the task asks for sampling.
    """
    reject_sampling(arguments)
    stops = arguments.get("until")
    until = [stops] if isinstance(stops, str) else list(stops or [])
    lengths = (int(arguments[key]) for key in LENGTH_KEYS if arguments.get(key) is not None)
    n_new = min(next(lengths, MAX_GEN_TOKS), block_size - 1)
    kept = prompt[-(block_size - n_new) :] or [tokenizer.end_of_text]
    return Continuation(tokenizer, kept, n_new, [stop for stop in until if stop], ended=n_new < 1)


def reject_sampling(arguments: Mapping[str, Any], task: str = "the task") -> None:
    """Raise an error if a task's generation arguments ask for sampling.

    Raises:
        ValueError: they do.
    """
    warm = float(arguments.get("temperature") or 0.0) > 0
    if warm and arguments.get("do_sample") is not False:
        raise ValueError(
            f"evaluation decodes greedily, but {task} asks for do_sample=true; leave it out of evaluation.lm_eval.tasks"
        )


@torch.no_grad()
def predict_next(model: GPT, sequences: Sequence[Sequence[int]], n_vocab: int) -> list[int]:
    """Return the most likely next token of each sequence among the first `n_vocab` ids; the others pad the vocabulary."""
    x_BTD = model.hidden(pad(sequences, next(model.parameters()).device))
    last = [len(tokens) - 1 for tokens in sequences]
    logits_BV = model.apply_head(x_BTD[range(len(sequences)), last])
    tokens: list[int] = logits_BV[:, :n_vocab].argmax(-1).tolist()
    return tokens


def generate(model: GPT, rows: Sequence[Continuation], between_steps: Callable[[], None]) -> list[str]:
    """Continue every row to its end; `between_steps` is called after each token of the batch."""
    while active := [row for row in rows if not row.ended]:
        tokens = predict_next(model, [row.prompt + row.new for row in active], active[0].tokenizer.n_vocab)
        for row, token in zip(active, tokens, strict=True):
            row.append(token)
        between_steps()
    return [row.text for row in rows]


def generate_text(model: GPT, tokenizer: Tokenizer, prompt: str, n_tokens: int) -> str:
    """Return the most likely continuation of a text: `n_tokens` tokens, or fewer up to end of text.

    The model sees the last block_size tokens, so a continuation may be longer than that.
    """
    tokens = tokenizer.encode(prompt)
    start = len(tokens)
    while len(tokens) - start < n_tokens:
        (token,) = predict_next(model, [tokens[-model.config.block_size :]], tokenizer.n_vocab)
        if token == tokenizer.end_of_text:
            break
        tokens.append(token)
    return tokenizer.decode(tokens[start:])


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return token ids [B, T], padded on the right to the length of the longest row."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[PADDING] * (width - len(row))] for row in rows], device=device)
