"""Products by oneDNN on a CPU: where they are used, their precision, and the switch."""

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
from src.kernels import compile_cache, cpu_matmul
from src.kernels.cpu_matmul import MATMUL, TOLERANCE, resolve_onednn, verify_onednn, why_not_onednn
from src.kernels.dispatch import REGISTRY
from src.settings.read import Settings, read_settings
from src.training.process import prepare_process
from tests.runs import SMALL

CPUINFO = "processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu {flags}\n\nprocessor\t: 1\nvendor_id\t: else\n"


@pytest.fixture(autouse=True)
def _forget_the_processor() -> Iterator[None]:
    why_not_onednn.cache_clear()
    yield
    why_not_onednn.cache_clear()


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def like(vendor: str = "AuthenticAMD", flags: str = "avx2 avx512f", off: float = 1e-6) -> None:
        (tmp_path / "cpuinfo").write_text(CPUINFO.format(vendor=vendor, flags=flags))
        monkeypatch.setattr(compile_cache, "CPUINFO", tmp_path / "cpuinfo")
        reason = None if off <= TOLERANCE else f"output 0 of case 0 is off by {off:.1e} of its size"
        monkeypatch.setattr(cpu_matmul, "verify_onednn", lambda: reason)

    return like


def settled(*overrides: str) -> Settings:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose_default_settings([*SMALL, "name=products", *overrides])


# ---- where they are used


@pytest.mark.parametrize(
    ("vendor", "flags", "off", "auto"),
    [
        ("AuthenticAMD", "avx2 avx512f avx512_bf16", 1e-6, True),
        ("HygonGenuine", "avx512f", 1e-6, True),
        ("GenuineIntel", "avx512f", 1e-6, False),  # MKL is fast
        ("", "avx512f", 1e-6, False),  # unknown vendor
        ("AuthenticAMD", "avx2", 1e-6, False),
        ("AuthenticAMD", "avx512f amx_tile", 1e-6, False),
        ("AuthenticAMD", "avx512f", 2e-3, False),
        ("AuthenticAMD", "avx512f", float("inf"), False),
    ],
)
def test_auto_uses_onednn_where_mkl_is_slow_and_it_is_as_precise(
    processor, vendor: str, flags: str, off: float, auto: bool
) -> None:
    processor(vendor, flags, off)
    assert resolve_onednn("auto") is auto
    assert f"  {'onednn' if auto else 'torch'}  " in REGISTRY.table()
    assert resolve_onednn(False) is False


def test_a_processor_without_products_of_onednn_is_no_fallback(processor, caplog: pytest.LogCaptureFixture) -> None:
    """Every command that trains or scores would log a line, on every such machine."""
    caplog.set_level("INFO")
    processor(flags="avx2")
    assert resolve_onednn("auto") is False
    assert caplog.text == ""
    processor(off=2e-3)
    why_not_onednn.cache_clear()
    assert resolve_onednn("auto") is False
    assert "fall back to torch's default: output 0 of case 0 is off" in caplog.text


def test_an_unknown_processor_keeps_torchs_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compile_cache, "CPUINFO", tmp_path / "nowhere")
    assert resolve_onednn("auto") is False


@pytest.mark.parametrize(
    ("flags", "off", "why"),
    [
        ("avx512f amx_tile", 1e-6, "on a processor with AMX it may round float32 products to bfloat16"),
        ("avx2", 1e-6, "oneDNN has float32 products of its own only on a processor with AVX-512"),
        ("avx512f", 2e-3, r"output 0 of case 0 is off by 2\.0e-03 of its size"),
    ],
)
def test_onednn_is_rejected_if_it_is_less_precise(processor, flags: str, off: float, why: str) -> None:
    processor("GenuineIntel", flags, off)
    with pytest.raises(UserError, match=f"trainer.onednn=true, but {why}; use trainer.onednn=auto"):
        settled("trainer.onednn=true")


def test_onednn_can_be_requested_where_mkl_is_fast(processor) -> None:
    processor("GenuineIntel")
    assert settled("trainer.onednn=true").config["trainer"]["onednn"] is True


def test_another_word_is_rejected_by_name() -> None:
    with pytest.raises(UserError, match=r"trainer\.onednn must be auto, true or false, got 'yes please'"):
        settled("trainer.onednn='yes please'")


def test_a_stored_run_without_the_key_keeps_torchs_default(processor) -> None:
    processor()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        stored = OmegaConf.create(OmegaConf.to_container(compose("config", ["name=x", "trainer=cpu"])))
    assert read_settings(stored).trainer.onednn is True
    with open_dict(stored):
        del stored.trainer["onednn"]
    assert read_settings(stored).trainer.onednn is False


# ---- precision


@pytest.mark.skipif(why_not_onednn() is not None, reason=f"not on this processor: {why_not_onednn()}")
def test_onednn_is_as_precise_as_float32() -> None:
    assert verify_onednn() is None
    x, w = (torch.randn(256, 512, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    off = {}
    for on in (False, True):
        with MATMUL.hold(on):
            off[on] = float(((x @ w.T) - x.double() @ w.double().T).abs().amax())
    assert off[True] < 4 * off[False]


def test_verification_rejects_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    rounded = torch.Tensor.__matmul__

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if torch.get_float32_matmul_precision() == "medium" and a.dtype == torch.float32:
            a, b = a.bfloat16().float(), b.bfloat16().float()
        return rounded(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    assert "output 0 of case 0 is off by" in str(verify_onednn())
    assert torch.get_float32_matmul_precision() == "highest"


# ---- the switch


def test_a_process_sets_the_switch_to_its_trainers_value(processor) -> None:
    processor()
    for asked, said in (("true", "medium"), ("false", "highest"), ("auto", "medium")):
        prepare_process(settled(f"trainer.onednn={asked}", "trainer.threads=1").trainer)
        assert torch.get_float32_matmul_precision() == said


def test_candidates_of_a_bench_run_with_their_own_value(processor, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_trained_step_is_equal_up_to_rounding() -> None:
    if why_not_onednn() is not None:
        pytest.skip(f"not on this processor: {why_not_onednn()}")
    losses = {}
    tokens = torch.randint(512, (2, 33), generator=torch.Generator().manual_seed(0))
    for on in ("true", "false"):
        one = build_candidate(settled(f"trainer.onednn={on}", "model.n_embd=128"))
        losses[on] = [float(one.step(tokens[:, :-1], tokens[:, 1:])) for _ in range(4)]
    assert losses["true"] == pytest.approx(losses["false"], abs=2e-5)
    assert losses["true"] != losses["false"]  # two computations


def test_the_switch_is_torchs() -> None:
    MATMUL.set(True)
    assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    MATMUL.set(False)
    assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
