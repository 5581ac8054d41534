"""Triton reads once, when it is first imported, whether its interpreter runs kernels: where there is no GPU."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
