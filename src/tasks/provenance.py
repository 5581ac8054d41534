"""What a number rests on besides its configuration: the code, the libraries, the device."""

import importlib.metadata
import platform
import subprocess

import torch

from src.overrides import ROOT

PACKAGES = ("torch", "lightning", "hydra-core", "omegaconf", "numpy", "tiktoken", "datasets", "lm-eval")


def versions() -> dict[str, str]:
    """What the run's numbers rest on besides this project."""
    return {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in PACKAGES}}


def device_name(accelerator: str) -> str:
    """What the run computes on."""
    if accelerator == "gpu":
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()


def git_commit() -> str | None:
    """The commit of this checkout, marked where the tree differs from it; None outside git."""
    try:
        text = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return text.strip()
