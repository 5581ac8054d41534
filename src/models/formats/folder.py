"""Model folders: a `config.json` and a `model.safetensors`, as Hugging Face transformers lays them out.

Error messages start with the folder, so that a caller can put its own key before it (`init_from=<folder> has no ...`).
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from src.errors import one_line


def require_empty(folder: Path) -> None:
    """Reject an output folder that holds anything.

    Raises:
        ValueError: `folder` is a file, or is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"output={folder} exists already; name a folder that does not")


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a model into an existing folder; `config` has to be serializable as JSON."""
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it readable for its owner only
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_config(folder: Path, model_types: tuple[str, ...]) -> dict[str, Any]:  # JSON
    """Return the `config.json` of a folder that holds a model of one of `model_types`.

    Raises:
        ValueError: the folder is missing or incomplete, or holds another type of model.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give a Hugging Face GPT-2 folder")
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}; give a Hugging Face GPT-2 folder with one")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(f"{folder} has a config.json that cannot be read: {one_line(error)}") from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if found not in model_types:
        names = " or ".join(model_types)
        raise ValueError(f"{folder} holds a model of type {found}; only {names} can be loaded")
    return dict(config)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of `model.safetensors` by name.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        return dict(load_file(folder / "model.safetensors"))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder} has a model.safetensors that cannot be read: {one_line(error)}") from error
