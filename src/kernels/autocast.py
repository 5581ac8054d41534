"""Autocast of the device of a tensor: leave it for the residual stream, enter it again for a sublayer."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor


def suspend_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which operations on tensors like `x` keep their dtype."""
    return torch.autocast(x.device.type, enabled=False)


def capture_autocast(x: Tensor) -> Callable[[], AbstractContextManager[Any]]:
    """Return a function that makes a context with the autocast that tensors like `x` meet now."""
    device = x.device.type
    dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    return partial(torch.autocast, device, dtype=dtype, enabled=enabled)
