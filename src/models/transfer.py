"""Transfer of learning rates and initial values between sizes: which parameter follows which rule.

With m = n_embd / base_width, k = n_layer / base_depth and a = depth_exponent; at m = k = 1 nothing changes.

    class    parameters                                          initial std   AdamW rate   Muon rate   logits
    matrix   weights of attention and MLP sublayers              m^-1/2        m^-1         m^-1/2
    reader   names in `width_readers`: products over the width   its own       m^-1         m^-1
    head     the head's weight, tied or not                      1             1            1           m^-1
    other    tables, positions, norms, biases, scalars, mixing   1             1            1

    x <- x + k^-a F(N(x));   rates inside the blocks times k^(a - 1);   std of c_proj 0.02 / sqrt(2 base_depth)

Weight decay of matrices and readers is divided by their factor of width, so that rate * decay does not change. The
parameters of a residual strategy are `reader` where the strategy names them, else `other`; depth does not change them.
The rate of a matrix follows from its update: AdamW's has entries of the size of the rate, all of one sign pattern with
the activations, so that its effect grows with the fan-in; Muon's has a spectral norm of 0.2 sqrt(fan) times the rate.

Source: Yang et al., "Tensor Programs V" (arXiv 2203.03466), table 8, and microsoft/mup @ 1981497 (rates, decay); the
form with fixed rates of tables and a factor on the logits is EleutherAI/nanoGPT-mup @ b2a5e60. Depth: Dey et al.,
"CompleteP" (arXiv 2505.01618), table 1, and EleutherAI/nanoGPT-mup @ 6f8bc3b (branch `completep`). AdamW's eps is not
scaled, as in b2a5e60; 6f8bc3b divides it by m k^a. c_proj starts smaller than in 6f8bc3b by 1 / sqrt(2 base_depth), so
that a model of the base sizes is the model without the rule. The factor for Muon has no source; it is measured
(`checks/coordinates.py`).
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from src.models.config import GPTConfig

INIT_STD = 0.02


class Factor(NamedTuple):
    """Factors on the learning rate and on the weight decay of a parameter."""

    rate: float
    decay: float


def width_ratio(config: GPTConfig) -> float:
    """Return m, the width over the base width; 1 without the rule."""
    return 1.0 if config.base_width is None else config.n_embd / config.base_width


def depth_ratio(config: GPTConfig) -> float:
    """Return k, the depth over the base depth; 1 without the rule."""
    return 1.0 if config.base_depth is None else config.n_layer / config.base_depth


def matrix_std(config: GPTConfig, *, is_output: bool) -> float:
    """Return the initial deviation of a matrix inside a sublayer; `is_output`: it projects back to the stream.

    The stream sums 2 * n_layer branches (GPT-2, section 2.3).
    """
    std = INIT_STD / math.sqrt(2 * (config.base_depth or config.n_layer)) if is_output else INIT_STD
    return float(std * width_ratio(config) ** -0.5)


def logit_scale(config: GPTConfig) -> float:
    """Return the factor on the head's input."""
    return 1 / width_ratio(config)


def branch_scale(config: GPTConfig) -> float:
    """Return the factor on the output of every sublayer."""
    return float(depth_ratio(config) ** -config.depth_exponent)


def require_transferable_depth(config: GPTConfig, strategy: nn.Module) -> None:
    """Reject a depth rule for a strategy that has one of its own.

    Raises:
        ValueError: both are configured.
    """
    if config.base_depth is None:
        return
    for part in strategy.modules():
        if getattr(part, "has_depth_rule", False):
            raise ValueError(
                f"model.base_depth must be null with {type(part).__name__}, which scales with depth by a rule of its "
                f"own, got {config.base_depth}"
            )


def list_readers(model: nn.Module) -> set[nn.Parameter]:
    """Return the parameters outside the sublayers whose products sum over the width."""
    return {
        param
        for module in model.modules()
        for reader in getattr(module, "width_readers", ())
        for name, param in module.named_parameters()
        if name == reader or name.startswith(f"{reader}.")
    }


def learning_rate_factors(
    model: nn.Module, config: GPTConfig, matrices: Mapping[nn.Parameter, int], width_exponent: float | None
) -> dict[nn.Parameter, Factor]:
    """Return the factors of the parameters whose rate or decay a rule changes; none where no rule is configured.

    Args:
        model: the GPT.
        config: its sizes.
        matrices: `ParameterGroups.matrices`.
        width_exponent: e of the optimizer, whose rate for a matrix is m^-e; None: there is no rule for it.

    Raises:
        ValueError: a rule is configured, and the optimizer has none.
    """
    if not config.has_transfer_rule:
        return {}
    if width_exponent is None:
        key = "base_depth" if config.base_width is None else "base_width"
        raise ValueError(
            f"model.{key} must be null with this optimizer, for which no rule is known, got {getattr(config, key)}; "
            f"give optimizer=adamw or optimizer=muon, or model.{key}=null"
        )
    by_width = dict.fromkeys(list_readers(model), 1.0) | dict.fromkeys(matrices, width_exponent)
    inside = depth_ratio(config) ** (config.depth_exponent - 1)
    in_blocks = set(model.get_submodule("h").parameters())
    factors = {}
    for param in model.parameters():
        width = width_ratio(config) ** -by_width.get(param, 0.0)
        factors[param] = Factor(width * inside if param in in_blocks else width, 1 / width)
    return {param: factor for param, factor in factors.items() if factor != (1.0, 1.0)}
