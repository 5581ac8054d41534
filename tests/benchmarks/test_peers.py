"""Peers: equal training by other code, and which code may be imported."""

import dataclasses
import functools
import re
import sys
import types

import pytest
import torch
from hydra import initialize_config_dir

from benchmarks import peers
from src.bench.candidates import compose_default_settings
from src.bench.peers import LOSS_TOLERANCE, Peer, read_peers, step_spec
from src.bench.step import StepSpec, residual_step
from src.errors import UserError
from src.files import CONF
from src.kernels.dispatch import REGISTRY
from src.residual.attnres import AttentionResiduals
from src.settings.read import Settings
from tests.runs import SMALL
from tests.support import component


@pytest.fixture(scope="module")
def settings() -> Settings:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose_default_settings([*SMALL, "name=peers", "optimizer.grad_clip=0.1"])


@pytest.mark.parametrize("bias", [False, True])
def test_the_plain_step_trains_as_ours_does(settings: Settings, bias: bool) -> None:
    settings = dataclasses.replace(settings, model=dataclasses.replace(settings.model, bias=bias))
    entry = Peer("plain", peers.plain, settings)
    assert entry.loss_gap() == pytest.approx(0, abs=1e-6)


def test_a_step_with_another_learning_rate_has_other_losses(settings: Settings) -> None:
    def fast(spec: StepSpec) -> peers.Peer:
        return peers.plain(dataclasses.replace(spec, lr=30 * spec.lr))  # type: ignore[type-var]

    gap = Peer("fast", fast, settings).loss_gap()
    assert gap is not None
    assert gap > LOSS_TOLERANCE


def test_the_mixture_of_a_package_replaces_ours(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    n_sources = []

    def fused_attnres(
        query: torch.Tensor, residuals: tuple[torch.Tensor, ...], rms_weight: torch.Tensor, rms_eps: float
    ) -> torch.Tensor:  # the package's equations and signature; its kernels run on a GPU only
        n_sources.append(len(residuals))
        v = torch.stack(residuals)
        weight = (torch.nn.functional.rms_norm(v, v.shape[-1:], rms_weight, rms_eps) @ query).softmax(0)
        return (weight[..., None] * v).sum(0)

    package = types.SimpleNamespace(fused_attnres=fused_attnres)
    monkeypatch.setitem(sys.modules, "fla.ops.attnres", package)
    spec = step_spec(settings)
    _, ours, _ = residual_step(spec, functools.partial(AttentionResiduals, eps=1e-6))
    _, theirs, _ = peers.attention_residuals_of_fla(spec)
    tokens = torch.randint(512, (2, 33), generator=torch.Generator().manual_seed(0))
    for _ in range(4):  # the queries are nonzero from the second step on
        losses = [float(step(tokens[:, :-1], tokens[:, 1:])) for step in (ours, theirs)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert n_sources[:4] == [2, 3, 4, 5]


def test_the_error_of_a_missing_package_names_it(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fla.ops.attnres", None)
    with pytest.raises(UserError, match="fused_attnres needs fla-core; pip install fla-core"):
        peers.attention_residuals_of_fla(step_spec(settings))


def test_losses_of_weights_that_do_not_fit_are_not_compared(settings: Settings) -> None:
    def streams(spec: StepSpec) -> peers.Peer:
        model = functools.partial(peers.PlainGPT, streams=lambda site: Connection())
        return peers.build_step(model, spec, compiled=False)

    entry = Peer("streams", streams, settings)
    assert entry.loss_gap() is None
    built = entry.build()
    tokens = torch.randint(512, (2, 33), generator=torch.Generator().manual_seed(0))
    losses = [float(built.step(tokens[:, :-1], tokens[:, 1:])) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert built.state_bytes() >= 12 * built.n_params


class Connection(torch.nn.Module):
    """Four streams: the first is read, all of them are written."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.gate * x[:: peers.N_STREAM], lambda y: x + y.repeat_interleave(peers.N_STREAM, 0)


def test_the_hyper_connections_package_is_a_peer(settings: Settings) -> None:
    pytest.importorskip("hyper_connections", reason="optional: pip install hyper-connections")
    for function in (peers.hyper_connections, peers.manifold_hyper_connections):
        model, step, _ = function(step_spec(settings))
        tokens = torch.randint(512, (2, 33), generator=torch.Generator().manual_seed(0))
        loss = step(tokens[:, :-1], tokens[:, 1:])
        assert 5 < float(loss) < 8
        assert any("streams" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("plain", "bench.peer=plain must be module:function"),
        ("os:system", "bench.peer=os:system is outside the package benchmarks; if you trust it"),
        ("benchmarksx.peers:plain", "is outside the package benchmarks"),
        ("src.bench.step:residual_step", "is outside the package benchmarks"),
        ("testsx.tasks:plain", "trusted_targets=[testsx]"),
        ("mine: benchmarks.peers:plane", "cannot be imported"),
        ("src.tasks.peers:plain", "is outside the package benchmarks"),
        ("benchmarks.peers:PlainGPT", "is not a function"),
    ],
)
def test_only_a_trusted_function_is_a_peer(settings: Settings, text: str, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        read_peers([text], settings, ["tests"])


def test_a_trusted_packages_function_is_a_peer(settings: Settings) -> None:
    text = "mine: tests.benchmarks.test_peers:step_spec"
    (entry,) = read_peers([text], settings, ["tests"])
    assert (entry.name, entry.function.__name__) == ("mine", "step_spec")


@pytest.mark.parametrize("name", ["attnres", "hyperconn", "mhc"])
def test_a_plain_peer_is_the_shipped_strategy_without_its_kernels(
    name: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = step_spec(settings)
    gpt, step, _ = getattr(peers, f"{name}_plain")(spec)
    shipped, its_step, _ = residual_step(spec, component("residual", name))
    idx = torch.randint(spec.vocab_size, (2, spec.block_size))
    switches, hidden = [], gpt.hidden

    def record(idx: torch.Tensor) -> torch.Tensor:
        switches.append(REGISTRY.residual_kernels)
        return hidden(idx)

    monkeypatch.setattr(gpt, "hidden", record)
    shipped.load_state_dict(gpt.state_dict())
    for _ in range(2):
        assert torch.allclose(step(idx, idx), its_step(idx, idx), rtol=1e-6)
    assert switches == [False, False]
