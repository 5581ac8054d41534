"""Perplexity of a token stream, in the benchmark's protocol.

The text is one stream of tokens, cut into windows of block_size inputs whose targets are the next tokens;
windows do not overlap, no context is carried over, and the tail that does not fill a window is dropped:

    ppl = exp(mean cross-entropy over all predicted tokens)

Source: MLS-Bench llm-pretrain tasks. For LAMBADA this is the perplexity of the whole passages, not of
their last words. The stream's preparation is part of the metric, so its hash is part of the result.
"""

import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed

from src.models.gpt import GPT

PROTOCOL = "non-overlapping windows of block_size, token level"


@torch.no_grad()
def token_stream_perplexity(
    model: GPT,
    tokens: NDArray[np.uint16],
    *,
    limit_tokens: int | None,
    batch_size: int,
    between_batches: Callable[[], None],
) -> dict[str, Any]:
    """Score a stream; under torch.distributed the windows are shared out and every rank gets the result.

    Args:
        model: in evaluation mode, under whatever autocast is active.
        tokens: the stream, at least block_size + 1 of them.
        limit_tokens: predict only the first so many tokens (rounded down to windows); None predicts all.
        batch_size: windows of a forward.
        between_batches: called after each forward.
    """
    T = model.config.block_size
    whole = (len(tokens) - 1) // T
    n_windows = whole if limit_tokens is None else min(whole, limit_tokens // T)
    if n_windows < 1:
        raise ValueError(f"a stream of {len(tokens)} tokens (limit {limit_tokens}) fills no window of {T}")
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if _shared() else (0, 1)
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64)
    mine = range(rank, n_windows, world)
    for at in range(0, len(mine), batch_size):
        rows = [tokens[i * T : i * T + T + 1].astype(np.int64) for i in mine[at : at + batch_size]]
        batch_BT = torch.from_numpy(np.stack(rows)).to(device)
        total += model.token_losses(batch_BT[:, :-1], batch_BT[:, 1:]).double().sum().cpu()
        between_batches()
    if world > 1:
        everyone = total.to(device)
        distributed.all_reduce(everyone)
        total = everyone.cpu()
    loss = float(total) / (n_windows * T)
    return {
        "ppl": math.exp(loss) if loss < 700 else math.inf,
        "loss": loss,
        "tokens": n_windows * T,
        "windows": n_windows,
        "block_size": T,
        "protocol": PROTOCOL,
        "sha256": hashlib.sha256(np.ascontiguousarray(tokens).tobytes()).hexdigest(),
        "limited": None if n_windows == whole else f"first {n_windows * T} of {whole * T} tokens",
    }


def _shared() -> bool:
    return distributed.is_available() and distributed.is_initialized()
