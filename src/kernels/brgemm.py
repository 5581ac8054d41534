"""torch's own matrix products of small blocks (`at::native::cpublas::brgemm`, by oneDNN), for kernels in C++.

They keep the speed that a large product by MKL loses on some processors to memory, and what lies between two of them
costs no trip to memory. They are found by name in torch's library, which exports them for its C++ extensions.
"""

import ctypes
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from src.kernels.cpp_build import Kernels

log = logging.getLogger(__name__)
T = TypeVar("T")

PRODUCTS = {
    torch.float32: "_ZN2at6native7cpublas6brgemmEllllllbPKfS3_Pfb",
    torch.bfloat16: "_ZN2at6native7cpublas6brgemmEllllllbPKN3c108BFloat16ES5_Pfb",
}
RELEASE = "_ZN2at6native7cpublas14brgemm_releaseEb"


def small_products(kernels: Kernels, attempt: str, dtype: torch.dtype) -> tuple[int, int]:
    """Addresses of the product and of what lets go of it, for a source whose function `attempt` tries them.

    Raises:
        AttributeError, OSError, ValueError: there are none for this processor.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libtorch_cpu.so"))
    found, two = (_address(library, PRODUCTS[dtype]), _address(library, RELEASE)), torch.zeros(1)
    kernels(attempt, *found, two)
    if two.item() != 2:
        raise ValueError("torch has no such product of small blocks for this processor")
    return found


def tried(
    name: str, dtype: torch.dtype, make: Callable[[], T], error: Callable[[T], float], bound: float
) -> T | None:
    """What `make` makes, or None, of which a line in the log says why: the plain form has to do.

    Args:
        name: whose kernel it is.
        dtype: of its factors.
        make: raises what `small_products` does.
        error: how far it is off at most, in value and gradient, of their sizes.
        bound: how far it may be.
    """
    try:
        with torch.inference_mode(False), torch.enable_grad():  # a validation may come first
            made = make()
            off = error(made)
    except (AttributeError, OSError, ValueError) as missing:
        reason = str(missing)
    else:
        if off <= bound:
            return made
        reason = f"it differs from the plain form by {off:.1e} of its size"
    log.info("the %s's kernel for %s is not used, which costs speed only: %s", name, dtype, reason)
    return None


def _address(library: ctypes.CDLL, name: str) -> int:
    address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    assert address is not None
    return address
