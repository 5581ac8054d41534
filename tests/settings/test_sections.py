"""Sections: all errors of one at once, fields that may be missing."""

from dataclasses import dataclass

import pytest
from omegaconf import OmegaConf

from src.bounds import PositiveInt
from src.settings.sections import read_section


@dataclass(frozen=True)
class Keys:
    count: PositiveInt
    share: float
    added_later: bool = False


def test_a_field_with_a_default_may_be_missing() -> None:
    assert read_section("s", OmegaConf.create({"count": 1, "share": 1}), Keys) == Keys(1, 1.0)


def test_all_errors_of_a_section_are_raised_at_once() -> None:
    section = OmegaConf.create({"count": 0, "shares": 1})
    with pytest.raises(ValueError, match="not a key") as error:
        read_section("s", section, Keys)
    unknown = "s.shares is not a key; `python run.py --cfg job` shows them all"
    sentences = {unknown, "s.count must be int >= 1, got 0", "s.share is missing; give +s.share=<value>"}
    assert set(str(error.value).split("; s.")) <= {x.removeprefix("s.") for x in sentences} | sentences
