"""ResFormer against its source, with attention written out.

Covers `src/residual/families/value_residual.py` too.
"""

import pytest
import torch
from torch import Tensor

from src.models.gpt import GPT
from tests.oracle import compare_model
from tests.residual.attention import attend
from tests.support import jitter, tiny_gpt, tokens


def test_it_equals_its_source() -> None:
    """Zcchill/Value-Residual-Learning @ 95652f6, src/modeling/modeling_llama_resformer.py: fixed halves."""

    def oracle(gpt: GPT, idx: Tensor) -> Tensor:
        hidden, formal_layer_values = gpt.embedding(idx), []

        def values(layer_idx: int, value_states: Tensor) -> Tensor:
            if layer_idx == 0:
                formal_layer_values.append(value_states)
                return value_states
            return 0.5 * formal_layer_values[0] + 0.5 * value_states

        for i, block in enumerate(gpt.h):
            hidden = hidden + attend(block.attn, block.ln_1(hidden), lambda v, i=i: values(i, v))
            hidden = hidden + block.mlp(block.ln_2(hidden))
        return gpt.ln_f(hidden)

    compare_model(jitter(tiny_gpt("resformer")).double(), oracle)


def test_it_has_no_parameters_and_so_the_groups_of_its_source() -> None:
    """The same file: the weights are constants."""
    assert not list(tiny_gpt("resformer").residual.parameters())


def test_with_weight_on_own_values_only_it_equals_vanilla() -> None:
    ours = tiny_gpt("resformer", strategy={"first_weight": 0.0, "own_weight": 1.0}).double()
    assert torch.allclose(ours(tokens()), tiny_gpt().double()(tokens()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["resformer", "resformer_learned", "satformer"])
def test_one_layer_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=rf"residual={name} needs model.n_layer >= 2, got 1"):
        tiny_gpt(name, n_layer=1)
