"""Operators, and functions that skip the dispatcher in eager mode."""

import pytest
import torch
from torch import Tensor

from src.kernels import custom_op
from src.kernels.custom_op import bypass_dispatcher
from src.kernels.depth_attention import ops


@pytest.mark.parametrize(
    ("args", "direct"),
    [
        ((1, torch.ones(2)), True),
        ((2.0, [torch.ones(2), torch.ones(2)], None), True),
        (([], torch.ones(2)), True),
        ((1, [torch.nn.Parameter(torch.ones(2))]), False),  # a subclass
        ((1, 2.0), False),
    ],
)
def test_plain_tensors_skip_the_dispatcher(args: tuple[object, ...], direct: bool) -> None:
    call = bypass_dispatcher(lambda *_: "function", lambda *_: "operator")
    assert call(*args) == ("function" if direct else "operator")


def test_a_fake_tensor_and_a_compiler_get_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    call = bypass_dispatcher(lambda *_: "function", lambda *_: "operator")
    with torch._subclasses.FakeTensorMode():
        assert call(torch.ones(2)) == "operator"
    monkeypatch.setattr(custom_op.torch.compiler, "is_compiling", lambda: True)
    assert call(torch.ones(2)) == "operator"


def test_both_calls_return_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def compute() -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        v_BTD, key_QD = torch.randn(2, 3, 16, generator=generator), torch.randn(4, 16, generator=generator)
        return list(ops.depth_scores(v_BTD, key_QD, 1e-5))

    short = compute()
    monkeypatch.setattr(custom_op, "_is_eager", lambda _: False)
    assert all(map(torch.equal, short, compute()))
