"""Suites of `bench.suite`: the comparisons of configurations and peers to run, and the targets to meet."""

import dataclasses

from benchmarks.targets import (
    Target,
    memory_more,
    memory_ratio,
    mfu,
    overhead,
    share_of_overhead,
    single,
    times_as_fast,
)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Candidates that alternate with each other: rows as in `bench.configurations`, the baseline first, then peers.

    All are built `builds` times, each time for as many rounds as asked for: the place of a model in memory alone changes
    its time by 1 to 2 %, so a target of 2 % needs more builds than one of 20 %. A peer is (`name` or
    `name: overrides`, its function in `benchmarks.peers`). Peers run right after the baseline; with a budget the last
    rows are dropped first.
    """

    name: str
    base: tuple[str, ...]
    rows: tuple[str, ...]
    peers: tuple[tuple[str, str], ...] = ()
    at_once: int = 20
    builds: int = 1


@dataclasses.dataclass(frozen=True)
class Suite:
    """Comparisons in the order of their importance: `bench.budget_s` drops the last ones first.

    `loop` also measures the training loop; `first_step` are the overrides of a model whose first step is timed.
    """

    comparisons: tuple[Comparison, ...]
    targets: tuple[Target, ...]
    loop: bool = False
    first_step: tuple[str, ...] = ()


def strategy_row(name: str) -> str:
    """Return the row of a shipped strategy."""
    return f"{name}: residual={name}"


CHEAP = ("learned_scaling", "x0_blend", "prores")
OF_ATTNRES = ("attnres_block", "attnres_stream_block", "tdar", "denseformer")

NARROW = (
    *("model=narrow", "data.micro_batch_size=4", "data.global_batch_size=4", "trainer=cpu"),
    "trainer.threads=1",
)
CPU_CHEAP = Comparison("cheap", base=NARROW, rows=tuple(map(strategy_row, ("vanilla", *CHEAP))), builds=12)
CPU_STRATEGIES = Comparison(
    "strategies",
    base=NARROW,
    rows=tuple(map(strategy_row, ("vanilla", "attnres", *OF_ATTNRES, "hyperconn", "mhc", "parallel_lanes"))),
    builds=4,
    peers=(("HC package", "hyper_connections"), ("mHC package", "manifold_hyper_connections")),
)
CPU_PLAIN = Comparison(
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
    builds=2,
)
CPU = Suite(
    comparisons=(CPU_CHEAP, CPU_STRATEGIES, CPU_PLAIN),
    loop=True,
    first_step=(*NARROW, "residual=attnres", "trainer.compile=true"),
    targets=(
        *(Target(f"{name}, time over vanilla's", overhead("cheap", name, "vanilla"), 2, "%") for name in CHEAP),
        Target("attnres, time over vanilla's", overhead("strategies", "attnres", "vanilla"), 10, "%"),
        Target("attnres, memory over vanilla's", memory_ratio("strategies", "attnres", "vanilla"), 1.15, "x"),
        *(
            Target(f"{name}, time over attnres's", overhead("strategies", name, "attnres"), 0, "%")
            for name in OF_ATTNRES
        ),
        Target("hyperconn, time over vanilla's", overhead("strategies", "hyperconn", "vanilla"), 18, "%"),
        Target(
            "hyperconn, share of the package's overhead",
            share_of_overhead("strategies", "hyperconn", "HC package", "vanilla"),
            0.5,
            "x",
        ),
        Target("mhc, time over vanilla's", overhead("strategies", "mhc", "vanilla"), 25, "%"),
        Target(
            "mhc, share of the package's overhead",
            share_of_overhead("strategies", "mhc", "mHC package", "vanilla"),
            0.5,
            "x",
        ),
        Target("parallel_lanes, time over vanilla's", overhead("strategies", "parallel_lanes", "vanilla"), 8, "%"),
        Target(
            "vanilla, eager, over a plain step",
            times_as_fast("plain", "ours eager", "plain eager"),
            1.35,
            "x",
            False,
        ),
        Target(
            "vanilla, compiled, over a compiled plain step",
            times_as_fast("plain", "ours compiled", "plain compiled"),
            1.1,
            "x",
            False,
        ),
        Target(
            "vanilla, fastest in float32, over a plain step",
            times_as_fast("plain", "ours fastest", "plain eager"),
            2.3,
            "x",
            False,
        ),
        Target(
            "vanilla, compiled in bf16, over a compiled plain step in bf16",
            times_as_fast("plain", "ours bf16", "plain bf16"),
            1.15,
            "x",
            False,
        ),
        Target("vanilla, memory over a plain step's", memory_ratio("plain", "ours eager", "plain eager"), 0.35, "x"),
        Target("training loop and logging", single("loop ms"), 2, "ms a step"),
        Target("first step of attnres, compiled, 12 layers", single("first step s"), 60, "s"),
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
#: Streams in bfloat16, the dtype of the outputs that are written to them: half the bytes.
BF16_STREAMS = tuple(f"{name} bf16: residual={name} residual.stream_dtype=bfloat16" for name in ("hyperconn", "mhc"))
GPU = Suite(
    comparisons=(
        Comparison(
            "gpu",
            base=("model=gpt2_medium", "data.micro_batch_size=32", "data.global_batch_size=32", "trainer=gpu"),
            rows=(*(strategy_row(name) for name in ("vanilla", *GPU_BOUNDS) if " " not in name), *BF16_STREAMS),
            peers=(("plain compiled", "plain_compiled"), ("fla attnres", "attention_residuals_of_fla")),
            at_once=2,
        ),
        Comparison(  # without targets: the kernels beside what torch.compile makes of the reference
            "without kernels",
            base=("model=gpt2_medium", "data.micro_batch_size=32", "data.global_batch_size=32", "trainer=gpu"),
            rows=tuple(strategy_row(name) for name in ("vanilla", "attnres", "hyperconn", "mhc")),
            peers=tuple((f"{name} plain", f"{name}_plain") for name in ("attnres", "hyperconn", "mhc")),
            at_once=2,
        ),
    ),
    targets=(
        Target("vanilla, MFU", mfu("gpu", "vanilla"), 55, "%", False),
        Target(
            "vanilla over a compiled plain step",
            times_as_fast("gpu", "vanilla", "plain compiled"),
            1.15,
            "x",
            False,
        ),
        *(
            Target(f"{name}, time over vanilla's", overhead("gpu", name, "vanilla"), bound, "%")
            for name, bound in GPU_BOUNDS.items()
        ),
        Target(
            "attnres, share of flash-linear-attention's overhead",
            share_of_overhead("gpu", "attnres", "fla attnres", "vanilla"),
            1 / 3,
            "x",
        ),
        Target("attnres, memory of a step over vanilla's", memory_more("gpu", "attnres", "vanilla"), 4, "GB"),
        Target(
            "hyperconn bf16, memory of a step over vanilla's",
            memory_more("gpu", "hyperconn bf16", "vanilla"),
            2,
            "GB",
        ),
    ),
)
#: Without targets: how time and memory of a step grow with each size.
SCALING = Suite(
    comparisons=tuple(
        Comparison(
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
                        f"{name}: residual={name} model.n_layer={n}" for name in ("vanilla", "attnres", "attnres_block")
                    ),
                )
                for n in (6, 12, 24)
            ),
        )
    ),
    targets=(),
)
SUITES = {"cpu": CPU, "gpu": GPU, "scaling": SCALING}
