"""Decoding with a cache of keys and values: a forward of the new token alone, equal to that of the whole sequence.

    first forward      all tokens; each visit to an attention keeps its keys and values
    then               one token; its query attends over what was kept and what is new

A strategy allows this if what it computes for a token depends on that token and on attention only, not on other tokens.
No class states it: `find_difference` compares both on random tokens of the given model. The embedding sees all tokens
(a lookup costs little), so positions and n-grams are exact.

Source: Pope et al., "Efficiently Scaling Transformer Inference" (arXiv 2211.05102), section 2.
Shape letters: B batch, T tokens, D n_embd, H heads, K head size, V vocab_size.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.embedding.base import Lookup, TokenEmbedding
from src.kernels.attention.mask import Mask
from src.models.attention import CausalSelfAttention
from src.models.gpt import GPT
from src.models.rotary import Rope, rotate

#: Tokens on which both ways are compared.
COMPARED = 24


class CachedAttention(nn.Module):
    """Attention that keeps keys and values of each visit; without parameters.

    Args:
        attend: attention over whole sequences, for the first forward.
        rope: rotation of queries and keys by position; None without one.
        window: tokens before its own that a token attends over; None for all.
    """

    def __init__(self, attend: nn.Module, rope: Rope | None, window: int | None) -> None:
        super().__init__()
        self.attend, self.rope, self.window = attend, rope, window
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.visit = 0

    def forward(self, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, mask: Mask | None) -> Tensor:
        """Return the mixed values, [B, H, T, K]."""
        visit, self.visit = self.visit, self.visit + 1
        if visit == len(self.kept):
            self.kept.append((k_BHTK, v_BHTK))
            y_BHTK: Tensor = self.attend(q_BHTK, k_BHTK, v_BHTK, mask)
            return y_BHTK
        keys_BHTK, values_BHTK = self.kept[visit]
        if self.rope is not None:  # a single token was rotated as the first one, which is not at all
            before = keys_BHTK.shape[2]
            q_BHTK, k_BHTK = (rotate(F.pad(x, (0, 0, before, 0)), self.rope)[:, :, before:] for x in (q_BHTK, k_BHTK))
        keys_BHTK, values_BHTK = torch.cat([keys_BHTK, k_BHTK], dim=2), torch.cat([values_BHTK, v_BHTK], dim=2)
        self.kept[visit] = keys_BHTK, values_BHTK
        if self.window is not None:
            keys_BHTK, values_BHTK = (x[:, :, -(self.window + 1) :] for x in (keys_BHTK, values_BHTK))
        return F.scaled_dot_product_attention(q_BHTK, keys_BHTK, values_BHTK)


class LastTokens(TokenEmbedding):
    """Embedding that looks up whole sequences and returns their last tokens; without parameters of its own."""

    def __init__(self, inner: TokenEmbedding) -> None:
        super().__init__()
        self.inner = inner
        self.n_new = 0

    def forward(self, idx_BT: Tensor) -> Tensor:
        x0_BTD: Tensor = self.inner(idx_BT)
        return x0_BTD[:, -self.n_new :]

    def lookup(self, idx_BT: Tensor) -> Lookup:
        return tuple(rows[:, -self.n_new :] for rows in self.inner.lookup(idx_BT))

    def stream_addition(self, lookup: Lookup, layer: int) -> Tensor | None:
        addition_BTD = self.inner.stream_addition(lookup, layer)
        return None if addition_BTD is None else addition_BTD[:, -self.n_new :]

    def value_addition(self, lookup: Lookup, layer: int, x_BTD: Tensor) -> Tensor | None:
        return self.inner.value_addition(lookup, layer, x_BTD)

    def get_lm_head_weight(self) -> Tensor:
        return self.inner.get_lm_head_weight()

    def get_num_pos_params(self) -> int:
        return self.inner.get_num_pos_params()


class CachedDecoder:
    """Forward passes of one growing batch of sequences; made by `cached`."""

    def __init__(self, model: GPT, attentions: list[CachedAttention], embedding: LastTokens) -> None:
        self.model, self.attentions, self.embedding = model, attentions, embedding
        self.n_seen = 0

    def next_logits(self, idx_BT: Tensor) -> Tensor:
        """Return the logits [B, V] after the last token of sequences that begin with those of the last call."""
        # More than one new token after the first forward would need a mask.
        assert self.n_seen == 0 or idx_BT.shape[1] == self.n_seen + 1
        self.embedding.n_new, self.n_seen = idx_BT.shape[1] - self.n_seen, idx_BT.shape[1]
        for attention in self.attentions:
            attention.visit = 0
        return next_logits(self.model, idx_BT)


@contextmanager
def enable_cache(model: GPT) -> Iterator[CachedDecoder]:
    """Let a model in evaluation mode decode with a cache inside the block."""
    layers = zip(model.h, model.config.windows, strict=True)
    found = [(module, window) for layer, window in layers for module in layer.modules()]
    owners = {module: window for module, window in found if isinstance(module, CausalSelfAttention)}
    plain = [owner.attend for owner in owners]
    attentions = [CachedAttention(owner.attend, owner.rope, window) for owner, window in owners.items()]
    embedding = model.embedding
    last = LastTokens(embedding)
    try:
        for owner, attention in zip(owners, attentions, strict=True):
            owner.attend = attention  # type: ignore[assignment]  # of the same signature
        model.embedding = last
        yield CachedDecoder(model, attentions, last)
    finally:
        model.embedding = embedding
        for owner, attend in zip(owners, plain, strict=True):
            owner.attend = attend


def next_logits(model: GPT, idx_BT: Tensor) -> Tensor:
    """Return the logits [B, V] after the last token, by a forward of all tokens."""
    return model.apply_head(model.hidden(idx_BT)[:, -1])


@torch.no_grad()
def find_difference(model: GPT, n_vocab: int) -> str | None:
    """Return how a model differs when it decodes with a cache, or None if it gives the same logits.

    Compares both on random tokens, of which half are read at once and the others one by one.
    """
    length = min(COMPARED, model.config.block_size)
    generator = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    idx_BT = torch.randint(n_vocab, (2, length), generator=generator).to(device)
    try:
        with enable_cache(model) as decoder:
            for end in range(max(1, length // 2), length + 1):
                found_BV = decoder.next_logits(idx_BT[:, :end])
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:  # a shape that a strategy does not expect
        return f"{type(error).__name__} on a single token"
    wanted_BV = next_logits(model, idx_BT)
    difference = float((found_BV - wanted_BV).abs().max())
    if difference <= 1e-4 * max(1.0, float(wanted_BV.abs().max())):
        return None
    return f"logits differ by {difference:.2g}"
