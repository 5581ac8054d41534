"""Transfer rules: rates, decay, initial deviations and factors computed by hand from the sources' rules.

Sources: EleutherAI/nanoGPT-mup @ b2a5e60, model.py (width), @ 6f8bc3b, branch completep, model.py (depth, decay);
microsoft/mup @ 1981497, mup/optim.py (`MuAdam`: rate / m, decay * m).
"""

import functools
import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from src.models.gpt import GPT
from src.models.optim.base import build_optimizer
from src.models.optim.groups import GroupRule, parameter_groups
from src.models.optim.muon import Muon, MuonKeys
from src.models.transfer import list_readers
from tests.support import adamw, component, jitter, options, tiny_gpt, tokens

#: m = 4 and k = 3 / 12.
WIDE = {"n_embd": 64, "base_width": 16}


def rates(gpt: GPT, width_exponent: float | None = 1.0, *rules: GroupRule) -> dict[str, tuple[float, float]]:
    """The learning-rate scale and weight decay of every parameter, under weight decay 0.1."""
    groups = parameter_groups(gpt, 1e-3, 0.1, rules, width_exponent)
    return {groups.names[p]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}


def is_matrix(name: str) -> bool:
    return name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


def test_without_a_rule_nothing_changes() -> None:
    gpt, same = tiny_gpt(), tiny_gpt(base_width=16, base_depth=3)
    assert torch.equal(gpt(tokens()), same(tokens()))
    assert rates(gpt, None) == rates(gpt) == rates(same)
    assert len(parameter_groups(gpt, 1e-3, 0.1)) == len(parameter_groups(same, 1e-3, 0.1, width_exponent=1.0)) == 2


def test_rates_of_matrices_shrink_with_the_width_and_their_decay_grows() -> None:
    for name, found in rates(tiny_gpt(bias=True, **WIDE)).items():
        plain = 0.0 if "ln_" in name or name.endswith("bias") else 0.1
        assert found == ((0.25, 0.4) if is_matrix(name) else (1.0, plain)), name


def test_matrices_start_with_the_root_of_the_width_and_tables_as_ever() -> None:
    gpt = tiny_gpt(vocab_size=2000, n_layer=8, n_embd=256, base_width=16)
    for name, param in gpt.named_parameters():
        if param.dim() == 2:
            std = 0.02 / math.sqrt(16) if is_matrix(name) and "c_proj" in name else 0.02  # 1 / sqrt(2 * 8)
            std *= 16**-0.5 if is_matrix(name) else 1.0  # 1 / sqrt(m), m = 16
            assert param.std().item() == pytest.approx(std, rel=0.06), name


@pytest.mark.parametrize("embedding", ["tied", "untied"])
def test_logits_are_divided_by_the_ratio_of_widths(embedding: str) -> None:
    gpt, base = jitter(tiny_gpt(embedding=embedding, **WIDE)), jitter(tiny_gpt(embedding=embedding, n_embd=64))
    base.load_state_dict(gpt.state_dict())
    assert torch.allclose(gpt(tokens()), base(tokens()) / 4, atol=1e-6)
    expected = F.cross_entropy(base(tokens()).flatten(0, 1) / 4, tokens(seed=1).flatten())
    assert gpt.loss(tokens(), tokens(seed=1)).item() == pytest.approx(expected.item(), rel=1e-6)
    assert gpt.token_losses(tokens(), tokens(seed=1)).mean().item() == pytest.approx(expected.item(), rel=1e-6)


def test_sublayers_are_divided_by_the_ratio_of_depths() -> None:
    """x + F(x) / k, as in 6f8bc3b, with k = 3 / 1 and a = 1, then 1 / sqrt(k)."""
    for exponent in (1.0, 0.5):
        gpt = jitter(tiny_gpt(base_depth=1, depth_exponent=exponent)).double()
        x_BTD = gpt.embedding(tokens())
        for block in gpt.h:
            x_BTD = x_BTD + block.attn(block.ln_1(x_BTD)) * 3**-exponent
            x_BTD = x_BTD + block.mlp(block.ln_2(x_BTD)) * 3**-exponent
        assert torch.allclose(gpt.hidden(tokens()), gpt.ln_f(x_BTD), rtol=1e-12, atol=1e-12)


def test_output_projections_start_as_at_the_base_depth() -> None:
    gpt = tiny_gpt(n_layer=8, n_embd=64, base_depth=2)
    assert gpt.h[5].mlp.c_proj.weight.std().item() == pytest.approx(0.02 / math.sqrt(4), rel=0.06)
    assert gpt.h[5].mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.06)


def test_rates_inside_the_blocks_follow_the_depth_with_exponent_one_half() -> None:
    """Biases and norms of the blocks too, not the final norm and the tables; decay as for the width alone (6f8bc3b)."""
    gpt = tiny_gpt(n_layer=4, bias=True, base_depth=1, depth_exponent=0.5, **WIDE)
    for name, (rate, decay) in rates(gpt).items():
        assert rate == (0.25 if is_matrix(name) else 1.0) * (0.5 if name.startswith("h.") else 1.0), name
        assert decay == (0.4 if is_matrix(name) else 0.1 if name.startswith("embedding") else 0.0), name
    assert {rate for rate, _ in rates(tiny_gpt(n_layer=4, base_depth=1)).values()} == {1.0}


def test_a_rule_by_pattern_multiplies_the_factor() -> None:
    found = rates(tiny_gpt(**WIDE), 1.0, GroupRule("h.*.mlp.*", {"lr_scale": 2.0}))
    assert {found[name][0] for name in found if ".mlp." in name} == {0.5}


def test_attention_scores_divided_by_the_head_size() -> None:
    gpt = jitter(tiny_gpt(attention_scale="inverse")).double()
    attention = gpt.h[0].attn
    x_BTD = torch.randn(2, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q, k, v = (p.view(2, 5, 2, 8).transpose(1, 2) for p in attention.c_attn(x_BTD).chunk(3, -1))
    score = (q @ k.transpose(-1, -2) / 8).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    expected = attention.c_proj((score.softmax(-1) @ v).transpose(1, 2).reshape(2, 5, 16))
    assert torch.allclose(attention(x_BTD), expected, atol=1e-12)


# ---- optimizers and strategies


def test_muons_matrices_have_the_root_and_what_it_leaves_to_adamw_has_not() -> None:
    method = functools.partial(Muon, betas=(0.9, 0.95), eps=1e-8, muon=MuonKeys(0.95, 5, 2.0))
    gpt = tiny_gpt("hyperconn", **WIDE)
    config = adamw()
    optimizer = build_optimizer(gpt, type(config)(1e-3, 1e-4, 0, 0.1, 1.0, method))
    names = {param: name for name, param in gpt.named_parameters()}
    found = {names[p]: (g["lr_scale"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    for name, scales in found.items():
        if is_matrix(name):
            assert scales == (2.0 * 0.5, 0.2), name  # muon.lr_scale m^-1/2
        elif name == "residual.w_SDC":
            assert scales == (0.25, 0.4)
        else:
            assert scales[0] == 1.0, name


def test_an_optimizer_without_a_rule_is_rejected() -> None:
    words = (
        r"model\.base_width must be null with this optimizer, for which no rule is known, got 16; give optimizer=adamw"
    )
    with pytest.raises(ValueError, match=words):
        parameter_groups(tiny_gpt(**WIDE), 1e-3, 0.1)


@pytest.mark.parametrize(
    ("residual", "name"), [("deepnorm", "DeepNorm"), ("keel", "Keel"), ("lns", "LayerNormScaling")]
)
def test_strategies_with_a_depth_rule_of_their_own_are_rejected(residual: str, name: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.base_depth must be null with {name}"):
        tiny_gpt(residual, base_depth=3)


@pytest.mark.parametrize("residual", options("residual"))
def test_names_of_readers_exist_and_their_rate_shrinks(residual: str) -> None:
    gpt = tiny_gpt(residual, n_head=4, **WIDE)
    named = {name for module in gpt.modules() for name in getattr(module, "width_readers", ())}
    readers = {name for name, param in gpt.named_parameters() if param in list_readers(gpt)}
    assert {name.removeprefix("residual.").split(".")[-1] for name in readers} >= {n for n in named if n != "w1"}
    assert bool(readers) == bool(named)
    plain = rates(tiny_gpt(residual, n_head=4, n_embd=64))
    for name, (rate, _) in rates(gpt).items():
        assert rate == pytest.approx(plain[name][0] * (0.25 if is_matrix(name) or name in readers else 1.0)), name


def test_readers_of_other_rooms() -> None:
    for kind, parts in {
        "embedding.proj_JDD": {"embedding": "value_projection"},
        "h.0.ln_1.beta": {"norm": "seednorm"},
        "adapter.linear.weight": {"recurrence": "looped"},
    }.items():
        gpt: Any = tiny_gpt(**parts, **WIDE)
        assert rates(gpt)[kind][0] == 0.25, kind
    assert component("norm", "layernorm") is not None
