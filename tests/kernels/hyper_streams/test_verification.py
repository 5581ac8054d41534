"""A read's kernels are compared with the reference at their first use, and rejected if they differ."""

from typing import Any

import pytest
import torch
from torch import Tensor

from src.kernels.dispatch import REGISTRY
from src.kernels.hyper_streams import Streams, dhc, mhc
from src.kernels.hyper_streams.verification import verify_read

CPU = torch.device("cpu")
CASES = {
    "dhc": (dhc, {}),
    "mhc": (mhc, {"n_iteration": 20, "eps": 1e-6}),
}


@pytest.fixture(autouse=True)
def _fresh_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(REGISTRY, "decisions", {})


def decide(name: str, stored: torch.dtype, n: int = 3) -> tuple[str, str]:
    module, constants = CASES[name]
    compute = torch.promote_types(stored, torch.float32)
    if (reason := module.SOURCE.why_not(CPU, compute, width=32, N=n)) is not None:
        pytest.skip(reason)
    case = {"width": 32, "n_stream": n, "compute": compute, "output": compute, **constants}
    backend = module.OPERATION.backend_for(torch.empty(1, dtype=stored), **case)
    (decision,) = REGISTRY.decisions.values()
    return backend, decision.reason


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("stored", [torch.float32, torch.float64, torch.bfloat16])
def test_the_cpp_kernels_are_accepted(name: str, stored: torch.dtype) -> None:
    assert decide(name, stored) == ("cpp", "fastest backend on cpu")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("wrong", ["output 0", "gradient 0"])
def test_a_cpp_kernel_that_is_off_by_a_hundredth_is_rejected(
    name: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _ = CASES[name]
    right = module._read_by_cpp

    def read(state: Streams, *args: Any) -> tuple[Tensor, Streams]:
        u_BTD, after = right(state, *args)
        off = 1.01 * u_BTD
        return off if wrong == "output 0" else u_BTD.detach() + (off - off.detach()), after

    monkeypatch.setattr(module, "_read_by_cpp", read)
    backend, reason = decide(name, torch.float32)
    assert backend == "reference"
    assert reason.startswith(f"{wrong} of case 0 is off by ")


def test_every_parameter_has_a_gradient_that_is_compared() -> None:
    """Without its own parameters a read is right in value at copies of one row with zero weights, and only there."""
    n, width = 2, 32
    case = {"width": width, "n_stream": n, "compute": torch.float64, "output": torch.float64}
    shapes = ((width, n + 2), (width,), (width,), (2,), (n, n + 1), (n,))

    def weigh(h_BTND: Tensor, parameters: Any) -> Any:
        return dhc.dhc_weights(h_BTND, dhc.DHCParameters(*parameters))

    for frozen in range(len(shapes)):

        def read(state: Streams, parameters: Any, frozen: int = frozen) -> tuple[Tensor, Streams]:
            detached = [p.detach() if k == frozen else p for k, p in enumerate(parameters)]
            return dhc.read_dhc(state, dhc.DHCParameters(*detached))

        reason = verify_read(read, weigh, shapes, CPU, torch.float64, case)
        assert reason is not None
        assert reason.startswith("gradient ")
