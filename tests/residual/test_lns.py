"""LayerNorm scaling against its source; its initial weights."""

import torch
from torch import Tensor
from torch.nn import functional as F

from src.residual.lns import LayerNormScaling
from tests.oracle import WEIGHT_DECAY, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, jittered, stream_spec
from tests.support import tiny_gpt


def test_it_equals_its_source() -> None:
    """lmsdss/LayerNorm-Scaling @ 3ac54dd, peft_pretraining/modeling_llama.py, `LNS`; the norm here is a LayerNorm."""
    spec = stream_spec()
    strategy = jittered(LayerNormScaling(spec, output_init_scale=1.0))
    weights = list(strategy.parameters())  # attention's and MLP's norm of each layer, gain and bias

    def oracle(hidden: Tensor, branches: Sublayers) -> Tensor:
        for layer_index in range(3):
            scale = 1 / (layer_index + 1) ** 0.5
            for half in (0, 1):
                site = 2 * layer_index + half
                normed = F.layer_norm(hidden, (6,), weights[2 * site], weights[2 * site + 1])
                hidden = hidden + branches[site](scale * normed)
        return hidden

    compare_flow(strategy, spec, oracle)


def test_initial_weights_and_groups_are_those_of_its_source() -> None:
    """The same file, `_init_weights`: every projection has the config's deviation; weight decay is 0 in the scripts."""
    gpt, vanilla = tiny_gpt("lns", n_embd=64, n_head=4), tiny_gpt(n_embd=64, n_head=4)
    for sublayer in (gpt.h[2].attn, gpt.h[2].mlp):
        assert abs(sublayer.c_proj.weight.std() - 0.02) < 1e-3
    assert torch.allclose(gpt.h[0].mlp.c_proj.weight, vanilla.h[0].mlp.c_proj.weight * 6**0.5)
    groups = groups_by_name(gpt)
    assert {groups[name][1] for name in groups if "norms" in name} == {0.0}
    assert groups["h.0.mlp.c_proj.weight"][1] == WEIGHT_DECAY


def test_the_trunks_initial_weights_may_be_kept() -> None:
    same = tiny_gpt("lns", strategy={"output_init_scale": 1.0}).h[0].mlp.c_proj.weight
    assert torch.equal(same, tiny_gpt().h[0].mlp.c_proj.weight)
