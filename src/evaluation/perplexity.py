"""Perplexity of a token stream x_0 .. x_n-1 under several protocols.

    ppl = exp(total cross-entropy / tokens predicted),  T = block_size

windows  Inputs x[kT : kT+T], all their next tokens are predicted; no context is carried over, and a tail that does
         not fill a window is dropped. The benchmark's protocol. Source: MLS-Bench llm-pretrain tasks.
sliding  A window starts every `stride` tokens and predicts the tokens that no earlier window has predicted, so every
         token after the first counts once, with at least T - stride tokens of context if so many precede it.
         Source: Hugging Face, "Perplexity of fixed-length models".
rolling  End of text, then the stream: every token counts once, in disjoint windows; the last window is moved to the
         left until it is full. Used for word and byte level. Source: lm-evaluation-harness 0.4.13,
         get_rolling_token_windows with make_disjoint_window.

The preparation of a stream is part of the metric, so the result contains its hash.

Shape letters: B windows of a forward pass, T tokens of a window.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import distributed

from src.datamodules.tokenization.base import Ids, Tokenizer
from src.models.gpt import GPT
from src.models.sharding import divide_forwards


class Window(NamedTuple):
    """Inputs x[start : start + length], of which the targets after the first `seen` are predicted."""

    start: int
    length: int
    seen: int


def disjoint_windows(n_tokens: int, size: int, limit_tokens: int | None) -> list[Window]:
    """Return the windows of protocol `windows`; a limit is rounded down to whole windows.

    Raises:
        ValueError: the stream or the limit is shorter than a window.
    """
    n_windows = (n_tokens - 1) // size
    if n_windows < 1:
        raise ValueError(
            f"a stream of {n_tokens} tokens fills no window of {size}; give more text or lower model.block_size"
        )
    if limit_tokens is not None:
        if limit_tokens < size:
            raise ValueError(f"limit_tokens={limit_tokens} fills no window of {size}; give at least model.block_size")
        n_windows = min(n_windows, limit_tokens // size)
    return [Window(k * size, size, 0) for k in range(n_windows)]


def sliding_windows(n_tokens: int, size: int, stride: int) -> list[Window]:
    """Return the windows of protocol `sliding`.

    Raises:
        ValueError: a stride that leaves tokens out, or a stream without a token to predict.
    """
    if not 1 <= stride <= size:
        raise ValueError(f"stride must be between 1 and model.block_size, {size}, got {stride}")
    if n_tokens < 2:
        raise ValueError(f"a stream of {n_tokens} tokens has none to predict")
    windows = [Window(0, min(size, n_tokens - 1), 0)]
    while windows[-1].start + windows[-1].length < n_tokens - 1:
        start, done = windows[-1].start + stride, windows[-1].start + windows[-1].length
        windows.append(Window(start, min(size, n_tokens - 1 - start), done - start))
    return windows


def rolling_windows(n_tokens: int, size: int) -> list[Window]:
    """Return the windows of protocol `rolling` over a stream that begins with end of text."""
    windows = sliding_windows(n_tokens, size, size)
    start, length, _ = windows[-1]
    shift = min(start, size - length)
    windows[-1] = Window(start - shift, length + shift, shift)
    return windows


@dataclass(frozen=True)
class Scorer:
    """Model with the settings of its forward passes.

    Args:
        model: a model in evaluation mode; runs under the active autocast.
        tokenizer: tokenizer of its training data.
        batch_size: sequences of a forward pass.
        between_batches: called after each forward pass.
    """

    model: GPT
    tokenizer: Tokenizer
    batch_size: int
    between_batches: Callable[[], None]

    @torch.no_grad()
    def total(self, tokens: Ids, windows: Sequence[Window]) -> float:
        """Return the cross-entropy in nats, summed over the targets of `windows`; ranks share the windows."""
        rank, world = divide_forwards(self.model)
        device = next(self.model.parameters()).device
        total = torch.zeros((), dtype=torch.float64)
        mine = windows[rank::world]
        for at in range(0, len(mine), self.batch_size):
            batch = mine[at : at + self.batch_size]
            T = max(window.length for window in batch)
            # Padded on the right, which a causal model does not see; the padding does not count.
            rows_BT = np.zeros((len(batch), T + 1), dtype=np.int64)
            counts_BT = np.zeros((len(batch), T), dtype=bool)
            for b, (start, length, seen) in enumerate(batch):
                rows_BT[b, : length + 1] = tokens[start : start + length + 1]
                counts_BT[b, seen:length] = True
            batch_BT = torch.from_numpy(rows_BT).to(device)
            losses_BT = self.model.token_losses(batch_BT[:, :-1], batch_BT[:, 1:])
            total += losses_BT.double().cpu().where(torch.from_numpy(counts_BT), 0.0).sum()
            self.between_batches()
        if world > 1:
            reduced = total.to(device)
            distributed.all_reduce(reduced)
            total = reduced.cpu()
        return float(total)


def make_entry(loss: float, tokens: Ids, windows: Sequence[Window], size: int, protocol: str) -> dict[str, Any]:
    """Return the result of a protocol from the total loss over its windows."""
    predicted = sum(window.length - window.seen for window in windows)
    return {
        "ppl": bounded_exp(loss / predicted),
        "loss": loss / predicted,
        "tokens": predicted,
        "windows": len(windows),
        "block_size": size,
        "protocol": protocol,
        "sha256": hashlib.sha256(np.ascontiguousarray(tokens).tobytes()).hexdigest(),
    }


def bounded_exp(loss: float) -> float:
    """Return exp(loss), or infinity if it exceeds the range of a float."""
    return math.exp(loss) if loss < 700 else math.inf
