"""The contract of an embedding: tokens in, the stream's start x0 out, the head's weight, and additions to layers.

    x0 = forward(idx);  found = lookup(idx)
    x <- x + stream_addition(lookup, l)     before layer l, where there is one
    v <- v + value_addition(lookup, l)      in its attention

The first methods are those of the embedding benchmark (MLS-Bench llm-pretrain-embedding): `forward`,
`get_lm_head_weight`, `get_num_pos_params`, `get_value_embed`. A `TokenEmbedding` written for it fits
unchanged (`adapt_embedding`). Constructors take `(spec, *, <the keys of their YAML>)`.
Shape letters: B batch, T tokens, D n_embd, V vocab_size.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

Lookup = tuple[Tensor, ...]


@dataclass(frozen=True)
class EmbeddingSpec:
    """What an embedding is told about the model; the names are the benchmark's.

    `learned_positions`: whether the embedding is to add a learned position to every token.
    """

    vocab_size: int
    n_embd: int
    block_size: int
    n_layer: int
    n_head: int
    bias: bool
    dropout: float
    learned_positions: bool


class TokenEmbedding(nn.Module, ABC):
    """Tokens to stream, the head's weight, and what single layers are given besides."""

    @abstractmethod
    def forward(self, idx_BT: Tensor) -> Tensor:
        """Token ids [B, T] -> x0 [B, T, D]."""

    @abstractmethod
    def get_lm_head_weight(self) -> Tensor:
        """The head's weight [V, D]."""

    @abstractmethod
    def get_num_pos_params(self) -> int:
        """How many parameters encode positions (left out of the customary parameter count)."""

    def get_num_lookup_params(self) -> int:
        """How many parameters are only looked up, positions apart: no matrix product is made with them."""
        return 0

    def reset(self) -> None:
        """Change the initial weights after the model-wide N(0, 0.02); by default nothing changes."""
        return

    # ---- additions to layers: by default there are none

    def lookup(self, idx_BT: Tensor) -> Lookup:
        """What the additions are made of, found once a forward and passed to them; by default the tokens."""
        return (idx_BT,)

    def stream_addition(self, lookup: Lookup, layer: int) -> Tensor | None:
        """What the stream takes in before each visit to `layer`, [B, T, D]; by default the benchmark's."""
        return self.get_value_embed(layer)

    def value_addition(self, lookup: Lookup, layer: int) -> Tensor | None:
        """What the values of attention in `layer` take in, [B, T, D]."""
        return None

    def get_value_embed(self, layer: int) -> Tensor | None:
        """The benchmark's `stream_addition`, of the last forward's tokens, which the embedding has to keep."""
        return None


class BenchmarkEmbedding(TokenEmbedding):
    """A `TokenEmbedding` as the benchmark has them, with no base class, behind this contract."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        for name in ("get_lm_head_weight", "get_num_pos_params"):
            if not callable(getattr(inner, name, None)):
                raise ValueError(
                    f"embedding._target_ makes a {type(inner).__name__} without {name}; "
                    "an embedding has forward, get_lm_head_weight and get_num_pos_params"
                )
        self.inner = inner

    def forward(self, idx_BT: Tensor) -> Tensor:
        x0_BTD: Tensor = self.inner(idx_BT)
        return x0_BTD

    def get_lm_head_weight(self) -> Tensor:
        weight_VD: Tensor = self.inner.get_lm_head_weight()  # type: ignore[operator]  # checked above
        return weight_VD

    def get_num_pos_params(self) -> int:
        return int(self.inner.get_num_pos_params())  # type: ignore[operator]  # checked above

    def get_num_lookup_params(self) -> int:
        """Of `nn.Embedding`s, as far as they are neither the head nor positions."""
        head = self.get_lm_head_weight()
        tables = [
            m.weight for m in self.inner.modules() if isinstance(m, nn.Embedding) and m.weight is not head
        ]
        return max(0, sum(table.numel() for table in tables) - self.get_num_pos_params())

    def get_value_embed(self, layer: int) -> Tensor | None:
        addition = getattr(self.inner, "get_value_embed", None)  # optional in the benchmark
        return None if addition is None else addition(layer)


def adapt_embedding(embedding: nn.Module, spec: EmbeddingSpec) -> TokenEmbedding:
    """An embedding behind this contract, whichever it was written for.

    Raises:
        ValueError: no embedding, or one that adds positions where the model is to have none or others.
    """
    ours = embedding if isinstance(embedding, TokenEmbedding) else BenchmarkEmbedding(embedding)
    if not spec.learned_positions and ours.get_num_pos_params():
        raise ValueError(
            f"model.positions must be learned with {type(embedding).__name__}, which learns positions whatever "
            "it is told; give model.positions=learned or another embedding"
        )
    return ours
