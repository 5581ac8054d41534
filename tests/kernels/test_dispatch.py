"""Backend dispatch: one decision a case, one line in the log, one table; and `verify`."""

import importlib.util
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from src.kernels.dispatch import REGISTRY, Operation, WhyNot, verify
from tests.support import ROOT

X = torch.ones(2, 16)


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Empty the registry for the test, and restore it."""
    monkeypatch.setattr(REGISTRY, "decisions", {})
    monkeypatch.setattr(REGISTRY, "backend_of_device", dict(REGISTRY.backend_of_device))
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def answer(reason: str | None, calls: list[Any] | None = None) -> WhyNot:
    def why_not(device: torch.device, dtype: torch.dtype, **sizes: int) -> str | None:
        if calls is not None:
            calls.append((device, dtype, sizes))
        return reason

    return why_not


def broken(device: torch.device, dtype: torch.dtype) -> str | None:
    raise RuntimeError("no such instruction\nand a long story")


# ---- Operation


def test_a_case_is_decided_once_and_the_table_shows_it() -> None:
    calls: list[Any] = []
    operation = Operation("sums", cpp=answer(None, calls))
    for _ in range(2):
        assert operation.backend_for(X, width=16) == "cpp"
    assert operation.backend_for(X.double(), width=16) == "cpp"
    assert operation.backend_for(X, width=32) == "cpp"
    cpu = torch.device("cpu")
    assert calls == [
        (cpu, torch.float32, {"width": 16}),
        (cpu, torch.float64, {"width": 16}),
        (cpu, torch.float32, {"width": 32}),
    ]
    assert REGISTRY.table().splitlines() == [
        "operation  case                    backend  reason",
        "sums       cpu, float32, width 16  cpp      fastest backend on cpu",
        "sums       cpu, float32, width 32  cpp      fastest backend on cpu",
        "sums       cpu, float64, width 16  cpp      fastest backend on cpu",
    ]
    REGISTRY.forget()
    operation.backend_for(X, width=16)
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("backend", "why_not", "reason"),
    [
        ("cpp", answer("there is no C++ compiler"), "there is no C++ compiler"),
        ("cpp", broken, "RuntimeError: no such instruction"),
        ("triton", broken, "RuntimeError: no such instruction"),
        ("triton", answer("output 0 is wrong"), "output 0 is wrong"),
    ],
)
def test_a_rejected_kernel_is_logged_in_one_line(
    backend: str,
    why_not: WhyNot,
    reason: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setitem(REGISTRY.backend_of_device, "cpu", backend)
    operation = Operation("sums", cpp=why_not, triton=why_not)
    for _ in range(2):
        assert operation.backend_for(X) == "reference"
    assert caplog.messages == [f"sums falls back to PyTorch on cpu (torch.float32): {reason}"]
    assert REGISTRY.table().endswith(reason)


def test_no_kernel_runs_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setitem(REGISTRY.backend_of_device, "cpu", "triton")
    assert Operation("sums", triton=answer(None)).backend_for(X) == "reference"
    assert REGISTRY.table().endswith("Triton is not installed")


def test_a_device_without_a_kernel_gets_the_reference(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    operation = Operation("sums", triton=broken)
    assert operation.backend_for(X) == operation.backend_for(X.to("meta")) == "reference"
    assert not caplog.records
    assert "there is no kernel for meta" in REGISTRY.table()


def test_a_tensor_subclass_gets_the_reference() -> None:
    assert Operation("sums", cpp=broken).backend_for(torch.nn.Parameter(X)) == "reference"


def test_residual_kernels_can_be_left_out() -> None:
    residual = Operation("reads", cpp=answer(None), residual=True)
    other = Operation("sums", cpp=answer(None))
    with REGISTRY.without_residual_kernels():
        assert (residual.backend_for(X), other.backend_for(X)) == ("reference", "cpp")
    assert residual.backend_for(X) == "cpp"


@pytest.mark.parametrize(("compiled", "factor"), [(("triton",), 1), (("cpp",), 2)])
def test_a_compiler_gets_only_backends_that_it_can_call(compiled: tuple[str, ...], factor: int) -> None:
    calls: list[Any] = []
    operation = Operation("sums", cpp=answer(None, calls), compiled=compiled)

    def run(x: Tensor) -> Tensor:
        return x * (2 if operation.backend_for(x, width=x.shape[-1]) == "cpp" else 1)

    compiled_run = torch.compile(run, fullgraph=True, backend="eager")
    for _ in range(2):
        assert torch.equal(compiled_run(X), factor * X)
    assert torch.equal(run(X), 2 * X)
    assert len(calls) == 1


# ---- verify


def scaled(by: float) -> Callable[..., list[Tensor]]:
    return lambda x, w, index: [by * (x @ w)[index], (x * x).sum(-1)]


def case(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, w = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((5, 3), (3, 4)))
    return [x, w, torch.tensor([0, 2])]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_verify_accepts_what_rounding_explains(dtype: torch.dtype, tolerance: float) -> None:
    with torch.inference_mode():
        assert verify(scaled(1.0), scaled(1.0), [case(dtype)], tolerance) is None


@pytest.mark.parametrize("by", [1.001, 0.0, math.nan, math.inf])
def test_verify_names_a_wrong_output(by: float) -> None:
    reason = verify(scaled(by), scaled(1.0), [case()], 1e-6)
    assert reason is not None
    assert reason.startswith("output 0 of case 0 is off by ")


def test_verify_names_a_wrong_gradient() -> None:
    def kernel(x: Tensor, w: Tensor, index: Tensor) -> list[Tensor]:
        return scaled(1.0)(x.detach() + 1.01 * (x - x.detach()), w, index)

    good = case()
    reason = verify(kernel, scaled(1.0), [good, good], 1e-3)
    assert reason is not None
    assert reason.startswith("gradient 0 of case 0 is off by 1.0e-02 of its size, more than 1.0e-03")


def test_verify_compares_values_alone_of_what_has_no_gradient() -> None:
    def kernel(x: Tensor, w: Tensor, index: Tensor) -> list[Tensor]:
        return [out.detach() for out in scaled(1.0)(x, w, index)]

    assert verify(kernel, scaled(1.0), [case()], 1e-6) is None


def test_verify_sees_a_shape_that_is_not_the_references() -> None:
    reason = verify(lambda x: x.detach().sum(0), lambda x: x.sum(0, keepdim=True), [[torch.ones(3, 2)]], 1e-6)
    assert reason == "output 0 of case 0 is off by inf of its size, more than 1.0e-06"


def test_verify_leaves_the_case_and_the_random_state_as_they_are() -> None:
    def kernel(x: Tensor) -> Tensor:
        return x.data.mul_(2) if not x.requires_grad else x.clone().mul_(2)

    x, state = torch.ones(3), torch.get_rng_state()
    assert verify(kernel, lambda x: 2 * x, [[x]], 1e-6) is None
    assert torch.equal(x, torch.ones(3))
    assert torch.equal(torch.get_rng_state(), state)


def test_verify_saves_nothing_through_the_hooks_of_its_caller() -> None:
    seen: list[Tensor] = []
    with saved_tensors_hooks(lambda x: seen.append(x) or x, lambda x: x):
        assert verify(scaled(1.0), scaled(1.0), [case()], 1e-6) is None
    assert seen == []


# ---- who selects a backend


@pytest.mark.parametrize("room", ["residual", "norm", "embedding", "recurrence"])
def test_no_strategy_names_a_device_a_compiler_or_a_backend(room: str) -> None:
    words = (
        "is_compiling",
        "device.type",
        "cuda",
        "triton",
        "cpp",
        "backend",
        "dispatch",
        ".blocked",
        "ctypes",
    )
    for path in (ROOT / "src" / room).rglob("*.py"):
        text = path.read_text()
        assert [word for word in words if word in text] == [], path
