"""Recurrence skip_attn: layers without attention."""

import pytest
import torch

from tests.support import jitter, tiny_gpt, tokens


def test_the_layers_attention_does_not_exist() -> None:
    gpt = jitter(tiny_gpt(recurrence="skip_attn")).double()
    assert [(s.layer, s.kind, s.opens_block) for s in gpt.sites[:2]] == [(0, "mlp", True), (1, "attn", True)]
    assert not any(name.startswith("h.0.attn") or name.startswith("h.0.ln_1") for name in gpt.state_dict())
    x = gpt.embedding(tokens())
    x = x + gpt.h[0].mlp(gpt.h[0].ln_2(x))
    for block in gpt.h[1:]:
        x = x + block.attn(block.ln_1(x))
        x = x + block.mlp(block.ln_2(x))
    assert torch.allclose(gpt.hidden(tokens()), gpt.ln_f(x), rtol=0, atol=1e-12)


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
