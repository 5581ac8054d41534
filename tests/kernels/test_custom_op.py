"""Operators and their shortcut: called directly where nobody looks on, as an operator where somebody does."""

import pytest
import torch
from torch import Tensor

from src.kernels import custom_op as operators
from src.kernels.custom_op import directly
from src.kernels.depth_attention import ops


@pytest.mark.parametrize(
    ("args", "direct"),
    [
        ((1, torch.ones(2)), True),
        ((2.0, [torch.ones(2), torch.ones(2)], None), True),
        (([], torch.ones(2)), True),
        ((1, [torch.nn.Parameter(torch.ones(2))]), False),  # of another type: let torch decide
        ((1, 2.0), False),
    ],
)
def test_plain_tensors_go_the_short_way(args: tuple[object, ...], direct: bool) -> None:
    call = directly(lambda *_: "function", lambda *_: "operator")
    assert call(*args) == ("function" if direct else "operator")


def test_a_fake_tensor_and_a_compiler_meet_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    call = directly(lambda *_: "function", lambda *_: "operator")
    with torch._subclasses.FakeTensorMode():
        assert call(torch.ones(2)) == "operator"
    monkeypatch.setattr(operators.torch.compiler, "is_compiling", lambda: True)
    assert call(torch.ones(2)) == "operator"


def test_both_ways_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def scored() -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        v_BTD, key_QD = torch.randn(2, 3, 16, generator=generator), torch.randn(4, 16, generator=generator)
        return list(ops.depth_scores(v_BTD, key_QD, 1e-5))

    short = scored()
    monkeypatch.setattr(operators, "_plain", lambda _: False)
    assert all(map(torch.equal, short, scored()))
