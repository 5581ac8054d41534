"""Backends of a configuration: which of reference, cpp and triton runs each operation, at the configured width."""

from dataclasses import replace

import torch

from src.checks.base import Subject
from src.kernels.dispatch import REGISTRY
from src.models.gpt import GPT

#: Sizes of the model that runs; backends depend on none of them, beyond a chunk of queries.
N_LAYER, CONTEXT, VOCABULARY = 4, 16, 64


def list_backends(subject: Subject, *, device: str, bf16: bool) -> str:
    """Return the table of backends after a forward and backward, or why there is none.

    Args:
        subject: the configured model.
        device: cpu or cuda.
        bf16: true if training runs under bfloat16 autocast.
    """
    try:
        gpt = _build_shallow(subject).to(device)
        idx_BT = torch.zeros(1, CONTEXT, dtype=torch.long, device=device)
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = gpt.loss(idx_BT, idx_BT)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
    except Exception as error:  # a strategy may raise anything; the other checks report it
        return f"backends: unknown, the model raises {type(error).__name__}"
    return "backends\n" + "\n".join(f"  {line}" for line in REGISTRY.table().splitlines())


def _build_shallow(subject: Subject) -> GPT:
    """Return the model with few layers, or with all of them if its parts need more."""
    sizes = replace(subject.config, block_size=CONTEXT, vocab_size=VOCABULARY, dropout=0.0, window_size=None)
    shallow = replace(sizes, n_layer=min(N_LAYER, sizes.n_layer))
    try:
        return subject.make(shallow, 0)
    except ValueError:
        return subject.make(sizes, 0)
