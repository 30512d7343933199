"""The manifest: what it takes to reproduce a run."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from qohort.config.identity import config_tree
from qohort.config.schema import TrainConfig
from qohort.runs.code import code_hash, git

PACKAGES = (
    *("torch", "pytorch-lightning", "hydra-core", "omegaconf", "gymnasium", "numpy", "numba", "wandb"),
    *("box2d", "minatar", "ale-py"),  # environments
)


HISTORY = ("command", "slurm_job", "resumed")
"""What of `manifest.json` says how a run came about, not what it was made with."""


def manifest(config: TrainConfig, command: list[str]) -> dict[str, Any]:
    """What it takes to reproduce a run."""
    return {
        "command": command,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": None if (status := git("status", "--porcelain")) is None else bool(status),
        "code": code_hash(config_tree(config)),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in ("qohort", *PACKAGES)},
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "accelerator": config.trainer.accelerator,
        "threads": config.trainer.threads,
        "compile": config.compile,
        "compile_fallbacks": {},
        "mkl_cbwr": os.environ.get("MKL_CBWR"),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The model of this machine's CPU."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def command_line() -> list[str]:
    """The command line, to run it again: as typed, or the job's own in a sweep, whose launcher may run it anywhere."""
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return [f"{HydraConfig.get().job.name}.py", *HydraConfig.get().overrides.task]
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
