"""Probe of a residual stream on a few sequences: mixing weights, and RMS of inputs, outputs and gradients.

Mixing weights are the strategy's own (`mixing`) if it has any. Otherwise the input of each site is fitted, over the
tokens and channels of the batch, by a weighted sum of the embedding, its additions and all earlier outputs. The fit is
exact for every strategy with constant weights and gives the best constant weights for the others; `explained` is the
share of the input that it accounts for. Collinear sources (rows of one table, added at every layer) get the weights
nearest to 1.

Shape letters: S sites, J sources (the embedding, its additions, each site's output, in order of appearance),
K = S + 1 readers (each site, then the end), E fitted elements (tokens by channels).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from src.kernels.autocast import suspend_autocast
from src.models.gpt import GPT
from src.models.sharding import gather, gather_root
from src.models.trace import Trace
from src.residual.base import QKV

#: Tokens in a fit; each gives n_embd equations for at most J unknowns.
FIT_TOKENS = 64
#: Singular values below this share of the largest count as zero: their sources are collinear.
RANK_TOLERANCE = 1e-5
#: Longest row of a parameter that is reported entry by entry.
MAX_COLUMNS = 4


class Source(NamedTuple):
    """Source of the stream: one column of the mixing weights."""

    site: int  # site that wrote it; for an addition the site after it; -1 for the embedding
    addition: bool
    first_reader: int


class StreamProbe(NamedTuple):
    """Measurements of one forward and backward; float32 tensors on the CPU."""

    mixing_KJ: Tensor
    sources: tuple[Source, ...]
    explained_K: Tensor  # share of each reader's input (its sum of squares) that the weights account for
    measured: bool  # whether the weights were fitted
    read_rms_K: Tensor
    branch_rms_S: Tensor
    gradient_rms_S: Tensor  # of the loss by each site's output


def probe_stream(gpt: GPT, idx_BT: Tensor, targets_BT: Tensor, document_BT: Tensor | None = None) -> StreamProbe:
    """Run one forward and backward on token ids [B, T]; change neither `.grad` nor the random state.

    Attention stays within tokens of one number in `document_BT`, if it is given, as in training on documents.
    A collective operation if the model is sharded, as is `summarize_parameters`.
    """
    with torch.random.fork_rng(devices=[idx_BT.device] if idx_BT.is_cuda else []), torch.enable_grad():
        x_BTD, trace = gpt.trace(idx_BT, document_BT)
        loss = gpt.head_loss(x_BTD, targets_BT)
        with suspend_autocast(loss):  # as the backward of training
            gradients = torch.autograd.grad(loss, trace.y_BTD, allow_unused=True)
    with torch.no_grad(), gather_root(gpt):
        reads = [*map(mean_view, trace.read), trace.end_BTD]
        sources = _list_sources(trace)
        own_KJ = gpt.residual.mixing(gpt.active_sites, trace.x0_BTD, trace.y_BTD)
        if any(injection.in_stream for injection in trace.injections):
            own_KJ = None  # the strategy's weights have no columns for additions
        mixing, explained = _fit(sources, reads, None if own_KJ is None else _add_columns(own_KJ, sources))
        return StreamProbe(
            mixing_KJ=mixing,
            sources=tuple(source for source, _ in sources),
            explained_K=explained,
            measured=own_KJ is None,
            read_rms_K=_rms(reads),
            branch_rms_S=_rms(trace.y_BTD),
            gradient_rms_S=_rms([torch.zeros(1) if g is None else g for g in gradients]),
        )


def _list_sources(trace: Trace) -> list[tuple[Source, Tensor]]:
    """Return the embedding, its additions and all outputs, in order of appearance."""
    found = [(Source(-1, False, 0), trace.x0_BTD)]
    found += [(Source(site, False, site + 1), y_BTD) for site, y_BTD in enumerate(trace.y_BTD)]
    found += [(Source(a.before, True, a.before), a.e_BTD) for a in trace.injections]
    return sorted(found, key=lambda pair: pair[0].first_reader)


def _add_columns(own_KJ: Tensor, sources: list[tuple[Source, Tensor]]) -> Tensor:
    """Return a strategy's weights with columns for additions that the trunk gave to a single site."""
    wide_KJ = own_KJ.new_zeros(len(own_KJ), len(sources))
    for j, (source, _) in enumerate(sources):
        if source.addition:
            wide_KJ[source.site, j] = 1.0
        else:
            wide_KJ[:, j] = own_KJ[:, source.site + 1]
    return wide_KJ


def mean_view(read: Tensor | QKV) -> Tensor:
    """Return the input of a site, the mean over views if there are three."""
    return read if isinstance(read, Tensor) else (read.q_BTD + read.k_BTD + read.v_BTD) / 3


def _fit(sources: list[tuple[Source, Tensor]], reads: list[Tensor], own_KJ: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return weights [K, J], zero for later sources, and the share of each reader's input that they explain."""
    source_EJ = torch.stack([_sample(x) for _, x in sources], dim=1)
    read_EK = torch.stack([_sample(x) for x in reads], dim=1)
    scale_J = source_EJ.square().mean(0).sqrt()
    silent_J = scale_J < torch.finfo(torch.float32).tiny
    scale_J = torch.where(silent_J, 1.0, scale_J)
    q_EJ, r_JJ = torch.linalg.qr(source_EJ / scale_J)
    r_JJ, target_JK = r_JJ.cpu(), (q_EJ.T @ read_EK).cpu()
    unit_J = torch.where(silent_J, 0.0, 1 / scale_J).cpu()
    mixing_KJ = torch.zeros(len(reads), len(sources), dtype=torch.float64)
    for k in range(len(reads)):
        # The leading block of R belongs to the first n sources.
        n = sum(source.first_reader <= k for source, _ in sources)
        mixing_KJ[k, :n] = _nearest_to_one(r_JJ[:n, :n], target_JK[:n, k], unit_J[:n])
    if own_KJ is not None:
        mixing_KJ = own_KJ.double().cpu()
    residual_K = (read_EK - source_EJ @ mixing_KJ.T.to(source_EJ.device)).square().sum(0)
    explained_K = 1 - residual_K / read_EK.square().sum(0).clamp_min(torch.finfo(torch.float32).tiny)
    return mixing_KJ.float(), explained_K.float().cpu()


def _nearest_to_one(r_NN: Tensor, target_N: Tensor, unit_N: Tensor) -> Tensor:
    """Return the least-squares solution w of R (w / unit) = target that is nearest to 1, as in a vanilla stream."""
    u_NN, s_N, v_NN = torch.linalg.svd(r_NN)
    kept_N = s_N > RANK_TOLERANCE * s_N[0]
    w_N: Tensor = unit_N * (v_NN[kept_N].T @ ((u_NN.T @ target_N)[kept_N] / s_N[kept_N]))
    free_NF = unit_N[:, None] * v_NN[~kept_N].T
    shift_N = free_NF @ torch.linalg.lstsq(free_NF, (1 - w_N)[:, None], driver="gelsd").solution[:, 0]
    w_N += shift_N
    return w_N


def _sample(x_BTD: Tensor) -> Tensor:
    """Return the elements of evenly spaced tokens, [E]."""
    x_ND = x_BTD.detach().flatten(0, 1)
    return x_ND[:: -(-len(x_ND) // FIT_TOKENS)].double().flatten()


def _rms(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.stack([x.detach().float().square().mean().sqrt().cpu() for x in tensors])


def round_values(values: Tensor) -> Any:  # a number, or lists of the tensor's shape
    """Return a tensor as nested lists of numbers with six significant digits."""
    return _round(values.tolist())


def _round(numbers: Any) -> Any:
    return [_round(part) for part in numbers] if isinstance(numbers, list) else float(f"{numbers:.6g}")


def summarize_parameters(gpt: GPT) -> dict[str, Tensor]:
    """Return the strategy's parameters by name, [rows, columns] on the CPU; mean and RMS of wide rows."""
    tables = {}
    for name, p in gpt.residual.named_parameters():
        if "norm" not in name:
            values = gather(p.detach()).float().cpu()
            table = values.flatten(1) if p.dim() > 1 else values.unsqueeze(1)
            if table.shape[1] <= MAX_COLUMNS:
                tables[name] = table
            else:
                tables[f"{name}, mean of a row"] = table.mean(1, keepdim=True)
                tables[f"{name}, RMS of a row"] = table.square().mean(1, keepdim=True).sqrt()
    return tables
