"""The table of all strategies: what each is, what it equals at init, what it costs."""

import dataclasses
from collections.abc import Mapping

from src.bench.timing import Timing
from src.launch.arguments import CONF

#: Sequences of 1,024 tokens that the memory is counted for.
MEDIUM_BATCH = 8


@dataclasses.dataclass(frozen=True)
class Cost:
    """What can be counted, at GPT-2 Medium."""

    n_params: int  # of the strategy alone
    n_params_model: int
    flops_per_token: int
    kept_bytes: int  # for the backward, by the whole trunk under bf16
    init_equivalent: str


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
            f"| {name} | {idea(name)} | {cost.init_equivalent} | {cost.n_params:,} "
            f"| {flops:+.2f} % | {memory:+.0f} | {step} |"
        )
    return "\n".join(lines) + "\n"


def idea(name: str) -> str:
    """The first line of the strategy's YAML."""
    first = (CONF / "residual" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    return first.removeprefix(f"# {name}: ").rstrip(".")
