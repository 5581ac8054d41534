"""Matrix products of small blocks for C++ kernels: torch's own `at::native::cpublas::brgemm`, by oneDNN.

They are faster than a large product by MKL on some processors, and what lies between two of them stays in the cache.
torch's library exports them for C++ extensions; they are found by name.
"""

import ctypes
from pathlib import Path

import torch

from src.kernels.cpp_build import Kernels

PRODUCTS = {
    torch.float32: "_ZN2at6native7cpublas6brgemmEllllllbPKfS3_Pfb",
    torch.bfloat16: "_ZN2at6native7cpublas6brgemmEllllllbPKN3c108BFloat16ES5_Pfb",
}
RELEASE = "_ZN2at6native7cpublas14brgemm_releaseEb"


def find_products(kernels: Kernels, attempt: str, dtype: torch.dtype) -> tuple[int, int]:
    """Return the addresses of the product and of the function that releases what it has allocated.

    Args:
        kernels: the kernels that call them.
        attempt: the function of `kernels` that tries them on a product of known result.
        dtype: of the factors.

    Raises:
        AttributeError: torch's library has no such function.
        OSError: torch's library cannot be loaded.
        ValueError: the product does not run on this processor.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libtorch_cpu.so"))
    addresses, two = (_address(library, PRODUCTS[dtype]), _address(library, RELEASE)), torch.zeros(1)
    kernels(attempt, *addresses, two)
    if two.item() != 2:
        raise ValueError("torch has no product of small blocks for this processor")
    return addresses


def _address(library: ctypes.CDLL, name: str) -> int:
    address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    assert address is not None
    return address
