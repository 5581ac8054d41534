"""Whether kernels in Triton serve: on a CUDA device, where the package is and what they make there is right.

A leaf: any room may import it.
"""

import importlib.util
import logging
from collections.abc import Callable

import torch

log = logging.getLogger(__name__)

_found: dict[str, bool] = {}


def serve(kernels: str, device: torch.device, check: Callable[[], bool]) -> bool:
    """Whether to use some kernels on a device; found out once a process, and said where the answer is no.

    Args:
        kernels: their name.
        device: where they would run.
        check: runs them on a small case on that device; whether the plain form's results came out.
    """
    if device.type != "cuda":
        return False
    if kernels not in _found:
        reason = _reason_against(check)
        if reason:
            log.warning("the %s kernels are left out, which costs speed only: %s", kernels, reason)
        _found[kernels] = not reason
    return _found[kernels]


def _reason_against(check: Callable[[], bool]) -> str:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    try:
        return "" if check() else "they do not agree with the plain form on this device"
    except Exception as error:  # a compiler's and a driver's errors are of any kind
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
