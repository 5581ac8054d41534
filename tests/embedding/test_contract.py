"""Contract of an embedding for every shipped option."""

import inspect

import pytest
import torch
from torch import Tensor, nn

from src.models.flops import count_flops_per_token
from src.models.gpt import GPT
from src.models.optim.groups import base_groups
from tests.plain_gpt import plain_logits
from tests.support import ROOT, class_of, jitter, module_of, option, options, tiny_gpt, tokens

every_embedding = pytest.mark.parametrize("name", options("embedding"))


@every_embedding
def test_the_yaml_holds_exactly_the_constructors_keys(name: str) -> None:
    config = option("embedding", name)
    keywords = [p for p in inspect.signature(class_of(config)).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert {str(key) for key in config if not str(key).startswith("_")} == {p.name for p in keywords}
    assert all(p.default is p.empty for p in keywords)
    assert (ROOT / f"conf/embedding/{name}.yaml").read_text().startswith(f"# {name}: ")
    assert "Source:" in module_of(config).__doc__


@every_embedding
def test_every_parameter_gets_a_gradient_in_the_first_step(name: str) -> None:
    gpt = tiny_gpt(embedding=name)
    gpt.loss(tokens(), tokens(seed=1)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in gpt.parameters())


@every_embedding
def test_every_entry_of_its_scales_is_used(name: str) -> None:
    gpt = jitter(tiny_gpt(embedding=name)).double()
    gpt.loss(tokens(), tokens(seed=1)).backward()
    for key, param in gpt.embedding.named_parameters():
        if param.dim() == 1:
            assert (param.grad != 0).all(), key


@every_embedding
@pytest.mark.parametrize("positions", ["learned", "rope", "none"])
def test_future_tokens_and_other_sequences_change_nothing(name: str, positions: str) -> None:
    gpt, idx = jitter(tiny_gpt(embedding=name, positions=positions)).double(), tokens()
    for t in (1, 6, 11):
        changed = idx.clone()
        changed[:, t:] = (changed[:, t:] + 17) % 64
        before, after = gpt(idx), gpt(changed)
        assert torch.allclose(before[:, :t], after[:, :t], rtol=0, atol=1e-12)
        assert not torch.allclose(before[:, t], after[:, t], rtol=0, atol=1e-12)
    others = torch.cat((idx[:1], tokens(2, seed=5)))
    assert torch.allclose(gpt(idx)[0], gpt(others)[0], rtol=0, atol=1e-12)


@every_embedding
def test_a_shorter_sequence_is_the_start_of_a_longer_one(name: str) -> None:
    gpt = jitter(tiny_gpt(embedding=name)).double()
    assert torch.allclose(gpt(tokens())[:, :5], gpt(tokens()[:, :5]), atol=1e-12)
    assert gpt(tokens()[:, :1]).shape == (3, 1, 64)


@pytest.mark.parametrize(
    "name", [name for name in options("embedding") if name not in ("ngram_hash", "scaled", "nanochat")]
)
def test_x0_is_the_token_and_the_position(name: str) -> None:
    embedding = tiny_gpt(embedding=name).embedding
    idx = tokens()
    assert torch.equal(embedding(idx), embedding.wte.weight[idx] + embedding.wpe.weight[:12])
    without = tiny_gpt(embedding=name, positions="none").embedding
    assert torch.equal(without(idx), without.wte.weight[idx])


@every_embedding
def test_a_forward_leaves_no_state(name: str) -> None:
    gpt = tiny_gpt(embedding=name)
    before = {key: id(value) for key, value in vars(gpt.embedding).items()}
    gpt(tokens())
    assert {key: id(value) for key, value in vars(gpt.embedding).items()} == before


@every_embedding
def test_no_table_is_built_twice_and_the_counts_add_up(name: str) -> None:
    gpt = tiny_gpt(embedding=name)
    pointers = [value.data_ptr() for value in gpt.state_dict().values()]
    assert len(set(pointers)) == len(pointers)
    tables = sum(p.numel() for p in gpt.embedding.parameters() if p.dim() == 2)  # projections have three dimensions
    head = gpt.embedding.get_lm_head_weight().numel()
    assert gpt.embedding.get_num_pos_params() == 12 * 16
    assert gpt.embedding.get_num_lookup_params() == tables - head - 12 * 16
    without = tiny_gpt(embedding=name, positions="none")
    assert without.embedding.get_num_pos_params() == 0
    assert without.n_params(positions=True) == without.n_params(positions=False) == gpt.n_params(positions=False)


@every_embedding
def test_parameters_that_are_only_looked_up_cost_no_flops(name: str) -> None:
    gpt, tied = tiny_gpt(embedding=name), tiny_gpt()
    others = sum(p.numel() for p in gpt.embedding.parameters() if p.dim() != 2)
    assert count_flops_per_token(gpt) == count_flops_per_token(tied) + 6 * others


@every_embedding
def test_compiled_in_one_graph_it_equals_eager_in_value_and_gradient(name: str) -> None:
    torch.compiler.reset()
    gpt = jitter(tiny_gpt(embedding=name)).double()
    backend = "aot_eager" if name == "value_embed" else "eager"  # the former also traces the backward, in seconds
    compiled = torch.compile(gpt.hidden, fullgraph=True, backend=backend)
    results: list[list[Tensor]] = []
    for hidden in (gpt.hidden, compiled):
        gpt.zero_grad()
        loss = gpt.head_loss(hidden(tokens()), tokens(seed=1))
        loss.backward()
        results.append([loss, *(p.grad for p in gpt.parameters() if p.grad is not None)])
    for eager, graph in zip(*results, strict=True):
        assert torch.allclose(eager, graph, rtol=1e-9, atol=1e-12)


@every_embedding
def test_under_bf16_the_stream_stays_float32_and_close(name: str) -> None:
    gpt = jitter(tiny_gpt(embedding=name))
    with torch.autocast("cpu", torch.bfloat16):
        x_BTD = gpt.hidden(tokens())
    exact = gpt.hidden(tokens())
    assert x_BTD.dtype == torch.float32
    assert (x_BTD - exact).norm() < 0.1 * exact.norm()


@every_embedding
def test_weights_survive_a_round_trip_and_tables_decay(name: str) -> None:
    gpt = jitter(tiny_gpt(embedding=name))
    other = tiny_gpt(embedding=name, seed=9)
    other.load_state_dict(gpt.state_dict(), strict=True)
    assert torch.equal(gpt(tokens()), other(tokens()))
    decayed = {id(p) for group in base_groups(gpt) if group.decay for p in group.params}
    assert all((id(p) in decayed) == (p.dim() >= 2) for p in gpt.embedding.parameters())


@every_embedding
@pytest.mark.parametrize("positions", ["learned", "rope", "none"])
def test_trunk_and_token_table_start_the_same_under_every_embedding(name: str, positions: str) -> None:
    ours, tied = tiny_gpt(embedding=name, positions=positions).state_dict(), tiny_gpt().state_dict()
    shared = [key for key in tied if key in ours]
    assert len(shared) == len(tied) - (positions != "learned")
    assert all(torch.equal(ours[key], tied[key]) for key in shared)


@pytest.mark.parametrize("positions", ["learned", "rope", "none"])
def test_the_plain_model_agrees_under_every_kind_of_positions(positions: str) -> None:
    gpt = jitter(tiny_gpt(positions=positions)).double()
    assert torch.allclose(gpt(tokens()), plain_logits(gpt, tokens()), rtol=0, atol=1e-10)


class AlwaysLearned(nn.Module):
    """Embedding that learns positions even if the model has none."""

    def __init__(self, spec: object) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(64, 16), nn.Embedding(12, 16)

    def forward(self, idx: Tensor) -> Tensor:
        x: Tensor = self.wte(idx) + self.wpe.weight[: idx.shape[1]]
        return x

    def get_lm_head_weight(self) -> Tensor:
        return self.wte.weight

    def get_num_pos_params(self) -> int:
        return self.wpe.weight.numel()


def build(embedding: type[nn.Module], positions: str) -> GPT:
    parts = tiny_gpt(positions=positions)
    return GPT(
        parts.config,
        residual=lambda _: parts.residual,
        norm=lambda spec: nn.LayerNorm(spec.width),
        embedding=embedding,
        seed=0,
    )


def test_learned_positions_in_a_model_without_them_are_an_error() -> None:
    assert build(AlwaysLearned, "learned")(tokens()).shape == (3, 12, 64)
    with pytest.raises(ValueError, match=r"model\.positions must be learned with AlwaysLearned"):
        build(AlwaysLearned, "rope")


def test_a_module_without_the_contracts_methods_is_an_error() -> None:
    class NoHead(AlwaysLearned):
        get_lm_head_weight = None  # type: ignore[assignment]

    with pytest.raises(ValueError, match=r"embedding\._target_ makes a NoHead without get_lm_head_weight"):
        build(NoHead, "learned")
