"""Vanilla against the equation."""

import torch

from src.residual.base import Site
from src.residual.vanilla import Vanilla


def test_each_output_is_added() -> None:
    site = Site(0, 0, 0, "attn", 0, opens_block=True, closes_block=False)
    strategy = Vanilla(None)
    x, y = torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])
    read, state = strategy.read(strategy.begin(x), site)
    assert torch.equal(read, x)
    assert torch.equal(strategy.end(strategy.write(state, site, y)), torch.tensor([11.0, 22.0]))
