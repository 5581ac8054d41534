"""Embeddings written for the benchmark work unchanged and equal ours."""

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from src.models.gpt import GPT
from tests.support import component, jitter, tiny_gpt, tokens


class TokenEmbedding(nn.Module):
    """Embedding in the benchmark's form: no base class, `config` with nanoGPT's names, a cache."""

    def __init__(self, config):  # type: ignore[no-untyped-def]
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.extra = nn.Embedding(2 * config.vocab_size, config.n_embd)
        self.gate = nn.Parameter(torch.full((2,), 0.5))
        self.first, self.last = 0, config.n_layer - 1
        self.vocab_size = config.vocab_size
        self.cache = None

    def forward(self, idx):  # type: ignore[no-untyped-def]
        _, t = idx.size()
        pos = torch.arange(0, t, dtype=torch.long, device=idx.device)
        self.cache = {
            self.first: self.gate[0] * self.extra(idx),
            self.last: self.gate[1] * self.extra(idx + self.vocab_size),
        }
        return self.drop(self.wte(idx) + self.wpe(pos))

    def get_value_embed(self, layer_idx):  # type: ignore[no-untyped-def]
        return None if self.cache is None else self.cache.get(layer_idx)

    def get_lm_head_weight(self):  # type: ignore[no-untyped-def]
        return self.wte.weight

    def get_num_pos_params(self):  # type: ignore[no-untyped-def]
        return self.wpe.weight.numel()


class Smallest(nn.Module):
    """Without the optional method."""

    def __init__(self, config):  # type: ignore[no-untyped-def]
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.shift = nn.Parameter(torch.randn(config.n_embd))

    def forward(self, idx):  # type: ignore[no-untyped-def]
        return self.wte(idx) + self.shift

    def get_lm_head_weight(self):  # type: ignore[no-untyped-def]
        return self.wte.weight

    def get_num_pos_params(self):  # type: ignore[no-untyped-def]
        return 0


def dropped_in(name: str, residual: str = "vanilla", positions: str = "learned", seed: int = 0) -> GPT:
    factory = instantiate({"_target_": f"{__name__}.{name}", "_partial_": True})
    return GPT(
        tiny_gpt(positions=positions).config,
        residual=component("residual", residual),
        norm=component("norm", "layernorm"),
        embedding=factory,
        seed=seed,
    )


def ours_alike(theirs: GPT, residual: str) -> GPT:
    """`value_embed` with the same layers and the same weights."""
    gpt = GPT(
        theirs.config,
        residual=component("residual", residual),
        norm=component("norm", "layernorm"),
        embedding=component("embedding", "value_embed", layers=[0, -1]),
        seed=0,
    ).double()
    names = {"inner.extra.weight": "table_RD", "inner.gate": "scale_J"}
    weights = {}
    for key, value in theirs.state_dict().items():
        for theirs_is, ours_is in (*names.items(), ("inner.", "")):
            key = key.replace(theirs_is, ours_is)
        weights[key] = value
    gpt.load_state_dict(weights, strict=True)
    return gpt


@pytest.mark.parametrize("residual", ["vanilla", "hyperconn", "parallel", "attnres"])
def test_an_embedding_of_the_benchmark_works_and_equals_ours(residual: str) -> None:
    theirs = jitter(dropped_in("TokenEmbedding", residual)).double()
    assert torch.allclose(theirs(tokens()), ours_alike(theirs, residual)(tokens()), rtol=0, atol=1e-12)


def test_its_stream_equals_the_benchmarks_loop() -> None:
    gpt = jitter(dropped_in("TokenEmbedding")).double()
    inner = gpt.embedding.inner
    x = inner(tokens())
    for i, block in enumerate(gpt.h):
        extra = inner.get_value_embed(i)
        if extra is not None:
            x = x + extra
        x = x + block.attn(block.ln_1(x))
        x = x + block.mlp(block.ln_2(x))
    assert torch.allclose(gpt(tokens()), gpt.ln_f(x) @ inner.get_lm_head_weight().T, rtol=0, atol=1e-12)


def test_it_trains_compiles_and_counts() -> None:
    torch.compiler.reset()
    gpt = jitter(dropped_in("TokenEmbedding")).double()
    gpt.loss(tokens(), tokens(seed=1)).backward()
    assert all(p.grad is not None for p in gpt.parameters())
    assert gpt.n_params(positions=True) - gpt.n_params(positions=False) == 12 * 16
    assert gpt.embedding.get_num_lookup_params() == 2 * 64 * 16
    compiled = torch.compile(gpt.hidden, fullgraph=True, backend="aot_eager")
    for seed in (0, 1):  # the cache of one forward must not leak into the next
        assert torch.allclose(compiled(tokens(seed=seed)), gpt.hidden(tokens(seed=seed)), atol=1e-12)


def test_the_optional_method_may_be_missing_and_what_it_draws_follows_from_the_seed() -> None:
    torch.manual_seed(1)
    one = dropped_in("Smallest")
    torch.manual_seed(2)
    two, other = dropped_in("Smallest", positions="rope"), dropped_in("Smallest", seed=5)
    assert torch.equal(one.embedding.inner.shift, two.embedding.inner.shift)
    assert not torch.equal(one.embedding.inner.shift, other.embedding.inner.shift)
    out: Tensor = two(tokens())
    assert out.shape == (3, 12, 64)
