"""Recurrence skip_attn: layers without attention."""

import pytest
from torch import Tensor

from src.models.gpt import GPT
from tests.oracle import compare_model
from tests.support import jitter, tiny_gpt


def test_it_equals_its_source() -> None:
    """openai/parameter-golf @ 4908dc4, records/.../2026-03-31_ParallelResiduals_MiniDepthRecurrence/train_gpt.py.

    `if not block.disable_attn` around the attention of layer 0; the MLP is the same in all layers.
    """
    gpt = jitter(tiny_gpt(recurrence="skip_attn")).double()

    def oracle(gpt: GPT, idx: Tensor) -> Tensor:
        x: Tensor = gpt.embedding(idx)
        for layer, block in enumerate(gpt.h):
            if layer != 0:
                x = x + block.attn(block.ln_1(x))
            x = x + block.mlp(block.ln_2(x))
        return gpt.ln_f(x)

    compare_model(gpt, oracle)


def test_the_layers_attention_does_not_exist() -> None:
    gpt = tiny_gpt(recurrence="skip_attn")
    assert [(s.layer, s.kind, s.opens_block) for s in gpt.sites[:2]] == [(0, "mlp", True), (1, "attn", True)]
    assert not any(name.startswith("h.0.attn") or name.startswith("h.0.ln_1") for name in gpt.state_dict())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], r"must name layers between 0 and 2, got \[\]; for none use recurrence=none"),
        ([3], r"must name layers between 0 and 2, got \[3\]"),
        ([0, 1, 2], r"must leave a layer with attention, got \[0, 1, 2\]"),
    ],
)
def test_layers_that_cannot_be_skipped_are_an_error(layers: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_gpt(recurrence="skip_attn", visits={"layers": layers})
