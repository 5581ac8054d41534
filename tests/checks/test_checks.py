"""Checks: every planted fault is caught by its check, and correct strategies pass.

Covers `ddp_step.py` too.
"""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import pytest

from src.checks import cost, graph, learning, properties
from src.checks.base import Subject, draw_tokens
from src.checks.quick import build_gpt, run_check, run_quick_checks
from src.datamodules.embedded_text import read_embedded_tokens
from src.errors import UserError
from src.models.config import GPTConfig
from src.tasks.check import format_table
from tests.checks import planted
from tests.runs import PREPARED, environment
from tests.support import ROOT, component, composed_settings, option

CONFIG = GPTConfig(4, 2, 32, 16, 64, False, 0.0, "none", "pre", "learned")


@pytest.fixture(autouse=True)
def _forked_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the ranks of a check be forks, which need not import torch."""
    env = {**environment(), "PYTHONPATH": str(ROOT)}
    if PREPARED.suits(env):
        monkeypatch.setattr(graph, "Popen", lambda command, **_: PREPARED.begin(*command[1:], cwd=ROOT, env=env))


def test_parts_that_exclude_one_another_are_the_users_error_and_no_fault_of_the_strategy() -> None:
    settings = composed_settings("residual=muddformer", "recurrence=looped")
    with pytest.raises(
        UserError, match=r"^recurrence must not loop .* give recurrence=delayed_repeat or residual=vanilla$"
    ):
        run_quick_checks(settings)


def subject_of(strategy: Any) -> Subject:
    residual = component("residual", strategy) if isinstance(strategy, str) else strategy
    parts = {
        "residual": residual,
        "norm": component("norm", "layernorm"),
        "embedding": component("embedding", "tied"),
    }
    return Subject(functools.partial(build_gpt, **parts), CONFIG)


@functools.cache
def text() -> Any:
    return read_embedded_tokens()[:200_000]


def medium() -> GPTConfig:
    return GPTConfig(**option("model", "gpt2_medium"))


def find_cost_faults(subject: Subject) -> list[str]:
    return cost.check_cost(subject, medium(), 32, 141.0)[0]


def find_learning_faults(subject: Subject) -> list[str]:
    return learning.check_learning(subject, subject_of("vanilla"), text())[0]


def find_leaks(subject: Subject) -> list[str]:
    return learning.check_random_tokens(subject)[0]


def find_depth_faults(subject: Subject) -> list[str]:
    return cost.check_depth(
        dataclasses.replace(subject, config=dataclasses.replace(CONFIG, n_layer=12)), draw_tokens()
    )[0]


CASES = [
    (planted.ReadsTheFuture, properties.check_causality, "first seen at site 0 (attn of layer 0), at init"),
    (planted.ReadsTheFutureBehindAGate, properties.check_causality, "once the parameters have moved"),
    (planted.ReadsTheFutureBehindAGate, find_leaks, "the model sees the tokens that it predicts"),
    (planted.MixesTheBatch, properties.check_batch_independence, "something mixes over dimension 0"),
    (planted.UnusedParameter, properties.check_gradients, "residual.scales.0 gets no gradient in step 1"),
    (planted.UnusedParameter, graph.check_two_ranks, "find_unused_parameters=False fails"),
    (planted.StacksAllLayers, find_cost_faults, "add sources up in a loop instead of stacking them"),
    (planted.NaNAtStep30, find_learning_faults, "the loss is nan at step 31"),
    (planted.DividesByAVariance, properties.check_degenerate_input, "add an eps"),
    (planted.ItemOnTheStep, graph.check_one_graph, "a forward reads 8 values back to the host (.item()"),
    (planted.PythonNumberOnTheStep, graph.check_one_graph, "a Python number changes with the step"),
    (planted.AbsurdLoss, properties.check_initial_loss, "ln V is 4.159"),
    (
        planted.LosesFloat32,
        properties.check_stream_dtype,
        "the state holds torch.bfloat16 after write at site 0",
    ),
    (planted.WrongShape, properties.check_contract, "read at site 0 (attn of layer 0) gives shape (3, 16, 64)"),
    (
        planted.ReadsWithoutAState,
        properties.check_contract,
        "read at site 0 (attn of layer 0) returns Tensor; return the pair (x, state)",
    ),
    (planted.WritesNothing, properties.check_contract, "write at site 0 (attn of layer 0) returns None"),
    (planted.Explodes, find_depth_faults, "the stream explodes or vanishes"),
]


@pytest.mark.parametrize(("strategy", "check", "words"), CASES)
def test_a_planted_fault_is_caught_by_its_check(strategy: Any, check: Any, words: str) -> None:
    finding = run_check("check", lambda: (check(subject_of(strategy)), {}))
    assert finding.faults
    assert words in finding.faults[0]
    assert finding.faults[0] in format_table("planted", [finding])


CHECKS = [
    properties.check_contract,
    properties.check_causality,
    properties.check_batch_independence,
    properties.check_gradients,
    properties.check_stream_dtype,
    properties.check_degenerate_input,
    properties.check_initial_loss,
    graph.check_one_graph,
    find_cost_faults,
    find_depth_faults,
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("strategy", ["vanilla", "hyperconn", "attnres"])
def test_a_correct_strategy_passes_every_check(strategy: str, check: Any) -> None:
    assert check(subject_of(strategy)) == []


def test_a_correct_strategy_learns_text_and_nothing_from_random_tokens() -> None:
    faults, figures = learning.check_learning(subject_of("x0_blend"), subject_of("vanilla"), text())
    assert faults == []
    assert figures["loss"] < figures["losses"][0] - 1
    faults, figures = learning.check_random_tokens(subject_of("x0_blend"))
    assert faults == []
    assert figures["loss_random"] == pytest.approx(figures["entropy_random"], abs=0.05)


def test_a_correct_strategy_steps_on_two_ranks() -> None:
    assert graph.check_two_ranks(subject_of("hyperconn")) == []


def test_each_fault_of_a_loss_curve_is_named() -> None:
    vanilla = [6.0, 5.0, *[4.0] * 10]
    assert "implausibly low" in learning.find_faults([6.0, 5.0, *[3.0] * 10], vanilla)[0]
    assert "does not fall" in learning.find_faults([6.0, *[5.9] * 11], vanilla)[0]
    assert "jumps by 2.00 nats over vanilla" in learning.find_faults([6.0, 5.0, *[3.0] * 5, *[5.0] * 5], vanilla)[0]
    noisy = [6.0, 4.0, 6.0, *[4.0] * 9]
    assert learning.find_faults(noisy, noisy) == []
    assert (
        learning.find_faults([6.0, 5.0, *[3.0] * 5, 6.0, 5.0, *[3.0] * 3], vanilla) == []
    )  # spikes of one or two steps
    assert learning.find_faults([6.0, 5.0, *[3.9] * 10], vanilla) == []
    slow_start = [6.0, *[5.5] * 6, *[3.9] * 10]
    assert learning.find_faults([6.0, *[4.0] * 16], slow_start) == []  # a head start that vanilla makes up for


def test_the_memory_of_gpt2_medium_is_counted_on_fake_tensors() -> None:
    faults, figures = cost.check_cost(subject_of("vanilla"), medium(), 32, 1.0)
    assert "over gpu_gib=1" in faults[0]
    assert figures["n_params_medium"] == 354_599_936
    # 24 layers of about 34 bytes per position and channel (bf16 sublayers, a float32 stream)
    assert 24 * 20 < figures["activations_gib_medium"] * 2**30 / (32 * 1024 * 1024) < 24 * 60
    assert (ROOT / "conf/task/check.yaml").is_file()


def test_an_exception_in_a_check_is_a_fault() -> None:
    def crash() -> Any:
        raise RuntimeError("boom")

    (fault,) = run_check("x", crash).faults
    assert re.fullmatch(r"the model raises RuntimeError in crash \(\S*test_checks\.py:\d+\): boom", fault)


def test_an_exception_is_located_in_the_strategy_rather_than_in_torch() -> None:
    (fault,) = run_check("x", lambda: properties.check_contract(subject_of(planted.MisspeltAttribute))).faults
    found = re.fullmatch(r"the model raises AttributeError in write \((\S*planted\.py):(\d+)\): .*'alhpa'", fault)
    assert found is not None, fault
    line = Path(planted.__file__).read_text().splitlines()[int(found[2]) - 1]
    assert "self.alhpa" in line
