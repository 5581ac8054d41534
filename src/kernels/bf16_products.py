"""Products of bfloat16 matrices on a processor without instructions for them, computed in float32 and rounded.

There torch multiplies element by element, at about 1 GFLOP/s where float32 products have 50. The product of two bfloat16
numbers is exact in float32, in which the instructions add up too, so that results differ by the order of a sum alone.
Overridden are torch's own operators, as `torch.library.get_kernel` documents it, and so all layers, strategies and
backwards.
"""

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from src.kernels.dispatch import REGISTRY, Decision

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


REASON = "this processor has no bfloat16 instructions (AVX-512 BF16 or AMX)"


def compute_in_float32() -> None:
    """Compute products of bfloat16 matrices on the CPU in float32, in this process from now on."""
    _override_once()
    REGISTRY.record(Decision("bfloat16 products", torch.device("cpu"), torch.bfloat16, (), "float32", REASON))


@functools.cache
def _override_once() -> torch.library.Library:
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]  # torch's
    override_products(library)
    return library  # its registrations end with it


def override_products(library: torch.library.Library) -> None:
    """Register the products for the CPU in a library of the namespace aten; other dtypes get torch's, as before."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)
        for name in PRODUCTS:
            torchs = torch.library.get_kernel(f"aten::{name}", "CPU")
            ours = functools.partial(_multiply, torchs.call_boxed)
            library.impl(name, ours, "CPU", with_keyset=True)  # type: ignore[no-untyped-call]  # torch's


def _multiply(torchs: Callable[..., Tensor], keys: object, *args: Tensor, **factors: float) -> Tensor:
    if args[-1].dtype != torch.bfloat16:
        return torchs(keys, *args, **factors)
    return torchs(keys, *(x.float() for x in args), **factors).bfloat16()
