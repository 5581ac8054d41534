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

#: Parts of GPT-2.
GPT2 = {"residual": "vanilla", "norm": "layernorm", "embedding": "tied", "recurrence": "none", "mlp": "gelu"}


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
    norm: str | None = None,
    embedding: str | None = None,
    recurrence: str | None = None,
    mlp: str | None = None,
    *,
    model: str = "gpt2_small",
    seed: int = 0,
    **sizes: Any,
) -> GPT:
    """Build a model with initial weights from options by name, with the default keys of each.

    Args:
        residual, norm, embedding, recurrence, mlp: names of options, see `strategies()` and the like; None: what
            `model` chooses, or GPT-2's.
        model: option of the sizes: gpt2_small, gpt2_medium, tiny, ...
        seed: seed of the initial weights.
        **sizes: keys of `GPTConfig` that replace those of `model`: n_layer, n_embd, ...

    Raises:
        ValueError: there is no option of a name, or the parts do not fit together.
    """
    if model == "from_checkpoint":
        raise ValueError(
            "model='from_checkpoint' is for runs; from_pretrained(<folder>) builds the model of a checkpoint"
        )
    own = _read_option("model", model)
    given = dict(zip(ROOMS, (residual, norm, embedding, recurrence, mlp), strict=True))
    names = {**GPT2, **_read_choices(model), **{room: name for room, name in given.items() if name is not None}}
    rooms = {room: _read_option(room, name) for room, name in names.items()}
    recipe = Recipe({**own, **sizes}, rooms, seed, None, None, {})
    return recipe.build(f"build({names}, model={model!r})")


def _read_choices(model: str) -> dict[str, str]:
    """Return the parts that an option of sizes chooses, by room: `override /norm@_global_.norm: rmsnorm`."""
    own = yaml.safe_load((CONF / "model" / f"{model}.yaml").read_text(encoding="utf-8"))
    entries = [item for entry in own.get("defaults", []) if isinstance(entry, dict) for item in entry.items()]
    return {key.removeprefix("override /").partition("@")[0]: name for key, name in entries}


def _names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _read_option(group: str, name: str) -> dict[str, Any]:
    """Return the keys of an option, over those of the options that its `defaults` name."""
    if name not in _names(group):
        raise ValueError(f"{group} has no option {name}; its options are {', '.join(_names(group))}")
    own: dict[str, Any] = yaml.safe_load((CONF / group / f"{name}.yaml").read_text(encoding="utf-8"))
    bases = [base for base in own.pop("defaults", []) if isinstance(base, str) and base != "_self_"]
    return {key: value for keys in (*(_read_option(group, base) for base in bases), own) for key, value in keys.items()}
