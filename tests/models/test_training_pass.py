"""The forward of training is the model's own, with attention for fixed shapes."""

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from src.kernels import attention
from src.models.training_pass import training_pass
from tests.support import tiny_gpt, tokens


@pytest.mark.parametrize("compiled", [False, True])
def test_it_is_the_models_own_forward_with_attention_for_fixed_shapes(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpt, flash, compiling = tiny_gpt(), [], []
    plain = gpt.hidden(tokens())
    inner = gpt.hidden

    def hidden(idx: Tensor) -> Tensor:
        flash.append(torch.backends.cuda.flash_sdp_enabled())
        return inner(idx)

    monkeypatch.setattr(gpt, "hidden", hidden)
    monkeypatch.setattr(torch, "compile", lambda f, **keys: (compiling.append(keys), f)[1])
    monkeypatch.setattr(attention, "fixed_shapes", lambda _: sdpa_kernel(SDPBackend.MATH))
    assert torch.allclose(training_pass(gpt, compiled=compiled)(tokens()), plain, atol=1e-5)
    assert flash == [False]
    assert compiling == [{"fullgraph": True, "dynamic": False}] * compiled


def test_with_a_mark_it_keeps_attention_within_documents() -> None:
    gpt, idx_BT = tiny_gpt(), tokens()
    idx_BT[:, 4] = 7
    found = training_pass(gpt, compiled=False, document_mark=7)(idx_BT)
    assert torch.equal(found, gpt.hidden(idx_BT, document_BT=(idx_BT == 7).cumsum(1)))
    assert not torch.allclose(found, gpt.hidden(idx_BT), atol=1e-4)


def test_with_a_mark_it_compiles_to_one_graph() -> None:
    gpt, idx_BT = tiny_gpt(positions="rope", window_pattern="S", window_size=3), tokens()
    idx_BT[:, 4] = 7
    plain = training_pass(gpt, compiled=False, document_mark=7)(idx_BT)
    with pytest.MonkeyPatch.context() as patch:
        compile_ = torch.compile
        patch.setattr(torch, "compile", lambda f, **keys: compile_(f, **keys, backend="eager"))
        assert torch.allclose(training_pass(gpt, compiled=True, document_mark=7)(idx_BT), plain, atol=1e-6)
