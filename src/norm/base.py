"""The contract of a norm: a module over the last dimension, x [..., width] -> [..., width].

Constructors take `(spec, *, <the keys of their YAML>)`. Statistics are taken in float32 whatever the input.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class NormSpec:
    """What a norm is told: the width it works on, and whether the model has biases."""

    width: int
    bias: bool
