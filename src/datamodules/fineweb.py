"""FineWeb sample-10BT as published in token shards: the data set of the project's benchmarks.

Source: karpathy/llm.c, dev/data/fineweb.py; shards by KellerJordan/modded-nanogpt, data/cached_fineweb10B.py.
"""

from typing import ClassVar

from src.datamodules.token_shards import TokenShardDataModule


class FineWebDataModule(TokenShardDataModule):
    """FineWeb under GPT-2's tokenizer, or whatever shards `data.path` names."""

    gpt2_addresses: ClassVar[tuple[str, ...]] = ("hf://datasets/kjj0/fineweb10B-gpt2",)
