"""optimizer=adamw against torch.optim.AdamW and its equations."""

import pytest
import torch
from torch import nn

from src.models.optim.adamw import AdamW
from src.models.optim.base import build_optimizer, set_lr
from tests.support import adamw, tiny_gpt, tokens


def test_bits_are_those_of_torchs_adamw_over_groups_made_by_hand() -> None:
    gpt, other = tiny_gpt(bias=True), tiny_gpt(bias=True)
    ours = build_optimizer(gpt, adamw(1e-2))
    groups = [
        {"params": [p for p in other.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in other.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    theirs = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, fused=True)
    for step in range(3):
        for model, optimizer in ((gpt, ours), (other, theirs)):
            model.loss(tokens(seed=step), tokens(seed=step + 9)).backward()
            optimizer.step()
            optimizer.zero_grad()
    for (name, p), q in zip(gpt.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_two_steps_follow_the_equations() -> None:
    gpt = tiny_gpt().double()
    weight = gpt.h[0].mlp.c_fc.weight
    optimizer = build_optimizer(gpt, adamw())
    set_lr(optimizer, 0.01)
    expected, m, v = weight.detach().clone(), torch.zeros_like(weight), torch.zeros_like(weight)
    generator = torch.Generator().manual_seed(0)
    for t in (1, 2):
        weight.grad = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        m, v = 0.9 * m + 0.1 * weight.grad, 0.95 * v + 0.05 * weight.grad**2
        expected *= 1 - 0.01 * 0.1
        expected -= 0.01 * (m / (1 - 0.9**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
        optimizer.step()
    assert torch.allclose(weight, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("betas", "eps", "words"),
    [
        ((0.9, 1.0), 1e-8, r"optimizer\.betas must each be in \[0, 1\)"),
        ((0.9, 0.9), 0.0, r"optimizer\.eps must"),
    ],
)
def test_a_key_out_of_bounds_is_an_error(betas: tuple[float, float], eps: float, words: str) -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(2))]}]
    with pytest.raises(ValueError, match=words):
        AdamW(groups, 1e-3, betas=betas, eps=eps)  # type: ignore[arg-type]  # a list of groups is enough here
