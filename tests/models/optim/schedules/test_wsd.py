"""schedule=wsd against values computed by hand from Hägele et al. 2024, eq. 1 and section 3.1."""

import math

import pytest

from src.models.optim.schedules.wsd import WSD


def wsd(shape: str = "linear", *, share: float = 0.4, warmup: int = 2, floor: float = 0.2, n: int = 10) -> WSD:
    """A schedule of `n` steps with peak 1."""
    return WSD(1.0, floor, warmup, n, decay_share=share, decay_steps=None, decay_shape=shape)


def test_the_rate_is_the_peak_between_warm_up_and_decay() -> None:
    assert [wsd().lr(s) for s in range(6)] == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("linear", [0.8, 0.6, 0.4, 0.2]),
        ("1-sqrt", [0.6, 1 - 0.8 * math.sqrt(0.5), 1 - 0.8 * math.sqrt(0.75), 0.2]),
    ],
)
def test_the_last_share_of_the_steps_decays_to_exactly_the_floor(shape: str, expected: list[float]) -> None:
    rates = [wsd(shape).lr(s) for s in range(6, 10)]
    assert rates == pytest.approx(expected, abs=1e-15)
    assert rates[-1] == 0.2


def test_a_run_prolonged_in_its_stable_phase_keeps_its_rates() -> None:
    assert [wsd(n=10).lr(s) for s in range(6)] == [wsd(n=100).lr(s) for s in range(6)]


def test_a_decay_of_less_than_a_step_takes_one_step() -> None:
    assert [wsd(share=0.01, warmup=0, n=3).lr(s) for s in range(3)] == [1.0, 1.0, 0.2]


def test_a_share_of_the_steps_is_rounded() -> None:
    assert [wsd(share=0.2, n=n).n_decay for n in (12, 13, 15)] == [2, 3, 3]  # 2.4, 2.6 and 3 steps


def test_a_decay_may_take_the_whole_run() -> None:
    rates = [wsd(share=1.0, warmup=0, n=4).lr(s) for s in range(4)]
    assert rates == pytest.approx([0.8, 0.6, 0.4, 0.2], abs=1e-15)


@pytest.mark.parametrize(
    ("share", "shape", "words"),
    [
        (0.0, "linear", r"schedule\.decay_share must be in \(0, 1\], got 0\.0; schedule=constant"),
        (1.5, "linear", r"schedule\.decay_share must be in \(0, 1\], got 1\.5"),
        (0.4, "cosine", r"schedule\.decay_shape must be one of linear, 1-sqrt, got cosine"),
        (0.9, "linear", r"schedule\.decay_share=0\.9 of trainer\.max_steps=10 must leave room for .*=2; lower"),
    ],
)
def test_a_key_out_of_bounds_is_an_error(share: float, shape: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        wsd(shape, share=share)


def test_a_decay_in_steps_replaces_the_share_and_no_rate_before_it_depends_on_the_length() -> None:
    short, long = (WSD(1.0, 0.0, 2, n, decay_share=0.9, decay_steps=4, decay_shape="linear") for n in (12, 24))
    assert [short.lr(s) for s in range(7, 12)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert [long.lr(s) for s in range(20)] == [0.5, *[1.0] * 19]
    with pytest.raises(ValueError, match=r"schedule\.decay_steps=11 of trainer\.max_steps=12 must leave room for"):
        WSD(1.0, 0.0, 2, 12, decay_share=0.2, decay_steps=11, decay_shape="linear")
