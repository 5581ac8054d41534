"""Error messages of the command line: what is wrong, and the nearest name that exists."""

import difflib
import re
import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from hydra.errors import OverrideParseException
from omegaconf import OmegaConf

from src.errors import one_line
from src.files import CONF

#: Most options that a message lists.
LISTED = 20


def explain(error: BaseException, arguments: Sequence[str] = ()) -> str:
    """Return a configuration error in one line, with the nearest name where one is likely meant.

    Args:
        error: error of Hydra or OmegaConf, or of the user.
        arguments: command line that the error is of.
    """
    text = str(error)
    if found := re.search(r"Could not (?:find|load) '([\w./-]+)/([^'/]+)'", text):
        group, option = found.groups()
        if (CONF / group).is_dir():
            return unknown_option(group, option)
    if found := re.search(r"Could not override '([^']+)'", text):
        key = found.group(1)
        own = _unknown_key_of_own_class(key, arguments) or _unknown_key_of_task(key, arguments)
        return own or unknown_key(key)
    if found := re.search(r"Ambiguous value for argument '([^'=]+)=([^']+)'", text):
        key, values = found.groups()
        line = f"{key}={values} has several values; add -m to run each of them, or give {key}=[{values}] for a list"
        quoted = shlex.quote(f'{key}="{values}"')
        return line if (CONF / key).is_dir() else f"{line}; for one text with a comma, quote it inside: {quoted}"
    if isinstance(error, OverrideParseException) and (unparsed := _explain_override(error.override)):
        return unparsed
    if found := re.search(r"full_key: (\S+)", text):
        return f"{found.group(1)}: {one_line(error).split(' full_key:')[0]}"
    return one_line(error).split(" See https://")[0]


def _explain_override(override: str) -> str | None:
    """Return the message for an argument that Hydra does not parse; None if its key is not a key."""
    key, is_pair, value = override.partition("=")
    if not is_pair:
        return f"'{override}' must be key=value without spaces around =; see --help"
    if not re.fullmatch(r"[+~]*[\w./@]+", key):
        return None
    if value.startswith(("[", "{", "'", '"')):
        example = shlex.quote(f'{key}=["a=b"]')
        return (
            f"{override} cannot be read; check its brackets and quotes, and quote each text in it that has a character "
            f"which Hydra reads as syntax, as in {example}"
        )
    escaped = value.replace('"', '\\"')
    quoted = shlex.quote(f'{key}="{escaped}"')
    return f"{override} has a character that Hydra reads as syntax; quote the value inside: {quoted}"


def unknown_option(group: str, option: str) -> str:
    """Return the message for an option that does not exist; many options are counted, not listed."""
    if (group, option) == ("logger", "tensorboard"):
        return "logger=tensorboard is not an option: TensorBoard is always on; leave it out, or name a further logger"
    known = options(group)
    shown = ", ".join(known) if len(known) <= LISTED else f"{len(known)}, see docs/strategies.md"
    return f"{group}={option} is not an option{_nearest_option(group, option)}; options: {shown}"


def unknown_key(key: str) -> str:
    """Return the message for a key that does not exist, or exists under options other than the chosen ones."""
    group, _, rest = key.partition(".")
    if part := re.fullmatch(r"parts\.(\w+)\.(.+)", rest):  # of a composition
        known = [name for name in keys_of_option(group, part[1]) if "." not in name]
        if part[2] in known:
            return f"{key}: {part[1]} is not a part of this {group}; give {group}=[{part[1]},...] or {group}.{part[2]}"
        return f"{key} is not a key of {group}={part[1]}{nearest(part[2], known)}; keys: {', '.join(known) or 'none'}"
    having = [name for name in options(group) if rest and rest in keys_of_option(group, name)]
    if having:
        plus = f", or give +{key}=<value> with model=from_checkpoint" if group == "model" else ""
        return f"{key} is not a key of this configuration but of {group}={' or '.join(having)}; choose that first{plus}"
    if key in all_keys():  # of a file at the top level
        files = [p for g in ("task", "scale", "experiment") for p in (CONF / g).glob("*.yaml")]
        named = [f"{p.parent.name}={p.stem}" for p in files if key in _dotted_keys(_load(p))]
        return f"{key} is not a key of this configuration but of {' or '.join(sorted(named))}; choose that first"
    in_groups = sorted((known for known in all_keys() if known.endswith(f".{key}")), key=lambda k: (k.count("."), k))
    near = f", did you mean {' or '.join(in_groups[:3])}?" if in_groups else nearest(key, all_keys())
    return f"{key} is not a key{near}; `python run.py --cfg job` shows them all"


def _unknown_key_of_own_class(key: str, arguments: Sequence[str]) -> str | None:
    """Return the message for a new key of a section whose class the command line names; None for another section."""
    group = key.partition(".")[0]
    if not any(argument.lstrip("+").startswith(f"{group}._target_=") for argument in arguments):
        return None
    typed = next((argument for argument in arguments if argument.startswith(f"{key}=")), f"{key}=<value>")
    return f"{key} is not a key of this configuration; a key of your own class needs a plus: +{typed}"


def _unknown_key_of_task(key: str, arguments: Sequence[str]) -> str | None:
    """Return the message for a key that is similar to one of the task that the command line names; None for another."""
    tasks = [argument.partition("=")[2] for argument in arguments if argument.startswith("task=")]
    near = nearest(key, keys_of_option("task", tasks[-1])) if tasks else ""
    return f"{key} is not a key of task={tasks[-1]}{near}" if near else None


def nearest(name: str, known: list[str]) -> str:
    """Return ", did you mean <name>?" for the most similar known name; empty where none is similar."""
    near = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {near[0]}?" if near else ""


def _nearest_option(group: str, name: str) -> str:
    """Return ", did you mean <option>?" for an option with this name but for its spelling, a synonym, or a similar name.

    An option's file states its synonyms, names that papers and other libraries use: `# also: <name>, <name>`.
    """
    names = {_spelling(option): option for option in options(group)}
    for option in options(group):
        text = (CONF / group / f"{option}.yaml").read_text(encoding="utf-8")
        for line in re.findall(r"^# also: (.*)$", text, re.MULTILINE):
            names |= {_spelling(synonym): option for synonym in line.split(",") if _spelling(synonym) not in names}
    near = [_spelling(name)] if _spelling(name) in names else difflib.get_close_matches(_spelling(name), names, n=1)
    return f", did you mean {names[near[0]]}?" if near else ""


def _spelling(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def options(group: str) -> list[str]:
    """Return the options of a config group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def keys_of_option(group: str, name: str) -> list[str]:
    """Return the dotted keys of an option; none if there is no such option."""
    path = CONF / group / f"{name}.yaml"
    return _dotted_keys(_load(path)) if path.is_file() else []


@cache
def all_keys() -> list[str]:
    """Return every dotted key of the shipped configurations, and the groups themselves."""
    known: set[str] = set()
    for path in CONF.rglob("*.yaml"):
        group = path.parent.relative_to(CONF).as_posix()
        if not group.startswith("hydra"):
            prefix = "" if group in (".", "task", "experiment", "scale") else f"{group}."
            if group in ("callbacks", "logger"):  # several options at once, each under its name
                prefix += f"{path.stem}."
            known.update({group, *(prefix + key for key in _dotted_keys(_load(path)))})
    return sorted(known - {"."})


def _load(path: Path) -> object:
    return OmegaConf.to_container(OmegaConf.load(path))


def _dotted_keys(node: object, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return []
    found = []
    for key, value in node.items():
        if key not in ("defaults", "hydra") and not str(key).startswith("_"):
            found += [f"{prefix}{key}", *_dotted_keys(value, f"{prefix}{key}.")]
    return found
