"""The Triton kernels, in the interpreter on a CPU, equal the reference; their backward recomputes the streams.

Covers `dhc_triton.py`, `mhc_triton.py` and `triton_common.py` too.
"""

import copy
import gc
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from src.kernels.dispatch import REGISTRY
from src.kernels.hyper_streams import dhc, mhc, recompute, triton_launch, verification
from src.residual.base import ResidualStrategy
from src.residual.hyperconn import HyperConnections
from src.residual.mhc import ManifoldHyperConnections
from tests.residual.plain import jittered, stream_spec
from tests.residual.test_memory import STATE, Storages

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float64: 1e-11, torch.float32: 3e-5}

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if DEVICE == "cpu" and tuple(map(int, version("triton").split(".")[:2])) < (3, 9):
    pytest.skip("this Triton's interpreter does not support this numpy", allow_module_level=True)


SITES = 6


@pytest.fixture(autouse=True)
def _triton_on_this_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Select Triton without verification, which has tests of its own; fill uninitialized memory with NaN."""
    torch.compiler.reset()
    monkeypatch.setattr(REGISTRY, "decisions", {})
    monkeypatch.setitem(REGISTRY.backend_of_device, DEVICE, "triton")
    monkeypatch.setattr(verification, "VERIFIED_TOKENS", 1)
    for module in (dhc, mhc):
        monkeypatch.setattr(module, "verify_read", lambda *_: None)
        monkeypatch.setattr(module, "FORWARD", (64, 2))  # few programs, which take turns
        monkeypatch.setattr(module, "BACKWARD", (32, 2))
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.compiler.reset()


def build(name: str, n: int, width: int, dtype: torch.dtype, stream_dtype: str = "float32") -> ResidualStrategy[Any]:
    spec, keys = (
        stream_spec(SITES // 2, width),
        {"n_stream": n, "scale_init": 0.3, "stream_dtype": stream_dtype},
    )
    strategy: ResidualStrategy[Any] = (
        HyperConnections(spec, output_init_scale=1.0, **keys)
        if name == "hyperconn"
        else ManifoldHyperConnections(spec, n_iteration=3, own_share=0.7, res_logit=3.0, eps=1e-6, **keys)
    )
    return cast(ResidualStrategy[Any], jittered(strategy).to(DEVICE, dtype))


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE)


def use_reference(patch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    patch.setattr(REGISTRY, "residual_kernels", False)


def flow(strategy: ResidualStrategy[Any], x0: Tensor, y_type: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Return the end and the sublayers' inputs."""
    state, inputs = strategy.begin(x0), []
    for site in stream_spec(SITES // 2).sites:
        u, state = strategy.read(state, site)
        inputs.append(u.to(y_type).to(x0.dtype))  # as the kernels round it
        state = strategy.write(state, site, torch.tanh(inputs[-1] * (1 + site.index)).to(y_type))
    return strategy.end(state), inputs


def outcome(
    strategy: ResidualStrategy[Any], x0: Tensor, y_type: torch.dtype, run: Callable[..., Any] = flow
) -> list[Tensor]:
    """Return these and the gradients of the embedding and all parameters."""
    x0 = x0.to(next(strategy.parameters()).dtype).requires_grad_()
    end, inputs = run(strategy, x0, y_type)
    parts = [(x * random(*x.shape, seed=k)).sum() for k, x in enumerate((end, *inputs))]
    grads = torch.autograd.grad(torch.stack(parts).sum(), [x0, *strategy.parameters()])
    return [end.detach(), *(u.detach() for u in inputs), *grads]


def max_sites(name: str) -> dict[torch.dtype, int]:
    """Maximum number of sites of a segment."""
    return mhc.SEGMENT if name == "mhc" else recompute.SEGMENT


def assert_close(ones: list[Tensor], others: list[Tensor], bound: float) -> None:
    for one, other in zip(ones, others, strict=True):
        assert torch.allclose(one, other, rtol=bound, atol=bound * one.abs().max().item())


@pytest.mark.parametrize(
    ("name", "n", "width", "dtype", "y_type"),
    [
        ("hyperconn", 4, 48, torch.float64, torch.float64),
        ("hyperconn", 3, 16, torch.float32, torch.float32),
        ("hyperconn", 2, 32, torch.float32, torch.bfloat16),
        ("mhc", 2, 80, torch.float64, torch.float64),
        ("mhc", 4, 16, torch.float32, torch.float32),
        ("mhc", 2, 32, torch.float32, torch.bfloat16),
    ],
)
def test_a_read_recomputes_over_several_segments(
    name: str, n: int, width: int, dtype: torch.dtype, y_type: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(max_sites(name), dtype, 2)
    strategy, x0 = build(name, n, width, dtype), random(1, 3 if n < 4 else 2, width)
    ours = outcome(strategy, x0, y_type)
    use_reference(monkeypatch)
    theirs = outcome(strategy, x0, y_type)
    assert_close(ours, theirs, TOLERANCE[dtype] if y_type == dtype else 0.02)


def flow_apart(strategy: ResidualStrategy[Any], x0: Tensor, y_type: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Return these for streams that start apart."""
    h_BTND = torch.stack([x0 * (s + 0.6) for s in range(strategy.n_stream)], dim=2)
    strategy = copy.copy(strategy)
    strategy.begin = lambda _x0: strategy.begin_streams(h_BTND)  # type: ignore[method-assign]
    return flow(strategy, x0, y_type)


@pytest.mark.parametrize("name", ["hyperconn", "mhc"])
def test_streams_that_start_apart(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(max_sites(name), torch.float64, 2)
    strategy, x0 = build(name, 2, 16, torch.float64), random(1, 2, 16)
    ours = outcome(strategy, x0, torch.float64, flow_apart)
    use_reference(monkeypatch)
    assert_close(ours, outcome(strategy, x0, torch.float64, flow_apart), 1e-11)


@pytest.mark.parametrize(
    ("name", "y_type"),
    [("hyperconn", torch.bfloat16), ("hyperconn", torch.float32), ("mhc", torch.bfloat16)],
)
def test_streams_stored_in_bfloat16(name: str, y_type: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(max_sites(name), torch.bfloat16, 2)
    strategy, x0 = build(name, 2, 16, torch.float32, "bfloat16"), random(1, 2, 16)
    assert strategy.read(strategy.begin(x0.float()), stream_spec().sites[0])[0].dtype == torch.float32
    ours = outcome(strategy, x0, y_type)
    use_reference(monkeypatch)
    theirs = outcome(strategy, x0, y_type)
    assert_close(ours, theirs, 0.03)


@pytest.mark.parametrize(("name", "dtype"), [("dhc", torch.float64), ("dhc", torch.bfloat16), ("mhc", torch.float64)])
@pytest.mark.parametrize("factor", [1.0, 1.2])
def test_verification_accepts_the_kernels_and_rejects_wrong_ones(
    name: str, dtype: torch.dtype, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More tokens than programs hold at once."""
    module = {"dhc": dhc, "mhc": mhc}[name]
    monkeypatch.setattr(verification, "VERIFIED_TOKENS", mhc.GRADIENTS[0] + 1 if name == "mhc" else 5)
    monkeypatch.setattr(module, "verify_read", verification.verify_read)
    right = module._recomputing_read

    def wrong(*args: Any) -> Any:
        u, *others = right(*args)
        return u * factor, *others

    monkeypatch.setattr(module, "_recomputing_read", wrong)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    case = {"width": 16, "n_stream": 2, "compute": compute, "output": dtype, "n_iteration": 2, "eps": 1e-6}
    reason = module._why_not_triton(torch.device(DEVICE), dtype, **case)
    assert reason is None if factor == 1 else "output 0 of case 0 is off by 2.0e-01" in reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float16}, "streams must be float32, bfloat16 or float64, not torch.float16"),
        ({"compute": torch.float64}, "parameters of torch.float64 do not fit streams of torch.float32"),
        ({"width": 24}, "the width must be a multiple of 16"),
        ({"width": 8192}, "at most 16384 elements, not 4 x 8192"),
        ({"n_stream": 5}, "there are kernels for at most 4 streams, not 5"),
    ],
)
def test_streams_without_a_kernel_are_named(change: dict[str, Any], reason: str) -> None:
    case = {"dtype": torch.float32, "width": 64, "n_stream": 4, "compute": torch.float32, **change}
    found = triton_launch.why_not_streams(case.pop("dtype"), case, max_streams=4)
    assert found is not None
    assert reason in found


@pytest.mark.parametrize("name", ["hyperconn", "mhc"])
def test_a_compiler_traces_it_in_one_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(max_sites(name), torch.float64, 2)
    strategy, x0 = build(name, 2, 16, torch.float64), random(1, 2, 16)
    torch.compiler.reset()
    compiled = torch.compile(flow, backend="aot_eager", fullgraph=True)
    ours = outcome(strategy, x0, torch.float64, compiled)
    use_reference(monkeypatch)
    assert_close(ours, outcome(strategy, x0, torch.float64), 1e-11)


def test_outputs_of_different_dtypes_are_never_in_one_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy, x0 = build("hyperconn", 2, 16, torch.float32), random(1, 2, 16).float()
    state = strategy.begin(x0)
    for site, y_type in zip(stream_spec().sites, [torch.float32, torch.bfloat16] * 3, strict=True):
        u, state = strategy.read(state, site)
        assert len({y.dtype for y in state.segment.outputs}) <= 1
        assert state.y_BTD is None
        state = strategy.write(state, site, u.to(y_type))
    u.sum().backward()
    assert all(p.grad is not None for p in strategy.parameters())


#: Rows of the shares that sites are inputs, by the most of a segment; one that starts a segment is inputs none.
SHARES = {12: (1, 2, 3, 4, 5), 3: (1, 2, 3, 3), 2: (1, 2, 3)}


def kept_bytes(strategy: ResidualStrategy[Any], n_token: int, width: int) -> float:
    """Return the bytes saved for the backward, over sublayers u / 2, which save nothing."""
    leaf = random(1, n_token, width).float().requires_grad_()
    with Storages() as storages:
        state = strategy.begin(leaf * 1.0)
        for site in stream_spec(SITES // 2).sites:
            u, state = strategy.read(state, site)
            state = strategy.write(state, site, (u / 2).to(torch.bfloat16))
        end = strategy.end(state)
        del u, state
    gc.collect()  # the interpreter leaves cycles
    return storages.kept(but=[end, *strategy.parameters()]) * 4 * STATE


@pytest.mark.parametrize(("name", "segment", "segments"), [("hyperconn", 12, 1), ("hyperconn", 2, 3), ("mhc", 3, 2)])
def test_a_token_saves_starts_outputs_and_shares(
    name: str, segment: int, segments: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(max_sites(name), torch.float32, segment)
    n, width = 2, 32  # a start of one row; later ones of n
    strategy = build(name, n, width, torch.float32)
    kept = kept_bytes(strategy, 2, width) - kept_bytes(strategy, 1, width)
    starts = width + (segments - 1) * n * width
    outputs = (SITES - 1) * width / 2 + width  # in bf16; the last is written in float32
    shares = sum(n * r for r in SHARES[segment])
    own = n * (n + 4) if name == "hyperconn" else n * (n + 2) + n * n + 2 * n + 1
    assert kept == 4 * (starts + outputs + shares + SITES * (n + own))


@pytest.mark.parametrize("fails", ["the verification", "the import"])
def test_the_reference_runs_if_the_kernels_fail_and_one_line_says_why(
    fails: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dhc, "verify_read", verification.verify_read)
    if fails == "the verification":
        monkeypatch.setattr(verification, "TOLERANCE", dict.fromkeys(verification.TOLERANCE, -1.0))
    else:
        monkeypatch.setitem(sys.modules, "src.kernels.hyper_streams.dhc_triton", None)
    strategy, x0 = build("hyperconn", 2, 16, torch.float32), random(1, 2, 16)
    ours = outcome(strategy, x0, torch.float32)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"read of DHC falls back to PyTorch on {DEVICE} (torch.float32): ")
    use_reference(monkeypatch)
    assert all(map(torch.equal, ours, outcome(strategy, x0, torch.float32)))


@pytest.mark.stress
def test_every_kernel_compiles_for_an_h200_without_spilled_registers_and_with_wide_loads() -> None:
    root = Path(__file__).parents[3]
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join([str(root), env.get("PYTHONPATH", "")])
    command = [sys.executable, str(Path(__file__).with_name("compile_hyper.py"))]
    lines = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(lines) == 14
    for name, _, registers, stack, wide in map(str.split, lines):
        assert int(registers) <= 255
        assert int(stack) <= 256, name
        assert wide == "4" or name == "mhc_weights_backward"  # its lanes are tokens
