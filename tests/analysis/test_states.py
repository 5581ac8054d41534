"""Cosines of states, by hand."""

import torch

from src.analysis.forward import record_forward
from src.analysis.states import cosines, measure_cosines
from tests.support import tiny_gpt, tokens


def test_cosines_of_known_vectors() -> None:
    x = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    turned = torch.tensor([[[0.0, 2.0], [3.0, 0.0]]])  # the first token by 90 degrees, the second one stretched
    assert torch.allclose(cosines((x, 5 * x, turned, -turned)), torch.tensor([[1.0, 0.5, -1.0]]))


def test_sites_that_write_nothing_leave_identical_states() -> None:
    gpt = tiny_gpt("rezero", n_layer=2).eval()  # gates of zero
    found = measure_cosines(record_forward(gpt, tokens()))
    for name in ("states", "reads"):
        assert torch.allclose(found[name], torch.ones(3, 4))
