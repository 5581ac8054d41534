"""Sizes and parts of the model that `init_from` names, for `model=from_checkpoint`.

They take the place of the option in the composed configuration, so that a run's config.yaml has plain numbers and a
resumed run needs no checkpoint. Keys of `model` that are given beside the option count.
"""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from src.errors import UserError
from src.models.formats.pretrained import read_recipe
from src.settings.sections import to_plain

#: Key of the section `model` that holds the checkpoint's address.
KEY = "from_checkpoint"
#: Parts that GPT-2 and a Llama state; their residual stream is that of residual=vanilla.
TRUNK = ("norm", "embedding", "mlp")


def copy_sizes_from_checkpoint(config: DictConfig) -> None:
    """Replace `model.from_checkpoint` by the checkpoint's sizes, and its parts, in place; do nothing without the key.

    Raises:
        UserError: `init_from` is not given, or names no model.
    """
    section = config.get("model")
    if not isinstance(section, DictConfig) or KEY not in section:
        return
    source = section[KEY]
    if source is None:
        raise UserError(
            "model=from_checkpoint needs init_from=<a folder by task=export, a Hugging Face GPT-2 or Llama folder, "
            "nanoGPT's ckpt.pt, or a model of the hub>"
        )
    try:
        recipe = read_recipe(Path(str(source)))
    except ValueError as error:
        raise UserError(f"init_from={error}") from error
    own = to_plain(section)
    assert isinstance(own, dict)  # a section is a mapping
    rooms = TRUNK if recipe.max_steps is None else tuple(recipe.rooms)
    with open_dict(config):
        config["model"] = {**recipe.model, **{key: value for key, value in own.items() if key != KEY}}
        for room in rooms:
            config[room] = OmegaConf.create({**recipe.rooms[room], "_partial_": True})
