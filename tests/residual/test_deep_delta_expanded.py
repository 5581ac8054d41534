"""Deep Delta Learning with an expanded state against its source."""

import torch
from torch.nn import functional as F

from src.residual.deep_delta_expanded import DeepDeltaExpanded
from tests.oracle import LR, WEIGHT_DECAY, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, embedding_like, jittered, stream_spec
from tests.support import tiny_gpt

KEYS = {"n_value": 4, "n_tap": 3, "beta_init": 1.0, "value_scale": 4.0, "eps": 0.1}


def compress(x: torch.Tensor, weight_ND: torch.Tensor, read_N: torch.Tensor) -> torch.Tensor:
    """Return what `ResidualShortConvCompressor` reads from x [B, T, D, N]: a convolution over N, then a sum."""
    B, T, D, N = x.shape
    padded = F.pad(x.reshape(B * T, D, N), ((N - 1) // 2, N - 1 - (N - 1) // 2))
    mixed = F.conv1d(padded, weight_ND.T.unsqueeze(1), groups=D)
    return (mixed.reshape(B, T, D, N) * read_N).sum(-1)


def test_it_equals_its_source() -> None:
    """yifanzhang-pro/deep-delta-learning @ 2b55f25, model/DDL-gpt-mha-rope-CC-EC.py.

    `InputEmbedShortConvExpander`, `ResidualShortConvCompressor`, `DeepDeltaResidualExpanded`, `Block`, `GPT.forward`.
    """
    spec = stream_spec()
    own = DeepDeltaExpanded(spec, **KEYS)
    own.reset()
    jittered(own)

    def oracle(x0: torch.Tensor, branches: Sublayers) -> torch.Tensor:
        B, T, D = x0.shape
        kernel = own.embed_END.permute(2, 1, 0).flip(-1).reshape(D * 4, 1, 3)
        x = F.conv1d(F.pad(x0.transpose(1, 2), (2, 0)), kernel, groups=D).transpose(1, 2).reshape(B, T, D, 4)
        for k, branch in enumerate(branches):
            x_in = compress(x, own.mix_PND[k // 2], own.pool_PN[k // 2])
            x_norm = own.norms[k](x_in)
            k_in = branch(x_norm)
            direction = k_in / (k_in.square().sum(-1, keepdim=True) + 0.1**2).sqrt()
            beta = 2 * torch.sigmoid(x_norm @ own.beta_SD[k] + own.beta_bias_S[k])[..., None]
            v = 4 * torch.sigmoid(x_in @ own.value_SND[k].T + own.value_bias_SN[k])
            row = beta * (v - torch.einsum("btd,btdn->btn", direction, x))
            x = x + direction[..., None] * row[:, :, None]
        return compress(x, own.mix_PND[3], own.pool_PN[3])

    compare_flow(own, spec, oracle)


def test_initial_values_and_decay_are_those_of_the_source() -> None:
    """Compare with `init_gpt_weights` (0.5 / sqrt(D) for matrices, the mix too), `read_init`, nanoGPT's decay."""
    width = 256
    gpt = tiny_gpt("deep_delta_expanded", n_embd=width)
    own = gpt.residual
    for weight in (own.beta_SD, own.value_SND, own.mix_PND):
        assert abs(weight.std().item() / (0.5 * width**-0.5) - 1) < 0.05
    assert torch.equal(own.pool_PN, torch.full((4, 4), 0.25))
    assert not own.beta_bias_S.any()
    rates = groups_by_name(gpt)
    decayed = {"beta_SD", "value_SND", "embed_END", "mix_PND"}
    assert {rates[f"residual.{name}"] for name in decayed} == {(LR, WEIGHT_DECAY)}
    others = {name for name, _ in own.named_parameters()} - decayed
    assert {rates[f"residual.{name}"] for name in others} == {(LR, 0.0)}


def test_every_value_starts_as_the_embedding() -> None:
    """Compare with `reset_parameters_identity`."""
    x0 = embedding_like()
    own = DeepDeltaExpanded(stream_spec(), **KEYS).double()
    own.reset()
    assert torch.equal(own.begin(x0).x_BTND, x0.unsqueeze(2).expand(-1, -1, 4, -1))
