"""Products of bfloat16 matrices on a processor without instructions for them, computed in float32 and rounded.

There torch multiplies element by element, at about 1 GFLOP/s where float32 products have 50. The product of two bfloat16
numbers is exact in float32, in which the instructions add up too, so that results differ by the order of a sum alone.
torch's operators are overridden, as the documentation of `torch.library.get_kernel` shows, so that this holds for all
layers, strategies and backwards.
"""

import functools
import logging
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from src.kernels.dispatch import REGISTRY, Decision

log = logging.getLogger(__name__)

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


REASON = "this processor has no bfloat16 instructions (AVX-512 BF16 or AMX)"


def compute_in_float32() -> None:
    """Compute products of bfloat16 matrices on the CPU in float32, in this process from now on."""
    _override_once()
    REGISTRY.record(Decision("bfloat16 products", torch.device("cpu"), torch.bfloat16, (), "float32", REASON))


@functools.cache
def _override_once() -> torch.library.Library:
    log.info("%s: trainer.precision=bf16-mixed is computed in float32, and 32-true is faster here", REASON)
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]  # torch's
    override_products(library)
    return library  # its registrations end with it


def override_products(library: torch.library.Library) -> None:
    """Register the products for the CPU in a library of the namespace aten; other dtypes keep torch's kernel."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)
        for name in PRODUCTS:
            native_kernel = torch.library.get_kernel(f"aten::{name}", "CPU").call_boxed
            native_out_kernel = torch.library.get_kernel(f"aten::{name}.out", "CPU").call_boxed  # compilers call it
            for operator, ours in (
                (name, functools.partial(_multiply, native_kernel)),
                (f"{name}.out", functools.partial(_multiply_into, native_kernel, native_out_kernel)),
            ):
                library.impl(operator, ours, "CPU", with_keyset=True)  # type: ignore[no-untyped-call]  # torch's


def _multiply(native_kernel: Callable[..., Tensor], keys: object, *args: Tensor, **factors: float) -> Tensor:
    if not _are_bf16(args):
        return native_kernel(keys, *args, **factors)
    return native_kernel(keys, *(x.float() for x in args), **factors).bfloat16()


def _multiply_into(
    native_kernel: Callable[..., Tensor],
    native_out_kernel: Callable[..., Tensor],
    keys: object,
    *args: Tensor,
    out: Tensor,
    **factors: float,
) -> Tensor:
    if not _are_bf16((*args, out)):
        return native_out_kernel(keys, *args, out=out, **factors)
    product = native_kernel(keys, *(x.float() for x in args), **factors)
    out.resize_(product.shape)
    return out.copy_(product)


def _are_bf16(tensors: Iterable[Tensor]) -> bool:
    """Return whether all tensors are bfloat16; torch rejects a mixture."""
    return all(x.dtype == torch.bfloat16 for x in tensors)
