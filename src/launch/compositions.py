"""Compositions of residual strategies by the names of their options.

    residual=lns+resformer                    an option like any other: on command lines, in sweeps and defaults lists
    residual=[lns,resformer]                  the same on a command line
    residual=prores residual.base=attnres     the same as prores+attnres

`Compositions` is a source of Hydra's options, as a folder of files is one. Its option `residual/a+b` has the option of
each part at `residual.parts.<part>`, so parts compose by Hydra's rules and the run is named `a+b`. A key of a part is
`residual.parts.lns.<key>`; `residual.<key>` is the same on a command line if one part alone has it.
"""

import itertools
import re

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from src.errors import UserError
from src.launch.suggestions import keys_of_option

GROUP = "residual"
COMPOSITION = re.compile(rf"{GROUP}/(\w+(?:\+\w+)+)(?:\.yaml)?")
#: Keys of the section of a composition itself.
OWN_KEYS = ("parts", "base", "_target_", "_partial_")


class Compositions(ConfigSource):
    """Source of the options `residual/<part>+<part>...`."""

    @staticmethod
    def scheme() -> str:
        return "compositions"

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path in ("", GROUP)

    def is_config(self, config_path: str) -> bool:
        return COMPOSITION.fullmatch(config_path) is not None

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return []  # there are more than a list is good for

    def load_config(self, config_path: str) -> ConfigResult:
        found = COMPOSITION.fullmatch(config_path)
        assert found is not None  # Hydra asks `is_config` first
        parts = found[1].split("+")
        if len({*parts}) < len(parts):
            raise ConfigCompositionException(f"{GROUP}={found[1]} names a part twice; name each part once")
        section = {
            "defaults": [*(f"{part}@parts.{part}" for part in parts), "_self_"],
            "_target_": "src.residual.composed.Composed",
            "_partial_": True,
        }
        return ConfigResult(self.provider, self.full_path(), OmegaConf.create(section), {"package": None})


class CompositionsPath(SearchPathPlugin):
    """Adds the compositions to the sources of options."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("reslab", f"{Compositions.scheme()}://")


def register_compositions() -> None:
    """Make compositions known to Hydra; before it composes the first configuration."""
    for plugin in (Compositions, CompositionsPath):
        Plugins.instance().register(plugin)


def name_compositions(arguments: list[str]) -> list[str]:
    """Return a command line that names compositions as Hydra knows them: `a+b` for `[a,b]` and for a with a base b.

    Raises:
        UserError: a key belongs to several parts, or a base has no strategy to go under.
    """
    arguments = [re.sub(r"\[([^\[\]]+)\]", _join, a) if a.startswith(f"{GROUP}=") else a for a in arguments]
    at = [i for i, argument in enumerate(arguments) if argument.startswith(f"{GROUP}=")]
    bases = [i for i, argument in enumerate(arguments) if argument.lstrip("+").startswith(f"{GROUP}.base=")]
    if not at:
        if bases:
            raise UserError(f"{GROUP}.base needs a strategy beside it: {GROUP}=<name> {arguments[bases[-1]]}")
        return arguments
    chosen = arguments[at[-1]].partition("=")[2]
    if bases:
        base = re.sub(r"\[([^\[\]]+)\]", _join, arguments[bases[-1]].partition("=")[2])
        chosen = ",".join(f"{a}+{b}" for a, b in itertools.product(chosen.split(","), base.split(",")))
        arguments[at[-1]] = f"{GROUP}={chosen}"
        arguments = [argument for i, argument in enumerate(arguments) if i not in bases]
    if COMPOSITION.fullmatch(f"{GROUP}/{chosen}"):
        return [_address_part(argument, chosen.split("+")) for argument in arguments]
    return arguments


def _join(parts: re.Match[str]) -> str:
    return "+".join(part.strip().strip("'\"") for part in parts[1].split(","))


def _address_part(argument: str, parts: list[str]) -> str:
    """Return an override of `residual.<key>` as one of the part that has the key."""
    found = re.fullmatch(rf"([+~]*){GROUP}\.([\w.]+)(.*)", argument)
    if found is None or found[2].partition(".")[0] in OWN_KEYS:
        return argument
    owners = [part for part in parts if found[2] in keys_of_option(GROUP, part)]
    if len(owners) > 1:
        ways = " or ".join(f"{GROUP}.parts.{owner}.{found[2]}{found[3]}" for owner in owners)
        raise UserError(f"{argument} is a key of {' and '.join(owners)}; give {ways}")
    return f"{found[1]}{GROUP}.parts.{owners[0]}.{found[2]}{found[3]}" if owners else argument
