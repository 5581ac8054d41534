"""Device ceilings: measured products."""

import torch

from src.bench.device_peak import matmul_speed


def test_a_product_reaches_a_gigaflop_per_second() -> None:
    assert matmul_speed("cpu", torch.float32) > 1e9
