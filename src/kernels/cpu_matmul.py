"""Backend of float32 matrix products on the CPU: MKL, torch's default, or oneDNN where MKL is slow.

oneDNN is faster on AMD processors with AVX-512, 1.1 times on one and 2.3 on another, and as precise. torch's switch for
it (matmul precision "medium") also allows bfloat16 on processors with AMX; it is not used there, and elsewhere its
products are verified against float64 first. The switch applies to the process, like the number of threads. Products of
attention are too small for oneDNN and stay with MKL (`src/kernels/attention/cpp.py`).
"""

import contextlib
import functools
import logging
from collections.abc import Iterator

import torch

from src.kernels.compile_cache import read_first_core
from src.kernels.dispatch import REGISTRY, Decision, verify

log = logging.getLogger(__name__)

TOLERANCE = 5e-6  # of the largest element: both have at most 1e-6, bfloat16 has 2e-3
#: Rows, inner size and columns of the linear maps that are verified.
VERIFIED = ((512, 256, 768), (64, 1024, 256))


class MatmulSwitch:
    """Switch of the process between oneDNN and torch's default; a compiler reads it while tracing."""

    def __init__(self) -> None:
        self.onednn = False

    def set(self, onednn: bool) -> None:
        """Compute float32 products by oneDNN, or by torch's default."""
        self.onednn = onednn
        torch.set_float32_matmul_precision("medium" if onednn else "highest")

    @contextlib.contextmanager
    def hold(self, onednn: bool) -> Iterator[None]:
        """Set the switch until the end of a block."""
        before = self.onednn
        self.set(onednn)
        try:
            yield
        finally:
            self.set(before)


MATMUL = MatmulSwitch()


def resolve_onednn(requested: bool | str) -> bool:
    """Return the value of `trainer.onednn` on this processor; auto is true where oneDNN is faster and as precise.

    Raises:
        ValueError: it is true, but oneDNN is not available here or is less precise.
    """
    if requested is False:
        return _record(False, "trainer.onednn is false")
    if requested == "auto" and not _is_onednn_faster():
        return _record(False, "torch's default is as fast on this processor")
    reason = why_not_onednn()
    if reason is None:
        return _record(True, "verified; MKL is slow on this processor")
    if requested is True:
        raise ValueError(f"trainer.onednn=true, but {reason}; use trainer.onednn=auto")
    log.info("float32 products fall back to torch's default: %s", reason)
    return _record(False, reason)


@functools.cache
def why_not_onednn() -> str | None:
    """Return why oneDNN cannot compute the products on this processor, or None; verifies them once."""
    instructions = _read_cpuinfo().get("flags", "").split()
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's
    if not available or "avx512f" not in instructions:
        return "oneDNN has float32 products of its own only on a processor with AVX-512"
    if "amx_tile" in instructions:
        return "on a processor with AMX it may round float32 products to bfloat16"
    return verify_onednn()


def lacks_bf16() -> bool:
    """Return whether this is an x86 processor without instructions for bfloat16, where torch emulates its products."""
    instructions = _read_cpuinfo().get("flags", "").split()
    return bool(instructions) and not {"avx512_bf16", "amx_bf16"} & set(instructions)


def verify_onednn() -> str | None:
    """Return how oneDNN's products differ from float64, or None: those of a linear map, forward and backward."""
    generator = torch.Generator().manual_seed(0)
    cases = [
        [torch.randn(size, generator=generator) for size in ((rows, inner), (columns, inner))]
        for rows, inner, columns in VERIFIED
    ]
    with MATMUL.hold(True):
        return verify(lambda x, w: x @ w.T, lambda x, w: x @ w.T, cases, TOLERANCE)


def _record(onednn: bool, reason: str) -> bool:
    backend = "onednn" if onednn else "torch"
    REGISTRY.record(Decision("float32 products", torch.device("cpu"), torch.float32, (), backend, reason))
    return onednn


def _is_onednn_faster() -> bool:
    """Return whether MKL computes the products and the processor has AVX-512, but is not Intel's."""
    cpuinfo = _read_cpuinfo()
    mkl = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]  # torch's
    is_foreign = cpuinfo.get("vendor_id", "") not in ("", "GenuineIntel")
    return mkl and is_foreign and "avx512f" in cpuinfo.get("flags", "").split()


def _read_cpuinfo() -> dict[str, str]:
    lines = (line.partition(":") for line in read_first_core().splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}
