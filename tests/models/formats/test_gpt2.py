"""Recognition of GPT-2, by its tensors and by its outputs."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from src.embedding.base import Lookup
from src.embedding.tied import TiedEmbedding
from src.models.config import GPTConfig
from src.models.formats.gpt2 import find_difference_from_gpt2, gpt2_shapes
from src.models.formats.huggingface import load_gpt2
from src.models.gpt import GPT
from src.norm.layernorm import LayerNorm
from src.residual.base import Site
from src.residual.vanilla import Vanilla
from tests.support import SIZES, export_gpt2, jitter, tiny_gpt


@pytest.mark.parametrize("bias", [True, False])
def test_gpt2_is_recognized_with_any_weights_and_dtype(bias: bool) -> None:
    gpt = jitter(tiny_gpt(bias=bias, dropout=0.1))
    assert find_difference_from_gpt2(gpt) is None
    assert find_difference_from_gpt2(gpt.double()) is None
    assert find_difference_from_gpt2(gpt.bfloat16()) is None


def test_the_shapes_are_those_of_a_model_with_biases() -> None:
    gpt = tiny_gpt(bias=True)
    assert gpt2_shapes(gpt.config) == {key: tuple(value.shape) for key, value in gpt.state_dict().items()}


def test_prores_is_gpt2_after_its_warm_up() -> None:
    gpt = tiny_gpt("prores")
    gpt.residual.on_step(10, 100)
    assert find_difference_from_gpt2(gpt) == "its residual stream"
    gpt.residual.on_step(99, 100)
    assert find_difference_from_gpt2(gpt) is None


@pytest.mark.parametrize(
    ("keys", "where"),
    [
        ({"residual": "x0_blend"}, r"residual\.keep_L"),
        ({"residual": "hyperconn"}, r"residual\."),
        ({"residual": "attnres"}, r"residual\."),
        ({"residual": "cached_attn_read"}, "its residual stream"),
        ({"norm": "rmsnorm"}, "its norm"),
        ({"norm": "rmsnorm", "bias": True}, r"h\.0\.ln_1\.bias"),
        ({"logit_softcap": 15.0}, r"model\.logit_softcap=15\.0"),
        ({"window_pattern": "S"}, r"model\.window_pattern=S"),
        ({"embedding": "untied"}, r"embedding\.lm_head\.weight"),
    ],
)
def test_a_model_that_is_not_gpt2_is_neither_exported_nor_loaded(
    keys: dict[str, Any], where: str, tmp_path: Path
) -> None:
    gpt = tiny_gpt(**keys)
    gpt2 = "residual=vanilla, norm=layernorm, embedding=tied only; this model differs in "
    with pytest.raises(ValueError, match=gpt2 + where):
        export_gpt2(gpt, tmp_path / "hub")
    assert list(tmp_path.iterdir()) == []
    export_gpt2(tiny_gpt(), tmp_path / "hub")
    before = {key: value.clone() for key, value in gpt.state_dict().items()}
    with pytest.raises(ValueError, match=gpt2 + where):
        load_gpt2(gpt, tmp_path / "hub")
    assert all(torch.equal(value, before[key]) for key, value in gpt.state_dict().items())


class Halved(Vanilla):
    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        return state + 0.5 * y_BTD


class Adding(TiedEmbedding):
    def value_addition(self, lookup: Lookup, layer: int, x_BTD: Tensor) -> Tensor | None:
        return self.wte(lookup[0]) if layer == 2 else None


class Scaled(TiedEmbedding):
    def forward(self, idx_BT: Tensor) -> Tensor:
        return 4.0 * super().forward(idx_BT)


class Gained(LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + self.weight)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"residual": Halved}, "its residual stream"),
        ({"embedding": Scaled}, "its embedding"),
        ({"embedding": Adding}, "its embedding"),
        ({"norm": partial(Gained, eps=1e-5)}, "its norm"),
    ],
)
def test_gpt2s_tensor_shapes_are_not_sufficient(changes: dict[str, Any], where: str, tmp_path: Path) -> None:
    parts: dict[str, Any] = {
        "residual": Vanilla,
        "norm": partial(LayerNorm, eps=1e-5),
        "embedding": TiedEmbedding,
        **changes,
    }
    with pytest.raises(ValueError, match=f"this model differs in {where}"):
        export_gpt2(GPT(GPTConfig(**SIZES), **parts, seed=0), tmp_path / "hub")
