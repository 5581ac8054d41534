"""Whether kernels in Triton serve: on a CUDA device, where the package is and what they make there is right.

They are tried before their first real use. Where they fail, the plain form runs and a line in the log says why.
A leaf: any room may import it.
"""

import contextlib
import importlib.util
import logging
from collections.abc import Callable, Iterator

import torch

log = logging.getLogger(__name__)

_residual_wanted = True


def wanted(device: torch.device) -> bool:
    """Whether a device is one for such kernels."""
    return device.type == "cuda"


def residual_wanted(device: torch.device) -> bool:
    """Whether it is, and nobody measures what a residual strategy costs without them."""
    return wanted(device) and _residual_wanted


@contextlib.contextmanager
def residual_left_out() -> Iterator[None]:
    """Residual strategies take their plain form, to be compared with; a compiler asks while it traces."""
    global _residual_wanted
    before, _residual_wanted = _residual_wanted, False
    try:
        yield
    finally:
        _residual_wanted = before


def failing(kernels: str, error: Callable[[], float], bound: float) -> str | None:
    """Why some kernels are not to be used, which is also logged; None: they are. Callers remember the answer.

    Args:
        kernels: their name.
        error: tries them on a small case, on the device that they are for; how far they are off.
        bound: from which on they are wrong.
    """
    reason = _reason_against(error, bound)
    if reason is not None:
        log.warning("the GPU kernels of %s are not used, which costs speed only: %s", kernels, reason)
    return reason


def _reason_against(error: Callable[[], float], bound: float) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    try:
        with torch.inference_mode(False), torch.enable_grad():  # a validation may come first
            off = error()
    except Exception as raised:  # a compiler for a machine unknown here may raise anything
        return f"{type(raised).__name__}: {raised}".splitlines()[0]
    return None if off <= bound else f"they differ from the plain form by {off:.1e} of its size"
