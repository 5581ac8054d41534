"""Initial weights: the deviation of each kind of matrix, and zero biases."""

import pytest
import torch
from torch import nn

from src.models.config import GPTConfig
from src.models.initial_weights import draw_weights_
from tests.support import SIZES


def test_matrices_that_project_back_to_the_stream_are_smaller() -> None:
    names = {"wte": 0.02, "h.0.attn.c_attn": 0.02, "h.0.mlp.c_proj": 0.02 / 16**0.5, "lm_head": 0.02}
    modules = [(name, nn.Embedding(500, 64) if name == "wte" else nn.Linear(64, 500)) for name in names]
    torch.manual_seed(0)
    draw_weights_(modules, GPTConfig(**{**SIZES, "n_layer": 8}))
    for name, module in modules:
        assert module.weight.std().item() == pytest.approx(names[name], rel=0.03), name
        if isinstance(module, nn.Linear):
            assert not module.bias.any()
