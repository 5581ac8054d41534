"""Program of one rank that `elastic.py` launches: python -m src.launch.worker <run folder> <job.yaml> <parent>.

`parent` is the process that launched it. Imports that take seconds follow once signals are handled, as in `run.py`.
"""

import sys
from pathlib import Path

from src.launch.signals import die_with_parent, run_guarded


def start() -> int:
    """Run the rank that the command line and the environment name; return its exit code."""
    folder, path, parent = sys.argv[1:]
    die_with_parent(int(parent))

    from src.launch.elastic import run_rank

    return run_rank(Path(folder), Path(path))


if __name__ == "__main__":
    sys.exit(run_guarded(start))
