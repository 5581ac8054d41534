"""Contract of a norm: a module over the last dimension, x [..., width] -> [..., width].

A constructor takes `(spec, *, <the keys of the YAML>)`. Statistics are computed in float32 for every input dtype. The
class has an attribute `source` (`src/source.py`), and may have one more:

    decayed      names of its parameters with weight decay; those of one dimension have none otherwise
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class NormSpec:
    """Description of the model that a norm is built for.

    Args:
        width: size of the last dimension.
        bias: whether the model has biases.
    """

    width: int
    bias: bool
