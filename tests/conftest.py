"""What the test process has: Triton reads at its first import whether its interpreter runs kernels, without a GPU."""

import os
from collections.abc import Iterator

import pytest
import torch

from src.cpu_products import by_onednn

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def _products_as_torch_makes_them() -> Iterator[None]:
    """A test that runs a task chooses for the process; the next one begins as ever."""
    yield
    by_onednn(False)
