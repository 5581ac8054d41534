"""Equations of norms, one position and channel by channel."""

import math

import torch
from torch import Tensor

EPS = 1e-5


def rms(values: list[float]) -> float:
    return math.sqrt(sum(v * v for v in values) / len(values) + EPS)


def row(norm: torch.nn.Module, x: Tensor) -> tuple[list[float], list[float], list[float], float]:
    """Return one position's input, the weights, the biases, and the input's mean."""
    values = x.tolist()
    return values, norm.weight.tolist(), norm.bias.tolist(), sum(values) / len(values)
