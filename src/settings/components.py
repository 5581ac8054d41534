"""Components: sections that name a class with `_target_`, built with their keys as arguments.

A configuration file may only name components of this project, of torch and of Lightning, and classes of packages that
the command line trusts; nothing else is imported or called.
"""

import functools
import importlib
import inspect
import logging
import typing
from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from omegaconf import DictConfig, OmegaConf
from torch import nn

from src.errors import one_line
from src.launch.arguments import escape_references
from src.launch.suggestions import nearest
from src.residual.base import ResidualStrategy
from src.settings.sections import check_keys, to_plain

log = logging.getLogger(__name__)

#: Keys of Hydra that a section may contain.
HYDRA_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_")
ROOMS = tuple(
    f"src.{room}"
    for room in (
        "residual",
        "norm",
        "embedding",
        "recurrence",
        "datamodules",
        "evaluation",
        "models.optim",
        "models.mlp",
    )
)

#: Modules that moved: run folders of earlier versions name the old path and keep loading.
MOVED = {
    "src.tasks.loggers": "src.callbacks.loggers",  # in 0.2.0
    "src.residual.siamesenorm": "src.residual.siamesenorm_deit",  # in 0.3.0
}
#: Modules of `callbacks` that a `_target_` may name.
OWN = ("src.callbacks.loggers", "src.callbacks.profilers")

#: Packages besides `src` that a `_target_` may name a class of, and the kinds of class: no function runs.
OTHERS = ("torch", "lightning")
OTHERS_CLASSES = (
    nn.Module,
    torch.optim.Optimizer,
    L.Callback,
    L.LightningDataModule,
    Logger,
    Profiler,
)
#: Sections of a library's own parts: callbacks are built without an argument, a profiler with its folder, an
#: optimizer with parameter groups and rate.
LIBRARY_PARTS: dict[str, type] = {
    "callbacks": L.Callback,
    "profiler": Profiler,
    "optimizer": torch.optim.Optimizer,
}


def read_component(name: str, section: DictConfig, trusted: Sequence[str]) -> Any:  # whatever the section names
    """Return what a section with a `_target_` builds, its keys validated against the constructor.

    With `_partial_: true` that is a factory, else the instance. Callbacks, profilers and optimizers of a library are
    always factories.

    Raises:
        ValueError: keys are invalid, or `_target_` is not of this project, torch, Lightning or a `trusted` package.
    """
    if not isinstance(section, DictConfig) or "_target_" not in section:
        raise ValueError(f"{name} must name an option (see --help) or a class with {name}._target_, got {section}")
    reject_untrusted(name, section, trusted)
    target = _import_target(name, str(section._target_))
    if name.partition(".")[0] in LIBRARY_PARTS and not target.__module__.startswith("src."):
        return _read_library_part(name, section, target)
    removed = getattr(target, "removed_keys", {})
    if wrong := [f"{name}.{key} {removed[key]}" for key in map(str, section) if key in removed]:
        raise ValueError("; ".join(wrong))
    section = _add_keys(section, getattr(target, "added_keys", {}))
    checked = check_keys(name, section, _read_schema(name, section, target)).items()
    values = {key: _build_nested(f"{name}.{key}", value, trusted) for key, value in checked}
    _check_hydra_keys(name, section)
    return functools.partial(target, **values) if section.get("_partial_") else target(**values)


def _read_schema(name: str, section: DictConfig, target: Any) -> dict[str, Any]:
    """Return the keys of a section and their types: the keyword-only arguments of a constructor.

    Raises:
        ValueError: a class of the user breaks the rules of a constructor, or is not a residual strategy.
    """
    is_residual = name.partition(".")[0] == "residual"
    if is_residual and inspect.isclass(target) and not issubclass(target, ResidualStrategy):
        raise ValueError(f"{name}._target_={section._target_} must be a src.residual.base.ResidualStrategy")
    parameters = inspect.signature(target, eval_str=True).parameters.values()
    constructor = f"{target.__name__}.__init__" if inspect.isclass(target) else target.__name__
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    by_position = [p.name for p in positional if p.name in section]
    if is_residual:  # the model supplies the first argument alone
        by_position += [p.name for p in positional[1:] if p.default is p.empty and p.name not in section]
    if by_position:
        raise ValueError(f"{name}._target_: {constructor} takes {', '.join(by_position)} by position; put keys after *")
    schema = {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}
    for key, annotation in schema.items():
        if annotation is inspect.Parameter.empty:
            raise ValueError(f"{name}._target_: annotate {key} of {constructor}, such as {key}: float")
    return schema


def _add_keys(section: DictConfig, added: Mapping[str, object]) -> DictConfig:
    """Return a section with the keys that its class got later, at the values that compute what it did before."""
    missing = {key: value for key, value in added.items() if key not in section}
    plain = to_plain(section)
    assert isinstance(plain, dict)  # a section is a mapping
    return OmegaConf.create({**missing, **plain}) if missing else section


def _read_library_part(name: str, section: DictConfig, target: Any) -> Callable[..., Any]:
    """Return a factory of a library's part; the names of its arguments are checked, and their types if they are plain."""
    root = name.partition(".")[0]
    kind = LIBRARY_PARTS[root]
    if inspect.isclass(target) and not issubclass(target, kind):
        raise ValueError(f"{name}._target_={section._target_} must be a {kind.__module__}.{kind.__name__}")
    parameters = inspect.signature(target).parameters.values()
    named = {p.name: p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    if root == "optimizer":  # training supplies the first argument, the groups, and what they hold
        named = {key: p for key, p in list(named.items())[1:] if key not in ("lr", "weight_decay")}
    optional = [key for key, p in named.items() if p.default is not p.empty or key == "dirpath"]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        optional += [key for key in map(str, section) if key not in named]
    for key in map(str, section):
        if root == "optimizer" and key not in (*named, *optional, *HYDRA_KEYS):
            raise ValueError(
                f"{name}.{key} is not an argument of {section._target_}{nearest(key, list(named))}; "
                "optimizer=torch has the keys of every optimizer and no other"
            )
    schema = dict.fromkeys([*named, *optional], Any) | {key: _read_plain_type(p) for key, p in named.items()}
    checked = check_keys(name, section, schema, optional=optional)
    values = {key: _build_nested(f"{name}.{key}", value, ()) for key, value in checked.items()}
    return functools.partial(target, **values)


def _read_plain_type(parameter: inspect.Parameter) -> Any:  # a type, or Any itself
    """Return the annotation of an argument if it consists of plain types, else Any: the library checks the others."""
    parts = typing.get_args(parameter.annotation) or (parameter.annotation,)
    is_plain = all(part in (bool, int, float, str, NoneType) for part in parts)
    return parameter.annotation if is_plain else Any


def _build_nested(name: str, value: Any, trusted: Sequence[str]) -> Any:  # of whatever type the constructor asks for
    """Return a value with every nested `_target_` built; Hydra would take a text with `${` for a reference."""
    if isinstance(value, dict):
        if value.get("_partial_"):  # a part of a composition: validated as a component of its own
            return read_component(name, OmegaConf.create(escape_references(value)), trusted)
        items = {key: _build_nested(f"{name}.{key}", item, trusted) for key, item in value.items()}
        return instantiate(items) if "_target_" in items else items
    return [_build_nested(name, item, trusted) for item in value] if isinstance(value, list) else value


def _check_hydra_keys(name: str, section: DictConfig) -> None:
    found = {key: section[key] for key in HYDRA_KEYS if key in section}
    partial = name != "evaluation"
    if found.get("_partial_", False) is not partial:
        wanted = "true, since the task supplies an argument" if partial else "false"
        raise ValueError(f"{name}._partial_ must be {wanted}, got {found.get('_partial_')!r}")
    if found.get("_convert_", "none") not in ("none", "partial", "object", "all"):
        raise ValueError(f"{name}._convert_ must be none, partial, object or all, got {found['_convert_']!r}")
    if not isinstance(found.get("_recursive_", True), bool):
        raise ValueError(f"{name}._recursive_ must be true or false, got {found['_recursive_']!r}")


def reject_untrusted(name: str, section: object, trusted: Sequence[str]) -> None:
    """Check every `_target_` in a section, before anything of it is imported.

    Raises:
        ValueError: a `_target_` that a configuration file may not name.
    """
    section = to_plain(section)
    if isinstance(section, list):
        for number, item in enumerate(section):
            reject_untrusted(f"{name}.{number}", item, trusted)
    if not isinstance(section, dict):
        return
    for key, value in section.items():
        if str(key).startswith("_") and key not in HYDRA_KEYS:
            raise ValueError(f"{name}.{key} is not used here; name the arguments")
        if key == "_target_":
            _reject_target(name, str(value), trusted)
        else:
            reject_untrusted(f"{name}.{key}", value, trusted)


def _reject_target(name: str, path: str, trusted: Sequence[str]) -> None:
    path = _follow_move(path)
    if any(path.startswith(f"{package}.") for package in (*trusted, *OWN)):
        return
    package = path.partition(".")[0]
    if not any(path.startswith(f"{known}.") for known in (*ROOMS, *OTHERS)):
        raise ValueError(
            f"{name}._target_={path} is not a component of this project, of torch or of lightning; "
            f"if you trust it, say so on the command line: trusted_targets=[{package}]"
        )
    found = _import_target(name, path)
    if not inspect.isclass(found) or (package in OTHERS and not issubclass(found, OTHERS_CLASSES)):
        raise ValueError(
            f"{name}._target_={path} is not a class of a component; a configuration may name no other code"
        )


def _follow_move(path: str) -> str:
    """Return the present path of a class in a module that moved, else the path itself."""
    module, _, attribute = path.rpartition(".")
    return f"{MOVED[module]}.{attribute}" if module in MOVED else path


def _import_target(name: str, path: str) -> Any:  # whatever the path names
    module, _, attribute = (now := _follow_move(path)).rpartition(".")
    if now != path:
        log.warning("%s._target_=%s moved; give %s", name, path, now)
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise ValueError(
            f"{name}._target_={path} cannot be imported ({one_line(error)}); "
            "is the name right, and its folder on PYTHONPATH?"
        ) from error
