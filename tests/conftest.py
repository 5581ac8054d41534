"""Set-up of the test process, and its reset after each test.

Triton reads at its first import whether its interpreter runs kernels; importing `src.kernels.dispatch` imports it.
"""

import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from src.kernels.cpu_matmul import MATMUL


@pytest.fixture(autouse=True)
def _products_as_torch_makes_them() -> Iterator[None]:
    """A test that runs a task chooses for the process; the next one begins as ever."""
    yield
    MATMUL.set(False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that launch runs come first: none of them, which are long, is left to one worker at the end."""
    from tests.runs import run

    launching = {item.path for item in items if getattr(getattr(item, "module", None), "run", None) is run}
    items.sort(key=lambda item: item.path not in launching)
