"""A configuration section against a schema: every key known, there, and of its type.

The schema of a section is the signature of what it configures: a dataclass's fields, or a constructor's
keyword-only arguments.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, Union, get_args, get_origin

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch import nn

from src.mistakes import one_line
from src.overrides import unknown_key

T = TypeVar("T")

#: What a section may say to Hydra.
HYDRA_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_")
ROOMS = tuple(
    f"src.{room}" for room in ("residual", "norm", "embedding", "recurrence", "datamodules", "evaluation")
)

#: Packages besides `src` that a `_target_` may name a class of, and the kinds of class: no function runs.
OTHERS = ("torch", "lightning")
OTHERS_CLASSES = (
    nn.Module,
    torch.optim.Optimizer,
    L.Callback,
    L.LightningDataModule,
    Logger,
)


def read_section(name: str, section: DictConfig, schema: type[T]) -> T:
    """A section as an instance of a dataclass, every key checked for name and type."""
    fields = {f.name: f.type for f in dataclasses.fields(schema)}  # type: ignore[arg-type]  # schema is a dataclass
    return schema(**_checked(name, section, fields))


def _checked(name: str, section: DictConfig, fields: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key in map(str, section):
        if key.startswith("_"):
            continue
        if key not in fields:
            raise ValueError(unknown_key(f"{name}.{key}"))
        value = section[key]
        plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        values[key] = _typed(f"{name}.{key}", plain, fields[key])
    missing = [key for key in fields if key not in values]
    if missing:
        raise ValueError(f"{name}.{missing[0]} is missing; give {name}.{missing[0]}=<value>")
    return values


def _typed(key: str, value: object, annotation: Any) -> Any:  # annotations are not values of one type
    kinds = get_args(annotation) if get_origin(annotation) in (Union, type(int | str)) else (annotation,)
    for kind in kinds:
        fits, fitted = _fit(value, kind)
        if fits:
            return fitted
    names = (str(k) if get_origin(k) else getattr(k, "__name__", str(k)) for k in kinds)
    wanted = " or ".join(names).replace("NoneType", "null")
    raise ValueError(f"{key} must be {wanted}, got {value!r} ({type(value).__name__})")


def _fit(value: object, kind: Any) -> tuple[bool, object]:  # see _typed
    origin = get_origin(kind) or kind
    if origin is tuple and isinstance(value, list):
        wanted = get_args(kind)
        if len(value) != len(wanted):
            return False, None
        fits = [_fit(item, k) for item, k in zip(value, wanted, strict=True)]
        return all(ok for ok, _ in fits), tuple(item for _, item in fits)
    if origin is list and isinstance(value, list):
        fits = [_fit(item, k) for item in value for k in get_args(kind)]
        return all(ok for ok, _ in fits), [item for _, item in fits]
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        return True, float(value)
    if origin is int and isinstance(value, bool):
        return False, None
    if not isinstance(origin, type):
        return True, value
    return isinstance(value, origin), value


def read_component(name: str, section: DictConfig, trusted: Sequence[str]) -> Any:  # whatever the section names
    """What a section with a `_target_` makes, its keys checked against the constructor's.

    Raises:
        ValueError: it names what is not this project's, torch's, Lightning's or of a `trusted` package.
    """
    if not isinstance(section, DictConfig) or "_target_" not in section:
        raise ValueError(
            f"{name} must name an option (see --help) or a class with {name}._target_, got {section}"
        )
    refuse_strangers(name, section, trusted)
    target = _imported(name, str(section._target_))
    parameters = inspect.signature(target, eval_str=True).parameters.values()
    schema = {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}
    _checked(name, section, schema)
    return instantiate(section)


def refuse_strangers(name: str, section: object, trusted: Sequence[str]) -> None:
    """Look through a section for every `_target_`, before anything of it is imported.

    Raises:
        ValueError: one that a configuration file may not name.
    """
    if OmegaConf.is_config(section):
        section = OmegaConf.to_container(section, resolve=True)
    if isinstance(section, list):
        for number, item in enumerate(section):
            refuse_strangers(f"{name}.{number}", item, trusted)
    if not isinstance(section, dict):
        return
    for key, value in section.items():
        if str(key).startswith("_") and key not in HYDRA_KEYS:
            raise ValueError(f"{name}.{key} is not used here; name the arguments")
        if key == "_target_":
            _refuse_stranger(name, str(value), trusted)
        else:
            refuse_strangers(f"{name}.{key}", value, trusted)


def _refuse_stranger(name: str, path: str, trusted: Sequence[str]) -> None:
    if any(path.startswith(f"{package}.") for package in trusted) or path.startswith("src.tasks.loggers."):
        return
    package = path.partition(".")[0]
    if not any(path.startswith(f"{known}.") for known in (*ROOMS, *OTHERS)):
        raise ValueError(
            f"{name}._target_={path} is no component of this project, of torch or of lightning; "
            f"if you trust it, say so on the command line: trusted_targets=[{package}]"
        )
    found = _imported(name, path)
    if not inspect.isclass(found) or (package in OTHERS and not issubclass(found, OTHERS_CLASSES)):
        raise ValueError(
            f"{name}._target_={path} is no class of a component; a configuration may name no other code"
        )


def _imported(name: str, path: str) -> Any:  # whatever the path names
    module, _, attribute = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise ValueError(
            f"{name}._target_={path} cannot be imported ({one_line(error)}); "
            "is the name right, and its folder on PYTHONPATH?"
        ) from error
