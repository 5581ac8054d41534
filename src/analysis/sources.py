"""Sources of what sites read: weights of the embedding and of earlier outputs, and their shares in depth attention.

Weights are those of `models/stream_probe.py`: the strategy's own, as a mean over tokens, or fitted ones. A strategy's own
weights that are not negative and sum to 1 for every reader are shares, as in depth attention:

    embedding   share of x0         newest   share of the output of the site before
    count       exp(-sum_j p_j ln p_j), the number of sources that a reader effectively reads

Shape letters: J sources, K = S + 1 readers.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from src.models.gpt import GPT
from src.models.stream_probe import Source, probe_stream

#: Largest difference of a sum of shares to 1.
TOLERANCE = 1e-3


class Sources(NamedTuple):
    """Weights of one sequence's reads."""

    weight_KJ: Tensor
    sources: tuple[Source, ...]
    fitted: bool
    explained_K: Tensor  # share of the sum of squares that the weights account for
    shares: dict[str, Tensor] | str


def measure_sources(gpt: GPT, idx_BT: Tensor, targets_BT: Tensor, document_BT: Tensor | None = None) -> Sources:
    """Return the weights of the tokens' reads, and the numbers that follow from shares, [K] each."""
    probe = probe_stream(gpt, idx_BT, targets_BT, document_BT)
    shares: dict[str, Tensor] | str = "the strategy reports no weights of its own, so they are fitted"
    if not probe.measured:
        shares = summarize_shares(probe.mixing_KJ)
    return Sources(probe.mixing_KJ, probe.sources, probe.measured, probe.explained_K, shares)


def summarize_shares(weight_KJ: Tensor) -> dict[str, Tensor] | str:
    """Return the share of the embedding and of the newest source, and the effective number; or why not."""
    if len(weight_KJ) != weight_KJ.shape[1]:
        return "the embedding adds sources that reach one site only"
    if weight_KJ.min() < 0 or (weight_KJ.sum(1) - 1).abs().max() > TOLERANCE:
        return "the strategy's weights are not shares: they do not sum to 1"
    return {
        "embedding": weight_KJ[:, 0],
        "newest": weight_KJ.diagonal(),
        "count": torch.special.entr(weight_KJ).sum(1).exp(),
    }
