"""Composition of configurations beside the job's own, for tasks that compare several of them."""

from collections.abc import Sequence

from hydra import compose
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from src.errors import UserError
from src.launch.compositions import name_compositions
from src.launch.suggestions import explain


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Compose conf/config.yaml with `overrides`; the last override of a key counts.

    Raises:
        UserError: an override names no option or no key, or does not parse.
    """
    try:
        return compose("config", name_compositions(list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error
