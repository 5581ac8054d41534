"""Activation checkpointing: the same loss and gradients, and only the inputs of sublayers kept."""

import pytest
import torch
from torch import Tensor

from src.models.gpt import GPT
from tests.support import jitter, tiny_gpt, tokens


def loss_and_gradients(gpt: GPT, *, checkpointed: bool, bf16: bool = False) -> list[Tensor]:
    """Return the loss and all gradients of one batch, under a fixed random state."""
    gpt.checkpoints_activations = checkpointed
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = gpt.loss(tokens(), tokens(seed=1))
    gpt.zero_grad()
    loss.backward()
    return [loss.detach(), *(p.grad for p in gpt.parameters() if p.grad is not None)]


#: A stream, streams, sources, three views, a strategy that taps values, one that owns norms, a composition.
RESIDUALS = ["vanilla", "mhc", "attnres", "muddformer", "resformer_learned", "hybridnorm", "resformer+hyperconn"]


@pytest.mark.parametrize("residual", RESIDUALS)
def test_loss_and_gradients_are_those_without(residual: str) -> None:
    gpt = jitter(tiny_gpt(residual), 0.1)
    without, given = (loss_and_gradients(gpt, checkpointed=on) for on in (False, True))
    assert all(map(torch.equal, without, given))


def test_the_second_call_of_a_sublayer_sees_the_same_dropout_and_autocast() -> None:
    gpt = jitter(tiny_gpt("resformer", recurrence="mini", dropout=0.2), 0.1)
    without, given = (loss_and_gradients(gpt, checkpointed=on, bf16=True) for on in (False, True))
    assert all(map(torch.equal, without, given))


def kept_hidden_states(gpt: GPT, *, checkpointed: bool) -> float:
    """Return the bytes that the trunk keeps for its backward over those of one hidden state."""
    gpt.checkpoints_activations = checkpointed
    weights = {p.untyped_storage().data_ptr() for p in gpt.parameters()}
    found: dict[int, Tensor] = {}

    def pack(saved: Tensor) -> Tensor:
        if saved.untyped_storage().data_ptr() not in weights:
            found[saved.untyped_storage().data_ptr()] = saved
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        x_BTD = gpt.hidden(tokens())
    return sum(saved.untyped_storage().nbytes() for saved in found.values()) / (x_BTD.numel() * 4)


def test_vanilla_keeps_one_hidden_state_a_sublayer() -> None:
    gpt = tiny_gpt(n_layer=4)
    assert kept_hidden_states(gpt, checkpointed=False) > 4 * 16
    # The inputs of 8 sublayers and of the final norm, which also keeps its statistics; the token ids.
    assert 9 <= kept_hidden_states(gpt, checkpointed=True) < 10


def test_evaluation_keeps_nothing() -> None:
    gpt = tiny_gpt()
    gpt.checkpoints_activations = True
    assert not gpt.token_losses(tokens(), tokens(seed=1)).requires_grad
