"""Order in which torch tries its attention kernels for fixed shapes."""

from types import SimpleNamespace

import pytest
import torch

from src.kernels.attention import fixed_shapes

CUDNN, FLASH = 3, 1  # torch's numbers


def order() -> list[int]:
    return list(torch._C._get_sdp_priority_order())  # type: ignore[attr-defined]


@pytest.mark.parametrize(("major", "first"), [(8, FLASH), (9, CUDNN), (10, FLASH)])
def test_cudnn_comes_first_on_hopper_alone_and_only_within_the_context(
    major: int, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (major, 0))
    before = order()
    with fixed_shapes(SimpleNamespace(device=torch.device("cuda"))):
        assert order()[0] == first
        assert sorted(order()) == sorted(before)  # no kernel is excluded
    assert order() == before
    with fixed_shapes(torch.ones(1)):
        assert order() == before
