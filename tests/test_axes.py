"""Combinations of axes: every strategy with all that it can tell apart, and every pair of options of two other axes.

A strategy can tell apart recurrences (order of visits), norm placements, positions and norms of queries and keys (which
`tap_qkv` precedes), and whether an embedding adds to the stream, to the values of attention, or nowhere. A norm is a map
of tensors to it, so there is no product of strategies and norms: the contract of norms is tested in `tests/norm`, and
here every norm meets every option of the other axes, each time under another strategy. Every strategy meets every MLP and
grouped queries; the product of strategies, MLPs and groups is behind the marker `stress`.
"""

import functools
import itertools
from collections import Counter
from collections.abc import Hashable

import pytest
import torch
import yaml

from src.embedding.base import TokenEmbedding
from src.models.config import NORM_PLACEMENTS, POSITIONS, QK_NORMS
from src.models.gpt import GPT
from tests.residual.plain import stream_spec
from tests.support import (
    COMPOSITIONS,
    class_of,
    component,
    has_one_stream,
    jitter,
    option,
    options,
    start_at_once,
    tiny_gpt,
    tokens,
)

AXES: dict[str, list[str]] = {
    "recurrence": options("recurrence"),
    "norm_placement": list(NORM_PLACEMENTS),
    "positions": list(POSITIONS),
    "qk_norm": list(QK_NORMS),
    "embedding": options("embedding"),
    "norm": options("norm"),
    "mlp": options("mlp"),
    "n_kv_head": ["2", "1"],  # of 2 heads
    "logit_softcap": ["null", "2"],
    "rope_scaling": ["linear", "llama3"],  # without effect where positions are not rotated
}
STRATEGIES = [*options("residual"), *COMPOSITIONS[:4]]
Case = dict[str, str]


def places_norms(residual: str) -> bool:
    spec = stream_spec(3, 16)
    strategy = component("residual", residual)(spec)
    return any(strategy.owns_norm(site) for site in strategy.visits(spec.sites))


@functools.cache
def axes_of(residual: str) -> dict[str, list[str]]:
    """Return the axes without the options that exclude a strategy."""
    axes = dict(AXES)
    if places_norms(residual):
        axes["norm_placement"] = ["pre"]
    if not has_one_stream(residual):
        axes["recurrence"] = [name for name in AXES["recurrence"] if name != "looped"]
    return axes


def kind_of(axis: str, name: str) -> Hashable:
    """Return what a strategy can tell of an option; options of one kind are the same to it."""
    if axis == "embedding":
        embedding = class_of(option(axis, name))
        hooks = ("stream_addition", "value_addition", "get_value_embed")
        return tuple(getattr(embedding, hook) is not getattr(TokenEmbedding, hook) for hook in hooks)
    return "any" if axis == "norm" else name


KINDS = {(axis, name): kind_of(axis, name) for axis, names in AXES.items() for name in names}


def kinds(axis: str, names: list[str]) -> set[Hashable]:
    return {KINDS[axis, name] for name in names}


Met = Counter[Hashable]


def cover() -> list[Case]:
    """Return as many cases for each strategy as its axis with the most kinds has, then vanilla with the missing pairs."""
    met: Met = Counter()
    cases = []
    for residual in STRATEGIES:
        n_case = max(len(kinds(axis, names)) for axis, names in axes_of(residual).items())
        cases += [complete({"residual": residual}, met) for _ in range(n_case)]
    for one, other in itertools.combinations(AXES, 2):
        for name, other_name in itertools.product(AXES[one], AXES[other]):
            if not met[one, name, other, other_name]:
                cases += [complete({"residual": "vanilla", one: name, other: other_name}, met)]
    return cases


def complete(given: Case, met: Met) -> Case:
    """Return a case with an option of every axis, and count its kinds and pairs in `met`.

    Of every axis an option whose kind the strategy has met least; among these one with the most new pairs with the
    options chosen before, and with the least frequent ones.
    """
    residual, case = given["residual"], dict(given)

    def cost(axis: str, name: str) -> tuple[int, int, int]:
        pairs = [met[pair] for pair in pairs_of(case | {axis: name}) if (axis, name) in (pair[:2], pair[2:])]
        return met[residual, axis, KINDS[axis, name]], -pairs.count(0), sum(pairs)

    for axis, names in axes_of(residual).items():
        if axis not in case:
            case[axis] = min(names, key=lambda name, axis=axis: cost(axis, name))  # type: ignore[misc]
    met.update((residual, axis, KINDS[axis, case[axis]]) for axis in AXES)
    met.update(pairs_of(case))
    return case


def pairs_of(case: Case) -> list[tuple[str, str, str, str]]:
    """Return (axis, option, axis, option) of every pair of two axes that a case has, in the order of `AXES`."""
    chosen = [(axis, case[axis]) for axis in AXES if axis in case]
    return [(*one, *other) for one, other in itertools.combinations(chosen, 2)]


COVER = cover()


def build_case(case: Case) -> GPT:
    visits = start_at_once(case["recurrence"], case["residual"])
    keys = {
        **case,
        "rope_scale": 4.0,
        "rope_original": 6,
        **{key: yaml.safe_load(case[key]) for key in ("n_kv_head", "logit_softcap")},
    }
    gpt = tiny_gpt(**keys, visits=visits)  # type: ignore[arg-type]  # axes are keywords or sizes
    gpt.follow(0, 100)
    return gpt


def check_gradients(gpt: GPT) -> None:
    gpt.loss(tokens(), tokens(seed=1)).backward()
    for key, param in gpt.named_parameters():
        assert param.grad is not None, key
        assert param.grad.isfinite().all(), key


def check_dtypes(gpt: GPT) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        x_BTD = gpt.hidden(tokens())
        loss = gpt.head_loss(x_BTD, tokens(seed=1))
    assert x_BTD.dtype == torch.float32
    assert loss.isfinite()


def check_causality(gpt: GPT) -> None:
    idx = tokens()
    changed = idx.clone()
    changed[:, 6:] = (changed[:, 6:] + 17) % 64
    before, after = gpt(idx), gpt(changed)
    assert before.isfinite().all()
    assert torch.allclose(before[:, :6], after[:, :6], rtol=0, atol=1e-12)
    assert not torch.allclose(before[:, 6], after[:, 6], rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", COVER, ids=lambda case: "-".join(case.values()))
def test_all_parameters_have_gradients_the_stream_is_float32_and_no_token_sees_a_later_one(case: Case) -> None:
    gpt = build_case(case)
    check_gradients(gpt)  # in the first step, at the initial values
    gpt.follow(50, 100)
    # Squares of squares leave bfloat16's range where a jittered norm does not bound its output.
    check_dtypes(jitter(gpt, 0.1 if case["mlp"] == "relu2" else 0.3))
    check_causality(gpt.double())


@pytest.mark.stress
@pytest.mark.parametrize("residual", STRATEGIES)
def test_every_strategy_under_every_mlp_with_and_without_groups(residual: str) -> None:
    for mlp, groups in itertools.product(AXES["mlp"], AXES["n_kv_head"]):
        check_gradients(build_case(complete({"residual": residual, "mlp": mlp, "n_kv_head": groups}, Counter())))


def test_every_strategy_meets_every_kind_of_option() -> None:
    for residual in STRATEGIES:
        cases = [case for case in COVER if case["residual"] == residual]
        for axis, names in axes_of(residual).items():
            assert kinds(axis, [case[axis] for case in cases]) == kinds(axis, names)


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(AXES, 2)))
def test_every_pair_of_options_meets(one: str, other: str) -> None:
    met = {(case[one], case[other]) for case in COVER}
    assert met == set(itertools.product(AXES[one], AXES[other]))


def test_every_norm_meets_strategies_that_place_norms_themselves() -> None:
    assert {case["norm"] for case in COVER if places_norms(case["residual"])} == set(AXES["norm"])
