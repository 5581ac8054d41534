"""Sample text and the layout of TensorBoard's charts."""

import pytest
from omegaconf import OmegaConf

from src.callbacks.dashboard import LAYOUT, PromptKeys
from src.settings.sections import read_section


def test_the_layout_names_tags_that_a_run_writes() -> None:
    tags = {tag for charts in LAYOUT.values() for _, found in charts.values() for tag in found}
    assert tags >= {"train/loss", "val/loss", "lr", "grad_norm", "tokens_per_s"}


@pytest.mark.parametrize(("prompt", "tokens", "words"), [("x", -1, "samples.tokens"), ("", 3, "samples.prompt")])
def test_a_wrong_key_is_named(prompt: str, tokens: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_section("samples", OmegaConf.create({"prompt": prompt, "tokens": tokens}), PromptKeys)
