"""The one front door: compose a configuration, hand it to its task, leave with the task's exit code.

python run.py residual=hyperconn            train on the embedded text
python run.py -m residual=vanilla,x0_blend seed=1,2
python run.py resume=<run folder>
python run.py --help
"""

import sys

from src.launch.signals import guarded


def start() -> int:
    """Everything, under handlers of signals: the imports take seconds."""
    import hydra
    from omegaconf import DictConfig

    from src.launch.job import enter, run_job

    @hydra.main(version_base="1.3", config_path="conf", config_name="config")
    def main(config: DictConfig) -> float | None:
        """Run one job; returns its figure of merit (for sweepers), lower is better."""
        return run_job(config)

    return enter(main)


if __name__ == "__main__":
    sys.exit(guarded(start))
