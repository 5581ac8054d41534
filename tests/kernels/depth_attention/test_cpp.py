"""Depth attention by the C++ kernels in eager mode equals the reference, in each strategy that uses it.

Covers `running_sum.py` and `static_sum.py` too.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from src.kernels import depth_attention
from src.kernels.depth_attention import append_static, cpp, open_static, sum_static
from src.kernels.depth_attention.ops import SOURCE
from src.kernels.dispatch import REGISTRY
from src.models.gpt import GPT
from src.residual.attnres import AttentionResiduals
from src.residual.attnres_block import BlockAttentionResiduals
from src.residual.attnres_stream_block import StreamBlockAttention
from src.residual.base import ResidualStrategy
from src.residual.delta_attnres import DeltaAttentionResiduals
from src.residual.delta_attnres_block import BlockDeltaAttentionResiduals
from src.residual.delta_attnres_gated import GatedDeltaAttentionResiduals
from src.residual.denseformer import DenseFormer
from src.residual.tdar import TDAR
from tests.residual.plain import flow, jittered, stream_spec
from tests.support import jitter, tiny_gpt, tokens

D = 32
BLOCK_KEYS = {"query_std": 0.02, "eps": 1e-5}
STRATEGIES: dict[str, Callable[[int, int], ResidualStrategy[Any]]] = {
    "attnres": lambda n, d: AttentionResiduals(stream_spec(n, d), eps=1e-5),
    "delta_attnres": lambda n, d: DeltaAttentionResiduals(stream_spec(n, d), query_std=0.02, eps=1e-5),
    "delta_attnres_gated": lambda n, d: GatedDeltaAttentionResiduals(stream_spec(n, d), gate_init=0.5, eps=1e-5),
    "delta_attnres_block of 1": lambda n, d: BlockDeltaAttentionResiduals(stream_spec(n, d), n_block=n, **BLOCK_KEYS),
    "delta_attnres_block of 3": lambda n, d: BlockDeltaAttentionResiduals(stream_spec(n, d), n_block=2, **BLOCK_KEYS),
    "attnres_block of 2": lambda n, d: BlockAttentionResiduals(stream_spec(n, d), n_block=n, eps=1e-5),
    "attnres_block of 3": lambda n, d: BlockAttentionResiduals(stream_spec(n, d), n_block=4, eps=1e-5),
    "attnres_block of 10": lambda n, d: BlockAttentionResiduals(stream_spec(n, d), n_block=2, eps=1e-5),
    "attnres_block of all": lambda n, d: BlockAttentionResiduals(stream_spec(n, d), n_block=1, eps=1e-5),
    "attnres_block of 1": lambda n, d: BlockAttentionResiduals(stream_spec(n, d), n_block=2 * n, eps=1e-5),
    "attnres_stream_block": lambda n, d: StreamBlockAttention(stream_spec(n, d), group_layers=2, eps=1e-5),
    "tdar": lambda n, d: TDAR(stream_spec(n, d), query_std=0.02, newest_bias=1.0, eps=1e-5, lr_scale=1.0),
    "denseformer": lambda n, d: DenseFormer(stream_spec(n, d), dilation=1, period=1),
    "denseformer 2x1": lambda n, d: DenseFormer(stream_spec(n, d), dilation=2, period=1),
    "denseformer 1x2": lambda n, d: DenseFormer(stream_spec(n, d), dilation=1, period=2),
}
SHIPPED = ("attnres_block", "attnres_stream_block", "tdar", "denseformer")


@pytest.fixture(autouse=True)
def _kernels() -> None:
    reason = SOURCE.why_not(torch.device("cpu"), torch.float32, width=D)
    if reason is not None:
        pytest.skip(reason)


def by_reference(call: Callable[[], list[Tensor]]) -> list[Tensor]:
    with REGISTRY.without_residual_kernels():
        return call()


def assert_close(one: list[Tensor], other: list[Tensor], tolerance: float) -> None:
    for x, y in zip(one, other, strict=True):
        assert x.dtype == y.dtype
        assert torch.allclose(x, y, rtol=tolerance, atol=tolerance * x.abs().max().item())


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_values_and_gradients_equal_the_reference(name: str, dtype: torch.dtype, tolerance: float) -> None:
    n_layer = 10 if name == "attnres_block of 10" else 6  # more than a chunk of queries before the next source
    spec, strategy = stream_spec(n_layer, D), jittered(STRATEGIES[name](n_layer, D)).to(dtype)
    weights = [(random(D, D, seed=i) / D**0.5).to(dtype).requires_grad_() for i in range(spec.n_site)]

    def value_and_gradients() -> list[Tensor]:
        x0 = random(2, 19, D, seed=20).to(dtype).requires_grad_()
        out = flow(strategy, spec, x0, [lambda x, w=w: torch.tanh(x @ w) for w in weights])
        early = torch.autograd.grad(out.sum(), weights[-2:], retain_graph=True)  # must not change the next
        total = (out * random(*out.shape, seed=21).to(dtype)).sum()
        return [out, *early, *torch.autograd.grad(total, [x0, *weights, *strategy.parameters()])]

    assert_close(by_reference(value_and_gradients), value_and_gradients(), tolerance)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_gradients_pass_gradcheck(name: str) -> None:
    spec, strategy = stream_spec(2, 8), jittered(STRATEGIES[name](2, 8))

    def out(x0: Tensor, *parameters: Tensor) -> Tensor:
        named = dict(zip(dict(strategy.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(_Flow(strategy, spec), {f"of.{k}": p for k, p in named.items()}, (x0,))

    leaves = [p.detach().requires_grad_() for p in strategy.parameters()]
    assert torch.autograd.gradcheck(out, [random(1, 2, 8, seed=1).requires_grad_(), *leaves])


class _Flow(torch.nn.Module):
    def __init__(self, strategy: ResidualStrategy[Any], spec: Any) -> None:
        super().__init__()
        self.of, self.spec = strategy, spec

    def forward(self, x0: Tensor) -> Tensor:
        return flow(self.of, self.spec, x0, [torch.tanh, torch.sin] * self.spec.n_layer)


def model(name: str, recurrence: str = "none", **visits: Any) -> GPT:
    return jitter(tiny_gpt(name, recurrence=recurrence, visits=visits)).double()


def gradients(gpt: GPT, total: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(total, [*gpt.parameters()]))


@pytest.mark.parametrize("name", SHIPPED)
def test_forwards_and_backwards_share_no_state(name: str) -> None:
    gpt = model(name)

    def some() -> list[Tensor]:
        one, two, three = (gpt.loss(tokens(seed=i), tokens(seed=i + 9)) for i in range(3))
        with torch.no_grad():
            quiet = gpt.hidden(tokens(seed=5))
        together = gradients(gpt, one + 2 * two)  # one backward over two forwards
        return [quiet, *together, *gradients(gpt, three)]

    assert_close(by_reference(some), some(), 1e-10)


@pytest.mark.parametrize("name", SHIPPED)
def test_repeated_visits_equal_the_reference(name: str) -> None:
    gpt = model(name, "mini", start_fraction=None, start_step=0)

    def some() -> list[Tensor]:
        return gradients(gpt, gpt.loss(tokens(), tokens(seed=1)))

    assert_close(by_reference(some), some(), 1e-10)


@pytest.mark.parametrize("name", SHIPPED)
def test_bfloat16_outputs_join_a_float32_stream(name: str) -> None:
    gpt = jitter(tiny_gpt(name))

    def some() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            x = gpt.hidden(tokens())
        return [x, *gradients(gpt, x.square().sum())]

    for one, other in zip(by_reference(some), some(), strict=True):
        assert one.dtype == other.dtype == torch.float32
        assert (one - other).norm() <= 0.02 * one.norm()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_compiler_gets_the_reference(name: str) -> None:
    torch.compiler.reset()
    gpt, kinds = model(name), set[str]()

    def tell(graph: torch.fx.GraphModule, _inputs: object) -> Any:
        kinds.update(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    compiled = torch.compile(gpt.hidden, fullgraph=True, dynamic=False, backend=tell)
    assert_close([gpt.hidden(tokens())], [compiled(tokens())], 1e-10)
    assert not any("reslab" in kind for kind in kinds)


def test_a_gradient_of_one_backward_is_not_read_in_the_next() -> None:
    x0, v1 = (random(1, 2, D, seed=i).requires_grad_() for i in (1, 2))
    weight_JQ = random(2, 2, seed=3)
    state = append_static(open_static(x0, weight_JQ), v1)
    one, two = (sum_static(state, query, range(2)) for query in range(2))
    torch.autograd.grad(two.sum(), state.v_BTD, retain_graph=True, allow_unused=True)  # no source's backward runs
    (dx0,) = torch.autograd.grad(one.sum(), x0)
    assert torch.allclose(dx0, weight_JQ[0, 0].expand_as(dx0))


@pytest.mark.skipif(SOURCE.why_not(torch.device("cpu"), torch.float32, width=64) is not None, reason="no C++ compiler")
@pytest.mark.parametrize("name", ["attnres", "attnres_block", "attnres_stream_block", "tdar", "denseformer"])
def test_float32_is_computed_by_the_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(REGISTRY, "decisions", {})
    tiny_gpt(name, n_embd=64).hidden(tokens()).sum().backward()
    found = [decision for decision in REGISTRY.decisions.values() if "depth" in decision.operation]
    assert found
    assert all(decision.backend == "cpp" for decision in found), found


@pytest.mark.parametrize("direction", ["mixture_with_sum", "mixture_with_sum_backward"])
def test_a_running_sum_that_is_wrong_is_rejected_and_one_query_a_source_is_not(
    direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.empty(1, 1, D)
    monkeypatch.setattr(REGISTRY, "decisions", {})
    assert depth_attention.FEW_QUERIES.backend_for(x, width=D) == "cpp"
    right = getattr(cpp, direction)

    def scale(kernels: Any, *args: Any) -> Any:
        out = right(kernels, *args)
        (args[4][1] if direction == "mixture_with_sum" else args[3]).mul_(1.01)  # x, or the gradient of p
        return out

    monkeypatch.setattr(cpp, direction, scale)
    REGISTRY.forget()
    assert depth_attention.FEW_QUERIES.backend_for(x, width=D) == "reference"
    (decision,) = REGISTRY.decisions.values()
    assert "is off by" in decision.reason
    assert depth_attention.DEPTH_ATTENTION.backend_for(x, width=D) == "cpp"
