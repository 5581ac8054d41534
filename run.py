"""Entry point: compose a configuration, run its task, exit with the task's code.

python run.py residual=hyperconn            train on the embedded text
python run.py -m residual=vanilla,x0_blend seed=1,2
python run.py resume=<run folder>
python run.py --help
"""

import sys

from src.launch.signals import run_guarded


def start() -> int:
    """Import Hydra, which takes seconds, and run; the signal handlers are installed already."""
    try:
        import hydra
        from omegaconf import DictConfig
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed; pip install -c constraints.txt '.[app]'", file=sys.stderr)
        return 2

    from src.launch.job import enter, run_job
    from src.launch.outcomes import Outcomes

    outcomes = Outcomes()

    @hydra.main(version_base="1.3", config_path="conf", config_name="config")
    def main(config: DictConfig) -> float | None:
        """Run one job and return its value for sweepers, lower is better."""
        return run_job(config, outcomes)

    return enter(main, outcomes)


if __name__ == "__main__":
    sys.exit(run_guarded(start))
