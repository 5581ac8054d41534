"""Sections of a configuration: every key is known, present, of its type and within its bounds.

The schema of a section is the signature of what it configures: the fields of a dataclass, or the keyword-only
arguments of a constructor.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from src.bounds import validate
from src.errors import one_line
from src.launch.suggestions import unknown_key

T = TypeVar("T")


def read_section(name: str, section: DictConfig, schema: type[T], beside: Sequence[str] = ()) -> T:
    """Return a section as an instance of a dataclass; keys in `beside` are read elsewhere.

    A field with a default may be missing: run folders from before the key existed do not have it.

    Raises:
        ValueError: keys are unknown, missing or invalid; one sentence each.
    """
    fields = dataclasses.fields(schema)  # type: ignore[arg-type]  # schema is a dataclass
    optional = [f.name for f in fields if f.default is not dataclasses.MISSING]
    return schema(**check_keys(name, section, {f.name: f.type for f in fields}, beside, optional))


def check_keys(
    name: str,
    section: DictConfig,
    fields: Mapping[str, Any],
    beside: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the values of a section, each validated against the annotation of its field.

    Raises:
        ValueError: keys are unknown, missing or invalid; one sentence each.
    """
    if not isinstance(section, DictConfig):
        raise ValueError(f"{name} must be a section of keys, got {section!r}")
    values: dict[str, Any] = {}
    errors: list[str] = []
    keys = [str(key) for key in section if not str(key).startswith("_") and key not in beside]
    for key in keys:
        if key not in fields:
            errors.append(unknown_key(f"{name}.{key}"))
            continue
        if OmegaConf.is_missing(section, key):  # ??? in the file, for a key that only the user can give
            errors.append(f"{name}.{key} is missing; give {name}.{key}=<value>")
            continue
        try:
            if dataclasses.is_dataclass(fields[key]):
                values[key] = read_section(f"{name}.{key}", section[key], fields[key])
            else:
                values[key] = validate(f"{name}.{key}", to_plain(section[key]), fields[key])
        except ValueError as error:
            errors.append(str(error))
    missing = [key for key in fields if key not in keys and key not in optional]
    errors += [f"{name}.{key} is missing; give +{name}.{key}=<value>" for key in missing]  # Hydra adds by a plus
    if errors:
        raise ValueError("; ".join(errors))
    return values


def to_plain(value: object) -> object:
    """Return a node of a configuration as plain dicts and lists, with its references resolved."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def find_missing_values(config: DictConfig | ListConfig, prefix: str = "") -> list[str]:
    """Return one sentence for each key without a value (`???`), or with a reference that does not resolve."""
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
                found += find_missing_values(value, f"{name}.")
    return found
