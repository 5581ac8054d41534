"""float32 products on a CPU by oneDNN: where they serve, that they are as precise, and who uses them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict
from torch import nn

from src.bench import candidates
from src.bench.candidates import build_candidate, compose_default_settings
from src.bench.peers import Peer
from src.bench.step import StepSpec
from src.errors import UserError
from src.files import CONF
from src.kernels import compile_cache as machine_code
from src.kernels import cpu_matmul as products
from src.kernels.cpu_matmul import ROUNDING, by_onednn, for_now, reason_against, serves
from src.settings.read import Settings, read_settings
from src.training.process import prepare_process
from tests.runs import SMALL

CPUINFO = "processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu {flags}\n\nprocessor\t: 1\nvendor_id\t: else\n"


@pytest.fixture(autouse=True)
def _processor_not_known() -> Iterator[None]:
    reason_against.cache_clear()
    yield
    reason_against.cache_clear()


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def like(vendor: str = "AuthenticAMD", flags: str = "avx2 avx512f", off: float = 1e-6) -> None:
        (tmp_path / "cpuinfo").write_text(CPUINFO.format(vendor=vendor, flags=flags))
        monkeypatch.setattr(machine_code, "CPUINFO", tmp_path / "cpuinfo")
        monkeypatch.setattr(products, "error", lambda: off)

    return like


def settled(*overrides: str) -> Settings:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose_default_settings([*SMALL, "name=products", *overrides])


# ---- where they serve


@pytest.mark.parametrize(
    ("vendor", "flags", "off", "auto"),
    [
        ("AuthenticAMD", "avx2 avx512f avx512_bf16", 1e-6, True),
        ("HygonGenuine", "avx512f", 1e-6, True),
        ("GenuineIntel", "avx512f", 1e-6, False),  # MKL is at its best
        ("", "avx512f", 1e-6, False),  # whose it is, is not said
        ("AuthenticAMD", "avx2", 1e-6, False),
        ("AuthenticAMD", "avx512f amx_tile", 1e-6, False),
        ("AuthenticAMD", "avx512f", 2e-3, False),
        ("AuthenticAMD", "avx512f", float("inf"), False),
    ],
)
def test_auto_takes_them_where_mkl_is_slow_and_they_are_as_precise(
    processor, vendor: str, flags: str, off: float, auto: bool
) -> None:
    processor(vendor, flags, off)
    assert serves("auto") is auto
    assert serves(False) is False


def test_a_system_that_does_not_tell_its_processor_keeps_torchs_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine_code, "CPUINFO", tmp_path / "nowhere")
    assert serves("auto") is False


@pytest.mark.parametrize(
    ("flags", "off", "why"),
    [
        ("avx512f amx_tile", 1e-6, "on a processor with AMX it may round float32 products to bfloat16"),
        ("avx2", 1e-6, "oneDNN has float32 products of its own only on a processor with AVX-512"),
        ("avx512f", 2e-3, r"its float32 products are off by 2\.0e-03 of their size"),
    ],
)
def test_a_precision_that_would_be_lost_is_refused(processor, flags: str, off: float, why: str) -> None:
    processor("GenuineIntel", flags, off)
    with pytest.raises(UserError, match=f"trainer.onednn=true, but {why}; use trainer.onednn=auto"):
        settled("trainer.onednn=true")


def test_who_asks_for_them_has_them_beside_mkl_too(processor) -> None:
    processor("GenuineIntel")
    assert settled("trainer.onednn=true").config["trainer"]["onednn"] is True


def test_a_word_that_is_no_choice_is_named() -> None:
    with pytest.raises(UserError, match=r"trainer\.onednn must be auto, true or false, got 'yes please'"):
        settled("trainer.onednn='yes please'")


def test_a_run_of_before_there_was_a_choice_keeps_torchs_own(processor) -> None:
    processor()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        stored = OmegaConf.create(OmegaConf.to_container(compose("config", ["name=x", "trainer=cpu"])))
    assert read_settings(stored).trainer.onednn is True
    with open_dict(stored):
        del stored.trainer["onednn"]
    assert read_settings(stored).trainer.onednn is False


# ---- what they are


@pytest.mark.skipif(reason_against() is not None, reason=f"not on this processor: {reason_against()}")
def test_they_are_as_precise_as_float32_is() -> None:
    assert 0 < products.error() <= ROUNDING
    x, w = (torch.randn(256, 512, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    off = {}
    for on in (False, True):
        with for_now(on):
            off[on] = float(((x @ w.T) - x.double() @ w.double().T).abs().amax())
    assert off[True] < 4 * off[False]


def test_what_bfloat16_would_make_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    rounded = torch.Tensor.__matmul__

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if torch.get_float32_matmul_precision() == "medium":
            a, b = a.bfloat16().float(), b.bfloat16().float()
        return rounded(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    assert products.error() > 100 * ROUNDING
    assert torch.get_float32_matmul_precision() == "highest"


# ---- who uses them


def test_a_process_has_them_as_its_trainer_says(processor) -> None:
    processor()
    for asked, said in (("true", "medium"), ("false", "highest"), ("auto", "medium")):
        prepare_process(settled(f"trainer.onednn={asked}", "trainer.threads=1").trainer)
        assert torch.get_float32_matmul_precision() == said


def test_contestants_of_a_bench_take_turns_with_their_own(processor, monkeypatch: pytest.MonkeyPatch) -> None:
    processor()
    seen = []

    def noted(gpt: nn.Module, *args: object, **keys: object):
        return (lambda x, y, lap=None: seen.append(torch.get_float32_matmul_precision())), None

    def theirs(spec: StepSpec):
        return nn.Linear(1, 1), lambda x, y: seen.append(torch.get_float32_matmul_precision())

    monkeypatch.setattr(candidates, "optimizer_step", noted)
    own = [build_candidate(settled(f"trainer.onednn={on}")) for on in ("true", "false")]
    peer = Peer("peer", theirs, settled("trainer.onednn=true")).build()
    tokens = torch.zeros(1, 1, dtype=torch.long)
    for one in (*own, peer):
        one.step(tokens, tokens)
    assert seen == ["medium", "highest", "medium"]


def test_a_trained_step_is_the_same_up_to_rounding() -> None:
    if reason_against() is not None:
        pytest.skip(f"not on this processor: {reason_against()}")
    losses = {}
    tokens = torch.randint(512, (2, 33), generator=torch.Generator().manual_seed(0))
    for on in ("true", "false"):
        one = build_candidate(settled(f"trainer.onednn={on}", "model.n_embd=128"))
        losses[on] = [float(one.step(tokens[:, :-1], tokens[:, 1:])) for _ in range(4)]
    assert losses["true"] == pytest.approx(losses["false"], abs=2e-5)
    assert losses["true"] != losses["false"]  # they were made otherwise


def test_by_onednn_is_torchs_own_switch() -> None:
    by_onednn(True)
    assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    by_onednn(False)
    assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
