"""FineWeb and FineWeb-Edu as published in token shards; sample-10BT is the data set of the project's benchmarks.

Source: karpathy/llm.c, dev/data/fineweb.py and edu_fineweb.sh; shards of sample-10BT by KellerJordan/modded-nanogpt,
data/cached_fineweb10B.py.
"""

from typing import ClassVar

from src.datamodules.token_shards import TokenShardDataModule


class FineWebDataModule(TokenShardDataModule):
    """FineWeb under GPT-2's tokenizer, or whatever shards `data.path` names."""

    gpt2_addresses: ClassVar[tuple[str, ...]] = (
        "hf://datasets/kjj0/fineweb10B-gpt2",
        "hf://datasets/karpathy/fineweb-edu-100B-gpt2-token-shards",
    )
