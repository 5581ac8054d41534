"""Model of a training on many GPUs: memory, exchange, batch and checkpoint, by count; needs no GPU.

python -m src.bench.cluster_model [--gpus 8 64 512] [--models gpt2_medium gpt2_xl gpt_7b] [--residual hyperconn]
                                  [--recompute] [--tokens-per-step N]

    parameters     12 L D^2 + (V + T) D
    state          16 bytes a parameter (weight, gradient, two moments), divided by the ranks that shard it
    activations    36 bytes a token, layer and channel under bf16 autocast (64 in float32) times the strategy's factor;
                   with recomputation 4, and those of one block
    compute        tokens (6 P + 12 L D T) / (MFU * peak), 4/3 of it with recomputation
    all-reduce     2 (g - 1)/g B / nvlink + 2 (k - 1)/k (B / g) / network    (rings in k nodes of g GPUs, then between)
    all-gather, reduce-scatter   half of an all-reduce

ddp exchanges float32 gradients once a step and hides it behind the last backward. fsdp gathers bf16 weights twice and
reduces float32 gradients in every micro-step, over all ranks; hsdp does so within a node and adds one all-reduce of the
node's shards a step. What exceeds the compute of the same pass is exposed. Bandwidths are those of one direction.

Source: Rajbhandari et al. 2020 (ZeRO), sections 5 and 7; Patarasuk, Yuan 2009 (ring all-reduce).

Shape letters: P parameters, B bytes.
"""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Sharding = Literal["ddp", "hsdp", "fsdp"]
SHARDINGS: tuple[Sharding, ...] = ("ddp", "hsdp", "fsdp")

#: Weight, gradient and AdamW's two moments in float32; what a checkpoint stores of it.
STATE_BYTES, SAVED_BYTES = 16, 12
#: Kept for the backward by a vanilla block, counted on fake tensors (docs/scaling.md): 0.91 GB at L 24, D 1024, T 1024.
KEPT_BF16, KEPT_FLOAT32 = 36, 64
#: Under recomputation, the float32 stream at the input of each block.
KEPT_RECOMPUTED = 4
#: CUDA context, NCCL's buffers, the head's chunk of logits, fragmentation (docs/scaling.md).
RESERVE_BYTES = 2e9
#: Share of the peak that vanilla GPT-2 Medium reached on one node: 177,000 tokens/s on each of two H200, the elapsed time
#: of the MLS-Bench leaderboard.
MFU = 0.434
#: Tokens of a micro-step that is assumed to reach that share; of smaller ones it is lower, which is not modelled.
MICRO_TOKENS = 32_768
#: Share of a link's bandwidth that collectives of large messages reach (nccl-tests on 8 H100: 360 to 370 of 450 GB/s).
LINK_SHARE = 0.8


@dataclass(frozen=True)
class Hardware:
    """One kind of GPU in nodes: bytes, FLOP/s, and bytes per second and GPU in one direction."""

    memory: float
    peak: float
    nvlink: float
    network: float
    gpus_per_node: int


#: NVIDIA's data sheets: 141 GB (80 GB), 989 TFLOP/s dense bf16, NVLink 900 GB/s in both directions together, and one
#: ConnectX-7 of 400 Gb/s a GPU.
HARDWARE = {
    "H200": Hardware(141e9, 989e12, 450e9, 50e9, 8),
    "H100": Hardware(80e9, 989e12, 450e9, 50e9, 8),
}


@dataclass(frozen=True)
class Model:
    """Sizes of a GPT, and the tokens of a step that GPT-3 used at this size."""

    n_layer: int
    n_embd: int
    block_size: int
    vocab_size: int
    tokens_per_step: int

    @property
    def block_params(self) -> int:
        """Parameters of one block's matrices."""
        return 12 * self.n_embd**2

    @property
    def n_params(self) -> int:
        """Count all parameters but those of norms and biases."""
        return self.n_layer * self.block_params + (self.vocab_size + self.block_size) * self.n_embd

    @property
    def flops_per_token(self) -> float:
        """Training FLOPs per token; positions are looked up and take part in no product."""
        products = self.n_params - self.block_size * self.n_embd
        return 6.0 * products + 12.0 * self.n_layer * self.n_embd * self.block_size


#: Radford et al. 2019 (XL), Touvron et al. 2023 (width and depth of 7B); steps: Brown et al. 2020, table 2.1.
MODELS = {
    "gpt2_medium": Model(24, 1024, 1024, 50304, 2**19),
    "gpt2_xl": Model(48, 1600, 1024, 50304, 2**20),
    "gpt_7b": Model(32, 4096, 2048, 50304, 2**21),
}

#: Activations and step time of a strategy over vanilla's (docs/scaling.md, docs/performance.md).
FACTORS = {
    "vanilla": (1.0, 1.0),
    "denseformer": (1.01 / 0.91, 1.03),
    "attnres": (1.12 / 0.91, 1.08),
    "attnres_block": (1.12 / 0.91, 1.04),
    "hyperconn": (1.91 / 0.91, 1.12),
    "mhc": (1.94 / 0.91, 1.18),
}


@dataclass(frozen=True)
class Plan:
    """Training of a model on a number of GPUs."""

    model: Model
    gpus: int
    sharding: Sharding
    hardware: Hardware = HARDWARE["H200"]
    factors: tuple[float, float] = FACTORS["vanilla"]
    recompute: bool = False
    bf16: bool = True
    mfu: float = MFU

    # ---- memory of a rank, bytes

    def shards(self) -> int:
        """Return the number of ranks that share one copy of the state."""
        return {"ddp": 1, "hsdp": min(self.gpus, self.hardware.gpus_per_node), "fsdp": self.gpus}[self.sharding]

    def state(self) -> float:
        """Return the bytes of weights, gradients and moments."""
        return STATE_BYTES * self.model.n_params / self.shards()

    def workspace(self) -> float:
        """Return the bytes of what is computed from the state: bf16 weights, and of shards the gathered blocks.

        Autocast keeps a bf16 copy of every matrix until the backward; shards keep two gathered blocks and the embedding
        in bf16 and one block's gradients in float32.
        """
        if self.shards() > 1:
            embedding = self.model.n_params - self.model.n_layer * self.model.block_params
            return 2.0 * (2 * self.model.block_params + embedding) + 4.0 * self.model.block_params
        return 2.0 * self.model.n_layer * self.model.block_params if self.bf16 else 0.0

    def activations(self) -> float:
        """Return the bytes that one sequence keeps for its backward."""
        model, kept = self.model, KEPT_BF16 if self.bf16 else KEPT_FLOAT32
        layer = float(model.block_size * model.n_embd)
        whole = kept * self.factors[0] * layer
        return model.n_layer * KEPT_RECOMPUTED * layer + whole if self.recompute else model.n_layer * whole

    def fitting(self) -> int:
        """Return the largest number of sequences of a micro-step, 0 where not even the state fits."""
        room = self.hardware.memory - RESERVE_BYTES - self.state() - self.workspace()
        return max(0, int(room / self.activations()))

    def memory(self, sequences: int) -> float:
        """Return the bytes of a rank with a micro-step of `sequences`."""
        return RESERVE_BYTES + self.state() + self.workspace() + sequences * self.activations()

    # ---- batch

    def sequences(self) -> float:
        """Return the sequences of a rank in a step of the model's usual number of tokens."""
        return self.model.tokens_per_step / self.model.block_size / self.gpus

    def micro_batch(self) -> int:
        """Return the sequences of a micro-step: as many as fit, as are needed, and as make a fast step."""
        fast = max(1, MICRO_TOKENS // self.model.block_size)
        return min(self.fitting(), fast, max(1, int(self.sequences())))

    def fast_batch(self) -> int:
        """Return the smallest power of two of tokens a step in which every rank has one fast micro-step."""
        fast = max(1, min(self.fitting(), MICRO_TOKENS // self.model.block_size))
        return int(2 ** (self.gpus * fast * self.model.block_size - 1).bit_length())

    # ---- seconds of a step

    def compute(self, sequences: float) -> float:
        """Return the seconds of forward and backward of a rank's sequences."""
        flops = sequences * self.model.block_size * self.model.flops_per_token * (4 / 3 if self.recompute else 1)
        return flops * self.factors[1] / (self.hardware.peak * self.mfu)

    def exchange(self) -> tuple[float, float]:
        """Return the seconds of all exchanges of a step, and of what the compute does not hide."""
        micro = self.micro_batch()
        n_micro = max(1.0, self.sequences() / micro)
        compute = self.compute(micro)
        forward = compute / (4 if self.recompute else 3)
        backward = compute - forward
        n_params = self.model.n_params
        if self.sharding == "ddp":
            total = all_reduce(4.0 * n_params, self.gpus, self.hardware)
            return total, max(0.0, total - backward)
        gather = all_reduce(2.0 * n_params, self.shards(), self.hardware) / 2
        reduce = all_reduce(4.0 * n_params, self.shards(), self.hardware) / 2
        exposed = max(0.0, gather - forward) + max(0.0, gather + reduce - backward)
        nodes = self.gpus // self.shards()
        between = ring(4.0 * n_params / self.shards(), nodes, self.hardware.network)
        return n_micro * (2 * gather + reduce) + between, n_micro * exposed + max(0.0, between - backward)

    def step(self) -> float:
        """Return the seconds of a step."""
        return self.compute(max(self.sequences(), self.micro_batch())) + self.exchange()[1]

    def efficiency(self) -> float:
        """Return the share of a step in which a rank computes."""
        return 1 - self.exchange()[1] / self.step()

    def tokens_per_s(self) -> float:
        """Return the tokens per second of all GPUs."""
        return max(self.sequences(), self.micro_batch()) * self.model.block_size * self.gpus / self.step()


def ring(n_bytes: float, ranks: int, bandwidth: float) -> float:
    """Return the seconds of a ring all-reduce over links of `bandwidth` bytes per second."""
    return 2 * (ranks - 1) / ranks * n_bytes / (LINK_SHARE * bandwidth)


def all_reduce(n_bytes: float, ranks: int, hardware: Hardware) -> float:
    """Return the seconds of an all-reduce: within each node, then of a g-th of the bytes between the nodes."""
    g = min(ranks, hardware.gpus_per_node)
    return ring(n_bytes, g, hardware.nvlink) + ring(n_bytes / g, ranks // g, hardware.network)


def table(models: Sequence[str], gpus: Sequence[int], shared: Plan, keys: argparse.Namespace) -> str:
    """Return the Markdown table of every model, number of GPUs and sharding; `shared` has what the plans share."""
    columns = [
        *("model", "GPUs", "sharding", "state a rank", "fit", "a rank's sequences", "compute", "exchange", "exposed"),
        *("tokens/s", "computing", "batch for 32k", "checkpoint"),
    ]
    lines = [f"| {' | '.join(columns)} |", "|---|---:|---|" + "---:|" * (len(columns) - 3)]
    for name, n in itertools.product(models, gpus):
        tokens = keys.tokens_per_step or MODELS[name].tokens_per_step
        model = replace(MODELS[name], tokens_per_step=tokens)
        plans = [replace(shared, model=model, gpus=n, sharding=sharding) for sharding in SHARDINGS]
        # Within one node hsdp is fsdp.
        lines += [_row(name, plan, keys) for plan in plans if plan.sharding != "hsdp" or plan.shards() < n]
    return "\n".join(lines) + "\n"


def _row(name: str, plan: Plan, keys: argparse.Namespace) -> str:
    cells = [name, str(plan.gpus), plan.sharding, f"{plan.state() / 1e9:.1f} GB", str(plan.fitting())]
    if not plan.fitting():
        return f"| {' | '.join(cells + ['-'] * 8)} |"
    total, exposed = plan.exchange()
    cells += [f"{plan.sequences():g}", *(f"{1e3 * t:,.0f} ms" for t in (plan.step() - exposed, total, exposed))]
    cells += [f"{plan.tokens_per_s() / 1e6:.2f} M", f"{100 * plan.efficiency():.0f} %"]
    speed = 1e9 * min(plan.shards() * keys.writer_gbs, keys.storage_gbs)
    saving = SAVED_BYTES * plan.model.n_params / speed
    return f"| {' | '.join([*cells, f'{plan.fast_batch() / 1e6:.2g} M', f'{saving:.1f} s'])} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m src.bench.cluster_model")
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 512], help="multiples of 8, or at most 8")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--hardware", default="H200", choices=list(HARDWARE))
    parser.add_argument("--residual", default="vanilla", choices=list(FACTORS))
    parser.add_argument("--recompute", action="store_true", help="activation checkpointing of every block")
    parser.add_argument("--tokens-per-step", type=int, help="default: GPT-3's at this size")
    parser.add_argument("--writer-gbs", type=float, default=2.0, help="1e9 bytes a second that a rank writes")
    parser.add_argument("--storage-gbs", type=float, default=40.0, help="1e9 bytes a second that the storage takes")
    keys = parser.parse_args(arguments)
    hardware = HARDWARE[keys.hardware]
    for n in keys.gpus:
        if n < 1 or (n > hardware.gpus_per_node and n % hardware.gpus_per_node):
            parser.error(f"--gpus must be at most {hardware.gpus_per_node} or a multiple of it, got {n}")
    shared = Plan(MODELS["gpt2_medium"], 1, "ddp", hardware, FACTORS[keys.residual], keys.recompute)
    print(table(keys.models, keys.gpus, shared, keys), end="")


if __name__ == "__main__":
    main()
