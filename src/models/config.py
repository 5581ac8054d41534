"""Configuration of a GPT: sizes and options of the trunk."""

from dataclasses import dataclass

#: Norms of a sublayer by placement: (on its input, on its output).
NORM_PLACEMENTS = {"pre": (True, False), "sandwich": (True, True), "output": (False, True)}
#: Position encodings: a learned table in the embedding, rotations in attention, or none besides the causal mask.
POSITIONS = ("learned", "rope", "none")
#: Norms of queries and keys (see `qk_norm.py`).
QK_NORMS = ("none", "rms", "layer")
#: Factors on attention scores by head size K: 1/sqrt(K), or 1/K, which does not depend on the width at which K grows.
ATTENTION_SCALES = ("inverse_sqrt", "inverse")
#: Ways to lower the frequencies of rotations (see `rotary.py`).
ROPE_SCALINGS = ("linear", "llama3")


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
        qk_norm: none, rms or layer (see `qk_norm.py`); run folders of earlier versions have neither it nor what follows.
        attention_scale: inverse_sqrt or inverse.
        base_width, base_depth: sizes at which the transfer rules change nothing; None: no rule (see `transfer.py`).
        depth_exponent: a of the factor (n_layer / base_depth)^-a on sublayers' outputs, in [0.5, 1].
        n_kv_head: heads of keys and values, a divisor of n_head (grouped queries); None: n_head.
        rope_base, rope_scale: base of the angles, and divisor of positions or frequencies (see `rotary.py`).
        zero_init_outputs: whether the output projections of sublayers start at zero.
        rope_scaling: linear or llama3.
        rope_original: tokens of the context before llama3's scaling; None: there is none.
        rope_low_turns, rope_high_turns: turns over that context up to which a pair is slowed, and from which it is not.
        qk_gain: factor on normed queries and on normed keys.
        logit_softcap: bound c of the logits, c tanh(l / c) (see `kernels/cross_entropy/softcap.py`); None: no bound.
        window_pattern: letters S and L, repeated over the layers: attention over a short window or over all earlier
            tokens; the last layer's is over all. None: over all in every layer.
        window_size: tokens before its own that a token sees in a layer S; None: a quarter of block_size.
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
    attention_scale: str = "inverse_sqrt"
    base_width: int | None = None
    base_depth: int | None = None
    depth_exponent: float = 1.0
    n_kv_head: int | None = None
    rope_base: float = 10000.0
    rope_scale: float = 1.0
    zero_init_outputs: bool = False
    rope_scaling: str = "linear"
    rope_original: int | None = None
    rope_low_turns: float = 1.0
    rope_high_turns: float = 4.0
    qk_gain: float = 1.0
    logit_softcap: float | None = None
    window_pattern: str | None = None
    window_size: int | None = None

    @property
    def has_transfer_rule(self) -> bool:
        """Return True if rates and initial values follow from base sizes."""
        return self.base_width is not None or self.base_depth is not None

    @property
    def head_size(self) -> int:
        """Channels of a head, K."""
        return self.n_embd // self.n_head

    @property
    def n_kv(self) -> int:
        """Heads of keys and values."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Number of earlier tokens that a token attends over, by layer; None means all.

        A quarter of a block_size of 512 or more is rounded up to a multiple of 128, the tile of GPU kernels.
        """
        if self.window_pattern is None:
            return (None,) * self.n_layer
        T, letters = self.block_size, self.window_pattern
        quarter = -(-T // 512) * 128 if T >= 512 else max(1, T // 4)
        short = quarter if self.window_size is None else self.window_size
        inner = (letters[layer % len(letters)] for layer in range(self.n_layer - 1))
        return (*(short if letter == "S" else None for letter in inner), None)

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
        choices = {
            "norm_placement": NORM_PLACEMENTS,
            "positions": POSITIONS,
            "qk_norm": QK_NORMS,
            "attention_scale": ATTENTION_SCALES,
            "rope_scaling": ROPE_SCALINGS,
        }
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                raise ValueError(f"model.{key} must be one of {', '.join(allowed)}, got {getattr(self, key)}")
        if self.positions == "rope" and self.n_embd // self.n_head % 2:
            raise ValueError(
                f"model.n_embd / model.n_head must be even with model.positions=rope, which rotates pairs of channels, "
                f"got {self.n_embd} / {self.n_head}; the nearest is model.n_embd={self.n_embd + self.n_head}"
            )
        if self.n_kv < 1 or self.n_head % self.n_kv:
            divisors = ", ".join(str(n) for n in range(1, self.n_head + 1) if self.n_head % n == 0)
            raise ValueError(
                f"model.n_kv_head must divide model.n_head={self.n_head}, got {self.n_kv_head}; give one of {divisors}"
            )
        for key in ("rope_base", "rope_scale"):
            if not 1 <= getattr(self, key) < 1e12:
                raise ValueError(f"model.{key} must be >= 1 and below 1e12, got {getattr(self, key)}")
        if not 0 < self.qk_gain < 1e6:
            raise ValueError(f"model.qk_gain must be > 0 and below 1e6, got {self.qk_gain}; nanochat has 1.2")
        if self.qk_gain != 1 and self.qk_norm == "none":
            raise ValueError(
                f"model.qk_gain={self.qk_gain} needs a norm of queries and keys, which it multiplies; give "
                "model.qk_norm=rms, or leave the gain out"
            )
        self._check_rotations()
        self._check_windows()
        for key in ("base_width", "base_depth"):
            base = getattr(self, key)
            if base is not None and base < 1:
                raise ValueError(f"model.{key} must be >= 1, got {base}; null is without the rule")
        if self.logit_softcap is not None and not 0 < self.logit_softcap < 1e12:
            raise ValueError(
                f"model.logit_softcap must be > 0 and below 1e12, got {self.logit_softcap}; null is without a bound"
            )
        if not 0.5 <= self.depth_exponent <= 1:
            raise ValueError(f"model.depth_exponent must be in [0.5, 1], got {self.depth_exponent}; CompleteP has 1")
        if self.depth_exponent != 1 and self.base_depth is None:
            raise ValueError(
                f"model.depth_exponent={self.depth_exponent} needs model.base_depth, the depth at which it changes "
                "nothing; give model.base_depth=<layers>, or leave it out"
            )

    def _check_rotations(self) -> None:
        if self.rope_scaling == "llama3" and (self.rope_original is None or self.rope_original < 1):
            raise ValueError(
                "model.rope_scaling=llama3 needs model.rope_original >= 1, the tokens of the context before scaling, "
                f"got {self.rope_original}; Llama 3.1 has 8192"
            )
        if not 0 < self.rope_low_turns < self.rope_high_turns < 1e12:
            raise ValueError(
                "model.rope_low_turns must be > 0 and below model.rope_high_turns, got "
                f"{self.rope_low_turns} and {self.rope_high_turns}; Llama 3.1 has 1 and 4"
            )

    def _check_windows(self) -> None:
        letters, size = self.window_pattern, self.window_size
        if letters is not None and (not letters or set(letters) - {"S", "L"}):
            raise ValueError(
                f"model.window_pattern must be letters S (short window) and L (all earlier tokens) such as SSSL, got "
                f"{letters!r}; null is all earlier tokens in every layer"
            )
        if size is not None and letters is None:
            raise ValueError(
                f"model.window_size={size} needs model.window_pattern, which states the layers with that window; give "
                "model.window_pattern=SSSL, or leave the size out"
            )
        if size is not None and not 1 <= size < self.block_size:
            raise ValueError(
                f"model.window_size must be >= 1 and below model.block_size={self.block_size}, got {size}; null is a "
                "quarter of it"
            )
