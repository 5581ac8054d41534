"""Parameter groups: which parameters of a model share their rate, weight decay and further options.

Three rules decide, each on top of the one before:

1. nanoGPT's: weight decay on the trunk's tensors of at least two dimensions, none on the others (but see `norm`).
2. The residual strategy's `param_groups()`: learning rate and weight decay of the strategy's own parameters.
3. `optimizer.groups`: options for the parameters whose name matches a pattern; the last pattern that matches counts.

Under `model.base_width` or `model.base_depth` the factors of `models/transfer.py` multiply what these give.

Source: nanoGPT's `configure_optimizers` (github.com/karpathy/nanoGPT).
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

from torch import nn

from src.models.attention import CausalSelfAttention
from src.models.gpt import GPT
from src.models.mlp.base import CopiedLinear
from src.models.transfer import Factor, learning_rate_factors
from src.residual.base import ParamGroup


@dataclass(frozen=True)
class GroupRule:
    """One entry of `optimizer.groups`.

    Args:
        pattern: a shell pattern over parameter names, such as `h.*.attn.*`; `*` matches dots too.
        options: `lr_scale` multiplies the scale that the parameter has without the rule; `weight_decay` and the
            optimizer's own options (`betas`, `momentum`, ...) replace it.
    """

    pattern: str
    options: Mapping[str, Any]


class ParameterGroups(list[dict[str, Any]]):
    """Torch's parameter groups, and facts about their parameters that an optimizer may need.

    Each group is a dict with `params` (a list), `lr_scale`, `weight_decay` and what a rule of `optimizer.groups` sets.

    Attributes:
        names: the name of every parameter in the model.
        matrices: the weights inside attention and MLP sublayers; the value is the number of matrices that their rows
            hold (3 for the fused query, key and value projection). A weight of three axes is a matrix for each index
            of its first axis.
    """

    names: dict[nn.Parameter, str]
    matrices: dict[nn.Parameter, int]


def parameter_groups(
    gpt: GPT,
    lr: float,
    weight_decay: float,
    rules: Sequence[GroupRule] = (),
    width_exponent: float | None = None,
) -> ParameterGroups:
    """Return the parameter groups of a model; `lr` is the peak rate, to which `lr_scale` is relative.

    Args:
        gpt: the model.
        lr, weight_decay, rules: keys of `optimizer`.
        width_exponent: of the optimizer, for a model with a transfer rule.

    Raises:
        ValueError: a rule matches no parameter, the strategy's groups leave out a parameter, or the model has a
            transfer rule and the optimizer none.
    """
    groups = ParameterGroups()
    groups.names = {param: name for name, param in gpt.named_parameters()}
    groups.matrices = hidden_matrices(gpt)
    rule_of = _last_matching_rule(groups.names, rules)
    factor_of = learning_rate_factors(gpt, gpt.config, groups.matrices, width_exponent)
    for base in base_groups(gpt):
        for number in (None, *range(len(rules))):
            params = [p for p in base.params if rule_of.get(p) == number]
            if not params:
                continue
            options = {} if number is None else dict(rules[number].options)
            lr_scale = base.lr_scale * options.pop("lr_scale", 1.0)
            if base.lr is not None:
                lr_scale *= base.lr / lr
            decay = weight_decay if base.decay else 0.0
            if base.weight_decay is not None:
                decay = base.weight_decay
            decay = options.pop("weight_decay", decay)
            factors = [factor_of.get(param, Factor(1.0, 1.0)) for param in params]
            for factor in dict.fromkeys(factors):
                members = [param for param, own in zip(params, factors, strict=True) if own == factor]
                scales = {"lr_scale": lr_scale * factor.rate, "weight_decay": decay * factor.decay}
                groups.append({"params": members, **scales, **options})
    return groups


def base_groups(gpt: GPT) -> Iterator[ParamGroup]:
    """Yield the trunk's decayed tensors, the rest of the trunk, the strategy's groups.

    Tensors of two and more dimensions are decayed, and those that a norm names in `decayed`.
    """
    own = {id(p) for p in gpt.residual.parameters()}
    trunk = [p for p in gpt.parameters() if id(p) not in own]
    copied = {id(p) for p in gpt.copied_params()}  # their first axis counts copies
    decayed = {id(p) for p in trunk if p.dim() - (id(p) in copied) >= 2}
    decayed |= {id(m.get_parameter(name)) for m in gpt.modules() for name in getattr(m, "decayed", ())}
    yield ParamGroup(tuple(p for p in trunk if id(p) in decayed), decay=True)
    yield ParamGroup(tuple(p for p in trunk if id(p) not in decayed))
    grouped: set[int] = set()
    for group in gpt.residual.param_groups():
        grouped.update(map(id, group.params))
        yield group
    missing = [name for name, p in gpt.residual.named_parameters() if id(p) not in grouped]
    if missing:
        raise ValueError(f"{type(gpt.residual).__name__}.param_groups() leaves out {', '.join(missing)}")


def hidden_matrices(gpt: GPT) -> dict[nn.Parameter, int]:
    """Return the weights of attention and MLP sublayers that are the trunk's own, as `ParameterGroups.matrices`."""
    strategy = set(gpt.residual.parameters())
    found: dict[nn.Parameter, int] = {}
    for site in gpt.sites:
        sublayer = gpt.sublayer(site)
        stacked = sublayer.stacked if isinstance(sublayer, CausalSelfAttention) else {}
        for name, module in sublayer.named_modules():
            if isinstance(module, nn.Linear | CopiedLinear) and module.weight not in strategy:
                found[cast(nn.Parameter, module.weight)] = stacked.get(name, 1)
    return found


def _last_matching_rule(names: Mapping[nn.Parameter, str], rules: Sequence[GroupRule]) -> dict[nn.Parameter, int]:
    """Return the index of the last rule that matches, for the parameters that some rule matches."""
    found: dict[nn.Parameter, int] = {}
    for number, rule in enumerate(rules):
        matching = [param for param, name in names.items() if fnmatchcase(name, rule.pattern)]
        if not matching:
            layers = {re.sub(r"\.\d+\.", ".*.", name) for name in names.values()}
            near = difflib.get_close_matches(rule.pattern, sorted(layers), n=3, cutoff=0.3)
            raise ValueError(
                f"optimizer.groups.{number}.pattern={rule.pattern} must match a parameter of the model, and matches "
                f"none; near names are {', '.join(near or sorted(layers)[:3])}"
            )
        found.update(dict.fromkeys(matching, number))
    return found
