"""The preflight: every planted fault is caught by the named check, and honest strategies pass."""

import dataclasses
import functools
from typing import Any

import pytest

from src.checks import cost, graph, learning, properties
from src.checks.base import Subject, tokens
from src.checks.quick import build, judged
from src.datamodules.embedded_text import read_embedded_tokens
from src.models.config import GPTConfig
from src.tasks.check import table
from tests.checks import planted
from tests.support import ROOT, component, option

CONFIG = GPTConfig(4, 2, 32, 16, 64, False, 0.0, "none", "pre", "learned")


def subject(strategy: Any) -> Subject:
    residual = component("residual", strategy) if isinstance(strategy, str) else strategy
    parts = {
        "residual": residual,
        "norm": component("norm", "layernorm"),
        "embedding": component("embedding", "tied"),
    }
    return Subject(functools.partial(build, **parts), CONFIG)


@functools.cache
def text() -> Any:
    return read_embedded_tokens()[:200_000]


def medium() -> GPTConfig:
    return GPTConfig(**option("model", "gpt2_medium"))


def cost_of(which: Subject) -> list[str]:
    return cost.cost(which, medium(), 32, 141.0)[0]


def learning_of(which: Subject) -> list[str]:
    return learning.learns(which, subject("vanilla"), text())[0]


def random_of(which: Subject) -> list[str]:
    return learning.random_tokens(which)[0]


def depth_of(which: Subject) -> list[str]:
    return cost.depth_profile(
        dataclasses.replace(which, config=dataclasses.replace(CONFIG, n_layer=12)), tokens()
    )[0]


CASES = [
    (planted.ReadsTheFuture, properties.causality, "first seen at site 0 (attn of layer 0), at init"),
    (planted.ReadsTheFutureBehindAGate, properties.causality, "once the parameters have moved"),
    (planted.ReadsTheFutureBehindAGate, random_of, "the model sees the tokens that it predicts"),
    (planted.MixesTheBatch, properties.batch_independence, "something mixes over dimension 0"),
    (planted.UnusedParameter, properties.gradients, "residual.scales.0 gets no gradient in step 1"),
    (planted.UnusedParameter, graph.two_ranks, "find_unused_parameters=False fails"),
    (planted.StacksAllLayers, cost_of, "add sources up in a loop instead of stacking them"),
    (planted.NaNAtStep30, learning_of, "the loss is nan at step 31"),
    (planted.DividesByAVariance, properties.degenerate_input, "add an eps"),
    (planted.ItemOnTheStep, graph.one_graph, "a forward reads 8 values back to the host (.item()"),
    (planted.PythonNumberOnTheStep, graph.one_graph, "a Python number changes with the step"),
    (planted.AbsurdLoss, properties.initial_loss, "ln V is 4.159"),
    (planted.LosesFloat32, properties.stream_type, "the state holds torch.bfloat16 after write at site 0"),
    (planted.WrongShape, properties.contract, "read at site 0 (attn of layer 0) gives shape (3, 16, 64)"),
    (planted.Explodes, depth_of, "the stream explodes or vanishes"),
]


@pytest.mark.parametrize(("strategy", "check", "words"), CASES)
def test_a_planted_fault_is_caught_by_its_check(strategy: Any, check: Any, words: str) -> None:
    finding = judged("check", lambda: (check(subject(strategy)), {}))
    assert not finding.ok
    assert words in finding.faults[0]
    assert finding.faults[0] in table("planted", [finding])


HONEST = [
    properties.contract,
    properties.causality,
    properties.batch_independence,
    properties.gradients,
    properties.stream_type,
    properties.degenerate_input,
    properties.initial_loss,
    graph.one_graph,
    cost_of,
    depth_of,
]


@pytest.mark.parametrize("check", HONEST)
@pytest.mark.parametrize("strategy", ["vanilla", "hyperconn", "attnres"])
def test_honest_strategies_pass(strategy: str, check: Any) -> None:
    assert check(subject(strategy)) == []


def test_an_honest_strategy_learns_text_and_nothing_from_random_tokens() -> None:
    faults, figures = learning.learns(subject("x0_blend"), subject("vanilla"), text())
    assert faults == []
    assert figures["loss"] < figures["losses"][0] - 1
    faults, figures = learning.random_tokens(subject("x0_blend"))
    assert faults == []
    assert figures["loss_random"] == pytest.approx(figures["entropy_random"], abs=0.05)


def test_two_ranks_step_an_honest_strategy() -> None:
    assert graph.two_ranks(subject("hyperconn")) == []


def test_a_leak_too_good_to_be_an_idea_is_named() -> None:
    vanilla = [6.0, 5.0, *[4.0] * 10]
    assert "too good to be an idea" in learning.judged([6.0, 5.0, *[3.0] * 10], vanilla)[0]
    assert "does not fall" in learning.judged([6.0, *[5.9] * 11], vanilla)[0]
    assert "jumps by 2.00 nats over vanilla" in learning.judged([6.0, 5.0, *[3.0] * 5, *[5.0] * 5], vanilla)[0]
    noisy = [6.0, 4.0, 6.0, *[4.0] * 9]
    assert learning.judged(noisy, noisy) == []
    assert learning.judged([6.0, 5.0, *[3.0] * 5, 6.0, 5.0, *[3.0] * 3], vanilla) == []  # a step or two
    assert learning.judged([6.0, 5.0, *[3.9] * 10], vanilla) == []


def test_what_gpt2_medium_keeps_is_counted_without_computing_it() -> None:
    faults, figures = cost.cost(subject("vanilla"), medium(), 32, 1.0)
    assert "over gpu_gib=1" in faults[0]
    assert figures["n_params_medium"] == 354_599_936
    # 24 layers of about 34 bytes a position and channel (bf16 sublayers, a float32 stream)
    assert 24 * 20 < figures["activations_gib_medium"] * 2**30 / (32 * 1024 * 1024) < 24 * 60
    assert (ROOT / "conf/task/check.yaml").is_file()


def test_a_crash_in_a_check_is_a_finding() -> None:
    def crash() -> Any:
        raise RuntimeError("boom")

    assert judged("x", crash).faults == ["the model raises RuntimeError: boom"]
