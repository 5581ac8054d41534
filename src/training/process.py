"""The process that computes: its threads, its float32 products, and memory that it keeps from step to step."""

import ctypes
import platform

import torch

from src.kernels.compile_cache import keep_compiled
from src.kernels.cpu_matmul import MATMUL
from src.settings.trainer import TrainerSettings

# glibc's <malloc.h>
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
MMAP_THRESHOLD = 32 * 2**20  # the most that glibc takes; larger blocks come from the system each time
TOP_PAD = 64 * 2**20


def prepare_process(trainer: TrainerSettings) -> None:
    """For training, scoring and timing alike, before anything is built."""
    keep_compiled()
    torch.set_num_threads(trainer.threads)
    choose_products(trainer)
    keep_freed_memory()


def choose_products(trainer: TrainerSettings) -> None:
    """How this process makes its float32 products; contestants of a bench may differ in it."""
    if trainer.accelerator == "gpu":
        torch.set_float32_matmul_precision("high")
    else:
        MATMUL.set(trainer.onednn)


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory for the next step, where it can be told to; says whether it does.

    A step frees all that it has taken. glibc gives that back to the system, and each page of it has to be cleared
    when the next step asks for it: 2 to 4 % of a step's time on a CPU. What a process holds at most stays the same.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    options = ((M_MMAP_THRESHOLD, MMAP_THRESHOLD), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, TOP_PAD))
    return all(mallopt(option, value) == 1 for option, value in options)
