"""Tables of a benchmark: throughput beside the ceilings, and the parts of a step."""

import pytest

from src.bench.device_peak import Ceiling
from src.bench.tables import format_loss_gaps, parts_table, speed_table, strategy_summary
from src.bench.timing import Timing
from tests.support import options

TIMING = Timing(
    [2.0, 4.0, 3.0],
    [1.0] * 3,
    60.0,
    tokens=300,
    flops_per_token=5_000,
    n_params=7,
    state_bytes=2**20,
    step_bytes=2**31,
    parts={"forward": 1.5},
)


def test_throughput_is_divided_by_peak_and_product() -> None:
    ceiling = Ceiling(peak=1e6, product=625e3, product_words="a product's speed", copy=1e9)
    line = speed_table({"vanilla": TIMING}, {"vanilla": ceiling}, "at a size").splitlines()[-1]
    assert line.split(" | ")[3:] == [
        *("1", "3000.0", "0.33", "100", "50.0 %", "80.0 %", "1.0 MiB + 2.00 GiB", "60.0 s |"),
    ]


def test_parts_are_in_milliseconds() -> None:
    line = parts_table({"vanilla": TIMING}, {"vanilla": None}, 0.001).splitlines()[-1]
    assert line == "| vanilla | - | 1500.00 | - | - | - | 1.00 |"


def test_a_peer_with_other_losses_stands_out() -> None:
    text = format_loss_gaps({"one": 1e-6, "two": 0.1, "three": None}, "vanilla")
    assert "one: equal (largest relative gap 1e-06); two: DIFFERENT LOSSES" in text
    assert "three: not compared, its weights do not fit" in text
    assert format_loss_gaps({}, "vanilla") == ""


@pytest.mark.parametrize("name", options("residual"))
def test_every_strategy_has_a_summary_in_its_yaml(name: str) -> None:
    assert len(strategy_summary(name)) > 20


def test_the_summary_of_a_composition_is_those_of_its_parts() -> None:
    assert strategy_summary("lns+prores") == f"{strategy_summary('lns')}; {strategy_summary('prores')}"
