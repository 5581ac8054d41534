"""Attention over depth by the kernels for a GPU is the plain form: on a GPU, or through Triton's interpreter."""

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

from src.kernels.depth_attention import blocked as block_sources
from src.kernels.depth_attention import check as depth_check
from src.kernels.depth_attention import ops as depth_blocks
from src.kernels.depth_attention import reference as depth_attention
from src.kernels.depth_attention.ops import blocks_mixture, blocks_partials, blocks_pull, blocks_scores
from src.kernels.depth_attention.reference import Sources, append, attend, open_pulled
from src.models.gpt import GPT
from src.residual.attnres import AttentionResiduals
from tests.residual.plain import jittered, stream_spec
from tests.support import jitter, tiny_gpt, tokens

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPS = 1e-6
BLOCK, TOGETHER = 3, 2  # smaller than at work: the interpreter is slow
LAYERS = BLOCK + 1  # their sources fill two blocks and begin a third
TYPES = [(torch.float64, 1e-12), (torch.float32, 1e-5)]

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if DEVICE.type == "cpu" and tuple(map(int, version("triton").split(".")[:2])) < (3, 9):
    pytest.skip("this Triton's interpreter does not know today's numpy", allow_module_level=True)


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels serve, and what they leave unwritten is not a number."""
    monkeypatch.setattr(block_sources, "BLOCK", BLOCK)
    monkeypatch.setattr("src.kernels.depth_attention.triton_launch.TOGETHER", TOGETHER)
    torch.compiler.reset()
    torch.use_deterministic_algorithms(True)
    monkeypatch.setattr(depth_attention, "blocks_serve", lambda x: True)
    monkeypatch.setattr(depth_attention, "native_serves", lambda x: False)
    monkeypatch.setattr(depth_blocks, "native_for", lambda x: None)
    if DEVICE.type == "cpu":
        let_the_interpreter_round(monkeypatch)
    yield
    torch.use_deterministic_algorithms(False)


def let_the_interpreter_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """To bfloat16, as a GPU does; by itself it cuts off."""
    interpreter = importlib.import_module("triton.runtime.interpreter")
    convert = interpreter._convert_float

    def rounded(given: Any, source: Any, target: Any, mode: Any) -> Any:
        if (str(source), str(target)) != ("fp32", "bf16"):
            return convert(given, source, target, mode)
        return torch.tensor(given).bfloat16().view(torch.int16).numpy().view("uint16")

    monkeypatch.setattr(interpreter, "_convert_float", rounded)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)


def assert_close(ones: Sequence[Tensor], others: Sequence[Tensor], tolerance: float) -> None:
    for one, other in zip(ones, others, strict=True):
        assert one.dtype == other.dtype
        assert torch.allclose(one, other, rtol=tolerance, atol=tolerance * other.abs().max().item())


def plainly(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(depth_attention, "blocks_serve", lambda x: False)
        return call()


def gradients(gpt: GPT, hidden: Callable[[Tensor], Tensor], seed: int = 0, width: int = 2) -> list[Tensor]:
    idx = tokens(seed=seed)[:1, :width].to(DEVICE)
    x_BTD = hidden(idx)
    return [x_BTD.detach(), *torch.autograd.grad(gpt.head_loss(x_BTD, idx), [*gpt.parameters()])]


def model(name: str, dtype: torch.dtype, n_layer: int = LAYERS, recurrence: str = "none") -> GPT:
    return jitter(tiny_gpt(name, n_layer=n_layer, n_embd=12, recurrence=recurrence)).to(DEVICE, dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
@pytest.mark.parametrize(("rows", "width", "queries"), [(67, 12, 3), (5, 72, 71)])
def test_scores(rows: int, width: int, queries: int, dtype: torch.dtype, tolerance: float) -> None:
    v, key = random(1, rows, width, dtype=dtype), random(queries, width, seed=1, dtype=dtype)
    for source in (v, v.bfloat16()):
        exact = source.to(dtype)
        rrms = (exact.square().mean(-1) + EPS).rsqrt()
        found = blocks_scores(source, key, EPS)
        assert_close(found, [exact @ key.t() * rrms[..., None], rrms], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
@pytest.mark.parametrize("n_source", [1, 2, 2 * BLOCK + 1])
def test_mixtures_in_one_piece_and_in_two(n_source: int, dtype: torch.dtype, tolerance: float) -> None:
    n_query, D = 2, 20
    values = [random(2, 2, D, seed=j, dtype=dtype) for j in range(n_source)]
    values[1:] = [v.bfloat16() if j % 2 else v for j, v in enumerate(values[1:])]
    score = [random(2, 2, n_query + 1 + n_source - j, seed=30 + j, dtype=dtype) for j in range(n_source)]
    partials, lse = blocks_partials(values, score, -n_query, n_query)
    for k in range(n_query):
        logits = torch.stack([s[..., k - n_query] for s in score], -1)
        x = (logits.softmax(-1).unsqueeze(2) * torch.stack([v.to(dtype) for v in values], -1)).sum(-1)
        assert_close([partials[k], lse[k]], [x, logits.logsumexp(-1)], tolerance)
        assert_close(blocks_mixture(values, score, k - n_query, None, None), (partials[k], lse[k]), tolerance)
        cut = n_source // 2
        if cut:
            before = blocks_mixture(values[:cut], score[:cut], k - n_query, None, None)
            both = blocks_mixture(values[cut:], score[cut:], k - n_query, *before)
            assert_close(both, (partials[k], lse[k]), tolerance)


def test_scores_far_apart_stay_numbers() -> None:
    values = [random(1, 2, 16, seed=j, dtype=torch.float32) for j in range(3)]
    score = [torch.full((1, 2, 1), number, device=DEVICE) for number in (-1e30, 3e4, -3e4)]
    x, lse = blocks_mixture(values, score, -1, None, None)
    assert torch.equal(x, values[1])
    assert torch.equal(lse, torch.full_like(lse, 3e4))


@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
def test_the_gradient_of_many_keys(dtype: torch.dtype, tolerance: float) -> None:
    Q, D = 71, 20
    v, key = random(1, 9, D, dtype=dtype), random(Q, D, seed=1, dtype=dtype)
    far = [random(1, 9, D, seed=2, dtype=dtype), random(1, 9, Q, seed=3, dtype=dtype), v.new_zeros(1, 9)]
    score, rrms = blocks_scores(v, key, EPS)
    dv, dkey, *_ = blocks_pull(v, key, score, rrms, None, far, False, [], [], [], [], [])
    assert_close([dv, dkey], [far[0], far[1].flatten(0, 1).t() @ v.flatten(0, 1)], tolerance)


def mixed(key: Tensor, *values: Tensor) -> Tensor:
    """A number that the keys and the sources make, where some sources go elsewhere too."""
    state = open_pulled(values[0], key, EPS)
    total = values[0].sum() * 0
    for j, v in enumerate(values[1:]):
        state = append(state, v, j, EPS)
        total = total + attend(state, j).pow(3).sum()
        if j % 3 == 0:
            total = total + state.v_BTD[-1].square().sum()
    return total


@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
@pytest.mark.parametrize("n_source", [2, BLOCK + 1, 2 * BLOCK + 2])
def test_every_source_and_key_gets_its_gradient(
    n_source: int, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = [random(1, 2, 12, seed=j, dtype=dtype).requires_grad_() for j in range(n_source)]
    given = [random(n_source, 12, seed=99, dtype=dtype).requires_grad_(), *values]
    found = torch.autograd.grad(mixed(*given), given)
    plain = plainly(monkeypatch, lambda: torch.autograd.grad(mixed(*given), given))
    assert_close(found, plain, tolerance)


@pytest.mark.parametrize("halves", [(1, 2, 4, 5, 6), (1, 2, 3, 7)])
def test_sources_of_two_types(halves: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = [torch.bfloat16 if j in halves else torch.float32 for j in range(8)]
    values = [random(1, 2, 12, seed=j, dtype=kind).requires_grad_() for j, kind in enumerate(kinds)]
    given = [random(8, 12, seed=99, dtype=torch.float32).requires_grad_(), *values]
    found = torch.autograd.grad(mixed(*given), given)
    for one, other in zip(
        found, plainly(monkeypatch, lambda: torch.autograd.grad(mixed(*given), given)), strict=True
    ):
        assert one.dtype == other.dtype
        assert (one - other).float().norm() <= 0.01 * other.float().norm()


def test_the_gradients_are_the_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_sources, "BLOCK", 2)
    n_source = 5
    given = [random(n_source, 4).requires_grad_()]
    given += [random(1, 1, 4, seed=j + 1).requires_grad_() for j in range(n_source)]
    assert torch.autograd.gradcheck(mixed, given, fast_mode=True, atol=1e-7)


@pytest.mark.parametrize(("name", "dtype", "tolerance"), [("attnres", *TYPES[1]), ("delta_attnres", *TYPES[0])])
def test_a_model_is_the_plain_one(
    name: str, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpt = model(name, dtype)
    found = gradients(gpt, gpt.hidden)
    assert_close(found, plainly(monkeypatch, lambda: gradients(gpt, gpt.hidden)), 4 * tolerance)


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
        patch.setattr(f"src.residual.{name}.append", seen)
        found = half()
    assert [v.dtype for v in kept[-1].v_BTD] == [torch.float32] + [torch.bfloat16] * (len(kept[-1].v_BTD) - 1)
    for one, other in zip(found, plainly(monkeypatch, half), strict=True):
        assert one.dtype == other.dtype == torch.float32
        assert (one - other).norm() <= 0.02 * other.norm()


def test_a_compiler_tries_them_and_sees_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_sources, "BLOCK", 2)
    monkeypatch.setattr(
        depth_attention, "blocks_serve", lambda x: depth_check._serve(x.device, x.dtype, x.shape[-1])
    )
    depth_check.why_not.cache_clear()
    gpt = model("attnres", torch.float32, 2)
    graphs = []

    def tell(graph: torch.fx.GraphModule, _inputs: object) -> Any:
        graphs.append({str(node.target) for node in graph.graph.nodes if "reslab.blocks" in str(node.target)})
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=tell, bw_compiler=tell)
    found = gradients(gpt, torch.compile(gpt.hidden, fullgraph=True, dynamic=False, backend=backend))
    assert depth_check.why_not.cache_info().currsize == 1
    forward = {f"reslab.blocks_{name}.default" for name in ("scores", "partials", "mixture")}
    assert graphs == [forward, {"reslab.blocks_far.default", "reslab.blocks_pull.default"}]
    assert_close(found, plainly(monkeypatch, lambda: gradients(gpt, gpt.hidden)), 1e-5)


def test_forwards_and_backwards_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    gpt = model("delta_attnres", torch.float64, 2)

    def some() -> list[Tensor]:
        one, two = (
            gpt.head_loss(gpt.hidden(idx), idx) for idx in (tokens(seed=i)[:1, :2].to(DEVICE) for i in range(2))
        )
        params = [*gpt.parameters()]
        early = torch.autograd.grad(two, params[-2:], retain_graph=True)  # leaves no trace
        return [
            *early,
            *torch.autograd.grad(one + 2 * two, params, retain_graph=True),
            *torch.autograd.grad(one, params),
        ]

    assert_close(some(), plainly(monkeypatch, some), 1e-11)


def test_queries_that_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    gpt = model("attnres", torch.float64, 3, "mini")

    def steps() -> list[Tensor]:
        found = []
        for step in (0, 99):
            gpt.follow(step, 100)
            idx = tokens()[:1, :2].to(DEVICE)
            loss = gpt.head_loss(gpt.hidden(idx), idx)
            left = torch.autograd.grad(loss, [*gpt.parameters()], allow_unused=True)
            found += [gradient for gradient in left if gradient is not None]
        return found

    assert_close(steps(), plainly(monkeypatch, steps), 1e-11)


def test_pictures_of_the_mixing_are_the_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = stream_spec(5, 12)
    strategy: nn.Module = jittered(AttentionResiduals(spec, eps=EPS)).to(DEVICE)
    assert isinstance(strategy, AttentionResiduals)
    outputs = tuple(random(1, 2, 12, seed=j) for j in range(11))

    def picture() -> list[Tensor]:
        with torch.no_grad():
            return [strategy.mixing(spec.sites, outputs[0], outputs[1:])]

    assert_close(picture(), plainly(monkeypatch, picture), 1e-12)


def why_not(dtype: torch.dtype, width: int) -> str | None:
    depth_check.why_not.cache_clear()
    return depth_check.why_not(DEVICE, dtype, width)


def test_the_kernels_pass_their_trial_also_where_a_validation_comes_first() -> None:
    with torch.inference_mode():
        assert why_not(torch.float32, 8) is None


def test_a_failed_trial_takes_the_plain_form_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)

    def broken(*sizes: object) -> float:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(
        depth_attention, "blocks_serve", lambda x: depth_check.why_not(x.device, x.dtype, 16) is None
    )
    for trial, words in ((lambda *sizes: 0.5, "by 5.0e-01"), (broken, "no such instruction")):
        caplog.clear()
        depth_check.why_not.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(depth_check, "_error", trial)
            for _ in range(2):
                assert open_pulled(random(1, 2, 16, dtype=torch.float32), random(3, 16), EPS).blocks is None
        assert words in caplog.text
        assert len(caplog.records) == 1
    depth_check.why_not.cache_clear()


def test_without_triton_or_for_other_rows_the_plain_form_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not of torch.float64" in str(why_not(torch.float64, 16))
    assert "in 18" in str(why_not(torch.float32, 18))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "not installed" in str(why_not(torch.float32, 16))
    depth_check.why_not.cache_clear()
