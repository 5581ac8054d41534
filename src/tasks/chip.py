"""What a chip could do at most: its published peak, and what a large matrix product reaches on it."""

import dataclasses
import functools
import time

import torch

#: Dense bf16 FLOP/s by a word in the device's name, from the makers' data sheets (SXM where there are several).
BF16_PEAKS = {
    "B200": 2250e12,
    "GB200": 2500e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "RTX 5090": 209e12,
}
SIZE = {"cuda": 8192, "cpu": 1024}


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """FLOP/s that a step is held against: the chip's published peak, where there is one, and a matrix product's."""

    peak: float | None
    product: float
    product_words: str


@functools.cache
def ceiling_of(device: str, *, bf16: bool) -> Ceiling:
    """The peak that is published for a precision, and what a large matrix product reaches in it now."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    words = f"a large {str(dtype).removeprefix('torch.')} matrix product's speed"
    if device == "cpu":
        return Ceiling(None, matmul_speed(device, dtype), words + " in CPU time")
    peak = published_peak(torch.cuda.get_device_name()) if bf16 else None
    return Ceiling(peak, matmul_speed(device, dtype), words)


def published_peak(name: str) -> float | None:
    """Dense bf16 FLOP/s of a GPU by its name; None where the table has none."""
    known = [word for word in BF16_PEAKS if word in name]
    return BF16_PEAKS[max(known, key=len)] if known else None


def matmul_speed(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product, the best of several; on a CPU per second of CPU time of a thread."""
    n = SIZE[device]
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter() if device == "cuda" else time.process_time()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter() if device == "cuda" else time.process_time()
        best = min(best, now - began)
    return 2 * n**3 / best
