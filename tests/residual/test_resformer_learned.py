"""Learned ResFormer against its source, with attention written out."""

from torch import Tensor
from torch.nn import functional as F

from src.models.gpt import GPT
from tests.oracle import LR, WEIGHT_DECAY, compare_model, groups_by_name
from tests.residual.attention import attend
from tests.support import jitter, tiny_gpt


def test_it_equals_its_source() -> None:
    """SkyeGunasekaran/SATFormer @ 98520bf, models/resformer/: attn_resformer.py and the lambda manager."""

    def oracle(gpt: GPT, idx: Tensor) -> Tensor:
        own = gpt.residual
        lambda1 = own.scale * F.softmax(own.logit_A, dim=0)
        hidden, kept = gpt.embedding(idx), []

        def values(layer_idx: int, v: Tensor) -> Tensor:
            kept.append(v)
            return v if layer_idx == 0 else lambda1[layer_idx - 1] * kept[0] + own.own_A[layer_idx - 1] * v

        for i, block in enumerate(gpt.h):
            hidden = hidden + attend(block.attn, block.ln_1(hidden), lambda v, i=i: values(i, v))
            hidden = hidden + block.mlp(block.ln_2(hidden))
        return gpt.ln_f(hidden)

    compare_model(jitter(tiny_gpt("resformer_learned")).double(), oracle)


def test_initial_values_and_groups_are_those_of_its_source() -> None:
    """The same folder: scale N, logits 0, lambda2 0.5; train.py gives every parameter to one AdamW with weight decay."""
    gpt = tiny_gpt("resformer_learned")
    assert gpt.residual.scale.item() == 3
    assert gpt.residual.logit_A.tolist() == [0, 0]
    assert gpt.residual.own_A.tolist() == [0.5, 0.5]
    groups = groups_by_name(gpt)
    own = {groups[f"residual.{name}"] for name in ("scale", "logit_A", "own_A")}
    assert own == {(LR, WEIGHT_DECAY)}
