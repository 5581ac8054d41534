"""Contract of an MLP sublayer for every shipped option."""

import inspect
import re

import pytest
import torch

from src.models.mlp.base import MLP, CopiedLinear, MLPSpec
from tests.support import ROOT, class_of, component, module_of, option, options

every_mlp = pytest.mark.parametrize("name", options("mlp"))


def built(name: str, n_copy: int = 1) -> MLP:
    """Build an MLP over 16 channels with random weights."""
    mlp: MLP = component("mlp", name)(MLPSpec(16, True, 0.0, "none", n_copy))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for param in mlp.parameters():
            param.copy_(0.3 * torch.randn(param.shape, generator=generator))
    return mlp


@every_mlp
def test_the_yaml_holds_exactly_the_constructors_keys(name: str) -> None:
    config = option("mlp", name)
    keywords = [p for p in inspect.signature(class_of(config)).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert {str(key) for key in config if not str(key).startswith("_")} == {p.name for p in keywords}
    assert all(p.default is p.empty for p in keywords)
    assert re.match(r"# \S+: ", (ROOT / f"conf/mlp/{name}.yaml").read_text())
    assert "Source:" in module_of(config).__doc__


@every_mlp
def test_each_visit_has_its_own_copy_of_the_weights(name: str) -> None:
    copied = built(name, n_copy=2)
    x_BTD = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1))
    linears = [key for key, module in copied.named_modules() if isinstance(module, CopiedLinear)]
    for visit in (0, 1):
        mlp = built(name)
        with torch.no_grad():
            for key in linears:
                for part in ("weight", "bias"):
                    mlp.get_parameter(f"{key}.{part}").copy_(copied.get_parameter(f"{key}.{part}")[visit])
        assert torch.allclose(copied(x_BTD, visit), mlp(x_BTD), atol=1e-6)
        assert torch.equal(mlp(x_BTD, 1), mlp(x_BTD))
