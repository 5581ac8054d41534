"""Compiled depth attention by the C++ kernels equals the reference, whichever forwards and backwards there are.

Covers `eager.py` and `reference.py` too.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from src.kernels import depth_attention
from src.kernels.depth_attention import append, attend
from src.kernels.depth_attention.ops import SOURCE
from src.kernels.dispatch import REGISTRY
from src.models.gpt import GPT
from tests.support import jitter, tiny_gpt, tokens

D = 32
STRATEGIES = ("attnres", "delta_attnres")
Hidden = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def _kernels() -> None:
    torch.compiler.reset()
    reason = SOURCE.why_not(torch.device("cpu"), torch.float32, width=D)
    if reason is not None:
        pytest.skip(reason)


def gradients(module: nn.Module, total: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(total, [*module.parameters()]))


def assert_close(one: list[Tensor], other: list[Tensor], tolerance: float) -> None:
    for x, y in zip(one, other, strict=True):
        assert torch.allclose(x, y, rtol=tolerance, atol=tolerance * x.abs().max().item())


def model(name: str, recurrence: str = "none", n_layer: int = 4) -> GPT:
    return jitter(tiny_gpt(name, n_layer=n_layer, recurrence=recurrence)).double()


def in_one_graph(gpt: GPT) -> tuple[Hidden, list[set[str]]]:
    """Return the compiled trunk, and the project's operators in each of the compiler's graphs, the forward first."""
    operators: list[set[str]] = []

    def tell(graph: torch.fx.GraphModule, _inputs: object) -> Any:
        targets = {str(node.target) for node in graph.graph.nodes}
        operators.append({name for name in targets if name.startswith("reslab.")})
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=tell, bw_compiler=tell)
    return torch.compile(gpt.hidden, fullgraph=True, dynamic=False, backend=backend), operators


def by_reference(gpt: GPT, call: Callable[[Hidden], Any]) -> Any:
    with REGISTRY.without_residual_kernels():
        return call(gpt.hidden)


@pytest.mark.slow
@inductor.patch(cpp_cache_precompile_headers=False)  # which pays with more kernels than one
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # of torch's own, in inductor
def test_inductor_compiles_the_operators_once_and_they_equal_the_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 19, D), (8, D), (D, D), (D, D)]
    leaves = [torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes]

    def mixed(x0: Tensor, key: Tensor, *weights: Tensor) -> Tensor:  # with nearly nothing for a C++ compiler
        state = depth_attention.open(x0, key, 1e-6)
        for i, weight in enumerate(weights):
            state = append(state, attend(state, i - 1) @ weight, i)
        return attend(state, 2)

    def value_and_gradients(mix: Callable[..., Tensor]) -> list[Tensor]:
        x = mix(*leaves)
        return [x, *torch.autograd.grad(x.square().sum(), leaves)]

    results = []
    for _ in range(2):
        torch.compiler.reset()
        counters.clear()
        results.append(value_and_gradients(torch.compile(mixed, fullgraph=True, dynamic=False)))
    assert counters["inductor"]["fxgraph_cache_hit"] == 2  # one each way
    with REGISTRY.without_residual_kernels():
        reference = value_and_gradients(mixed)
    for result in results:
        assert_close(reference, result, 2e-5)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_compiler_sees_operators_and_gradients_equal_the_reference(name: str) -> None:
    gpt = model(name, n_layer=6)  # 13 sources: a chunk, and some
    compiled, operators = in_one_graph(gpt)
    results = [gradients(gpt, gpt.head_loss(hidden(tokens()), tokens(seed=1))) for hidden in (compiled, gpt.hidden)]
    reference = by_reference(gpt, lambda hidden: gradients(gpt, gpt.head_loss(hidden(tokens()), tokens(seed=1))))
    assert operators == [
        {f"reslab.depth_{name}.default" for name in ("scores", "partials", "mixture")},
        {f"reslab.depth_{name}.default" for name in ("chunk_gradients", "source_gradient")},
    ]
    for result in results:
        assert_close(reference, result, 1e-10)


@pytest.mark.parametrize("backend", ["aot_eager", "eager"])
def test_forwards_and_backwards_share_no_state(backend: str) -> None:
    gpt = model("attnres")
    compiled = torch.compile(gpt.hidden, fullgraph=True, backend=backend)

    def some(hidden: Hidden) -> list[Tensor]:
        one, two, three = (gpt.head_loss(hidden(tokens(seed=i)), tokens(seed=i + 9)) for i in range(3))
        with torch.no_grad():
            hidden(tokens(seed=5))
        together = gradients(gpt, one + 2 * two)  # one backward over two forwards
        return [*together, *gradients(gpt, three)]

    assert_close(by_reference(gpt, some), some(compiled), 1e-10)


def test_evaluation_of_other_shapes_between_compiled_steps_changes_nothing() -> None:
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

    assert_close(by_reference(gpt, steps), steps(compiled), 1e-10)


def test_visits_that_start_later_equal_the_reference() -> None:
    gpt = model("attnres", "mini")
    compiled = torch.compile(gpt.hidden, fullgraph=True, dynamic=False, backend="aot_eager")

    def steps(hidden: Hidden) -> list[Tensor]:
        found = []
        for step in (0, 99):
            gpt.follow(step, 100)
            loss = gpt.head_loss(hidden(tokens()), tokens(seed=1))
            found += [g for g in torch.autograd.grad(loss, [*gpt.parameters()], allow_unused=True) if g is not None]
        return found

    assert_close(by_reference(gpt, steps), steps(compiled), 1e-10)
