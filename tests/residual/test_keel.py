"""KEEL against the paper."""

import torch

from src.models.gpt import GPT
from src.residual.keel import Keel
from tests.oracle import LR, compare_model, groups_by_name
from tests.residual.plain import stream_spec
from tests.support import jitter, tiny_gpt


def test_it_equals_its_source() -> None:
    """arXiv 2601.19895, equation 8 with alpha = 6 for three layers, and section 3.1 for the first two sublayers."""
    gpt = jitter(tiny_gpt("keel")).double()

    def oracle(gpt: GPT, idx: torch.Tensor) -> torch.Tensor:
        post = gpt.residual.norms
        first, *others = gpt.h
        x = gpt.embedding(idx)
        x = x + first.attn(first.ln_1(x))
        x = post[0](x + first.mlp(first.ln_2(x)))
        for number, block in enumerate(others):
            x = post[2 * number + 1](6 * x + block.attn(block.ln_1(x)))
            x = post[2 * number + 2](6 * x + block.mlp(block.ln_2(x)))
        return x

    compare_model(gpt, oracle)


def test_every_sublayer_has_an_input_norm_and_all_but_the_first_an_output_norm() -> None:
    """Section 3.1 of the paper removes the first Post-LN; figure 2 has no further norm."""
    gpt = tiny_gpt("keel")
    norms = {name: rate for name, rate in groups_by_name(gpt).items() if "norm" in name or "ln_" in name}
    assert sum("residual" in name for name in norms) == 5
    assert sum("ln_" in name for name in norms) == 6
    assert set(norms.values()) == {(LR, 0.0)}
    assert all(torch.equal(norm.weight, torch.ones(16)) for norm in gpt.residual.norms)


def test_alpha_is_the_number_of_sublayers_unless_configured() -> None:
    assert Keel(stream_spec(12), alpha=None).alpha == 24
    assert Keel(stream_spec(12), alpha=3.0).alpha == 3.0
