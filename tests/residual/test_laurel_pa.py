"""LAuReL-PA against its equation."""

import pytest
import torch
from torch import Tensor

from src.residual.laurel_pa import LaurelPA
from tests.oracle import LR, compare_flow, groups_by_name
from tests.residual.plain import Sublayers, embedding_like, jittered, stream_spec
from tests.support import tiny_gpt


@pytest.mark.parametrize("n_previous", [1, 3, 9])
def test_it_equals_its_source(n_previous: int) -> None:
    """arXiv 2411.07501, equation 4 with h the identity: x_{i+1} = f(x_i) + x_i + sum_{j < k} gamma_{i,j} x_{i-j}."""
    spec = stream_spec()
    strategy = jittered(LaurelPA(spec, n_previous=n_previous))

    def paper(x0: Tensor, branches: Sublayers) -> Tensor:
        gamma, x = iter(strategy.gamma_P), [x0]
        for i, f in enumerate(branches):
            previous = [next(gamma) * x[i - j] for j in range(n_previous) if i - j >= 0]
            x.append(f(x[i]) + x[i] + torch.stack(previous).sum(0))
        assert next(gamma, None) is None
        return x[-1]

    compare_flow(strategy, spec, paper)


def test_its_weights_start_at_zero_without_decay() -> None:
    gpt = tiny_gpt("laurel_pa")
    assert not gpt.residual.gamma_P.any()
    assert groups_by_name(gpt)["residual.gamma_P"] == (LR, 0.0)


def test_the_state_holds_no_more_streams_than_the_sum() -> None:
    spec, x = stream_spec(), embedding_like()
    strategy = LaurelPA(spec, n_previous=2).double()
    state = strategy.begin(x)
    for site in spec.sites:
        state = strategy.write(state, site, x)
        assert len(state.x_BTD) <= 2


def test_zero_streams_are_an_error_that_names_vanilla() -> None:
    with pytest.raises(ValueError, match="n_previous must be >= 1, got 0; for none use residual=vanilla"):
        LaurelPA(stream_spec(), n_previous=0)
