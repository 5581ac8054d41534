"""Contract of a recurrence with every residual strategy that supports it."""

import inspect

import pytest
import torch

from src.models.gpt import GPT
from tests.support import (
    ROOT,
    class_of,
    has_one_stream,
    jitter,
    option,
    options,
    start_at_once,
    tiny_gpt,
    tokens,
)

NAMES = options("recurrence")


def built(name: str, residual: str, step: int) -> GPT:
    gpt = tiny_gpt(residual, recurrence=name, visits=start_at_once(name, residual))
    gpt.follow(step, 100)
    return gpt


everywhere = pytest.mark.parametrize(
    ("name", "residual"),
    [(n, r) for n in NAMES if n != "none" for r in options("residual") if n != "looped" or has_one_stream(r)],
)


@everywhere
def test_every_parameter_gets_a_gradient_before_and_after_the_start(name: str, residual: str) -> None:
    for step in (0, 99):
        gpt = built(name, residual, step)
        gpt.loss(tokens(), tokens(seed=1)).backward()
        for key, param in gpt.named_parameters():
            assert param.grad is not None, (step, key)
            assert param.grad.isfinite().all(), (step, key)


@everywhere
def test_a_future_token_changes_no_earlier_logit(name: str, residual: str) -> None:
    gpt, idx = jitter(built(name, residual, 99)).double(), tokens()
    gpt.follow(99, 100)
    changed = idx.clone()
    changed[:, 6:] = (changed[:, 6:] + 17) % 64
    before, after = gpt(idx), gpt(changed)
    assert before.isfinite().all()
    assert torch.allclose(before[:, :6], after[:, :6], rtol=0, atol=1e-12)
    assert not torch.allclose(before[:, 6], after[:, 6], rtol=0, atol=1e-12)


@pytest.mark.parametrize("residual", options("residual"))
def test_before_the_start_a_model_equals_the_one_without_recurrence(residual: str) -> None:
    if not tiny_gpt(residual).residual.may_skip:
        pytest.skip("it cannot leave visits out")
    recurs = built("mini", residual, 0)
    assert len(recurs.active_sites) == len(tiny_gpt(residual).sites)
    assert recurs(tokens()).isfinite().all()
    if residual in (
        "vanilla",
        "x0_blend",
        "learned_scaling",
        "hyperconn_static",
        "attnres",
        "postln",
        "prores",
    ):
        assert torch.allclose(recurs(tokens()), tiny_gpt_at(residual)(tokens()), atol=1e-5)


def tiny_gpt_at(residual: str) -> GPT:
    gpt = tiny_gpt(residual)
    gpt.follow(0, 100)
    return gpt


@pytest.mark.parametrize("name", NAMES)
def test_the_yaml_holds_exactly_the_constructors_keys(name: str) -> None:
    config = option("recurrence", name)
    parameters = inspect.signature(class_of(config)).parameters.values()
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert {str(key) for key in config if not str(key).startswith("_")} == {p.name for p in keywords}
    assert all(p.default is p.empty for p in keywords)
    assert (ROOT / f"conf/recurrence/{name}.yaml").read_text().startswith(f"# {name}: ")
    assert (ROOT / f"tests/recurrence/test_{name}.py").is_file()


@pytest.mark.parametrize("residual", ["vanilla", "hyperconn", "attnres", "parallel_lanes"])
def test_two_compiled_graphs_cover_both_sides_of_the_start(residual: str) -> None:
    torch.compiler.reset()
    gpt = jitter(built("mini", residual, 0)).double()
    graphs: list[object] = []

    def count(graph: torch.fx.GraphModule, _inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(gpt.hidden, fullgraph=True, dynamic=False, backend=count)
    for step in (0, 10, 47, 48, 60, 99):
        gpt.follow(step, 100)
        assert torch.allclose(compiled(tokens()), gpt.hidden(tokens()), rtol=0, atol=1e-10)
    assert len(graphs) == 2
