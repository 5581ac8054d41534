"""Any value of any key is rejected in one sentence that names the key, or accepted and stored.

Covers `safety.py` too.
"""

import copy
import functools
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from torch._subclasses.fake_tensor import FakeTensorMode

from src.bounds import validate
from src.datamodules.base import BatchSpec
from src.errors import one_line
from src.launch.arguments import stored_yaml
from src.models.config import GPTConfig
from src.models.gpt import GPT
from src.settings.read import Settings, read_settings
from tests.support import ROOT, SIZES, option, options

ROOMS = ("residual", "norm", "embedding", "recurrence", "mlp")
COMPONENTS = [(room, name) for room in (*ROOMS, "data", "evaluation") for name in options(room)]
quickly = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
thoroughly = settings(parent=quickly, max_examples=5000, derandomize=False)

texts = st.text(st.characters(codec=None), max_size=12) | st.sampled_from(
    [
        "",
        "null",
        "1e3",
        "0x1f",
        "auto",
        "???",
        "${name}",
        r"\${name}",
        "${nope}",
        "a\nb",
        "é\u2028",
        "\udcff",
        "a\x85b",
        "2:30",
    ]
)
numbers = st.sampled_from([0, -1, 1, 2**31, 2**63, -(2**63), 10**400, 0.5, 1e-320, 1e308]) | st.integers() | st.floats()
plain = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | numbers, inner, max_size=2),
    max_leaves=4,
)


@functools.cache
def base() -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=["name=x", "trainer=cpu", "trainer.threads=1", "logger=csv"])


def keys_of(node: DictConfig, prefix: str) -> list[str]:
    found = []
    for key in map(str, node):
        found.append(f"{prefix}{key}")
        if OmegaConf.is_dict(node._get_node(key)):
            found += keys_of(node[key], f"{prefix}{key}.")
    return found


KEYS = [key for key in keys_of(base(), "") if not key.startswith("task")]


def changed(key: str, value: object, room: str = "", name: str = "") -> DictConfig | None:
    """Return the default configuration with one value changed; None where YAML cannot express it."""
    config = copy.deepcopy(base())
    if room:
        config[room] = option(room, name)
    try:
        OmegaConf.update(config, key, value, merge=False)
    except Exception:  # no configuration holds such a value
        return None
    return config


def build(found: Settings) -> None:
    """Build the components of the settings on a small trunk of tensors without memory."""
    with FakeTensorMode():
        GPT(
            GPTConfig(**{**SIZES, "n_layer": 6, "n_head": 4}),
            residual=found.residual,
            norm=found.norm,
            embedding=found.embedding,
            recurrence=found.recurrence,
            seed=1,
        )
    found.data(BatchSpec(128, 50304, found.seed, found.trainer.max_steps))


def judge(key: str, config: DictConfig, built: bool) -> None:
    """Check that a sentence names the key, or that config.yaml stores the same settings."""
    try:
        found = read_settings(config)
        if built:
            build(found)
    except ValueError as error:
        words = one_line(error)
        assert key in words, words
        return
    again = OmegaConf.create(stored_yaml(found.config))
    assert isinstance(again, DictConfig)
    assert read_settings(again).config == found.config


def check_keys(data: st.DataObject) -> None:
    key, value = data.draw(st.sampled_from(KEYS)), data.draw(values)
    config = changed(key, value)
    if config is not None:
        judge(key, config, built=key.startswith("data."))


def check_components(data: st.DataObject) -> None:
    room, name = data.draw(st.sampled_from(COMPONENTS))
    own = keys_of(option(room, name), f"{room}.")
    key, value = data.draw(st.sampled_from(own)), data.draw(values)
    config = changed(key, value, room, name)
    if config is not None:
        judge(key, config, built=room != "evaluation")


@given(st.data())
@quickly
def test_any_value_of_any_key_is_rejected_by_name_or_stored(data: Any) -> None:
    check_keys(data)


@given(st.data())
@quickly
def test_any_value_of_any_component_is_rejected_by_name_or_builds(data: Any) -> None:
    check_components(data)


@pytest.mark.stress
@given(st.data())
@thoroughly
def test_thousands_of_values_of_keys(data: Any) -> None:
    check_keys(data)


@pytest.mark.stress
@given(st.data())
@thoroughly
def test_thousands_of_values_of_components(data: Any) -> None:
    check_components(data)


def test_an_integer_becomes_a_float() -> None:
    components = [(room, name) for room in ROOMS for name in options(room)]
    for room, name in components:
        config = copy.deepcopy(base())
        config[room] = option(room, name)
        for key, value in config[room].items():
            if isinstance(value, float) and not str(key).endswith(("fraction", "share")):
                config[room][key] = 1
        build(read_settings(config))


@pytest.mark.parametrize("text", ["a\0b", "a\x85b", "\udcff"])
def test_text_that_no_file_can_store_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"data\.path must be text of valid characters"):
        validate("data.path", text, str | None)
