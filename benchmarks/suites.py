"""The suites of `bench.suite`: which configurations and peers run beside each other, and the bars that they face."""

import dataclasses

from benchmarks.targets import (
    Bar,
    memory_more,
    memory_ratio,
    mfu,
    overhead,
    share_of_overhead,
    single,
    times_as_fast,
)


@dataclasses.dataclass(frozen=True)
class Turn:
    """Contestants of one alternation, the baseline first: rows as in `bench.configurations`, then peers.

    All are built anew `times` times, each time for as many rounds as asked for: a bar of 2 % needs more of them than
    one of 20 %, and another place in memory alone makes 1 to 2 %.
    A peer is (`name` or `name: overrides`, its function in `benchmarks.peers`). Peers come right after the baseline,
    and the last rows have the least weight.
    """

    name: str
    base: tuple[str, ...]
    rows: tuple[str, ...]
    peers: tuple[tuple[str, str], ...] = ()
    at_once: int = 20
    times: int = 1


@dataclasses.dataclass(frozen=True)
class Suite:
    """Turns in the order of their weight: with `bench.budget_s` the last ones fall away."""

    turns: tuple[Turn, ...]
    bars: tuple[Bar, ...]
    loop: bool = False
    first_step: tuple[str, ...] = ()


def strategy(name: str) -> str:
    """A strategy as a row."""
    return f"{name}: residual={name}"


CHEAP = ("learned_scaling", "x0_blend", "prores")
OF_ATTNRES = ("attnres_block", "attnres_stream_block", "tdar", "denseformer")

NARROW = (
    *("model=narrow", "data.micro_batch_size=4", "data.global_batch_size=4", "trainer=cpu"),
    "trainer.threads=1",
)
CPU_CHEAP = Turn("cheap", base=NARROW, rows=tuple(map(strategy, ("vanilla", *CHEAP))), times=12)
CPU_STRATEGIES = Turn(
    "strategies",
    base=NARROW,
    rows=tuple(map(strategy, ("vanilla", "attnres", *OF_ATTNRES, "hyperconn", "mhc", "parallel_lanes"))),
    times=4,
    peers=(("HC package", "hyper_connections"), ("mHC package", "manifold_hyper_connections")),
)
CPU_PLAIN = Turn(
    "plain",
    base=(
        *("model=narrow", "model.n_layer=6", "model.vocab_size=50304", "data.micro_batch_size=8"),
        *("data.global_batch_size=8", "trainer=cpu", "trainer.threads=1", "trainer.onednn=false"),
    ),
    rows=(
        "ours eager: trainer.compile=false",
        "ours compiled: trainer.compile=true",
        "ours fastest: trainer.compile=true trainer.onednn=auto",
        "ours bf16: trainer.compile=true trainer.precision=bf16-mixed",
    ),
    peers=(
        ("plain eager", "plain"),
        ("plain compiled", "plain_compiled"),
        ("plain bf16: trainer.precision=bf16-mixed", "plain_compiled"),
    ),
    times=2,
)
CPU = Suite(
    turns=(CPU_CHEAP, CPU_STRATEGIES, CPU_PLAIN),
    loop=True,
    first_step=(*NARROW, "residual=attnres", "trainer.compile=true"),
    bars=(
        *(Bar(f"{name}, time over vanilla's", overhead("cheap", name, "vanilla"), 2, "%") for name in CHEAP),
        Bar("attnres, time over vanilla's", overhead("strategies", "attnres", "vanilla"), 10, "%"),
        Bar("attnres, memory over vanilla's", memory_ratio("strategies", "attnres", "vanilla"), 1.15, "x"),
        *(
            Bar(f"{name}, time over attnres's", overhead("strategies", name, "attnres"), 0, "%")
            for name in OF_ATTNRES
        ),
        Bar("hyperconn, time over vanilla's", overhead("strategies", "hyperconn", "vanilla"), 18, "%"),
        Bar(
            "hyperconn, share of the package's overhead",
            share_of_overhead("strategies", "hyperconn", "HC package", "vanilla"),
            0.5,
            "x",
        ),
        Bar("mhc, time over vanilla's", overhead("strategies", "mhc", "vanilla"), 25, "%"),
        Bar(
            "mhc, share of the package's overhead",
            share_of_overhead("strategies", "mhc", "mHC package", "vanilla"),
            0.5,
            "x",
        ),
        Bar("parallel_lanes, time over vanilla's", overhead("strategies", "parallel_lanes", "vanilla"), 8, "%"),
        Bar(
            "vanilla, eager, over a plain step",
            times_as_fast("plain", "ours eager", "plain eager"),
            1.35,
            "x",
            False,
        ),
        Bar(
            "vanilla, compiled, over it compiled",
            times_as_fast("plain", "ours compiled", "plain compiled"),
            1.1,
            "x",
            False,
        ),
        Bar(
            "vanilla, fastest float32 route, over it as shipped",
            times_as_fast("plain", "ours fastest", "plain eager"),
            2.3,
            "x",
            False,
        ),
        Bar(
            "vanilla, compiled bf16, over it compiled bf16",
            times_as_fast("plain", "ours bf16", "plain bf16"),
            1.15,
            "x",
            False,
        ),
        Bar(
            "vanilla, memory over a plain step's", memory_ratio("plain", "ours eager", "plain eager"), 0.35, "x"
        ),
        Bar("training loop and logging", single("loop ms"), 0.5, "ms a step"),
        Bar("first step of attnres, compiled, 12 layers", single("first step s"), 60, "s"),
    ),
)

GPU_BOUNDS = {
    "learned_scaling": 0.7,
    "prores": 0.3,
    "x0_blend": 1.5,
    "resformer": 2.5,
    "attnres_stream_block": 1.5,
    "attnres_block": 8,
    "tdar": 9,
    "attnres": 20,
    "hyperconn bf16": 14,
    "mhc bf16": 18,
}
#: Streams in the type of what is written to them: half the bytes.
BF16_STREAMS = tuple(
    f"{name} bf16: residual={name} residual.stream_dtype=bfloat16" for name in ("hyperconn", "mhc")
)
GPU = Suite(
    turns=(
        Turn(
            "gpu",
            base=("model=gpt2_medium", "data.micro_batch_size=32", "data.global_batch_size=32", "trainer=gpu"),
            rows=(*(strategy(name) for name in ("vanilla", *GPU_BOUNDS) if " " not in name), *BF16_STREAMS),
            peers=(("plain compiled", "plain_compiled"), ("fla attnres", "attention_residuals_of_fla")),
            at_once=2,
        ),
        Turn(  # no bar's: whether the kernels are worth having
            "plain forms",
            base=("model=gpt2_medium", "data.micro_batch_size=32", "data.global_batch_size=32", "trainer=gpu"),
            rows=tuple(strategy(name) for name in ("vanilla", "attnres", "hyperconn", "mhc")),
            peers=tuple((f"{name} plain", f"{name}_plain") for name in ("attnres", "hyperconn", "mhc")),
            at_once=2,
        ),
    ),
    bars=(
        Bar("vanilla, MFU", mfu("gpu", "vanilla"), 55, "%", False),
        Bar(
            "vanilla over a compiled plain step",
            times_as_fast("gpu", "vanilla", "plain compiled"),
            1.15,
            "x",
            False,
        ),
        *(
            Bar(f"{name}, time over vanilla's", overhead("gpu", name, "vanilla"), bound, "%")
            for name, bound in GPU_BOUNDS.items()
        ),
        Bar(
            "attnres, share of flash-linear-attention's overhead",
            share_of_overhead("gpu", "attnres", "fla attnres", "vanilla"),
            1 / 3,
            "x",
        ),
        Bar("attnres, memory of a step over vanilla's", memory_more("gpu", "attnres", "vanilla"), 4, "GB"),
        Bar(
            "hyperconn bf16, memory of a step over vanilla's",
            memory_more("gpu", "hyperconn bf16", "vanilla"),
            2,
            "GB",
        ),
    ),
)
#: No bars: how a step's time and memory grow with each of its sizes.
SCALING = Suite(
    turns=tuple(
        Turn(
            name,
            base=("model=narrow", "data.micro_batch_size=4", "data.global_batch_size=4", "trainer.threads=1"),
            rows=rows,
        )
        for name, rows in (
            ("layers", tuple(f"L={n}: model.n_layer={n}" for n in (12, 3, 6, 24))),
            ("width", tuple(f"D={n}: model.n_embd={n}" for n in (256, 128, 512))),
            ("context", tuple(f"T={n}: model.block_size={n}" for n in (256, 64, 1024))),
            (
                "streams",
                (
                    "one: residual=vanilla",
                    *(f"n={n}: residual=hyperconn residual.n_stream={n}" for n in (2, 4, 8)),
                ),
            ),
            *(
                (
                    f"sources, {n} layers",
                    tuple(
                        f"{name}: residual={name} model.n_layer={n}"
                        for name in ("vanilla", "attnres", "attnres_block")
                    ),
                )
                for n in (6, 12, 24)
            ),
        )
    ),
    bars=(),
)
SUITES = {"cpu": CPU, "gpu": GPU, "scaling": SCALING}
