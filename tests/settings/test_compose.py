"""Configurations composed beside a job's own."""

import pytest
from hydra import initialize_config_dir

from src.errors import UserError
from src.settings.compose import compose_config
from tests.support import ROOT


def test_the_last_override_counts_and_an_unknown_name_is_an_error_of_the_user() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert compose_config(["seed=1", "seed=2"]).seed == 2
        with pytest.raises(UserError, match="did you mean hyperconn"):
            compose_config(["residual=hypercon"])
        with pytest.raises(UserError, match=r"trainer\.max_step is not a key"):
            compose_config(["trainer.max_step=5"])
