"""Functions of the installed package: names, models by name, and the package itself."""

import pytest
import torch
from omegaconf import OmegaConf

import src
from src.models import api
from src.models.formats.recipe import ROOMS
from tests.support import SIZES, option, options, tiny_gpt, tokens


def test_the_package_names_every_option() -> None:
    found = (src.strategies(), src.norms(), src.embeddings(), src.recurrences(), src.mlps())  # type: ignore[attr-defined]
    assert found == tuple(options(room) for room in ROOMS)
    assert {*src.API} == {*api.__all__} <= {*dir(src)}
    with pytest.raises(AttributeError, match="'src' has no attribute 'missing'"):
        src.missing  # noqa: B018


@pytest.mark.parametrize("room", [*ROOMS, "model"])
def test_options_have_the_keys_that_hydra_reads(room: str) -> None:
    for name in options(room):
        assert api._read_option(room, name) == OmegaConf.to_container(option(room, name)), name


def test_a_model_by_name_is_that_of_its_option() -> None:
    gpt = api.build("mhc", norm="rmsnorm", embedding="untied", model="tiny", **SIZES)
    expected = tiny_gpt("mhc", norm="rmsnorm", embedding="untied")
    assert torch.equal(gpt(tokens()), expected(tokens()))
    llama = api.build(model="llama_small", **{**SIZES, "positions": "rope", "n_kv_head": 1})
    assert [type(part).__name__ for part in (llama.ln_f, llama.embedding)] == ["RMSNorm", "UntiedEmbedding"]
    with pytest.raises(ValueError, match=r"from_checkpoint' is for runs; from_pretrained"):
        api.build(model="from_checkpoint")
    with pytest.raises(ValueError, match=r"residual has no option mch; its options are attnres, .*, mhc, "):
        api.build("mch")
    with pytest.raises(ValueError, match=r"build\(.*vanilla.* cannot be built: model\.n_layer must be >= 1, got 0"):
        api.build(model="tiny", n_layer=0)
