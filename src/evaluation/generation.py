"""Greedy continuations of many prompts at once.

Prompts of unequal length are padded on the right, where a causal model does not look, and each row's next
token is read at its own last position; rows leave the batch as they end. Every token costs a whole forward:
a strategy's state is its own business, so there is no cache of keys and values to go on from.

Source: EleutherAI/lm-evaluation-harness 0.4.13, models/huggingface.py (generate_until) for what is cut where.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from src.datamodules.tokenizer import END_OF_TEXT, N_VOCAB, gpt2_encoding
from src.models.gpt import GPT

MAX_GEN_TOKS = 256
#: The harness's names for the length of a continuation, the first that is there counts.
LENGTH_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@dataclass
class Continuation:
    """A prompt, cut on the left so that `n_new` tokens fit behind it, and what has been added so far."""

    prompt: list[int]
    n_new: int
    until: list[str]
    new: list[int] = field(default_factory=list)
    ended: bool = False

    def take(self, token: int) -> None:
        """Add the likeliest token, unless it ends the text."""
        self.ended = token == END_OF_TEXT
        if self.ended:
            return
        self.new.append(token)
        self.ended = len(self.new) == self.n_new or any(stop in self._decoded() for stop in self.until)

    @property
    def text(self) -> str:
        """The continuation before the first stop string."""
        text = self._decoded()
        for stop in self.until:
            text = text.split(stop)[0]
        return text

    def _decoded(self) -> str:
        return gpt2_encoding().decode(self.new)


def continuation(prompt: list[int], how: dict[str, Any], block_size: int) -> Continuation:
    """A prompt under a task's generation arguments.

    A task that asks for block_size tokens or more, where lm-eval's Hugging Face model stops with an assertion,
    gets block_size - 1 after the prompt's last token.

    Raises:
        ValueError: a task asks for sampling.
    """
    hot = float(how.get("temperature") or 0.0) > 0
    if hot and how.get("do_sample") is not False:
        raise ValueError(
            "this adapter generates greedily; the task asks for do_sample=true, so leave it out of "
            "evaluation.lm_eval.tasks"
        )
    until = [how["until"]] if isinstance(how.get("until"), str) else list(how.get("until") or [])
    asked = next((int(how[key]) for key in LENGTH_KEYS if how.get(key) is not None), MAX_GEN_TOKS)
    n_new = min(asked, block_size - 1)
    kept = prompt[-(block_size - n_new) :] or [END_OF_TEXT]
    return Continuation(kept, n_new, [stop for stop in until if stop], ended=n_new < 1)


@torch.no_grad()
def generate(model: GPT, rows: Sequence[Continuation], between_steps: Callable[[], None]) -> list[str]:
    """Continue every row to its end; `between_steps` is called after each token of the batch."""
    device = next(model.parameters()).device
    while going := [row for row in rows if not row.ended]:
        sequences = [row.prompt + row.new for row in going]
        x_BTD = model.hidden(padded(sequences, device))
        last = [len(tokens) - 1 for tokens in sequences]
        logits_BV = F.linear(x_BTD[range(len(going)), last], model.embedding.get_lm_head_weight())
        chosen = logits_BV[:, :N_VOCAB].argmax(-1).tolist()  # never a padding id
        for row, token in zip(going, chosen, strict=True):
            row.take(token)
        between_steps()
    return [row.text for row in rows]


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Token ids [B, T] of the longest row's length, filled on the right."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[END_OF_TEXT] * (width - len(row))] for row in rows], device=device)
