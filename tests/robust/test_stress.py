"""The stress command in full (`pytest -m stress`), and cut short for every day."""

import os
from pathlib import Path

import pytest

from tests.robust.stress import all_rows
from tests.robust.striking import Stress


@pytest.mark.stress
def test_no_fault_costs_a_step_or_a_bit(tmp_path: Path) -> None:
    stress = Stress(tmp_path, times=int(os.environ.get("STRESS_TIMES", "5")), seed=0)
    rows = [make() for make in all_rows(stress).values()]
    assert stress.kills >= 10 * stress.times
    assert [(row.fault, row.lost, row.wrong) for row in rows if row.lost or row.wrong] == []


def test_a_run_killed_at_any_moment_again_and_again_is_the_same_run(tmp_path: Path) -> None:
    stress = Stress(tmp_path, times=1, seed=1)
    row = stress.strike("kill -9", 1, stress.killed_often(2))
    assert (row.lost, row.wrong) == (0, 0)
