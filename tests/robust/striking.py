"""Fault injection: runs with a fault at a given or random moment, resumed to their end and compared."""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.agents import children_of, start_agent, wait_for_port, workers_of
from tests.robust.support import FAULTS, LONGER, environ, rank_pid, wait_for_row
from tests.runs import ROOT, computed, free_port, make_shards, result, run, same_weights, start
from tests.slurm_cluster import Cluster, documented_script

STEPS = 240
#: Steps of the runs that take longer each: one of every strategy, compiled ones.
FEW = 24
TWO = ["trainer.devices=2", "safety.rank_timeout_s=15"]
SCORED = [
    *(
        "model.vocab_size=50304",
        "evaluation=limited",
        "evaluation.lm_eval.tasks=[]",
        "evaluation.perplexity.lambada.limit_tokens=4096",
    ),
    f"trainer.max_steps={FEW}",
]
#: Runs that others are compared with: what they have on their command line.
KINDS: dict[str, list[str]] = {
    "one rank": [],
    "two ranks": TWO,
    "two nodes": ["trainer.devices=2"],
    "restarted": [*TWO, "trainer.restarts=1"],
    "compiled": ["trainer.compile=true", f"trainer.max_steps={FEW}"],
    "scored": SCORED,
    "background": ["safety.background_saves=true"],
}
#: Functions to be killed in: saving, validating, scoring, and what comes at the end of each step.
INSIDE = (
    "src.callbacks.checkpoints:AtomicCheckpointIO.save_checkpoint",
    "src.models.lightning_module:LanguageModel.validation_step",
    "src.evaluation.suite:EvaluationSuite.run",
    "src.callbacks.stop:StopOnSignal.on_step_end",
)
Codes = Iterable[int]
Fault = Callable[[Path, int], Codes]


@dataclass
class Row:
    """Row of the table."""

    fault: str
    times: int = 0
    lost: int = 0
    wrong: int = 0
    codes: set[int] = field(default_factory=set)

    def __str__(self) -> str:
        codes = ", ".join(map(str, sorted(self.codes)))
        return f"| {self.fault} | {self.times} | {self.lost} | {self.wrong} | {codes} |"


class Stress:
    """Reference runs, made when they are first used, and faults in runs with the same command line.

    Args:
        place: an empty folder.
        times: how often each fault is injected.
        seed: of the random moments.
    """

    def __init__(self, place: Path, *, times: int, seed: int) -> None:
        self.place, self.times = place, times
        self.random = random.Random(seed)
        shards = make_shards(place / "shards")
        self.keys = [*LONGER, f"trainer.max_steps={STEPS}", f"data.path={shards}"]
        self.kills = 0

    def reference(self, kind: str) -> Path:
        """Return the run of a kind without a fault."""
        folder = self.place / kind.replace(" ", "-")
        if not folder.exists():
            done = run(*self.keys, *KINDS[kind], f"hydra.run.dir={folder}", cwd=self.place)
            if done.returncode:
                raise RuntimeError(done.stderr)
        return folder

    def strike(self, fault: str, times: int, inject: Fault, kind: str = "one rank") -> Row:
        """Inject a fault into `times` new runs, resume each to its end, and compare."""
        row, whole = Row(fault), self.reference(kind)
        for _ in range(times):
            folder = self.place / "struck"
            shutil.rmtree(folder, ignore_errors=True)
            codes = list(inject(folder, self.random.randrange(5, len(computed(whole)) - 5)))
            row.times += max(1, codes.count(-signal.SIGKILL))
            row.codes.update(codes)
            self.kills += codes.count(-signal.SIGKILL)
            command = [f"resume={folder}", "trusted_targets=[tests]"]
            if not (folder / "config.yaml").exists():  # killed before there was anything to resume, on a slow machine
                command = [*self.keys, *KINDS[kind], f"hydra.run.dir={folder}", "resume=auto"]
            done = run(*command, cwd=self.place)
            self.compare(row, whole, folder, done.returncode)
        print(row, flush=True)
        return row

    def compare(self, row: Row, whole: Path, folder: Path, code: int) -> None:
        """Add to the row the steps that a run lacks, and whether it differs from the reference."""
        expected, found = computed(whole), computed(folder)
        row.lost += len({r["step"] for r in expected} - {r["step"] for r in found})
        same = found == expected and same_weights(folder, whole)
        same = same and result(folder).get("perplexity") == result(whole).get("perplexity")
        row.wrong += not (same and code == 0)

    # ---- faults: each returns the exit codes that it led to

    def signalled(self, signum: int, kind: str = "one rank", *, rank: int | None = None) -> Fault:
        """Return a fault: a signal after a step, to the process of the run or to one of the ranks that it launched."""

        def inject(folder: Path, step: int) -> Codes:
            process = start(*self.keys, *KINDS[kind], f"hydra.run.dir={folder}", cwd=self.place)
            wait_for_row(step, folder, process)
            if process.poll() is None:
                os.kill(process.pid if rank is None else rank_pid(folder, rank), signum)
            process.communicate(timeout=300)
            return [process.returncode]

        return inject

    def agent_killed(self, folder: Path, step: int) -> Codes:
        """Kill a torchrun agent of two workers after a step; the workers save and end."""
        arguments = ["--standalone", "--nproc-per-node=2", str(ROOT / "run.py"), *self.keys, *KINDS["two nodes"]]
        agent = start_agent(*arguments, f"hydra.run.dir={folder}", cwd=self.place)
        wait_for_row(step, folder, agent)
        agent.kill()
        agent.communicate(timeout=300)
        while workers_of(self.place):
            time.sleep(0.1)
        return [agent.returncode]

    def node_lost(self, folder: Path, step: int) -> Codes:
        """Kill the agent and the worker of one of two torchrun nodes after a step, and start the node again."""
        port = free_port()
        rendezvous = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=stress"]
        options = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", *rendezvous]
        arguments = [*options, str(ROOT / "run.py"), *self.keys, f"hydra.run.dir={folder}"]
        first = start_agent(*arguments, cwd=self.place)
        wait_for_port(port)  # the node that holds the rendezvous is not the one that is lost
        second = start_agent(*arguments, cwd=self.place)
        wait_for_row(step, folder, first)
        for process in [second.pid, *children_of(second.pid)]:
            os.kill(process, signal.SIGKILL)
        second.communicate(timeout=300)
        again = start_agent(*arguments, cwd=self.place)
        for process in (first, again):
            process.communicate(timeout=600)
        return [second.returncode, first.returncode, again.returncode]

    def preempted(self, folder: Path, step: int) -> Codes:
        """Preempt a job of two SLURM nodes by one of a partition of higher priority, after a step."""
        script = documented_script(*self.keys, f"hydra.run.dir={folder}")
        with Cluster() as cluster:
            job = cluster.submit(script, self.place, "--ntasks-per-node=1", "--cpus-per-task=1", "--time=60")
            cluster.wait_for_step(step // 2, folder)
            cluster.submit("#!/bin/bash\ntrue\n", self.place, "--partition=high", "--nodes=2", "--ntasks-per-node=2")
            cluster.wait(job, "COMPLETED", output=self.place)
        output = self.place / f"slurm-{job}.out"
        codes = {int(code) for code in re.findall(r"Exited with exit code (\d+)", output.read_text())}
        output.unlink()  # the next cluster counts from 1 again
        return [*codes, 0]

    def killed_often(self, kills: int) -> Fault:
        """Return a fault: kills at random moments of start, training and saving, until a launch completes."""

        def inject(folder: Path, step: int) -> Codes:
            codes: list[int] = []
            arguments = [*self.keys, f"hydra.run.dir={folder}", "resume=auto"]
            while codes.count(-signal.SIGKILL) < kills and 0 not in codes:
                process = start(*arguments, cwd=self.place)
                try:
                    process.communicate(timeout=self.random.uniform(1.0, 14.0))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()
                codes.append(process.returncode)
            return codes

        return inject

    def killed_inside(self, function: str, calls: int, ms: float, kind: str = "one rank") -> Fault:
        """Return a fault: a kill up to `ms` milliseconds into one of the first `calls` calls of a function."""

        def inject(folder: Path, step: int) -> Codes:
            moment = f"{function}:{self.random.randint(1, calls)}:{self.random.uniform(0, ms):.1f}"
            with environ(PYTHONPATH=str(FAULTS), FAULT_KILL=moment):
                return [run(*self.keys, *KINDS[kind], f"hydra.run.dir={folder}", cwd=self.place).returncode]

        return inject

    def every_strategy(self, names: list[str]) -> Row:
        """Run a sweep over strategies, killed once in each strategy and started again each time."""
        row = Row("`kill -9` at a random step of each residual strategy")
        keys = [f"residual={','.join(names)}", f"trainer.max_steps={FEW}", "check=off", "model.n_layer=3"]

        def sweep(name: str) -> list[str]:
            return ["-m", *self.keys, *keys, f"hydra.sweep.dir={self.place / name}"]

        done = run(*sweep("strategies"), cwd=self.place, timeout=1800)
        if done.returncode:
            raise RuntimeError(done.stderr)
        for number, name in enumerate(names):
            process = start(*sweep("struck-strategies"), cwd=self.place)
            wait_for_row(self.random.randrange(1, FEW - 5), self.place / f"struck-strategies/{number}-{name}", process)
            process.kill()
            process.communicate()
            row.codes.add(process.returncode)
            row.times += 1
            self.kills += process.returncode == -signal.SIGKILL
        done = run(*sweep("struck-strategies"), cwd=self.place, timeout=1800)
        for number, name in enumerate(names):
            folders = (self.place / sweep / f"{number}-{name}" for sweep in ("strategies", "struck-strategies"))
            self.compare(row, *folders, done.returncode)
        print(row, flush=True)
        return row

    def damaged(self, how: Callable[[Path], None]) -> Fault:
        """Return a fault: a kill, and damage to the newest checkpoint."""

        def inject(folder: Path, step: int) -> Codes:
            codes = self.signalled(signal.SIGKILL)(folder, max(step, 12))
            last = folder / "checkpoints/last.ckpt"
            newest = max(folder.glob("checkpoints/step*.ckpt"))
            for path in {last, newest}:
                how(path)
            return codes

        return inject

    def full_disk(self, folder: Path, step: int) -> Codes:
        """Fill the disk for checkpoints from some step on."""
        with environ(PYTHONPATH=str(FAULTS), FAULT_FILES=r"\.ckpt\.part", FAULT_AFTER=str(step // 4)):
            done = run(*self.keys, f"hydra.run.dir={folder}", cwd=self.place)
        return [done.returncode]

    def launched_twice(self, folder: Path, step: int) -> Codes:
        """Launch into the folder of a live run, and resume that run."""
        process = start(*self.keys, f"hydra.run.dir={folder}", cwd=self.place)
        wait_for_row(3, folder, process)
        process.send_signal(signal.SIGSTOP)
        codes = [run(f"resume={folder}", cwd=self.place).returncode]
        codes += [run(*self.keys, f"hydra.run.dir={folder}", cwd=self.place).returncode]
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=300)
        return [*codes, process.returncode]
