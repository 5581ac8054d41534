"""Entropy of attention, and its mass on the first token.

The probabilities A are computed again from the queries and keys of the forward, since fused kernels do not return them.

    entropy     mean over t = 2..T of -sum_j A_tj ln A_tj / ln n_t   1: attention is uniform, 0: on one token
    sink mass   mean over t = 1..T of A_t1                           uniform attention: mean of 1 / t
    sink rate   share of heads whose sink mass exceeds 0.3

n_t is the number of tokens that token t attends over: t, or in a layer with a window of W tokens at most W + 1. Such a
layer has no mass on the first token after the first W + 1 tokens. Where attention stays within documents, t and the first
token are those of the token's document; a token that attends over itself alone has no entropy and does not count there.

Source: Gu et al., "When Attention Sink Emerges in Language Models" (arXiv 2410.10781), section 3 (sink mass and rate, of
the first token).
Shape letters: B batch, H heads, T tokens, K head size, A attention sites.
"""

import math

import torch
from torch import Tensor

from src.analysis.forward import Forward

SINK_MASS = 0.3


def measure_attention(forward: Forward) -> dict[str, Tensor | str]:
    """Return `entropy` and `sink_mass` of every head [B, A, H], and the `sink_rate` of every attention site [B, A]."""
    if not forward.query_BHTK:
        return dict.fromkeys(("entropy", "sink_mass", "sink_rate"), "the model visits no attention")
    if forward.query_BHTK[0].shape[2] == 1:
        return dict.fromkeys(("entropy", "sink_mass", "sink_rate"), "sequences of one token have one key")
    found = [
        _measure_site(*heads, forward.document_BT)
        for heads in zip(forward.query_BHTK, forward.key_BHTK, forward.allowed, strict=True)
    ]
    entropy_BAH, mass_BAH = (torch.stack(values, dim=1) for values in zip(*found, strict=True))
    rate_BA = (mass_BAH > SINK_MASS).double().mean(-1)
    return {"entropy": entropy_BAH, "sink_mass": mass_BAH, "sink_rate": rate_BA}


def attention_weights(query_HTK: Tensor, key_HTK: Tensor, allowed_TT: Tensor | None = None) -> Tensor:
    """Return the attention probabilities of one sequence, [H, T, T], in float32 or wider; causal without `allowed_TT`."""
    dtype = torch.promote_types(query_HTK.dtype, torch.float32)
    query_HTK, key_HTK = query_HTK.to(dtype), key_HTK.to(dtype)
    score_HTT = query_HTK @ key_HTK.mT / math.sqrt(query_HTK.shape[-1])
    if allowed_TT is None:
        allowed_TT = torch.ones_like(score_HTT[0], dtype=torch.bool).tril()
    return score_HTT.masked_fill(~allowed_TT, -math.inf).softmax(-1)


def entropies(weight_HTT: Tensor, allowed_TT: Tensor | None = None) -> Tensor:
    """Return the normalized entropy of every head, [H], the mean over the queries with two keys or more."""
    n_key_T = torch.arange(1, weight_HTT.shape[-1] + 1, device=weight_HTT.device, dtype=weight_HTT.dtype)
    if allowed_TT is not None:
        n_key_T = allowed_TT.sum(-1).to(weight_HTT)
    entropy_HT: Tensor = torch.special.entr(weight_HTT).sum(-1)
    several_T = n_key_T > 1
    return (entropy_HT[:, several_T] / n_key_T[several_T].log()).mean(-1)


def sink_masses(weight_HTT: Tensor, document_T: Tensor | None = None) -> Tensor:
    """Return every head's mean attention to the first token, [H], of a query's document if their numbers are given."""
    if document_T is None:
        return weight_HTT[..., 0].mean(-1)
    first_T = torch.searchsorted(document_T, document_T)  # numbers do not decrease
    return weight_HTT[:, torch.arange(len(first_T), device=first_T.device), first_T].mean(-1)


def _measure_site(
    query_BHTK: Tensor, key_BHTK: Tensor, allowed: Tensor | None, document_BT: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return entropies and sink masses of one site, [B, H] each; one sequence at a time holds [H, T, T]."""
    found = []
    for b, (query_HTK, key_HTK) in enumerate(zip(query_BHTK, key_BHTK, strict=True)):
        allowed_TT = allowed[b, 0] if allowed is not None and allowed.dim() == 4 else allowed  # a mask per sequence
        weight_HTT = attention_weights(query_HTK, key_HTK, allowed_TT)
        document_T = None if document_BT is None else document_BT[b]
        found.append((entropies(weight_HTT, allowed_TT), sink_masses(weight_HTT, document_T)))
    entropy_BH, mass_BH = (torch.stack(values) for values in zip(*found, strict=True))
    return entropy_BH, mass_BH
