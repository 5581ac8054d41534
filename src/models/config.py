"""Configuration of a GPT: sizes and options of the trunk."""

from dataclasses import dataclass

#: Norms of a sublayer by placement: (on its input, on its output).
NORM_PLACEMENTS = {"pre": (True, False), "sandwich": (True, True), "output": (False, True)}
#: Position encodings: a learned table in the embedding, rotations in attention, or none besides the causal mask.
POSITIONS = ("learned", "rope", "none")
#: Norms of queries and keys (see `qk_norm.py`).
QK_NORMS = ("none", "rms", "layer")


@dataclass(frozen=True)
class GPTConfig:
    """Keys of the section `model`.

    Args:
        n_layer, n_head, n_embd: number of layers and heads, and channels of the stream.
        block_size: longest sequence, in tokens.
        vocab_size: rows of the token table, padding ids included.
        bias: whether linear maps and norms have biases.
        dropout: probability, in [0, 1).
        gelu_approximate: none (exact) or tanh (OpenAI's GPT-2).
        norm_placement: pre, sandwich or output (see `block.py`).
        positions: learned, rope or none.
        qk_norm: none, rms or layer (see `qk_norm.py`); run folders of earlier versions do not have it.
    """

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    bias: bool
    dropout: float
    gelu_approximate: str
    norm_placement: str
    positions: str
    qk_norm: str = "none"

    def __post_init__(self) -> None:
        for key in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"model.{key} must be >= 1, got {getattr(self, key)}")
        if self.n_embd % self.n_head:
            near = self.n_head * max(1, round(self.n_embd / self.n_head))
            raise ValueError(
                f"model.n_embd must be a multiple of model.n_head, got {self.n_embd} and {self.n_head}; "
                f"the nearest is model.n_embd={near}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout must be in [0, 1), got {self.dropout}")
        if self.gelu_approximate not in ("none", "tanh"):
            raise ValueError(
                f"model.gelu_approximate must be none (exact) or tanh (OpenAI's GPT-2), got {self.gelu_approximate}"
            )
        choices = {"norm_placement": NORM_PLACEMENTS, "positions": POSITIONS, "qk_norm": QK_NORMS}
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                raise ValueError(f"model.{key} must be one of {', '.join(allowed)}, got {getattr(self, key)}")
        if self.positions == "rope" and self.n_embd // self.n_head % 2:
            raise ValueError(
                f"model.n_embd / model.n_head must be even with model.positions=rope, which rotates pairs of channels, "
                f"got {self.n_embd} / {self.n_head}; the nearest is model.n_embd={self.n_embd + self.n_head}"
            )
