"""The coordinate check tells a parametrization that transfers from one that does not.

Covers `src/reporting/coordinates.py` too.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src.checks import coordinates
from src.checks.base import Subject
from src.checks.quick import build_gpt
from src.models.config import GPTConfig
from src.reporting.coordinates import draw_coordinates
from src.residual.base import Site, StreamSpec
from src.residual.families.single_stream import SingleStream
from src.source import Source
from tests.support import SIZES, adamw, component, options


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinates, "WIDTHS", (32, 128))
    monkeypatch.setattr(coordinates, "DEPTHS", (2, 8))
    monkeypatch.setattr(coordinates, "SEEDS", (0,))


def subject(residual: Any = "vanilla", **sizes: Any) -> Subject:
    parts = {"norm": component("norm", "layernorm"), "embedding": component("embedding", "tied")}
    residual = component("residual", residual) if isinstance(residual, str) else residual
    return Subject(
        functools.partial(build_gpt, residual=residual, **parts), GPTConfig(**{**SIZES, "n_head": 2, **sizes})
    )


class UnnamedReader(SingleStream):
    """A gate that sums over the width and is not named in `width_readers`; weak, so that it alone grows."""

    source = Source("a fault")

    def __init__(self, spec: StreamSpec) -> None:
        super().__init__()
        self.w_SD = nn.Parameter(torch.zeros(spec.n_site, spec.n_embd))

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        normed_BTD = torch.nn.functional.rms_norm(state, state.shape[-1:])
        return state + y_BTD + 0.2 * normed_BTD * (normed_BTD @ self.w_SD[site.index])[..., None]


def test_without_a_rule_activations_move_with_width_and_depth_and_with_it_they_do_not() -> None:
    faults, figures = coordinates.check_coordinates(subject(base_width=64, base_depth=2), adamw())
    assert faults == []
    plain, scaled, deep, damped = (coordinates.Coordinates(**table) for table in figures["coordinates"])
    assert plain.slopes["last sublayer"] > 1
    assert plain.slopes["logits"] > 0.5
    assert deep.slopes["end of the stream"] > 0.5
    assert max(map(abs, scaled.slopes.values())) < coordinates.TOLERANCE
    assert max(map(abs, damped.slopes.values())) < coordinates.TOLERANCE
    # At the base size both parametrizations are the same model.
    assert {name: values[0] for name, values in plain.moved.items()} == pytest.approx(
        {name: values[0] for name, values in scaled.moved.items()}, rel=1e-5
    )


#: Their state has the factors width^-1/2 of the source, so that it moves less in a wide model.
MOVE_LESS = ("deep_delta", "deep_delta_expanded")


@pytest.mark.stress
@pytest.mark.parametrize("residual", options("residual"))
def test_the_width_rule_holds_for_every_strategy_but_two(residual: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinates, "WIDTHS", (64, 128, 256))
    faults, _ = coordinates.check_coordinates(subject(residual, base_width=64), adamw(), axes=("width",))
    assert bool(faults) == (residual in MOVE_LESS), faults


def test_a_parameter_that_sums_over_the_width_and_is_not_named_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinates, "WIDTHS", (64, 256))
    faults, figures = coordinates.check_coordinates(subject(UnnamedReader, base_width=64), adamw())
    assert len(faults) == 1
    assert faults[0].startswith("under model.base_width the activation 'end of the stream' moves in 4 steps as width^")
    named = type("NamedReader", (UnnamedReader,), {"width_readers": ("w_SD",)})
    assert coordinates.check_coordinates(subject(named, base_width=64), adamw())[0] == []
    tables = [coordinates.Coordinates(**table) for table in figures["coordinates"]]
    assert coordinates.format_coordinates(tables).count("end of the stream") == 4
    draw_coordinates([dataclasses.asdict(table) for table in tables], tmp_path / "coordinates.png")
    assert (tmp_path / "coordinates.png").stat().st_size > 1000
