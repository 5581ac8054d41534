"""SiameseNorm for image models against its source.

Covers `src/residual/families/siamese_streams.py` too.
"""

import pytest
import torch

from src.launch.suggestions import nearest
from src.models.gpt import GPT
from src.residual.siamesenorm_deit import SiameseNorm
from src.settings.components import read_component
from tests.oracle import LR, compare_model, groups_by_name
from tests.support import jitter, option, options, tiny_gpt


def test_it_equals_its_source() -> None:
    """Qwen-Applications/SiameseNorm @ 70efa00, deit-model-siamesenorm.py: `Block`, `VisionTransformer`.

    `input_norm1`, `input_norm2` and `final_norm` are the trunk's norms here.
    """
    gpt = jitter(tiny_gpt("siamesenorm_deit")).double()
    post, pre = gpt.residual.post_norms, gpt.residual.pre_norms

    def oracle(gpt: GPT, idx: torch.Tensor) -> torch.Tensor:
        x = gpt.embedding(idx)
        y = x.clone()
        for index, block in enumerate(gpt.h):
            c = ((index + 1) * 2) ** 0.5
            x = post[2 * index](x)
            z = block.attn(block.ln_1(x + pre[2 * index](y)))
            x, y = x + z / c, y + z
            x = post[2 * index + 1](x)
            z = block.mlp(block.ln_2(x + pre[2 * index + 1](y)))
            x, y = x + z / c, y + z
        return gpt.ln_f(post[6](x) + pre[6](y))

    compare_model(gpt, oracle)


def test_norms_start_at_one_without_decay() -> None:
    """Compare with `_init_vit_weights`; the optimizer is DeiT's own and not part of the source."""
    gpt = tiny_gpt("siamesenorm_deit")
    assert all(torch.equal(p, torch.ones(16)) for p in gpt.residual.parameters())
    assert {groups_by_name(gpt)[f"residual.{name}"] for name, _ in gpt.residual.named_parameters()} == {(LR, 0.0)}


def test_a_stored_run_of_0_2_names_the_module_by_its_old_path(caplog: pytest.LogCaptureFixture) -> None:
    stored = option("residual", "siamesenorm_deit")
    stored._target_ = "src.residual.siamesenorm.SiameseNorm"
    assert read_component("residual", stored, ()).func is SiameseNorm
    assert "moved; give src.residual.siamesenorm_deit.SiameseNorm" in caplog.text


def test_the_old_name_suggests_a_new_one() -> None:
    assert nearest("siamesenorm", options("residual")).startswith(", did you mean siamesenorm_")
