"""torch's own matrix products of small blocks (`at::native::cpublas::brgemm`, by oneDNN), for kernels in C++.

They keep the speed that a large product by MKL loses on some processors to memory, and what lies between two of them
costs no trip to memory. They are found by name in torch's library, which exports them for its C++ extensions.
"""

import ctypes
from pathlib import Path

import torch

PRODUCTS = {
    torch.float32: "_ZN2at6native7cpublas6brgemmEllllllbPKfS3_Pfb",
    torch.bfloat16: "_ZN2at6native7cpublas6brgemmEllllllbPKN3c108BFloat16ES5_Pfb",
}
RELEASE = "_ZN2at6native7cpublas14brgemm_releaseEb"


def small_products(dtype: torch.dtype) -> tuple[int, int]:
    """Addresses of the product and of what lets go of it.

    Raises:
        AttributeError, OSError: there are none.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libtorch_cpu.so"))
    return _address(library, PRODUCTS[dtype]), _address(library, RELEASE)


def _address(library: ctypes.CDLL, name: str) -> int:
    address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    assert address is not None
    return address
