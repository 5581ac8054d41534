"""Models by address: a folder, nanoGPT's checkpoint, or a model of the Hugging Face hub, `owner/name[@revision]`.

A model of the hub is fetched into huggingface_hub's cache, or read from it where there is no network. Its folder there
has the name of the revision. Weights are fetched as safetensors, as pickles only where there are no others.
"""

import logging
import re
import textwrap
from pathlib import Path
from typing import Any

from src.errors import one_line
from src.models.formats.folder import hash_weights
from src.models.formats.nanogpt import find_checkpoint

log = logging.getLogger(__name__)

ADDRESS = re.compile(r"[\w][\w.-]*(/[\w.-]+)?(@[\w./-]+)?")
BESIDE = ["config.json", "tokenizer.json"]
SAFETENSORS = [*BESIDE, "model.safetensors", "model.safetensors.index.json", "model-*.safetensors"]
PICKLES = [*BESIDE, "pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"]


def locate(source: Path) -> Path:
    """Return the local folder or file of a model.

    Raises:
        ValueError: there is none of this name, here or on the hub.
    """
    if source.exists() or source.is_symlink():
        return source
    if not ADDRESS.fullmatch(str(source)):
        raise ValueError(
            f"{source} does not exist; give a folder, nanoGPT's ckpt.pt, or a model of the hub, <owner>/<name>"
        )
    from huggingface_hub import snapshot_download  # imported where it is needed: it takes a while

    name, _, revision = str(source).partition("@")
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=SAFETENSORS))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=PICKLES))
    except Exception as error:  # the hub's client raises many kinds: the network, access, a wrong name
        reason = textwrap.shorten(one_line(error), 160, placeholder=" ...")
        raise ValueError(
            f"{source} was found neither locally nor on the hub ({type(error).__name__}: {reason}); "
            "check the name and the network, or give a folder"
        ) from error
    log.info("%s is revision %s of the hub", name, folder.name)
    return folder


def identify(source: Path) -> dict[str, Any]:
    """Return what identifies a model: its address, the hash of its weights and, of the hub, the revision.

    Raises:
        ValueError: as `locate`.
    """
    place = locate(source)
    revision = place.name if place != source else None
    return {"source": str(source), "revision": revision, "sha256": hash_weights(find_checkpoint(place) or place)}
