"""Triton's interpreter: kernels on the CPU, an operation at a time (`conftest.py` turns it on)."""

import importlib
import os
from types import ModuleType

import pytest


def interpreted(module: str) -> ModuleType:
    """A module of kernels, to be run on tensors of the CPU; skips where there is no Triton, or a GPU to run them."""
    pytest.importorskip("triton", reason="Triton is not installed (it is for Linux on x86-64)")
    if "TRITON_INTERPRET" not in os.environ:
        pytest.skip("a GPU is here, on which the kernels run themselves")
    return importlib.import_module(module)
