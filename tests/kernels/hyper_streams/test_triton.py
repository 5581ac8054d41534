"""The kernels in Triton, by its interpreter on the CPU, against the plain form of what they compute."""

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

from src.kernels import dispatch as gpu_kernels
from src.kernels.hyper_streams import dhc as hyperconn_read
from src.kernels.hyper_streams import dhc_launch as hyperconn_gpu
from src.kernels.hyper_streams import mhc as mhc_read
from src.kernels.hyper_streams import mhc_launch as mhc_gpu
from src.kernels.hyper_streams import recompute as replay
from src.kernels.hyper_streams import trial as stream_trial
from src.kernels.hyper_streams import triton_launch as stream_operators
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
    pytest.skip("this Triton's interpreter does not know today's numpy", allow_module_level=True)


SITES = 6


@pytest.fixture(autouse=True)
def _kernels_serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On this device; and what they leave unwritten is not a number."""
    monkeypatch.setattr(stream_operators, "DEVICES", (DEVICE,))
    monkeypatch.setattr(stream_trial, "ROWS", 1)
    monkeypatch.setattr(stream_trial, "failing", lambda *_: None)  # tests of their own try them
    for module in (hyperconn_gpu, mhc_gpu):  # few programs, which take turns
        monkeypatch.setattr(module, "FORWARD", (64, 2))
        monkeypatch.setattr(module, "BACKWARD", (32, 2))
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def built(
    name: str, n: int, width: int, dtype: torch.dtype, stream_dtype: str = "float32"
) -> ResidualStrategy[Any]:
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


def plainly(patch: pytest.MonkeyPatch) -> None:
    for module in (hyperconn_read, mhc_read):
        patch.setattr(module, "fits", lambda *_: False)


def flow(strategy: ResidualStrategy[Any], x0: Tensor, y_type: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """The end, and what the sublayers were given."""
    state, given = strategy.begin(x0), []
    for site in stream_spec(SITES // 2).sites:
        u, state = strategy.read(state, site)
        given.append(u.to(y_type).to(x0.dtype))  # which rounds what the plain form does not
        state = strategy.write(state, site, torch.tanh(given[-1] * (1 + site.index)).to(y_type))
    return strategy.end(state), given


def outcome(
    strategy: ResidualStrategy[Any], x0: Tensor, y_type: torch.dtype, run: Callable[..., Any] = flow
) -> list[Tensor]:
    """Beside those, the gradients of the embedding and of all parameters."""
    x0 = x0.to(next(strategy.parameters()).dtype).requires_grad_()
    end, given = run(strategy, x0, y_type)
    parts = [(x * random(*x.shape, seed=k)).sum() for k, x in enumerate((end, *given))]
    grads = torch.autograd.grad(torch.stack(parts).sum(), [x0, *strategy.parameters()])
    return [end.detach(), *(u.detach() for u in given), *grads]


def sites_of(name: str) -> dict[torch.dtype, int]:
    """How many sites share a start."""
    return mhc_gpu.SEGMENT if name == "mhc" else replay.SEGMENT


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
def test_a_read_replays_over_several_segments(
    name: str, n: int, width: int, dtype: torch.dtype, y_type: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sites_of(name), dtype, 2)
    strategy, x0 = built(name, n, width, dtype), random(1, 3 if n < 4 else 2, width)
    ours = outcome(strategy, x0, y_type)
    plainly(monkeypatch)
    theirs = outcome(strategy, x0, y_type)
    assert_close(ours, theirs, TOLERANCE[dtype] if y_type == dtype else 0.02)


@pytest.mark.parametrize(
    ("name", "y_type"),
    [("hyperconn", torch.bfloat16), ("hyperconn", torch.float32), ("mhc", torch.bfloat16)],
)
def test_streams_stored_in_bfloat16(name: str, y_type: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sites_of(name), torch.bfloat16, 2)
    strategy, x0 = built(name, 2, 16, torch.float32, "bfloat16"), random(1, 2, 16)
    assert strategy.read(strategy.begin(x0.float()), stream_spec().sites[0])[0].dtype == torch.float32
    ours = outcome(strategy, x0, y_type)
    plainly(monkeypatch)
    theirs = outcome(strategy, x0, y_type)
    assert_close(ours, theirs, 0.03)


@pytest.mark.parametrize("name", ["hyperconn", "mhc"])
def test_a_trial_of_more_tokens_than_programs_take_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_trial, "ROWS", mhc_gpu.PULL[0] + 1 if name == "mhc" else 5)
    errors: list[float] = []
    monkeypatch.setattr(stream_trial, "failing", lambda name, check, bound: errors.append(check() / bound))
    trial = stream_trial.Trial(torch.float64, torch.float64, 2, 16, DEVICE)
    if name == "hyperconn":
        hyperconn_read._gpu_fault.__wrapped__(trial)
    else:
        mhc_read._gpu_fault.__wrapped__(trial, 2, 1e-6)
    assert 0 < errors[0] < 1


@pytest.mark.parametrize("name", ["hyperconn", "mhc"])
def test_a_compiler_traces_it_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sites_of(name), torch.float64, 2)
    strategy, x0 = built(name, 2, 16, torch.float64), random(1, 2, 16)
    torch.compiler.reset()
    compiled = torch.compile(flow, backend="aot_eager", fullgraph=True)
    ours = outcome(strategy, x0, torch.float64, compiled)
    plainly(monkeypatch)
    assert_close(ours, outcome(strategy, x0, torch.float64), 1e-11)


def test_outputs_of_unlike_types_are_never_in_one_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy, x0 = built("hyperconn", 2, 16, torch.float32), random(1, 2, 16).float()
    state = strategy.begin(x0)
    for site, y_type in zip(stream_spec().sites, [torch.float32, torch.bfloat16] * 3, strict=True):
        u, state = strategy.read(state, site)
        assert len({y.dtype for y in state.replay.outputs}) <= 1
        assert state.y_BTD is None
        state = strategy.write(state, site, u.to(y_type))
    u.sum().backward()
    assert all(p.grad is not None for p in strategy.parameters())


#: Rows of the shares that sites are given, by the most of a segment; one that starts a segment is given none.
SHARES = {12: (1, 2, 3, 4, 5), 3: (1, 2, 3, 3), 2: (1, 2, 3)}


def kept_bytes(strategy: ResidualStrategy[Any], n_token: int, width: int) -> float:
    """What the backward needs, over sublayers u / 2, which keep nothing."""
    leaf = random(1, n_token, width).float().requires_grad_()
    with Storages() as made:
        state = strategy.begin(leaf * 1.0)
        for site in stream_spec(SITES // 2).sites:
            u, state = strategy.read(state, site)
            state = strategy.write(state, site, (u / 2).to(torch.bfloat16))
        end = strategy.end(state)
        del u, state
    gc.collect()  # the interpreter leaves cycles
    return made.kept(but=[end, *strategy.parameters()]) * 4 * STATE


@pytest.mark.parametrize(
    ("name", "segment", "segments"), [("hyperconn", 12, 1), ("hyperconn", 2, 3), ("mhc", 3, 2)]
)
def test_what_a_token_keeps(name: str, segment: int, segments: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sites_of(name), torch.float32, segment)
    n, width = 2, 32  # a start of one row; later ones of n
    strategy = built(name, n, width, torch.float32)
    kept = kept_bytes(strategy, 2, width) - kept_bytes(strategy, 1, width)
    starts = width + (segments - 1) * n * width
    outputs = (SITES - 1) * width / 2 + width  # in bf16; the last is written in float32
    shares = sum(n * r for r in SHARES[segment])
    own = n * (n + 4) if name == "hyperconn" else n * (n + 2) + n * n + 2 * n + 1
    assert kept == 4 * (starts + outputs + shares + SITES * (n + own))


@pytest.mark.parametrize("fails", ["the trial", "the import"])
def test_where_the_kernels_fail_the_plain_form_runs_and_one_line_says_so(
    fails: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stream_trial, "failing", gpu_kernels.failing)
    hyperconn_read._gpu_fault.cache_clear()
    if fails == "the trial":
        monkeypatch.setattr(stream_trial, "BOUND", dict.fromkeys(stream_trial.BOUND, -1.0))
    else:
        monkeypatch.setitem(sys.modules, "src.kernels.hyper_streams.dhc_triton", None)
    strategy, x0 = built("hyperconn", 2, 16, torch.float32), random(1, 2, 16)
    ours = outcome(strategy, x0, torch.float32)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("the GPU kernels of hyperconn are not used, which costs speed only")
    plainly(monkeypatch)
    assert all(map(torch.equal, ours, outcome(strategy, x0, torch.float32)))
    hyperconn_read._gpu_fault.cache_clear()


@pytest.mark.stress
def test_every_kernel_compiles_for_an_h200_with_few_registers_in_memory_and_wide_loads() -> None:
    root = Path(__file__).parents[3]
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join([str(root), env.get("PYTHONPATH", "")])
    command = [sys.executable, str(root / "tests" / "residual" / "compile_hyper.py")]
    lines = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(lines) == 14
    for name, _, registers, stack, wide in map(str.split, lines):
        assert int(registers) <= 255
        assert int(stack) <= 256, name
        assert wide == "4" or name == "mhc_weights_backward"  # whose lanes are tokens
