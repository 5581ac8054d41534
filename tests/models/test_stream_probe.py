"""Fitted mixing weights against known ones; a probe changes nothing."""

import pytest
import torch
from torch import Tensor

from src.models.stream_probe import probe_stream, summarize_parameters
from tests.residual.plain import flow, stream_spec
from tests.support import component, jitter, options, tiny_gpt, tokens

#: Strategies whose weights are constants, the same for all channels.
CONSTANT = [
    *("vanilla", "rezero", "x0_blend", "learned_scaling", "laurel_rw", "laurel_pa", "parallel_lanes"),
    *("hyperconn_static", "denseformer", "unet_skips", "backout", "gpas", "cached_attn_read"),
]


def known(name: str, gpt_residual: torch.nn.Module) -> Tensor:
    """Compute the weights by running a strategy on one-hot vectors: x0 is e_0, the output of site k e_{k+1}."""
    n = 7
    spec = stream_spec(3, n)
    strategy = component("residual", name)(spec).double()
    strategy.load_state_dict(gpt_residual.state_dict())
    reads: list[Tensor] = []
    one_hot = torch.eye(n, dtype=torch.float64)

    def branch(k: int, x: Tensor) -> Tensor:
        reads.append(x.flatten())
        return one_hot[k + 1].view(1, 1, n)

    branches = [lambda x, k=k: branch(k, x) for k in range(6)]
    end = flow(strategy, spec, one_hot[0].view(1, 1, n), branches)
    return torch.stack([*reads, end.flatten()])


@pytest.mark.parametrize("name", CONSTANT)
def test_constant_weights_are_found_exactly(name: str) -> None:
    gpt = jitter(tiny_gpt(name)).double()
    stream = probe_stream(gpt, tokens(), tokens(seed=1))
    assert stream.measured == (name != "hyperconn_static")  # which follows its streams instead
    assert torch.allclose(stream.mixing_KJ.double(), known(name, gpt.residual).detach(), rtol=0, atol=1e-5)
    assert stream.explained_K.min() > 1 - 1e-6


OWN = ["attnres", "attnres_block", "delta_attnres", "hyperconn", "mhc", "mhc_manifold", "mhc_lite", "kromhc", "ihc"]


@pytest.mark.parametrize("name", OWN)
def test_a_strategys_own_weights_reproduce_the_inputs_of_sites(name: str) -> None:
    gpt = jitter(tiny_gpt(name)).double()
    one = tokens(1, 1)  # of a single token, the mean over tokens is that token's
    stream = probe_stream(gpt, one, tokens(1, 1, seed=1))
    assert not stream.measured
    # The last row is the readout; the final norm, where the strategy owns it, is not a weighted sum.
    rows = stream.explained_K if gpt.ln_f is not None else stream.explained_K[:-1]
    assert rows.min() > 1 - 1e-6


def test_at_init_attention_residuals_read_the_mean() -> None:
    mixing = probe_stream(tiny_gpt("attnres"), tokens(), tokens(seed=1)).mixing_KJ
    for k, row in enumerate(mixing):
        assert torch.allclose(row[: k + 1], torch.full((k + 1,), 1 / (k + 1)))
        assert not row[k + 1 :].any()


@pytest.mark.parametrize("name", options("residual"))
def test_every_strategy_can_be_probed(name: str) -> None:
    gpt = jitter(tiny_gpt(name))
    gpt.residual.on_step(50, 100)
    stream = probe_stream(gpt, tokens(), tokens(seed=1))
    n = len(gpt.sites)
    assert stream.mixing_KJ.shape == (n + 1, n + 1)
    assert not stream.mixing_KJ.triu(1).any()
    for values in (stream.mixing_KJ, stream.explained_K, stream.read_rms_K, stream.branch_rms_S):
        assert values.isfinite().all()
    assert stream.explained_K.max() <= 1 + 1e-6
    assert (stream.gradient_rms_S > 0).all()


def test_sizes_are_those_of_the_tensors() -> None:
    gpt = tiny_gpt()
    seen: list[Tensor] = []
    hook = gpt.h[1].mlp.register_forward_hook(lambda _m, _a, out: seen.append(out))
    stream = probe_stream(gpt, tokens(), tokens(seed=1))
    hook.remove()
    assert torch.allclose(stream.branch_rms_S[3], seen[0].square().mean().sqrt())
    x0 = gpt.embedding(tokens())
    assert torch.allclose(stream.read_rms_K[0], x0.square().mean().sqrt())


def test_a_zero_output_does_not_spoil_the_fit() -> None:
    gpt = tiny_gpt().double()
    torch.nn.init.zeros_(gpt.h[0].mlp.c_proj.weight)
    stream = probe_stream(gpt, tokens(), tokens(seed=1))
    others = [j for j in range(7) if j != 2]
    assert torch.allclose(stream.mixing_KJ[-1, others], torch.ones(6), atol=1e-6)


def test_a_probe_measures_the_step_that_trains() -> None:
    """Attention stays within documents, and the backward runs outside autocast."""
    gpt = tiny_gpt("muddformer")
    idx, targets = tokens(), tokens(seed=1)
    document = torch.zeros_like(idx)
    document[:, idx.shape[1] // 2 :] = 1
    with torch.autocast("cpu", torch.bfloat16):
        found = probe_stream(gpt, idx, targets, document)
        x, trace = gpt.trace(idx, document)
        loss = gpt.head_loss(x, targets)
    gradients = torch.autograd.grad(loss, trace.y_BTD, allow_unused=True)
    rms = torch.stack([torch.zeros(()) if g is None else g.float().square().mean().sqrt() for g in gradients])
    assert torch.allclose(found.gradient_rms_S, rms, rtol=1e-6)
    assert not torch.allclose(found.gradient_rms_S, probe_stream(gpt, idx, targets).gradient_rms_S, rtol=1e-3)


def test_a_probe_changes_neither_gradients_nor_random_state() -> None:
    gpt = tiny_gpt(dropout=0.3)
    before = torch.get_rng_state()
    probe_stream(gpt, tokens(), tokens(seed=1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in gpt.parameters())


def test_parameters_are_summarized_by_row() -> None:
    gpt = jitter(tiny_gpt("layerscale"))
    gate_SD, rows = gpt.residual.gate_SD, summarize_parameters(gpt)
    assert torch.allclose(rows["gate_SD, mean of a row"], gate_SD.mean(1, keepdim=True))
    assert torch.allclose(rows["gate_SD, RMS of a row"], gate_SD.square().mean(1, keepdim=True).sqrt())
    lanes = jitter(tiny_gpt("parallel_lanes"))
    assert torch.equal(summarize_parameters(lanes)["write_A2"], lanes.residual.write_A2)
    assert summarize_parameters(lanes)["carry_A"].shape == (2, 1)
    assert summarize_parameters(tiny_gpt()) == {}


def test_an_embeddings_additions_are_columns_from_their_layer_on() -> None:
    gpt = jitter(tiny_gpt(embedding="value_embed")).double()
    stream = probe_stream(gpt, tokens(), tokens(seed=1))
    assert [s.site for s in stream.sources if s.addition] == [0, 2, 4]  # before each layer
    assert [s.first_reader for s in stream.sources] == [0, 0, 1, 2, 2, 3, 4, 4, 5, 6]
    for j, source in enumerate(stream.sources):
        seen = torch.arange(7) >= source.first_reader
        assert torch.allclose(stream.mixing_KJ[:, j], seen.float(), atol=1e-5)  # a vanilla stream's
    assert stream.explained_K.min() > 1 - 1e-6


def test_an_addition_that_a_strategy_declines_reaches_one_site_and_its_output() -> None:
    gpt = jitter(tiny_gpt("attnres", embedding="value_embed")).double()
    one = tokens(1, 1)
    stream = probe_stream(gpt, one, tokens(1, 1, seed=1))
    assert not stream.measured
    for j, source in enumerate(stream.sources):
        if source.addition:
            assert stream.mixing_KJ[:, j].nonzero().flatten().tolist() == [source.site]
    assert stream.explained_K.min() > 1 - 1e-6


def test_collinear_additions_get_the_weights_nearest_to_one() -> None:
    gpt = jitter(tiny_gpt(embedding="bigram_hash"))
    stream = probe_stream(gpt, tokens(), tokens(seed=1))
    for j, source in enumerate(stream.sources):
        seen = torch.arange(7) >= source.first_reader
        assert torch.allclose(stream.mixing_KJ[:, j], seen.float(), atol=1e-3)
    assert stream.explained_K.min() > 1 - 1e-6
