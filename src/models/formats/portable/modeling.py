"""Exported model for transformers: `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`.

The model is this project's GPT, with the PyTorch reference of every operation. There is no cache of keys and values: the
state of a residual strategy is opaque, so `generate` runs the whole sequence for every token.

Source: Hugging Face transformers 5.23, modeling_utils.py (PreTrainedModel) and generation/utils.py (GenerationMixin).
Shape letters: B batch, T tokens, V vocab_size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from src.models.formats.portable.configuration import ReslabConfig
from src.models.formats.recipe import Recipe


class ReslabForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]  # theirs
    """Language model of an exported folder.

    Args:
        config: the folder's configuration.
    """

    config_class = ReslabConfig
    base_model_prefix = "gpt"  # the names of the folder's tensors are those of `gpt`
    main_input_name = "input_ids"

    def __init__(self, config: ReslabConfig) -> None:
        super().__init__(config)
        recipe = Recipe(config.model, config.rooms, config.seed, config.step, config.max_steps, config.run)
        with torch.device("cpu"):  # transformers builds on no device, where buffers that are not stored have no values
            self.gpt = recipe.build("config.json")
        self.buffers_at_step = {name: buffer.clone() for name, buffer in self._unstored_buffers()}
        self.post_init()  # type: ignore[no-untyped-call]  # theirs

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:  # the model, or a tuple of which it is the first
        """Load a folder, as `PreTrainedModel` does, with the schedules at the step of the weights."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for name, buffer in model._unstored_buffers():
            buffer.copy_(model.buffers_at_step[name])
        return loaded

    def _unstored_buffers(self) -> list[tuple[str, Tensor]]:
        """Return the buffers that are not in the weights file: factors of schedules, and the like."""
        stored = self.gpt.state_dict().keys()
        return [(name, buffer) for name, buffer in self.gpt.named_buffers() if name not in stored]

    def _init_weights(self, module: nn.Module) -> None:
        """Keep the initial weights, which the model has drawn itself."""

    def get_input_embeddings(self) -> nn.Module:
        """Return the token table."""
        return self.gpt.embedding.get_submodule("wte")

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> CausalLMOutput | tuple[Tensor, ...]:
        """Return the logits, and with `labels` the loss.

        Args:
            input_ids: token ids [B, T].
            attention_mask: 1 for tokens, 0 for padding before or after a sequence, [B, T]; None: no padding.
            labels: token ids [B, T], which this method shifts by one; -100 counts for nothing.
            return_dict: false for a tuple.
            others: ignored, as `use_cache` is, but for what transformers' loss takes.

        Raises:
            ValueError: the sequence is too long, or the mask has padding between tokens.
        """
        length, longest = input_ids.shape[1], self.config.max_position_embeddings
        if length > longest:
            raise ValueError(f"the model takes at most {longest} tokens, got {length}; shorten the input")
        start_B = None if attention_mask is None else _count_padding_before(attention_mask)
        if start_B is None or not start_B.any():
            logits_BTV = self.gpt(input_ids)
        else:
            logits_BTV = _roll(self.gpt(_roll(input_ids, start_B)), -start_B)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits_BTV, labels=labels, vocab_size=logits_BTV.shape[-1], **others)
        if return_dict is False:
            return (logits_BTV,) if loss is None else (loss, logits_BTV)
        return CausalLMOutput(loss=loss, logits=logits_BTV)

    def prepare_inputs_for_generation(  # type: ignore[override]  # transformers names the other arguments
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **others: Any
    ) -> dict[str, Any]:
        """Return the arguments of `forward` for the next token: the last tokens that the model takes."""
        longest = self.config.max_position_embeddings
        mask = None if attention_mask is None else attention_mask[:, -longest:]
        return {"input_ids": input_ids[:, -longest:], "attention_mask": mask}


def _count_padding_before(mask_BT: Tensor) -> Tensor:
    """Return the number of padding tokens before each sequence, [B].

    Padding behind a sequence needs nothing, since the model is causal.

    Raises:
        ValueError: there is padding between tokens.
    """
    real_BT = mask_BT.bool()
    start_B = real_BT.int().argmax(1)
    if (real_BT[:, 1:] & ~real_BT[:, :-1]).sum(1).gt((start_B > 0).int()).any():
        raise ValueError(
            "attention_mask has padding between tokens; only padding before or after a sequence is supported"
        )
    return start_B


def _roll(x: Tensor, shift_B: Tensor) -> Tensor:
    """Return the rows of [B, T] or [B, T, V] rolled left by `shift_B` (circular)."""
    at_BT = (torch.arange(x.shape[1], device=x.device) + shift_B[:, None]) % x.shape[1]
    return x[torch.arange(len(x), device=x.device)[:, None], at_BT]
