"""Markdown tables of a benchmark: what strategies cost at GPT-2 Medium, measured steps, and the parts of a step."""

import dataclasses
from collections.abc import Mapping

import torch

from src.bench.device_peak import Ceiling
from src.bench.peers import LOSS_STEPS, LOSS_TOLERANCE
from src.bench.timing import Timing
from src.files import CONF, format_bytes
from src.settings.read import Settings

#: Sequences of 1,024 tokens that the memory at GPT-2 Medium is counted for.
MEDIUM_BATCH = 8
#: Parts of our own steps in their order; a peer's step reports none.
PARTS = ("forward", "loss", "backward", "optimizer")


@dataclasses.dataclass(frozen=True)
class Cost:
    """Counts of a strategy at GPT-2 Medium, and what it declares to equal at initialization."""

    n_params: int  # of the strategy alone
    n_params_model: int
    flops_per_token: int
    kept_bytes: int  # saved for the backward by the whole trunk under bf16
    init_equivalent: str


def strategy_table(baseline: str, costs: Mapping[str, Cost], timings: Mapping[str, Timing], measured: str) -> str:
    """Format what strategies cost over the baseline; `measured` describes where the step was timed."""
    plain = costs[baseline]
    hidden = MEDIUM_BATCH * 1024 * 1024 * 4  # bytes of one float32 hidden state of GPT-2 Medium
    lines = [
        f"Parameters, FLOPs and memory over {baseline} at GPT-2 Medium (memory kept for the backward, in float32 "
        f"hidden states); the time of a step over {baseline}'s at {measured}, median [quartiles].",
        "",
        "| residual | idea and source | at init | parameters | FLOPs | memory | step |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for name, cost in costs.items():
        step = "1"
        if name != baseline:
            low, middle, high = timings[name].quartiles()
            step = f"{middle:.2f} [{low:.2f}, {high:.2f}]"
        flops = 100 * (cost.flops_per_token / plain.flops_per_token - 1)
        memory = (cost.kept_bytes - plain.kept_bytes) / hidden
        lines.append(
            f"| {name} | {strategy_summary(name)} | {cost.init_equivalent} | {cost.n_params:,} "
            f"| {flops:+.2f} % | {memory:+.0f} | {step} |"
        )
    return "\n".join(lines) + "\n"


def strategy_summary(name: str) -> str:
    """Return a strategy's one-line summary: the first line of its YAML, `# name: summary (source).`, or of its parts'."""
    if "+" in name:
        return "; ".join(map(strategy_summary, name.split("+")))
    first = (CONF / "residual" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    return first.removeprefix(f"# {name}: ").rstrip(".")


def speed_table(timings: Mapping[str, Timing], ceilings: Mapping[str, Ceiling], measured: str) -> str:
    """Format size, time over the baseline's (the first), throughput, share of the device's ceilings and memory.

    `measured` describes the baseline's size and device.
    """
    ceiling = next(iter(ceilings.values()))
    peak = "none is published" if ceiling.peak is None else f"{ceiling.peak / 1e12:.3g} TFLOP/s"
    baseline = next(iter(timings))
    lines = [
        f"Time per token over {baseline}'s, median [quartiles] of the rounds' ratios; {baseline}: {measured}. "
        f"FLOPs per token are 6 per visited parameter plus 12 L D T. MFU is the share of the device's published peak "
        f"({peak}), the next column the share of {ceiling.product_words} ({ceiling.product / 1e12:.3g} TFLOP/s); a "
        f"copy moves {ceiling.copy / 1e9:.3g} GB/s. Memory is that of weights and optimizer, plus the peak of a step "
        "above it.",
        "",
        "| configuration | parameters | FLOPs/token | step | ms | steps/s | tokens/s | MFU | of product "
        "| memory | first step |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    flops = timings[baseline].flops_per_token
    for name, t in timings.items():
        low, middle, high = t.quartiles()
        step = "1" if name == baseline else f"{middle:.3f} [{low:.3f}, {high:.3f}]"
        speed = t.tokens_per_s * t.flops_per_token
        own = ceilings[name]
        mfu = "-" if own.peak is None else f"{100 * speed / own.peak:.1f} %"
        lines.append(
            f"| {name} | {t.n_params:,} | {100 * (t.flops_per_token / flops - 1):+.1f} % | {step} "
            f"| {1e3 * t.step_seconds:.1f} | {1 / t.step_seconds:.2f} | {t.tokens_per_s:,.0f} | {mfu} "
            f"| {100 * speed / own.product:.1f} % | {format_bytes(t.state_bytes)} + {format_bytes(t.step_bytes)} "
            f"| {t.first_seconds:.1f} s |"
        )
    return "\n".join(lines) + "\n"


def parts_table(timings: Mapping[str, Timing], data: Mapping[str, float | None], loop: float) -> str:
    """Format the milliseconds of a step by part; `data` and `loop` are host seconds per micro-batch and per step."""
    lines = [
        "Milliseconds of a step by part, medians. Data is the time to read one micro-batch from shards of random "
        "tokens; loop is the time that Lightning's loop with this project's callbacks and logging adds to a bare "
        "loop (both CPU time, on the host). The gradients of the head are computed with the loss and counted there.",
        "",
        f"| configuration | data | {' | '.join(PARTS)} | loop |",
        f"|---|{'---:|' * (len(PARTS) + 2)}",
    ]
    for name, t in timings.items():
        cells = [data.get(name), *(t.parts.get(part) for part in PARTS), loop if t.parts else None]
        lines.append(f"| {name} | " + " | ".join("-" if c is None else f"{1e3 * c:.2f}" for c in cells) + " |")
    return "\n".join(lines) + "\n"


def format_loss_gaps(gaps: Mapping[str, float | None], baseline: str) -> str:
    """Format one paragraph on which peers compute the baseline's losses; empty without peers."""
    words = [
        f"{name}: not compared, its weights do not fit"
        if gap is None
        else f"{name}: {'equal' if gap <= LOSS_TOLERANCE else 'DIFFERENT LOSSES'} (largest relative gap {gap:.0e})"
        for name, gap in gaps.items()
    ]
    return f"\nLosses of {LOSS_STEPS} steps from {baseline}'s weights: {'; '.join(words)}.\n" if words else ""


def describe_settings(settings: Settings) -> str:
    """Return the size, precision and device of a timed step in one line."""
    model, trainer = settings.model, settings.trainer
    where = torch.cuda.get_device_name() if trainer.accelerator == "gpu" else f"CPU, {trainer.threads} threads"
    how = "compiled" if trainer.compile else "eager"
    return (
        f"{model.n_layer} layers, {model.n_embd} wide, T {model.block_size}, batch "
        f"{settings.config['data']['micro_batch_size']}, vocabulary {model.vocab_size}, {trainer.precision}, "
        f"{how}, {where}, torch {torch.__version__}"
    )
