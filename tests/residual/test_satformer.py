"""SATFormer against its source, with attention written out."""

import torch
from torch import Tensor
from torch.nn import functional as F

from src.models.gpt import GPT
from tests.oracle import LR, WEIGHT_DECAY, compare_model, groups_by_name
from tests.residual.attention import attend
from tests.support import jitter, tiny_gpt


def test_it_equals_its_source() -> None:
    """SkyeGunasekaran/SATFormer @ 98520bf, models/satformer/attn_satformer.py: the gate reads the normed input."""

    def oracle(gpt: GPT, idx: Tensor) -> Tensor:
        hidden, kept = gpt.embedding(idx), []

        def values(layer_idx: int, v: Tensor, normed: Tensor) -> Tensor:
            kept.append(v)
            if layer_idx == 0:
                return v
            alpha = F.relu(F.linear(normed, gpt.residual.gate_AHD[layer_idx - 1]))  # [B, T, heads]
            return v + alpha.unsqueeze(-1) * kept[0]

        for i, block in enumerate(gpt.h):
            normed = block.ln_1(hidden)
            hidden = hidden + attend(block.attn, normed, lambda v, i=i, h=normed: values(i, v, h))
            hidden = hidden + block.mlp(block.ln_2(hidden))
        return gpt.ln_f(hidden)

    compare_model(jitter(tiny_gpt("satformer")).double(), oracle)


def test_initial_values_and_groups_are_those_of_its_source() -> None:
    """models/satformer/modeling_satformer.py: N(0, 0.02) for every nn.Linear; train.py decays every parameter."""
    gpt = tiny_gpt("satformer", n_embd=64, n_head=4)
    gate = gpt.residual.gate_AHD
    assert gate.shape == (2, 4, 64)
    assert abs(gate.std() - 0.02) < 2e-3
    assert torch.equal(gate, tiny_gpt("satformer", n_embd=64, n_head=4).residual.gate_AHD)
    assert groups_by_name(gpt)["residual.gate_AHD"] == (LR, WEIGHT_DECAY)
