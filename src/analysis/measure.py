"""All measurements of one model on some sequences, as plain values.

    leave_out     loss of the model; effect of leaving out each sublayer and each block     `leave_out.py`
    cosine        of consecutive states and reads                                            `states.py`
    logit_lens    loss and agreement after each block                                        `lens.py`
    activations   effective rank, kurtosis, massive activations of each read                 `activations.py`
    attention     entropy, sink mass and sink rate of each attention                         `attention.py`
    streams       spread of several streams, gains of their mixing                           `streams.py`
    sources       weights of earlier outputs in each read, of the first sequence             `sources.py`

Every number but those of `sources` is computed for each sequence; `mean` is the mean over sequences, `se` its standard
error (null for one sequence). A measurement that a strategy does not have is null, and `omitted` says why.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from src.analysis.activations import measure_activations
from src.analysis.attention import measure_attention
from src.analysis.forward import record_forward
from src.analysis.leave_out import measure_leave_out
from src.analysis.lens import measure_lens
from src.analysis.sources import Sources, measure_sources
from src.analysis.states import measure_cosines
from src.analysis.streams import measure_streams
from src.models.documents import number_documents
from src.models.gpt import GPT
from src.models.stream_probe import round_values

#: Tokens of the sequences that run together; all tensors by depth are in memory for them.
TOKENS_AT_ONCE = 2048

#: Measurements by family and name, each by sequence, [B, ...]; or why there is none.
Measured = dict[str, dict[str, Tensor | str]]
Autocast = Callable[[], AbstractContextManager[Any]]


def measure_model(gpt: GPT, windows_BT: Tensor, autocast: Autocast, document_mark: int | None = None) -> dict[str, Any]:
    """Return all measurements on sequences [B, T + 1] as values for JSON; the model is in evaluation mode.

    Args:
        gpt: the model.
        windows_BT: token ids; targets are the inputs shifted by one.
        autocast: context of the forwards; everything that is computed from them is in float32 or float64.
        document_mark: id that begins each document, within which attention stays, as in training; None: one document.

    Raises:
        ValueError: the model's loss is not finite.
    """
    n_at_once = max(1, TOKENS_AT_ONCE // (windows_BT.shape[1] - 1))
    batches = torch.split(windows_BT, n_at_once)
    measured = [_measure_batch(gpt, batch_BT, autocast, document_mark) for batch_BT in batches]
    values, omitted = summarize(measured)
    if values["leave_out"]["loss"] is None:
        raise ValueError(f"the model's loss is not finite ({omitted['leave_out.loss']})")
    with autocast():
        document_1T = number_documents(windows_BT[:1, :-1], document_mark)
        sources = measure_sources(gpt, windows_BT[:1, :-1], windows_BT[:1, 1:], document_1T)
    values["sources"] = _describe_sources(sources)
    if isinstance(sources.shares, str):
        omitted["sources.shares"] = sources.shares
    sites = [{"kind": site.kind, "layer": site.layer, "block": site.block} for site in gpt.active_sites]
    return {"sites": sites, **values, "omitted": omitted}


def _measure_batch(gpt: GPT, tokens_BT: Tensor, autocast: Autocast, document_mark: int | None) -> Measured:
    idx_BT, targets_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
    document_BT = number_documents(idx_BT, document_mark)
    with autocast():
        leave_out = measure_leave_out(gpt, idx_BT, targets_BT, document_BT)
        forward = record_forward(gpt, idx_BT, document_BT)
    return {
        "leave_out": leave_out,
        "cosine": measure_cosines(forward),
        "logit_lens": measure_lens(gpt, forward, targets_BT),
        "activations": measure_activations(forward.read_BTD),
        "attention": measure_attention(forward),
        "streams": measure_streams(forward),
    }


def summarize(measured: list[Measured]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return mean and standard error over the sequences of all batches, and why a measurement is null."""
    values: dict[str, Any] = {}
    omitted: dict[str, str] = {}
    for family, names in measured[0].items():
        values[family] = {}
        for name in names:
            parts = [batch[family][name] for batch in measured]
            tensors = [part.double().cpu() for part in parts if isinstance(part, Tensor)]
            reason = next((part for part in parts if isinstance(part, str)), None)
            joined = torch.cat(tensors) if tensors else torch.zeros(0)
            n_bad = int((~joined.isfinite()).sum())
            if reason is None and n_bad:
                reason = f"{n_bad} of {joined.numel()} values are not finite"
            values[family][name] = None if reason is not None else _summarize_sequences(joined)
            if reason is not None:
                omitted[f"{family}.{name}"] = reason
    return values, omitted


def _summarize_sequences(values: Tensor) -> dict[str, Any]:
    n = len(values)
    error = round_values(values.std(0) / math.sqrt(n)) if n > 1 else None
    return {"mean": round_values(values.mean(0)), "se": error}


def _describe_sources(sources: Sources) -> dict[str, Any]:
    return {
        "origin": "fitted" if sources.fitted else "the strategy's own",
        "weights": round_values(sources.weight_KJ),
        "explained": round_values(sources.explained_K),
        "sources": [source._asdict() for source in sources.sources],
        "shares": None
        if isinstance(sources.shares, str)
        else {name: round_values(share_K) for name, share_K in sources.shares.items()},
    }
