"""The forward of training: whose attention it takes where."""

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from src.models.training_pass import attention_for, training_pass
from tests.support import tiny_gpt, tokens

CUDNN, FLASH = 3, 1  # as torch numbers them


def order() -> list[int]:
    return list(torch._C._get_sdp_priority_order())  # type: ignore[attr-defined]


@pytest.mark.parametrize(("major", "first"), [(8, FLASH), (9, CUDNN), (10, FLASH)])
def test_cudnn_comes_first_on_hopper_alone_and_only_while_it_runs(
    major: int, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (major, 0))
    before = order()
    with attention_for(torch.device("cuda")):
        assert order()[0] == first
        assert sorted(order()) == sorted(before)  # the others are still to be had
    assert order() == before
    with attention_for(torch.device("cpu")):
        assert order() == before


@pytest.mark.parametrize("compiled", [False, True])
def test_it_is_the_models_own_forward_under_that_order(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    gpt, flash, compiling = tiny_gpt(), [], []
    plain = gpt.hidden(tokens())
    inner = gpt.hidden

    def hidden(idx: Tensor) -> Tensor:
        flash.append(torch.backends.cuda.flash_sdp_enabled())
        return inner(idx)

    monkeypatch.setattr(gpt, "hidden", hidden)
    monkeypatch.setattr(torch, "compile", lambda f, **keys: (compiling.append(keys), f)[1])
    monkeypatch.setattr("src.models.training_pass.attention_for", lambda _: sdpa_kernel(SDPBackend.MATH))
    assert torch.allclose(training_pass(gpt, compiled=compiled)(tokens()), plain, atol=1e-5)
    assert flash == [False]
    assert compiling == [{"fullgraph": True, "dynamic": False}] * compiled
