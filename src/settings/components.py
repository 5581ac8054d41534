"""A configuration section against a schema: every key known, there, and of its type.

The schema of a section is the signature of what it configures: a dataclass's fields, or a constructor's
keyword-only arguments.
"""

import dataclasses
import functools
import importlib
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from torch import nn

from src.bounds import validate
from src.errors import one_line
from src.launch.suggestions import nearest, unknown_key

T = TypeVar("T")

log = logging.getLogger(__name__)

#: What a section may say to Hydra.
HYDRA_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_")
ROOMS = tuple(
    f"src.{room}"
    for room in ("residual", "norm", "embedding", "recurrence", "datamodules", "evaluation", "models.optim")
)

#: Modules that moved: run folders of version 0.1.0 name the old path, which works for one version.
MOVED = {"src.tasks.loggers": "src.callbacks.loggers"}
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


def read_section(name: str, section: DictConfig, schema: type[T], beside: Sequence[str] = ()) -> T:
    """A section as an instance of a dataclass, every key checked for name and type but those `beside` it.

    A field with a default may be missing: runs of before there was such a key have none.
    """
    known = dataclasses.fields(schema)  # type: ignore[arg-type]  # schema is a dataclass
    younger = [f.name for f in known if f.default is not dataclasses.MISSING]
    return schema(**_checked(name, section, {f.name: f.type for f in known}, beside, younger))


def _checked(
    name: str,
    section: DictConfig,
    fields: Mapping[str, Any],
    beside: Sequence[str] = (),
    younger: Sequence[str] = (),
) -> dict[str, Any]:
    if not isinstance(section, DictConfig):
        raise ValueError(f"{name} must be a section of keys, got {section!r}")
    values: dict[str, Any] = {}
    for key in map(str, section):
        if key.startswith("_") or key in beside:
            continue
        if key not in fields:
            raise ValueError(unknown_key(f"{name}.{key}"))
        value = section[key]
        if dataclasses.is_dataclass(fields[key]):
            values[key] = read_section(f"{name}.{key}", value, fields[key])
            continue
        plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        values[key] = validate(f"{name}.{key}", plain, fields[key])
    missing = [key for key in fields if key not in values and key not in younger]
    if missing:
        raise ValueError(f"{name}.{missing[0]} is missing; give {name}.{missing[0]}=<value>")
    return values


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
    if name.partition(".")[0] in LIBRARY_PARTS and not target.__module__.startswith("src.models."):
        return _read_library_part(name, section, target)
    parameters = inspect.signature(target, eval_str=True).parameters.values()
    schema = {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}
    values = {key: _made(value) for key, value in _checked(name, section, schema).items()}
    _check_hydra_keys(name, section)
    return functools.partial(target, **values) if section.get("_partial_") else target(**values)


def _read_library_part(name: str, section: DictConfig, target: Any) -> Callable[..., Any]:
    """Return a factory of a library's part; the names of its arguments are checked, their types are its own."""
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
                f"{name}.{key} is no argument of {section._target_}{nearest(key, list(named))}; "
                "optimizer=torch has the keys of every optimizer and no other"
            )
    checked = _checked(name, section, dict.fromkeys([*named, *optional], Any), younger=optional)
    return functools.partial(target, **{key: _made(value) for key, value in checked.items()})


def _made(value: Any) -> Any:  # of whatever type the constructor asks for
    """A value, and what it names with a `_target_` of its own; Hydra would take a text with `${` for a reference."""
    if isinstance(value, dict):
        made = {key: _made(item) for key, item in value.items()}
        return instantiate(made) if "_target_" in made else made
    return [_made(item) for item in value] if isinstance(value, list) else value


def _check_hydra_keys(name: str, section: DictConfig) -> None:
    said = {key: section[key] for key in HYDRA_KEYS if key in section}
    partial = name != "evaluation"
    if said.get("_partial_", False) is not partial:
        wanted = "true, since the task supplies an argument" if partial else "false"
        raise ValueError(f"{name}._partial_ must be {wanted}, got {said.get('_partial_')!r}")
    if said.get("_convert_", "none") not in ("none", "partial", "object", "all"):
        raise ValueError(f"{name}._convert_ must be none, partial, object or all, got {said['_convert_']!r}")
    if not isinstance(said.get("_recursive_", True), bool):
        raise ValueError(f"{name}._recursive_ must be true or false, got {said['_recursive_']!r}")


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
    if any(path.startswith(f"{package}.") for package in (*trusted, *OWN, *MOVED)):
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
    if module in MOVED:
        log.warning("%s._target_=%s moved; give %s.%s", name, path, MOVED[module], attribute)
        module = MOVED[module]
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise ValueError(
            f"{name}._target_={path} cannot be imported ({one_line(error)}); "
            "is the name right, and its folder on PYTHONPATH?"
        ) from error


def without_value(config: DictConfig | ListConfig, prefix: str = "") -> list[str]:
    """One sentence for each key that a reader would trip over: no value yet (`???`), or a reference to nothing."""
    found = []
    node: Any = config  # indexed by what it iterates over
    for key in range(len(node)) if isinstance(node, ListConfig) else list(node):
        name = f"{prefix}{key}"
        if isinstance(node, DictConfig) and not isinstance(key, str):
            found.append(f"{name}: a key must be text, got {key!r} ({type(key).__name__})")
            continue
        try:
            value = node[key]
        except MissingMandatoryValue:
            found.append(f"{name} has no value; give {name}=<value>")
        except OmegaConfBaseException as error:
            found.append(f"{name} refers to nothing: {one_line(error).split(' full_key:')[0]}")
        else:
            if isinstance(value, DictConfig | ListConfig):
                found += without_value(value, f"{name}.")
    return found
