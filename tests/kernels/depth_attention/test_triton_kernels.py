"""Depth attention by the Triton kernels equals the reference: on a GPU, or through Triton's interpreter.

Covers `triton_launch.py` too.
"""

import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd

from src.kernels import depth_attention
from src.kernels.depth_attention import DEPTH_ATTENTION, Sources, append, attend, blocked
from src.kernels.depth_attention.ops import (
    depth_mixture,
    depth_partials,
    depth_scores,
    depth_source_gradient,
)
from src.kernels.dispatch import REGISTRY
from src.models.gpt import GPT
from src.residual.attnres import AttentionResiduals
from tests.residual.plain import jittered, stream_spec
from tests.support import jitter, tiny_gpt, tokens

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPS = 1e-6
CHUNK, SOURCES_PER_PROGRAM = 3, 2  # smaller than in use, because the interpreter is slow
LAYERS = CHUNK + 1  # their sources fill two chunks and start a third
TYPES = [(torch.float64, 1e-12), (torch.float32, 1e-5)]

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if DEVICE.type == "cpu" and tuple(map(int, version("triton").split(".")[:2])) < (3, 9):
    pytest.skip("the interpreter of this Triton does not support the installed numpy", allow_module_level=True)


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Select the Triton kernels for every tensor; memory that they do not write is NaN."""
    monkeypatch.setattr(blocked, "CHUNK", CHUNK)
    monkeypatch.setattr("src.kernels.depth_attention.triton_launch.SOURCES_PER_PROGRAM", SOURCES_PER_PROGRAM)
    torch.compiler.reset()
    torch.use_deterministic_algorithms(True)
    monkeypatch.setattr(depth_attention, "MIN_QUERIES", 1)
    monkeypatch.setattr(REGISTRY, "decisions", {})
    monkeypatch.setitem(REGISTRY.backend_of_device, DEVICE.type, "triton")
    monkeypatch.setitem(DEPTH_ATTENTION.kernels, "triton", lambda *case, **sizes: None)
    if DEVICE.type == "cpu":
        round_to_nearest(monkeypatch)
    yield
    torch.use_deterministic_algorithms(False)


def round_to_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the interpreter round to bfloat16 as a GPU does; by itself it truncates."""
    interpreter = importlib.import_module("triton.runtime.interpreter")
    convert = interpreter._convert_float

    def rounded(x: Any, source: Any, target: Any, mode: Any) -> Any:
        if (str(source), str(target)) != ("fp32", "bf16"):
            return convert(x, source, target, mode)
        return torch.tensor(x).bfloat16().view(torch.int16).numpy().view("uint16")

    monkeypatch.setattr(interpreter, "_convert_float", rounded)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)


def assert_close(ones: Sequence[Tensor], others: Sequence[Tensor], tolerance: float) -> None:
    for one, other in zip(ones, others, strict=True):
        assert one.dtype == other.dtype
        assert torch.allclose(one, other, rtol=tolerance, atol=tolerance * other.abs().max().item())


def by_reference(call: Callable[[], Any]) -> Any:
    with REGISTRY.without_residual_kernels():
        return call()


def gradients(gpt: GPT, hidden: Callable[[Tensor], Tensor], seed: int = 0, width: int = 2) -> list[Tensor]:
    idx = tokens(seed=seed)[:1, :width].to(DEVICE)
    x_BTD = hidden(idx)
    return [x_BTD.detach(), *torch.autograd.grad(gpt.head_loss(x_BTD, idx), [*gpt.parameters()])]


def model(name: str, dtype: torch.dtype, n_layer: int = LAYERS, recurrence: str = "none") -> GPT:
    return jitter(tiny_gpt(name, n_layer=n_layer, n_embd=12, recurrence=recurrence)).to(DEVICE, dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
@pytest.mark.parametrize(("rows", "width", "queries"), [(67, 12, 3), (5, 72, 71)])
def test_scores_equal_their_definition(
    rows: int, width: int, queries: int, dtype: torch.dtype, tolerance: float
) -> None:
    v, key = random(1, rows, width, dtype=dtype), random(queries, width, seed=1, dtype=dtype)
    for source in (v, v.bfloat16()):
        exact = source.to(dtype)
        rrms = (exact.square().mean(-1) + EPS).rsqrt()
        found = depth_scores(source, key, EPS)
        assert_close(found, [exact @ key.t() * rrms[..., None], rrms], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
@pytest.mark.parametrize("n_source", [1, 2, 2 * CHUNK + 1])
def test_mixtures_of_sources_read_at_once_and_in_two_parts(n_source: int, dtype: torch.dtype, tolerance: float) -> None:
    n_query, D = 2, 20
    values = [random(2, 2, D, seed=j, dtype=dtype) for j in range(n_source)]
    values[1:] = [v.bfloat16() if j % 2 else v for j, v in enumerate(values[1:])]
    score = [random(2, 2, n_query + 1 + n_source - j, seed=30 + j, dtype=dtype) for j in range(n_source)]
    partials, lse = depth_partials(values, score, -n_query, n_query)
    for k in range(n_query):
        logits = torch.stack([s[..., k - n_query] for s in score], -1)
        x = (logits.softmax(-1).unsqueeze(2) * torch.stack([v.to(dtype) for v in values], -1)).sum(-1)
        assert_close([partials[k], lse[k]], [x, logits.logsumexp(-1)], tolerance)
        assert_close(depth_mixture(values, score, k - n_query, None, None), (partials[k], lse[k]), tolerance)
        cut = n_source // 2
        if cut:
            before = depth_mixture(values[:cut], score[:cut], k - n_query, None, None)
            both = depth_mixture(values[cut:], score[cut:], k - n_query, *before)
            assert_close(both, (partials[k], lse[k]), tolerance)


def test_scores_far_apart_stay_finite() -> None:
    values = [random(1, 2, 16, seed=j, dtype=torch.float32) for j in range(3)]
    score = [torch.full((1, 2, 1), number, device=DEVICE) for number in (-1e30, 3e4, -3e4)]
    x, lse = depth_mixture(values, score, -1, None, None)
    assert torch.equal(x, values[1])
    assert torch.equal(lse, torch.full_like(lse, 3e4))


@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
def test_the_gradient_of_many_keys_is_a_product(dtype: torch.dtype, tolerance: float) -> None:
    Q, D = 71, 20
    v, key = random(1, 9, D, dtype=dtype), random(Q, D, seed=1, dtype=dtype)
    far = [random(1, 9, D, seed=2, dtype=dtype), random(1, 9, Q, seed=3, dtype=dtype), v.new_zeros(1, 9)]
    score, rrms = depth_scores(v, key, EPS)
    dv, dkey, *_ = depth_source_gradient(v, key, None, score, rrms, None, far, False, [], [], [], [], [])
    assert_close([dv, dkey], [far[0], far[1].flatten(0, 1).t() @ v.flatten(0, 1)], tolerance)


def mixed(key: Tensor, *values: Tensor) -> Tensor:
    """Return a number that depends on the keys and sources, some of which have other uses too."""
    state = depth_attention.open(values[0], key, EPS)
    total = values[0].sum() * 0
    for j, v in enumerate(values[1:]):
        state = append(state, v, j)
        total = total + attend(state, j).pow(3).sum()
        if j % 3 == 0:
            total = total + state.v_BTD[-1].square().sum()
    return total


@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
@pytest.mark.parametrize("n_source", [2, CHUNK + 1, 2 * CHUNK + 2])
def test_gradients_of_sources_and_keys_equal_the_references(
    n_source: int, dtype: torch.dtype, tolerance: float
) -> None:
    values = [random(1, 2, 12, seed=j, dtype=dtype).requires_grad_() for j in range(n_source)]
    leaves = [random(n_source, 12, seed=99, dtype=dtype).requires_grad_(), *values]
    found = torch.autograd.grad(mixed(*leaves), leaves)
    assert_close(found, by_reference(lambda: torch.autograd.grad(mixed(*leaves), leaves)), tolerance)


@pytest.mark.parametrize("halves", [(1, 2, 4, 5, 6), (1, 2, 3, 7)])
def test_sources_may_have_two_dtypes(halves: tuple[int, ...]) -> None:
    kinds = [torch.bfloat16 if j in halves else torch.float32 for j in range(8)]
    values = [random(1, 2, 12, seed=j, dtype=kind).requires_grad_() for j, kind in enumerate(kinds)]
    leaves = [random(8, 12, seed=99, dtype=torch.float32).requires_grad_(), *values]
    found = torch.autograd.grad(mixed(*leaves), leaves)
    for one, other in zip(found, by_reference(lambda: torch.autograd.grad(mixed(*leaves), leaves)), strict=True):
        assert one.dtype == other.dtype
        assert (one - other).float().norm() <= 0.01 * other.float().norm()


def test_the_gradients_pass_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "CHUNK", 2)
    n_source = 5
    leaves = [random(n_source, 4).requires_grad_()]
    leaves += [random(1, 1, 4, seed=j + 1).requires_grad_() for j in range(n_source)]
    assert torch.autograd.gradcheck(mixed, leaves, fast_mode=True, atol=1e-7)


@pytest.mark.parametrize(("name", "dtype", "tolerance"), [("attnres", *TYPES[1]), ("delta_attnres", *TYPES[0])])
def test_a_model_equals_that_by_the_reference(name: str, dtype: torch.dtype, tolerance: float) -> None:
    gpt = model(name, dtype)
    found = gradients(gpt, gpt.hidden)
    assert_close(found, by_reference(lambda: gradients(gpt, gpt.hidden)), 4 * tolerance)


@pytest.mark.parametrize("name", ["attnres", "delta_attnres"])
def test_sources_stay_bfloat16(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpt = model(name, torch.float32, 3)
    kept: list[Sources] = []

    def seen(state: Sources, *others: Any) -> Sources:
        kept.append(append(state, *others))
        return kept[-1]

    def half() -> list[Tensor]:
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            return gradients(gpt, gpt.hidden)

    with monkeypatch.context() as patch:
        patch.setattr(depth_attention, "append", seen)
        found = half()
    assert [v.dtype for v in kept[-1].v_BTD] == [torch.float32] + [torch.bfloat16] * (len(kept[-1].v_BTD) - 1)
    for one, other in zip(found, by_reference(half), strict=True):
        assert one.dtype == other.dtype == torch.float32
        assert (one - other).norm() <= 0.02 * other.norm()


def test_a_compiler_verifies_them_and_sees_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "CHUNK", 2)
    calls: list[Any] = []
    monkeypatch.setitem(DEPTH_ATTENTION.kernels, "triton", verified(calls))
    gpt = model("attnres", torch.float32, 2)
    graphs = []

    def tell(graph: torch.fx.GraphModule, _inputs: object) -> Any:
        graphs.append({str(node.target) for node in graph.graph.nodes if "reslab.depth" in str(node.target)})
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=tell, bw_compiler=tell)
    found = gradients(gpt, torch.compile(gpt.hidden, fullgraph=True, dynamic=False, backend=backend))
    assert len(calls) == 1
    forward = {f"reslab.depth_{name}.default" for name in ("scores", "partials", "mixture")}
    assert graphs == [forward, {"reslab.depth_chunk_gradients.default", "reslab.depth_source_gradient.default"}]
    assert_close(found, by_reference(lambda: gradients(gpt, gpt.hidden)), 1e-5)


def test_forwards_and_backwards_share_no_state() -> None:
    gpt = model("delta_attnres", torch.float64, 2)

    def some() -> list[Tensor]:
        one, two = (
            gpt.head_loss(gpt.hidden(idx), idx) for idx in (tokens(seed=i)[:1, :2].to(DEVICE) for i in range(2))
        )
        params = [*gpt.parameters()]
        early = torch.autograd.grad(two, params[-2:], retain_graph=True)  # must not change the next
        return [
            *early,
            *torch.autograd.grad(one + 2 * two, params, retain_graph=True),
            *torch.autograd.grad(one, params),
        ]

    assert_close(some(), by_reference(some), 1e-11)


def test_skipped_queries_equal_the_reference() -> None:
    gpt = model("attnres", torch.float64, 3, "mini")

    def steps() -> list[Tensor]:
        found = []
        for step in (0, 99):
            gpt.follow(step, 100)
            idx = tokens()[:1, :2].to(DEVICE)
            loss = gpt.head_loss(gpt.hidden(idx), idx)
            grads = torch.autograd.grad(loss, [*gpt.parameters()], allow_unused=True)
            found += [grad for grad in grads if grad is not None]
        return found

    assert_close(steps(), by_reference(steps), 1e-11)


def test_pictures_of_the_mixing_equal_the_references() -> None:
    spec = stream_spec(5, 12)
    strategy: nn.Module = jittered(AttentionResiduals(spec, eps=EPS)).to(DEVICE)
    assert isinstance(strategy, AttentionResiduals)
    outputs = tuple(random(1, 2, 12, seed=j) for j in range(11))

    def picture() -> list[Tensor]:
        with torch.no_grad():
            return [strategy.mixing(spec.sites, outputs[0], outputs[1:])]

    assert_close(picture(), by_reference(picture), 1e-12)


def verified(calls: list[Any]) -> Callable[..., str | None]:
    """Return the function that verifies the kernels, which records its calls."""

    def why_not(device: torch.device, dtype: torch.dtype, *, width: int) -> str | None:
        calls.append((device, dtype, width))
        return depth_attention._why_not_triton(device, dtype, width=width)

    return why_not


def test_the_kernels_are_verified_also_inside_inference_mode() -> None:
    with torch.inference_mode():
        assert depth_attention._why_not_triton(DEVICE, torch.float32, width=8) is None


def test_kernels_that_fail_verification_are_rejected_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setitem(DEPTH_ATTENTION.kernels, "triton", verified([]))
    monkeypatch.setitem(depth_attention.TOLERANCE, "triton", -1.0)
    for _ in range(2):
        assert depth_attention.open(random(1, 2, 16, dtype=torch.float32), random(8, 16), EPS).backend == "reference"
    assert "depth attention falls back to PyTorch" in caplog.text
    assert "output 0 of case 0 is off by" in caplog.text
    assert len(caplog.records) == 1


def test_other_rows_than_float32_in_whole_vectors_get_the_reference() -> None:
    assert "not of torch.float64" in str(depth_attention._why_not_triton(DEVICE, torch.float64, width=16))
    assert "in 18" in str(depth_attention._why_not_triton(DEVICE, torch.float32, width=18))
