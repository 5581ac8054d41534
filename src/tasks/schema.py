"""A configuration section against a schema: every key known, there, and of its type.

The schema of a section is the signature of what it configures: a dataclass's fields, or a constructor's
keyword-only arguments.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar, Union, get_args, get_origin

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from src.mistakes import one_line
from src.overrides import unknown_key

T = TypeVar("T")


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


def read_component(name: str, section: DictConfig) -> Any:  # whatever the section names
    """What a section with a `_target_` makes, its keys checked against the constructor's."""
    if not isinstance(section, DictConfig) or "_target_" not in section:
        raise ValueError(
            f"{name} must name an option (see --help) or a class with {name}._target_, got {section}"
        )
    target = _imported(name, str(section._target_))
    parameters = inspect.signature(target, eval_str=True).parameters.values()
    schema = {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}
    _checked(name, section, schema)
    return instantiate(section)


def _imported(name: str, path: str) -> Any:  # whatever the path names
    module, _, attribute = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise ValueError(
            f"{name}._target_={path} cannot be imported ({one_line(error)}); "
            "is the name right, and its folder on PYTHONPATH?"
        ) from error
