"""Contract of a residual strategy, tested for every shipped option and for compositions.

Covers `src/residual/families/single_stream.py` too.
"""

import inspect
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from src.models.gpt import GPT
from src.models.optim.groups import base_groups
from tests.support import COMPOSITIONS, ROOT, class_of, jitter, module_of, option, options, tiny_gpt, tokens

NAMES = options("residual")
CLAIMS = [n for n in NAMES if class_of(option("residual", n)).init_equivalent == "vanilla"]
#: Float32 biases of the doubly stochastic read sum to 1 within 1e-7; every other claim is exact in float64.
ROUNDING = {"mhc": 1e-6, "mhc_manifold": 1e-6}


def built(name: str, state: str, dtype: torch.dtype = torch.float32, n_layer: int = 3) -> GPT:
    gpt = tiny_gpt(name, n_layer=n_layer).to(dtype)
    gpt.residual.on_step(50, 100)
    return jitter(gpt) if state == "jittered" else gpt


#: One strategy for each kind of state and operation; tracing a backward takes seconds, with mhc twelve.
TRACED = ("attnres", "denseformer", "hyperconn_static", "muddformer", "resformer", "prores", "lns+resformer")

everywhere = pytest.mark.parametrize("state", ["at init", "jittered"])
every_strategy = pytest.mark.parametrize("name", NAMES + COMPOSITIONS)
every_option = pytest.mark.parametrize("name", NAMES)


@every_strategy
def test_logits_have_their_shape_and_are_finite(name: str) -> None:
    logits = built(name, "jittered")(tokens())
    assert logits.shape == (3, 12, 64)
    assert logits.isfinite().all()


@every_strategy
@everywhere
def test_a_future_token_changes_no_earlier_logit(name: str, state: str) -> None:
    gpt = built(name, state, torch.float64)
    idx = tokens()
    for t in (1, 6, 11):
        changed = idx.clone()
        changed[:, t:] = (changed[:, t:] + 17) % 64
        before, after = gpt(idx), gpt(changed)
        assert torch.allclose(before[:, :t], after[:, :t], rtol=0, atol=1e-12)
        assert not torch.allclose(before[:, t], after[:, t], rtol=0, atol=1e-12)


@every_strategy
@everywhere
def test_sequences_of_a_batch_do_not_see_each_other(name: str, state: str) -> None:
    gpt = built(name, state, torch.float64)
    idx = tokens()
    changed = torch.cat((idx[:1], tokens(2, seed=5)))
    assert torch.allclose(gpt(idx)[0], gpt(changed)[0], rtol=0, atol=1e-12)


@every_strategy
def test_every_parameter_gets_a_finite_gradient_in_the_first_step(name: str) -> None:
    gpt = tiny_gpt(name)
    gpt.residual.on_step(0, 100)
    gpt.loss(tokens(), tokens(seed=1)).backward()
    for key, param in gpt.named_parameters():
        assert param.grad is not None, key
        assert param.grad.isfinite().all(), key


@every_strategy
def test_every_row_of_a_packed_parameter_is_used(name: str) -> None:
    gpt = built(name, "jittered", torch.float64)
    gpt.loss(tokens(), tokens(seed=1)).backward()
    for key, param in gpt.residual.named_parameters():
        assert param.grad is not None, key
        rows = param.grad.flatten(1) if param.dim() > 1 else param.grad[:, None]
        assert (rows.abs().amax(1) > 0).all(), key


@pytest.mark.parametrize("name", [*NAMES, "lns+resformer", "prores+hyperconn"])  # a composition calls its parts
def test_captured_in_one_graph_it_equals_eager_in_value_and_gradient(name: str) -> None:
    torch.compiler.reset()
    backend = "aot_eager" if name in TRACED else "eager"  # the former also traces the backward
    gpt = built(name, "jittered", torch.float64, n_layer=2)  # runs every line of a strategy that more layers run
    compiled = torch.compile(gpt.hidden, fullgraph=True, backend=backend)
    results: list[list[Tensor]] = []
    for hidden in (gpt.hidden, compiled):
        gpt.zero_grad()
        loss = gpt.head_loss(hidden(tokens()), tokens(seed=1))
        loss.backward()
        results.append([loss, *(p.grad for p in gpt.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1])
    for eager, graph in zip(*results, strict=True):
        assert torch.allclose(eager, graph, rtol=1e-9, atol=1e-12)


@every_strategy
def test_the_stream_stays_float32_under_bf16(name: str) -> None:
    gpt = built(name, "jittered")
    seen: list[tuple[torch.dtype, ...]] = []
    held: list[torch.dtype] = []
    write = gpt.residual.write

    def watched(*args: Any) -> Any:
        state = write(*args)
        tensors = [x for x in tree_leaves(state) if isinstance(x, Tensor)]
        streams = [x for x in tensors if x.shape[:2] == (3, 12)]  # not attention's keys and values
        held.extend(x.dtype for x in streams if x.is_floating_point())
        return state

    gpt.residual.write = watched
    for block in gpt.h:
        for sublayer in (block.attn.c_attn, block.mlp.c_fc):
            sublayer.register_forward_hook(lambda _m, args, out: seen.append((args[0].dtype, out.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        x_BTD = gpt.hidden(tokens())
    assert x_BTD.dtype == torch.float32
    assert seen
    assert all(out == torch.bfloat16 for _, out in seen)
    assert set(held) == {torch.float32}
    exact = gpt.hidden(tokens())
    assert (x_BTD - exact).norm() < 0.1 * exact.norm()


@every_strategy
def test_weights_survive_a_round_trip(name: str) -> None:
    gpt = built(name, "jittered")
    other = tiny_gpt(name, seed=9)
    other.load_state_dict(gpt.state_dict(), strict=True)
    other.residual.on_step(50, 100)
    assert torch.equal(gpt(tokens()), other(tokens()))


@every_option
def test_the_yaml_holds_exactly_the_constructors_keys(name: str) -> None:
    config = option("residual", name)
    parameters = inspect.signature(class_of(config)).parameters.values()
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert {str(key) for key in config if not str(key).startswith("_")} == {p.name for p in keywords}
    assert all(p.default is p.empty for p in keywords)
    text = (ROOT / f"conf/residual/{name}.yaml").read_text()
    assert text.startswith(f"# {name}: ")
    assert (ROOT / f"tests/residual/test_{name}.py").is_file()


@every_option
def test_the_docstring_gives_equations_source_and_init(name: str) -> None:
    text = module_of(option("residual", name)).__doc__
    assert "Source:" in text
    assert re.search(r"^At init", text, re.MULTILINE)


@every_strategy
def test_every_parameter_is_in_exactly_one_group(name: str) -> None:
    gpt = tiny_gpt(name)
    grouped = [id(p) for group in base_groups(gpt) for p in group.params]
    assert sorted(grouped) == sorted(id(p) for p in gpt.parameters())


@every_strategy
def test_the_trunk_starts_the_same_under_every_strategy(name: str) -> None:
    rewrites = type(tiny_gpt(name).residual).init_sublayer_ is not type(tiny_gpt().residual).init_sublayer_
    others = ("residual.", *(f"h.{i}.{kind}." for i in range(3) for kind in ("attn", "mlp") if rewrites))
    ours, plain = tiny_gpt(name).state_dict(), tiny_gpt().state_dict()
    shared = [key for key in ours if key in plain and not key.startswith(others)]
    assert shared
    assert all(torch.equal(ours[key], plain[key]) for key in shared)


def difference_from_vanilla_at_init(name: str) -> float:
    # Four layers: the smallest depth at which every strategy with blocks of layers has one.
    ours, plain = tiny_gpt(name, n_layer=4).double(), tiny_gpt(n_layer=4).double()
    ours.residual.on_step(0, 100)
    with torch.no_grad():
        for gpt in (ours, plain):
            nn.init.normal_(gpt.embedding.wte.weight, generator=torch.Generator().manual_seed(3))
    return float((ours(tokens()) - plain(tokens())).detach().abs().max())


@pytest.mark.parametrize("name", CLAIMS)
def test_a_strategy_that_declares_vanilla_equals_it_at_init(name: str) -> None:
    assert difference_from_vanilla_at_init(name) < ROUNDING.get(name, 1e-12)


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(CLAIMS)))
def test_a_strategy_that_does_not_declare_vanilla_differs_from_it_at_init(name: str) -> None:
    assert difference_from_vanilla_at_init(name) > 1e-6


def test_vanilla_does_not_equal_a_jittered_strategy() -> None:
    assert not torch.allclose(jitter(tiny_gpt("x0_blend"))(tokens()), jitter(tiny_gpt())(tokens()))
