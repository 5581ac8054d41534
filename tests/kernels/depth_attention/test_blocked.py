"""Compiled, sources read by blocks are the plain form's on a CPU, whichever forwards and backwards there are."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from src.kernels import cpp_build as native
from src.kernels.depth_attention import reference as depth_attention
from src.kernels.depth_attention.reference import append, attend, open_pulled
from src.models.gpt import GPT
from tests.support import jitter, tiny_gpt, tokens

D = 32
STRATEGIES = ("attnres", "delta_attnres")
Hidden = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def _kernels() -> None:
    torch.compiler.reset()
    if native.built_for(torch.float32, D, "kernels/depth_attention/depth") is None:
        pytest.skip("no C++ compiler")


def gradients(module: nn.Module, total: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(total, [*module.parameters()]))


def assert_close(one: list[Tensor], other: list[Tensor], tolerance: float) -> None:
    for x, y in zip(one, other, strict=True):
        assert torch.allclose(x, y, rtol=tolerance, atol=tolerance * x.abs().max().item())


def model(name: str, recurrence: str = "none", n_layer: int = 3) -> GPT:
    return jitter(tiny_gpt(name, n_layer=n_layer, recurrence=recurrence)).double()


def in_one_graph(gpt: GPT) -> tuple[Hidden, list[set[str]]]:
    """Its compiled trunk, and the operators of our own in each graph of the compiler's, the forwards' first."""
    operators: list[set[str]] = []

    def tell(graph: torch.fx.GraphModule, _inputs: object) -> Any:
        targets = {str(node.target) for node in graph.graph.nodes}
        operators.append({name for name in targets if name.startswith("reslab.")})
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=tell, bw_compiler=tell)
    return torch.compile(gpt.hidden, fullgraph=True, dynamic=False, backend=backend), operators


def plainly(monkeypatch: pytest.MonkeyPatch, gpt: GPT, call: Callable[[Hidden], Any]) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(depth_attention, "blocks_serve", lambda x: False)
        return call(gpt.hidden)


@pytest.mark.slow
@inductor.patch(cpp_cache_precompile_headers=False)  # which pays with more kernels than one
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # of torch's own, in inductor
def test_inductor_makes_of_them_the_plain_form_and_finds_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 19, D), (3, D), (D, D), (D, D)]
    given = [torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes]

    def mixed(x0: Tensor, key: Tensor, *weights: Tensor) -> Tensor:  # with nearly nothing for a C++ compiler
        state = open_pulled(x0, key, 1e-6)
        for i, weight in enumerate(weights):
            state = append(state, attend(state, i - 1) @ weight, i, 1e-6)
        return attend(state, 2)

    def value_and_gradients(mix: Callable[..., Tensor]) -> list[Tensor]:
        x = mix(*given)
        return [x, *torch.autograd.grad(x.square().sum(), given)]

    results = []
    for _ in range(2):
        torch.compiler.reset()
        counters.clear()
        results.append(value_and_gradients(torch.compile(mixed, fullgraph=True, dynamic=False)))
    assert counters["inductor"]["fxgraph_cache_hit"] == 2  # one each way
    monkeypatch.setattr(depth_attention, "blocks_serve", lambda x: False)
    for result in results:
        assert_close(value_and_gradients(mixed), result, 2e-5)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_compiler_sees_operators_and_every_source_pulls(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpt = model(name, n_layer=6)  # 13 sources: a block, and some
    compiled, operators = in_one_graph(gpt)
    results = [
        gradients(gpt, gpt.head_loss(hidden(tokens()), tokens(seed=1))) for hidden in (compiled, gpt.hidden)
    ]
    plain = plainly(
        monkeypatch, gpt, lambda hidden: gradients(gpt, gpt.head_loss(hidden(tokens()), tokens(seed=1)))
    )
    assert operators == [
        {f"reslab.blocks_{name}.default" for name in ("scores", "partials", "mixture")},
        {f"reslab.blocks_{name}.default" for name in ("far", "pull")},
    ]
    for result in results:
        assert_close(plain, result, 1e-10)


@pytest.mark.parametrize("backend", ["aot_eager", "eager"])
def test_several_forwards_and_backwards_do_not_meet(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpt = model("attnres")
    compiled = torch.compile(gpt.hidden, fullgraph=True, backend=backend)

    def some(hidden: Hidden) -> list[Tensor]:
        one, two, three = (gpt.head_loss(hidden(tokens(seed=i)), tokens(seed=i + 9)) for i in range(3))
        with torch.no_grad():
            hidden(tokens(seed=5))
        together = gradients(gpt, one + 2 * two)  # one backward over two forwards
        return [*together, *gradients(gpt, three)]

    assert_close(plainly(monkeypatch, gpt, some), some(compiled), 1e-10)


def test_evaluation_of_other_shapes_lies_between_compiled_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    gpt = model("attnres")
    compiled = torch.compile(gpt.hidden, fullgraph=True, dynamic=False, backend="aot_eager")

    def steps(hidden: Hidden) -> list[Tensor]:
        found = []
        for shape in ((3, 12), (1, 5), (3, 12)):
            x_BTD = hidden(tokens()[: shape[0], : shape[1]])
            with torch.no_grad():
                found.append(gpt.hidden(tokens()[:2, :7]))  # eager, as evaluation is
            found += [x_BTD, *torch.autograd.grad(x_BTD.square().sum(), [*gpt.residual.parameters()])]
        return found

    assert_close(plainly(monkeypatch, gpt, steps), steps(compiled), 1e-10)


def test_repeated_visits_that_begin_later_pull_too(monkeypatch: pytest.MonkeyPatch) -> None:
    gpt = model("attnres", "mini")
    compiled = torch.compile(gpt.hidden, fullgraph=True, dynamic=False, backend="aot_eager")

    def steps(hidden: Hidden) -> list[Tensor]:
        found = []
        for step in (0, 99):
            gpt.follow(step, 100)
            loss = gpt.head_loss(hidden(tokens()), tokens(seed=1))
            found += [
                g for g in torch.autograd.grad(loss, [*gpt.parameters()], allow_unused=True) if g is not None
            ]
        return found

    assert_close(plainly(monkeypatch, gpt, steps), steps(compiled), 1e-10)
