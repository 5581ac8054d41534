"""GPT-2's byte-pair encoding from the ranks in the repository; no download, no cache.

Source: GPT-2 (Radford et al. 2019), section 2.2; the pattern and the one special token of tiktoken's
`r50k_base`. `encode("Hello world") == [15496, 995]`.
"""

import base64
import hashlib
from functools import cache
from pathlib import Path

import tiktoken

END_OF_TEXT = 50256
N_VOCAB = 50257
RANKS = Path(__file__).parent / "embedded" / "r50k_base.tiktoken"
RANKS_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


@cache
def gpt2_encoding() -> tiktoken.Encoding:
    """Return GPT-2's tokenizer, with 50,257 ids.

    Raises:
        ValueError: the file of ranks is not the published one.
    """
    raw = RANKS.read_bytes()
    if hashlib.sha256(raw).hexdigest() != RANKS_SHA256:
        raise ValueError(f"{RANKS.name} is not the published file; restore it from the repository")
    # Parsed here, since tiktoken's loader trusts whatever the machine's cache holds for this path.
    pairs = (line.split() for line in raw.splitlines())
    return tiktoken.Encoding(
        name="gpt2",
        pat_str=PATTERN,
        mergeable_ranks={base64.b64decode(token): int(rank) for token, rank in pairs},
        special_tokens={"<|endoftext|>": END_OF_TEXT},
        explicit_n_vocab=N_VOCAB,
    )
