"""Parameter groups: nanoGPT's decay rule, the strategy's own groups, and rules by pattern."""

from typing import Any

import pytest
import torch

from src.models.gpt import GPT
from src.models.optim.groups import GroupRule, parameter_groups
from tests.support import options, tiny_gpt


def options_by_name(gpt: GPT, *rules: GroupRule) -> dict[str, dict[str, Any]]:
    """The options of every parameter under rules and weight decay 0.1."""
    groups = parameter_groups(gpt, 1e-3, 0.1, rules)
    return {
        groups.names[p]: {k: v for k, v in group.items() if k != "params"} for group in groups for p in group["params"]
    }


def test_tensors_of_two_dimensions_decay_and_no_others() -> None:
    gpt = tiny_gpt(bias=True)
    found = options_by_name(gpt)
    assert {name for name, _ in gpt.named_parameters()} == set(found)
    for name, param in gpt.named_parameters():
        assert found[name] == {"lr_scale": 1.0, "weight_decay": 0.1 if param.dim() == 2 else 0.0}


def test_copies_of_norms_and_biases_do_not_decay_either() -> None:
    gpt = tiny_gpt(recurrence="mini", bias=True)
    found, copied = options_by_name(gpt), {id(p) for p in gpt.copied_params()}
    decays = {(p.dim(), found[name]["weight_decay"]) for name, p in gpt.named_parameters() if id(p) in copied}
    assert decays == {(3, 0.1), (2, 0.0)}  # the first axis counts copies


def test_the_strategys_own_scales_hold() -> None:
    scales = {"lr": None, "keep_lr_scale": 1.0, "blend_lr_scale": 10.0}
    found = options_by_name(tiny_gpt("x0_blend", strategy=scales))
    assert {own["lr_scale"] for name, own in found.items() if "residual." in name} == {1.0, 10.0}


def test_a_strategys_absolute_rate_and_decay_replace_the_trunks() -> None:
    absolute = {"lr": 0.02, "keep_lr_scale": 1.0, "blend_lr_scale": 0.5, "keep_weight_decay": 0.04}
    found = options_by_name(tiny_gpt("x0_blend", strategy=absolute))  # the trunk: rate 1e-3, decay 0.1
    own = {name.rpartition(".")[2]: values for name, values in found.items() if "residual." in name}
    scales = {name: (values["lr_scale"], values["weight_decay"]) for name, values in own.items()}
    assert sorted(scales.values()) == [(pytest.approx(10.0), 0.0), (pytest.approx(20.0), 0.04)]


@pytest.mark.parametrize("residual", options("residual"))
def test_the_matrices_are_the_weights_of_the_sublayers(residual: str) -> None:
    gpt = tiny_gpt(residual, embedding="untied", bias=True)
    ends = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    groups = parameter_groups(gpt, 1e-3, 0.1)
    found = {groups.names[p]: count for p, count in groups.matrices.items()}
    trunk = {n for n, _ in gpt.named_parameters() if n.startswith("h.") and n.endswith(ends)}
    assert found == {name: 3 if "c_attn" in name else 1 for name in trunk}
    assert len(found) == 12


# ---- rules by pattern


def test_a_rule_changes_the_parameters_that_match_and_no_others() -> None:
    gpt = tiny_gpt(bias=True)
    before = options_by_name(gpt)
    after = options_by_name(gpt, GroupRule("h.*.attn.*", {"lr_scale": 0.5, "betas": (0.8, 0.9)}))
    changed = {"lr_scale": 0.5, "betas": (0.8, 0.9)}
    for name, found in after.items():
        assert found == {**before[name], **(changed if ".attn." in name else {})}


def test_a_rules_scale_multiplies_and_its_decay_replaces() -> None:
    gpt = tiny_gpt("x0_blend", bias=True, strategy={"lr": None, "blend_lr_scale": 10.0})
    found = options_by_name(gpt, GroupRule("*", {"lr_scale": 0.1, "weight_decay": 0.7}))
    assert {own["weight_decay"] for own in found.values()} == {0.7}
    assert {own["lr_scale"] for name, own in found.items() if "blend" in name} == {10.0 * 0.1}


def test_a_rule_that_repeats_the_decay_changes_nothing_under_a_transfer_rule() -> None:
    gpt = tiny_gpt(n_embd=64, base_width=16)
    found = parameter_groups(gpt, 1e-3, 0.1, [GroupRule("h.*.mlp.*.weight", {"weight_decay": 0.1})], width_exponent=1.0)
    plain = parameter_groups(gpt, 1e-3, 0.1, width_exponent=1.0)
    by_param = {param: (g["lr_scale"], g["weight_decay"]) for g in plain for param in g["params"]}
    assert by_param == {param: (g["lr_scale"], g["weight_decay"]) for g in found for param in g["params"]}
    assert (0.25, 0.4) in by_param.values()


def test_of_two_rules_that_match_the_later_one_counts_alone() -> None:
    gpt = tiny_gpt()
    found = options_by_name(
        gpt,
        GroupRule("h.*", {"lr_scale": 0.5, "weight_decay": 0.7}),
        GroupRule("h.1.*", {"lr_scale": 2.0}),
    )
    assert found["h.0.mlp.c_fc.weight"] == {"lr_scale": 0.5, "weight_decay": 0.7}
    assert found["h.1.mlp.c_fc.weight"] == {"lr_scale": 2.0, "weight_decay": 0.1}


def test_a_pattern_that_matches_nothing_is_an_error_with_near_names() -> None:
    words = r"optimizer\.groups\.0\.pattern=h\.\*\.atn\.c_attn\.\* must match .* near names are h\.\*\.attn\.c_attn"
    with pytest.raises(ValueError, match=words):
        parameter_groups(tiny_gpt(), 1e-3, 0.1, [GroupRule("h.*.atn.c_attn.*", {"lr_scale": 0.5})])


def test_groups_without_rules_keep_the_order_of_the_parameters() -> None:
    gpt = tiny_gpt(bias=True)
    matrices, others = parameter_groups(gpt, 1e-3, 0.1)
    in_order = list(gpt.parameters())
    for group in (matrices, others):
        positions = [next(i for i, q in enumerate(in_order) if q is p) for p in group["params"]]
        assert positions == sorted(positions)
    assert torch.is_tensor(matrices["params"][0])
