"""All measurements of every shipped strategy and composition are finite, or say why there are none."""

import json
import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from src.analysis import measure
from src.analysis.leave_out import sequence_losses
from src.analysis.measure import measure_model, summarize
from src.models.documents import number_documents
from src.models.stream_probe import probe_stream
from src.residual.base import ResidualStrategy
from src.residual.composed import Composed
from tests.support import COMPOSITIONS, jitter, options, start_at_once, tiny_gpt, tokens

#: Measurements of every model with attention, and the number of their positions by depth, in sites and blocks.
ALWAYS = {
    "leave_out": ("loss", "sublayer", "block"),
    "cosine": ("reads",),
    "activations": ("effective_rank", "token_kurtosis", "channel_kurtosis", "largest", "median", "massive"),
    "attention": ("entropy", "sink_mass", "sink_rate"),
}


def numbers(tree: Any) -> list[float]:
    if isinstance(tree, dict):
        return [x for value in tree.values() for x in numbers(value)]
    return [x for value in tree for x in numbers(value)] if isinstance(tree, list) else [tree]


def defines(strategy: nn.Module, method: str) -> bool:
    """Return whether the strategy, or a part of a composition, has its own form of an optional method."""
    parts = [
        part for part in strategy.modules() if isinstance(part, ResidualStrategy) and not isinstance(part, Composed)
    ]
    return any(getattr(type(part), method) is not getattr(ResidualStrategy, method) for part in parts)


@pytest.mark.parametrize("name", [*options("residual"), *COMPOSITIONS])
def test_every_strategy_is_measured(name: str) -> None:
    gpt = jitter(tiny_gpt(name, n_layer=2)).eval()
    gpt.residual.on_step(50, 100)
    found = measure_model(gpt, tokens(2, 9), nullcontext)
    json.dumps(found, allow_nan=False)
    n_site = len(gpt.active_sites)
    for family, names in ALWAYS.items():
        for key in names:
            assert all(map(math.isfinite, numbers(found[family][key]))), key
    assert len(found["cosine"]["reads"]["mean"]) == n_site
    assert len(found["activations"]["effective_rank"]["mean"]) == n_site + 1
    assert len(found["leave_out"]["block"]["mean"]) == 2
    assert all(map(math.isfinite, numbers(found["sources"]["weights"])))
    # Every null has its reason, and nothing else has one.
    null = {
        f"{family}.{key}"
        for family in (*ALWAYS, "logit_lens", "streams", "sources")
        for key, value in found[family].items()
        if value is None
    }
    assert set(found["omitted"]) == null
    # After the last block, the lens is the model.
    if name == "deep_cross_attention":
        assert found["logit_lens"]["loss"] is found["cosine"]["states"] is None
    else:
        loss = found["leave_out"]["loss"]["mean"]
        assert math.isclose(found["logit_lens"]["loss"]["mean"][-1], loss, rel_tol=1e-4)
        assert len(found["logit_lens"]["loss"]["mean"]) == 3
        assert len(found["cosine"]["states"]["mean"]) == n_site
    assert (found["streams"]["cosine"] is not None) == defines(gpt.residual, "get_streams")
    assert (found["streams"]["composed_forward"] is not None) == defines(gpt.residual, "stream_map")
    if found["sources"]["shares"] is not None:
        assert found["sources"]["origin"] == "the strategy's own"
        weights = found["sources"]["weights"]
        assert all(min(row) >= 0 and math.isclose(sum(row), 1, abs_tol=1e-3) for row in weights), weights


@pytest.mark.parametrize("recurrence", options("recurrence"))
def test_every_recurrence_is_measured(recurrence: str) -> None:
    gpt = jitter(tiny_gpt(recurrence=recurrence, visits=start_at_once(recurrence, "lime"))).eval()
    found = measure_model(gpt, tokens(2, 9), nullcontext)
    assert len(found["sites"]) == len(gpt.active_sites) == len(found["cosine"]["states"]["mean"])
    n_block = len({site.block for site in gpt.active_sites})
    assert len(found["leave_out"]["block"]["mean"]) == len(found["logit_lens"]["loss"]["mean"]) - 1 == n_block


def test_batches_of_sequences_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gpt = jitter(tiny_gpt("hyperconn_static", n_layer=2)).double().eval()
    whole = measure_model(gpt, tokens(5, 9), nullcontext)
    monkeypatch.setattr(measure, "TOKENS_AT_ONCE", 16)
    parts = measure_model(gpt, tokens(5, 9), nullcontext)
    for a, b in zip(numbers(whole["streams"]), numbers(parts["streams"]), strict=True):
        assert math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-9)
    assert whole["leave_out"] == parts["leave_out"]


def test_mean_and_standard_error_are_over_sequences() -> None:
    values = torch.tensor([[1.0, 0.0], [2.0, 0.0], [6.0, 3.0]])
    batches = [{"f": {"x": values[:2]}}, {"f": {"x": values[2:]}}]
    found, omitted = summarize(batches)
    assert found["f"]["x"]["mean"] == [3.0, 1.0]
    # sd of 1, 2, 6 is sqrt(7); of 0, 0, 3 it is sqrt(3).
    assert found["f"]["x"]["se"] == [float(f"{math.sqrt(7 / 3):.6g}"), 1.0]
    assert omitted == {}
    assert summarize([{"f": {"x": values[:1]}}])[0]["f"]["x"] == {"mean": [1.0, 0.0], "se": None}


def test_values_that_are_not_finite_are_null_with_their_number() -> None:
    values = torch.tensor([[1.0, math.nan], [math.inf, 2.0]])
    found, omitted = summarize([{"f": {"x": values, "y": "there is none"}}])
    assert found == {"f": {"x": None, "y": None}}
    assert omitted == {"f.x": "2 of 4 values are not finite", "f.y": "there is none"}


@pytest.mark.parametrize("name", ["vanilla", "hyperconn"])
def test_a_model_without_a_finite_loss_is_one_sentence(name: str) -> None:
    gpt = tiny_gpt(name, n_layer=2).eval()
    with torch.no_grad():
        gpt.h[1].mlp.c_proj.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"the model's loss is not finite \(2 of 2 values are not finite\)"):
        measure_model(gpt, tokens(2, 9), nullcontext)


def test_documents_are_measured_with_the_attention_of_their_training() -> None:
    gpt = jitter(tiny_gpt("attnres", n_layer=2)).eval()
    windows = tokens(2, 13)
    windows[:, 6] = 7
    found = measure_model(gpt, windows, nullcontext, 7)
    idx, targets = windows[:, :-1], windows[:, 1:]
    wanted = gpt.token_losses(idx, targets, document_BT=number_documents(idx, 7)).mean().item()
    assert math.isclose(found["leave_out"]["loss"]["mean"], wanted, rel_tol=1e-5)
    assert math.isclose(found["logit_lens"]["loss"]["mean"][-1], wanted, rel_tol=1e-5)
    assert not math.isclose(gpt.token_losses(idx, targets).mean().item(), wanted, rel_tol=1e-3)
    without = sequence_losses(gpt, idx, targets, {1}, number_documents(idx, 7)).mean().item()
    assert math.isclose(found["leave_out"]["sublayer"]["mean"][1], without - wanted, rel_tol=1e-3)
    probe = probe_stream(gpt, idx[:1], targets[:1], number_documents(idx[:1], 7))
    assert torch.allclose(torch.tensor(found["sources"]["weights"]), probe.mixing_KJ, atol=1e-5)
