"""The table of all strategies: what each is, what it equals at init, what it costs."""

import dataclasses
import re
import statistics
from collections.abc import Mapping

from src.overrides import CONF

#: Sequences of 1,024 tokens that the memory is counted for.
MEDIUM_BATCH = 8


@dataclasses.dataclass(frozen=True)
class Cost:
    """What can be counted, at GPT-2 Medium."""

    n_params: int  # of the strategy alone
    n_params_model: int
    flops_per_token: int
    kept_bytes: int  # for the backward, by the whole trunk under bf16


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds a step by round, and the rounds' ratios to the baseline."""

    seconds: list[float]
    ratios: list[float]
    first_seconds: float  # of the first step, which compiles
    tokens: int  # of a step
    flops_per_token: int
    step_bytes: int | None  # a step's memory over what it finds, on a GPU

    def quartiles(self) -> tuple[float, float, float]:
        """Of the ratios: lower, median, upper."""
        if len(self.ratios) < 2:
            return (self.ratios[0],) * 3
        low, middle, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return low, middle, high


def table(baseline: str, costs: Mapping[str, Cost], timings: Mapping[str, Timing], measured: str) -> str:
    """The costs as Markdown; a strategy's idea and what it equals at init are its own files' words."""
    plain = costs[baseline]
    hidden = MEDIUM_BATCH * 1024 * 1024 * 4  # one float32 hidden state of GPT-2 Medium
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
            f"| {name} | {idea(name)} | {at_init(name)} | {cost.n_params:,} | {flops:+.2f} % | {memory:+.0f} | {step} |"
        )
    return "\n".join(lines) + "\n"


def idea(name: str) -> str:
    """The first line of the strategy's YAML."""
    first = (CONF / "residual" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    return first.removeprefix(f"# {name}: ").rstrip(".")


def at_init(name: str) -> str:
    """What the strategy's module says it equals at init: vanilla, identity, near vanilla, or something else."""
    text = (CONF.parent / "src" / "residual" / f"{name}.py").read_text(encoding="utf-8")
    found = re.search(r"^At init(?: \([^)]*\))?[^:(]*:\s+((?:.|\n)*)", text, re.MULTILINE)
    words = " ".join(found[1].split()) if found else ""
    for said, short in (
        ("vanilla", "vanilla"),
        ("equal to vanilla", "vanilla"),
        ("near vanilla", "near vanilla"),
        ("the identity", "identity"),
        ("nearly the identity", "near identity"),
    ):
        if words.startswith(said):
            return short
    return "-" if name == "vanilla" else "other"


def speed_table(timings: Mapping[str, Timing], ceiling: float, ceiling_words: str) -> str:
    """Throughput as Markdown; `ceiling` is in FLOP/s."""
    lines = [
        f"Share of {ceiling_words} ({ceiling / 1e12:.3g} TFLOP/s); FLOPs are 6 a visited parameter and 12 L D T.",
        "",
        "| residual | tokens/s | share | first step | step memory |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, timing in timings.items():
        speed = timing.tokens / statistics.median(timing.seconds)
        memory = "-" if timing.step_bytes is None else f"{timing.step_bytes / 2**30:.2f} GiB"
        lines.append(
            f"| {name} | {speed:,.0f} | {100 * speed * timing.flops_per_token / ceiling:.1f} % "
            f"| {timing.first_seconds:.1f} s | {memory} |"
        )
    return "\n".join(lines) + "\n"
