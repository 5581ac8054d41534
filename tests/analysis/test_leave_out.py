"""Effects of leaving out a sublayer against models whose weights make its output zero."""

import copy

import pytest
import torch

from src.analysis.leave_out import measure_leave_out
from src.models.gpt import GPT
from tests.support import jitter, tiny_gpt, tokens


def silenced(gpt: GPT, *names: str) -> GPT:
    """Return a copy of the model with these output projections at zero."""
    other = copy.deepcopy(gpt)
    for name in names:
        for param in other.get_submodule(name).parameters():
            torch.nn.init.zeros_(param)
    return other


@pytest.mark.parametrize("name", ["vanilla", "postln", "hyperconn", "attnres", "muddformer", "prores+lns+resformer"])
def test_a_left_out_sublayer_equals_one_with_a_zero_output_projection(name: str) -> None:
    gpt = jitter(tiny_gpt(name, n_layer=2, bias=True)).double().eval()
    idx, targets = tokens(), tokens(seed=1)
    found = measure_leave_out(gpt, idx, targets)
    loss = gpt.token_losses(idx, targets).mean(1)
    assert torch.allclose(found["loss"], loss)
    assert found["sublayer"].shape == (3, 4)
    for k, site in enumerate(gpt.sites):
        without = silenced(gpt, f"h.{site.layer}.{site.kind}.c_proj").token_losses(idx, targets).mean(1)
        assert torch.allclose(found["sublayer"][:, k], without - loss, atol=1e-9)
    for layer in range(2):
        both = silenced(gpt, f"h.{layer}.attn.c_proj", f"h.{layer}.mlp.c_proj")
        assert torch.allclose(found["block"][:, layer], both.token_losses(idx, targets).mean(1) - loss, atol=1e-9)


def test_an_output_norm_with_a_bias_is_left_out_too() -> None:
    gpt = jitter(tiny_gpt(n_layer=1, bias=True, norm_placement="sandwich")).double().eval()
    idx, targets = tokens(), tokens(seed=1)
    without = silenced(gpt, "h.0.mlp.c_proj", "h.0.ln_2_out")  # gain and bias of the norm after the MLP
    effect = without.token_losses(idx, targets).mean(1) - gpt.token_losses(idx, targets).mean(1)
    assert torch.allclose(measure_leave_out(gpt, idx, targets)["sublayer"][:, 1], effect, atol=1e-9)


def test_a_block_is_one_visit_of_a_repeated_layer() -> None:
    visits = {"layers": [1], "repeats": 1, "start_fraction": None, "start_step": 0}
    gpt = jitter(tiny_gpt(recurrence="delayed_repeat", visits=visits)).double().eval()
    plain = copy.deepcopy(gpt)
    plain.recurs = False
    idx, targets = tokens(), tokens(seed=1)
    found = measure_leave_out(gpt, idx, targets)
    assert found["block"].shape == (3, 4)
    effect = plain.token_losses(idx, targets).mean(1) - gpt.token_losses(idx, targets).mean(1)
    assert torch.allclose(found["block"][:, 2], effect, atol=1e-9)  # the second visit to layer 1


def test_an_addition_that_the_strategy_declines_stays() -> None:
    gpt = jitter(tiny_gpt("attnres", embedding="value_embed", n_layer=3)).double().eval()
    idx, targets = tokens(), tokens(seed=1)
    without = silenced(gpt, "h.0.attn.c_proj").token_losses(idx, targets).mean(1)
    effect = without - gpt.token_losses(idx, targets).mean(1)
    assert torch.allclose(measure_leave_out(gpt, idx, targets)["sublayer"][:, 0], effect, atol=1e-9)
