"""Device ceilings: the published peak, and the speed that a large matrix product and a copy reach."""

import dataclasses
import functools
from collections.abc import Callable

import torch

from src.bench.step import Stopwatch
from src.callbacks.throughput import published_peak
from src.kernels.cpu_matmul import MATMUL, resolve_onednn

#: Side of the square matrices, and bytes of the copy: larger than any cache.
MATRIX_SIZE = {"cuda": 8192, "cpu": 1024}
COPY_BYTES = {"cuda": 2**30, "cpu": 2**28}
REPEATS = 6


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """Speeds that a step is compared with: FLOP/s of the published peak and of a matrix product, B/s of a copy.

    `peak` is None where none is published; `product_words` describes the product; `copy` counts bytes read and written.
    """

    peak: float | None
    product: float
    product_words: str
    copy: float


@functools.cache
def measure_ceiling(device: str, *, bf16: bool) -> Ceiling:
    """Look up the published peak at a precision and measure a large matrix product and a copy, once per process."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    words = f"a large {str(dtype).removeprefix('torch.')} matrix product's speed"
    if device == "cpu":
        with MATMUL.hold(resolve_onednn("auto")):
            product = matmul_speed(device, dtype)
        return Ceiling(None, product, words + " in CPU time", copy_speed(device))
    peak = published_peak(torch.cuda.get_device_name()) if bf16 else None
    return Ceiling(peak, matmul_speed(device, dtype), words, copy_speed(device))


def matmul_speed(device: str, dtype: torch.dtype) -> float:
    """Return the FLOP/s of a large square matrix product; on a CPU per second of CPU time."""
    n = MATRIX_SIZE[device]
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / _best_seconds(device, lambda: a @ b)


def copy_speed(device: str) -> float:
    """Return the bytes per second, read and written, of a copy larger than any cache."""
    a, b = (torch.ones(COPY_BYTES[device], dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * COPY_BYTES[device] / _best_seconds(device, lambda: b.copy_(a))


def _best_seconds(device: str, work: Callable[[], object]) -> float:
    """Return the shortest time of several calls, which the first one warms up."""
    watch = Stopwatch(device)
    seconds = []
    for _ in range(REPEATS):
        watch.start()
        work()
        seconds.append(watch.stop()[0])
    return min(seconds)
