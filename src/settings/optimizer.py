"""Sections `optimizer` and `schedule`: from their keys to an `OptimizerConfig` and a `Schedule`, and back.

The stored form of a configuration leaves out what was implied before these sections had a `_target_`: AdamW, Muon
where there is a section `optimizer.muon`, and a cosine schedule. So the same command gives the same `config_hash` in
every version, and the run folders of version 0.1.0 are read by the same code.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from src.bounds import PositiveOrInf
from src.errors import one_line
from src.launch.arguments import escape_references
from src.launch.suggestions import nearest
from src.models.optim.adamw import AdamW
from src.models.optim.base import OptimizerConfig
from src.models.optim.groups import GroupRule, ParameterGroups
from src.models.optim.muon import Muon
from src.models.optim.schedule import Schedule
from src.models.optim.schedules.cosine import Cosine
from src.settings.components import read_component
from src.settings.sections import read_section


@dataclasses.dataclass(frozen=True)
class OptimizerKeys:
    """Keys that every optimizer has; null asks for the protocol's value."""

    lr: float
    min_lr: float | None
    warmup_steps: int | None
    weight_decay: float
    grad_clip: PositiveOrInf
    groups: list[dict[str, Any]] | None = None


SHARED = tuple(field.name for field in dataclasses.fields(OptimizerKeys))


def read_optimizer(section: DictConfig, max_steps: int, trusted: Sequence[str]) -> OptimizerConfig:
    """Return the optimizer of a section; min_lr=null is a tenth of lr, warmup_steps=null is 4 % of the run.

    Raises:
        ValueError: a key is unknown, missing or out of its bounds.
    """
    own = [str(key) for key in section if key not in SHARED] if isinstance(section, DictConfig) else []
    keys = read_section("optimizer", section, OptimizerKeys, beside=own)
    implied = {"_target_": _path(Muon if "muon" in section else AdamW), "_partial_": True}
    plain: dict[str, Any] = OmegaConf.to_container(section, resolve=True)  # type: ignore[assignment]  # a mapping
    method = {**implied, **{key: plain[key] for key in own}}
    config = OptimizerConfig(
        lr=keys.lr,
        min_lr=keys.lr / 10 if keys.min_lr is None else keys.min_lr,
        warmup_steps=round(0.04 * max_steps) if keys.warmup_steps is None else keys.warmup_steps,
        weight_decay=keys.weight_decay,
        grad_clip=keys.grad_clip,
        method=read_component("optimizer", OmegaConf.create(escape_references(method)), trusted),
        groups=tuple(_read_rule(f"optimizer.groups.{i}", rule) for i, rule in enumerate(keys.groups or [])),
    )
    _validate_by_trial_step(config, str(method["_target_"]))
    return config


def _read_rule(name: str, rule: dict[str, Any]) -> GroupRule:
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in rule.items() if key != "pattern"}
    pattern = rule.get("pattern")
    if not isinstance(pattern, str) or not options:
        raise ValueError(f"{name} must have a pattern and an option such as lr_scale or weight_decay, got {rule}")
    for key in ("lr_scale", "weight_decay"):
        value = options.get(key, 0.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise ValueError(f"{name}.{key} must be a number of at least 0, got {value!r}")
    return GroupRule(pattern, options)


def _validate_by_trial_step(config: OptimizerConfig, target: str) -> None:
    """Build the optimizer on two small tensors and take a step, so that a bad argument fails before the run."""
    optimizer = _trial_step(config.method, config.lr, target)
    if config.weight_decay and "weight_decay" not in optimizer.defaults:
        raise ValueError(
            f"optimizer.weight_decay must be 0 with {target}, which has no weight decay, got {config.weight_decay}"
        )
    arguments = set(inspect.signature(config.method).parameters)
    for number, rule in enumerate(config.groups):
        for key in rule.options:
            if key not in ("lr_scale", *optimizer.defaults) or key == "lr":
                known = ["lr_scale", *(name for name in optimizer.defaults if name != "lr")]
                raise ValueError(
                    f"optimizer.groups.{number}.{key} is not an option of a group of {target}{nearest(key, known)}; "
                    f"options are {', '.join(known)}"
                )
        changed = {key: value for key, value in rule.options.items() if key in arguments}
        if changed:
            _trial_step(functools.partial(config.method, **changed), config.lr, target)


def _trial_step(method: Callable[..., torch.optim.Optimizer], lr: float, target: str) -> torch.optim.Optimizer:
    matrix, vector = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
    groups = ParameterGroups([{"params": [matrix, vector], "lr_scale": 1.0, "weight_decay": 0.0}])
    groups.names, groups.matrices = {matrix: "matrix", vector: "vector"}, {matrix: 1}
    matrix.grad, vector.grad = torch.zeros_like(matrix), torch.zeros_like(vector)
    try:
        optimizer = method(groups, lr=lr)
        optimizer.step()
    except (ValueError, TypeError, RuntimeError) as error:
        line = one_line(error)
        raise ValueError(line if line.startswith("optimizer.") else f"optimizer: {target}: {line}") from error
    return optimizer


def read_schedule(
    section: DictConfig | None, optimizer: OptimizerConfig, max_steps: int, trusted: Sequence[str]
) -> Schedule:
    """Return the schedule of a section; cosine where the configuration has none.

    Raises:
        ValueError: a key is unknown, missing or out of its bounds.
    """
    method = Cosine if section is None else read_component("schedule", section, trusted)
    kind = getattr(method, "func", method)
    if not issubclass(kind, Schedule):
        raise ValueError(f"schedule._target_={section and section._target_} must be a {_path(Schedule)}")
    return cast(Schedule, method(optimizer.lr, optimizer.min_lr, optimizer.warmup_steps, max_steps))


def serialize_optimizer(section: dict[str, Any], config: OptimizerConfig) -> dict[str, Any]:
    """Return the section `optimizer` as a run stores it, with resolved and validated values."""
    target = section.get("_target_")
    implied = target in (None, _path(Muon if "muon" in section else AdamW))
    stored = {key: value for key, value in section.items() if key not in ("_target_", "_partial_", "groups")}
    stored.update({key: getattr(config, key) for key in SHARED if key != "groups"})
    if implied:
        keywords: dict[str, Any] = config.method.keywords  # type: ignore[attr-defined]  # a partial
        stored.update({key: _to_plain(value) for key, value in keywords.items()})
    else:
        stored.update(_target_=target, _partial_=True)
    return {**stored, "groups": section["groups"]} if section.get("groups") else stored


def _to_plain(value: Any) -> Any:  # of an argument of an optimizer
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return list(value) if isinstance(value, tuple) else value


def serialize_schedule(section: dict[str, Any] | None) -> dict[str, Any]:
    """Return `{"schedule": <the section>}` as a run stores it; nothing for a cosine schedule."""
    return {} if section is None or section["_target_"] == _path(Cosine) else {"schedule": section}


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
