"""Contract of an embedding: token ids to x0, the head's weight, and additions to layers.

    x0 = forward(idx);  rows = lookup(idx)
    x <- x + stream_addition(rows, l)     before layer l, unless None
    v <- v + value_addition(rows, l, x)   in the attention of layer l, whose values are projected from x, unless None

An embedding sees token ids, not documents: `data.document_attention` masks attention only.
`forward`, `get_lm_head_weight`, `get_num_pos_params` and `get_value_embed` are the methods of the embedding benchmark
(MLS-Bench llm-pretrain-embedding); a `TokenEmbedding` written for it works unchanged (`adapt_embedding`).
A constructor takes `(spec, *, <the keys of the YAML>)`.

Shape letters: B batch, T tokens, D n_embd, V vocab_size.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from src.source import Source

Lookup = tuple[Tensor, ...]


def number_second_layers(n_layer: int) -> dict[int, int]:
    """Return every second layer, counted from the last one, with its place among them in the order of depth."""
    return {layer: j for j, layer in enumerate(range((n_layer - 1) % 2, n_layer, 2))}


@dataclass(frozen=True)
class EmbeddingSpec:
    """Description of the model that an embedding is built for; names as in the benchmark.

    Args:
        vocab_size, n_embd, block_size, n_layer, n_head, bias, dropout: keys of `GPTConfig`.
        learned_positions: True if the embedding adds a learned position to every token.
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
    """Base class of all embeddings; the module docstring explains the contract."""

    #: Publication and code of the method, and how this form differs from it.
    source: ClassVar[Source]

    @abstractmethod
    def forward(self, idx_BT: Tensor) -> Tensor:
        """Return x0 [B, T, D] for token ids [B, T]."""

    @abstractmethod
    def get_lm_head_weight(self) -> Tensor:
        """Return the head's weight [V, D]."""

    @abstractmethod
    def get_num_pos_params(self) -> int:
        """Return the number of parameters that encode positions (nanoGPT's parameter count excludes them)."""

    def get_num_lookup_params(self) -> int:
        """Return the number of parameters that are only looked up, without positions; they cost no FLOPs."""
        return 0

    def reset(self) -> None:
        """Change the initial weights after the model-wide N(0, 0.02); by default do nothing."""
        return

    # ---- additions to layers: none by default

    def lookup(self, idx_BT: Tensor) -> Lookup:
        """Return tensors that both additions use, computed once per forward; by default the token ids."""
        return (idx_BT,)

    def stream_addition(self, lookup: Lookup, layer: int) -> Tensor | None:
        """Return the addition [B, T, D] to the stream before each visit to `layer`; by default `get_value_embed`."""
        return self.get_value_embed(layer)

    def value_addition(self, lookup: Lookup, layer: int, x_BTD: Tensor) -> Tensor | None:
        """Return the addition [B, T, D] to the attention values of `layer`, all heads side by side.

        It is called at each visit, under autocast, with the input [B, T, D] of the value projection.
        """
        return None

    def get_value_embed(self, layer: int) -> Tensor | None:
        """Return the benchmark's stream addition for the tokens of the last forward, which the embedding keeps."""
        return None


class BenchmarkEmbedding(TokenEmbedding):
    """Adapter of the benchmark's `TokenEmbedding`, which has no base class, to this contract."""

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
        """Return the size of all `nn.Embedding`s except the head and the positions."""
        head = self.get_lm_head_weight()
        tables = [m.weight for m in self.inner.modules() if isinstance(m, nn.Embedding) and m.weight is not head]
        return max(0, sum(table.numel() for table in tables) - self.get_num_pos_params())

    def get_value_embed(self, layer: int) -> Tensor | None:
        addition = getattr(self.inner, "get_value_embed", None)  # optional in the benchmark
        return None if addition is None else addition(layer)


def adapt_embedding(embedding: nn.Module, spec: EmbeddingSpec) -> TokenEmbedding:
    """Return `embedding` itself, or an adapter if it was written for the benchmark.

    Raises:
        ValueError: a method is missing, or it learns positions and `model.positions` is not learned.
    """
    ours = embedding if isinstance(embedding, TokenEmbedding) else BenchmarkEmbedding(embedding)
    if not spec.learned_positions and ours.get_num_pos_params():
        raise ValueError(
            f"model.positions must be learned with {type(embedding).__name__}, which always learns "
            "positions; give model.positions=learned or another embedding"
        )
    return ours
