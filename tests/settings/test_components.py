"""Classes that a configuration file may name, and stored configurations that run again."""

from pathlib import Path

import pytest
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from omegaconf import OmegaConf
from torch import nn

from src.errors import UserError
from src.residual.base import StreamSpec
from src.residual.vanilla import Vanilla
from src.settings.components import read_component
from tests.robust.support import LONGER
from tests.runs import SMALL, computed, make_shards, result, run, same_weights
from tests.support import composed_settings, options


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("whole")
    make_shards(cwd / "shards")
    done = run(*LONGER, f"data.path={cwd}/shards", "hydra.run.dir=r", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "r"


def refused(tmp_path: Path, *overrides: str) -> str:
    done = run(*SMALL, *overrides, "hydra.run.dir=r", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert not (tmp_path / "ran").exists()
    return done.stderr


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["residual._target_=subprocess.Popen", "+residual.args=[touch,ran]"], "trusted_targets=[subprocess]"),
        (["norm._target_=torch.hub.load", "+norm.source=local"], "not a class of a component"),
        (["residual._target_=src.files.write_atomic"], "is not a component of this project"),
        (["+residual._args_=[ran,x]"], "_args_ is not used here"),
        (["+data.path={_target_:subprocess.Popen,args:[touch,ran]}"], "trusted_targets=[subprocess]"),
        (["task=evaluate", "checkpoint=http://127.0.0.1:9/x.ckpt"], "no checkpoint there"),
        (["resume=http://127.0.0.1:9/run"], "is not a run folder"),
        (["task._target_=os.system"], "is not a task of this project"),
    ],
)
def test_a_target_that_is_no_component_is_rejected(overrides: list[str], words: str, tmp_path: Path) -> None:
    assert words in refused(tmp_path, *overrides)


def test_a_stored_configuration_cannot_declare_trust(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("open('ran', 'w')")
    stored = (whole / "config.yaml").read_text()
    assert "trusted_targets: []" in stored
    bad = tmp_path / "bad"
    bad.mkdir()
    changed = stored.replace("src.residual.vanilla.Vanilla", "subprocess.Popen")
    (bad / "config.yaml").write_text(changed.replace("trusted_targets: []", "trusted_targets: [subprocess]"))
    done = run(f"from_run={bad}", cwd=tmp_path)
    assert done.returncode == 2
    assert "trusted_targets=[subprocess]" in done.stderr
    (bad / "config.yaml").write_text(stored + "hydra:\n  callbacks:\n    x:\n      _target_: subprocess.Popen\n")
    done = run(f"from_run={bad}", cwd=tmp_path)
    assert done.returncode == 2
    assert "contains hydra, which no run writes" in done.stderr


def test_a_stored_configuration_runs_again_with_the_same_numbers(whole: Path, tmp_path: Path) -> None:
    done = run(f"from_run={whole}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (again,) = [path.parent for path in tmp_path.glob("multirun/*/*/result.json")]
    assert computed(again) == computed(whole)
    assert same_weights(again, whole)
    assert result(again)["config_hash"] == result(whole)["config_hash"]


def test_resume_auto_starts_continues_and_recognizes_a_completed_run(whole: Path, tmp_path: Path) -> None:
    keys = [*LONGER, f"data.path={whole.parent}/shards", "name=auto", "resume=auto"]
    stopped = run(*keys, "trainer.max_time=00:00:00:00", cwd=tmp_path)
    assert stopped.returncode == 143, stopped.stderr
    for words in ("resuming from step 1", "nothing to do"):
        done = run(*keys, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert words in done.stderr
    (folder,) = [path.parent for path in tmp_path.glob("multirun/*/*/result.json")]
    assert computed(folder) == computed(whole)
    assert same_weights(folder, whole)
    done = run(*LONGER, "resume=auto", cwd=tmp_path)
    assert done.returncode == 2
    assert "needs name=" in done.stderr


# ---- sections `callbacks` and `profiler`


def test_no_callbacks_and_no_profiler_are_the_default() -> None:
    settings = composed_settings()
    assert settings.callbacks == []
    assert settings.profiler is None
    assert not {"callbacks", "profiler"} & set(settings.config)


def test_every_shipped_callback_is_built() -> None:
    for name in options("callbacks"):
        (make,) = composed_settings(f"callbacks={name}").callbacks
        assert type(make()).__module__.startswith("lightning.pytorch.callbacks")


def test_several_callbacks_and_one_by_target() -> None:
    by_target = "+callbacks.mine._target_=lightning.pytorch.callbacks.LearningRateMonitor"
    settings = composed_settings("callbacks=[early_stopping,ema]", by_target, "callbacks.early_stopping.patience=7")
    stopping, _, monitor = (make() for make in settings.callbacks)
    assert isinstance(stopping, EarlyStopping)
    assert stopping.patience == 7
    assert isinstance(monitor, LearningRateMonitor)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+callbacks.a._target_=os.system"], "trusted_targets=[os]"),
        (["+callbacks.a._target_=torch.nn.Linear"], "must be a lightning.pytorch.callbacks.callback.Callback"),
        (
            ["callbacks=early_stopping", "+callbacks.early_stopping.patiense=1"],
            "patiense is not a key, did you mean callbacks.early_stopping.patience",
        ),
        (
            ["callbacks=early_stopping", "~callbacks.early_stopping.monitor"],
            "early_stopping.monitor is missing",
        ),
        (
            ["callbacks=early_stopping", "callbacks.early_stopping.patience=soon"],
            "callbacks.early_stopping.patience must be int, got 'soon'",
        ),
        (["+callbacks.a=3"], "callbacks.a must be"),
    ],
)
def test_a_wrong_callback_is_named(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError) as error:
        composed_settings(*overrides)
    assert words in str(error.value)


# ---- classes of a user


class ByPosition(Vanilla):
    def __init__(self, spec: StreamSpec, scale: float) -> None:
        super().__init__(spec)


class WithoutType(Vanilla):
    def __init__(self, spec: StreamSpec, *, scale) -> None:  # type: ignore[no-untyped-def]  # the fault
        super().__init__(spec)


class NoStrategy(nn.Module):
    def __init__(self, spec: StreamSpec, *, scale: float) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("name", "keys", "words"),
    [
        (
            "ByPosition",
            {"scale": 1.0},
            r"^residual\._target_: ByPosition\.__init__ takes scale by position; put keys after \*$",
        ),
        ("ByPosition", {}, r"^residual\._target_: ByPosition\.__init__ takes scale by position; put keys after \*$"),
        (
            "WithoutType",
            {"scale": 1.0},
            r"^residual\._target_: annotate scale of WithoutType\.__init__, such as scale: float$",
        ),
        ("NoStrategy", {"scale": 1.0}, r"NoStrategy must be a src\.residual\.base\.ResidualStrategy$"),
    ],
)
def test_a_constructor_against_the_rules_is_named(name: str, keys: dict[str, float], words: str) -> None:
    section = OmegaConf.create({"_target_": f"{__name__}.{name}", "_partial_": True, **keys})
    with pytest.raises(ValueError, match=words):
        read_component("residual", section, [__name__.partition(".")[0]])


# ---- configurations of earlier versions


def test_a_key_that_came_later_has_its_meaning_of_then() -> None:
    stored = OmegaConf.create({"_target_": "src.residual.backout.Backout", "_partial_": True, "layer": None})
    with pytest.raises(ValueError, match=r"residual\.backout_init is missing"):
        read_component("residual", stored, ())
    stored.backout_init = 0.2
    assert read_component("residual", stored, ()).keywords["lr"] is None
    stored.lr = 0.5
    assert read_component("residual", stored, ()).keywords["lr"] == 0.5


def test_what_is_named_by_the_old_path_of_a_module_has_to_be_a_class_too() -> None:
    stored = OmegaConf.create({"_target_": "src.residual.siamesenorm.nn", "_partial_": True})
    with pytest.raises(ValueError, match=r"siamesenorm_deit\.nn is not a class of a component"):
        read_component("residual", stored, ())


def test_a_key_that_went_names_its_successor() -> None:
    stored = OmegaConf.create({"_target_": "src.residual.lime.LIMe", "_partial_": True, "lr_scale": 33.0})
    with pytest.raises(ValueError, match=r"residual\.lr_scale is residual\.lr since 0\.3\.0, .* reslab 0\.2\.0"):
        read_component("residual", stored, ())
