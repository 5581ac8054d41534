"""Throughput of a device: FLOP/s, their share of the published peak (MFU), and memory.

    FLOP/s = tokens/s of all ranks * training FLOPs per token / ranks
    MFU    = FLOP/s / peak FLOP/s of a device

Recomputed activations do not count (model FLOPs). A device that the table does not name has no MFU, unless the peak is
given. The table is of dense products; Lightning's `get_available_flops` has the sparse ones of an H200, two boards for
an H100 NVL, and takes an L40S for an L4.

Source: PaLM (Chowdhery et al. 2022), appendix B.
"""

import os
from pathlib import Path

import lightning as L
import torch

from src.models.flops import count_flops_per_token
from src.models.lightning_module import LanguageModel

#: Dense bf16 FLOP/s by a word in the device's name, from the vendors' data sheets (SXM where none is named).
BF16_PEAKS = {
    "B200": 2250e12,
    "GB200": 2500e12,
    "H200": 989e12,
    "H200 NVL": 836e12,
    "H100": 989e12,
    "H100 NVL": 836e12,
    "H100 PCIe": 756e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 150e12,
    "L4": 121e12,
    "L40": 181e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "RTX 5090": 209e12,
}
#: Words of devices that have less than their name's peak: a slice of a GPU, and other chips under a card's name.
SMALLER = ("MIG", "Laptop", "D")
#: Memory pages of this process: total, then resident.
PAGES = Path("/proc/self/statm")


class Throughput:
    """Measures the device of this rank.

    Args:
        peak_flops: FLOP/s of a device at the run's precision; None looks them up for bf16 on a GPU.
        bf16: the run computes in bf16.
    """

    def __init__(self, peak_flops: float | None, *, bf16: bool) -> None:
        self.peak_flops = peak_flops
        self.bf16 = bf16
        self._flops_per_token: dict[bool, int] = {}

    def measure(self, tokens_per_s: float, trainer: L.Trainer, module: LanguageModel) -> dict[str, float]:
        """Return `flops_per_s`, `mfu` where the peak is known, and `memory_gib`, at a speed of all ranks."""
        recurs = module.gpt.recurs  # repeated visits may begin in the course of a run
        if recurs not in self._flops_per_token:
            self._flops_per_token[recurs] = count_flops_per_token(module.gpt)
        flops = tokens_per_s * self._flops_per_token[recurs] / trainer.world_size
        values = {"flops_per_s": flops}
        peak = self.peak_flops or find_peak(module.device, bf16=self.bf16)
        if peak is not None:
            values["mfu"] = flops / peak
        memory = read_memory(module.device)
        if memory is not None:
            values["memory_gib"] = memory / 2**30
        return values


def find_peak(device: torch.device, *, bf16: bool) -> float | None:
    """Return the published FLOP/s of a device; None where none are known."""
    return published_peak(torch.cuda.get_device_name(device)) if device.type == "cuda" and bf16 else None


def published_peak(name: str) -> float | None:
    """Return the dense bf16 FLOP/s of a GPU by its name, or None if the table has no entry."""
    words = f"{name} ".replace("-", " ")
    if any(f" {part} " in words for part in SMALLER):
        return None
    known = [word for word in BF16_PEAKS if f"{word} " in words]
    return BF16_PEAKS[max(known, key=len)] if known else None


def read_memory(device: torch.device) -> int | None:
    """Return the bytes that tensors took at most on a GPU, or that this process has resident; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if not PAGES.exists():
        return None
    return int(PAGES.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
