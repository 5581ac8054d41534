"""Sampling of continuations: temperature, top-k, top-p, and a seed for each of them.

    p = softmax(logits / temperature), of the k most likely tokens and of the fewest that sum to top_p

Temperature 0 takes the most likely token. A continuation depends on its prompt, the seed and its number, not on how many
are drawn. Sequences longer than block_size are continued from their last block_size tokens.

Source: top-k: Fan et al., "Hierarchical Neural Story Generation" (arXiv 1805.04833), section 5; top-p: Holtzman et al.,
"The Curious Case of Neural Text Degeneration" (arXiv 1904.09751), section 3.1.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor

from src.bounds import CONFIG, PositiveInt
from src.datamodules.tokenization.base import Tokenizer
from src.models.gpt import GPT
from src.models.kv_cache import CachedDecoder, enable_cache, next_logits

Share = Annotated[float, Field(gt=0, le=1)]


@validated(frozen=True, config=CONFIG)
class SamplingKeys:
    """Options by which tokens are drawn.

    Args:
        temperature: divides the logits; 0 takes the most likely token.
        top_k, top_p: draw from the k most likely tokens, and from the fewest whose probabilities sum to p; None: all.
        seed: seed of all continuations.

    Raises:
        ValueError: a value is out of its bounds.
    """

    temperature: Annotated[float, Field(ge=0, le=1e3)]
    top_k: PositiveInt | None
    top_p: Share | None
    seed: Annotated[int, Field(ge=0, lt=2**31)]


@dataclass(frozen=True)
class NewToken:
    """Token that was drawn for one of several continuations."""

    row: int
    token: int


@torch.no_grad()
def sample(
    model: GPT, tokenizer: Tokenizer, prompt: list[int], count: int, n_tokens: int, keys: SamplingKeys, *, caches: bool
) -> Iterator[NewToken]:
    """Yield the tokens of `count` continuations as they are drawn; one that reached end of text gets no more.

    Args:
        model: in evaluation mode.
        tokenizer: that of the model.
        prompt: its tokens, at least one.
        count, n_tokens: number of continuations, and of tokens of each.
        keys: how tokens are drawn.
        caches: keep keys and values; without it every token costs a forward of all of them.
    """
    generators = [torch.Generator().manual_seed(keys.seed * 1_000_003 + row) for row in range(count)]
    device = next(model.parameters()).device
    idx_BT = torch.tensor([prompt] * count, device=device)
    active = [True] * count
    with ExitStack() as stack:
        decoder: CachedDecoder | None = None
        for _ in range(n_tokens):
            fits = idx_BT.shape[1] <= model.config.block_size
            if caches and fits and decoder is None:
                decoder = stack.enter_context(enable_cache(model))
            if not fits:  # every position changes, so nothing that was kept holds
                stack.close()
                decoder = None
            window_BT = idx_BT[:, -model.config.block_size :]
            logits_BV = decoder.next_logits(window_BT) if decoder else next_logits(model, window_BT)
            drawn = draw_tokens(logits_BV[:, : tokenizer.n_vocab], keys, generators)
            for row, token in enumerate(drawn):
                active[row] = active[row] and token != tokenizer.end_of_text
                if active[row]:
                    yield NewToken(row, token)
            if not any(active):
                return
            idx_BT = torch.cat([idx_BT, torch.tensor(drawn, device=device)[:, None]], dim=1)


def draw_tokens(logits_BV: Tensor, keys: SamplingKeys, generators: list[torch.Generator]) -> list[int]:
    """Return a token for each row, drawn on the CPU so that the device does not matter."""
    if keys.temperature == 0:
        greedy: list[int] = logits_BV.argmax(-1).tolist()
        return greedy
    p_BV = filter_probabilities(logits_BV.double().cpu() / keys.temperature, keys.top_k, keys.top_p)
    rows = zip(p_BV, generators, strict=True)
    return [int(torch.multinomial(p_V, 1, generator=generator)) for p_V, generator in rows]


def filter_probabilities(logits_BV: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Return the probabilities [B, V] of the tokens that may be drawn; the others have 0."""
    sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
    p_BV = sorted_BV.softmax(-1)
    if top_k is not None:
        p_BV[:, top_k:] = 0
        p_BV /= p_BV.sum(-1, keepdim=True)
    if top_p is not None:
        # A token stays if those before it sum to less than p, so that the first always stays.
        p_BV[p_BV.cumsum(-1) - p_BV >= top_p] = 0
        p_BV /= p_BV.sum(-1, keepdim=True)
    return torch.zeros_like(p_BV).scatter(-1, order_BV, p_BV)
