"""Command line as people type it: flags, `~`, special characters, names of runs; Hydra reads what is returned.

python run.py model=tiny -m seed=1,2           ->  -m model=tiny seed=1,2
python run.py data.path=~/shards               ->  data.path=/home/me/shards
python run.py data.path=/data/lr=1e-3          ->  data.path='/data/lr=1e-3'
python run.py residual._target_=a.b.Mine       ->  residual._target_=a.b.Mine name=Mine
python run.py model=from_checkpoint init_from=exported   ->  ... name=<name of the exported run>
python run.py name=../../x                     ->  an error: a name is one part of a path
python run.py --residual=vanilla               ->  an error: overrides have no dashes
"""

import os
import re
from pathlib import Path, PurePath
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

from src.errors import UserError
from src.files import read_object
from src.launch.suggestions import keys_of_option

#: Flags of Hydra that take the next argument as their value.
WITH_VALUE = {
    *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
    "--experimental-rerun",
}
#: Flags of Hydra by their long names, which may be shortened.
LONG_FLAGS = (
    *("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun"),
    *("--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun", "--info"),
)
#: Keys of paths and texts, whose values may have characters that Hydra reads as syntax.
TEXT_KEY = re.compile(
    r"name|run|runs|hf|output|checkpoint|init_from|data\.path|hydra\.(?:run|sweep)\.dir|samples?\.prompt|sample\.file|"
    r"(?:prepare|tokenizer)\.(?:source|output|text_field|tokens_field|tokenizer)"
)
#: `~/` or `~user/` where a value or an item begins.
HOME = re.compile(r"""(?<=[=,\[{:\s'"])~[\w.-]*(?=/)""")


def tidy_arguments(arguments: list[str]) -> list[str]:
    """Return a command line with flags first, `~` expanded, and paths and texts quoted where Hydra needs it.

    Raises:
        UserError: `name` is not one part of a path, or an override has dashes.
    """
    _reject_dashes(arguments)
    arguments = [_quote_text(_expand(arg)) if "=" in arg else arg for arg in _flags_first(arguments)]
    arguments = _name_run(arguments)
    for argument in arguments:
        key, _, value = argument.lstrip("+").partition("=")
        if key == "name" and "${" not in value:
            for name in value.strip("[]").split(","):
                check_name(name.strip().strip("'\""))
    return arguments


def check_name(name: str) -> None:
    """Reject a name of a run that would leave the folder that the run is to be in.

    Raises:
        UserError: the name is not one part of a path.
    """
    if name in (".", "..") or "/" in name or "\\" in name:
        raise UserError(
            f"name={name} must be one part of a path, without / and \\; a run goes elsewhere by hydra.run.dir=<folder>"
        )


def expand_home(config: DictConfig | ListConfig) -> None:
    """Expand `~/` at the start of every text of a configuration, such as a path in an experiment's file."""
    keys: Any = config.keys() if isinstance(config, DictConfig) else range(len(config))
    for key in keys:
        if OmegaConf.is_missing(config, key) or OmegaConf.is_interpolation(config, key):
            continue
        value = config[key]
        if isinstance(value, DictConfig | ListConfig):
            expand_home(value)
        elif isinstance(value, str) and value.startswith("~") and "/" in value:
            config[key] = os.path.expanduser(value)


def _flags_first(arguments: list[str]) -> list[str]:
    """Return the arguments with all flags before the overrides, which argparse takes as one block."""
    flags: list[str] = []
    rest: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        if argument.startswith("-"):
            flags.append(argument)
            flags += [value for value in [next(waiting, None)] if value is not None] if argument in WITH_VALUE else []
        else:
            rest.append(argument)
    return [*flags, *rest]


def _name_run(arguments: list[str]) -> list[str]:
    """Return a command line that names a run after the strategy that no option of `residual` names, if nothing else does.

    That is the class of `residual._target_`, or the run whose export `model=from_checkpoint` continues. The option that
    they replace, vanilla mostly, would name it otherwise.
    """
    given = dict(argument.lstrip("+").partition("=")[::2] for argument in arguments)
    task = given.get("task", "train")
    if task not in ("train", "check") or {"name", "resume", "from_run", "branch_from"} & given.keys():
        return arguments
    if any("name" in keys_of_option("experiment", e) for e in given.get("experiment", "").strip("[]").split(",")):
        return arguments
    target, name = given.get("residual._target_"), None
    if target is not None:
        name = target.rpartition(".")[2] if re.fullmatch(r"[\w.]+", target) else "${residual._target_}"  # of a sweep
    elif given.get("model") == "from_checkpoint":
        name = _read_exported_name(Path(given.get("init_from", "").strip("'\"")))
    prefix = "check-" if task == "check" else ""
    return arguments if name is None else [*arguments, _quote_text(f"name={prefix}{name}")]


def _read_exported_name(folder: Path) -> str | None:
    """Return the name of the run whose export a folder is; None for another model, or none, which is an error later."""
    try:
        run = read_object(folder / "config.json").get("run")
    except (OSError, ValueError):
        return None
    name = run.get("name") if isinstance(run, dict) else None
    return name if isinstance(name, str) else None


def _reject_dashes(arguments: list[str]) -> None:
    for i, argument in enumerate(arguments):
        flag, is_pair, value = argument.partition("=")
        if not flag.startswith("--") or any(known.startswith(flag) for known in LONG_FLAGS):
            continue
        after = arguments[i + 1] if i + 1 < len(arguments) else ""
        if not is_pair:
            value = after if after and "=" not in after and not after.startswith("-") else "<value>"
        raise UserError(f"{flag} is not a flag; overrides have no dashes: {flag.lstrip('-')}={value}")


def _quote_text(argument: str) -> str:
    """Return an override with its value quoted if it is a path or a text that Hydra does not parse."""
    key, _, value = argument.partition("=")
    if not TEXT_KEY.fullmatch(key.lstrip("+")) or value.startswith(("[", "{", "'", '"')):
        return argument
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        # Hydra takes a backslash for an escape only before a quote.
        escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
        return f"{key}='{escaped}'"
    return argument


def _expand(argument: str) -> str:
    key, _, value = argument.partition("=")
    expanded = HOME.sub(lambda found: os.path.expanduser(found[0]), f"={value}")[1:]
    is_plain = re.fullmatch(r"[\w/.:@%+-]*", str(PurePath(os.path.expanduser("~"))))
    if expanded != value and not is_plain and value.startswith("~"):  # a home folder that Hydra would not parse
        expanded = "'" + expanded.replace("'", "\\'") + "'"
    return f"{key}={expanded}"
