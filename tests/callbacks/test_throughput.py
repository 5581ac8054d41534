"""FLOP/s, MFU and memory of a device."""

import mmap
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from src.callbacks.throughput import Throughput, find_peak, published_peak, read_memory
from src.models.flops import count_flops_per_token
from tests.support import tiny_gpt


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GB200 Superchip", 2500e12),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA RTX A4000", None),
        ("Some Chip", None),
    ],
)
def test_a_peak_is_that_of_the_device_or_none(name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert published_peak(name) == peak
    assert find_peak(torch.device("cuda:0"), bf16=True) == peak
    assert find_peak(torch.device("cuda:0"), bf16=False) is None
    assert find_peak(torch.device("cpu"), bf16=True) is None


def test_flops_and_mfu_are_those_of_one_device_of_two() -> None:
    gpt = tiny_gpt()
    module: Any = SimpleNamespace(gpt=gpt, device=torch.device("cpu"))
    trainer: Any = SimpleNamespace(world_size=2)
    per_token = count_flops_per_token(gpt)
    # 3 layers of width 16 over 12 tokens, 64 ids: 12 * 16^2 weights a layer, 4 norms' gains beside them.
    assert per_token == 6 * (3 * 12 * 16**2 + 7 * 16 + 64 * 16) + 12 * 3 * 16 * 12
    values = Throughput(1e9, bf16=False).measure(1000.0, trainer, module)
    assert values["flops_per_s"] == 1000.0 * per_token / 2
    assert values["mfu"] == 1000.0 * per_token / 2 / 1e9
    assert "mfu" not in Throughput(None, bf16=False).measure(1000.0, trainer, module)


def test_the_memory_of_a_cpu_grows_with_what_is_held() -> None:
    before = read_memory(torch.device("cpu"))
    held = mmap.mmap(-1, 2**27)  # not by torch.ones, which may reuse memory that was freed before
    torch.frombuffer(held, dtype=torch.uint8).fill_(1)
    after = read_memory(torch.device("cpu"))
    if before is None or after is None:
        pytest.skip("this system does not state the resident set")
    assert 2**26 < after - before < 2**28
    assert held[-1] == 1


def test_the_memory_of_a_gpu_is_the_peak_of_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30)
    assert read_memory(torch.device("cuda:0")) == 3 * 2**30
