"""Shards from the Hugging Face hub."""

from pathlib import Path

from src.datamodules.shards import ShardError

HUB = "hf://datasets/"


def fetch_from_hub(address: str) -> Path:
    """The local folder of a Hugging Face data set's shards, fetched where they are not in the hub's cache.

    Raises:
        ShardError: not an address of that form, or the hub does not give it.
    """
    from huggingface_hub import snapshot_download

    name = address.removeprefix(HUB)
    if name.count("/") != 1:
        raise ShardError(f"data.path={address} must read {HUB}<owner>/<name>")
    try:
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=["*.bin"]))
    except Exception as error:  # the hub's client raises many kinds: the network, access, a wrong name
        raise ShardError(
            f"data.path={address} could not be fetched ({type(error).__name__}); "
            "check the name and the network, or give a folder that holds the shards"
        ) from error
