"""Forked runs equal started runs in output, files and exit code."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.prepared import FAULTS
from tests.runs import PREPARED, SMALL, begin, command, computed, environment, make_shards, result, run, start

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="forks are handed over on Linux only"),
]

#: Programs, and what the end of each is.
PROGRAMS = {
    "nothing": (0, "pass"),
    "a code": (3, "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"),
    "none": (0, "import sys; sys.exit()"),
    "words": (1, "import sys; sys.exit('words')"),
    "an exception": (1, "import sys; print('out'); raise ValueError('nobody catches it')"),
    "a signal": (-15, "import os, signal; print('lost'); os.kill(os.getpid(), signal.SIGTERM)"),
    "an interrupt": (
        7,
        "import os, signal, sys\ntry: os.kill(os.getpid(), 2)\nexcept KeyboardInterrupt: sys.exit(7)",
    ),
    "its place": (0, "import os, sys; print(sys.argv, sys.path[0], os.getcwd(), __file__, __name__, __spec__)"),
    "its main": (
        0,
        "import sys; m = sys.modules['__main__']; print(m.__file__, m.__spec__, sys.orig_argv[1:])",
    ),
    "its signals": (
        0,
        "import signal as s; print([s.getsignal(n) for n in (2, 13, 15)], s.pthread_sigmask(0, []))",
    ),
    "its variables": (0, "import os; print(sorted(os.environ.items()))"),
    "its files": (0, "import os; print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1])"),
    "its input": (0, "import sys; print(sys.stdin.fileno(), sys.stdout.isatty(), sys.stdout.line_buffering)"),
    "handlers": (
        5,
        "import atexit, sys; atexit.register(print, 'one'); atexit.register(print, 'two'); sys.exit(5)",
    ),
    "a thread": (
        0,
        "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('t'))).start()",
    ),
    "a pool": (
        0,
        "import multiprocessing\nif __name__ == '__main__':\n"
        "    for way in ('spawn', 'fork', 'forkserver'):\n"
        "        with multiprocessing.get_context(way).Pool(1) as pool: print(pool.map(abs, [-1]))",
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_fork_does_what_a_process_does(name: str, tmp_path: Path) -> None:
    code, text = PROGRAMS[name]
    program = tmp_path / "program.py"
    program.write_text(text)
    words = [str(program), "a=1", "b c"]
    real = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    with PREPARED.begin(*words, cwd=tmp_path, env=environment()) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == real.returncode == code, err
    assert out == real.stdout
    assert err.splitlines()[-1:] == real.stderr.splitlines()[-1:]  # of a traceback, the last line


def test_forks_draw_random_numbers_of_their_own(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import random, tempfile, numpy, torch\n"
        "print(random.random(), numpy.random.rand(), torch.rand(1).item(), next(tempfile._get_candidate_names()))"
    )
    told = []
    for _ in range(2):
        with PREPARED.begin(str(program), cwd=tmp_path) as process:
            told.append(process.communicate(timeout=60)[0].split())
    same = [a == b for a, b in zip(*told, strict=True)]
    assert same == [False, False, True, False]  # torch's begins with one seed in every process


def test_a_fork_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import subprocess; subprocess.run(['sleep', '600'])")
    with PREPARED.begin(str(program), cwd=tmp_path) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (started := children.read_text().split()):
            time.sleep(0.01)
        assert process.poll() is None
        process.kill()
        process.communicate(timeout=60)  # to the end of its output, which the child had, too
    assert process.returncode == -signal.SIGKILL
    assert not Path(f"/proc/{started[0]}/cwd").exists()


def test_a_run_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run(*SMALL, "task=check", cwd=tmp_path, timeout=0.05)


def test_another_environment_makes_it_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def real() -> bool:
        with begin("residual=nothing", cwd=tmp_path) as process:
            process.communicate(timeout=60)
        assert process.returncode in (2, 130)
        return type(process) is subprocess.Popen

    assert not real()
    monkeypatch.setenv("PYTHONPATH", FAULTS)
    monkeypatch.setenv("FAULT_FILES", "none")
    assert not real()
    monkeypatch.setenv("FAULT_SIGNAL", "2:hydra")  # at an import
    assert real()
    for name in ("FAULT_SIGNAL", "PYTHONPATH", "FAULT_FILES"):
        monkeypatch.delenv(name)
    monkeypatch.delenv("PATH")
    assert real()


def test_a_run_that_is_started_leaves_what_a_fork_leaves(tmp_path: Path) -> None:
    keys = [*SMALL, f"data.path={make_shards(tmp_path / 'shards')}", "name=x"]
    with start(*keys, "hydra.run.dir=real", cwd=tmp_path) as process:
        out, err = process.communicate(timeout=120)
    assert process.args == command(*keys, "hydra.run.dir=real")
    assert process.returncode == 0, err
    fork = run(*keys, "hydra.run.dir=fork", cwd=tmp_path)
    assert (fork.returncode, fork.stdout) == (0, out)
    assert [line.split(":")[0].split()[:1] for line in fork.stderr.splitlines()] == [
        line.split(":")[0].split()[:1] for line in err.splitlines()
    ]
    folders = tmp_path / "real", tmp_path / "fork"
    assert computed(folders[0]) == computed(folders[1])
    assert result(folders[0]).keys() == result(folders[1]).keys()
    files = [{str(p.relative_to(f)) for p in f.rglob("*") if "tfevents" not in p.name} for f in folders]
    assert files[0] == files[1]
