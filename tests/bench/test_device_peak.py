"""Device ceilings: published peaks by name, and measured products."""

import torch

from src.bench.device_peak import matmul_speed, published_peak


def test_a_peak_is_found_by_the_longest_word_of_the_name() -> None:
    assert published_peak("NVIDIA H200") == 989e12
    assert published_peak("NVIDIA GB200 Superchip") == 2500e12
    assert published_peak("Some Chip") is None


def test_a_product_reaches_a_gigaflop_per_second() -> None:
    assert matmul_speed("cpu", torch.float32) > 1e9
