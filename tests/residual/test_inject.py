"""Additions of an embedding to the stream, with every shipped strategy."""

import pytest
import torch
from torch import Tensor

from src.embedding.base import EmbeddingSpec, Lookup
from src.embedding.tied import TiedEmbedding
from src.models.config import GPTConfig
from src.models.gpt import GPT
from tests.residual.test_contract import CLAIMS, NAMES, ROUNDING
from tests.support import COMPOSITIONS, SIZES, component, jitter, tiny_gpt, tokens

every_strategy = pytest.mark.parametrize("name", NAMES + COMPOSITIONS)


class Adds(TiedEmbedding):
    """Adds one vector before one layer."""

    def __init__(self, spec: EmbeddingSpec, *, layer: int) -> None:
        super().__init__(spec)
        self.layer = layer
        self.e_D = torch.nn.Parameter(torch.zeros(spec.n_embd))

    def stream_addition(self, lookup: Lookup, layer: int) -> Tensor | None:
        return self.e_D.expand(*lookup[0].shape, -1) if layer == self.layer else None


def with_addition(name: str, layer: int, n_layer: int = 3) -> GPT:
    """Build a jittered model whose embedding has an addition before one layer."""
    gpt = GPT(
        GPTConfig(**SIZES | {"n_layer": n_layer}),
        residual=component("residual", name),
        norm=component("norm", "layernorm"),
        embedding=lambda spec: Adds(spec, layer=layer),
        seed=0,
    ).double()
    gpt.residual.on_step(50, 100)
    return jitter(gpt)


@every_strategy
@pytest.mark.parametrize("layer", [0, 2])
def test_an_addition_reaches_its_layer_and_all_later_ones(name: str, layer: int) -> None:
    gpt = with_addition(name, layer)
    seen: dict[str, Tensor] = {}
    for i, block in enumerate(gpt.h):
        for kind in ("attn", "mlp"):
            block.get_submodule(kind).register_forward_hook(lambda _m, _a, y, at=(i, kind): seen.update({at: y}))
    gpt.hidden(tokens())
    before = dict(seen)
    with torch.no_grad():
        gpt.embedding.e_D += torch.arange(16.0, dtype=torch.float64).cos()
    gpt.hidden(tokens())
    for at, y in seen.items():
        changed = not torch.allclose(y, before[at], rtol=0, atol=1e-9)
        if at[0] < layer:
            assert not changed, at
        elif at[1] == "mlp" or name != "cached_attn_read":  # late attention reads the stream of before
            assert changed, at


@every_strategy
def test_an_addition_of_zero_changes_nothing(name: str) -> None:
    gpt = with_addition(name, 1)
    with torch.no_grad():
        gpt.embedding.e_D.zero_()
    plain = gpt(tokens())
    gpt.embedding.layer = 99
    assert torch.allclose(gpt(tokens()), plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CLAIMS)
@pytest.mark.parametrize("embedding", ["value_embed", "bigram_hash"])
def test_strategies_equal_to_vanilla_at_init_equal_it_with_additions(name: str, embedding: str) -> None:
    ours, plain = tiny_gpt(name, embedding=embedding).double(), tiny_gpt(embedding=embedding).double()
    with torch.no_grad():
        for gpt in (ours, plain):
            gpt.embedding.table_RD.normal_(generator=torch.Generator().manual_seed(3))
            gpt.embedding.wte.weight.normal_(generator=torch.Generator().manual_seed(4))
    assert torch.allclose(ours(tokens()), plain(tokens()), rtol=0, atol=ROUNDING.get(name, 1e-12))


# fmt: off
#: Strategies whose scales, norms and lanes are not to touch an addition; x0 is nothing but their stream's start.
ONLY_A_START = [
    "prores", "prores_block", "rezero", "layerscale", "lns", "gpas", "highway", "laurel_rw", "postln",
    "deepnorm", "mixln", "hybridnorm", "siamesenorm_deit", "parallel",
    "parallel_two_norms", "variance_parallel", "serial_parallel", "dual_path", "parallel_lanes", "cached_attn_read",
    "channel_dense", "resformer", "resformer_learned", "satformer", "unet_skips", "backout", "vanilla",
    "lns+resformer", "satformer+lns", "prores+deepnorm", "prores+lns+resformer",
]
# fmt: on


@pytest.mark.parametrize("name", ONLY_A_START)
def test_branch_weights_do_not_scale_an_addition(name: str) -> None:
    """Before the first layer it is the same as a part of x0."""
    gpt = with_addition(name, 0)
    added = gpt(tokens())
    with torch.no_grad():
        gpt.embedding.wpe.weight.add_(gpt.embedding.e_D)
        gpt.embedding.e_D.zero_()
    assert torch.allclose(gpt(tokens()), added, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["attnres", "parallel"])  # one declines an addition, the other takes it
def test_compiled_in_one_graph_it_equals_eager(name: str) -> None:
    torch.compiler.reset()
    gpt = with_addition(name, 1, n_layer=2)
    with torch.no_grad():
        gpt.embedding.e_D += 1
    compiled = torch.compile(gpt.hidden, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(tokens()), gpt.hidden(tokens()), rtol=1e-9, atol=1e-12)
