"""Configuration of an exported model for transformers: the recipe of the model under transformers' names of its sizes."""

from typing import Any

from transformers import PretrainedConfig


class ReslabConfig(PretrainedConfig):  # type: ignore[no-untyped-call]  # theirs
    """Recipe of a model, see `Recipe`: sizes, the classes and keys of its parts, the step of its schedules."""

    model_type = "reslab"

    def __init__(
        self,
        model: dict[str, Any] | None = None,
        rooms: dict[str, dict[str, Any]] | None = None,
        seed: int = 0,
        step: int | None = None,
        max_steps: int | None = None,
        run: dict[str, Any] | None = None,
        **others: Any,
    ) -> None:
        self.model, self.rooms, self.run = model or {}, rooms or {}, run or {}
        self.seed, self.step, self.max_steps = seed, step, max_steps
        # Weight tying is handled by the embedding; there is no cache of keys and values.
        super().__init__(**{**others, "tie_word_embeddings": False, "use_cache": False})

    @property
    def vocab_size(self) -> int | None:
        """Return the number of rows of the token table, padding included."""
        return self.model.get("vocab_size")

    @property
    def max_position_embeddings(self) -> int | None:
        """Return the longest sequence."""
        return self.model.get("block_size")

    @property
    def hidden_size(self) -> int | None:
        """Return the width of the stream."""
        return self.model.get("n_embd")

    @property
    def num_hidden_layers(self) -> int | None:
        """Return the number of layers."""
        return self.model.get("n_layer")

    @property
    def num_attention_heads(self) -> int | None:
        """Return the number of heads of a layer."""
        return self.model.get("n_head")
