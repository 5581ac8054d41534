"""Keys of a configuration are classified by whether they affect what a run computes."""

from src.reporting.config_keys import EXECUTION_KEYS, is_within
from tests.settings.test_read import composed


def test_every_key_of_trainer_and_data_and_every_section_is_classified() -> None:
    config = composed("data=fineweb10b")
    sections = {*config, *(f"{section}.{key}" for section in ("trainer", "data") for key in config[section])}
    computing = {
        *("residual", "norm", "embedding", "recurrence", "mlp", "model", "optimizer", "schedule", "init_from"),
        *("seed", "guard", "callbacks", "trainer", "data"),
        *("trainer.max_steps", "trainer.overfit_batches", "trainer.precision"),
        *(
            "data._target_",
            "data._partial_",
            "data._convert_",
            "data.val_tokens",
            "data.global_batch_size",
            "data.epochs",
            "data.order",
            "data.document_attention",
        ),
    }
    assert {key for key in sections if not is_within(str(key), EXECUTION_KEYS)} == computing


def test_a_key_is_within_its_section_and_not_within_one_whose_name_it_begins_with() -> None:
    assert is_within("norm.eps", ["norm"])
    assert is_within("norm", ["norm"])
    assert not is_within("norm_placement.kind", ["norm"])
