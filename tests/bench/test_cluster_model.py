"""Plans for many GPUs: formulas by hand, and single-node numbers beside those that were counted and measured."""

from dataclasses import replace

import pytest

from src.bench.cluster_model import FACTORS, HARDWARE, MFU, MODELS, Hardware, Model, Plan, all_reduce, main, ring
from src.models.flops import count_flops_per_token
from tests.support import tiny_gpt

H200 = HARDWARE["H200"]
MIB = 2**20


def plan(name: str = "gpt2_medium", gpus: int = 8, sharding: str = "ddp", **changes: object) -> Plan:
    return replace(Plan(MODELS[name], gpus, sharding), **changes)  # type: ignore[arg-type]


def test_a_ring_sends_each_byte_twice_less_a_share() -> None:
    # 2 * 7/8 * 1.4e9 bytes at 0.8 * 450e9 bytes a second.
    assert ring(1.4e9, 8, 450e9) == pytest.approx(6.8056e-3, rel=1e-4)
    assert ring(1.4e9, 1, 450e9) == 0


def test_nodes_exchange_an_eighth_of_the_bytes_each_gpu() -> None:
    # Within the node as above; between 8 nodes 2 * 7/8 * 0.175e9 bytes at 0.8 * 50e9 bytes a second.
    assert all_reduce(1.4e9, 64, H200) == pytest.approx(6.8056e-3 + 7.6563e-3, rel=1e-4)


def test_parameters_and_flops_are_those_of_the_gpt() -> None:
    gpt = tiny_gpt()
    sizes = gpt.config
    model = Model(sizes.n_layer, sizes.n_embd, sizes.block_size, sizes.vocab_size, 1)
    vectors = sum(p.numel() for p in gpt.parameters() if p.dim() == 1)
    assert model.n_params == gpt.n_params(positions=True) - vectors
    assert model.flops_per_token == count_flops_per_token(gpt) - 6 * vectors


# layers, width, T; MiB of a float32 step of 4 sequences, and of weights and moments: docs/scaling.md, 2026-11-21.
MEASURED = [
    (12, 256, 256, 201, 115),
    (3, 256, 256, 57, 34),
    (6, 256, 256, 105, 61),
    (24, 256, 256, 394, 223),
    (12, 128, 256, 101, 30),
    (12, 512, 256, 404, 446),
    (12, 256, 64, 53, 114),
    (12, 256, 1024, 797, 117),
]


@pytest.mark.parametrize(("n_layer", "n_embd", "block_size", "step", "state"), MEASURED)
def test_memory_is_within_a_fifth_of_what_was_measured(
    n_layer: int, n_embd: int, block_size: int, step: int, state: int
) -> None:
    one = plan(model=Model(n_layer, n_embd, block_size, 2048, 1), gpus=1, bf16=False)
    assert one.state() * 12 / 16 / MIB == pytest.approx(state, rel=0.03)
    assert 1.0 <= step / (4 * one.activations() / MIB) <= 1.2


# GB of the GPU: largest micro-batch by counting on fake tensors (docs/scaling.md, 2026-11-21).
COUNTED = {
    (12, 768): {24: 57, 40: 104, 80: 220, 141: 398},
    (24, 1024): {24: 17, 40: 34, 80: 78, 141: 145},
    (36, 1280): {24: 4, 40: 14, 80: 37, 141: 73},
    (48, 1600): {24: 0, 40: 3, 80: 17, 141: 39},
}


@pytest.mark.parametrize("sizes", COUNTED)
def test_micro_batches_are_those_counted_on_fake_tensors(sizes: tuple[int, int]) -> None:
    for gigabytes, counted in COUNTED[sizes].items():
        hardware = replace(H200, memory=gigabytes * 1e9)
        fitting = plan(model=Model(*sizes, 1024, 50304, 1), gpus=1, hardware=hardware).fitting()
        assert fitting == pytest.approx(counted, rel=0.03, abs=1)


def test_speed_is_within_a_tenth_of_what_others_measured_on_one_node() -> None:
    # MLS-Bench leaderboard: 7.096e9 tokens in 20,027 s on two H200, evaluations included; the MFU is this run's.
    assert plan(gpus=2).tokens_per_s() == pytest.approx(7.096e9 / 20_027, rel=0.01)
    # modded-nanogpt, track 2, first row: llm.c, 60,000 steps of 524,288 tokens in 5.8 h on eight H100.
    eight = plan(gpus=8, hardware=HARDWARE["H100"])
    assert eight.tokens_per_s() == pytest.approx(60_000 * 524_288 / (5.8 * 3600), rel=0.1)


def test_shards_divide_the_state() -> None:
    whole = plan("gpt_7b", 64).state()
    assert plan("gpt_7b", 64, "hsdp").state() == whole / 8
    assert plan("gpt_7b", 64, "fsdp").state() == whole / 64
    assert plan("gpt_7b", hardware=HARDWARE["H100"]).fitting() == 0


def test_recomputation_trades_a_third_of_the_compute_for_activations() -> None:
    kept, recomputed = plan("gpt2_xl"), plan("gpt2_xl", recompute=True)
    # 4 of 36 bytes in each of 48 layers, and 36 in one.
    assert recomputed.activations() == pytest.approx(kept.activations() * (4 / 36 + 1 / 48))
    assert recomputed.compute(4) == pytest.approx(4 / 3 * kept.compute(4))


def test_a_strategy_scales_activations_and_time() -> None:
    streams = plan(factors=FACTORS["hyperconn"])
    assert streams.activations() == pytest.approx(1.91e9, rel=0.01)
    assert streams.compute(32) == pytest.approx(1.12 * plan().compute(32))


def test_an_exchange_behind_the_backward_costs_nothing() -> None:
    total, exposed = plan(gpus=8).exchange()
    assert total > 0 == exposed
    slow = Hardware(141e9, 989e12, 1e9, 1e9, 8)
    one = plan(gpus=8, hardware=slow)
    total, exposed = one.exchange()
    assert exposed == pytest.approx(total - 2 / 3 * one.compute(one.micro_batch()))
    # fsdp gathers 2 P bytes twice and reduces 4 P bytes in each of the two micro-steps of 32 sequences.
    assert plan(gpus=8, sharding="fsdp", hardware=slow).exchange()[0] == pytest.approx(2 * total)


def test_half_a_million_tokens_are_one_sequence_a_rank_on_512_gpus() -> None:
    assert plan(gpus=512).sequences() == 1
    assert plan(gpus=512).fast_batch() == 512 * 32_768


def test_the_table_has_a_row_for_each_plan(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--gpus", "8", "64", "--models", "gpt2_medium", "--storage-gbs", "1"])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[1:3] for row in rows] == [
        ["8", "ddp"],
        ["8", "fsdp"],
        ["64", "ddp"],
        ["64", "hsdp"],
        ["64", "fsdp"],
    ]
    assert all(row.endswith("| 4.3 s |") for row in rows)  # 12 bytes of 355 M parameters at 1e9 bytes a second
    with pytest.raises(SystemExit, match="2"):
        main(["--gpus", "12"])


def test_the_share_of_the_peak_is_that_of_its_source() -> None:
    assert 7.096e9 / 20_027 / 2 * MODELS["gpt2_medium"].flops_per_token / H200.peak == pytest.approx(MFU, rel=0.01)
