"""LAuReL-PA against its equation."""

import pytest
import torch

from src.residual.laurel_pa import LaurelPA
from tests.residual.plain import embedding_like, flow, jittered, stream_spec, sublayers


@pytest.mark.parametrize("n_previous", [1, 3, 9])
def test_each_sum_adds_the_last_streams(n_previous: int) -> None:
    spec, branches, x0 = stream_spec(), sublayers(6), embedding_like()
    strategy = jittered(LaurelPA(spec, n_previous=n_previous))
    gamma = iter(strategy.gamma_P)
    streams = [x0]
    for branch in branches:
        x = streams[-1] + branch(streams[-1])
        for old in reversed(streams[-n_previous:]):
            x = x + next(gamma) * old
        streams.append(x)
    assert next(gamma, None) is None
    assert torch.allclose(flow(strategy, spec, x0, branches), streams[-1], rtol=0, atol=1e-11)


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
