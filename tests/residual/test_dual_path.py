"""Dual path against its equation, and its third visit."""

from torch import Tensor
from torch.nn import functional as F

from src.models.flops import count_flops_per_token
from src.models.gpt import GPT
from tests.oracle import LR, compare_model, groups_by_name
from tests.support import jitter, tiny_gpt


def described(gpt: GPT, idx: Tensor) -> Tensor:
    x, w = gpt.embedding(idx), dict(gpt.named_parameters())

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], None, 1e-5)

    for i, block in enumerate(gpt.h):
        h = norm(f"residual.norms.{i}", x)
        x = x + block.attn(h) + 0.5 * block.mlp(h)
        x = x + 0.5 * block.mlp(norm(f"residual.after_norms.{i}", x))
    return norm("ln_f", x)


def test_it_equals_its_source() -> None:
    """MLS-Bench llm-pretrain-normalization: h = N1(x); x <- x + attn(h) + mlp(h) / 2; x <- x + mlp(N2(x)) / 2."""
    compare_model(jitter(tiny_gpt("dual_path")).double(), described)


def test_its_norms_have_no_weight_decay() -> None:
    groups = groups_by_name(tiny_gpt("dual_path"))
    assert {groups[name] for name in groups if name.startswith("residual.")} == {(LR, 0.0)}


def test_a_layer_has_three_visits_and_no_more_parameters() -> None:
    gpt, plain = tiny_gpt("dual_path"), tiny_gpt()
    assert [(s.index, s.layer, s.kind, s.visit) for s in gpt.sites[3:6]] == [
        (3, 1, "attn", 0),
        (4, 1, "mlp", 0),
        (5, 1, "mlp", 1),
    ]
    assert [(s.opens_block, s.closes_block) for s in gpt.sites[:3]] == [
        (True, False),
        (False, False),
        (False, True),
    ]
    assert gpt.n_params(positions=True) == plain.n_params(positions=True)


def test_its_flops_count_the_second_visit() -> None:
    gpt, plain = tiny_gpt("dual_path"), tiny_gpt()
    again = sum(p.numel() for block in gpt.h for p in block.mlp.parameters())
    assert count_flops_per_token(gpt) - count_flops_per_token(plain) == 6 * again
