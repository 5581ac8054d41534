"""float32 matrix products on a CPU: by MKL, as torch does them by itself, or by oneDNN, where MKL is slow.

On AMD's processors with AVX-512 oneDNN's are faster, 1.1 times on one and 2.3 on another, and as precise. torch's
switch for them allows bfloat16 where the processor has tiles for it (AMX), so it is not touched there, and what it
gives is held against float64 before it is used. It is the process's, like the number of threads. Attention's products
are too small for it and stay as they are (`src/kernels/attention/cpp.py`). A leaf: any room may import it.
"""

import contextlib
import functools
import logging
from collections.abc import Iterator

import torch

from src.kernels.compile_cache import first_core

log = logging.getLogger(__name__)

#: Of the largest element; both make 1e-6 at most, and bfloat16 makes 2e-3.
ROUNDING = 5e-6
#: Rows, inner size, columns of the products that are tried.
TRIED = ((512, 256, 768), (64, 1024, 256))

_chosen = False


def by_onednn(on: bool) -> None:
    """Have the process make its float32 products by oneDNN, or as torch does by itself."""
    global _chosen
    _chosen = on
    torch.set_float32_matmul_precision("medium" if on else "highest")


def chosen() -> bool:
    """Whether oneDNN makes them; a compiler asks while it traces."""
    return _chosen


@contextlib.contextmanager
def for_now(on: bool) -> Iterator[None]:
    """`by_onednn` until the end of a block."""
    before = _chosen
    by_onednn(on)
    try:
        yield
    finally:
        by_onednn(before)


def serves(asked: bool | str) -> bool:
    """`trainer.onednn` settled for this processor; auto is true where it is better and as precise.

    Raises:
        ValueError: it is asked for, and would be less precise or is not there.
    """
    if asked is False or (asked == "auto" and not _slow_without()):
        return False
    reason = reason_against()
    if reason is None:
        return True
    if asked is True:
        raise ValueError(f"trainer.onednn=true, but {reason}; use trainer.onednn=auto")
    log.info("trainer.onednn: float32 products are made as torch does by itself: %s", reason)
    return False


@functools.cache
def reason_against() -> str | None:
    """Why oneDNN's products are not for this processor; None: they are, and were tried."""
    instructions = _cpuinfo().get("flags", "").split()
    there = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's
    if not there or "avx512f" not in instructions:
        return "oneDNN has float32 products of its own only on a processor with AVX-512"
    if "amx_tile" in instructions:
        return "on a processor with AMX it may round float32 products to bfloat16"
    off = error()
    return None if off <= ROUNDING else f"its float32 products are off by {off:.1e} of their size"


def error() -> float:
    """How far oneDNN's products are off at most, in the layouts of a linear map's three."""
    generator = torch.Generator().manual_seed(0)
    off = []
    for rows, inner, columns in TRIED:
        sizes = (rows, inner), (columns, inner), (rows, columns)
        x, w, g = (torch.randn(size, generator=generator) for size in sizes)
        for a, b in ((x, w.T), (g, w), (g.T, x)):
            with for_now(True):
                product = a @ b
            exact = a.double() @ b.double()
            off.append((product - exact).abs().amax() / exact.abs().amax())
    return float(torch.stack(off).nan_to_num(nan=torch.inf).amax())


def _slow_without() -> bool:
    """Whether MKL makes the products and the processor is not its maker's."""
    vendor = _cpuinfo().get("vendor_id", "")
    mkl = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]  # torch's
    return mkl and vendor not in ("", "GenuineIntel")


def _cpuinfo() -> dict[str, str]:
    lines = (line.partition(":") for line in first_core().splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}
