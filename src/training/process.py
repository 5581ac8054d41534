"""Set up the process that computes: threads, float32 matrix products, memory kept between steps."""

import ctypes
import logging
import platform
import warnings

import torch

from src.kernels.bf16_products import compute_in_float32
from src.kernels.compile_cache import keep_compiled
from src.kernels.cpu_matmul import MATMUL, lacks_bf16, why_not_onednn
from src.launch.job import Job
from src.settings.trainer import TrainerSettings

log = logging.getLogger(__name__)

# glibc's <malloc.h>
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
MMAP_THRESHOLD = 32 * 2**20  # the most that glibc takes; larger blocks come from the system each time
TOP_PAD = 64 * 2**20


def prepare_process(trainer: TrainerSettings) -> None:
    """Apply `trainer` to this process, before anything is built; training, scoring and timing share it."""
    # Lightning advises srun wherever it is installed; `launch/world.py` knows what started the ranks.
    warnings.filterwarnings("ignore", "The `srun` command is available")
    keep_compiled()
    torch.set_num_threads(trainer.threads)
    choose_products(trainer)
    keep_freed_memory()


def adapt_to_processor(job: Job) -> None:
    """Let a resumed run continue on a processor without the float32 products that its configuration stores.

    A value on the command line is not changed; where it cannot be met, reading the settings raises an error.
    """
    trainer = job.config.trainer
    if not job.resumes or trainer.get("onednn") is not True or any("trainer.onednn" in a for a in job.overrides):
        return
    reason = why_not_onednn()
    if reason is not None:
        log.warning("changed on resume: trainer.onednn true -> false, since %s; the numbers may differ", reason)
        trainer.onednn = False


def choose_products(trainer: TrainerSettings) -> None:
    """Select the library of this process's float32 matrix products; configurations of a bench may differ in it."""
    if trainer.accelerator == "gpu":
        torch.set_float32_matmul_precision("high")
        return
    MATMUL.set(trainer.onednn)
    if trainer.precision == "bf16-mixed" and lacks_bf16():
        compute_in_float32()


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for the next step; return False on other C libraries.

    A step frees all the memory that it allocated. By default glibc returns it to the system, and the kernel clears
    each page again in the next step: 2 to 4 % of a step's time on a CPU. The peak memory stays the same.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    options = ((M_MMAP_THRESHOLD, MMAP_THRESHOLD), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, TOP_PAD))
    return all(mallopt(option, value) == 1 for option, value in options)
