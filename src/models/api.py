"""Functions of the installed package `reslab`: models by name, and exported folders.

Options are the files below `conf/`, with their defaults. The application composes them with Hydra; here a name and
changed sizes are enough.
"""

from pathlib import Path
from typing import Any

import yaml

from src.models.formats.pretrained import from_pretrained, write_pretrained
from src.models.formats.recipe import ROOMS, Recipe
from src.models.gpt import GPT

__all__ = ["build", "embeddings", "from_pretrained", "mlps", "norms", "recurrences", "strategies", "write_pretrained"]

PACKAGE = Path(__file__).resolve().parents[1]
#: Option files: in the package, or beside `src/` in the checkout.
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"


def strategies() -> list[str]:
    """Return the names of the residual strategies."""
    return _names("residual")


def norms() -> list[str]:
    """Return the names of the norms."""
    return _names("norm")


def embeddings() -> list[str]:
    """Return the names of the embeddings."""
    return _names("embedding")


def recurrences() -> list[str]:
    """Return the names of the recurrences."""
    return _names("recurrence")


def mlps() -> list[str]:
    """Return the names of the MLPs."""
    return _names("mlp")


def build(
    residual: str = "vanilla",
    norm: str = "layernorm",
    embedding: str = "tied",
    recurrence: str = "none",
    mlp: str = "gelu",
    *,
    model: str = "gpt2_small",
    seed: int = 0,
    **sizes: Any,
) -> GPT:
    """Build a model with initial weights from options by name, with the default keys of each.

    Args:
        residual, norm, embedding, recurrence, mlp: names of options, see `strategies()` and the like.
        model: option of the sizes: gpt2_small, gpt2_medium, tiny, ...
        seed: seed of the initial weights.
        **sizes: keys of `GPTConfig` that replace those of `model`: n_layer, n_embd, ...

    Raises:
        ValueError: there is no option of a name, or the parts do not fit together.
    """
    names = dict(zip(ROOMS, (residual, norm, embedding, recurrence, mlp), strict=True))
    rooms = {room: _read_option(room, name) for room, name in names.items()}
    recipe = Recipe({**_read_option("model", model), **sizes}, rooms, seed, None, None, {})
    return recipe.build(f"build({residual!r}, {norm!r}, {embedding!r}, {recurrence!r}, {mlp!r}, model={model!r})")


def _names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _read_option(group: str, name: str) -> dict[str, Any]:
    """Return the keys of an option, over those of the options that its `defaults` name."""
    if name not in _names(group):
        raise ValueError(f"{group} has no option {name}; its options are {', '.join(_names(group))}")
    own: dict[str, Any] = yaml.safe_load((CONF / group / f"{name}.yaml").read_text(encoding="utf-8"))
    bases = [base for base in own.pop("defaults", []) if base != "_self_"]
    return {key: value for keys in (*(_read_option(group, base) for base in bases), own) for key, value in keys.items()}
