"""The table of measured steps: size, time over the baseline's, throughput, share of the device, memory."""

from collections.abc import Mapping

import torch

from src.bench.device_peak import Ceiling
from src.bench.peer_entry import LOSS_STEPS, LOSS_TOLERANCE
from src.bench.timing import Timing
from src.settings.read import Settings

#: Of a step of this project's; another's step tells none.
PARTS = ("forward", "loss", "backward", "optimizer")


def speed_table(timings: Mapping[str, Timing], ceilings: Mapping[str, Ceiling], measured: str) -> str:
    """Markdown; the first is the baseline, and `measured` says at what size it stands."""
    ceiling = next(iter(ceilings.values()))
    peak = "none is published" if ceiling.peak is None else f"{ceiling.peak / 1e12:.3g} TFLOP/s"
    baseline = next(iter(timings))
    lines = [
        f"Steps over {baseline}'s by time a token, median [quartiles] of the rounds' ratios; {baseline}: {measured}. "
        f"FLOPs are 6 a visited parameter and 12 L D T. MFU is of the chip's published peak ({peak}), the next column "
        f"of {ceiling.product_words} ({ceiling.product / 1e12:.3g} TFLOP/s); a copy moves "
        f"{ceiling.copy / 1e9:.3g} GB/s. Memory is weights and optimizer, and the "
        "most that a step allocates beside them.",
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
            f"| {100 * speed / own.product:.1f} % | {size(t.state_bytes)} + {size(t.step_bytes)} "
            f"| {t.first_seconds:.1f} s |"
        )
    return "\n".join(lines) + "\n"


def size(n_bytes: int) -> str:
    """Bytes in words."""
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"


def parts_table(timings: Mapping[str, Timing], data: Mapping[str, float | None], loop: float) -> str:
    """Milliseconds of a step by part, as Markdown."""
    lines = [
        "Milliseconds of a step by part, medians; data is one micro-batch from shards of random tokens, loop is what "
        "Lightning's loop with this project's callbacks and logging adds to a bare one (both CPU time, on the host). "
        "The loss has the head's gradients, which are made with it.",
        "",
        f"| configuration | data | {' | '.join(PARTS)} | loop |",
        f"|---|{'---:|' * (len(PARTS) + 2)}",
    ]
    for name, t in timings.items():
        cells = [data.get(name), *(t.parts.get(part) for part in PARTS), loop if t.parts else None]
        lines.append(f"| {name} | " + " | ".join("-" if c is None else f"{1e3 * c:.2f}" for c in cells) + " |")
    return "\n".join(lines) + "\n"


def peers_line(gaps: Mapping[str, float | None], baseline: str) -> str:
    """Whether peers compute what the baseline does, as a paragraph; empty without peers."""
    words = [
        f"{name}: not compared, its weights do not fit"
        if gap is None
        else f"{name}: {'the same' if gap <= LOSS_TOLERANCE else 'OTHER LOSSES'} (largest relative gap {gap:.0e})"
        for name, gap in gaps.items()
    ]
    return f"\nLosses of {LOSS_STEPS} steps from {baseline}'s weights: {'; '.join(words)}.\n" if words else ""


def describe(settings: Settings) -> str:
    """Where and at what size the steps were timed."""
    model, trainer = settings.model, settings.trainer
    where = torch.cuda.get_device_name() if trainer.accelerator == "gpu" else f"CPU, {trainer.threads} threads"
    how = "compiled" if trainer.compile else "eager"
    return (
        f"{model.n_layer} layers, {model.n_embd} wide, T {model.block_size}, batch "
        f"{settings.config['data']['micro_batch_size']}, vocabulary {model.vocab_size}, {trainer.precision}, "
        f"{how}, {where}, torch {torch.__version__}"
    )
