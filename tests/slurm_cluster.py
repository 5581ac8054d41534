"""SLURM cluster of one controller and two virtual nodes on the loopback of this machine, of the installed daemons.

Needs no root: all daemons and jobs run as the user of the test, with a munge key of their own.
"""

import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from tests.runs import ROOT, environment

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
#: Daemons are mostly outside of a user's PATH.
SEARCHED = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

CONFIG = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool.%n
StateSaveLocation={folder}/state
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=60
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs=2
PartitionName=low Nodes=ALL Default=YES State=UP PriorityTier=1 GraceTime=120
PartitionName=high Nodes=ALL State=UP PriorityTier=2
"""


#: Documented batch scripts, the first one complete, and the command that they run.
SECTION = (ROOT / "docs/scaling-out.md").read_text().partition("## SLURM")[2].partition("\n## ")[0]
SCRIPTS = re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL)
COMMAND = "python run.py scale=gpu data=fineweb10b"


def documented_script(*keys: str) -> str:
    """Return the documented batch script with other keys, without GPUs."""
    script: str = SCRIPTS[0].replace(COMMAND, " ".join((sys.executable, str(ROOT / "run.py"), *keys)))
    return re.sub(r"#SBATCH --gpus.*\n", "", script)


def missing_programs() -> list[str]:
    """Return the programs that a cluster needs and that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=SEARCHED) is None]


class Cluster:
    """Cluster for the time of a `with` block; its folder is removed at the end."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.daemons: list[subprocess.Popen[bytes]] = []
        # The names of virtual nodes do not resolve; ranks connect to this machine.
        own = {"SLURM_CONF": str(self.folder / "slurm.conf"), "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
        self.env = {**environment(), **own, "PATH": SEARCHED, "OMP_NUM_THREADS": "1"}

    def __enter__(self) -> "Cluster":
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def call(self, *command: str, cwd: Path | None = None, check: bool = True) -> str:
        """Return the output of one of SLURM's commands."""
        done = subprocess.run(
            command, cwd=cwd or self.folder, env=self.env, capture_output=True, text=True, check=False, timeout=60
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, script: str, cwd: Path, *options: str) -> str:
        """Submit the text of a batch script; return the number of the job."""
        path = cwd / "job.sh"
        path.write_text(script)
        return self.call("sbatch", "--parsable", *options, str(path), cwd=cwd)

    def wait(self, job: str, end: str, output: Path, timeout_s: float = 400) -> str:
        """Wait until a job, or each one of an array, has ended; return their `scontrol show job`.

        Args:
            end: the state in which they have to end.
            output: folder of the jobs' output, for the message of a failure.
        """
        shown = ""

        def has_ended() -> bool:
            nonlocal shown
            shown = self.call("scontrol", "--oneliner", "show", "job", job)
            assert "JobState=FAILED" not in shown
            return all(f"JobState={end} " in line for line in shown.splitlines())

        try:
            self.until(has_ended, timeout_s)
        except AssertionError as error:
            texts = "\n".join(path.read_text(errors="replace")[-4000:] for path in sorted(output.glob("slurm-*.out")))
            raise AssertionError(f"{shown}\n{texts}") from error
        return shown

    def wait_for_step(self, step: int, folder: Path) -> None:
        """Wait until the run in `folder` has written the row of a step."""
        path = folder / "metrics.jsonl"
        self.until(lambda: path.exists() and path.read_text().count("\n") >= step, timeout_s=300)

    def until(self, is_true: Callable[[], bool], timeout_s: float = 60) -> None:
        """Wait until a condition holds, while all daemons run."""
        deadline = time.monotonic() + timeout_s
        while not is_true():
            ended = [daemon.args for daemon in self.daemons if daemon.poll() is not None]
            assert not ended, f"{ended} ended: {self._logs()}"
            assert time.monotonic() < deadline, self._logs()
            time.sleep(0.2)

    def _start(self) -> None:
        folder = self.folder
        folder.chmod(0o755)
        for name in ("state", "spool.n1", "spool.n2"):
            (folder / name).mkdir()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        host, user = socket.gethostname().partition(".")[0], pwd.getpwuid(os.getuid()).pw_name
        ports = dict(zip(("controller", "n1", "n2"), free_ports(3), strict=True))
        (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, host=host, user=user, **ports))
        files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self._daemon("munged", "--foreground", "--force", *(f"--{k}={folder}/munge.{v}" for k, v in files.items()))
        self.until((folder / "munge.socket").exists)
        self._daemon("slurmctld", "-D")
        for node in ("n1", "n2"):
            self._daemon("slurmd", "-D", "-N", node)
        self.until(lambda: "2 idle" in self.call("sinfo", "--noheader", "--format=%D %t", check=False))

    def _daemon(self, *command: str) -> None:
        with (self.folder / f"{command[0]}-{len(self.daemons)}.log").open("wb") as log:
            self.daemons.append(subprocess.Popen(command, env=self.env, stdout=log, stderr=log))

    def _logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(self.folder.glob("*.log")))

    def _stop(self) -> None:
        if len(self.daemons) > 1:
            self.call("scancel", "--user", str(os.getuid()), check=False)
            time.sleep(1)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def free_ports(n: int) -> list[int]:
    """Return numbers of TCP ports that are free now."""
    probes = [socket.socket() for _ in range(n)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
