"""Attention within documents: a packed sequence is its documents, each run alone."""

from typing import Any

import pytest
import torch
from torch import Tensor

from src.models.documents import number_documents
from src.models.gpt import GPT
from tests.support import COMPOSITIONS, jitter, options, start_at_once, tiny_gpt, tokens

MARK = 63
#: Lengths of the documents of two packed sequences of 12 tokens; the first one has no mark and continues from before.
LENGTHS = ((5, 4, 3), (2, 9, 1))
#: Strategies with a convolution over the last tokens, and embeddings with n-grams of them, reach across a mark.
OTHER_PATHS = {"deep_delta_expanded", "bigram_hash", "ngram_hash", "nanochat"}


def pack() -> Tensor:
    idx_BT = tokens(2, 12).clamp(max=MARK - 1)
    for row, lengths in zip(idx_BT, LENGTHS, strict=True):
        row[torch.tensor(lengths).cumsum(0)[:-1]] = MARK
    return idx_BT


def hidden(gpt: GPT, idx_BT: Tensor) -> Tensor:
    return gpt.hidden(idx_BT, document_BT=number_documents(idx_BT, MARK))


def test_documents_are_numbered_by_the_marks_before_them() -> None:
    wanted = [[i for i, n in enumerate(lengths) for _ in range(n)] for lengths in LENGTHS]
    found = number_documents(pack(), MARK)
    assert found is not None
    assert found.tolist() == wanted
    assert number_documents(pack(), None) is None


@pytest.mark.parametrize(
    "trunk", [{"positions": "rope"}, {"positions": "none", "window_pattern": "S", "window_size": 2}]
)
def test_losses_of_a_packed_sequence_are_those_of_each_document_alone(trunk: dict[str, Any]) -> None:
    gpt = jitter(tiny_gpt(**trunk)).double()
    idx_BT, targets_BT = pack(), tokens(2, 12, seed=1)
    losses_BT = gpt.token_losses(idx_BT, targets_BT, document_BT=number_documents(idx_BT, MARK))
    for b, lengths in enumerate(LENGTHS):
        parts = zip(*(x[b].split(lengths) for x in (idx_BT, targets_BT)), strict=True)
        alone = torch.cat([gpt.token_losses(idx[None], targets[None])[0] for idx, targets in parts])
        assert torch.allclose(losses_BT[b], alone, rtol=0, atol=1e-12)
    assert not torch.allclose(losses_BT, gpt.token_losses(idx_BT, targets_BT), atol=1e-3)


def test_learned_positions_count_from_the_start_of_the_sequence() -> None:
    """Llama 3 (arXiv 2407.21783), section 3.2, changes the mask only."""
    gpt, alone = (jitter(tiny_gpt()).double() for _ in range(2))
    idx_BT = pack()[:1]
    with torch.no_grad():
        alone.embedding.wpe.weight[:4] = gpt.embedding.wpe.weight[5:9]  # type: ignore[union-attr, index, operator]
    assert torch.allclose(hidden(gpt, idx_BT)[:, 5:9], alone.hidden(idx_BT[:, 5:9]), rtol=0, atol=1e-12)


def reaches(gpt: GPT) -> bool:
    """Return whether the output at a document depends on the document before, in value or in gradient."""
    idx_BT, x0 = pack()[:1], []
    changed_BT = idx_BT.clone()
    changed_BT[:, :5] = (changed_BT[:, :5] + 7) % MARK
    hook = gpt.embedding.register_forward_hook(lambda _m, _a, out: x0.append(out))
    out, other = hidden(gpt, idx_BT), hidden(gpt, changed_BT)
    hook.remove()
    (grad,) = torch.autograd.grad(out[:, 5:].square().sum(), x0[0])
    assert grad[:, 5:].any()
    return bool(grad[:, :5].any()) or not torch.allclose(out[:, 5:], other[:, 5:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("residual", [*options("residual"), *COMPOSITIONS])
def test_nothing_crosses_the_start_of_a_document_under_any_strategy(residual: str) -> None:
    assert reaches(jitter(tiny_gpt(residual, positions="rope")).double()) == (residual in OTHER_PATHS)


@pytest.mark.parametrize("embedding", options("embedding"))
def test_nothing_crosses_in_an_embedding_without_ngrams(embedding: str) -> None:
    assert reaches(jitter(tiny_gpt(embedding=embedding)).double()) == (embedding in OTHER_PATHS)


@pytest.mark.parametrize("recurrence", options("recurrence"))
def test_nothing_crosses_in_any_visit(recurrence: str) -> None:
    gpt = tiny_gpt(recurrence=recurrence, visits=start_at_once(recurrence, "vanilla"), positions="rope")
    assert not reaches(jitter(gpt).double())


def test_recomputed_sublayers_see_the_same_documents() -> None:
    gpt = jitter(tiny_gpt(positions="rope")).double()
    grads = []
    for recomputes in (False, True):
        gpt.checkpoints_activations = recomputes
        grads.append(torch.autograd.grad(hidden(gpt, pack()).square().sum(), list(gpt.parameters()), allow_unused=True))
    assert all(a is b or torch.equal(a, b) for a, b in zip(*grads, strict=True))
